"""evaluation.py against loops that share no code with it, and against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from evaluation import (
    FullRanking,
    mean_squared_error,
    ranking_metrics,
    reciprocal_ranks_by_user,
)


def slow_ranks(scores, test, seen):
    """One run, pair by pair: scores as nested lists, test and seen as lists of (user, item)."""
    ranks = []
    for user, item in test:
        row = [
            -math.inf if (user, other) in seen else score
            for other, score in enumerate(scores[user])
        ]
        higher = sum(row[other] > row[item] for other in range(len(row)))
        tied = sum(row[other] == row[item] for other in range(len(row)) if other != item)
        ranks.append(1 + higher + tied / 2)
    return ranks


def slow_metrics(ranks, users):
    of_user = {}
    for rank, user in zip(ranks, users, strict=True):
        of_user.setdefault(user, []).append(rank)
    mrr, first, ndcg, recall = [], [], [], []
    for own in of_user.values():
        mrr.append(sum(1 / rank for rank in own) / len(own))
        first.append(1 / min(own))
        gain = sum(1 / math.log2(1 + rank) for rank in own if rank <= 10)
        ideal = sum(1 / math.log2(1 + k) for k in range(1, min(10, len(own)) + 1))
        ndcg.append(min(1, gain / ideal))
        recall.append(len([rank for rank in own if rank <= 10]) / len(own))
    lists = {"mrr": mrr, "mrr_first": first, "ndcg_at_10": ndcg, "recall_at_10": recall}
    return {name: sum(values) / len(values) for name, values in lists.items()}


def fixed(scores):
    """A model that knows its scores (R, users, items) by heart."""
    scores = torch.as_tensor(scores)
    return lambda user_ids: scores[:, user_ids].clone()


def split_at_random(rng, n_runs, n_users, n_items, n_test, n_seen):
    """Disjoint test and seen pairs, another draw for each run: four arrays (R, ...)."""
    pairs = np.stack([rng.permutation(n_users * n_items) for _ in range(n_runs)])
    test, seen = pairs[:, :n_test], pairs[:, n_test : n_test + n_seen]
    return test // n_items, test % n_items, seen // n_items, seen % n_items


def stack(seed, n_runs=3, n_users=7, n_items=11, n_test=12, n_seen=30, levels=5):
    """Random scores with many ties (`levels` values), -inf among them, and random splits."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[-np.inf], rng.normal(size=levels)]).astype(np.float32)
    scores = rng.choice(values, (n_runs, n_users, n_items))
    return scores, split_at_random(rng, n_runs, n_users, n_items, n_test, n_seen)


@st.composite
def stacks(draw):
    n_runs, n_users, n_items = (draw(st.integers(1, high)) for high in (4, 6, 12))
    n_pairs = n_users * n_items
    n_test = draw(st.integers(1, n_pairs))
    n_seen = draw(st.integers(0, n_pairs - n_test))
    seed, levels = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 20))
    return stack(seed, n_runs, n_users, n_items, n_test, n_seen, levels)


@settings(max_examples=150, deadline=None)
@given(stacks(), st.integers(1, 40))
def test_ranks_agree_with_a_slow_loop_run_by_run(case, chunk):
    scores, split = case
    test_users, test_items, seen_users, seen_items = split
    ranks = FullRanking(scores.shape[2], *split, chunk=chunk).ranks(fixed(scores))
    assert ranks.dtype == torch.float64 and ranks.shape == test_users.shape
    for run in range(len(scores)):
        test = list(zip(test_users[run].tolist(), test_items[run].tolist(), strict=True))
        seen = set(zip(seen_users[run].tolist(), seen_items[run].tolist(), strict=True))
        assert ranks[run].tolist() == slow_ranks(scores[run].tolist(), test, seen)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 3, 4, 9]), st.integers(2, 60)), min_size=1, max_size=40)
)
def test_metrics_agree_with_a_slow_loop(pairs):
    users, ranks = [user for user, _ in pairs], [twice / 2 for _, twice in pairs]
    metrics, slow = ranking_metrics(torch.tensor(ranks), users), slow_metrics(ranks, users)
    assert metrics == pytest.approx(slow, abs=1e-12)
    assert all(type(value) is float for value in metrics.values())


