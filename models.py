"""MultiTaskNet: one network that ranks items for a user and predicts the user's ratings.

Ids go in, an interaction score and a predicted rating come out. Two things are unusual:

* Sharing is a dial. A user (or an item) is one row of numbers, and each task reads a window of it:

      | ranking's own | common (K) | rating's own |
      |<------- D_F -------->|
                      |<-------- D_R ------->|

  With K = D_F = D_R the windows coincide (shared); with K = 0 they don't touch (separate).

* Every parameter has a leading run dimension R, so that R runs train at once as a stack.

Options beyond the report's network, all off by default: histories (a user is also what was
interacted with), biases in the rating head, other rating heads (RATING_HEADS).

Shapes: R runs, B batch, D embedding dimension, H hidden units, W = D_F + D_R - K row width.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_stream(
    seed: int | str, purpose: str, index: int | str = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator of its own for each (seed, purpose, epoch or table name).

    No draw depends on how many were made before it: a run doesn't depend on what it is stacked
    with, and resuming needs no generator state. Devices of one seed draw different numbers.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Rows(torch.autograd.Function):
    """(R, n, C) table and (R, B) ids -> (R, B, C), with a sparse gradient: of the rows looked up.

    `F.embedding(sparse=True)` for a stack, whose tables autograd can't flatten and keep sparse.
    """

    @staticmethod
    def forward(ctx, table, ids, run):
        ctx.shape, ctx.at = table.shape, torch.stack([run.expand_as(ids), ids]).flatten(1)
        return F.embedding(ids + run * table.shape[1], table.flatten(0, 1))

    @staticmethod
    def backward(ctx, gradient):
        parts = ctx.at, gradient.flatten(0, 1), ctx.shape
        return torch.sparse_coo_tensor(*parts, check_invariants=False), None, None


class BagSum(torch.autograd.Function):
    """y_b = Σ w_k · table[id_k] over the k of bag b: (n, W) table, (m,) weights -> (bags, W).

    `F.embedding_bag` with a gradient that is such a sum itself, over the transposed bags: on the
    CPU 15 times as fast as its own. The weights get no gradient.
    """

    @staticmethod
    def forward(ctx, table, weights, bags):
        ctx.weights, ctx.bags = weights, bags
        return BagSum.sums(table.detach(), bags.ids, bags.starts, weights)

    @staticmethod
    def backward(ctx, gradient):
        ids, starts, order = ctx.bags.transposed
        return BagSum.sums(gradient.contiguous(), ids, starts, ctx.weights[order]), None, None

    @staticmethod
    def sums(table, ids, starts, weights):
        return F.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weights)


class Bags:
    """Bags of ids, one after the other: sizes (bags,), ids (m,) below n; ``of`` is each's bag."""

    def __init__(self, sizes: Tensor, ids: Tensor, n: int):
        self.ids, self.starts = ids, sizes.cumsum(0) - sizes
        self.of = torch.repeat_interleave(sizes)
        ids, order = ids.sort(stable=True)
        starts = torch.searchsorted(ids, torch.arange(n, device=ids.device))
        self.transposed = self.of[order], starts, order


