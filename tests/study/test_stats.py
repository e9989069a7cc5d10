"""study/stats.py: the statistics against oracles of their own, and numbers as text."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from study.stats import (
    Estimate,
    bootstrap_interval,
    effect_sizes,
    holm,
    hypervolume,
    markdown_table,
    paired_difference,
    pareto_front,
    show,
    signed_rank_test,
    t_test,
)


def test_holm_is_the_step_down_procedure_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    waiting = holm([np.nan, 0.01, np.nan, 0.2])  # a family of four all the same
    assert waiting == pytest.approx([np.nan, 0.04, np.nan, 0.6], nan_ok=True)


@pytest.mark.parametrize("n", [10, 40])
def test_the_bootstrap_interval_covers_a_known_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(1).normal(2.0, 1.0, (1000, n))
    intervals = np.array([bootstrap_interval(sample) for sample in samples])
    covered = ((intervals[:, 0] < 2.0) & (intervals[:, 1] > 2.0)).mean()
    assert 0.935 < covered < 0.965  # percentiles at 2.5% and 97.5% cover 0.90 and 0.93
    assert bootstrap_interval(samples[0]) == tuple(intervals[0])  # the same every time


def test_intervals_of_the_mean_are_scipys_and_of_one_value_there_are_none():
    sample = np.random.default_rng(2).normal(5, 1, 200)
    expected = scipy_stats.ttest_1samp(sample, 0).confidence_interval()
    assert t_test(sample)[:2] == pytest.approx(expected)
    assert bootstrap_interval(sample) == pytest.approx(expected, abs=0.02)
    assert np.isnan([t_test(sample[:1])[:2], bootstrap_interval(sample[:1])]).all()


def test_the_corrected_t_test_holds_its_level_where_values_correlate_by_the_overlap():
    rng = np.random.default_rng(4)
    common, own = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 20))
    rejected = []
    for rho in (0.0, 0.25):
        tests = np.array([t_test(x, rho) for x in 0.5 * common + 0.75**0.5 * own])
        assert ((tests[:, 2] < 0.05) == (tests[:, :2].prod(1) > 0)).all()  # 0 is outside
        rejected.append((tests[:, 2] < 0.05).mean())
    assert rejected[0] > 0.4 and 0.04 < rejected[1] < 0.06


def test_the_signed_rank_test_is_exact_by_enumeration():
    difference = np.random.default_rng(3).normal(size=9)
    ranks = abs(difference).argsort().argsort() + 1
    sums = np.array([ranks @ signs for signs in itertools.product([0, 1], repeat=9)])
    away = abs(ranks[difference > 0].sum() - ranks.sum() / 2)
    p = (abs(sums - ranks.sum() / 2) >= away).mean()
    assert signed_rank_test(difference) == pytest.approx(p)
    assert signed_rank_test(np.zeros(5)) == 1


def test_pairs_are_made_by_seed_whatever_the_order_and_a_lone_seed_is_dropped():
    first = pd.Series({0: 1.0, 3: np.nan, 1: 5.0, 2: 9.0})
    assert list(paired_difference(first, pd.Series({2: 8.0, 3: 1.0, 0: 0.5}))) == [0.5, 1.0]


def test_effect_sizes_by_hand():
    told = effect_sizes(np.array([1.0, 2.0, 0.0, -3.0, 4.0]))
    d = 0.8 / np.std([1, 2, 0, -3, 4], ddof=1)
    assert told == pytest.approx({"d": d, "rank_biserial": (1 + 2 - 3 + 4) / 10})


def test_the_pareto_front_is_what_no_other_point_beats():
    points = np.random.default_rng(4).integers(0, 12, (20, 2)).astype(float)
    points = np.concatenate([points, points[:5]])  # with ties and doubles

    def dominated(p):
        return any((q[0] >= p[0] and q[1] <= p[1]) and (q[0] > p[0] or q[1] < p[1]) for q in points)

    front = pareto_front(points)
    assert list(front) == [not dominated(point) for point in points]
    assert 2 <= front.sum() < 20


def test_the_hypervolume_is_the_share_of_random_darts_that_are_dominated():
    random, reference, ideal = np.random.default_rng(5), (0.055, 1.276), (0.15, 0.75)
    points = random.uniform((0.03, 0.75), (0.15, 1.4), (7, 2))
    x, y = random.uniform((0.055, 0.75), (0.15, 1.276), (100_000, 2)).T
    hit = np.any([(x <= mrr) & (y >= mse) for mrr, mse in points], 0)
    assert hypervolume(points, reference, ideal) == pytest.approx(hit.mean(), abs=0.005)
    assert hypervolume([ideal], reference, ideal) == pytest.approx(1)
    behind = [(0.05, 0.8), (0.14, 1.3)]  # each in one of the two
    assert hypervolume(behind, reference, ideal) == 0


def test_a_number_is_shown_in_each_of_its_forms():
    number = Estimate([0.1, np.nan, 0.3], 2, "+")
    low, high = (f"{bound:+.2f}" for bound in bootstrap_interval(np.array([0.1, 0.3])))
    forms = {"": "+0.20", "sd": "+0.20 ± 0.14", "spread": "0.14", "n": "2", "sum": "0.40"}
    forms["ci"] = f"+0.20 [{low}, {high}]"
    assert {form: format(number, form) for form in forms} == forms
    assert f"{Estimate([], 2):ci} {Estimate([0.5], 2):sd} {show(-0.004, 2)} {show(-1, 1)}" == (
        "— 0.50 0.00 −1.0"
    )
    with pytest.raises(ValueError, match="no form 'c' of a number: ci"):
        format(number, "c")
    told = markdown_table(["a", "b", "c"], [["x", "y", "1"]], labels=2)  # numbers to the right
    assert told == "| a | b | c |\n| --- | --- | ---: |\n| x | y | 1 |"
