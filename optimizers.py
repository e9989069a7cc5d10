"""Flat memory for a stack's parameters, and the optimizers that step on it.

At these sizes an optimizer's bookkeeping costs more than its arithmetic, so all parameters stand in
one tensor and all gradients in another: one fill clears them, one call updates everything.
"""

from itertools import compress

import torch
from torch import Tensor, nn


class Flat:
    """``values`` and ``grads``, (P,) each: what parameters and their gradients are views of.

    Where the tasks' gradients are kept apart, a flat tensor holds each; w_F and w_R weigh the
    columns that the tasks share (`MultiTaskNet.shared_columns`), o_F and o_R each task's own.

    ``split``: rating's gradients stand in ``rating_grads``, each parameter's ``rating_grad``.
    ``sparse``: there are no ``grads``; each step's backward pass makes them, of touched rows alone.
    """

    def __init__(self, net: nn.Module, sparse: bool = False, split: bool = False):
        self.names, self.parameters = zip(*net.named_parameters(), strict=True)
        self.values = torch.cat([parameter.data.flatten() for parameter in self.parameters])
        self.grads = None if sparse else torch.zeros_like(self.values)
        self.rating_grads = torch.zeros_like(self.values) if split else None
        self.stepped = [slice(None)]  # the parts of flat memory that this process steps on
        slopes = [None] * len(self.names) if sparse else self.views(self.grads)
        parts = zip(self.parameters, self.views(self.values), slopes, strict=True)
        for parameter, value, slope in parts:
            parameter.data, parameter.grad = value, slope
        if split:
            rated = self.views(self.rating_grads)
            for parameter, slope in zip(self.parameters, rated, strict=True):
                parameter.rating_grad = slope
        self.scratch: dict[tuple[int, ...], Tensor] = {}
        self.columns, self.tables = net.shared_columns(), net.tables()
        self.own = net.ranking_dim - net.shared_dims, net.rating_dim - net.shared_dims

    def clear(self) -> None:
        if self.grads is None:
            for parameter in self.parameters:
                parameter.grad = None
            return
        for part in self.stepped:
            self.grads[part].zero_()
        if self.rating_grads is not None:
            self.rating_grads.zero_()

    def zeros(self, key: int, *shape: int) -> Tensor:
        """To work in until the next call alike: memory is kept, since new memory is dear."""
        if (key, *shape) not in self.scratch:
            self.scratch[key, *shape] = self.values.new_empty(shape)
        return self.scratch[key, *shape].zero_()

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat tensor, in the shapes of the parameters."""
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        pairs = zip(parts, self.parameters, strict=True)
        return [part.view(parameter.shape) for part, parameter in pairs]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.views(flat), strict=True))

    def shared(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat tensor that the tasks share."""
        views = self.named(flat)
        return [views[name][..., columns] for name, columns in self.columns.items()]

    def gradients(self, loss: Tensor) -> Tensor:
        """The gradient of a loss in all parameters, (P,), zero where one is frozen.

        The graph is kept for the other task.
        """
        flat = torch.zeros_like(self.values)
        if loss.requires_grad:
            wanted = [parameter.requires_grad for parameter in self.parameters]
            inputs, kept = compress(self.parameters, wanted), dict(retain_graph=True)
            parts = torch.autograd.grad(loss, list(inputs), materialize_grads=True, **kept)
            for view, part in zip(compress(self.views(flat), wanted), parts, strict=True):
                view.add_(part)  # which may be sparse
        return flat

    def gram(self, ranking: Tensor, rating: Tensor) -> Tensor:
        """[[g_F·g_F, g_F·g_R], [g_F·g_R, g_R·g_R]] of what the tasks share: (R, 2, 2)."""
        gram = self.values.new_zeros(len(self.parameters[0]), 2, 2)
        for pair in zip(self.shared(ranking), self.shared(rating), strict=True):
            f, r = (part.flatten(1)[:, None] for part in pair)  # (R, 1, n·K)
            gram[:, :1, :1] += torch.bmm(f, f.transpose(1, 2))
            gram[:, :1, 1:] += torch.bmm(f, r.transpose(1, 2))
            gram[:, 1:, 1:] += torch.bmm(r, r.transpose(1, 2))
        gram[:, 1, 0] = gram[:, 0, 1]
        return gram

    def weigh_own(self, o: Tensor) -> None:
        """Weigh the gradients of what is of one task, by (R, 2)."""
        o = o[..., None, None]
        for name, view in self.named(self.grads).items():
            if name in self.tables:
                view[..., : self.own[0]].mul_(o[:, 0])
                view[..., view.shape[-1] - self.own[1] :].mul_(o[:, 1])
            elif name not in self.columns:
                view.mul_(o[:, 0] if name in ("user_bias", "item_bias") else o[:, 1])

    def combine(self, ranking: Tensor, rating: Tensor, w: Tensor, o: Tensor, split: Tensor) -> None:
        """grads = o_F·g_F + o_R·g_R, and w_F·g_F + w_R·g_R where shared; w and o are (R, 2).

        In the runs of ``split``, (R,) bools, rating's part goes to rating_grads instead.
        """

        def multiply(these: list[Tensor], factors: Tensor, out: list[Tensor]) -> None:
            for gradient, weighted in zip(these, out, strict=True):
                each = factors.to(gradient).view(-1, *[1] * (gradient.dim() - 1))
                torch.mul(gradient, each, out=weighted)

        parts = []
        for task, flat in enumerate((ranking, rating)):
            part = torch.empty_like(flat)
            for weights, get in ((o, self.views), (w, self.shared)):
                multiply(get(flat), weights[:, task], out=get(part))
            parts.append(part)
        if self.rating_grads is not None:
            rated = self.views(parts[1])
            multiply(rated, split, out=self.views(self.rating_grads))
            multiply(rated, ~split, out=rated)
        torch.add(*parts, out=self.grads)


