"""The study's statistics, as named numbers and Markdown tables: results/study.jsonl in, text out.

    frame = read_study(Path("results/study.jsonl"))
    generated = study_text(frame)                    # {"questions": "| …", "q1.report.mrr.p": "…"}
    write_blocks(Path("STUDY.md"), generated)

A document marks what is generated: a table stands between `<!-- table: NAME -->` and
`<!-- end -->`, a number in prose between `<!-- n: NAME -->` and `<!-- end -->` (not at the start of
a line, where Markdown takes a comment for a block). Whatever isn't computed yet shows as "—".

Statistics: means with bootstrap 95% intervals over seeds; arms are compared in pairs of runs with
the same seed. Two families of four tests, named in advance, carry Wilcoxon's signed-rank test with
Holm's correction; all else is estimation without tests.
"""

import json
import re
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

WIDTH = 32  # K of 32 dimensions are shared
NAMES = {WIDTH: "shared", 16: "k16", 0: "separate"}
SETTINGS = [(WIDTH, 0.99), (WIDTH, 0.5), (0, 0.99), (0, 0.5)]  # (K, λ_F); λ_R is 1 − λ_F
RATIOS = [99 ** (k / 4) for k in range(-4, 5)]  # λ_F : λ_R from 1:99 to 99:1, log-spaced
LAMBDAS = [0.0, *(round(ratio / (1 + ratio), 6) for ratio in RATIOS), 1.0]
DIAL = ("selected", "sharing", "weights")  # one protocol, disjoint arms
QUESTIONS = {"q1": ((WIDTH, 0.5), (0, 0.5)), "q2": ((WIDTH, 0.99), (WIDTH, 0.5))}
PLANNED = dict(report=4, selected=4, temporal=4, sgd=4, sharing=6, capacity=2, weights=27)
WORKERS = 2  # processes that the study trains its stacks in
BASELINES = {"popularity": "mrr", "global mean": "mse", "biases": "mse"}
METRICS = ("mrr", "mse")
COLD = ("test_rows", "cold_users", "cold_user_rows", "cold_items", "cold_item_rows")
DIGITS = dict(mrr=4, mse=3, mrr_first=3, ndcg_at_10=3, recall_at_10=3, epoch=0)
DIGITS |= dict(last_mrr=4, last_mse=3)
OWN = {"own_mrr": "mrr", "own_mse": "mse"}  # a task's metric at the epoch best for it alone
# The published report's event files at the last epoch (minhtcai/multitask-recsys on GitHub).
PUBLISHED = {
    (WIDTH, 0.99): (0.1935, 1.268, 0.204, 0.046, 1.299),
    (WIDTH, 0.5): (0.1888, 1.270, 0.730, 0.041, 1.272),
    (0, 0.5): (0.1910, 1.268, 0.730, 0.039, 1.253),
}
FAULTS = ("none", "batch product", "dropped biases", "broadcast MSE", "all three")
FAULT_CURVES = {
    "factorization_loss": (0, 3),
    "regression_loss": (1, 3),
    "mrr": (3, 4),
    "mse": (4, 3),
}
# Hypervolume's box, MRR and MSE: from what needs no model (popularity, global mean) to about the
# best specialist of each task. Fixed, so that an arm's volume doesn't depend on other arms.
REFERENCE, IDEAL = (0.0549, 1.276), (0.15, 0.75)
# What the report expected: claim, measure, experiments, two arms, the sign of first − second.
EXPECTED = [
    ("sharing converges more slowly", "fall_epoch", ("report",), *QUESTIONS["q1"], 1),
    ("… or its losses stay higher: both", "mean_joint", ("report",), *QUESTIONS["q1"], 1),
    ("… ranking's", "mean_factorization", ("report",), *QUESTIONS["q1"], 1),
    ("… rating's", "mean_regression", ("report",), *QUESTIONS["q1"], 1),
    ("sharing makes the joint loss fluctuate more", "fluctuation", ("report",))
    + (*QUESTIONS["q1"], 1),
    ("… also in relation to its level", "relative_fluctuation", ("report",), *QUESTIONS["q1"], 1),
    ("sharing ends with a better MRR", "mrr", ("report", "selected"), *QUESTIONS["q1"], 1),
    ("sharing ends with a better MSE", "mse", ("report", "selected"), *QUESTIONS["q1"], -1),
    ("0.99/0.01 makes the factorization loss smoother", "ranking_fluctuation", ("report",))
    + (*QUESTIONS["q2"], -1),
    ("… and in relation to its level", "relative_ranking_fluctuation", ("report",))
    + (*QUESTIONS["q2"], -1),
    ("0.99/0.01 makes the regression loss fall more slowly", "mean_regression", ("report",))
    + (*QUESTIONS["q2"], 1),
    ("0.99/0.01 ends with the same MRR", "mrr", ("report", "selected"), *QUESTIONS["q2"], 0),
    ("0.99/0.01 ends with a worse MSE", "mse", ("report", "selected"), *QUESTIONS["q2"], 1),
]
MEASURES = {  # of training, per run: digits and what they are
    "peak_epoch": (0, "epoch of the highest MRR"),
    "lowest_mse": (3, "lowest MSE on the way"),
    "lowest_mse_epoch": (0, "its epoch"),
    "mrr_there": (4, "MRR there"),
    "fall_epoch": (1, "epochs to 95% of the joint loss's fall"),
    "mean_joint": (3, "mean joint loss of all epochs"),
    "mean_factorization": (3, "mean factorization loss"),
    "mean_regression": (3, "mean training MSE"),
    "fluctuation": (5, "fluctuation of the joint loss"),
    "relative_fluctuation": (4, "that relative to its level"),
    "ranking_fluctuation": (5, "fluctuation of the factorization loss"),
    "relative_ranking_fluctuation": (4, "that relative to its level"),
}


