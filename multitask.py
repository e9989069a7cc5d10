"""Two tasks, one objective: the losses, the batches, and the training of a stack.

Run r of a stack minimises, over its training interactions (i, j, r_ij),

    L = w_F · L_F(p_ij, p_ij') + w_R · L_R(r̂_ij, r_ij)

where L_F is a factorization loss on interaction scores (j' a sampled negative), L_R the mean
squared error of predicted ratings, in squared rating units, and the weights w are the fixed task
weights λ_F and λ_R, or those of a method of weighting.py. The runs share nothing: the sum of their
losses has each run's own gradient in each run's own parameters, so one backward pass and one
optimizer step serve them all.

A step is: batch → losses (`Stack.losses`) → weights (`Weightings`) → gradients → optimizer. What
`Stack.losses` and `MultiTaskNet` say is what trains. A gradient method weighs what the tasks share,
`MultiTaskNet.shared_columns`; parameters of one task get that task's gradient.

Shapes: R runs, B interactions of a batch, U users of a batch, n training interactions of a run.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Annotated, NamedTuple, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import gradients
from distributed import Whole
from models import MultiTaskNet, Structure, random_stream
from optimizers import OPTIMIZERS, Flat, make_optimizer
from weighting import Weightings

BLOCK = 2**20  # training interactions gathered at a time: bounds an epoch's working memory


# ---- losses --------------------------------------------------------------------------------


def require_equal_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        # Broadcasting (B,) against (B, 1) gives (B, B), whose best constant is the global mean.
        raise ValueError(f"shapes must be equal, got {shapes}")


def mean(values: Tensor, real: Tensor | None = None) -> Tensor:
    """(..., B) -> (...), over the values that ``real``, (..., B), doesn't call padding."""
    if real is None:
        return values.mean(-1)
    return (values * real).sum(-1) / real.sum(-1).clamp(min=1)


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


def softmax_loss(
    scores: Tensor, item_ids: Tensor, place: Tensor | None = None, real: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the item picked among the catalogue, mean over the batch.

    The mean over a run's B interactions of −log( exp p_ij / Σ_k exp p_ik ).

    Args:
        scores: (R, U, n_items), a row a user.
        item_ids: (R, B), the items picked.
        place: (R, B), each interaction's row of the scores. None: one after the other, U = B.
        real: (R, B), False for padding, which doesn't count.

    Returns (R,). Raises ValueError when shapes differ. Source: Covington et al., RecSys 2016.
    """
    if place is None:
        require_equal_shapes(scores=scores[..., 0], item_ids=item_ids)
        place = torch.arange(item_ids.shape[1], device=scores.device).expand_as(item_ids)
    require_equal_shapes(place=place, item_ids=item_ids)
    picked = scores.flatten(1).gather(1, place * scores.shape[-1] + item_ids)
    return mean(scores.logsumexp(-1).gather(1, place) - picked, real)


def regression_loss(predicted: Tensor, ratings: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean squared error over the batch, in squared rating units: (..., B) each -> (...).

    ``real`` is False for padding, which doesn't count. Raises ValueError when shapes differ.
    """
    require_equal_shapes(predicted=predicted, ratings=ratings)
    return mean((predicted - ratings).square(), real)


class OverCatalogue(NamedTuple):
    """Marks a factorization loss that sees the scores of all items, and samples no negatives.

    Called as ``loss(scores, item_ids, place, real)``, as softmax_loss takes them: by interaction
    ``place`` is None, and ``real`` where nothing is padding.
    """

    loss: Callable[..., Tensor]


# The factorization losses: a function of (p⁺, p⁻), (R, B) each, to (R,); or an OverCatalogue.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor] | OverCatalogue] = {
    "sigmoid": sigmoid_loss,
    "bpr": bpr_loss,
    "softmax": OverCatalogue(softmax_loss),
}