class Interacted:
    """The rows of one side, each with those of the other side that it interacted with in training.

    Rows are numbered over the stack, row i of run r is r · n + i. A pair counts once.

    Args:
        ids, others: (R, n) training interactions of each run, from 0.
        n_ids, n_others: sizes of the two sides.
    """

    def __init__(self, ids: Tensor, others: Tensor, n_ids: int, n_others: int):
        run = torch.arange(len(ids), device=ids.device)[:, None]
        self.runs, self.n_ids, self.size = len(ids), n_ids, len(ids) * n_others
        pairs = ((ids + run * n_ids) * self.size + others + run * n_others).unique()
        self.counts = torch.bincount(pairs // self.size, minlength=len(ids) * n_ids)
        self.scale = self.counts.clamp(min=1).rsqrt().view(self.runs, n_ids, 1)  # 1 / √n
        self.all = Bags(self.counts, pairs % self.size, self.size)

    def added(self, table: Tensor, ids: Tensor | None = None) -> Tensor:
        """Σ_k table[k] / √n over the n others k of each row: (R, B) ids -> (R, B, W). None: all."""
        bags, rows = self.all, slice(None)
        if ids is not None:
            run = torch.arange(self.runs, device=ids.device)[:, None]
            rows, place = (ids + run * self.n_ids).unique(return_inverse=True)
            counts = self.counts[rows]
            shift = self.all.starts[rows] - (counts.cumsum(0) - counts)
            at = shift.repeat_interleave(counts)
            at += torch.arange(len(at), device=ids.device)
            bags = Bags(counts, self.all.ids[at], self.size)
        weights = self.scale.flatten()[rows].to(table.dtype)[bags.of]
        sums = BagSum.apply(table.flatten(0, 1), weights, bags)
        if ids is None:
            return sums.unflatten(0, (self.runs, self.n_ids))
        return F.embedding(place, sums)


class Linear(nn.Module):
    """R linear layers, x W + c: (R, B, n_in) -> (R, B, n_out). Initial values as nn.Linear's.

    Args:
        name: of the layer, which with the seeds keys its initial values.
    """

    def __init__(self, seeds: Sequence[int | str], name: str, n_in: int, n_out: int):
        super().__init__()

        def draw(part: str, *shape: int) -> nn.Parameter:  # uniform in ±1 / √n_in
            streams = [random_stream(seed, "initial", f"{name}.{part}") for seed in seeds]
            uniform = torch.stack([torch.rand(shape, generator=stream) for stream in streams])
            return nn.Parameter((2 * uniform - 1) * (1 / math.sqrt(n_in)))

        self.weight = draw("weight", n_in, n_out)
        self.bias = draw("bias", 1, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class MLP(nn.Module):
    """The report's rating head, [u, q, u ∘ q] -> H -> 1 with a ReLU.

    Source: He et al., Neural Collaborative Filtering, WWW 2017.
    """

    def __init__(self, dim: int, hidden: int, seeds: Sequence[int | str]):
        super().__init__()
        self.hidden = Linear(seeds, "hidden", 3 * dim, hidden)
        self.output = Linear(seeds, "output", hidden, 1)

    def forward(self, u: Tensor, q: Tensor) -> Tensor:
        features = torch.cat([u, q, u * q], -1)  # (R, B, 3·D_R)
        return self.output(self.hidden(features).relu()).squeeze(-1)


class Dot(nn.Module):
    """(u + s) · (q + t), s and t learned vectors by which a vector is a bias too."""

    def __init__(self, dim: int, hidden: int, seeds: Sequence[int | str]):
        super().__init__()
        self.user_shift = nn.Parameter(torch.zeros(len(seeds), 1, dim))
        self.item_shift = nn.Parameter(torch.zeros(len(seeds), 1, dim))

    def forward(self, u: Tensor, q: Tensor) -> Tensor:
        return ((u + self.user_shift) * (q + self.item_shift)).sum(-1)


class GMF(nn.Module):
    """(u ∘ q) · w + c, a generalized matrix factorization. Source: He et al., WWW 2017."""

    def __init__(self, dim: int, hidden: int, seeds: Sequence[int | str]):
        super().__init__()
        self.output = Linear(seeds, "gmf", dim, 1)

    def forward(self, u: Tensor, q: Tensor) -> Tensor:
        return self.output(u * q).squeeze(-1)


# A rating head is built with (D_R, H, the runs' seeds) and maps u_i and q_j in the rating windows,
# (R, B, D_R) each, to (R, B). Every parameter begins with the run dimension R, and nothing is drawn
# at random: dropout is the stack's, whose streams a resumed run finds again.
RATING_HEADS: dict[str, type[nn.Module]] = {"mlp": MLP, "dot": Dot, "gmf": GMF}

WIDTH = (1, 2**14)


@dataclass
class Structure:
    """What a MultiTaskNet is made of: its arguments, flags of train.py, entries of config.json.

    What is None follows from the others. Raises ValueError for a size below 1, shared_dims out of
    range, a rating head that isn't one.
    """

    shared_dims: Annotated[int | None, "K dimensions common to both tasks", (0, 2**14)] = None
    embedding_dim: Annotated[int, "D dimensions of a task; tables start at sd 1/D", WIDTH] = 32
    ranking_dim: Annotated[int | None, "dimensions that ranking sees, if not D", WIDTH] = None
    rating_dim: Annotated[int | None, "dimensions that rating sees, if not D", WIDTH] = None
    hidden: Annotated[int, "hidden units of the head mlp", WIDTH] = 64
    rating_head: Annotated[str, "what predicts a rating from u and q", RATING_HEADS] = "mlp"
    rating_biases: Annotated[bool, "rating has user and item biases and the mean too"] = False
    user_history: Annotated[bool, "a user is also the sum of its training items' vectors"] = False
    item_history: Annotated[bool, "an item is also the sum of its training users' vectors"] = False

    def __post_init__(self) -> None:
        if self.ranking_dim is None:
            self.ranking_dim = self.embedding_dim
        if self.rating_dim is None:
            self.rating_dim = self.embedding_dim
        narrower = min(self.ranking_dim, self.rating_dim)
        if self.shared_dims is None:
            self.shared_dims = narrower
        for name in ("embedding_dim", "ranking_dim", "rating_dim", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.shared_dims <= narrower:
            raise ValueError(
                f"shared_dims is {self.shared_dims}: it must be from 0 to {narrower}, "
                "the width of the narrower task"
            )
        if self.rating_head not in RATING_HEADS:
            raise ValueError(
                f"rating_head is {self.rating_head!r}: it is one of {', '.join(RATING_HEADS)}"
            )

    @property
    def all_shared(self) -> bool:
        return self.ranking_dim == self.rating_dim == self.shared_dims


class MultiTaskNet(nn.Module):
    """A stack of R networks of equal structure, for ranking and for rating.

    Interaction score (a matrix factorization) and predicted rating of user i and item j, in each
    run:

        p_ij = u_i · q_j + a_i + b_j                       u, q: the ranking windows
        r̂_ij = rating head(u_i, q_j)                       u, q: the rating windows

    The options:

        rating_head     one of RATING_HEADS
        rating_biases   r̂_ij gains μ + a_i + b_j, μ the mean training rating, a and b a set of
                        their own unless the tasks share all dimensions
        user_history    u_i = own row + Σ_k h_k / √n over the n items k of the user's training
        item_history    q_j likewise over the item's training users

    What the options take from the training interactions, ``observe`` gives: without it there is
    no history and μ is 0.

    Initial values as in the report: tables normal with standard deviation 1/D, D being
    ``embedding_dim``; biases zero; layers as ``torch.nn.Linear``. The ranking windows of a seed
    start equal whatever is shared.

    Args:
        n_users, n_items: sizes of the catalogue, at least 1.
        seeds: one for each run of the stack; they key the random streams of the initial values.
        structure: the fields of Structure.

    Raises ValueError for a size below 1 and as Structure does.

    Source: the two-headed factorization of the report; ranking head: Rendle et al., BPR, UAI 2009;
    histories: Koren, Factorization Meets the Neighborhood (SVD++), KDD 2008.
    """

    def __init__(
        self, n_users: int, n_items: int, *, seeds: Sequence[int | str] = (0,), **structure
    ):
        super().__init__()
        options = Structure(**structure)
        for name, size in dict(n_users=n_users, n_items=n_items, runs=len(seeds)).items():
            if size < 1:
                raise ValueError(f"{name} is {size}: it must be at least 1")
        self.n_users, self.n_items, self.structure = n_users, n_items, options
        self.ranking_dim, self.rating_dim = options.ranking_dim, options.rating_dim
        self.shared_dims = options.shared_dims
        self.width = self.ranking_dim + self.rating_dim - self.shared_dims

        def table(name: str, n: int) -> nn.Parameter:  # (R, n, W)
            return nn.Parameter(torch.stack([self._initial_table(seed, name, n) for seed in seeds]))

        def zeros(n: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(len(seeds), n, 1))

        self.users, self.items = table("users", n_users), table("items", n_items)
        self.user_bias, self.item_bias = zeros(n_users), zeros(n_items)
        self.rating_head = RATING_HEADS[options.rating_head](self.rating_dim, options.hidden, seeds)
        if options.rating_biases and not options.all_shared:
            self.rating_user_bias, self.rating_item_bias = zeros(n_users), zeros(n_items)
        if options.user_history:
            self.history_items = table("history_items", n_items)
        if options.item_history:
            self.history_users = table("history_users", n_users)
        self.by_user: Interacted | None = None
        self.by_item: Interacted | None = None
        self.kept_columns: Tensor | None = None
        self.sparse_gradients = False  # whether a lookup's gradient in a table is sparse
        for name, parameter in self.named_parameters():
            if len(parameter) != len(seeds):  # runs would share it
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}: it must begin with the "
                    f"{len(seeds)} run(s), as models.Linear's do"
                )
        self.register_buffer("run", torch.arange(len(seeds))[:, None], persistent=False)
        self.register_buffer("mean_rating", torch.zeros(len(seeds), 1), persistent=False)

    def _initial_table(self, seed: int | str, name: str, n: int) -> Tensor:
        """(n, W). The common part is the ranking's draw: only the rating's own part is added."""
        stream = random_stream(seed, "initial", f"{name}.ranking")
        rows = torch.randn(n, self.ranking_dim, generator=stream)
        if own := self.rating_dim - self.shared_dims:
            stream = random_stream(seed, "initial", f"{name}.rating")
            rating = torch.randn(n, self.rating_dim, generator=stream)
            rows = torch.cat([rows, rating[:, -own:]], 1)
        return rows * (1 / self.structure.embedding_dim)

    def tables(self) -> dict[str, nn.Parameter]:
        """The embedding tables by name, all with rows of ranking's own | common | rating's own."""
        names = ("users", "items", "history_items", "history_users")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def shared_columns(self) -> dict[str, slice]:
        """Of the parameters that both tasks' gradients reach, the columns where they do.

        The common columns of all tables, and where all is shared the rating head's biases.
        """
        own = self.ranking_dim - self.shared_dims
        columns = dict.fromkeys(self.tables(), slice(own, self.ranking_dim))
        if self.structure.rating_biases and self.structure.all_shared:
            columns |= dict.fromkeys(("user_bias", "item_bias"), slice(None))
        return columns if self.shared_dims else {}

    def observe(self, users: Tensor, items: Tensor, ratings: Tensor) -> None:
        """Take what the options need from the training interactions: (R, n) each."""
        if self.structure.rating_biases:
            self.mean_rating = ratings.double().mean(1, keepdim=True).to(self.users.dtype)
        if self.structure.user_history:
            self.by_user = Interacted(users, items, self.n_users, self.n_items)
        if self.structure.item_history:
            self.by_item = Interacted(items, users, self.n_items, self.n_users)

    def as_used(self) -> "MultiTaskNet":
        """A copy without histories: its tables are the vectors u_i and q_j as used."""
        users = torch.arange(self.n_users, device=self.run.device).expand(len(self.run), -1)
        options = asdict(self.structure) | {"user_history": False, "item_history": False}
        net = MultiTaskNet(self.n_users, self.n_items, seeds=range(len(self.run)), **options)
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("history_")}
        net.load_state_dict(state | {"users": self.user_rows(users), "items": self.catalogue()})
        net.mean_rating = self.mean_rating
        return net.to(users.device).requires_grad_(False).eval()

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """(R, n, C) and (R, B) -> (R, B, C): each run's own rows of a table."""
        if self.sparse_gradients and table.is_leaf:
            return Rows.apply(table, ids, self.run)
        return F.embedding(ids + self.run * table.shape[1], table.flatten(0, 1))

    def user_rows(self, ids: Tensor) -> Tensor:
        """(R, B) -> (R, B, W): u_i, own row and history."""
        own = self.rows(self.users, ids)
        return own + self.by_user.added(self.history_items, ids) if self.by_user else own

    def item_rows(self, ids: Tensor) -> Tensor:
        """(R, B) -> (R, B, W): q_j, own row and history."""
        own = self.rows(self.items, ids)
        return own + self.by_item.added(self.history_users, ids) if self.by_item else own

    def catalogue(self) -> Tensor:
        """(R, n_items, W): q_j of all items."""
        return self.items + self.by_item.added(self.history_users) if self.by_item else self.items

    def history_parts(self, user_ids: Tensor) -> tuple[tuple[Tensor, Tensor] | None, ...]:
        """What an interaction adds by the histories, to (R, U) users' rows and to all items' rows.

        A table and a scale each, or None without a history: (i, j) adds h_j / √n_i to u_i, with
        (R, n_items, W) and (R, U, 1), and g_i / √n_j to q_j, with (R, n_users, W), (R, n_items, 1).
        """
        of_users = of_items = None
        if self.by_user:
            of_users = self.history_items, self.rows(self.by_user.scale, user_ids)
        if self.by_item:
            of_items = self.history_users, self.by_item.scale
        return of_users, of_items

    def own_part_of_scores(self, user_ids, place, item_ids, u, q, keep, of_users, of_items):
        """What interactions themselves add to their scores, by the histories: (R, B).

        With a = k ∘ h_j / √n_i and b = g_i / √n_j, k the dropout factors of u_i: left out,
        (u_i − a) · (q_j − b) would remain. The difference is a · q_j + u_i · b − a · b.

        Args:
            user_ids: (R, U); place, item_ids: (R, B), each interaction's user among them, its item.
            u and keep: (R, U, D_F), u dropped out; q: (R, n_items, D_F).
            of_users, of_items: as history_parts gives them.
        """
        left, right, own = [], [], 0.0
        if of_users:
            h, k = self.ranking_window(of_users[0]), keep * of_users[1]
            left.append(k)
            right.append(h * q)
        if of_items:
            g, scale = self.ranking_window(self.rows(of_items[0], user_ids)), of_items[1]
            u_b = self.rows((u * g).sum(-1, keepdim=True), place) * self.rows(scale, item_ids)
            own = u_b.squeeze(-1)
        if of_users and of_items:
            left.append(-k * g)
            right.append(h * scale)
        if of_users:
            i, j = self.rows(torch.cat(left, -1), place), self.rows(torch.cat(right, -1), item_ids)
            own = own + (i * j).sum(-1)
        return own

    def ranking_window(self, rows: Tensor) -> Tensor:
        """(..., W) -> (..., D_F)."""
        return rows if self.ranking_dim == self.width else rows[..., : self.ranking_dim]

    def rating_window(self, rows: Tensor) -> Tensor:
        """(..., W) -> (..., D_R)."""
        return rows if self.rating_dim == self.width else rows[..., -self.rating_dim :]

    def interaction(self, u: Tensor, q: Tensor) -> Tensor:
        """u_i · q_j of pairs in the ranking windows: (R, ..., D_F) twice -> (R, ...). No biases."""
        return (u * q).sum(-1)

    def rating(self, user_ids: Tensor, item_ids: Tensor, u: Tensor, q: Tensor) -> Tensor:
        """r̂_ij of pairs: (R, B) ids, and u_i, q_j in the rating windows (R, B, D_R) -> (R, B)."""
        predicted = self.rating_head(u, q)
        if not self.structure.rating_biases:
            return predicted
        biases = self.bias_sum(self.rating_bias_tables(), user_ids, item_ids)
        return predicted + biases + self.mean_rating

    def rating_bias_tables(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The rating head's user and item biases: the ranking's when all dimensions are shared."""
        if hasattr(self, "rating_user_bias"):
            return self.rating_user_bias, self.rating_item_bias
        return self.user_bias, self.item_bias

    def bias_sum(self, tables: tuple[Tensor, Tensor], user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """a_i + b_j of a pair of bias tables: (R, B) ids twice -> (R, B)."""
        user_bias, item_bias = tables
        return (self.rows(user_bias, user_ids) + self.rows(item_bias, item_ids)).squeeze(-1)

    def forward(self, user_ids: Tensor, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(R, B) user and item ids -> (R, B) interaction scores and (R, B) predicted ratings.

        Raises IndexError for an id out of range: in a stack it would read another run's row.
        """
        check_ids("user", user_ids, self.n_users)
        check_ids("item", item_ids, self.n_items)
        u, q = self.user_rows(user_ids), self.item_rows(item_ids)
        bias = self.bias_sum((self.user_bias, self.item_bias), user_ids, item_ids)
        rated = self.rating_window(u), self.rating_window(q)
        ranked = self.ranking_window(u), self.ranking_window(q)
        return self.interaction(*ranked) + bias, self.rating(user_ids, item_ids, *rated)

    def ratings(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """(R, B) user and item ids -> (R, B) predicted ratings."""
        return self(user_ids, item_ids)[1]

    def catalogue_scores(self, user_ids: Tensor) -> Tensor:
        """(R, U) user ids, or (U,) for the same in each run -> (R, U, n_items) scores p_ij."""
        user_ids = user_ids.expand(len(self.users), -1)
        u, a = self.ranking_window(self.user_rows(user_ids)), self.rows(self.user_bias, user_ids)
        rows = torch.cat([u, a, torch.ones_like(a)], -1)
        if self.kept_columns is None:
            return rows @ self.columns()
        scores = self.kept_scores.resize_(*rows.shape[:2], self.n_items)
        return torch.bmm(rows, self.kept_columns, out=scores)

    def columns(self) -> Tensor:
        """(R, D_F + 2, n_items), of all items (q_j, 1, b_j): (u_i, a_i, 1) · (q_j, 1, b_j) = p_ij.

        One product, since the scores may be the largest array, and adding to them costs half of it.
        """
        q, b = self.ranking_window(self.catalogue()), self.item_bias
        return torch.cat([q, torch.ones_like(b), b], -1).transpose(1, 2)

    @contextlib.contextmanager
    def catalogue_kept(self) -> Iterator[None]:
        """Within it nothing is differentiated or may change, and scores replace those before.

        The catalogue is put together once, and their memory is asked for once: it is dear to get.
        """
        self.kept_columns = self.columns().contiguous()
        self.kept_scores = self.kept_columns.new_empty(0)
        try:
            with torch.no_grad():
                yield
        finally:
            self.kept_columns = self.kept_scores = None

    def scores_of_all(self, u: Tensor, q: Tensor, user_bias: Tensor | float = 0.0) -> Tensor:
        """p of all pairs, from (R, U, D_F) and (R, n_items, D_F): (R, U, n_items)."""
        return torch.baddbmm(user_bias + self.item_bias.transpose(1, 2), u, q.transpose(1, 2))


def check_ids(kind: str, ids: Tensor, n: int) -> None:
    """Raise IndexError unless all ids are in [0, n)."""
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= n:
            raise IndexError(f"{kind} id {low if low < 0 else high} is not in 0..{n - 1}")


class OneRun(nn.Module):
    """One trained run with the face of a single network, however it was trained.

    An ensemble's run has M members: scores and ratings are their means; ratings are cut to the
    range ``clip``, (low, high), if given. Ids are contiguous int64 of shape (B,); an id out of
    range raises IndexError.
    """

    def __init__(self, members: MultiTaskNet, clip: tuple[float, float] | None = None):
        super().__init__()
        self.members, self.clip = members, clip

    def forward(self, user_ids: Tensor, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) user and item ids -> (B,) interaction scores and (B,) predicted ratings."""
        if user_ids.shape != item_ids.shape or user_ids.dim() != 1:
            raise ValueError(
                f"user ids {tuple(user_ids.shape)} and item ids {tuple(item_ids.shape)} "
                "must both have shape (B,)"
            )
        m = len(self.members.users)
        scores, ratings = self.members(user_ids.expand(m, -1), item_ids.expand(m, -1))
        ratings = ratings.mean(0)
        return scores.mean(0), ratings if self.clip is None else ratings.clamp(*self.clip)

    def interaction_scores(self, user_ids: Tensor) -> Tensor:
        """(B,) user ids -> (B, n_items) interaction scores of the whole catalogue."""
        check_ids("user", user_ids, self.members.n_users)
        return self.members.catalogue_scores(user_ids).mean(0)

    def ratings(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """(B,) user and item ids -> (B,) predicted ratings."""
        return self(user_ids, item_ids)[1]