# ---- the file --------------------------------------------------------------------------------


def read_study(path: Path) -> pd.DataFrame:
    """The lines of a study, a row a run; a torn last line, of a stack being written, is left out.

    Raises:
        FileNotFoundError, ValueError: naming the file, the line and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; python -m experiments.study writes it")
    rows, lines = [], path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["experiment"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and not line.endswith("\n"):
                break
            told = "is not a run's JSON object with an experiment"
            raise ValueError(f"{path}: line {number} {told}") from None
    if not rows:
        raise ValueError(f"{path}: holds no runs")
    keys = ["experiment", "shared_dims", "embedding_dim", "lambda_f", "method", "fault", "seed"]
    keys += ["protocol"]
    needed = [*keys, *DIGITS, "own_mrr", "own_mse"]
    needed += [*COLD, "epochs", "train_seconds", "eval_seconds"]
    needed += ["stack", "reciprocal_ranks", "curves"]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=frame.columns.union(needed, sort=False))
    if (twice := frame.duplicated(keys)).any():
        told = frame.loc[twice, keys].iloc[0].dropna().to_dict()
        raise ValueError(f"{path}: line {int(np.argmax(twice)) + 1} repeats the run {told}")
    numeric = ["shared_dims", "lambda_f", *needed[len(keys) : -3]]
    return frame.assign(**{name: frame[name].astype(float) for name in numeric})


def arm(frame: pd.DataFrame, experiment: str, shared_dims: int, lambda_f: float) -> pd.DataFrame:
    """An arm's runs, indexed and sorted by seed; experiment "dial" is any of DIAL."""
    chosen = frame.experiment.isin(DIAL if experiment == "dial" else [experiment])
    chosen &= (frame.shared_dims == shared_dims) & np.isclose(frame.lambda_f, lambda_f, atol=1e-5)
    return frame[chosen].set_index("seed").sort_index()


def curves_of(runs: pd.DataFrame, name: str) -> np.ndarray:
    """(runs, epochs) of one curve, NaN where it wasn't measured."""
    return pd.DataFrame([curves.get(name, []) for curves in runs.curves]).to_numpy(float)


def setting(shared_dims: int, lambda_f: float | None = None) -> str:
    name = {WIDTH: "shared", 0: "separate"}.get(shared_dims, f"{shared_dims} of {WIDTH} shared")
    return name if lambda_f is None else f"{name}, {lambda_f:g}/{1 - lambda_f:g}"


def key(shared_dims: int, lambda_f: float) -> str:
    return f"{NAMES.get(shared_dims, f'k{shared_dims}')}.{lambda_f:g}"


# ---- statistics ------------------------------------------------------------------------------


@cache
def resamples(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(10_000, n))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean from 10,000 resamples; NaN with fewer than two values.

    The percentiles are expanded, Φ(±t √(n / (n − 1))) with Student's t of n − 1 degrees: for ten
    values 0.85% and 99.15%. Those at 2.5% and 97.5% cover too little when values are few. Source:
    Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 2015.
    """
    if (n := len(values)) < 2:
        return np.nan, np.nan
    tail = 100 * stats.norm.cdf(stats.t.ppf(0.025, n - 1) * np.sqrt(n / (n - 1)))
    return tuple(np.percentile(values[resamples(n)].mean(1), [tail, 100 - tail]))


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


def paired_difference(first: pd.Series, second: pd.Series) -> np.ndarray:
    """first − second by seed, in seed order; a seed that one of them lacks is dropped."""
    return (first.sort_index() - second.sort_index()).dropna().to_numpy(float)


def effect_sizes(difference: np.ndarray) -> tuple[float, float]:
    """Mean over sd, and the rank-biserial correlation (W₊ − W₋) / (W₊ + W₋), of differences."""
    if not len(difference):
        return np.nan, np.nan
    differs = difference[difference != 0]
    ranks = stats.rankdata(abs(differs))
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    d = difference.mean() / spread if spread > 0 else np.nan
    return d, float((np.sign(differs) * ranks).sum() / ranks.sum()) if len(differs) else np.nan


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which of (n, 2) points of MRR (up) and MSE (down) no other point dominates: (n,) booleans."""
    points = points * [1, -1]
    no_worse = (points[:, None] >= points[None]).all(2)
    better = (points[:, None] > points[None]).any(2)
    return ~(no_worse & better).any(0)