# ---- batches -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Some interactions of each run. By interaction, each brings its user's row: U = B."""

    users: Tensor  # (R, U), whose rows are looked up
    items: Tensor  # (R, B)
    ratings: Tensor  # (R, B)
    negatives: Tensor | None = None  # (R, B), sampled items, of a pairwise loss
    place: Tensor | None = None  # (R, B), each interaction's user within `users`; None: its own
    real: Tensor | None = None  # (R, B), False for padding; None: there is none
    share: float | Tensor | None = None  # of a part its interactions' share of the whole's, (R, 1)

    @property
    def size(self) -> int | Tensor:
        """How many interactions of each run it holds: of all the same, or (R, 1)."""
        return self.items.shape[1] if self.real is None else self.real.sum(1, keepdim=True)

    @property
    def user_ids(self) -> Tensor:
        """(R, B), the user of each interaction."""
        return self.users if self.place is None else self.users.gather(1, self.place)

    def of_whole(self, values: Tensor) -> Tensor:
        """What a mean over the batch, (R, ...), adds to that over the batch it is a part of."""
        return values if self.share is None else values * self.share


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
        keys = (users * n_items + items).unique()
        users_sorted, items_sorted = keys // n_items, keys % n_items
        counts = users_sorted.bincount()
        if counts.max() == n_items:
            raise ValueError(
                f"exclude_positives: user id {counts.argmax()} (contiguous) has interacted with "
                f"all {n_items} items, so no negative is left to draw: go without it"
            )
        self.starts, self.free = counts.cumsum(0) - counts, n_items - counts
        # The j-th picked item, in order, has `item - j` free items before it: so the k-th free
        # item is k plus the number of picked items with at most k free items before them.
        places = torch.arange(len(keys), device=keys.device)
        before = items_sorted - (places - self.starts[users_sorted])
        self.keys = users_sorted * (n_items + 1) + before

    def draw(self, users: Tensor, stream: torch.Generator) -> Tensor:
        """(n,) user ids -> (n,) item ids, int64, on the stream's device."""
        named = dict(generator=stream, device=stream.device)
        if not self.exclude_positives:
            return torch.randint(self.n_items, users.shape, **named)
        uniform = torch.rand(users.shape, dtype=torch.float64, **named)
        k = (uniform * self.free[users]).long()
        places = torch.searchsorted(self.keys, users * (self.n_items + 1) + k, right=True)
        return k + places - self.starts[users]