def test_ranks_are_scipys_average_ranks():
    scores, split = stack(1)
    ranks = FullRanking(11, *split).ranks(fixed(scores))
    scores[np.arange(3)[:, None], split[2], split[3]] = -np.inf
    expected = rankdata(-scores, method="average", axis=2)
    assert ranks.numpy() == pytest.approx(expected[np.arange(3)[:, None], split[0], split[1]])


def test_a_run_ranks_the_same_alone_and_in_a_stack():
    scores, split = stack(2)
    together = FullRanking(11, *split).ranks(fixed(scores))
    for run in range(3):
        own = FullRanking(11, *(pairs[run : run + 1] for pairs in split))
        assert own.ranks(fixed(scores[run : run + 1])).equal(together[run : run + 1])


@pytest.mark.parametrize("cpu_block", [1, 23, 2**17])
def test_chunk_sizes_change_nothing_and_bound_what_is_asked_for(cpu_block, monkeypatch):
    scores, split = stack(3, n_users=50, n_test=200, n_seen=100)
    expected = FullRanking(11, *split).ranks(fixed(scores))
    monkeypatch.setattr("evaluation.CPU_BLOCK", cpu_block)
    for chunk in (1, 3, 10, 64, 149, 10**6):
        rows = []

        def asked(user_ids, rows=rows):
            rows.append(3 * len(user_ids))
            return fixed(scores)(user_ids)

        assert FullRanking(11, *split, chunk=chunk).ranks(asked).equal(expected)
        assert max(rows) <= max(chunk, 3)