def hypervolume(points: np.ndarray, reference=REFERENCE, ideal=IDEAL) -> float:
    """Share of the box from `reference` to `ideal` that (n, 2) points of MRR and MSE dominate."""
    reached = (np.asarray(points) - reference) / np.subtract(ideal, reference)
    reached = reached[(reached > 0).all(1)]
    volume = height = 0.0
    for x, y in reached[np.argsort(-reached[:, 0])]:
        volume += x * max(0.0, y - height)
        height = max(height, y)
    return volume


def training_measures(runs: pd.DataFrame) -> pd.DataFrame:
    """How runs trained, a row a seed (see MEASURES).

    Fluctuation is the standard deviation of a loss's change from epoch to epoch over the last 100.
    """
    if not len(runs) or not np.isfinite(curves_of(runs, "mrr")).any():
        return pd.DataFrame(columns=list(MEASURES), dtype=float)
    names = ("mrr", "mse", "joint_loss", "regression_loss", "factorization_loss")
    mrr, mse, joint, regression, factorization = (curves_of(runs, name) for name in names)
    best, fallen = np.nanargmin(mse, 1), joint[:, :1] - 0.95 * (joint[:, :1] - joint[:, -1:])
    columns = dict(peak_epoch=np.nanargmax(mrr, 1), lowest_mse=np.nanmin(mse, 1))
    columns |= dict(lowest_mse_epoch=best, mrr_there=mrr[np.arange(len(mrr)), best])
    columns |= dict(fall_epoch=(joint <= fallen).argmax(1) + 1)
    columns |= dict(mean_joint=joint.mean(1), mean_factorization=factorization.mean(1))
    columns |= dict(mean_regression=regression.mean(1))
    columns |= dict(fluctuation=np.diff(joint)[:, -100:].std(1))
    columns |= dict(relative_fluctuation=columns["fluctuation"] / joint[:, -100:].mean(1))
    columns |= dict(ranking_fluctuation=np.diff(factorization)[:, -100:].std(1))
    level = factorization[:, -100:].mean(1)
    columns |= dict(relative_ranking_fluctuation=columns["ranking_fluctuation"] / level)
    return pd.DataFrame(columns, index=runs.index)


# ---- named numbers ---------------------------------------------------------------------------


def show(value: float, digits: int, sign: str = "") -> str:
    if not np.isfinite(value):
        return "—"
    return f"{round(float(value), digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def estimate(name: str, values, digits: int, sign: str = "") -> dict[str, str]:
    """The mean as NAME, and NAME.low and NAME.high (95%), NAME.sd, NAME.n."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    mean = values.mean() if len(values) else np.nan
    low, high = bootstrap_interval(values)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    told = {"": mean, ".low": low, ".high": high}
    told = {name + end: show(value, digits, sign) for end, value in told.items()}
    return told | {f"{name}.sd": show(spread, digits), f"{name}.n": str(len(values))}


def arm_numbers(name: str, runs: pd.DataFrame, metrics=METRICS) -> dict[str, str]:
    told = {f"{name}.n": str(len(runs))}
    for metric in metrics:
        told |= estimate(f"{name}.{metric}", runs[metric], DIGITS[metric])
    return told


def compare(name: str, first: pd.DataFrame, second: pd.DataFrame) -> dict[str, str]:
    """NAME.metric.difference of two arms, first − second, paired by seed."""
    told = {}
    for metric in METRICS:
        difference = paired_difference(first[metric], second[metric])
        told |= estimate(f"{name}.{metric}.difference", difference, DIGITS[metric], "+")
    return told


def study_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """Every number of the study as text, by name; "—" where nothing is computed yet."""
    runs, told = frame[frame.experiment.isin(PLANNED)], {}
    told |= {"runs": f"{len(runs):,}", "seeds": str(runs.seed.nunique())}
    told |= {"epochs": show(runs.epochs.max(), 0)}
    told |= {"stacks": str(runs["stack"].nunique()), "workers": str(WORKERS)}
    told |= {
        "hours": show(grid_hours(frame), 1),
        "hours.each": show(grid_hours(frame) / WORKERS, 1),
    }
    least = 2 * len(METRICS) * 2 / 2 ** runs.seed.nunique()  # all signs alike, in a family of four
    told |= {"holm.smallest": show(min(least, 1), 4)}
    for name, point in (("reference", REFERENCE), ("ideal", IDEAL)):
        told |= {f"box.{name}.{metric}": f"{x:g}" for metric, x in zip(METRICS, point, strict=True)}
    for name, arms in PLANNED.items():
        there = len(runs[runs.experiment == name].groupby(["shared_dims", "lambda_f"]))
        told[f"progress.{name}.arms"] = f"{there} of {arms}"
        told[f"progress.{name}.runs"] = str((runs.experiment == name).sum())
    for experiment in ("report", "selected", "temporal", "sgd"):
        arms = {where: arm(frame, experiment, *where) for where in SETTINGS}
        for where, chosen in arms.items():
            name, measures = f"{experiment}.{key(*where)}", training_measures(chosen)
            told |= arm_numbers(name, chosen, DIGITS)
            for measure, (digits, _) in MEASURES.items():
                told |= estimate(f"{name}.{measure}", measures[measure], digits)
            for metric, level in zip(METRICS, PUBLISHED.get(where, ())[-2:], strict=False):
                told[f"{name}.published_{metric}"] = show(level, 3)
        for K in (WIDTH, 0):
            told |= compare(f"weights.{experiment}.{NAMES[K]}", arms[K, 0.99], arms[K, 0.5])
    for protocol in ("report", "selected", "temporal"):
        for method in BASELINES:
            lines = frame[(frame.method == method) & (frame.protocol == protocol)]
            name = f"baselines.{protocol}.{method.replace(' ', '_')}"
            told |= arm_numbers(name, lines, list(DIGITS)[:5])
    for column in COLD:
        told[f"temporal.{column}"] = show(frame[column].max(), 0)
    told |= question_numbers(frame) | dial_numbers(frame) | gradient_numbers(frame)
    return told | fault_numbers(frame) | expectation_numbers(frame)


def grid_hours(frame: pd.DataFrame) -> float:
    """Hours of training and evaluation of all the study's stacks, one after the other."""
    runs = frame[frame.experiment.isin(PLANNED)]  # a run's seconds are its whole stack's
    return runs.groupby("stack")[["train_seconds", "eval_seconds"]].max().to_numpy().sum() / 3600