class Adam:
    """Adam with decoupled weight decay, by the kernel of ``torch.optim.AdamW(fused=True)``.

    The kernel is called directly: the optimizer class around it takes twice the kernel's own time.
    Its state is three tensors. Source: Loshchilov and Hutter, ICLR 2019.

    Rating's gradients, where they are apart, have moments of their own, and the two steps add up:
    AdaTask, Yang et al., AAAI 2023. Of a parameter of one task only that task's moments move.
    """

    def __init__(self, memory: Flat, lr: float, weight_decay: float | Tensor):
        self.memory, self.values = memory, memory.values
        self.lr, self.weight_decay = lr, weight_decay
        self.state = {name: torch.zeros_like(self.values) for name in ("mean", "square")}
        self.state["steps"] = torch.zeros((), device=self.values.device)
        if memory.rating_grads is not None:
            self.state |= {f"rating_{name}": x.clone() for name, x in self.state.items()}

    @torch.no_grad()
    def step(self) -> None:
        decay = self.weight_decay
        if isinstance(decay, Tensor):  # the kernel knows one for all
            self.values.addcmul_(self.values, decay, value=-self.lr)
            decay = 0.0
        self._kernel(self.memory.grads, decay)
        if self.memory.rating_grads is not None:
            self._kernel(self.memory.rating_grads, 0.0, "rating_")

    def _kernel(self, grads: Tensor, decay: float, moments: str = "") -> None:
        mean, square, steps = (self.state[f"{moments}{x}"] for x in ("mean", "square", "steps"))
        steps.add_(1)
        flats = self.values, grads, mean, square
        self._update([(*(x[part] for x in flats), steps) for part in self.memory.stepped], decay)

    def _update(self, parts: list[tuple[Tensor, ...]], decay: float = 0.0) -> None:
        """Of values, gradient, mean, square and steps each."""
        *tensors, steps = map(list, zip(*parts, strict=True))
        rate, betas = dict(lr=self.lr, weight_decay=decay), dict(beta1=0.9, beta2=0.999)
        flags = dict(amsgrad=False, maximize=False)
        torch._fused_adamw_(*tensors, [], steps, **rate, **betas, eps=1e-8, **flags)


class LazyAdam(Adam):
    """Adam on the rows that have a gradient; others stand still, their averages too.

    Another algorithm where not all rows have one at each step. The averages' corrections count all
    steps, as in ``torch.optim.SparseAdam``. A gradient that isn't sparse is of all rows.
    """

    @torch.no_grad()
    def step(self) -> None:
        parameters, steps = self.memory.parameters, self.state["steps"].add_(1)
        moments = (self.memory.views(self.state[name]) for name in ("mean", "square"))
        parts, touched = [], []
        for parameter, *own in zip(parameters, parameters, *moments, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                gradient = gradient.coalesce()
                run, row = gradient.indices()
                tables, rows = [x.flatten(0, 1) for x in own], run * parameter.shape[1] + row
                own, gradient = [x.index_select(0, rows) for x in tables], gradient.values()
                touched += zip(tables, own, [rows] * 3, strict=True)
            parts.append((own[0], gradient, *own[1:], steps))
        self._update(parts)
        for table, stepped, rows in touched:
            table.index_copy_(0, rows, stepped)


class SGD:
    """Plain gradient descent: θ ← θ − lr · (gradient + weight_decay · θ). No state."""

    def __init__(self, memory: Flat, lr: float, weight_decay: float | Tensor):
        self.values, self.grads = memory.values, memory.grads
        self.lr, self.weight_decay = lr, weight_decay
        self.state: dict[str, Tensor] = {}
        if memory.rating_grads is not None:
            raise ValueError("--weighting adatask keeps moments per task: sgd has none, take adam")

    @torch.no_grad()
    def step(self) -> None:
        if isinstance(self.weight_decay, Tensor) or self.weight_decay:
            self.values.mul_(1 - self.lr * self.weight_decay)
        self.values.add_(self.grads, alpha=-self.lr)


class LazySGD(SGD):
    """The same step, of the rows that have a gradient."""

    def __init__(self, memory: Flat, lr: float, weight_decay: float | Tensor):
        super().__init__(memory, lr, weight_decay)
        self.parameters = memory.parameters

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self.lr)


OPTIMIZERS = {"adam": Adam, "sgd": SGD}
LAZY = {"adam": LazyAdam, "sgd": LazySGD}  # with --sparse


def make_optimizer(options, net: nn.Module, memory: Flat):
    """The optimizer that a stack's options name.

    One weight decay is of all parameters, three of the embedding tables' columns, ranking's own,
    common and rating's own, and of nothing else. Raises ValueError where it would move what is
    frozen.
    """
    decay, named = options.weight_decay, dict(net.named_parameters())
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    if frozen and any(decay):
        raise ValueError(f"{frozen[0]} is frozen: --weight-decay would move it, go without")
    if len(decay) > 1:
        sizes = torch.tensor([memory.own[0], net.shared_dims, memory.own[1]])
        columns, others = torch.tensor(decay).repeat_interleave(sizes), torch.zeros(1)
        decays = {name: columns if name in memory.tables else others for name in named}
        parts = [decays[name].to(x).expand(x.shape).flatten() for name, x in named.items()]
    decay = decay[0] if len(decay) == 1 else torch.cat(parts)
    kinds = LAZY if options.sparse else OPTIMIZERS
    return kinds[options.optimizer](memory, options.lr, decay)