def test_a_prepared_ranking_serves_every_epoch():
    scores, split = stack(4)
    ranking = FullRanking(11, *split)
    first = ranking.ranks(fixed(scores))
    assert not ranking.ranks(fixed(-np.nan_to_num(scores))).equal(first)
    assert ranking.ranks(fixed(scores)).equal(first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_float_dtype_ranks_exactly(dtype):
    n_items = 3000  # beyond the integers that bfloat16 and float16 can hold
    scores = torch.arange(n_items).div(64, rounding_mode="floor").to(dtype)  # ties in 64s
    ranks = FullRanking(n_items, [[0, 0]], [[0, 2999]], [[0]], [[2998]]).ranks(
        fixed(scores[None, None])
    )
    assert ranks.tolist() == [[1 + 2935 + 63 / 2, 1 + 54 / 2]]


def test_scores_may_be_a_transposed_view():
    scores, split = stack(7)
    kept = torch.from_numpy(scores).permute(2, 1, 0).contiguous()  # (items, users, R)
    ranks = FullRanking(11, *split).ranks(lambda user_ids: kept[:, user_ids].permute(2, 1, 0))
    assert ranks.equal(FullRanking(11, *split).ranks(fixed(scores)))


def test_scores_that_differ_by_the_least_float_are_no_tie():
    least = torch.finfo(torch.float32).tiny  # the least that flushing denormals leaves alone
    above = torch.tensor(1.0).nextafter(torch.tensor(2.0))
    scores = torch.tensor([[[least, 0.0, 1.0, above]]])
    split = [[0, 0, 0, 0]], [[0, 1, 2, 3]], [[]], [[]]
    assert FullRanking(4, *split).ranks(fixed(scores)).tolist() == [[3, 4, 2, 1]]
    scores = 1 + torch.tensor([[[1, 0, 3, 2]]]).double() * 2**-52
    assert FullRanking(4, *split).ranks(fixed(scores)).tolist() == [[3, 4, 1, 2]]


def test_mrr_puts_seen_items_last():
    best_first = fixed(-torch.arange(5.0)[None, None])
    ranks = FullRanking(5, [[0, 0]], [[2, 4]], [[0, 0]], [[0, 1]]).ranks(best_first)
    assert ranks.tolist() == [[1, 3]]
    assert ranking_metrics(ranks[0], [0, 0])["mrr"] == pytest.approx((1 + 1 / 3) / 2)


def test_seen_items_tie_with_each_other_in_the_last_places():
    scores = fixed(-torch.arange(5.0)[None, None])
    ranks = FullRanking(5, [[0, 0]], [[0, 1]], [[0, 0]], [[0, 1]]).ranks(scores)
    assert ranks.tolist() == [[4.5, 4.5]]


def test_infinite_scores_of_the_model_rank_honestly():
    inf = torch.inf
    scores = fixed(torch.tensor([[[-inf, inf, inf, 0.0, 1.0]]]))
    ranks = FullRanking(5, [[0, 0, 0]], [[0, 1, 3]], [[0]], [[4]]).ranks(scores)
    assert ranks.tolist() == [[4.5, 1.5, 3]]  # item 0 ties with the seen item 4


def test_users_without_test_items_are_neither_scored_nor_counted():
    asked = []

    def scores(user_ids):
        asked.extend(user_ids.tolist())
        return torch.arange(4.0).expand(2, len(user_ids), 4).clone()

    test_users = np.array([[7, 2, 7], [2, 2, 5]])
    split = test_users, [[3, 3, 2], [0, 1, 3]], [[0, 2], [9, 5]], [[3, 2], [1, 2]]
    ranks = FullRanking(4, *split, chunk=2).ranks(scores)
    assert asked == [2, 5, 7]
    assert ranks.tolist() == [[1, 1, 2], [4, 3, 1]]
    assert ranking_metrics(ranks[0], test_users[0])["mrr"] == (1 + (1 + 1 / 2) / 2) / 2
    user_ids, values = reciprocal_ranks_by_user(ranks[0], test_users[0])
    assert user_ids.tolist() == [2, 7] and values.tolist() == [1, 0.75]


def test_a_model_that_scores_everything_the_same_looks_bad():
    """It gets 1 over the mean rank of the items not seen, and popularity beats it by far."""
    rng = np.random.default_rng(5)
    n_users, n_items = 60, 400
    popularity = 1 / np.arange(1, n_items + 1)
    share = popularity / popularity.sum()
    items = np.stack([rng.choice(n_items, 30, False, share) for _ in range(n_users)])
    users = np.repeat(np.arange(n_users), 30).reshape(n_users, 30)
    test_users, test_items = users[None, :, :5].reshape(1, -1), items[None, :, :5].reshape(1, -1)
    seen_users, seen_items = users[None, :, 5:].reshape(1, -1), items[None, :, 5:].reshape(1, -1)
    ranking = FullRanking(n_items, test_users, test_items, seen_users, seen_items)

    def mrr_of(row):
        ranks = ranking.ranks(lambda user_ids: row.expand(1, len(user_ids), n_items).clone())
        return ranking_metrics(ranks[0], test_users[0])["mrr"]

    constant = mrr_of(torch.full((n_items,), 0.3))
    assert constant == pytest.approx(1 / np.mean(np.arange(1, n_items - 25 + 1)))
    counts = np.bincount(seen_items[0], minlength=n_items)
    assert mrr_of(torch.from_numpy(counts).float()) > 10 * constant


def test_a_perfect_model_gets_the_mean_of_the_first_reciprocals():
    """n test items in the first n places: MRR is (1 + 1/2 + ... + 1/n) / n, not 1."""
    scores = torch.zeros(1, 2, 30)
    scores[0, 0, :3], scores[0, 1, :12] = 1 + torch.rand(3), 1 + torch.rand(12)
    users = np.repeat([0, 1], [3, 12])
    items = np.concatenate([np.arange(3), np.arange(12)])
    ranks = FullRanking(30, users[None], items[None], [[]], [[]]).ranks(fixed(scores))
    harmonic = [sum(1 / k for k in range(1, n + 1)) / n for n in (3, 12)]
    expected = {"mrr": sum(harmonic) / 2, "mrr_first": 1, "ndcg_at_10": 1}
    expected["recall_at_10"] = (1 + 10 / 12) / 2
    assert ranking_metrics(ranks[0], users) == pytest.approx(expected)


def test_mrr_is_a_mean_over_users_not_over_pairs():
    assert ranking_metrics([1, 4, 4, 4], [0, 1, 1, 1])["mrr"] == (1 + 1 / 4) / 2


def test_ties_across_the_tenth_place_keep_ndcg_at_most_one():
    ranks = [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 10]  # three tied in the places 9, 10, 11
    assert ranking_metrics(ranks, [0] * 11)["ndcg_at_10"] == 1


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("at", ["test", "seen", "other"])
def test_nan_raises_and_names_the_run(at, chunk):
    scores, split = stack(6)
    test_users, test_items, seen_users, seen_items = split
    user = test_users[1, 4]
    row = set(range(11)) - set(test_items[1][test_users[1] == user])
    seen = set(seen_items[1][seen_users[1] == user])
    item = {"test": {test_items[1, 4]}, "seen": seen, "other": row - seen}[at].pop()
    scores[1, user, item] = np.nan
    with pytest.raises(FloatingPointError, match=r"run\(s\) \[1\]$"):
        FullRanking(11, *split, chunk=chunk).ranks(fixed(scores))
    scores[0, user, item] = np.nan
    with pytest.raises(FloatingPointError, match=r"run\(s\) \[0, 1\]$"):
        FullRanking(11, *split, chunk=chunk).ranks(fixed(scores))


def test_scores_of_a_model_with_gradients_are_ranked():
    weight = torch.nn.Parameter(torch.arange(4.0))
    ranking = FullRanking(4, [[0]], [[1]], [[0]], [[3]])
    assert ranking.ranks(lambda user_ids: (2 * weight)[None, None]).tolist() == [[2]]
    assert weight.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "scores", [torch.zeros(1, 1, 3), torch.zeros(2, 1, 4), torch.zeros(1, 1, 4).long()]
)
def test_scores_of_a_wrong_shape_or_dtype_raise(scores):
    with pytest.raises(ValueError, match=r"\(1, 1, 4\)"):
        FullRanking(4, [[0]], [[1]], [[0]], [[3]]).ranks(lambda user_ids: scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
        ({"chunk": 0}, r"chunk must be at least 1"),
        ({"n_items": 0}, r"n_items must be from 1"),
    ],
)
def test_bad_pairs_raise(change, message):
    good = {"n_items": 4, "test_users": [[0, 1]], "test_items": [[0, 1]]}
    good |= {"seen_users": [[0, 1]], "seen_items": [[2, 3]]}
    FullRanking(**good)
    with pytest.raises(ValueError, match=message):
        FullRanking(**(good | change))