def family_tests(frame: pd.DataFrame, question: str) -> dict[tuple[str, str], tuple[float, float]]:
    """A question's four tests: (experiment, metric) -> p, and p after Holm."""
    p_values = {}
    for experiment in ("report", "selected"):
        arms = [arm(frame, experiment, *where) for where in QUESTIONS[question]]
        for metric in METRICS:
            difference = paired_difference(*(runs[metric] for runs in arms))
            p_values[experiment, metric] = signed_rank_test(difference)
    adjusted = holm(list(p_values.values()))
    return {test: (p_values[test], p) for test, p in zip(p_values, adjusted, strict=True)}


def question_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """q1|q2.report|selected.mrr|mse: .difference, .p, .holm, .d, …; users.q1|q2.report|selected.

    q1|q2.temporal.mrr|mse.difference and q1|q2.training.MEASURE are differences without a test.
    """
    told = {}
    for question, settings in QUESTIONS.items():
        tests = family_tests(frame, question)
        for experiment in ("report", "selected"):
            arms = [arm(frame, experiment, *where) for where in settings]
            told |= compare(f"{question}.{experiment}", *arms)
            told |= user_numbers(f"users.{question}.{experiment}", *arms)
            for metric in METRICS:
                name, (p, adjusted) = f"{question}.{experiment}.{metric}", tests[experiment, metric]
                difference = paired_difference(*(runs[metric] for runs in arms))
                d, biserial = effect_sizes(difference)
                told |= {f"{name}.n": str(len(difference)), f"{name}.d": show(d, 2, "+")}
                told |= {f"{name}.rank_biserial": show(biserial, 2, "+")}
                told |= {f"{name}.p": show(p, 4), f"{name}.holm": show(adjusted, 4)}
        told |= compare(f"{question}.temporal", *(arm(frame, "temporal", *at) for at in settings))
        trained = [training_measures(arm(frame, "report", *where)) for where in settings]
        for measure, (digits, _) in MEASURES.items():
            difference = paired_difference(*(measures[measure] for measures in trained))
            told |= estimate(f"{question}.training.{measure}", difference, digits, "+")
    return told


def user_numbers(name: str, first: pd.DataFrame, second: pd.DataFrame) -> dict[str, str]:
    """Reciprocal ranks user by user, first − second: a summary a seed, then over the seeds."""
    rows = []
    for seed in first.index.intersection(second.index):
        pair = [runs.reciprocal_ranks[seed] for runs in (first, second)]
        if all(isinstance(ranks, list) for ranks in pair):
            difference = np.subtract(*np.array(pair, float))
            difference = difference[np.isfinite(difference)]
            shares = [100 * (np.sign(difference) == sign).mean() for sign in (1, -1, 0)]
            significant = signed_rank_test(difference) < 0.05
            rows.append([difference.mean(), *shares, shares[0] > shares[1], significant])
    table = np.array(rows, float).reshape(-1, 6)
    told = estimate(f"{name}.difference", table[:, 0], 4, "+") | {f"{name}.n": str(len(table))}
    for k, share in enumerate(("better", "worse", "tied"), start=1):
        told |= estimate(f"{name}.{share}", table[:, k], 1)
    for k, count in ((4, "agree"), (5, "tests")):
        told[f"{name}.{count}"] = f"{table[:, k].sum():.0f}" if rows else "—"
    return told


