"""MultiTaskNet: one network that ranks items for a user and predicts the user's ratings.

Ids go in, an interaction score and a predicted rating come out. Two things are unusual:

* Sharing is a dial. A user (or an item) is one row of numbers, and each task reads a window of it:

      | ranking's own | common (K) | rating's own |
      |<------- D_F -------->|
                      |<-------- D_R ------->|

  With K = D_F = D_R the windows coincide (shared); with K = 0 they don't touch (separate).

* Every parameter has a leading run dimension R, so that R runs train at once as a stack.

Options beyond the report's network, all off by default: histories (a user is also what was
interacted with), biases in the rating head, a dot product in it.

Shapes: R runs, B batch, D embedding dimension, H hidden units, W = D_F + D_R - K row width.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATING_HEADS = ("mlp", "dot", "both")


def random_stream(seed: int | str, purpose: str, index: int | str = 0) -> torch.Generator:
    """A CPU generator of its own for each (seed, purpose, epoch or table name).

    No draw depends on how many were made before it: a run doesn't depend on what it is stacked
    with, and resuming needs no generator state.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


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
        self.weights = self.counts.clamp(min=1).rsqrt()
        self.all = Bags(self.counts, pairs % self.size, self.size)

    def added(self, table: Tensor, ids: Tensor | None = None, thin=None) -> Tensor:
        """Σ_k table[k] / √n over the n others k of each row: (R, B) ids -> (R, B, W). None: all.

        ``thin(weights, sizes)`` drops interactions out: (m,) weights, of which run r's are
        sizes[r] in a row.
        """
        bags, rows = self.all, slice(None)
        if ids is not None:
            run = torch.arange(self.runs, device=ids.device)[:, None]
            rows, place = (ids + run * self.n_ids).unique(return_inverse=True)
            counts = self.counts[rows]
            shift = self.all.starts[rows] - (counts.cumsum(0) - counts)
            at = shift.repeat_interleave(counts)
            at += torch.arange(len(at), device=ids.device)
            bags = Bags(counts, self.all.ids[at], self.size)
        weights = self.weights[rows].to(table.dtype)[bags.of]
        if thin is not None:
            run = bags.ids // (self.size // self.runs)
            weights = thin(weights, torch.bincount(run, minlength=self.runs).tolist())
        sums = BagSum.apply(table.flatten(0, 1), weights, bags)
        if ids is None:
            return sums.unflatten(0, (self.runs, self.n_ids))
        return F.embedding(place, sums)


