"""Scores in, numbers out: ranks in the full catalogue, METRICS, and what simple models reach.

Nothing here samples candidates: a test item competes with every item of the catalogue. Sampled
metrics order models differently (Krichene and Rendle, "On Sampled Metrics for Item
Recommendation", KDD 2020).

    evaluate = Evaluator(users, items, ratings, held_out, seen)    # once
    evaluate(net)[0]["mrr"]                                        # each epoch; run 0
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data import Interactions, Split

CPU_BLOCK = 2**17  # scores compared at a time: twice 512 KiB of float32 stay in the L2 cache


class FullRanking:
    """Ranks of the test items of a stack of R runs, each run with a split of its own.

    The rank of test item i of user u, among all `n_items` items j of the catalogue, is

        rank = (1 + #{j: s_uj > s_ui} + #{j: s_uj >= s_ui}) / 2,

    one plus the items scored higher plus half the other items scored the same: tied items share
    the average of the places they fill, so a model gains nothing by scoring everything the same.
    Seen items have score -inf: they come last, tied with each other and with whatever the model
    itself puts at -inf. A test item that is also listed as seen is ranked as seen.

    The pairs to rank are integers (R, T) from 0, those that rank last (R, S), with S perhaps 0;
    `n_items` is at most 2**23, since counts are summed in float32. No more than `chunk` score rows
    (runs x users) are asked for at once, though never less than one user of every run, on
    `device`. Peak memory is about three times chunk x n_items scores (on the CPU little more than
    one), besides 8 bytes per seen and 24 per test pair.

    Raises ValueError for other shapes, no test pair, ids out of range, sizes below 1.
    """

    def __init__(
        self, n_items, test_users, test_items, seen_users, seen_items, chunk=1024, device="cpu"
    ):
        test_users, test_items = _arrays(2, test_users=test_users, test_items=test_items)
        seen_users, seen_items = _arrays(2, seen_users=seen_users, seen_items=seen_items)
        (n_runs, n_tests), n_seen = test_users.shape, len(seen_users)
        _require(1 <= n_items <= 2**23, f"n_items must be from 1 to 2**23, got {n_items}")
        _require(chunk >= 1, f"chunk must be at least 1 score row, got {chunk}")
        _require(n_tests, "there is no test pair to rank")
        _require(n_seen == n_runs, f"test pairs are of {n_runs} runs, seen pairs of {n_seen}")
        for name, ids in (("test_items", test_items), ("seen_items", seen_items)):
            most = ids.max(initial=0)
            _require(most < n_items, f"{name} must be below n_items = {n_items}, got {most}")
        self.n_items, self.device, self.shape = n_items, torch.device(device), test_users.shape
        scored = np.unique(test_users)
        place = np.full(max(scored[-1], seen_users.max(initial=0)) + 1, -1)
        place[scored] = np.arange(len(scored))
        width = max(1, chunk // n_runs)  # users of a chunk
        starts = np.arange(0, len(scored), width)

        def addresses(users, items):
            """Places of the scored users' pairs in the chunks' (runs, users, items) scores."""
            pair = np.nonzero(place[users] >= 0)  # run, column
            chunk, at = np.divmod(place[users[pair]], width)
            row = pair[0] * np.minimum(width, len(scored) - chunk * width) + at
            return (chunk * width * n_runs + row) * n_items + items[pair]

        seen = np.sort(addresses(seen_users, seen_items))
        test = addresses(test_users, test_items)
        order = np.argsort(test)
        self._order = torch.from_numpy(order)  # of the ranked pairs in the flattened (R, T)
        self._chunks = []  # (user ids, addresses of seen pairs, of test pairs, rows of test pairs)
        first = starts * n_runs * n_items  # address of each chunk
        parts = [np.split(a, np.searchsorted(a, first[1:])) for a in (seen, test[order])]
        for k, (mask, pairs) in enumerate(zip(*parts, strict=True)):
            pairs = pairs - first[k]
            arrays = scored[starts[k] :][:width], mask - first[k], pairs, pairs // n_items
            self._chunks.append([torch.from_numpy(a).to(self.device) for a in arrays])
        on_cpu = self.device.type == "cpu"
        self._block = max(1, CPU_BLOCK // n_items) if on_cpu else n_runs * width  # pairs at once

    @torch.no_grad()
    def ranks(self, catalogue_scores):
        """Rank of every test pair, float64 (R, T) on the CPU, in the order of `test_users`.

        NaN in the runs that have a NaN among their scores. ``catalogue_scores`` takes user ids,
        int64 (U,) on the device, and returns floating-point scores (R, U, n_items), higher = more
        likely. They are overwritten: return fresh scores, not a view of something kept. Only users
        with test items are asked for. Raises ValueError for scores of another shape or type.
        """
        ranks, highest, buffer = [], [], None
        for user_ids, mask, pairs, rows in self._chunks:
            scores = catalogue_scores(user_ids)
            asked, got = (self.shape[0], len(user_ids), self.n_items), tuple(scores.shape)
            told = f"catalogue scores must be floating-point of shape (R, U, n_items) = {asked}, "
            told += f"got {scores.dtype} of shape {got}"
            _require(got == asked and scores.is_floating_point(), told)
            exact = torch.promote_types(scores.dtype, torch.float32)  # half couldn't hold counts
            scores = scores.to(exact).contiguous()
            highest.append(scores.flatten(1).amax(1))  # NaN if any score is
            scores.view(-1).index_fill_(0, mask, -torch.inf)
            scores, own = scores.view(-1, self.n_items), scores.view(-1).take(pairs)
            if buffer is None:
                buffer = scores.new_empty(self._block, self.n_items)
            counts = scores.new_empty(len(rows))  # #{>} + #{>=}
            blocks = [x.split(self._block) for x in (rows, own[:, None], counts)]
            for row, score, count in zip(*blocks, strict=True):
                others = scores.index_select(0, row)
                # Comparisons written as 0.0 and 1.0: bools are several times slower to sum.
                at_least = torch.ge(others, score, out=buffer[: len(row)])
                torch.sum(at_least.add_(others.gt_(score)), 1, out=count)
            ranks.append(counts)
        result = torch.empty(len(self._order), dtype=torch.float64)
        result[self._order] = torch.cat(ranks).cpu().double()
        ranks = result.add_(1).div_(2).view(self.shape)
        ranks[torch.stack(highest).isnan().any(0).cpu()] = torch.nan
        return ranks


class Evaluator:
    """All METRICS of every run of a stack on its held-out interactions.

    Of all interactions (N,), the rows `held_out` (R, T) test each run and the items of the rows
    `seen` (R, S) rank last; items are numbered up to the largest id. M = `members` networks of the
    stack in a row make a run, which predicts their mean. `clip` has for each run (low, high), the
    range its predicted ratings are cut to, or None. `chunk` and `device` are FullRanking's.
    """

    def __init__(
        self, users, items, ratings, held_out, seen, members=1, clip=None, chunk=1024, device="cpu"
    ):
        self.users, self.items, self.ratings = users[held_out], items[held_out], ratings[held_out]
        self.members, self.device = members, device
        self.clip = [own or (-np.inf, np.inf) for own in clip or [None] * len(held_out)]
        self.size = max(1, 64 * chunk // (len(held_out) * members))  # pairs whose features fit
        pairs, chunk = (self.users, self.items, users[seen], items[seen]), max(1, chunk // members)
        self.ranking = FullRanking(int(items.max()) + 1, *pairs, chunk=chunk, device=device)

    @torch.no_grad()
    def __call__(self, net):
        """A dictionary for each run: every metric's name -> its value.

        Not finite are those of a run with a NaN among its scores, or such a predicted rating.
        ``net`` has `catalogue_scores((U,) user ids) -> (R·M, U, n_items)` and
        `ratings((R·M, T) user ids, (R·M, T) item ids) -> (R·M, T)`.
        """
        ranks, predicted = self.ranking.ranks(lambda ids: self._mean(net.catalogue_scores(ids))), []
        pairs = [torch.as_tensor(ids).split(self.size, 1) for ids in (self.users, self.items)]
        for ids in zip(*pairs, strict=True):
            ids = [part.to(self.device).repeat_interleave(self.members, 0) for part in ids]
            predicted.append(self._mean(net.ratings(*ids)).cpu())
        predicted = torch.cat(predicted, 1)
        predicted[predicted.isinf()] = torch.nan  # clipping would make it a number
        for own, clip in zip(predicted, self.clip, strict=True):
            own.clip_(*clip)
        values = ranks.numpy(), self.users, predicted.double().numpy(), self.ratings
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
            n_tests = np.bincount(users)
            self.user_ids = np.flatnonzero(n_tests)
            self.n_tests = n_tests[self.user_ids]

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
        if self.tag and not self.tag.startswith("eval/"):  # the validation part's curve is like it
            raise ValueError(f"tag is {self.tag!r}: one that begins with 'eval/' would be right")


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

    Raises ValueError for no ranks or users of another shape, ranks that aren't finite and at least
    1, users that aren't integers from 0.
    """
    ranks, users = _arrays(1, ranks=ranks, users=users)
    _require(ranks.size, "there is no rank to average")
    _require((np.isfinite(ranks) & (ranks >= 1)).all(), "ranks must be finite and at least 1")
    return HeldOut(ranks, users)


def ranking_metrics(ranks, users):
    """The metrics of ranks (T,) alone, of test items of users (T,); raises as `ranked` does."""
    return metrics(ranked(ranks, users), ("mrr", "mrr_first", "ndcg_at_10", "recall_at_10"))


def reciprocal_ranks_by_user(ranks, users):
    """Users with test items (U,), ascending, and for each what "mrr" is the mean of (U,)."""
    run = ranked(ranks, users)
    return run.user_ids, run.by_user(1 / run.ranks)


def mean_squared_error(predicted, ratings, clip=None):
    """Mean of (predicted - ratings)**2, in squared rating units, of (T,) cut to clip (low, high).

    Raises ValueError for no ratings, unequal shapes, a range upside down, and FloatingPointError
    for a rating that isn't finite.
    """
    predicted, ratings = _arrays(1, predicted=predicted, ratings=ratings)
    _require(ratings.size, "there is no rating to compare with")
    for name, values in (("predicted", predicted), ("true", ratings)):
        if n_bad := np.count_nonzero(~np.isfinite(values)):
            raise FloatingPointError(f"NaN or infinity in {n_bad} of {values.size} {name} ratings")
    low, high = clip or (-np.inf, np.inf)
    _require(low <= high, f"clip must be (low, high) with low <= high, got {clip}")
    return metrics(HeldOut(predicted=predicted.clip(low, high), ratings=ratings), ["mse"])["mse"]


def popularity_scores(items, n_items):
    """Training interactions of each item, float64 (n_items,): one ranking for all users."""
    return np.bincount(items, minlength=n_items).astype(np.float64)


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


def baselines(
    data: Interactions, split: Split, clip_ratings: bool = False, chunk: int = 1024
) -> dict[str, float]:
    """What a run must beat on its test part: "popularity_mrr", "global_mean_mse", "biases_mse".

    And popularity's other ranking metrics, "popularity_ndcg_at_10" and the like. Fitted on the
    training part. As for a run, training and validation items rank last, and with `clip_ratings`
    predictions are cut to the range of the training ratings. `chunk` is FullRanking's.
    """
    users, items, ratings = data.user_ids, data.item_ids, data.ratings
    train, test, seen = split.train, split.test, np.concatenate([split.train, split.validation])
    pairs = [ids[rows][None] for rows in (test, seen) for ids in (users, items)]
    scores = torch.from_numpy(popularity_scores(items[train], data.n_items)).float()
    full = FullRanking(data.n_items, *pairs, chunk=chunk)
    ranks = full.ranks(lambda ids: scores.repeat(1, len(ids), 1))
    columns = users[train], items[train], ratings[train]
    mean, user_bias, item_bias = fit_biases(*columns, data.n_users, data.n_items)
    by_biases = mean + user_bias[users[test]] + item_bias[items[test]]
    clip = (ratings[train].min(), ratings[train].max()) if clip_ratings else None
    ranking = ranking_metrics(ranks[0], users[test])
    return {f"popularity_{name}": value for name, value in ranking.items()} | {
        "global_mean_mse": mean_squared_error(np.full(len(test), mean), ratings[test], clip),
        "biases_mse": mean_squared_error(by_biases, ratings[test], clip),
    }


def _require(sound, told):
    if not sound:
        raise ValueError(told)


def _arrays(n_dims, **arrays):
    """NumPy arrays of one shape: int64 from 0 where the name says users or items, else float64."""
    found = []
    for name, values in arrays.items():
        values = torch.as_tensor(values).detach().cpu()
        if name.endswith(("users", "items")):
            values = values.numpy()
            sound = values.dtype.kind in "iu" or not values.size
            _require(sound, f"{name} must be integers, got {values.dtype}")
            values = values.astype(np.int64)
            least = values.min(initial=0)
            _require(least >= 0, f"{name} must be at least 0, got {least}")
        else:
            values = values.double().numpy()
        found.append(values)
    one, other = (values.shape for values in found)
    told = f"{' and '.join(arrays)} must have one shape ({'runs, pairs' if n_dims > 1 else 'T,'}), "
    _require(one == other and len(one) == n_dims, f"{told}got {one} and {other}")
    return found
