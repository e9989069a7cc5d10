"""Scores in, numbers out: full-catalogue ranks, MRR, NDCG@10, Recall@10 and MSE.

Nothing here samples candidates: a test item competes with every item of the catalogue. Sampled
metrics order models differently (Krichene and Rendle, "On Sampled Metrics for Item
Recommendation", KDD 2020).

    evaluate = Evaluator(users, items, ratings, held_out, seen)    # once
    evaluate(net)[0]["mrr"]                                        # each epoch; run 0
"""

import numpy as np
import torch

CUTOFF = 10  # NDCG and recall look at the first ten ranks
CPU_BLOCK = 2**17  # scores compared at a time: twice 512 KiB of float32 stay in the L2 cache


class NonFinite(FloatingPointError):
    """Some runs' predictions are no numbers: `runs` says of each which, by its place."""

    def __init__(self, runs):
        self.runs = runs
        kinds = " and ".join(dict.fromkeys(runs.values()))
        super().__init__(f"NaN among the {kinds} of run(s) {sorted(runs)}")


class FullRanking:
    """Ranks of the test items of a stack of R runs, each run with a split of its own.

    The rank of test item i of user u, among all `n_items` items j of the catalogue, is

        rank = (1 + #{j: s_uj > s_ui} + #{j: s_uj >= s_ui}) / 2,

    one plus the items scored higher plus half the other items scored the same: tied items share
    the average of the places they fill (`scipy.stats.rankdata(method="average")` of -s), so a
    model gains nothing by scoring everything the same. Seen items have score -inf: they come
    last, tied with each other and with whatever the model itself puts at -inf. A test item that
    is also listed as seen is ranked as seen.

    Args:
        n_items: size of the catalogue, at most 2**23 (counts are summed in float32).
        test_users, test_items: integers (R, T), the pairs to rank, from 0.
        seen_users, seen_items: integers (R, S), the pairs that rank last: training pairs, and
            at test the validation pairs too. S may be 0.
        chunk: most score rows (runs x users) asked for at once, though never less than one user
            of every run. Peak memory is about three times chunk x n_items scores (on the CPU
            little more than one), besides 8 bytes per seen and 24 per test pair.
        device: where the scores are.

    Raises:
        ValueError: arrays that aren't integers of shapes (R, T) and (R, S), no test pair, ids
            out of range, sizes below 1.
    """

    def __init__(
        self, n_items, test_users, test_items, seen_users, seen_items, chunk=1024, device="cpu"
    ):
        if not 1 <= n_items <= 2**23:
            raise ValueError(f"n_items must be from 1 to 2**23, got {n_items}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 score row, got {chunk}")
        test_users, test_items = _pairs("test", test_users, test_items, n_items)
        seen_users, seen_items = _pairs("seen", seen_users, seen_items, n_items)
        if test_users.size == 0:
            raise ValueError("there is no test pair to rank")
        if len(seen_users) != len(test_users):
            raise ValueError(
                f"test pairs are of {len(test_users)} runs, seen pairs of {len(seen_users)}"
            )
        self.n_items, self.device, self.shape = n_items, torch.device(device), test_users.shape
        n_runs, width = len(test_users), max(1, chunk // len(test_users))  # users of a chunk
        scored = np.unique(test_users)
        starts = np.arange(0, len(scored), width)
        widths = np.minimum(width, len(scored) - starts)
        place = np.full(max(scored[-1], seen_users.max(initial=0)) + 1, -1)
        place[scored] = np.arange(len(scored))

        # A pair's address: its place in the flattened (runs, users, items) scores of its chunk.
        # Chunk c holds the addresses from c * stride on.
        stride = n_runs * width * n_items
        bounds = np.arange(len(starts) + 1) * stride

        def addresses(users, items):  # of the pairs whose user is scored: (pairs,)
            run, column = np.nonzero(place[users] >= 0)
            at = place[users[run, column]]
            chunk = at // width
            row = run * widths[chunk] + at % width
            return chunk * stride + row * n_items + items[run, column]

        seen = np.sort(addresses(seen_users, seen_items))
        test = addresses(test_users, test_items)
        order = np.argsort(test)
        test = test[order]
        self._order = torch.from_numpy(order)  # of the ranked pairs in the flattened (R, T)
        self._chunks = []  # (user ids, addresses of seen pairs, of test pairs, rows of test pairs)
        seen_at, test_at = np.searchsorted(seen, bounds), np.searchsorted(test, bounds)
        for c, start in enumerate(starts):
            mask = seen[seen_at[c] : seen_at[c + 1]] - bounds[c]
            pairs = test[test_at[c] : test_at[c + 1]] - bounds[c]
            arrays = scored[start : start + width], mask, pairs, pairs // n_items
            self._chunks.append([torch.from_numpy(a).to(self.device) for a in arrays])
        self._block = max(1, CPU_BLOCK // n_items)  # test pairs compared at once
        if self.device.type != "cpu":
            self._block = n_runs * width

    @torch.no_grad()
    def ranks(self, catalogue_scores):
        """Rank of every test pair, float64 (R, T) on the CPU, in the order of `test_users`.

        Args:
            catalogue_scores: `catalogue_scores(user_ids)` takes int64 (U,) on the device and
                returns floating-point scores (R, U, n_items), higher = more likely. They are
                overwritten: return fresh scores, not a view of something kept. Only users with
                test items in some run are asked for.

        Raises:
            FloatingPointError: a NaN among the scores of a run; the message names the run.
            ValueError: scores that aren't floating-point of shape (R, U, n_items).
        """
        ranks, highest, buffer = [], [], None
        for user_ids, mask, pairs, rows in self._chunks:
            scores = catalogue_scores(user_ids)
            expected = (self.shape[0], len(user_ids), self.n_items)
            if scores.shape != expected or not scores.is_floating_point():
                raise ValueError(
                    f"catalogue scores must be floating-point of shape (R, U, n_items) = "
                    f"{expected}, got {scores.dtype} of shape {tuple(scores.shape)}"
                )
            if scores.dtype != torch.float64:
                scores = scores.float()  # half precision couldn't hold the counts
            scores = scores.contiguous()
            highest.append(scores.flatten(1).amax(1))  # NaN if any score is
            scores.view(-1).index_fill_(0, mask, -torch.inf)
            scores, own = scores.view(-1, self.n_items), scores.view(-1).take(pairs)
            if buffer is None:
                buffer = scores.new_empty(self._block, self.n_items)
            counts = scores.new_empty(len(rows))  # #{>} + #{>=}
            for row, score, count in zip(
                *(x.split(self._block) for x in (rows, own[:, None], counts)), strict=True
            ):
                others = scores.index_select(0, row)
                # Comparisons written as 0.0 and 1.0: bools are several times slower to sum.
                at_least = torch.ge(others, score, out=buffer[: len(row)])
                torch.sum(at_least.add_(others.gt_(score)), 1, out=count)
            ranks.append(counts)
        has_nan = torch.stack(highest).isnan().any(0).nonzero().flatten().tolist()
        if has_nan:
            raise NonFinite(dict.fromkeys(has_nan, "catalogue scores"))
        result = torch.empty(self.shape[0] * self.shape[1], dtype=torch.float64)
        result[self._order] = torch.cat(ranks).cpu().double()
        return result.add_(1).div_(2).view(self.shape)


class Evaluator:
    """All metrics of every run of a stack on its held-out interactions.

    Args:
        users, items, ratings: (N,) all interactions; items are numbered up to the largest id.
        held_out: (R, T) the rows of these to test each run on.
        seen: (R, S) the rows whose items rank last.
        members: M networks of the stack in a row make a run, which predicts their mean.
        clip: for each run (low, high), the range its predicted ratings are cut to, or None.
        chunk, device: as for FullRanking.
    """

    def __init__(
        self,
        users,
        items,
        ratings,
        held_out,
        seen,
        members=1,
        clip=None,
        chunk=1024,
        device="cpu",
    ):
        self.users, self.items, self.ratings = users[held_out], items[held_out], ratings[held_out]
        self.members, self.chunk, self.device = members, chunk, device
        self.clip = clip or [None] * len(held_out)
        pairs = self.users, self.items, users[seen], items[seen]
        self.ranking = FullRanking(
            int(items.max()) + 1, *pairs, chunk=max(1, chunk // members), device=device
        )

    @torch.no_grad()
    def __call__(self, net):
        """A dictionary for each run: ranking_metrics' four and "mse", in squared rating units.

        Args:
            net: with `catalogue_scores((U,) user ids) -> (R·M, U, n_items)` and
                `ratings((R·M, T) user ids, (R·M, T) item ids) -> (R·M, T)`.

        Raises:
            NonFinite: naming every run with a NaN score or a rating that isn't finite.
        """
        broken = {}
        try:
            ranks = self.ranking.ranks(lambda ids: self._mean(net.catalogue_scores(ids)))
        except NonFinite as error:
            broken = error.runs
        runs, n_pairs = self.users.shape
        size = max(1, 64 * self.chunk // (runs * self.members))  # pairs whose features fit
        predicted = []
        for start in range(0, n_pairs, size):
            ids = [
                torch.as_tensor(part[:, start : start + size], device=self.device)
                for part in (self.users, self.items)
            ]
            ids = [part.repeat_interleave(self.members, 0) for part in ids]
            predicted.append(self._mean(net.ratings(*ids)).cpu())
        predicted = torch.cat(predicted, 1)
        infinite = (~predicted.isfinite()).any(1).nonzero().flatten().tolist()
        if broken := dict.fromkeys(infinite, "predicted ratings") | broken:
            raise NonFinite(broken)
        return [
            ranking_metrics(ranks[r], self.users[r])
            | {"mse": mean_squared_error(predicted[r], self.ratings[r], self.clip[r])}
            for r in range(runs)
        ]

    def _mean(self, values):
        """(R·M, ...) -> (R, ...), over the members."""
        return values if self.members == 1 else values.unflatten(0, (-1, self.members)).mean(1)


def ranking_metrics(ranks, users):
    """Four metrics of one run, each a mean over the users that have test items.

    With r_1 <= r_2 <= ... the ranks of the n_u test items of user u,

        mrr           (1 / n_u) sum_k 1 / r_k        the report's, over all test items
        mrr_first     1 / r_1                        the usual one, of the first hit
        ndcg_at_10    sum_{k: r_k <= 10} 1 / log2(1 + r_k)  /  its value for ranks 1, 2, ..., n_u
        recall_at_10  #{k: r_k <= 10} / n_u

    mrr: `minhtcai/multitask-recsys` (GitHub). NDCG: Järvelin and Kekäläinen, "Cumulated
    Gain-based Evaluation of IR Techniques", TOIS 2002, binary gain; cut at 1, which only ties
    across the tenth place can exceed.

    Args:
        ranks: (T,), from 1, of one run as `FullRanking.ranks` gives them.
        users: integers (T,), whose test item each is.

    Returns:
        dict of four floats in (0, 1] or, at 10, [0, 1].

    Raises:
        ValueError: no pair, shapes that differ, a rank that isn't finite and at least 1, users
            that aren't integers from 0.
    """
    ranks, users = _checked_ranks(ranks, users)
    n_tests = np.bincount(users)
    has_tests = n_tests > 0
    best = np.zeros(len(n_tests))
    np.maximum.at(best, users, 1 / ranks)
    hits = ranks <= CUTOFF
    n_hits = np.bincount(users, hits)
    gains = np.bincount(users, hits / np.log2(1 + ranks))
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, CUTOFF + 1)))
    n_tests = n_tests[has_tests]
    ndcg = gains[has_tests] / ideal[np.minimum(n_tests, CUTOFF) - 1]
    return {
        "mrr": float(reciprocal_ranks_by_user(ranks, users)[1].mean()),
        "mrr_first": float(best[has_tests].mean()),
        "ndcg_at_10": float(np.minimum(ndcg, 1).mean()),
        "recall_at_10": float((n_hits[has_tests] / n_tests).mean()),
    }


def reciprocal_ranks_by_user(ranks, users):
    """Mean reciprocal rank of each user, (1 / n_u) sum_k 1 / r_k: what `mrr` is the mean of.

    Args and errors are those of `ranking_metrics`.

    Returns:
        user ids that have test items, int64 (U,), ascending; their values, float64 (U,).
    """
    ranks, users = _checked_ranks(ranks, users)
    n_tests = np.bincount(users)
    user_ids = np.flatnonzero(n_tests)
    return user_ids, np.bincount(users, 1 / ranks)[user_ids] / n_tests[user_ids]


def mean_squared_error(predicted, ratings, clip=None):
    """Mean of (predicted - ratings)**2, in squared rating units, summed in float64.

    Args:
        predicted, ratings: equal shapes, (T,) as a rule.
        clip: None, or (low, high), the range that predictions are cut to first.

    Raises:
        ValueError: shapes that differ (nothing broadcasts), no rating, a range upside down.
        FloatingPointError: NaN or infinity in either.
    """
    predicted, ratings = _float64(predicted), _float64(ratings)
    if predicted.shape != ratings.shape:
        raise ValueError(f"predictions have shape {predicted.shape}, ratings {ratings.shape}")
    if ratings.size == 0:
        raise ValueError("there is no rating to compare with")
    for name, values in (("predicted", predicted), ("true", ratings)):
        n_bad = np.count_nonzero(~np.isfinite(values))
        if n_bad:
            raise FloatingPointError(f"NaN or infinity in {n_bad} of {values.size} {name} ratings")
    if clip is not None:
        low, high = clip
        if not low <= high:
            raise ValueError(f"clip must be (low, high) with low <= high, got ({low}, {high})")
        predicted = predicted.clip(low, high)
    return float(np.mean((predicted - ratings) ** 2))


def _float64(values):
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _ids(name, values):
    values = torch.as_tensor(values).detach().cpu().numpy()
    if values.dtype.kind not in "iu" and values.size:
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    values = values.astype(np.int64)
    if values.size and values.min() < 0:
        raise ValueError(f"{name} must be at least 0, got {values.min()}")
    return values


def _pairs(kind, users, items, n_items):
    users, items = _ids(f"{kind}_users", users), _ids(f"{kind}_items", items)
    if users.ndim != 2 or users.shape != items.shape:
        raise ValueError(
            f"{kind}_users and {kind}_items must have one shape (runs, pairs), "
            f"got {users.shape} and {items.shape}"
        )
    if items.max(initial=0) >= n_items:
        raise ValueError(f"{kind}_items must be below n_items = {n_items}, got {items.max()}")
    return users, items


def _checked_ranks(ranks, users):
    ranks, users = _float64(ranks), _ids("users", users)
    if ranks.ndim != 1 or ranks.shape != users.shape:
        raise ValueError(
            f"ranks and users must have one shape (T,), got {ranks.shape} and {users.shape}"
        )
    if ranks.size == 0:
        raise ValueError("there is no rank to average")
    if not (np.isfinite(ranks) & (ranks >= 1)).all():
        raise ValueError("ranks must be finite and at least 1")
    return ranks, users


class Metric:
    def __init__(self, tag):
        self.tag = tag


METRICS = {"mrr": Metric("eval/Mean Reciprocal Rank"), "mse": Metric("eval/MSE")}
