"""Statistics over seeds, and numbers as text: means with intervals, paired tests, Pareto fronts.

Runs are compared in pairs of the same seed. In text a minus is "−", and "—" what is not there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


def show(value: float, digits: int, sign: str = "") -> str:
    """A number with these digits after the point; `sign` "+" marks the positive ones too."""
    if not np.isfinite(value):
        return "—"
    return f"{round(float(value), digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def markdown_table(heads: list[str], rows: Iterable[list[str]], labels: int = 1) -> str:
    """A Markdown table: the first `labels` columns to the left, the numbers to the right."""
    rule = ["---"] * labels + ["---:"] * (len(heads) - labels)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *rows])


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, to be formatted as f"{it:ci}"; NaN among the values are left out.

    Forms: none, the mean; ci, with its bootstrap 95% interval; sd, with ± the standard deviation;
    spread, that deviation alone; n, how many values there are; sum, their sum.
    """

    values: Iterable[float]
    digits: int
    sign: str = ""

    def __format__(self, form: str) -> str:
        values = np.asarray(self.values, float)
        values = values[np.isfinite(values)]
        several = len(values) > 1
        mean = show(values.mean() if len(values) else np.nan, self.digits, self.sign)
        spread = show(values.std(ddof=1) if several else np.nan, self.digits)
        ends = (show(end, self.digits, self.sign) for end in bootstrap_interval(values))
        forms = {
            "": mean,
            "ci": f"{mean} [{', '.join(ends)}]" if several else mean,
            "sd": f"{mean} ± {spread}" if several else mean,
            "spread": spread,
            "n": str(len(values)),
            "sum": show(values.sum(), self.digits) if len(values) else "—",
        }
        if form not in forms:
            raise ValueError(f"no form {form!r} of a number: ci, sd, spread, n or sum")
        return forms[form]


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean from 10,000 resamples; NaN with fewer than two values.

    The percentiles are expanded, Φ(±t √(n / (n − 1))) with Student's t of n − 1 degrees: for ten
    values 0.85% and 99.15%. Those at 2.5% and 97.5% cover too little when values are few. Source:
    Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 2015.
    """
    if (n := len(values)) < 2:
        return np.nan, np.nan
    tail = 100 * stats.norm.cdf(stats.t.ppf(0.025, n - 1) * np.sqrt(n / (n - 1)))
    resamples = np.random.default_rng(0).integers(n, size=(10_000, n))
    return tuple(np.percentile(values[resamples].mean(1), [tail, 100 - tail]))


def t_test(
    values: np.ndarray, overlap: float = 0.0, level: float = 0.95
) -> tuple[float, float, float]:
    """Interval of the mean by Student's t, and the two-sided p of its being 0; NaN if n < 2.

    The mean's variance is s² (1/n + ρ / (1 − ρ)), ρ the ``overlap``: of values from test parts that
    are a share ρ of the rows they are drawn from, the others training. Plain with 0. Source: Nadeau
    and Bengio, Inference for the Generalization Error, Machine Learning 2003.
    """
    if (n := len(values)) < 2:
        return np.nan, np.nan, np.nan
    mean, error = np.mean(values), np.std(values, ddof=1) * np.sqrt(1 / n + overlap / (1 - overlap))
    t, half = stats.t(n - 1), stats.t.ppf((1 + level) / 2, n - 1) * error
    return mean - half, mean + half, 2 * t.sf(abs(mean) / error)


def paired_difference(first: pd.Series, second: pd.Series) -> np.ndarray:
    """first − second by seed, in order; a seed that one of them lacks is dropped."""
    return (first.sort_index() - second.sort_index()).dropna().to_numpy(float)


def signed_rank_test(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test: exact for few values, 1 if nothing differs."""
    if len(difference) < 2:
        return np.nan
    return 1.0 if not difference.any() else float(stats.wilcoxon(difference).pvalue)


def holm(p_values: list[float]) -> np.ndarray:
    """Holm's step-down adjusted p; one that isn't computed yet (NaN) still counts in the family."""
    p, adjusted = np.asarray(p_values, float), np.full(len(p_values), np.nan)
    order = np.argsort(p)  # NaN last
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1)


def effect_sizes(difference: np.ndarray) -> dict[str, float]:
    """d, mean over sd, and rank_biserial, (W₊ − W₋) / (W₊ + W₋), of at least two differences."""
    if len(difference) < 2 or not difference.any():
        return {"d": np.nan, "rank_biserial": np.nan}
    differs = difference[difference != 0]
    ranks = stats.rankdata(abs(differs))
    biserial = (np.sign(differs) * ranks).sum() / ranks.sum()
    return {"d": difference.mean() / difference.std(ddof=1), "rank_biserial": biserial}


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which of (n, 2) points of MRR (up) and MSE (down) no other point dominates: (n,) booleans."""
    points = points * [1, -1]
    no_worse = (points[:, None] >= points[None]).all(2)
    better = (points[:, None] > points[None]).any(2)
    return ~(no_worse & better).any(0)


def hypervolume(
    points: np.ndarray, reference: tuple[float, float], ideal: tuple[float, float]
) -> float:
    """Share of the box from `reference` to `ideal` that (n, 2) points of MRR and MSE dominate."""
    reached = (np.asarray(points) - reference) / np.subtract(ideal, reference)
    reached = reached[(reached > 0).all(1)]
    volume = height = 0.0
    for x, y in reached[np.argsort(-reached[:, 0])]:
        volume += x * max(0.0, y - height)
        height = max(height, y)
    return volume