@pytest.mark.parametrize("metric", [ranking_metrics, reciprocal_ranks_by_user])
@pytest.mark.parametrize(
    ("ranks", "users", "message"),
    [
        ([], [], "no rank"),
        ([1, 2], [0], "one shape"),
        ([[1, 2]], [[0, 1]], "one shape"),
        ([1, 0.5], [0, 1], "at least 1"),
        ([1, math.nan], [0, 1], "at least 1"),
        ([1, math.inf], [0, 1], "finite"),
        ([1, 2], [0, -1], "users must be at least 0"),
        ([1, 2], [0.0, 1.0], "users must be integers"),
    ],
)
def test_bad_ranks_raise(metric, ranks, users, message):
    with pytest.raises(ValueError, match=message):
        metric(ranks, users)


def test_mse_by_hand():
    predicted, ratings = torch.tensor([1.0, 7.0, -1.0]), np.array([2, 5, 1])
    assert mean_squared_error(predicted, ratings) == 3  # (1 + 4 + 4) / 3
    assert mean_squared_error(predicted, ratings, clip=(1, 5)) == pytest.approx(1 / 3)


def test_mse_is_summed_in_float64():
    predicted = torch.full((10**6,), 0.1)
    exact = (np.float64(np.float32(0.1)) - 3) ** 2
    assert mean_squared_error(predicted, np.full(10**6, 3)) == pytest.approx(exact, rel=1e-13)


def test_mse_does_not_broadcast():
    with pytest.raises(ValueError, match=r"got \(4,\) and \(4, 1\)"):
        mean_squared_error(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"got \(\) and \(4,\)"):
        mean_squared_error(3.5, torch.zeros(4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip", [None, (1, 5)])
def test_mse_of_nan_or_infinity_raises(bad, clip):
    with pytest.raises(FloatingPointError, match="1 of 2 predicted ratings"):
        mean_squared_error([3, bad], [3, 3], clip)
    with pytest.raises(FloatingPointError, match="1 of 2 true ratings"):
        mean_squared_error([3, 3], [3, bad], clip)


def test_mse_of_nothing_or_a_range_upside_down_raises():
    with pytest.raises(ValueError, match="no rating"):
        mean_squared_error([], [])
    with pytest.raises(ValueError, match=r"low <= high, got \(5, 1\)"):
        mean_squared_error([3], [3], clip=(5, 1))