class MultiTaskNet(nn.Module):
    """A stack of R networks of equal structure, for ranking and for rating.

    Interaction score (a matrix factorization) and predicted rating (a network with one hidden
    layer) of user i and item j, in each run:

        p_ij = u_i · q_j + a_i + b_j                       u, q: the ranking windows
        r̂_ij = MLP([u_i, q_j, u_i ∘ q_j])                  u, q: the rating windows

    with a ReLU between 3·D_R -> H -> 1. The options:

        rating_head     "mlp"; "dot" is (u_i + s) · (q_j + t) instead, s and t learned vectors by
                        which a vector is a bias too; "both" the sum of the two
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
        embedding_dim: D, both tasks' width unless ``ranking_dim`` (D_F) or ``rating_dim`` (D_R).
        shared_dims: K, from 0 to min(D_F, D_R). None: all of the narrower task.
        hidden: H, units of the hidden layer.
        seeds: one for each run of the stack; they key the random streams of the initial values.

    Raises:
        ValueError: for a size below 1, K out of range, a rating head that isn't one.

    Source: the two-headed factorization of the report; ranking head: Rendle et al., BPR, UAI 2009;
    rating head: He et al., Neural Collaborative Filtering, WWW 2017; histories: Koren,
    Factorization Meets the Neighborhood (SVD++), KDD 2008.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        embedding_dim: int = 32,
        shared_dims: int | None = None,
        ranking_dim: int | None = None,
        rating_dim: int | None = None,
        hidden: int = 64,
        rating_biases: bool = False,
        rating_head: str = "mlp",
        user_history: bool = False,
        item_history: bool = False,
        seeds: Sequence[int | str] = (0,),
    ):
        super().__init__()
        if rating_head not in RATING_HEADS:
            raise ValueError(f"rating_head is {rating_head!r}: it is one of {RATING_HEADS}")
        self.ranking_dim = embedding_dim if ranking_dim is None else ranking_dim
        self.rating_dim = embedding_dim if rating_dim is None else rating_dim
        narrower = min(self.ranking_dim, self.rating_dim)
        self.shared_dims = narrower if shared_dims is None else shared_dims
        sizes = dict(n_users=n_users, n_items=n_items, embedding_dim=embedding_dim, hidden=hidden)
        sizes |= dict(ranking_dim=self.ranking_dim, rating_dim=self.rating_dim, runs=len(seeds))
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}: it must be at least 1")
        if not 0 <= self.shared_dims <= narrower:
            raise ValueError(
                f"shared_dims is {self.shared_dims}: it must be from 0 to {narrower}, "
                "the width of the narrower task"
            )
        self.n_users, self.n_items = n_users, n_items
        self.width = self.ranking_dim + self.rating_dim - self.shared_dims

        runs, features = len(seeds), 3 * self.rating_dim
        self.users = nn.Parameter(torch.empty(runs, n_users, self.width))
        self.items = nn.Parameter(torch.empty(runs, n_items, self.width))
        self.user_bias = nn.Parameter(torch.zeros(runs, n_users, 1))
        self.item_bias = nn.Parameter(torch.zeros(runs, n_items, 1))
        self.rating_head, self.rating_biases = rating_head, rating_biases
        if rating_head != "dot":
            self.hidden_weight = nn.Parameter(torch.empty(runs, features, hidden))
            self.hidden_bias = nn.Parameter(torch.empty(runs, 1, hidden))
            self.output_weight = nn.Parameter(torch.empty(runs, hidden, 1))
            self.output_bias = nn.Parameter(torch.empty(runs, 1, 1))
        if rating_head != "mlp":
            self.user_shift = nn.Parameter(torch.zeros(runs, 1, self.rating_dim))
            self.item_shift = nn.Parameter(torch.zeros(runs, 1, self.rating_dim))
        if rating_biases and not self.ranking_dim == self.rating_dim == self.shared_dims:
            self.rating_user_bias = nn.Parameter(torch.zeros(runs, n_users, 1))
            self.rating_item_bias = nn.Parameter(torch.zeros(runs, n_items, 1))
        if user_history:
            self.history_items = nn.Parameter(torch.empty(runs, n_items, self.width))
        if item_history:
            self.history_users = nn.Parameter(torch.empty(runs, n_users, self.width))
        self.by_user: Interacted | None = None
        self.by_item: Interacted | None = None
        self.register_buffer("run", torch.arange(runs)[:, None], persistent=False)
        self.register_buffer("mean_rating", torch.zeros(runs, 1), persistent=False)
        self._initialise(seeds, 1 / embedding_dim)

    def tables(self) -> dict[str, nn.Parameter]:
        """The embedding tables by name, all with rows of ranking's own | common | rating's own."""
        names = ("users", "items", "history_items", "history_users")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def histories(self) -> tuple[bool, bool]:
        """Whether users and items have a history."""
        return hasattr(self, "history_items"), hasattr(self, "history_users")

    def observe(self, users: Tensor, items: Tensor, ratings: Tensor) -> None:
        """Take what the options need from the training interactions: (R, n) each."""
        if self.rating_biases:
            self.mean_rating = ratings.double().mean(1, keepdim=True).to(self.users.dtype)
        of_users, of_items = self.histories()
        if of_users:
            self.by_user = Interacted(users, items, self.n_users, self.n_items)
        if of_items:
            self.by_item = Interacted(items, users, self.n_items, self.n_users)

    @torch.no_grad()
    def _initialise(self, seeds: Sequence[int | str], deviation: float) -> None:
        own = self.rating_dim - self.shared_dims
        layers = ("hidden", "output") if self.rating_head != "dot" else ()
        for r, seed in enumerate(seeds):
            for name, table in self.tables().items():
                n = table.shape[1]
                stream = random_stream(seed, "initial", f"{name}.ranking")
                ranking = torch.randn(n, self.ranking_dim, generator=stream)
                stream = random_stream(seed, "initial", f"{name}.rating")
                rating = torch.randn(n, self.rating_dim, generator=stream)
                # The common part is the ranking's draw: only the rating's own part is added.
                table[r] = torch.cat([ranking, rating[:, self.rating_dim - own :]], 1) * deviation
            for name in layers:
                weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
                bound = 1 / math.sqrt(weight.shape[1])
                for part, parameter in (("weight", weight), ("bias", bias)):
                    stream = random_stream(seed, "initial", f"{name}.{part}")
                    draw = torch.rand(parameter.shape[1:], generator=stream)
                    parameter[r] = (2 * draw - 1) * bound

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """(R, n, C) and (R, B) -> (R, B, C): each run's own rows of a table."""
        return F.embedding(ids + self.run * table.shape[1], table.flatten(0, 1))

    def user_rows(self, ids: Tensor, thin=None) -> Tensor:
        """(R, B) -> (R, B, W): u_i, own row and history; for ``thin`` see Interacted.added."""
        own = self.rows(self.users, ids)
        return own + self.by_user.added(self.history_items, ids, thin) if self.by_user else own

    def item_rows(self, ids: Tensor, thin=None) -> Tensor:
        """(R, B) -> (R, B, W): q_j, own row and history."""
        own = self.rows(self.items, ids)
        return own + self.by_item.added(self.history_users, ids, thin) if self.by_item else own

    def catalogue(self, thin=None) -> Tensor:
        """(R, n_items, W): q_j of all items."""
        if self.by_item is None:
            return self.items
        return self.items + self.by_item.added(self.history_users, thin=thin)

    def ranking_window(self, rows: Tensor) -> Tensor:
        """(..., W) -> (..., D_F)."""
        return rows if self.ranking_dim == self.width else rows[..., : self.ranking_dim]

    def rating_window(self, rows: Tensor) -> Tensor:
        """(..., W) -> (..., D_R)."""
        return rows if self.rating_dim == self.width else rows[..., -self.rating_dim :]

    def interaction(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """u_i · q_j over the ranking windows: (R, ..., W) twice -> (R, ...). Biases apart."""
        return (self.ranking_window(user_rows) * self.ranking_window(item_rows)).sum(-1)

    def rating(self, user_ids: Tensor, item_ids: Tensor, u: Tensor, q: Tensor) -> Tensor:
        """r̂_ij of pairs: (R, B) ids, and u_i, q_j in the rating windows (R, B, D_R) -> (R, B)."""
        predicted = 0.0  # gradients.py has a copy of its own, for the default training step
        if self.rating_head != "dot":
            features = torch.cat([u, q, u * q], -1)  # (R, B, 3·D_R)
            hidden = torch.baddbmm(self.hidden_bias, features, self.hidden_weight).relu()
            predicted = torch.baddbmm(self.output_bias, hidden, self.output_weight).squeeze(-1)
        if self.rating_head != "mlp":
            predicted = predicted + ((u + self.user_shift) * (q + self.item_shift)).sum(-1)
        return self.biased(user_ids, item_ids, predicted)

    def biased(self, user_ids: Tensor, item_ids: Tensor, predicted: Tensor) -> Tensor:
        """Predicted ratings with μ + a_i + b_j added, if the rating head has them: (R, B) each."""
        if not self.rating_biases:
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
        return self.interaction(u, q) + bias, self.rating(user_ids, item_ids, *rated)

    def ratings(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """(R, B) user and item ids -> (R, B) predicted ratings."""
        return self(user_ids, item_ids)[1]

    def catalogue_scores(self, user_ids: Tensor) -> Tensor:
        """(R, U) user ids, or (U,) for the same in each run -> (R, U, n_items) scores p_ij."""
        user_ids = user_ids.expand(len(self.users), -1)
        u = self.ranking_window(self.user_rows(user_ids))
        q = self.ranking_window(self.catalogue())
        bias = self.rows(self.user_bias, user_ids) + self.item_bias.transpose(1, 2)
        return torch.baddbmm(bias, u, q.transpose(1, 2))


def check_ids(kind: str, ids: Tensor, n: int) -> None:
    """Raise IndexError unless all ids are in [0, n)."""
    if ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= n:
            raise IndexError(f"{kind} id {low if low < 0 else high} is not in 0..{n - 1}")


class OneRun(nn.Module):
    """One trained run with the face of a single network, however it was trained.

    An ensemble's run has M members: scores and ratings are their means. Ids are contiguous int64
    of shape (B,); an id out of range raises IndexError.
    """

    def __init__(self, members: MultiTaskNet):
        super().__init__()
        self.members = members

    def forward(self, user_ids: Tensor, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) user and item ids -> (B,) interaction scores and (B,) predicted ratings."""
        if user_ids.shape != item_ids.shape or user_ids.dim() != 1:
            raise ValueError(
                f"user ids {tuple(user_ids.shape)} and item ids {tuple(item_ids.shape)} "
                "must both have shape (B,)"
            )
        m = len(self.members.users)
        scores, ratings = self.members(user_ids.expand(m, -1), item_ids.expand(m, -1))
        return scores.mean(0), ratings.mean(0)

    def interaction_scores(self, user_ids: Tensor) -> Tensor:
        """(B,) user ids -> (B, n_items) interaction scores of the whole catalogue."""
        check_ids("user", user_ids, self.members.n_users)
        return self.members.catalogue_scores(user_ids).mean(0)

    def ratings(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """(B,) user and item ids -> (B,) predicted ratings."""
        return self(user_ids, item_ids)[1]