def interaction_batches(stack: "Stack", epoch: int) -> Iterator[Batch]:
    """The epoch's interactions, shuffled; the last batch is the short one.

    Order and negatives depend on seed, epoch and the kind of device alone, which draws its own.
    """
    n, size, device = stack.train.shape[1], stack.options.batch_size, stack.device
    orders, negatives = [], []
    for r, seed in enumerate(stack.seeds):
        stream = random_stream(seed, "order", epoch, device)
        orders.append(torch.randperm(n, generator=stream, device=device))
        if stack.samplers:
            users = orders[r]  # as many as are drawn is enough
            if stack.options.exclude_positives:
                users = stack.users[stack.train[r][users]]
            stream = random_stream(seed, "negatives", epoch, device)
            negatives.append(stack.samplers[r].draw(users, stream))
    block = size * max(1, BLOCK // (size * len(stack.seeds)))
    for start in range(0, n, block):
        part = slice(start, start + block)
        pairs = zip(stack.train, orders, strict=True)
        here = torch.stack([train[order[part]] for train, order in pairs])
        columns = [stack.users[here], stack.items[here], stack.ratings[here]]
        if negatives:
            columns.append(torch.stack([run_items[part] for run_items in negatives]))
        for first in range(0, here.shape[1], size):
            yield Batch(*(column[:, first : first + size] for column in columns))


def user_batches(stack: "Stack", epoch: int) -> Iterator[Batch]:
    """The users, shuffled, each with all its interactions, padded to the run with the most.

    A loss over the catalogue then costs one row of scores a user, not one an interaction, and an
    interaction can be left out of the histories while it is predicted.
    """
    size, device = stack.options.batch_size, stack.device
    bounds = torch.arange(stack.steps + 1, device=device)
    shuffled, parts = [], []
    for seed, train in zip(stack.seeds, stack.train, strict=True):
        stream = random_stream(seed, "order", epoch, device)
        order = torch.randperm(stack.net.n_users, generator=stream, device=device)
        place, rows = order.argsort()[stack.users[train]].sort(stable=True)
        ends = torch.searchsorted(place, bounds * size)
        shuffled.append(order)
        parts.append([x.split(ends.diff().tolist()) for x in (place, train[rows])])
    shuffled = torch.stack(shuffled)
    for k in range(stack.steps):
        places = [place[k] - k * size for place, _ in parts]
        rows = pad_sequence([rows[k] for _, rows in parts], batch_first=True)
        place = pad_sequence(places, batch_first=True, padding_value=-1)
        users = shuffled[:, k * size : (k + 1) * size]
        pair = stack.items[rows], stack.ratings[rows]
        yield Batch(users, *pair, place=place.clamp(min=0), real=place >= 0)


class Step(NamedTuple):
    """What a step leaves to log: all of before it, and on the device."""

    losses: Tensor  # (R, 2), L_F and L_R
    weights: Tensor  # (R, 2), of what the tasks share
    gram: Tensor | None = None  # (R, 2, 2), of their gradients there, if they were taken apart


BATCHES = {"interaction": interaction_batches, "user": user_batches}


# ---- the stack -----------------------------------------------------------------------------


TABLES = ("users", "items")  # whose gradients are measured
COUNT, RATE, POSITIVE = (1, 2**31 - 1), (0.0, 0.99), (1e-12, math.inf)
SCHEDULES = ("constant", "cosine")  # the rate as it is, or down to zero over the epochs


@dataclass
class Options:
    """How a stack trains: arguments of Stack, flags of train.py, entries of config.json."""

    loss: Annotated[str, "misordered pairs (soft), BPR, or cross-entropy", LOSSES] = "sigmoid"
    exclude_positives: Annotated[bool, "draw no training item of the user as a negative"] = False
    epochs: Annotated[int, "passes over the training interactions", COUNT] = 200
    batch_by: Annotated[str, "draw interactions, or users with theirs", BATCHES] = "interaction"
    batch_size: Annotated[int, "interactions, or users, a step", COUNT] = 256
    optimizer: Annotated[str, "AdamW, or plain descent", OPTIMIZERS] = "adam"
    lr: Annotated[float, "learning rate", POSITIVE] = 1e-3
    schedule: Annotated[str, "learning rate as it is, or a cosine", SCHEDULES] = "constant"
    weight_decay: Annotated[
        tuple[float, ...],
        "weight decay of all parameters; or three, of the tables' columns that are ranking's own, "
        "common, rating's own",
        (0.0, math.inf),
    ] = (0.0,)
    sparse: Annotated[
        bool,
        "step on the rows that a batch touches, for tables beyond a million rows: another "
        "algorithm, lazy Adam, in which a row's averages decay only when it is touched",
    ] = False
    ranking_dropout: Annotated[float, "dropout of the user's vector that ranking sees", RATE] = 0.0
    rating_dropout: Annotated[float, "dropout of both vectors that rating sees", RATE] = 0.0
    leave_one_out: Annotated[bool, "train each interaction as if no history held it"] = False
    log_gradients: Annotated[bool, "log cosine and norm ratio of the tasks' gradients"] = False
    compile: Annotated[bool, "compile the losses, for large batches (needs a compiler)"] = False

    def check(self, structure: Structure) -> None:
        """Raises ValueError for options that contradict each other or the model's structure."""
        for name, hint in get_type_hints(Options, include_extras=True).items():
            value, choices = getattr(self, name), hint.__metadata__[-1]
            if hint.__origin__ is str and value not in choices:
                raise ValueError(f"{name} is {value!r}: it is one of {', '.join(choices)}")
        by_user, pairwise = self.batch_by == "user", self.pairwise
        histories = structure.user_history or structure.item_history
        if len(self.weight_decay) not in (1, 3):
            raise ValueError(f"--weight-decay takes 1 or 3 values, not {len(self.weight_decay)}")
        if by_user and pairwise:
            raise ValueError(
                f"--batch-by user needs a loss over the catalogue, like --loss softmax: "
                f"--loss {self.loss} samples by interaction"
            )
        if self.exclude_positives and not pairwise:
            raise ValueError(
                f"--exclude-positives has no effect on --loss {self.loss}: drop one of them"
            )
        if self.leave_one_out and not (by_user and histories):
            raise ValueError("--leave-one-out needs a history and --batch-by user")
        if self.sparse and (histories or any(self.weight_decay) or self.compile):
            raise ValueError("--sparse leaves rows alone: without history, decay and --compile")
        if self.compile and (by_user or histories or self.ranking_dropout or self.rating_dropout):
            raise ValueError("--compile is for batches by interaction, without history or dropout")

    @property
    def pairwise(self) -> bool:
        """Whether the factorization loss is of pairs of a positive and a sampled negative."""
        return not isinstance(LOSSES[self.loss], OverCatalogue)


def norm_ratios(gram: Tensor, weights: Tensor) -> Tensor:
    """log(|g_F| / |g_R|), and log ρ of ρ = w_F·|g_F| / (w_R·|g_R|), of what is shared: (..., 2).

    Of Gram matrices, (..., 2, 2), and weights, (..., 2), of which 0 counts as 1e-8.
    """
    norms = gram.diagonal(dim1=-2, dim2=-1).log() / 2
    ratio, weights = -norms.diff(dim=-1), weights.clamp(min=1e-8).log()
    return torch.cat([ratio, ratio - weights.diff(dim=-1)], -1)


class Stack:
    """R runs in training: their network, optimizer, data, task weights and random streams.

    Args:
        net: a MultiTaskNet of R runs, on the device to train on.
        users, items, ratings: (N,) all interactions, ids contiguous from 0, ratings in their unit.
        train: (R, n) the rows of these that each run trains on.
        seeds: (R,) keys of the random streams: the same seed draws the same order and negatives.
        lambda_f, lambda_r: (R,) task weights λ_F and λ_R, of the runs whose weighting is fixed.
        weighting: (R,) each run's method, as weighting.parse takes it. None: fixed.
        options: the fields of Options.

    Raises ValueError as Options.check and weighting.parse do.
    """

    MEASURED = tuple(f"{side}_{what}" for side in TABLES for what in ("cosine", "norm_ratio"))
    MEASURED += ("norm_ratio", "weighted_norm_ratio")

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
        weighting: Sequence[str] | None = None,
        **options,
    ):
        options = self.options = Options(**options)
        options.check(net.structure)
        self.net, self.seeds, self.device = net, list(seeds), net.users.device
        self.users = torch.tensor(users, device=self.device)
        self.items = torch.tensor(items, device=self.device)
        self.ratings = torch.tensor(ratings, device=self.device)
        self.train = torch.as_tensor(train, device=self.device)
        lambdas = torch.tensor([*zip(lambda_f, lambda_r, strict=True)], device=self.device)
        methods = weighting or ["fixed"] * len(self.seeds)
        self.weighting = Weightings(methods, self.seeds, self.device, lambdas)
        self.samplers = []
        for rows in self.train if options.pairwise else ():
            rows = rows if options.exclude_positives else rows[:0]  # or they are of no use
            pairs, exclude = (self.users[rows], self.items[rows]), options.exclude_positives
            self.samplers.append(NegativeSampler(*pairs, net.n_items, exclude))
        n_rows = net.n_users if options.batch_by == "user" else self.train.shape[1]
        self.steps = math.ceil(n_rows / options.batch_size)  # an epoch
        self.streams: list[torch.Generator] = []  # of dropout, one a run
        net.sparse_gradients = options.sparse
        self.memory = Flat(net, options.sparse, self.weighting.split)
        self.optimizer = make_optimizer(options, net, self.memory)
        structure = net.structure
        histories = structure.user_history or structure.item_history
        edited = type(net).observe is not MultiTaskNet.observe
        if structure.rating_biases or histories or edited:
            net.observe(self.users[self.train], self.items[self.train], self.ratings[self.train])
        self.compiled = None
        if options.compile:
            self.compiled = torch.compile(lambda batch: self.losses(batch), dynamic=False)
        self.rest: Iterator[Batch] | None = None
        self.written_out: bool | None = None  # whether gradients.py steps; None: not settled yet
        self.captured: gradients.CapturedStep | None = None
        self.part = Whole()  # of each batch, this process's

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches, in the order of its steps."""
        return BATCHES[self.options.batch_by](self, epoch)

    @cached_property
    def opening(self) -> list[Batch]:
        """The first batches of epoch 0, as many as gradients.py takes; ``rest`` has the others."""
        self.rest = self.batches(0)
        return gradients.ahead(self, self.rest)

    # ---- what is trained

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """L_F and L_R of a batch, (R,) each: what trains, whatever computes its gradients.

        The user bias a_i is the same in all scores of a user: scores over the catalogue go without
        it, it would cancel in the softmax. The rating head runs on the positives alone.
        """
        if batch.place is not None:
            return self._losses_by_user(batch)
        net, options = self.net, self.options
        loss, u = LOSSES[options.loss], net.user_rows(batch.users)
        u_f = self.dropped(net.ranking_window(u), options.ranking_dropout)
        if options.pairwise:
            ids = torch.cat([batch.items, batch.negatives], 1)  # one lookup a table
            rows = net.item_rows(ids).tensor_split(2, 1)
            biases = net.rows(net.item_bias, ids).squeeze(-1).tensor_split(2, 1)
            user_bias = net.rows(net.user_bias, batch.users).squeeze(-1)  # of no effect on p⁺ − p⁻
            scores = [
                net.interaction(u_f, net.ranking_window(q)) + bias + user_bias
                for q, bias in zip(rows, biases, strict=True)
            ]
            factorization, q = loss(*scores), rows[0]
        else:
            scores = net.scores_of_all(u_f, net.ranking_window(net.catalogue()))
            factorization = loss.loss(scores, batch.items, batch.place, batch.real)
            q = net.item_rows(batch.items)
        rated = [self.dropped(net.rating_window(x), options.rating_dropout) for x in (u, q)]
        predicted = net.rating(batch.users, batch.items, *rated)
        return factorization, regression_loss(predicted, batch.ratings)

    def _losses_by_user(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same of users with all their interactions, at one row of scores a user.

        Left out of the histories, an interaction is predicted from u_i − k ∘ h_j / √n_i and
        q_j − k' ∘ g_i / √n_j, k and k' the dropout factors of the two rows: as it is at test,
        where it isn't among what is known. Source: the zero diagonal of Steck, EASE, WWW 2019.
        """
        net, options, place, items = self.net, self.options, batch.place, batch.items
        who, at = batch.user_ids, place * net.n_items + items  # of each interaction in (R, U · n)
        u, q = net.user_rows(batch.users), net.catalogue()
        parts = net.history_parts(batch.users) if options.leave_one_out else (None, None)

        keep = self.mask(net.ranking_window(u), options.ranking_dropout)
        u_f, q_f = net.ranking_window(u) * keep, net.ranking_window(q)
        scores = net.scores_of_all(u_f, q_f)
        if options.leave_one_out:
            own = net.own_part_of_scores(batch.users, place, items, u_f, q_f, keep, *parts)
            scores.view(len(at), -1).scatter_add_(1, at, -own * batch.real)  # of padding: 0
        factorization = LOSSES[options.loss].loss(scores, items, place, batch.real)

        vectors = []
        for rows, ids, others, part in ((u, place, items, parts[0]), (q, items, who, parts[1])):
            rows = net.rating_window(rows)
            keep = self.mask(rows, options.rating_dropout)
            vector = net.rows(rows * keep, ids)
            if part is not None:
                table, scale = part
                own = net.rows(net.rating_window(table), others)
                vector = torch.addcmul(vector, own, net.rows(keep * scale, ids), value=-1)
            vectors.append(vector)
        predicted = net.rating(who, items, *vectors)
        return factorization, regression_loss(predicted, batch.ratings, batch.real)

    def mask(self, like: Tensor, rate: float) -> Tensor:
        """Dropout's factors, 1[uniform ≥ rate] / (1 − rate), each run's from its own stream.

        (R, ...) -> the same shape. Source: Srivastava et al., JMLR 2014.
        """
        if not rate:
            return like.new_ones(1).expand_as(like)
        n = like[0].numel()
        # Four draws of 16 bits from each of 64: drawing is a tenth of a step otherwise.
        draws = [
            torch.empty(-(-n // 4), dtype=torch.int64, device=own.device).random_(
                -(2**63), None, generator=own
            )
            for own in self.streams
        ]
        uniform = torch.stack([draw.view(torch.int16)[:n] for draw in draws])
        keep = (uniform >= round(rate * 2**16) - 2**15).to(like.dtype).div_(1 - rate)
        return keep.view(like.shape)

    def dropped(self, values: Tensor, rate: float) -> Tensor:
        return values * self.mask(values, rate) if rate else values

    # ---- a step

    def fill_gradients(self, batch: Batch) -> Step:
        """Fill the gradients of the weighted losses on a batch."""
        self.memory.clear()
        if self.written_out:
            made = Step(*gradients.pairwise_step(self, batch))
            self.part.add_up(self.memory.grads)
            return made
        losses = batch.of_whole(torch.stack((self.compiled or self.losses)(batch), 1))
        values = self.part.total(losses.detach())
        (shared, own), gram = self.weighting.by_losses(values), None
        if self.weighting.apart:
            tasks = [self.memory.gradients(loss.sum()) for loss in losses.unbind(1)]
            self.part.add_up(*tasks)
            gram = self.memory.gram(*tasks)
            shared = self.weighting.by_gradients(shared, values, gram)
            self.memory.combine(*tasks, shared, own, self.weighting.per_task_moments)
        else:
            (shared * losses).sum().backward()
            self.part.add_up(self.memory.grads)
        return Step(values, shared, gram)

    def step(self, batch: Batch) -> Step:
        """One optimizer step on a batch."""
        batch = self.part.of(batch)
        states = [stream.get_state() for stream in self.streams if self.weighting.needs_after]
        made = self.fill_gradients(batch)
        self.optimizer.step()
        if self.weighting.needs_after:  # the same batch again, dropped out alike
            for stream, state in zip(self.streams, states, strict=True):
                stream.set_state(state)
            with torch.no_grad():
                losses = batch.of_whole(torch.stack(self.losses(batch), 1))
                self.weighting.after(self.part.total(losses))
        return made

    def prepare(self) -> None:
        """Settle what computes the gradients, and compile; no step is made.

        gradients.py steps where it is proved equal to `losses` here and now, else autograd does.
        """
        self._check_scores()
        if self.written_out is None:
            self.written_out = gradients.proved(self)
        fixed = self.options.schedule == "constant" and type(self.part) is Whole
        if self.written_out and self.device.type == "cuda" and fixed:
            self.captured = self.captured or gradients.CapturedStep(self)
        if self.compiled and not self.captured:
            state = {name: x.clone() for name, x in self.weighting.state_dict().items()}
            for batch in {batch.items.shape: batch for batch in self.batches(0)}.values():
                self.fill_gradients(batch)
            self.weighting.load_state_dict(state)

    @torch.no_grad()
    def _check_scores(self) -> None:
        """Raise ValueError unless a pair has the score that it has in the catalogue."""
        net, runs = self.net, len(self.seeds)
        items = torch.arange(min(net.n_items, 64), device=self.device)
        pairs, _ = net(items.new_zeros(runs, len(items)), items.expand(runs, -1))
        catalogue = net.catalogue_scores(items[:1])[:, 0, : len(items)]
        if not torch.allclose(pairs, catalogue, rtol=1e-3, atol=1e-3 * pairs.abs().max().item()):
            raise ValueError(
                "MultiTaskNet: forward and catalogue_scores give a pair other scores: change both"
            )

    def run_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Train each run once on all its interactions; what there is to log, (R,) each, on the CPU.

        Losses are means over the epoch's interactions, of the parameters as they stood at each
        step, the joint loss by each step's weights. Where weights move, their means are told as
        well. Norm ratios of a run whose method takes the tasks' gradients apart are of all its
        steps, in the geometric mean; those of other runs, and with ``log_gradients`` cosines, of
        the first batch, whatever is in the stack beside them. But for the check of gradients.py
        nothing waits for the device before the end of the epoch.
        """
        if self.written_out is None:
            self.prepare()
        self.net.train()
        weighting, measured, kept = self.weighting, {}, []  # of each step: Gram matrix, weights
        totals = torch.zeros(3, len(self.seeds), 2, device=self.device)
        total, weighted, weights_total = totals.unbind(0)  # of L, w·L and w
        weighting.epoch_start(epoch, self.steps)
        rest, self.rest = self.rest, None  # drawn once
        batches = chain(self.opening, rest) if rest and epoch == 0 else self.batches(epoch)
        if self.written_out:
            first = gradients.ahead(self, batches)
            batches = chain(first, batches)
            if not gradients.proved(self, first):
                self.written_out, self.captured = False, None
        self.part.begin()
        for k, batch in enumerate(batches):
            if k == 0:
                if self.options.log_gradients or weighting.measures_first:
                    self.draw_from("measured dropout", epoch)
                    measured, gram_of_first = self.measure_gradients(batch)
                self.draw_from("dropout", epoch)
            if self.options.schedule == "cosine":
                done = (epoch + k / self.steps) / self.options.epochs
                self.optimizer.lr = self.options.lr * (1 + math.cos(math.pi * done)) / 2
            losses, weights, gram = (self.captured or self.step)(batch)
            losses = losses * batch.size
            total.add_(losses)
            if weighting.moves:
                weighted.addcmul_(weights, losses)
                weights_total.add_(weights)
            if gram is not None:
                kept.append((gram.clone(), weights.clone()))  # a captured step's are its own
        self.part.end()
        means = total / self.train.shape[1]
        weighting.epoch_end(epoch, means)
        joint = weighted / self.train.shape[1] if weighting.moves else weighting.shared * means
        mean_weights = weights_total / self.steps if weighting.moves else weighting.shared
        logged = {"factorization_loss": means[:, 0], "regression_loss": means[:, 1]}
        logged["joint_loss"] = joint.sum(1)
        if weighting.moves:
            logged |= {"weight_f": mean_weights[:, 0], "weight_r": mean_weights[:, 1]}
        if kept or measured:
            ratios = norm_ratios(gram_of_first, mean_weights) if measured else 0.0
            if kept:
                of_steps = norm_ratios(*(torch.stack(x) for x in zip(*kept, strict=True))).mean(0)
                ratios = torch.where(weighting.takes_apart[:, None], of_steps, ratios)
            logged["norm_ratio"], logged["weighted_norm_ratio"] = ratios.exp().unbind(1)
        return {name: values.cpu() for name, values in (logged | measured).items()}

    def draw_from(self, purpose: str, epoch: int = 0) -> None:
        self.streams = [random_stream(seed, purpose, epoch, self.device) for seed in self.seeds]

    def measure_gradients(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """How the two tasks pull at each embedding table: (R,) each, NaN where one doesn't pull.

        With g_F and g_R the gradients of L_F and L_R (not weighted) in a table: their cosine
        g_F·g_R / (|g_F| |g_R|), negative when the tasks conflict and 0 when nothing is shared, and
        the ratio |g_F| / |g_R|. Source: Yu et al., Gradient Surgery, NeurIPS 2020. Beside them the
        Gram matrix of what the tasks share, (R, 2, 2).
        """
        tasks, measured = [self.memory.gradients(loss.sum()) for loss in self.losses(batch)], {}
        views = [self.memory.named(x) for x in tasks]
        for name in TABLES:
            ranking, rating = (view[name].flatten(1) for view in views)
            norms = ranking.norm(dim=1), rating.norm(dim=1)
            measured[f"{name}_cosine"] = (ranking * rating).sum(1) / (norms[0] * norms[1])
            measured[f"{name}_norm_ratio"] = norms[0] / norms[1]
        return measured, self.memory.gram(*tasks)

    # ---- what is stored of it

    def broken_tables(self) -> list[str | None]:
        """Of each run the first parameter, or state of the optimizer, that isn't finite, or None.

        A gradient above 1e19 has an infinite square: its parameter then stands still.
        """
        broken: list[str | None] = [None] * len(self.seeds)
        for name, part in self._named().items():
            part = part.reshape(len(broken), -1)
            ends = torch.stack([part.amax(1), part.amin(1)])  # NaN, if any value is
            for r in (~ends.isfinite().all(0)).nonzero().flatten().tolist():
                broken[r] = broken[r] or name
        return broken

    def _named(self) -> dict[str, Tensor]:
        """Parameters and their optimizer's state, by name, as views: (R, ...) each."""
        flats, kind = {"": self.memory.values}, self.options.optimizer
        flats |= {f"{kind}'s {x} of ": state for x, state in self.optimizer.state.items()}
        named = [(of, self.memory.named(flat)) for of, flat in flats.items() if flat.dim()]
        return {of + name: part for of, parts in named for name, part in parts.items()}

    def state_dict(self) -> dict[str, Tensor | bool | None]:
        """All that going on needs besides the arguments, (R, ...) each but what isn't a run's."""
        steps = {name: x for name, x in self.optimizer.state.items() if not x.dim()}
        state = {"written_out": self.written_out, **steps, **self._named()}
        return state | self.weighting.state_dict()

    def load_state_dict(self, state: dict[str, Tensor | bool | None]) -> None:
        """Go on from a state; what computes the gradients stays as it is settled."""
        self.weighting.load_state_dict(state)
        for name, tensor in self.state_dict().items():
            if isinstance(tensor, Tensor):
                tensor.copy_(state[name])