def dial_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """dial.SHARING.λ_F.mrr|mse, their .gain over a task alone, and hypervolume.SHARING.

    .own_mrr|own_mse.gain and hypervolume.SHARING.own have each task at the epoch best for it.
    """
    told = {}
    for f in (0.99, 0.5):
        arms = {f"dial.{key(K, f)}": arm(frame, "dial", K, f) for K in range(0, WIDTH + 1, 8)}
        for name, runs in (arms | {f"capacity.{f:g}": arm(frame, "capacity", 0, f)}).items():
            told |= arm_numbers(name, runs)
            told |= compare(f"{name}.to_separate", runs, arms[f"dial.{key(0, f)}"])
            told |= compare(f"{name}.to_shared", runs, arms[f"dial.{key(WIDTH, f)}"])
    volumes = {}
    for K, sharing in NAMES.items():
        arms = {f: arm(frame, "dial", K, f) for f in LAMBDAS}
        alone = {"mrr": arms[1.0].own_mrr, "mse": arms[0.0].own_mse}
        for metric, values in alone.items():
            told |= estimate(f"alone.{sharing}.{metric}", values, DIGITS[metric])
            own = f"own_{metric}"
            for f, runs in arms.items():
                name, gain = f"dial.{key(K, f)}.{own}", paired_difference(runs[own], values)
                told |= estimate(f"{name}.gain", gain, DIGITS[metric], "+")
                name, gain = f"dial.{key(K, f)}.{metric}", paired_difference(runs[metric], values)
                told |= estimate(name, runs[metric], DIGITS[metric])
                told |= estimate(f"{name}.gain", gain, DIGITS[metric], "+")
        seeds = sorted(set.intersection(*(set(runs.index) for runs in arms.values())))
        for end, columns in {"": METRICS, ".own": OWN}.items():
            fronts = [[runs.loc[seed, list(columns)] for runs in arms.values()] for seed in seeds]
            each = {
                seed: hypervolume(np.array(front, float))
                for seed, front in zip(seeds, fronts, strict=True)
            }
            volumes[sharing, end] = pd.Series(each, dtype=float)
            told |= estimate(f"hypervolume.{sharing}{end}", list(each.values()), 3)
    for (sharing, end), each in volumes.items():
        for other in ("shared", "separate"):
            difference = paired_difference(each, volumes[other, end])
            told |= estimate(f"hypervolume.{sharing}{end}.to_{other}", difference, 3, "+")
    return told


def gradient_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """gradients.SETTING.users|items.cosine, .conflict (% of steps below 0), .norm_ratio."""
    told = {}
    for where in SETTINGS:
        runs = arm(frame, "report", *where)
        for side in ("users", "items"):
            name = f"gradients.{key(*where)}.{side}"
            cosine = pd.DataFrame(curves_of(runs, f"{side}_cosine")).T  # (epochs, runs)
            ratio = pd.DataFrame(curves_of(runs, f"{side}_norm_ratio")).T.median()
            conflict = 100 * (cosine < 0).sum() / cosine.notna().sum()
            told |= estimate(f"{name}.cosine", cosine.mean(), 3, "+")
            told |= estimate(f"{name}.conflict", conflict, 0)
            told |= estimate(f"{name}.norm_ratio", ratio, 3)
            digits = 1 if where[1] > 0.5 else 3
            told |= estimate(f"{name}.weighted", ratio * where[1] / (1 - where[1]), digits)
    return told


def fault_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """faults.FAULT|published.CURVE: its value after the last epoch, and .first after the first."""
    told = {}
    for fault in FAULTS:
        runs = frame[(frame.experiment == "faults") & (frame.fault == fault)]
        for name, (_, digits) in FAULT_CURVES.items():
            curves, start = curves_of(runs, name), f"faults.{fault.replace(' ', '_')}"
            first, last = (curves[:, [0, -1]] if curves.size else np.empty((0, 2))).T
            told |= estimate(f"{start}.{name}", last, digits)
            told |= estimate(f"{start}.{name}.first", first, digits)
        told[f"{start}.n"] = str(len(runs))
    for name, (place, digits) in FAULT_CURVES.items():
        levels = [values[place] for values in PUBLISHED.values()]
        low, high = show(min(levels), min(digits, 3)), show(max(levels), min(digits, 3))
        told |= {f"faults.published.{name}": f"{low} to {high}"}
    return told


