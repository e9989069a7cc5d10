"""Scores in, numbers out: ranks in the full catalogue, METRICS, and what simple models reach.

Nothing here samples candidates: a test item competes with every item of the catalogue. Sampled
metrics order models differently (Krichene and Rendle, "On Sampled Metrics for Item
Recommendation", KDD 2020).

    evaluate = Evaluator(users, items, ratings, held_out, seen)    # once
    evaluate(net)[0]["mrr"]                                        # each epoch; run 0
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data import Interactions, Split
from ratings_file import require

SCORES = {"cpu": 2**20, "cuda": 2**27}  # held at a time: 4 MiB stay in a cache, 512 fill a GPU
COMPARED = 2**19  # at a time, on the CPU: 1 MiB of outcomes stay in the L2 cache
SORTED_FROM = 13  # test items of a row that make it worth sorting: fewer are compared with it


class FullRanking:
    """Ranks of the test items of a stack of R runs, each run with a split of its own.

    The rank of test item i of user u, among all `n_items` items j of the catalogue, is

        rank = (1 + #{j: s_uj > s_ui} + #{j: s_uj >= s_ui}) / 2,

    so tied items share the average of their places: scoring everything the same gains nothing.
    Seen items have score -inf: they come last, tied with each other and with whatever the model
    itself puts at -inf. A test item that is also listed as seen is ranked as seen.

    The pairs to rank are integers (R, T) from 0, those that rank last (R, S), with S perhaps 0.
    SCORES of runs times `members` are held at a time, or one user's of each; 8 bytes a seen pair
    and 24 a test pair besides. Raises ValueError for other shapes, no test pair, ids out of range.
    """

    def __init__(
        self, n_items, test_users, test_items, seen_users, seen_items, members=1, device="cpu"
    ):
        test_users, test_items = _arrays(2, n_items, test_users=test_users, test_items=test_items)
        seen_users, seen_items = _arrays(2, n_items, seen_users=seen_users, seen_items=seen_items)
        (n_runs, n_tests), n_seen = test_users.shape, len(seen_users)
        require(n_tests, "there is no test pair to rank")
        require(n_seen == n_runs, f"test pairs are of {n_runs} runs, seen pairs of {n_seen}")
        self.n_items, self.shape = n_items, test_users.shape
        on_cpu = torch.device(device).type == "cpu"
        chunk = SCORES["cpu" if on_cpu else "cuda"] // n_items  # score rows
        # Users in the order of how many tests they have, in chunks of `width`, the last padded.
        n_users = 1 + max(test_users.max(), seen_users.max(initial=0))
        counts = np.bincount(test_users.ravel(), minlength=n_users)
        scored = np.argsort(counts, kind="stable")[np.count_nonzero(counts == 0) :]
        n_chunks = -(-len(scored) // max(1, chunk // (n_runs * members)))
        width, place = -(-len(scored) // n_chunks), np.arange(len(scored))
        users = np.pad(scored, (0, n_chunks * width - len(scored)), "edge").reshape(-1, width)

        def addresses(users, items):
            """Places of pairs in the chunks' (runs, users, items) scores; others' are past them."""
            found, rows = items.copy(), np.full(n_users, n_chunks * n_runs * width)
            for run in range(n_runs):
                rows[scored] = (place // width * n_runs + run) * width + place % width
                found[run] += (rows * n_items)[users[run]]
            return found.ravel()

        seen, test = np.sort(addresses(seen_users, seen_items)), addresses(test_users, test_items)
        order, size = np.argsort(test), n_runs * width * n_items
        test, self._chunks = test[order], []  # user ids, addresses of seen and test pairs, blocks
        for begin, user_ids in zip(range(0, n_chunks * size, size), users, strict=True):
            masked, part = (slice(*x.searchsorted([begin, begin + size])) for x in (seen, test))
            # A block is of score rows with as many tests, which are compared with it together.
            row, n_tests = np.unique((test[part] - begin) // n_items, return_counts=True)
            by_count, blocks = np.argsort(n_tests.repeat(n_tests), kind="stable"), []
            order[part], tests = order[part][by_count], test[part][by_count]
            for n in np.unique(n_tests).tolist():
                alike = row[n_tests == n]
                step = max(1, (COMPARED // n_items if on_cpu else chunk) // n)
                near = alike[-1] - alike[0] < len(alike)  # side by side: a view will do
                step = len(alike) if on_cpu and near and n >= SORTED_FROM else step
                for rows in np.split(alike, range(step, len(alike), step)):
                    near = rows[-1] - rows[0] < len(rows)
                    rows = slice(rows[0], rows[-1] + 1) if near else torch.tensor(rows).to(device)
                    blocks.append((n, rows))
            arrays = user_ids, seen[masked] - begin, tests - begin
            self._chunks.append((*(torch.tensor(x, device=device) for x in arrays), blocks))
        self._order = torch.from_numpy(order)  # of the ranked pairs in the flattened (R, T)
        word = min(-(-n_items // 8), 255)  # so many words of 0 and 1 add up within their bytes
        shape = max(COMPARED // n_items, SORTED_FROM), 2, -(-n_items // (8 * word)), word
        self._words = torch.zeros(shape, dtype=torch.int64) if on_cpu else None
        self._outcomes = {}  # of shape (m, k): parts of the words, and NumPy's views of them

    @torch.no_grad()
    def ranks(self, catalogue_scores):
        """Rank of every test pair, float64 (R, T) on the CPU, in the order of `test_users`.

        NaN in the runs that have a NaN among their scores. ``catalogue_scores`` takes user ids,
        int64 (U,) on the device, of users with test items, and returns fresh floating-point scores
        (R, U, n_items), higher = more likely, which are overwritten. Raises ValueError for others.
        """
        counts, highest = [], []
        for user_ids, masked, tests, blocks in self._chunks:
            scores, shape = catalogue_scores(user_ids), (self.shape[0], len(user_ids), self.n_items)
            told = f"(R, U, n_items) = {shape}, got {scores.dtype} of shape {tuple(scores.shape)}"
            sound = scores.shape == shape and scores.is_floating_point()
            require(sound, f"catalogue scores must be floating-point of shape {told}")
            exact = torch.promote_types(scores.dtype, torch.float32)  # NumPy knows no bfloat16
            scores = scores.to(exact).contiguous().view(-1, self.n_items)
            highest.append(scores.view(shape[0], -1).amax(1))  # NaN if any score is
            scores.view(-1).index_fill_(0, masked, -torch.inf)
            own, done = scores.view(-1).take(tests), 0
            for n, rows in blocks:
                others, first = scores[rows], done
                done += len(others) * n
                counts.append(self._count(others, own[first:done].view(-1, n)).view(-1))
        ranks = torch.empty(len(self._order), dtype=torch.float64)
        ranks[self._order] = torch.cat(counts).cpu().double().add_(1).div_(2)
        nan = torch.stack(highest).isnan().any(0).cpu()
        return ranks.view(self.shape).masked_fill_(nan[:, None], torch.nan)

    def __getstate__(self):  # a copy's views would be of other memory
        return vars(self) | {"_outcomes": {}}

    def _count(self, others, own):
        """#{others > own} + #{others >= own}: (m, n_items), overwritten, and (m, k) -> (m, k)."""
        on_cpu = self._words is not None  # where NumPy sorts 20 times as fast as torch
        if own.shape[1] >= SORTED_FROM:
            if on_cpu:
                others.numpy().sort()
            else:
                others = others.sort().values
            below = torch.searchsorted(others, own) + torch.searchsorted(others, own, right=True)
            return 2 * self.n_items - below
        others, own = others[:, None], own[..., None]
        if not on_cpu:
            return (others > own).sum(-1) + (others >= own).sum(-1)
        if own.shape not in self._outcomes:
            words = self._words[: own.numel()]  # of 0 and 1, added up by eights: twice as fast
            flags = words.numpy().view(np.bool_).reshape(*own.shape[:2], 2, -1)[..., : self.n_items]
            self._outcomes[own.shape] = words, flags[:, :, 0], flags[:, :, 1]
        words, greater, at_least = self._outcomes[own.shape]
        others, own = others.numpy(), own.numpy()
        np.greater(others, own, out=greater)
        np.greater_equal(others, own, out=at_least)
        return words.sum(-1).view(torch.uint8).view(*own.shape[:2], -1).sum(-1)


class Evaluator:
    """All METRICS of every run of a stack on its held-out interactions.

    Of all interactions (N,), the rows `held_out` (R, T) test each run and the items of the rows
    `seen` (R, S) rank last; items are numbered up to the largest id. M = `members` networks of the
    stack in a row make a run, which predicts their mean. `clip` has for each run (low, high), the
    range its predicted ratings are cut to, or None.
    """

    def __init__(self, users, items, ratings, held_out, seen, members=1, clip=None, device="cpu"):
        self.users, self.items, self.ratings = users[held_out], items[held_out], ratings[held_out]
        self.members, self.device = members, device
        clip = [own or (-np.inf, np.inf) for own in clip or [None] * len(held_out)]
        self.clip = np.transpose(clip)[..., None]
        self.size = max(1, 2**16 // (len(held_out) * members))  # pairs whose features fit
        seen = np.sort(seen, 1)  # gathered faster
        pairs = self.users, self.items, users[seen], items[seen]
        self.ranking = FullRanking(int(items.max()) + 1, *pairs, members, device)

    @torch.no_grad()
    def __call__(self, net):
        """A dictionary for each run: every metric's name -> its value.

        Not finite are those of a run with a NaN among its scores, or such a predicted rating.
        ``net`` has `catalogue_scores((U,) user ids) -> (R·M, U, n_items)` and
        `ratings((R·M, T) user ids, (R·M, T) item ids) -> (R·M, T)`.
        """
        predicted = []
        with getattr(net, "catalogue_kept", contextlib.nullcontext)():
            ranks = self.ranking.ranks(lambda ids: self._mean(net.catalogue_scores(ids)))
        pairs = [torch.as_tensor(ids).split(self.size, 1) for ids in (self.users, self.items)]
        for ids in zip(*pairs, strict=True):
            ids = [part.to(self.device).repeat_interleave(self.members, 0) for part in ids]
            predicted.append(self._mean(net.ratings(*ids)).cpu())
        predicted = torch.cat(predicted, 1)
        predicted[predicted.isinf()] = torch.nan  # clipping would make it a number
        predicted = predicted.double().numpy().clip(*self.clip)
        values = ranks.numpy(), self.users, predicted, self.ratings
        with np.errstate(all="ignore"):  # of a run that is no longer finite
            return [metrics(HeldOut(*own)) for own in zip(*values, strict=True)]

    def _mean(self, values):
        """(R·M, ...) -> (R, ...), over the members."""
        return values if self.members == 1 else values.unflatten(0, (-1, self.members)).mean(1)


class HeldOut:
    """A run's results on its T held-out interactions: what every metric is a function of.

    ranks      (T,) float64, from 1, as FullRanking gives them
    users      (T,) int64, from 0, whose interaction each is
    user_ids   (U,) int64, the users among them, ascending
    n_tests    (U,) int64, how many each of them has
    predicted  (T,) float64, predicted ratings, cut to their range if there is one
    ratings    (T,) float64, true ratings; a model of one task leaves out the other's two
    """

    def __init__(self, ranks=None, users=None, predicted=None, ratings=None):
        self.ranks, self.users, self.predicted, self.ratings = ranks, users, predicted, ratings
        if users is not None:
            self.user_ids, self.n_tests = np.unique(users, return_counts=True)

    def by_user(self, values):
        """The mean of values (T,) over each user's interactions: (U,), in user_ids' order."""
        return np.bincount(self.users, values)[self.user_ids] / self.n_tests


def first_hit(run):
    """1 / r_1 of each user's best-ranked test item, in the mean over users."""
    best = np.zeros(run.users.max() + 1)
    np.maximum.at(best, run.users, 1 / run.ranks)
    return best[run.user_ids].mean()


def ndcg_at_10(run):
    """Σ_{k: r_k <= 10} 1 / log2(1 + r_k) over its value for r_k = k, in the mean over users.

    Järvelin and Kekäläinen, "Cumulated Gain-based Evaluation of IR Techniques", TOIS 2002, binary
    gain; cut at 1, which only ties across the tenth place can exceed.
    """
    gain = run.by_user((run.ranks <= 10) / np.log2(1 + run.ranks))
    ideal = np.cumsum(1 / np.log2(np.arange(2, 12)))[np.minimum(run.n_tests, 10) - 1]
    return np.minimum(gain * run.n_tests / ideal, 1).mean()


@dataclass(frozen=True)
class Metric:
    """A number for a run, and how it is shown."""

    value: Callable[[HeldOut], float]
    tag: str | None = None  # "eval/…", of its curve; without one it is in result.json alone
    label: str = ""  # of its curve's y axis
    digits: int = 4  # in tables
    better: int = +1  # +1: higher is better; -1: lower

    def __post_init__(self):
        alike = not self.tag or self.tag.startswith("eval/")  # its validation curve's is like it
        require(alike, f"tag is {self.tag!r}", "one that begins with 'eval/'")


# With r_1 <= r_2 <= ... the ranks of a user's n test items, "mrr" is (1 / n) Σ_k 1 / r_k in the
# mean over users: the report's (GitHub: minhtcai/multitask-recsys). The usual one is "mrr_first".
METRICS = {
    "mrr": Metric(
        lambda run: run.by_user(1 / run.ranks).mean(),
        tag="eval/Mean Reciprocal Rank",
        label="reciprocal rank (0 to 1)",
    ),
    "mse": Metric(
        lambda run: np.mean((run.predicted - run.ratings) ** 2),
        tag="eval/MSE",
        label="squared error (rating units²)",
        better=-1,
    ),
    "mrr_first": Metric(first_hit),
    "ndcg_at_10": Metric(ndcg_at_10),
    "recall_at_10": Metric(lambda run: run.by_user(run.ranks <= 10).mean()),
}


def metrics(run, names=METRICS):
    """The values of the metrics of these names: a dict of floats."""
    return {name: float(METRICS[name].value(run)) for name in names}


def ranked(ranks, users):
    """The HeldOut of ranks (T,) alone, of test items of users (T,).

    Raises ValueError for none, other shapes, ranks not finite or below 1, users not integers >= 0.
    """
    ranks, users = _arrays(1, ranks=ranks, users=users)
    require(ranks.size, "there is no rank to average")
    require((np.isfinite(ranks) & (ranks >= 1)).all(), "ranks must be finite and at least 1")
    return HeldOut(ranks, users)


def ranking_metrics(ranks, users):
    """The metrics of ranks (T,) alone, of test items of users (T,); raises as `ranked` does."""
    return metrics(ranked(ranks, users), ("mrr", "mrr_first", "ndcg_at_10", "recall_at_10"))


def mean_squared_error(predicted, ratings, clip=None):
    """Mean of (predicted - ratings)**2, in squared rating units, of (T,) cut to clip (low, high).

    Raises ValueError for none, unequal shapes, low > high; FloatingPointError for no finite rating.
    """
    predicted, ratings = _arrays(1, predicted=predicted, ratings=ratings)
    require(ratings.size, "there is no rating to compare with")
    for name, values in (("predicted", predicted), ("true", ratings)):
        if n_bad := np.count_nonzero(~np.isfinite(values)):
            raise FloatingPointError(f"NaN or infinity in {n_bad} of {values.size} {name} ratings")
    low, high = clip or (-np.inf, np.inf)
    require(low <= high, f"clip must be (low, high) with low <= high, got {clip}")
    return metrics(HeldOut(predicted=predicted.clip(low, high), ratings=ratings), ["mse"])["mse"]


def fit_biases(
    users, items, ratings, n_users, n_items, user_ridge=5.61, item_ridge=1.72, rounds=30
):
    """r̂_ui = mean + a_u + b_i of least squared error + user_ridge |a|² + item_ridge |b|².

    In turn b_i = Σ_u (r_ui - mean - a_u) / (n_i + item_ridge), over item i's n_i ratings, and a_u
    likewise; (S,) training columns -> mean, a (n_users,), b (n_items,), 0 where nothing is known.
    The ridges were chosen on validation parts of ml-100k.
    """
    mean = ratings.mean(dtype=np.float64)
    above, user_bias = ratings - mean, np.zeros(n_users)
    user_weights = np.maximum(np.bincount(users, minlength=n_users) + user_ridge, 1e-12)
    item_weights = np.maximum(np.bincount(items, minlength=n_items) + item_ridge, 1e-12)
    for _ in range(rounds):
        item_bias = np.bincount(items, above - user_bias[users], n_items) / item_weights
        user_bias = np.bincount(users, above - item_bias[items], n_users) / user_weights
    return mean, user_bias, item_bias


def baselines(data: Interactions, split: Split, clip_ratings: bool = False) -> dict[str, float]:
    """What a run must beat on its test part: "popularity_mrr", "global_mean_mse", "biases_mse".

    And popularity's other ranking metrics, "popularity_ndcg_at_10" and the like. Fitted on the
    training part. As for a run, training and validation items rank last, and with `clip_ratings`
    predictions are cut to the range of the training ratings.
    """
    users, items, ratings = data.user_ids, data.item_ids, data.ratings
    train, test, seen = split.train, split.test, np.concatenate([split.train, split.validation])
    pairs = [ids[rows][None] for rows in (test, seen) for ids in (users, items)]
    scores = torch.from_numpy(np.bincount(items[train], minlength=data.n_items)).double()
    ranks = FullRanking(data.n_items, *pairs).ranks(lambda ids: scores.repeat(1, len(ids), 1))
    columns = users[train], items[train], ratings[train]
    mean, user_bias, item_bias = fit_biases(*columns, data.n_users, data.n_items)
    by_biases = mean + user_bias[users[test]] + item_bias[items[test]]
    clip = (ratings[train].min(), ratings[train].max()) if clip_ratings else None
    ranking = ranking_metrics(ranks[0], users[test])
    levels = {f"popularity_{name}": value for name, value in ranking.items()}
    levels["global_mean_mse"] = mean_squared_error(np.full(len(test), mean), ratings[test], clip)
    levels["biases_mse"] = mean_squared_error(by_biases, ratings[test], clip)
    return levels


def _arrays(n_dims, n_items=np.inf, **arrays):
    """NumPy arrays of one shape: int64 from 0 where the name says users or items, else float64."""
    found = []
    for name, values in arrays.items():
        values = torch.as_tensor(values).detach().cpu()
        if not name.endswith(("users", "items")):
            found.append(values.double().numpy())
            continue
        values = values.numpy()
        sound, least = values.dtype.kind in "iu", values.min(initial=0)
        require(sound or not values.size, f"{name} must be integers, got {values.dtype}")
        require(least >= 0, f"{name} must be at least 0, got {least}")
        most = values.max(initial=-1) if name.endswith("items") else -1
        require(most < n_items, f"{name} must be below n_items = {n_items}, got {most}")
        found.append(values.astype(np.int64, copy=False))
    one, other = (values.shape for values in found)
    told = f"{' and '.join(arrays)} must have one shape ({'runs, pairs' if n_dims > 1 else 'T,'}), "
    require(one == other and len(one) == n_dims, f"{told}got {one} and {other}")
    return found
