"""MultiTaskNet: one network that ranks items for a user and predicts the user's ratings.

Ids go in, an interaction score and a predicted rating come out. Two things are unusual:

* Sharing is a dial. A user (or an item) is one row of numbers, and each task reads a window of it:

      | ranking's own | common (K) | rating's own |
      |<------- D_F -------->|
                      |<-------- D_R ------->|

  With K = D_F = D_R the windows coincide (shared); with K = 0 they don't touch (separate).

* Every parameter has a leading run dimension R, so that R runs train at once as a stack.

Shapes: R runs, B batch, D embedding dimension, H hidden units, W = D_F + D_R - K row width.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_stream(seed: int | str, purpose: str, index: int | str = 0) -> torch.Generator:
    """A CPU generator of its own for each (seed, purpose, epoch or table name).

    No draw depends on how many were made before it: a run doesn't depend on what it is stacked
    with, and resuming needs no generator state.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class MultiTaskNet(nn.Module):
    """A stack of R networks of equal structure, for ranking and for rating.

    Interaction score (a matrix factorization) and predicted rating (a network with one hidden
    layer) of user i and item j, in each run:

        p_ij = u_i · q_j + a_i + b_j                       u, q: the ranking windows
        r̂_ij = MLP([u_i, q_j, u_i ∘ q_j])                  u, q: the rating windows

    with a ReLU between 3·D_R -> H -> 1. With ``rating_biases`` the prediction gains user and item
    biases: the ranking's a_i + b_j when any dimension is shared, a set of its own when none is.

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
        ValueError: for a size below 1 or K out of range.

    Source: the two-headed factorization of the report; ranking head: Rendle et al., BPR, UAI 2009;
    rating head: He et al., Neural Collaborative Filtering, WWW 2017.
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
        seeds: Sequence[int | str] = (0,),
    ):
        super().__init__()
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
        self.hidden_weight = nn.Parameter(torch.empty(runs, features, hidden))
        self.hidden_bias = nn.Parameter(torch.empty(runs, 1, hidden))
        self.output_weight = nn.Parameter(torch.empty(runs, hidden, 1))
        self.output_bias = nn.Parameter(torch.empty(runs, 1, 1))
        self.rating_biases = rating_biases
        if rating_biases and self.shared_dims == 0:
            self.rating_user_bias = nn.Parameter(torch.zeros(runs, n_users, 1))
            self.rating_item_bias = nn.Parameter(torch.zeros(runs, n_items, 1))
        self.register_buffer("run", torch.arange(runs)[:, None], persistent=False)
        self._initialise(seeds, 1 / embedding_dim)

    @torch.no_grad()
    def _initialise(self, seeds: Sequence[int | str], deviation: float) -> None:
        own = self.rating_dim - self.shared_dims
        for r, seed in enumerate(seeds):
            for name, table in (("users", self.users), ("items", self.items)):
                n = table.shape[1]
                stream = random_stream(seed, "initial", f"{name}.ranking")
                ranking = torch.randn(n, self.ranking_dim, generator=stream)
                stream = random_stream(seed, "initial", f"{name}.rating")
                rating = torch.randn(n, self.rating_dim, generator=stream)
                # The common part is the ranking's draw: only the rating's own part is added.
                table[r] = torch.cat([ranking, rating[:, self.rating_dim - own :]], 1) * deviation
            for name in ("hidden", "output"):
                weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
                bound = 1 / math.sqrt(weight.shape[1])
                for part, parameter in (("weight", weight), ("bias", bias)):
                    stream = random_stream(seed, "initial", f"{name}.{part}")
                    draw = torch.rand(parameter.shape[1:], generator=stream)
                    parameter[r] = (2 * draw - 1) * bound

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """(R, n, C) and (R, B) -> (R, B, C): each run's own rows of a table."""
        return F.embedding(ids + self.run * table.shape[1], table.flatten(0, 1))

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
        """MLP([u_i, q_j, u_i ∘ q_j]) and biases, if any: (R, B) ids, (R, B, W) rows -> (R, B)."""
        u, q = self.rating_window(u), self.rating_window(q)  # in training: gradients.py
        features = torch.cat([u, q, u * q], -1)  # (R, B, 3·D_R)
        hidden = torch.baddbmm(self.hidden_bias, features, self.hidden_weight).relu()
        predicted = torch.baddbmm(self.output_bias, hidden, self.output_weight).squeeze(-1)
        if self.rating_biases:
            predicted = predicted + self.bias_sum(self.rating_bias_tables(), user_ids, item_ids)
        return predicted

    def rating_bias_tables(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The rating head's user and item biases: the ranking's when anything is shared."""
        if self.shared_dims > 0:
            return self.user_bias, self.item_bias
        return self.rating_user_bias, self.rating_item_bias

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
        u, q = self.rows(self.users, user_ids), self.rows(self.items, item_ids)
        bias = self.bias_sum((self.user_bias, self.item_bias), user_ids, item_ids)
        return self.interaction(u, q) + bias, self.rating(user_ids, item_ids, u, q)

    def ratings(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        """(R, B) user and item ids -> (R, B) predicted ratings."""
        return self(user_ids, item_ids)[1]

    def catalogue_scores(self, user_ids: Tensor) -> Tensor:
        """(R, U) user ids, or (U,) for the same in each run -> (R, U, n_items) scores p_ij."""
        user_ids = user_ids.expand(len(self.users), -1)
        u = self.ranking_window(self.rows(self.users, user_ids))
        q = self.ranking_window(self.items)
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
