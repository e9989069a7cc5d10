"""evaluation.py against loops that share no code with it, and against values worked out by hand."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import random_split
from evaluation import (
    METRICS,
    SCORES,
    Evaluator,
    FullRanking,
    Metric,
    baselines,
    fit_biases,
    mean_squared_error,
    ranked,
    ranking_metrics,
)


def slow_ranks(scores, test, seen):
    """One run, pair by pair: scores as nested lists, test and seen as lists of (user, item)."""
    ranks = []
    for user, item in test:
        row = [-math.inf if (user, j) in seen else score for j, score in enumerate(scores[user])]
        higher, tied = sum(x > row[item] for x in row), row.count(row[item]) - 1
        ranks.append(1 + higher + tied / 2)
    return ranks


def slow_metrics(ranks, users):
    of_user, found = {}, []
    for rank, user in zip(ranks, users, strict=True):
        of_user.setdefault(user, []).append(rank)
    for own in of_user.values():
        hits, ideal = [rank for rank in own if rank <= 10], range(1, min(10, len(own)) + 1)
        gain, most = (sum(1 / math.log2(1 + rank) for rank in x) for x in (hits, ideal))
        mrr, recall = sum(1 / rank for rank in own) / len(own), len(hits) / len(own)
        found.append((mrr, 1 / min(own), min(1, gain / most), recall))
    means = [sum(values) / len(found) for values in zip(*found, strict=True)]
    return dict(zip(("mrr", "mrr_first", "ndcg_at_10", "recall_at_10"), means, strict=True))


def fixed(scores):
    """A model that knows its scores (R, users, items) by heart."""
    scores = torch.as_tensor(scores)
    return lambda user_ids: scores[:, user_ids].clone()


def stack(seed, n_runs=3, n_users=7, n_items=11, n_test=12, n_seen=30, levels=5):
    """Random scores with many ties (`levels` values), -inf among them, and a split for each run.

    The split is four arrays (R, ...): users and items of the test pairs, then of the seen pairs.
    """
    rng = np.random.default_rng(seed)
    values = np.concatenate([[-np.inf], rng.normal(size=levels)]).astype(np.float32)
    scores = rng.choice(values, (n_runs, n_users, n_items))
    pairs = np.stack([rng.permutation(n_users * n_items) for _ in range(n_runs)])
    test, seen = pairs[:, :n_test], pairs[:, n_test : n_test + n_seen]
    return scores, (test // n_items, test % n_items, seen // n_items, seen % n_items)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 500), st.sampled_from([1, 3, 13]), st.booleans())
def test_ranks_agree_with_a_slow_loop_run_by_run(data, chunk, sorted_from, on_gpu):
    n_runs, n_users, n_items = (data.draw(st.integers(1, high)) for high in (4, 6, 12))
    n_test = data.draw(st.integers(1, n_users * n_items))
    n_seen = data.draw(st.integers(0, n_users * n_items - n_test))
    seed, levels = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 20))
    scores, split = stack(seed, n_runs, n_users, n_items, n_test, n_seen, levels)
    with (
        mock.patch.dict("evaluation.SCORES", cpu=chunk),
        mock.patch("evaluation.SORTED_FROM", sorted_from),
    ):
        ranking = FullRanking(n_items, *split)
        ranking._words = None if on_gpu else ranking._words  # what runs there runs here too
        ranks = ranking.ranks(fixed(scores))
    assert ranks.dtype == torch.float64 and ranks.shape == (n_runs, n_test)
    for run, parts in enumerate(zip(*split, strict=True)):
        users, items, *seen = (part.tolist() for part in parts)
        test, seen = list(zip(users, items, strict=True)), set(zip(*seen, strict=True))
        assert ranks[run].tolist() == slow_ranks(scores[run].tolist(), test, seen)


def test_ranks_of_a_catalogue_longer_than_one_row_of_words():
    n_items = 2200
    scores = np.random.RandomState(0).permutation(n_items).astype(np.float32)[None, None]
    split = [np.array([[0, 0]]), np.array([[0, n_items - 1]]), *[np.zeros((1, 0), dtype=int)] * 2]
    ranks = FullRanking(n_items, *split).ranks(fixed(torch.from_numpy(scores)))
    assert ranks[0].tolist() == [n_items - scores[0, 0, 0], n_items - scores[0, 0, -1]]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 3, 4, 9]), st.integers(2, 60)), min_size=1, max_size=40)
)
def test_metrics_agree_with_a_slow_loop(pairs):
    users, ranks = [user for user, _ in pairs], [twice / 2 for _, twice in pairs]
    metrics, slow = ranking_metrics(torch.tensor(ranks), users), slow_metrics(ranks, users)
    assert metrics == pytest.approx(slow, abs=1e-12)
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("compared", [1, 23, 2**17])
def test_chunks_and_former_scores_change_nothing_and_bound_what_is_asked_for(compared, monkeypatch):
    scores, split = stack(3, n_users=50, n_test=200, n_seen=100)
    expected, rows = FullRanking(11, *split).ranks(fixed(scores)), []
    monkeypatch.setattr("evaluation.COMPARED", compared)

    def asked(user_ids):
        rows.append(3 * len(user_ids))
        return fixed(scores)(user_ids)

    for chunk in (1, 3, 10, 64, 149, 10**6):
        rows.clear()
        monkeypatch.setitem(SCORES, "cpu", 11 * chunk)
        ranking = FullRanking(11, *split)
        assert not ranking.ranks(fixed(-np.nan_to_num(scores))).equal(expected)
        assert ranking.ranks(asked).equal(expected) and max(rows) <= max(chunk, 3)


def test_a_copy_that_has_ranked_ranks_on_its_own():
    users, items, none = np.zeros((1, 2), int), np.array([[3, 8]]), np.zeros((1, 0), int)
    ranking = FullRanking(9, users, items, none, none)
    one, other = torch.randn(2, 1, 1, 9, generator=torch.Generator().manual_seed(0))
    ranking.ranks(lambda ids: one.clone())
    copied, expected = copy.deepcopy(ranking), ranking.ranks(lambda ids: other.clone())
    assert copied.ranks(lambda ids: other.clone()).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_float_dtype_ranks_exactly(dtype):
    # Beyond the integers that bfloat16 can hold, ties in 64s.
    scores = torch.arange(3000).div(64, rounding_mode="floor").to(dtype)[None, None]
    ranking = FullRanking(3000, [[0, 0]], [[0, 2999]], [[0]], [[2998]])
    assert ranking.ranks(fixed(scores)).tolist() == [[1 + 2935 + 63 / 2, 1 + 54 / 2]]


INF = math.inf
LEAST = torch.finfo(torch.float32).tiny  # the least that flushing denormals leaves alone
ABOVE_1 = 1 + 2**-23, 1 + 2**-52  # the next number after 1, of float32 and of float64
BY_HAND = {  # scores of a user's items, items tested, items seen, ranks
    "seen items come last": ([0.0, -1, -2, -3, -4], [2, 4], [0, 1], [1, 3]),
    "seen test items tie in the last places": ([0.0, -1, -2, -3, -4], [0, 1], [0, 1], [4.5, 4.5]),
    "the model's own -inf ties with seen": ([-INF, INF, INF, 0, 1], [0, 1, 3], [4], [4.5, 1.5, 3]),
    "the least float is no tie": ([LEAST, 0, 1, ABOVE_1[0]], [0, 1, 2, 3], [], [3, 4, 2, 1]),
    "nor the least of float64": ([0.0, ABOVE_1[1], 1], [1, 2], [], [1, 2]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_ranks_by_hand(case):
    scores, test, seen, ranks = BY_HAND[case]
    dtype = torch.float64 if "64" in case else torch.float32
    ranking = FullRanking(len(scores), [[0] * len(test)], [test], [[0] * len(seen)], [seen])
    assert ranking.ranks(fixed(torch.tensor([[scores]], dtype=dtype))).tolist() == [ranks]


def test_users_without_test_items_are_neither_scored_nor_counted(monkeypatch):
    monkeypatch.setitem(SCORES, "cpu", 8)  # a user of both runs at a time
    scores, asked = torch.arange(4.0).expand(2, 10, 4), []
    test_users = np.array([[7, 2, 7], [2, 2, 5]])
    split = test_users, [[3, 3, 2], [0, 1, 3]], [[0, 2], [9, 5]], [[3, 2], [1, 2]]
    ranks = FullRanking(4, *split).ranks(
        lambda user_ids: asked.extend(user_ids.tolist()) or scores[:, user_ids].clone()
    )
    assert sorted(asked) == [2, 5, 7] and ranks.tolist() == [[1, 1, 2], [4, 3, 1]]
    assert ranking_metrics(ranks[0], test_users[0])["mrr"] == (1 + (1 + 1 / 2) / 2) / 2
    run = ranked(ranks[0], test_users[0])
    assert run.user_ids.tolist() == [2, 7] and run.by_user(1 / run.ranks).tolist() == [1, 0.75]


def test_a_model_that_scores_everything_the_same_looks_bad():
    """It gets 1 over the mean rank of the items not seen, and popularity beats it by far."""
    rng, n_items, users = np.random.default_rng(5), 400, np.repeat(np.arange(60)[:, None], 30, 1)
    share = 1 / np.arange(1, n_items + 1)
    items = np.stack([rng.choice(n_items, 30, False, share / share.sum()) for _ in range(60)])
    parts = [x[:, own].reshape(1, -1) for own in (slice(5), slice(5, 30)) for x in (users, items)]
    ranking = FullRanking(n_items, *parts)

    def mrr_of(row):
        ranks = ranking.ranks(lambda user_ids: row.expand(1, len(user_ids), n_items).clone())
        return ranking_metrics(ranks[0], parts[0][0])["mrr"]

    constant = mrr_of(torch.full((n_items,), 0.3))
    assert constant == pytest.approx(1 / np.mean(np.arange(1, n_items - 25 + 1)))
    counts = np.bincount(parts[3][0], minlength=n_items)
    assert mrr_of(torch.from_numpy(counts).float()) > 10 * constant


def test_metrics_by_hand():
    assert ranking_metrics([1, 4, 4, 4], [0, 1, 1, 1])["mrr"] == (1 + 1 / 4) / 2  # over users
    perfect = ranking_metrics([1, 2, 3, *range(1, 13)], [0] * 3 + [1] * 12)
    harmonic = [sum(1 / k for k in range(1, n + 1)) / n for n in (3, 12)]  # MRR isn't 1
    expected = {"mrr": sum(harmonic) / 2, "mrr_first": 1, "ndcg_at_10": 1}
    assert perfect == pytest.approx(expected | {"recall_at_10": (1 + 10 / 12) / 2})
    across_the_tenth_place = [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 10]  # three in the places 9 to 11
    assert ranking_metrics(across_the_tenth_place, [0] * 11)["ndcg_at_10"] == 1


@pytest.mark.parametrize("chunk", [24, 8000])
@pytest.mark.parametrize("item", [0, 2, 5], ids=["test", "seen", "other"])
def test_a_nan_score_makes_its_runs_ranks_nan_and_no_others(item, chunk, monkeypatch):
    monkeypatch.setitem(SCORES, "cpu", chunk)
    ranking = FullRanking(8, [[3, 0]] * 3, [[0, 1]] * 3, [[3]] * 3, [[2]] * 3)
    scores = torch.zeros(3, 4, 8)
    whole = ranking.ranks(fixed(scores))
    for run, kept in ((1, [0, 2]), (0, [2])):
        scores[run, 3, item] = math.nan
        ranks = ranking.ranks(fixed(scores))
        assert ranks.isnan().all(1).tolist() == [r not in kept for r in range(3)]
        assert ranks[kept].equal(whole[kept])


def test_scores_may_be_a_transposed_view_with_gradients():
    scores, split = stack(7)
    kept = torch.nn.Parameter(torch.from_numpy(scores).permute(2, 1, 0).contiguous())
    ranks = FullRanking(11, *split).ranks(lambda users: (2 * kept[:, users]).permute(2, 1, 0))
    assert ranks.equal(FullRanking(11, *split).ranks(fixed(scores)))
    assert kept.permute(2, 1, 0).equal(torch.from_numpy(scores))


PAIRS = {"n_items": 4, "test_users": [[0, 1]], "test_items": [[0, 1]]}
PAIRS |= {"seen_users": [[0, 1]], "seen_items": [[2, 3]], "scores": torch.zeros(1, 2, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(1, 2, 3)}, r"\(1, 2, 4\), got .*\(1, 2, 3\)"),
        ({"scores": torch.zeros(2, 2, 4)}, r"\(1, 2, 4\), got .*\(2, 2, 4\)"),
        ({"scores": torch.zeros(1, 2, 4).long()}, r"floating-point .*, got torch.int64"),
        ({"test_users": [0, 1], "test_items": [0, 1]}, r"must have one shape \(runs, pairs\)"),
        ({"test_users": [0, 1]}, r"test_users and test_items must have one shape"),
        ({"test_items": [[0]]}, r"test_users and test_items must have one shape"),
        ({"seen_items": [[0]]}, r"seen_users and seen_items must have one shape"),
        ({"test_users": [[]], "test_items": [[]]}, r"no test pair"),
        ({"seen_users": [[], []], "seen_items": [[], []]}, r"of 1 runs, seen pairs of 2"),
        ({"test_items": [[0, 4]]}, r"test_items must be below n_items = 4, got 4"),
        ({"seen_items": [[4, 0]]}, r"seen_items must be below n_items = 4, got 4"),
        ({"test_users": [[0, -1]]}, r"test_users must be at least 0, got -1"),
        ({"test_users": [[0.0, 1.0]]}, r"test_users must be integers, got float"),
        ({"n_items": 0}, r"test_items must be below n_items = 0, got 1"),
    ],
)
def test_bad_pairs_and_scores_raise(change, message):
    def ranks(scores, **pairs):
        return FullRanking(**pairs).ranks(lambda user_ids: scores.clone())

    ranks(**PAIRS)
    with pytest.raises(ValueError, match=message):
        ranks(**(PAIRS | change))


def test_mse_by_hand_summed_in_float64():
    predicted, ratings = torch.tensor([1.0, 7.0, -1.0]), np.array([2, 5, 1])
    assert mean_squared_error(predicted, ratings) == 3  # (1 + 4 + 4) / 3
    assert mean_squared_error(predicted, ratings, clip=(1, 5)) == pytest.approx(1 / 3)
    predicted = torch.full((10**6,), 0.1)
    exact = (np.float64(np.float32(0.1)) - 3) ** 2
    assert mean_squared_error(predicted, np.full(10**6, 3)) == pytest.approx(exact, rel=1e-13)


NAN = math.nan
BAD_RANKS = [  # ranks, users
    ([], [], "no rank"),
    ([1, 2], [0], "one shape"),
    ([[1, 2]], [[0, 1]], "one shape"),
    ([1, 0.5], [0, 1], "at least 1"),
    ([1, NAN], [0, 1], "at least 1"),
    ([1, INF], [0, 1], "finite"),
    ([1, 2], [0, -1], "users must be at least 0"),
    ([1, 2], [0.0, 1.0], "users must be integers"),
]
BAD_RATINGS = [  # predicted, true, clip
    ([0.0] * 4, torch.zeros(4, 1), None, r"got \(4,\) and \(4, 1\)"),
    (3.5, torch.zeros(4), None, r"got \(\) and \(4,\)"),
    ([], [], None, "no rating"),
    ([3], [3], (5, 1), r"low <= high, got \(5, 1\)"),
    *(([3, bad], [3, 3], (1, 5), "1 of 2 predicted ratings") for bad in (NAN, INF, -INF)),
    *(([3, bad], [3, 3], None, "1 of 2 predicted ratings") for bad in (NAN, INF, -INF)),
    *(([3, 3], [3, bad], (1, 5), "1 of 2 true ratings") for bad in (NAN, INF, -INF)),
]


@pytest.mark.parametrize(
    ("metric", "bad"),
    [(metric, bad) for metric in (ranking_metrics, ranked) for bad in BAD_RANKS]
    + [(mean_squared_error, bad) for bad in BAD_RATINGS],
)
def test_bad_ranks_and_ratings_raise(metric, bad):
    *values, message = bad
    error = FloatingPointError if "1 of 2" in message else ValueError
    with pytest.raises(error, match=message):
        metric(*values)


class ByHeart:
    """Two runs of two members: scores and ratings (4, 6 users, 8 items) drawn once."""

    def __init__(self):
        stream = torch.Generator().manual_seed(8)
        self.scores, self.rated = torch.randn(2, 4, 6, 8, generator=stream)
        self.most = 0  # score rows asked for at once

    def catalogue_scores(self, users):
        self.most = max(self.most, 4 * len(users))
        return self.scores[:, users].clone()

    def ratings(self, users, items):
        return self.rated[torch.arange(4)[:, None], users, items]


USERS, ITEMS = np.divmod(np.random.default_rng(9).permutation(48), 8)
RATINGS = np.linspace(-1, 1, 48, dtype=np.float32)
ROWS = np.stack([np.arange(48), np.arange(48)[::-1]])  # 15 to test each run on, 25 seen
BY_HEART = USERS, ITEMS, RATINGS, ROWS[:, :15], ROWS[:, 15:40]


@pytest.mark.parametrize("chunk", [8, 64, 8192])
def test_the_evaluator_computes_every_metric_one_added_too_of_the_members_mean(chunk, monkeypatch):
    largest = Metric(lambda run: abs(run.predicted - run.ratings).max(), "eval/Largest", better=-1)
    monkeypatch.setitem(METRICS, "largest_error", largest)
    monkeypatch.setitem(SCORES, "cpu", chunk)
    net, clips = ByHeart(), [(-0.5, 0.5), None]
    results = Evaluator(*BY_HEART, members=2, clip=clips)(net)
    assert net.most <= max(chunk / 8, 4)
    for run, (result, rows, clip) in enumerate(zip(results, ROWS, clips, strict=True)):
        pairs, test = list(zip(USERS[rows].tolist(), ITEMS[rows].tolist(), strict=True)), rows[:15]
        scores, rated = (x[2 * run : 2 * run + 2].mean(0) for x in (net.scores, net.rated))
        ranks = slow_ranks(scores.tolist(), pairs[:15], set(pairs[15:40]))
        rated = rated.numpy()[USERS[test], ITEMS[test]]
        errors = (np.clip(rated, *clip) if clip else rated) - RATINGS[test]
        expected = slow_metrics(ranks, USERS[test].tolist())
        expected |= {"mse": np.mean(errors**2), "largest_error": abs(errors).max()}
        assert result == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("clip", [None, (-1, 1)])
def test_a_run_that_predicts_no_number_has_no_such_metric_and_spoils_no_other(clip):
    evaluate, net = Evaluator(*BY_HEART, members=2, clip=[clip] * 2), ByHeart()
    whole = evaluate(ByHeart())
    net.scores[1, 2] = math.nan
    net.rated[3] = math.inf
    first, second = evaluate(net)
    assert math.isnan(first["mrr"]) and first["mse"] == whole[0]["mse"]
    assert second["mrr"] == whole[1]["mrr"] and not math.isfinite(second["mse"])


@pytest.mark.parametrize("clip", [False, True])
def test_baselines_are_those_of_loops_and_of_the_normal_equations(planted, clip):
    split = random_split(planted, 3, 0.1, validation_fraction=0.1)
    users, items, ratings = planted.user_ids, planted.item_ids, planted.ratings.astype(float)
    train, test = split.train, split.test
    counts = [int((items[train] == item).sum()) for item in range(planted.n_items)]
    pairs = list(zip(users.tolist(), items.tolist(), strict=True))
    seen = {pairs[row] for part in (train, split.validation) for row in part}
    ranks = slow_ranks([counts] * planted.n_users, [pairs[row] for row in test], seen)

    sides = np.hstack([np.eye(planted.n_users)[users], np.eye(planted.n_items)[items]])
    ridge = np.repeat([5.61, 1.72], [planted.n_users, planted.n_items])
    mean, known = ratings[train].mean(), sides[train]
    biases = np.linalg.solve(known.T @ known + np.diag(ridge), known.T @ (ratings[train] - mean))
    fitted = fit_biases(users[train], items[train], ratings[train], 120, 150, rounds=300)
    assert np.hstack(fitted[1:]) == pytest.approx(biases, abs=1e-9) and fitted[0] == mean

    predicted = [np.full(len(test), mean), mean + sides[test] @ biases]
    if clip:
        predicted = [np.clip(p, ratings[train].min(), ratings[train].max()) for p in predicted]
    found = baselines(planted, split, clip_ratings=clip)
    ranking = slow_metrics(ranks, users[test].tolist())
    expected = {f"popularity_{name}": value for name, value in ranking.items()}
    for name, p in zip(("global_mean_mse", "biases_mse"), predicted, strict=True):
        expected[name] = np.mean((p - ratings[test]) ** 2)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_metrics_tag_begins_with_eval_or_its_validation_curve_would_be_the_same():
    with pytest.raises(ValueError, match="tag is 'Hits'"):
        Metric(None, tag="Hits")
