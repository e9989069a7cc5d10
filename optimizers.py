"""Flat memory for a stack's parameters, and the optimizers that step on it.

At these sizes an optimizer's bookkeeping costs more than its arithmetic, so all parameters stand in
one tensor and all gradients in another: one fill clears them, one call updates everything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Flat:
    """``values`` and ``grads``, (P,) each: what parameters and their gradients are views of."""

    def __init__(self, module: nn.Module):
        self.parameters = list(module.parameters())
        self.values = torch.cat([parameter.data.flatten() for parameter in self.parameters])
        self.grads = torch.zeros_like(self.values)
        views = self.views(self.values), self.views(self.grads)
        for parameter, value, slope in zip(self.parameters, *views, strict=True):
            parameter.data, parameter.grad = value, slope

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat tensor, in the shapes of the parameters."""
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        pairs = zip(parts, self.parameters, strict=True)
        return [part.view(parameter.shape) for part, parameter in pairs]


class Adam:
    """Adam with decoupled weight decay, by the kernel of ``torch.optim.AdamW(fused=True)``.

    The kernel is called directly: the optimizer class around it takes twice the kernel's own time.
    Its state is three tensors. Source: Loshchilov and Hutter, ICLR 2019.
    """

    def __init__(self, memory: Flat, lr: float, weight_decay: float | Tensor):
        self.values, self.grads = memory.values, memory.grads
        self.lr, self.weight_decay = lr, weight_decay
        self.state = {name: torch.zeros_like(self.values) for name in ("mean", "square")}
        self.state["steps"] = torch.zeros((), device=self.values.device)

    @torch.no_grad()
    def step(self) -> None:
        mean, square, steps = self.state.values()
        steps.add_(1)
        decay = self.weight_decay
        if isinstance(decay, Tensor):  # the kernel knows one for all
            self.values.addcmul_(self.values, decay, value=-self.lr)
            decay = 0.0
        torch._fused_adamw_(
            [self.values],
            [self.grads],
            [mean],
            [square],
            [],
            [steps],
            lr=self.lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


class SGD:
    """Plain gradient descent: θ ← θ − lr · (gradient + weight_decay · θ). No state."""

    def __init__(self, memory: Flat, lr: float, weight_decay: float | Tensor):
        self.values, self.grads = memory.values, memory.grads
        self.lr, self.weight_decay = lr, weight_decay
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        if isinstance(self.weight_decay, Tensor) or self.weight_decay:
            self.values.mul_(1 - self.lr * self.weight_decay)
        self.values.add_(self.grads, alpha=-self.lr)


OPTIMIZERS = {"adam": Adam, "sgd": SGD}


def decay_by_column(net: nn.Module, ranking: float, common: float, rating: float) -> Tensor:
    """Each parameter's weight decay, (P,): in the embedding tables that of its column, else 0."""
    own = net.ranking_dim - net.shared_dims, net.rating_dim - net.shared_dims
    sizes = torch.tensor([own[0], net.shared_dims, own[1]])
    columns = torch.tensor([ranking, common, rating]).repeat_interleave(sizes)
    tables, flat = net.tables(), []
    for name, parameter in net.named_parameters():
        decay = columns if name in tables else torch.zeros(1)
        flat.append(decay.to(parameter).expand(parameter.shape).flatten())
    return torch.cat(flat)


def make_optimizer(name: str, net: nn.Module, memory: Flat, lr: float, decay: Sequence[float]):
    """An optimizer of OPTIMIZERS; one weight decay is of all parameters, three of the columns."""
    decay = decay[0] if len(decay) == 1 else decay_by_column(net, *decay)
    return OPTIMIZERS[name](memory, lr, decay)