def expectation_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """expected.NUMBER.EXPERIMENT: the difference, and .verdict, from interval and test."""
    told = {}
    tests = {arms: family_tests(frame, question) for question, arms in QUESTIONS.items()}
    for number, (_, measure, experiments, *arms, sign) in enumerate(EXPECTED, start=1):
        for experiment in experiments:
            runs = [arm(frame, experiment, *where) for where in arms]
            runs = [training_measures(each) if measure in MEASURES else each for each in runs]
            difference = paired_difference(*(each[measure] for each in runs))
            digits = DIGITS[measure] if measure in DIGITS else MEASURES[measure][0]
            name, (low, high) = f"expected.{number}.{experiment}", bootstrap_interval(difference)
            told |= estimate(name, difference, digits, "+")
            _, p = tests[tuple(arms)].get((experiment, measure), (0, 0))  # else it has no test
            told[f"{name}.verdict"] = "—" if np.isnan(low) else verdict(low, high, sign, p)
    return told


def verdict(low: float, high: float, sign: int, p: float = 0) -> str:
    """Does an interval bear out a difference above (1) or below zero (−1), or none (0)?

    Where a test belongs to it, its p must bear out the difference too.
    """
    seen = 1 if low > 0 else -1 if high < 0 else 0
    if seen and p >= 0.05:
        return f"not settled: Holm's p is {show(p, 4)}"
    if seen == sign:
        return "held" if sign else "held: no difference seen"
    if not seen:
        return "not settled"
    return "did not hold: " + ("the opposite" if sign else "higher" if seen > 0 else "lower")


# ---- tables ----------------------------------------------------------------------------------


