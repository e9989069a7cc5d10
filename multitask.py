"""Two tasks, one objective: the losses, their weights, negative sampling, the training epoch.

Run r of a stack minimises, over its training interactions (i, j, r_ij),

    L = λ_F · L_F(p_ij, p_ij') + λ_R · L_R(r̂_ij, r_ij)

where L_F is a factorization loss on interaction scores (j' a sampled negative), L_R the mean
squared error of predicted ratings, in squared rating units, and λ_F, λ_R its task weights.
The runs share nothing: the sum of their losses has each run's own gradient in each run's own
parameters, so one backward pass and one optimizer step serve them all.

Shapes: R runs, B batch, n training interactions of a run.
"""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradients import WRITTEN_OUT, pairwise_step
from models import MultiTaskNet, random_stream

BLOCK = 2**20  # training interactions gathered at a time: bounds an epoch's working memory


def require_equal_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        # Broadcasting (B,) against (B, 1) gives (B, B), whose best constant is the global mean.
        raise ValueError(f"shapes must be equal, got {shapes}")


def sigmoid_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """The report's loss, mean of 1 − σ(p⁺ − p⁻) over the batch: (..., B) twice -> (...).

    A smooth count of the pairs in the wrong order. Raises ValueError when shapes differ.
    """
    require_equal_shapes(positive=positive, negative=negative)
    return 1 - torch.sigmoid(positive - negative).mean(-1)


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking, mean of −log σ(p⁺ − p⁻): (..., B) twice -> (...).

    Raises ValueError when shapes differ. Source: Rendle et al., UAI 2009.
    """
    require_equal_shapes(positive=positive, negative=negative)
    return -F.logsigmoid(positive - negative).mean(-1)


def softmax_loss(scores: Tensor, item_ids: Tensor) -> Tensor:
    """Cross-entropy of the item picked among the catalogue, mean over the batch.

    −log( exp p_ij / Σ_k exp p_ik ): (R, B, n_items) scores and (R, B) ids -> (R,). Raises
    ValueError when R or B differ. Source: Covington et al., RecSys 2016.
    """
    require_equal_shapes(scores=scores[..., 0], item_ids=item_ids)
    picked = scores.gather(-1, item_ids.unsqueeze(-1)).squeeze(-1)
    return (scores.logsumexp(-1) - picked).mean(-1)


def regression_loss(predicted: Tensor, ratings: Tensor) -> Tensor:
    """Mean squared error over the batch, in squared rating units: (..., B) twice -> (...).

    Raises ValueError when shapes differ.
    """
    require_equal_shapes(predicted=predicted, ratings=ratings)
    return (predicted - ratings).square().mean(-1)


PAIRWISE = {"sigmoid": sigmoid_loss, "bpr": bpr_loss}
LOSSES = (*PAIRWISE, "softmax")


class NegativeSampler:
    """Draws one item for each interaction, uniform over the catalogue.

    An item drawn may be one that the user has picked, unless ``exclude_positives``: then draws are
    uniform over the items that are not among the user's training items.

    Args:
        users, items: (n,) training interactions of one run.

    Raises:
        ValueError: with ``exclude_positives``, when a user has picked every item.
    """

    def __init__(self, users: Tensor, items: Tensor, n_items: int, exclude_positives: bool):
        self.n_items, self.exclude_positives = n_items, exclude_positives
        if not exclude_positives:
            return
        keys = np.unique(users.cpu().numpy() * n_items + items.cpu().numpy())
        users_sorted, items_sorted = np.divmod(keys, n_items)
        counts = np.bincount(users_sorted, minlength=int(users.max()) + 1)
        if counts.max() == n_items:
            raise ValueError(
                f"exclude_positives: user id {counts.argmax()} (contiguous) has interacted with "
                f"all {n_items} items, so no negative is left to draw: go without it"
            )
        self.starts = np.concatenate([[0], counts.cumsum()])
        self.free = n_items - counts
        # The j-th picked item, in order, has `item - j` free items before it: so the k-th free
        # item is k plus the number of picked items with at most k free items before them.
        before = items_sorted - (np.arange(len(keys)) - self.starts[users_sorted])
        self.keys = users_sorted * (n_items + 1) + before

    def draw(self, users: Tensor, stream: torch.Generator) -> Tensor:
        """(n,) user ids -> (n,) item ids, int64, on the CPU."""
        if not self.exclude_positives:
            return torch.randint(self.n_items, users.shape, generator=stream)
        users = users.cpu().numpy()
        uniform = torch.rand(users.shape, generator=stream, dtype=torch.float64).numpy()
        k = (uniform * self.free[users]).astype(np.int64)
        places = np.searchsorted(self.keys, users * (self.n_items + 1) + k, side="right")
        return torch.from_numpy(k + places - self.starts[users])


class Adam:
    """Adam with decoupled weight decay, by the kernel of ``torch.optim.AdamW(fused=True)``.

    The kernel is called directly: at these sizes the optimizer class around it takes twice the
    kernel's own time. Its state is three tensors. Source: Loshchilov and Hutter, ICLR 2019.
    """

    def __init__(self, parameters: Tensor, lr: float, weight_decay: float | Tensor):
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.state = {name: torch.zeros_like(parameters) for name in ("mean", "square")}
        self.state["steps"] = torch.zeros((), device=parameters.device)

    @torch.no_grad()
    def step(self) -> None:
        mean, square, steps = self.state.values()
        steps.add_(1)
        decay = self.weight_decay
        if isinstance(decay, Tensor):  # the kernel knows one for all
            self.parameters.addcmul_(self.parameters, decay, value=-self.lr)
            decay = 0.0
        torch._fused_adamw_(
            [self.parameters],
            [self.parameters.grad],
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

    def __init__(self, parameters: Tensor, lr: float, weight_decay: float | Tensor):
        self.parameters, self.lr, self.weight_decay = parameters, lr, weight_decay
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        if isinstance(self.weight_decay, Tensor) or self.weight_decay:
            self.parameters.mul_(1 - self.lr * self.weight_decay)
        self.parameters.add_(self.parameters.grad, alpha=-self.lr)


OPTIMIZERS = {"adam": Adam, "sgd": SGD}


class Stack:
    """R runs in training: their network, optimizer, data, task weights and random streams.

    Args:
        net: a MultiTaskNet of R runs, on the device to train on.
        users, items, ratings: (N,) all interactions, ids contiguous from 0, ratings in their unit.
        train: (R, n) the rows of these that each run trains on.
        seeds: (R,) keys of the random streams: the same seed draws the same order and negatives.
        lambda_f, lambda_r: (R,) task weights λ_F and λ_R.
        loss: "sigmoid", "bpr" or "softmax".
        exclude_positives: never draw one of the user's own training items as a negative.
        optimizer: "adam" or "sgd"; ``lr`` its learning rate.
        weight_decay: of all parameters; or three, of the embedding tables alone, for the columns
            of ranking's own, common, and rating's own.
        schedule: "constant", or "cosine": the rate of step t of T is lr · (1 + cos(π t / T)) / 2.
        epochs: how many there will be, which the cosine needs.
        history_dropout, ranking_dropout, rating_dropout: rates of dropout in training, of the
            interactions in a history, of u_i in the ranking window, of u_i and q_j in the rating
            window.
        average: the parameters returned are the exponential average of the steps', with this
            decay (the plain mean of the first 1 / (1 − decay) steps). 0: the last step's.
        log_gradients: measure the tasks' gradients at the first batch of each epoch.
        compile: compile the losses and their gradients (needs a C++ compiler, or CUDA).
    """

    def __init__(
        self,
        net: MultiTaskNet,
        users: np.ndarray,
        items: np.ndarray,
        ratings: np.ndarray,
        train: np.ndarray,
        seeds: Sequence[int | str],
        lambda_f: Sequence[float],
        lambda_r: Sequence[float],
        loss: str = "sigmoid",
        exclude_positives: bool = False,
        batch_size: int = 256,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float | Sequence[float] = 0.0,
        schedule: str = "constant",
        epochs: int = 1,
        history_dropout: float = 0.0,
        ranking_dropout: float = 0.0,
        rating_dropout: float = 0.0,
        average: float = 0.0,
        log_gradients: bool = False,
        compile: bool = False,
    ):
        self.log_gradients, self.exclude_positives = log_gradients, exclude_positives
        self.net, self.seeds, self.loss, self.batch_size = net, list(seeds), loss, batch_size
        self.device = net.users.device
        self.users = torch.tensor(users, device=self.device)
        self.items = torch.tensor(items, device=self.device)
        self.ratings = torch.tensor(ratings, device=self.device)
        self.train = torch.tensor(train)
        self.lambda_f = torch.as_tensor(lambda_f, dtype=torch.float32, device=self.device)
        self.lambda_r = torch.as_tensor(lambda_r, dtype=torch.float32, device=self.device)
        self.samplers = []
        if loss in PAIRWISE:
            self.samplers = [
                NegativeSampler(self.users[rows], self.items[rows], net.n_items, exclude_positives)
                for rows in self.train
            ]
        self.lr, self.schedule, self.epochs = lr, schedule, epochs
        dropout = history_dropout, ranking_dropout, rating_dropout
        self.history_dropout, self.ranking_dropout, self.rating_dropout = dropout
        self.streams: list[torch.Generator] = []
        self.steps = math.ceil(self.rows_to_batch() / batch_size)
        self.optimizer_class, self.weight_decay = OPTIMIZERS[optimizer], weight_decay
        self.average = average
        self.returned = copy.deepcopy(net) if average else net
        self._flatten([parameter.data for parameter in net.parameters()])
        self._observe()
        self.plain = (  # the reference's step, which gradients.py writes out
            not any((*dropout, *net.histories(), net.rating_head != "mlp"))
        )
        # A captured step has its rate and its draws fixed.
        self.replayable = self.plain and self.device.type == "cuda" and schedule == "constant"
        self.compiled = compile
        self.training_losses = self.losses
        if compile:  # autograd's step fuses better than the one written out, and wins when large
            self.training_losses = torch.compile(self.losses, dynamic=False)
        self.graph = None

    def _flatten(self, values: list[Tensor], average: Tensor | None = None) -> None:
        """Put all parameters in one flat tensor, each a view of it, and likewise the gradients.

        One memory fill clears the gradients, and one fused call updates all parameters.
        """
        self.parameters = torch.nn.Parameter(torch.cat([value.flatten() for value in values]))
        self.parameters.grad = torch.zeros_like(self.parameters)
        for parameter, view, slope in zip(
            self.net.parameters(),
            self._views(self.parameters.data, values),
            self._views(self.parameters.grad, values),
            strict=True,
        ):
            parameter.data, parameter.grad = view, slope
        if self.average:
            self.averaged = self.parameters.detach().clone() if average is None else average
            views = self._views(self.averaged, values)
            for parameter, view in zip(self.returned.parameters(), views, strict=True):
                parameter.data = view
        decay = self.weight_decay
        if isinstance(decay, Sequence):
            decay = self._decay_by_column(*decay)
        self.optimizer = self.optimizer_class(self.parameters, self.lr, decay)

    @staticmethod
    def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
        parts = flat.split([value.numel() for value in like])
        return [part.view(value.shape) for part, value in zip(parts, like, strict=True)]

    def _decay_by_column(self, ranking: float, common: float, rating: float) -> Tensor:
        """The weight decay of each parameter, flat: that of its column in the tables, else 0."""
        net = self.net
        sizes = [net.ranking_dim - net.shared_dims, net.shared_dims]
        sizes += [net.rating_dim - net.shared_dims]
        columns = torch.tensor([ranking, common, rating]).repeat_interleave(torch.tensor(sizes))
        tables = net.tables()
        return torch.cat(
            [
                (columns if name in tables else torch.zeros(1)).to(p).expand(p.shape).flatten()
                for name, p in net.named_parameters()
            ]
        )

    def _observe(self) -> None:
        train = self.train.to(self.device)
        for net in {self.net, self.returned}:
            net.observe(self.users[train], self.items[train], self.ratings[train])

    def mask(self, like: Tensor, rate: float, sizes: Sequence[int] | None = None) -> Tensor:
        """Dropout's factors, 1[uniform ≥ rate] / (1 − rate), each run's from its own stream.

        For (R, ...) values; or flat ones, of which run r's are sizes[r] in a row.
        Source: Srivastava et al., JMLR 2014.
        """
        if not rate:
            return like.new_ones(1).expand_as(like)
        sizes = sizes or [like[0].numel()] * len(like)
        # Four draws of 16 bits from each of 64: drawing is a tenth of a step otherwise.
        draws = [
            torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None, generator=own)
            for n, own in zip(sizes, self.streams, strict=True)
        ]
        uniform = torch.cat([d.view(torch.int16)[:n] for d, n in zip(draws, sizes, strict=True)])
        keep = (uniform >= round(rate * 2**16) - 2**15).to(like.dtype).div_(1 - rate)
        return keep.to(like.device).view(like.shape)

    def dropped(self, values: Tensor, rate: float) -> Tensor:
        return values * self.mask(values, rate) if rate else values

    def thin(self, weights: Tensor, sizes: Sequence[int]) -> Tensor:
        rate = self.history_dropout
        return weights * self.mask(weights, rate, sizes) if rate else weights

    def losses(
        self, users: Tensor, items: Tensor, negatives: Tensor | None, ratings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R, B) each -> L_F and L_R, (R,) each, for autograd.

        Not what trains by default: gradients.py writes this and its gradients out for the losses
        it knows, and must change with it. The tests hold the two together.

        The user bias a_i is the same in p⁺ and p⁻, and in all scores of a user: it cancels in
        every factorization loss and is left out. The rating head runs on the positives alone.
        """
        net = self.net
        u, q = net.user_rows(users, self.thin), net.item_rows(items, self.thin)
        u_f = self.dropped(net.ranking_window(u), self.ranking_dropout)
        if negatives is None:
            item_bias = net.item_bias.transpose(1, 2)  # (R, 1, n_items)
            catalogue = net.ranking_window(net.catalogue(self.thin)).transpose(1, 2)
            factorization = softmax_loss(torch.baddbmm(item_bias, u_f, catalogue), items)
        else:
            scores = [
                (u_f * net.ranking_window(rows)).sum(-1) + net.rows(net.item_bias, ids).squeeze(-1)
                for rows, ids in ((q, items), (net.item_rows(negatives, self.thin), negatives))
            ]
            factorization = PAIRWISE[self.loss](*scores)
        rated = [self.dropped(net.rating_window(rows), self.rating_dropout) for rows in (u, q)]
        return factorization, regression_loss(net.rating(users, items, *rated), ratings)

    def _gradients(self, *batch: Tensor | None):
        """Fill the gradients of a batch; L_F and L_R, (R,) each."""
        self.parameters.grad.zero_()
        if self.plain and self.loss in WRITTEN_OUT and not self.compiled:
            return pairwise_step(self.net, self.loss, *batch, self.lambda_f, self.lambda_r)
        losses = self.training_losses(*batch)
        weights = self.lambda_f, self.lambda_r
        sum(weight.dot(loss) for weight, loss in zip(weights, losses, strict=True)).backward()
        return [loss.detach() for loss in losses]

    def _step(self, *batch: Tensor | None):
        """One optimizer step on a batch; L_F and L_R, (R,) each."""
        losses = self._gradients(*batch)
        self.optimizer.step()
        return losses

    def warm_up(self) -> None:
        """Compile for the batch shapes of an epoch, without a step."""
        shapes = {batch[0].shape: batch for batch in self.batches(0)}
        for batch in shapes.values():
            self._gradients(*batch)

    def batches(self, epoch: int):
        """The epoch's batches (users, items, negatives or None, ratings), (R, B) each, shuffled.

        Order and negatives depend on seed and epoch alone. The last batch is the short one.
        """
        n = self.train.shape[1]
        rows, negatives = [], []
        for r, seed in enumerate(self.seeds):
            order = torch.randperm(n, generator=random_stream(seed, "order", epoch))
            rows.append(self.train[r][order])
            if self.samplers:
                users = self.users[rows[r]] if self.exclude_positives else rows[r]  # n is enough
                stream = random_stream(seed, "negatives", epoch)
                negatives.append(self.samplers[r].draw(users, stream))
        block = self.batch_size * max(1, BLOCK // (self.batch_size * len(self.seeds)))
        for start in range(0, n, block):
            part = slice(start, start + block)
            here = torch.stack([run_rows[part] for run_rows in rows]).to(self.device)
            users, items, ratings = self.users[here], self.items[here], self.ratings[here]
            drawn = None
            if negatives:
                drawn = torch.stack([run_items[part] for run_items in negatives]).to(self.device)
            for first in range(0, here.shape[1], self.batch_size):
                batch = slice(first, first + self.batch_size)
                negative = drawn[:, batch] if drawn is not None else None
                yield users[:, batch], items[:, batch], negative, ratings[:, batch]

    def rows_to_batch(self) -> int:
        """How many rows an epoch divides into batches."""
        return self.train.shape[1]

    @staticmethod
    def interactions_in(batch: tuple[Tensor | None, ...]) -> int | Tensor:
        """How many interactions of each run a batch holds."""
        return batch[0].shape[1]

    def run_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Train each run once on all its interactions; its losses, (R,) each, on the CPU.

        Losses are means over the epoch's interactions, of the parameters as they stood at each
        step. Nothing waits for the device before the end of the epoch. With ``log_gradients`` the
        first batch's gradients are measured as well.
        """
        totals = torch.zeros(2, len(self.seeds), device=self.device)
        measured = {}
        for k, batch in enumerate(self.batches(epoch)):
            if self.log_gradients and not measured:
                self._draw_from("measured dropout", epoch)
                measured = self.measure_gradients(batch)
            if k == 0:
                self._draw_from("dropout", epoch)
            if self.schedule == "cosine":
                done = (epoch + k / self.steps) / self.epochs
                self.optimizer.lr = self.lr * (1 + math.cos(math.pi * done)) / 2
            size = self.interactions_in(batch)
            replay = self.replayable and size == self.batch_size
            losses = (self._replay if replay else self._step)(*batch)
            for total, loss in zip(totals, losses, strict=True):
                total.add_(loss * size)
            if self.average:
                done = epoch * self.steps + k
                decay = min(self.average, done / (done + 1))
                self.averaged.lerp_(self.parameters.detach(), 1 - decay)
        means = totals / self.train.shape[1]
        return {
            "factorization_loss": means[0].cpu(),
            "regression_loss": means[1].cpu(),
            "joint_loss": (self.lambda_f * means[0] + self.lambda_r * means[1]).cpu(),
            **measured,
        }

    def _draw_from(self, purpose: str, epoch: int) -> None:
        self.streams = [random_stream(seed, purpose, epoch) for seed in self.seeds]

    def measure_gradients(self, batch: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        """How the two tasks pull at each embedding table: (R,) each, NaN where one doesn't pull.

        With g_F and g_R the gradients of L_F and L_R (not weighted) in a table: their cosine
        g_F·g_R / (|g_F| |g_R|), negative when the tasks conflict and 0 when nothing is shared, and
        the ratio |g_F| / |g_R|. Source: Yu et al., Gradient Surgery, NeurIPS 2020.
        """
        tables = {"users": self.net.users, "items": self.net.items}
        by_task = [
            torch.autograd.grad(loss.sum(), list(tables.values()), retain_graph=True)
            for loss in self.losses(*batch)
        ]
        measured = {}
        for name, ranking, rating in zip(tables, *by_task, strict=True):
            ranking, rating = ranking.flatten(1), rating.flatten(1)
            norms = ranking.norm(dim=1), rating.norm(dim=1)
            measured[f"{name}_cosine"] = ((ranking * rating).sum(1) / (norms[0] * norms[1])).cpu()
            measured[f"{name}_norm_ratio"] = (norms[0] / norms[1]).cpu()
        return measured

    def _replay(self, *batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """The step as one CUDA graph launch: captured at its first full batch, then replayed."""
        if self.graph is None:
            self.inputs = [None if part is None else part.clone() for part in batch]
            before = list(self.state_dict().values())
            saved = [tensor.clone() for tensor in before]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # warm-up: allocates what the capture may not
                    self._step(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self._step(*self.inputs)
            # Neither the warm-up nor the capture may leave a trace in the run.
            for tensor, value in zip(before, saved, strict=True):
                tensor.copy_(value)
        for held, part in zip(self.inputs, batch, strict=True):
            if held is not None:
                held.copy_(part)
        self.graph.replay()
        return self.outputs

    def broken_table(self, runs: Sequence[int]) -> str | None:
        """The name of the first parameter with a non-finite value in these runs, or None."""
        for name, parameter in self.net.named_parameters():
            if not parameter.detach()[runs].isfinite().all():
                return name
        return None

    def keep(self, runs: Sequence[int]) -> None:
        """Go on with these runs of the stack alone."""
        index, before = torch.as_tensor(runs), [p.data for p in self.net.parameters()]

        def pick(flat: Tensor) -> Tensor:
            return torch.cat([view[index].flatten() for view in self._views(flat, before)])

        state = self.optimizer.state.items()
        state = {name: pick(value) if value.dim() else value for name, value in state}
        self._flatten(
            [data[index] for data in before], pick(self.averaged) if self.average else None
        )
        self.optimizer.state = state
        for net in {self.net, self.returned}:
            net.run = net.run[: len(runs)]
        self.seeds = [self.seeds[r] for r in runs]
        self.samplers = [self.samplers[r] for r in runs] if self.samplers else []
        self.train = self.train[index]
        self.lambda_f, self.lambda_r = self.lambda_f[index], self.lambda_r[index]
        self._observe()
        self.graph = None

    def state_dict(self) -> dict[str, Tensor]:
        """All that going on needs besides the arguments: parameters and optimizer state."""
        averaged = {"averaged": self.averaged} if self.average else {}
        return {"parameters": self.parameters.detach(), **averaged, **self.optimizer.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