def study_text(frame: pd.DataFrame) -> dict[str, str]:
    """Every number of the study by name, and every table as Markdown."""
    n = study_numbers(frame)

    def cell(name: str) -> str:
        """The number with its interval, with "±" before the last part its sd, with "=" alone."""
        bare = name.replace("=", "").replace("±", "")
        if "±" in name:
            spread = n.get(f"{bare}.sd", "—")
            return n.get(bare, "—") + (f" ± {spread}" if spread != "—" else "")
        low, high = n.get(f"{name}.low", "—"), n.get(f"{name}.high")
        return n.get(bare, "—") + (f" [{low}, {high}]" if low != "—" else "")

    def table(heads: str, rows: dict[str, str], *columns: str) -> str:
        """Rows are label: start of a name, columns its ends, or names with {} for the start."""
        lines, waits, heads = [], [], heads.split(" | ")
        for label, start in rows.items():
            names = [end.format(start) if "{}" in end else f"{start}.{end}" for end in columns]
            cells = [cell(name) for name in names]
            lines.append([label, *cells])
            if set(cells[:3]) <= {"—", "0"}:  # published values may stand further right
                waits.append(label.replace(" | ", ", "))
        labels = len(heads) - len(columns)
        lines = [heads, ["---"] * labels + ["---:"] * len(columns), *lines]
        note = f"\n\nNot computed yet: {'; '.join(waits)}." if waits else ""
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + note

    def settings(experiment: str) -> dict[str, str]:
        return {setting(*where): f"{experiment}.{key(*where)}" for where in SETTINGS}

    def baselines(protocol: str) -> dict[str, str]:
        return {method: f"baselines.{protocol}.{method.replace(' ', '_')}" for method in BASELINES}

    both = {"report": "report's", "selected": "selected"}
    contrasts = {"q1": "1: shared − separate, at 0.5/0.5", "q2": "2: 0.99/0.01 − 0.5/0.5, shared"}
    asked = {f"{told} | {both[e]}": f"{q}.{e}" for q, told in contrasts.items() for e in both}
    tests = {f"{told} | {m.upper()}": f"{q}.{m}" for told, q in asked.items() for m in METRICS}
    expected = {
        f"{claim} | {MEASURES[measure][1] if measure in MEASURES else measure.upper()} "
        f"| {both[experiment]}": f"expected.{number}.{experiment}"
        for number, (claim, measure, experiments, *_) in enumerate(EXPECTED, start=1)
        for experiment in experiments
    }
    shares = {}
    for f in (0.99, 0.5):
        shares |= {setting(K, f): f"dial.{key(K, f)}" for K in range(0, WIDTH + 1, 8)}
        shares[f"separate, {WIDTH // 2} dimensions, {f:g}/{1 - f:g}"] = f"capacity.{f:g}"
    ratios = {f"{f:.3g}/{1 - f:.3g}": f"{f:g}" for f in LAMBDAS}
    by_sharing = [f"{m.upper()}, {setting(K)}" for m in METRICS for K in NAMES]
    weights = [f"dial.{name}.{{}}.{m}" for m in METRICS for name in NAMES.values()]
    pulls, progress = {}, {name: f"progress.{name}" for name in PLANNED}
    for label, start in settings("gradients").items():
        pulls |= {f"{label} | {side}": f"{start}.{side}" for side in ("users", "items")}
    null = {
        f"{optimizer}, {setting(K)}": f"weights.{experiment}.{NAMES[K]}"
        for optimizer, experiment in (("Adam", "report"), ("SGD", "sgd"))
        for K in (WIDTH, 0)
    }
    faults = {fault: f"faults.{fault.replace(' ', '_')}" for fault in FAULTS}
    faults = {"no fault" if fault == "none" else fault: name for fault, name in faults.items()}
    differences = [f"{m}.difference" for m in METRICS]
    heads = "setting | runs | MRR | MSE | MRR-first | NDCG@10 | Recall@10"
    metrics = ("n", "mrr", "mse", "=mrr_first", "=ndcg_at_10", "=recall_at_10")
    return n | {
        "progress": table("experiment | arms | runs", progress, "arms", "runs"),
        "report": table(
            f"{heads} | published MRR | published MSE",
            settings("report") | baselines("report"),
            *(*metrics, "published_mrr", "published_mse"),
        ),
        "readme_report": table(
            "setting | runs | MRR | MSE | MRR published | MSE published",
            settings("report") | baselines("report"),
            *("n", "±mrr", "±mse", "published_mrr", "published_mse"),
        ),
        "selected": table(
            f"{heads} | epoch | MRR at the last epoch | MSE there",
            settings("selected") | baselines("selected"),
            *(*metrics, "=epoch", "=last_mrr", "=last_mse"),
        ),
        "temporal": table(
            f"{heads} | epoch", settings("temporal") | baselines("temporal"), *metrics, "=epoch"
        ),
        "questions": table(
            "question | protocol | metric | pairs | difference | mean/sd "
            "| rank-biserial | p | p, Holm",
            tests,
            *("n", "difference", "d", "rank_biserial", "p", "holm"),
        ),
        "users": table(
            "question | protocol | seeds | difference | users better, % | worse, % | tied, % "
            "| seeds with more better than worse | seeds with p < 0.05",
            asked,
            *("users.{}.n", "users.{}.difference"),
            *(f"=users.{{}}.{end}" for end in ("better", "worse", "tied", "agree", "tests")),
        ),
        "training": table(
            " | ".join(["setting", *(told for _, told in MEASURES.values())]),
            settings("report"),
            *MEASURES,
        ),
        "sharing": table(
            "setting | runs | MRR | MSE | MRR − separate | MSE − separate",
            shares | baselines("selected"),
            *("n", "mrr", "mse", *(f"to_separate.{end}" for end in differences)),
        ),
        "weights": table(" | ".join(["λ_F/λ_R", *by_sharing]), ratios, *weights),
        "gains": table(
            " | ".join(["λ_F/λ_R", *by_sharing]),
            dict(list(ratios.items())[1:-1]),
            *(f"{name}.gain" for name in weights),
        ),
        "own_gains": table(
            " | ".join(["λ_F/λ_R", *by_sharing]),
            dict(list(ratios.items())[1:-1]),
            *(f"dial.{name}.{{}}.{own}.gain" for own in OWN for name in NAMES.values()),
        ),
        "hypervolume": table(
            "sharing | seeds | one epoch for both tasks | each task at its own epoch "
            "| MRR of ranking alone | MSE of rating alone",
            {setting(K): name for K, name in NAMES.items()},
            *("hypervolume.{}.n", "hypervolume.{}", "hypervolume.{}.own"),
            *("alone.{}.mrr", "alone.{}.mse"),
        ),
        "faults": table(
            "fault | runs | factorization loss, first epoch | last | training MSE, first epoch "
            "| last | MRR | test MSE",
            faults | {"published runs": "faults.published"},
            *("=n", "±factorization_loss.first", "±factorization_loss"),
            *("±regression_loss.first", "±regression_loss", "±mrr", "±mse"),
        ),
        "gradients": table(
            "setting | table | cosine | steps in conflict, % | norm ratio | weighted norm ratio",
            pulls,
            *("cosine", "conflict", "norm_ratio", "weighted"),
        ),
        "null": table(
            "optimizer, sharing | MRR: 0.99/0.01 − 0.5/0.5 | MSE: 0.99/0.01 − 0.5/0.5",
            null,
            *differences,
        ),
        "expectations": table(
            "the report expected | measured by | protocol | difference | verdict",
            expected,
            *("{}", "verdict"),
        ),
    }


def records_text(results: Path) -> dict[str, str]:
    """The blocks that don't come from the study: from the other files in the results folder."""
    text = bench_text(read_bench(results / "bench.jsonl")) | main_output(results / "main.json")
    return text | reliability_text(results / "reliability.jsonl")


def reliability_text(path: Path) -> dict[str, str]:
    """The last counts of experiments/kill_resume.py and of experiments/fuzz_data.py."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    counts = {name: 0 for line in lines for name in json.loads(line)}
    for line in lines:
        counts |= json.loads(line)
    shown = ("rounds", "kills", "differences", "files", "accepted", "refused", "tracebacks")
    shown += ("silent_changes", "wrongly_accepted", "wrongly_refused")
    rows = [f"| {name.replace('_', ' ')} | {counts[name]:,} |" for name in shown if name in counts]
    return {"reliability": "\n".join(["| counted | |", "|:--|--:|", *rows])}


def read_bench(path: Path) -> dict[str, dict]:
    """The last record of each kind ("ratios", "scaling", "gpu") in results/bench.jsonl."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {record["experiment"]: record for record in map(json.loads, lines)}


def main_output(path: Path) -> dict[str, str]:
    """How train.py's main command ends: its one line of stdout is results/main.json."""
    if not path.is_file():
        return {"readme_output": "—"}
    line = path.read_text(encoding="utf-8").strip()
    run = json.loads(line)
    lines = [f"{'λ_F':>6} {'λ_R':>6} {'runs':>5}   {'MRR':<32} MSE"]
    weights = f"{run['lambda_f']:>6} {run['lambda_r']:>6} {1:>5}"
    lines += [f"{weights}   {run['mrr']:<32.4f} {run['mse']:.4f}", f"{line[:96]}…"]
    return {"readme_output": "\n".join(["```", *lines, "```"])}


def bench_text(bench: dict[str, dict]) -> dict[str, str]:
    """The README's table of speed; "—" where nothing is measured yet."""
    rows = []
    if ratios := bench.get("ratios"):
        plain, per_second = ratios["ratio_to_plain"], ratios["samples_per_second_at_4096"]
        rows.append(("the plain loop, seconds an epoch", f"{ratios['plain_seconds']:.2f}"))
        for name, label in (
            ("R=1", "one run, share of the plain loop's seconds"),
            ("R=1 separate", "the same, separate embeddings"),
            ("R=16", "16 runs as a stack, share per run"),
            ("R=16 separate", "the same, separate embeddings"),
            ("evaluation, R=1", "evaluating all users, share of the plain loop's epoch"),
        ):
            rows.append((label, f"{plain[name]:.3f}"))
        for name, label in (("R=1", "one run"), ("R=16", "16 runs")):
            rows.append((f"{label}, times the floor", f"{ratios['ratio_to_floor'][name]:.1f}"))
        for name, label in (
            ("plain", "the plain loop"),
            ("eager", "ours"),
            ("compiled", "ours with `--compile`"),
        ):
            millions = f"{per_second[name] / 1e6:.2f}"
            rows.append((f"million samples a second at batch 4,096: {label}", millions))
    if scaling := bench.get("scaling"):
        sizes = scaling["by_interactions"]
        large = sizes["20_000_000, evaluated"]
        growth = sizes["20000000"]["seconds_per_million"] / sizes["1000000"]["seconds_per_million"]
        rows += [
            ("20 million interactions, seconds an epoch", f"{sizes['20000000']['seconds']:.0f}"),
            ("their seconds per million, times those at 1 million", f"{growth:.2f}"),
            ("their evaluation, all 138,493 users, seconds", f"{large['evaluation_seconds']:.0f}"),
            ("peak memory of both, GiB", f"{large['peak_mib'] / 1024:.1f}"),
        ]
    hardware = {record["hardware"] for record in bench.values()}
    lines = [f"| on one thread of {', '.join(sorted(hardware)) or '—'} | |", "|:--|--:|"]
    return {"readme_bench": "\n".join([*lines, *(f"| {a} | {b} |" for a, b in rows)])}


def page(text: dict[str, str]) -> str:
    """All the tables as one page."""
    tables = [f"## {name}\n\n{table}\n" for name, table in text.items() if "|" in table]
    return "\n".join(["# Every table of the study\n", *tables])


# ---- documents -------------------------------------------------------------------------------

START = r"<!-- (table|n): (\S+) -->"
BLOCK = re.compile(START + r"(.*?)<!-- end -->", re.DOTALL)


def filled(path: Path, generated: dict[str, str]) -> tuple[str, str, list[str]]:
    """A document as it is, as it should be, and the names of the blocks that differ."""
    text, differ = path.read_text(encoding="utf-8"), []
    for start, block in zip_longest(re.finditer(START, text), BLOCK.finditer(text)):
        if block is None or block.start() != start.start() or re.search(START, block[3]):
            raise ValueError(f"{path}: the block {start[2]} has no <!-- end -->")

    def fill(block: re.Match) -> str:
        kind, name, content = block.groups()
        if name not in generated:
            differ.append(f"{name} (no such {'table' if kind == 'table' else 'number'})")
            return block[0]
        new = f"\n\n{generated[name]}\n\n" if kind == "table" else generated[name]
        if new != content:
            differ.append(name)
        return f"<!-- {kind}: {name} -->{new}<!-- end -->"

    return text, BLOCK.sub(fill, text), differ


def write_blocks(path: Path, generated: dict[str, str]) -> None:
    """Put what is generated into the document's blocks; a block of unknown name stays as it is."""
    text, new, _ = filled(path, generated)
    if new != text:
        path.write_text(new, encoding="utf-8")


def stale_blocks(path: Path, generated: dict[str, str]) -> list[str]:
    """Names of the document's blocks that differ from what is generated, or that nothing fills."""
    return filled(path, generated)[2]
