"""The study's lines as named numbers: results/study.jsonl in, {"q1.report.mrr": Estimate} out.

A number is a column of an arm, ARM.COLUMN, or of a contrast of two arms paired by seed, such as
q1.report.mrr; DIGITS lists the columns, `study_arms` and `contrasts` the rest of the names.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from study import records
from study.design import (
    BASELINES,
    BOTH,
    DATA,
    DIAL,
    EXPECTED,
    IDEAL,
    LAMBDAS,
    METRICS,
    PLANNED,
    PUBLISHED,
    QUESTIONS,
    REFERENCE,
    SETTINGS,
    SHARINGS,
    TESTED,
    VARIANTS,
    WIDTH,
    WORKERS,
    key,
)
from study.stats import (
    Estimate,
    bootstrap_interval,
    effect_sizes,
    holm,
    hypervolume,
    paired_difference,
    show,
    signed_rank_test,
)

DIAL_DIMS = range(0, WIDTH + 1, 8)
MEASURES = {  # of training under the report's protocol, per run: digits, and what they are
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
GRADIENTS = {"cosine": 3, "conflict": 0, "norm_ratio": 3, "weighted": 3}  # conflict in % of steps
USERS = {"difference": 4, "better": 1, "worse": 1, "tied": 1, "agree": 0, "tests": 0}
FAULT_LOSSES = ("factorization_loss", "regression_loss")
DIGITS = {  # of every column
    **{"mrr": 4, "mse": 3, "mrr_first": 3, "ndcg_at_10": 3, "recall_at_10": 3},
    **{"epoch": 0, "last_mrr": 4, "last_mse": 3},
    **{"own_mrr": 4, "own_mse": 3},  # a task's metric at the epoch best for it alone
    **{name: digits for name, (digits, _) in MEASURES.items()},
    **{f"{side}_{name}": GRADIENTS[name] for side in ("users", "items") for name in GRADIENTS},
    **{f"{loss}{end}": 3 for loss in FAULT_LOSSES for end in ("", "_first")},
    **USERS,
    **{"volume": 3, "own_volume": 3},
}
SIGNED = ("difference", "users_cosine", "items_cosine")  # with a plus where above zero
COLD = ("test_rows", "cold_users", "cold_user_rows", "cold_items", "cold_item_rows")
# What tells a run from every other; a line from before the first two were fields has these values.
IDENTITY = {"data": DATA, "weighting": "fixed", "experiment": None, "protocol": None}
IDENTITY |= dict.fromkeys("shared_dims embedding_dim lambda_f method fault seed".split())

# ---- the file --------------------------------------------------------------------------------


def read_study(path: Path) -> pd.DataFrame:
    """The lines of a study, a row a run; columns that no line has are there, and empty.

    Raises:
        FileNotFoundError, ValueError: naming the file, the line and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; python -m study.run writes it")
    lines, seen = records.read(path), set()
    for number, line in enumerate(lines, start=1):
        if "experiment" not in line:
            raise ValueError(f"{path}: line {number} names no experiment")
        run = {name: line.get(name, default) for name, default in IDENTITY.items()}
        if tuple(run.values()) in seen:
            told = {name: value for name, value in run.items() if value is not None}
            raise ValueError(f"{path}: line {number} repeats the run {told}")
        seen.add(tuple(run.values()))
        line |= run
        if line["experiment"] == "report":
            line |= training_measures(line["curves"]) | gradient_measures(line)
        if line["experiment"] == "faults":
            for loss in FAULT_LOSSES:
                line[f"{loss}_first"], *_, line[loss] = line["curves"][loss]
    if not lines:
        raise ValueError(f"{path}: holds no runs")
    numeric = ["shared_dims", "lambda_f", "epochs", "train_seconds", "eval_seconds", *COLD, *DIGITS]
    frame = pd.DataFrame(lines)
    needed = dict.fromkeys([*frame, *numeric, "stack", "reciprocal_ranks", "curves"])
    return frame.reindex(columns=list(needed)).astype(dict.fromkeys(numeric, float))


def training_measures(curves: dict[str, list]) -> dict[str, float]:
    """How a run trained (see MEASURES), from its value of each epoch.

    Fluctuation is the standard deviation of a loss's change from epoch to epoch over the last 100.
    """
    names = ("mrr", "mse", "joint_loss", "regression_loss", "factorization_loss")
    mrr, mse, joint, regression, factorization = (np.array(curves[name], float) for name in names)
    best, fallen = np.nanargmin(mse), joint[0] - 0.95 * (joint[0] - joint[-1])
    fluctuation, ranking = (np.diff(loss)[-100:].std() for loss in (joint, factorization))
    values = (np.nanargmax(mrr), mse[best], best, mrr[best], (joint <= fallen).argmax() + 1)
    values += (joint.mean(), factorization.mean(), regression.mean())
    values += (fluctuation, fluctuation / joint[-100:].mean())
    values += (ranking, ranking / factorization[-100:].mean())
    return dict(zip(MEASURES, values, strict=True))


def gradient_measures(line: dict) -> dict[str, float]:
    """The two tasks' gradients in each table: at one step an epoch, in the mean or median."""
    measures, f = {}, line["lambda_f"]
    weights = np.nan if f in (None, 1) else f / (1 - f)  # λ_F/λ_R; none where a method weighs
    for side in ("users", "items"):
        cosine = pd.Series(line["curves"].get(f"{side}_cosine"), dtype=float).dropna()
        ratio = pd.Series(line["curves"].get(f"{side}_norm_ratio"), dtype=float).median()
        measures[f"{side}_cosine"] = cosine.mean()
        measures[f"{side}_conflict"] = 100 * (cosine < 0).mean()
        measures[f"{side}_norm_ratio"] = ratio
        measures[f"{side}_weighted"] = ratio * weights
    return measures


def arm(frame: pd.DataFrame, experiment: str, shared_dims: int, lambda_f: float) -> pd.DataFrame:
    """An arm's runs, indexed and sorted by seed; experiment "dial" is any of design.DIAL."""
    chosen = frame.experiment.isin(DIAL if experiment == "dial" else [experiment])
    chosen &= (frame.shared_dims == shared_dims) & np.isclose(frame.lambda_f, lambda_f, atol=1e-5)
    chosen &= (frame.data == DATA) & (frame.weighting == "fixed")
    return frame[chosen].set_index("seed").sort_index()


def curves_of(runs: pd.DataFrame, name: str) -> np.ndarray:
    """(runs, epochs) of one curve, NaN where it wasn't measured."""
    return pd.DataFrame([curves.get(name, []) for curves in runs.curves]).to_numpy(float)


# ---- arms and contrasts ----------------------------------------------------------------------


def study_arms(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is compared, by name: frames with a row a seed and columns of DIGITS.

    EXPERIMENT.SHARING.λ_F, dial.SHARING.λ_F, capacity.λ_F   runs
    alone.SHARING                           each task trained alone, at the epoch best for it
    hypervolume.SHARING                     volume, own_volume: an epoch for both tasks, for each
    baselines.PROTOCOL.METHOD, faults.FAULT
    users.QUESTION.EXPERIMENT               the difference in reciprocal ranks, user by user
    """
    arms = {
        f"{experiment}.{key(*where)}": arm(frame, experiment, *where)
        for experiment in ("report", "selected", "temporal", "sgd")
        for where in SETTINGS
    }
    for f in BOTH:
        arms[f"capacity.{f:g}"] = arm(frame, "capacity", 0, f)
        for K in DIAL_DIMS:
            arms[f"dial.{key(K, f)}"] = arm(frame, "dial", K, f)
    for K, sharing in SHARINGS.items():
        dial = {f: arm(frame, "dial", K, f) for f in LAMBDAS}
        arms |= {f"dial.{key(K, f)}": runs for f, runs in dial.items()}
        alone = pd.DataFrame({"mrr": dial[1.0].own_mrr, "mse": dial[0.0].own_mse})
        arms[f"alone.{sharing}"] = alone.assign(own_mrr=alone.mrr, own_mse=alone.mse)
        arms[f"hypervolume.{sharing}"] = hypervolumes(list(dial.values()))
    for protocol in ("report", "selected", "temporal"):
        for method in BASELINES:
            lines = frame[(frame.method == method) & (frame.protocol == protocol)]
            arms[f"baselines.{protocol}.{method.replace(' ', '_')}"] = lines.set_index("seed")
    for fault in VARIANTS:
        lines = frame[(frame.experiment == "faults") & (frame.fault == fault)]
        arms[f"faults.{fault.replace(' ', '_')}"] = lines.set_index("seed")
    for name, question in QUESTIONS.items():
        for experiment in TESTED:
            pair = (arms[f"{experiment}.{key(*at)}"] for at in (question.first, question.second))
            arms[f"users.{name}.{experiment}"] = user_by_user(*pair)
    return arms


def hypervolumes(dial: list[pd.DataFrame]) -> pd.DataFrame:
    """The volume of a sharing's arms together, a row a seed that all of them have."""
    seeds = sorted(set.intersection(*(set(runs.index) for runs in dial)))
    columns = {"volume": ["mrr", "mse"], "own_volume": ["own_mrr", "own_mse"]}
    volumes = [
        [
            hypervolume([runs.loc[seed, pair].astype(float) for runs in dial], REFERENCE, IDEAL)
            for pair in columns.values()
        ]
        for seed in seeds
    ]
    return pd.DataFrame(volumes, index=seeds, columns=list(columns), dtype=float)


def user_by_user(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Reciprocal ranks user by user, first − second, summed up a row a seed.

    The mean difference; % of users better, worse and tied; 1 where more are better than worse,
    and where the users' signed-rank test has p < 0.05.
    """
    rows = {}
    for seed in first.index.intersection(second.index):
        pair = [runs.reciprocal_ranks[seed] for runs in (first, second)]
        if all(isinstance(ranks, list) for ranks in pair):
            difference = np.subtract(*np.array(pair, float))
            difference = difference[np.isfinite(difference)]
            shares = [100 * (np.sign(difference) == sign).mean() for sign in (1, -1, 0)]
            significant = signed_rank_test(difference) < 0.05
            rows[seed] = [difference.mean(), *shares, shares[0] > shares[1], significant]
    return pd.DataFrame.from_dict(rows, "index", columns=list(USERS), dtype=float)


def contrasts() -> dict[str, tuple[str, str]]:
    """Two arms, first − second, by name.

    QUESTION.EXPERIMENT           its two settings
    weights.EXPERIMENT.SHARING    0.99/0.01 minus 0.5/0.5
    DIAL.to_separate, .to_shared  at the same weights; DIAL is dial.SHARING.λ_F or capacity.λ_F
    dial.SHARING.λ_F.gain         over each task alone, with the same sharing
    hypervolume.SHARING.to_separate, .to_shared
    """
    pairs = {}
    for experiment in ("report", "selected", "temporal", "sgd"):
        for name, (_, *settings) in QUESTIONS.items():
            pairs[f"{name}.{experiment}"] = [f"{experiment}.{key(*where)}" for where in settings]
        for K in (WIDTH, 0):
            pair = [f"{experiment}.{key(K, f)}" for f in BOTH]
            pairs[f"weights.{experiment}.{SHARINGS[K]}"] = pair
    for end in ("shared", "separate"):
        for f in BOTH:
            for name in (f"capacity.{f:g}", *(f"dial.{key(K, f)}" for K in DIAL_DIMS)):
                pairs[f"{name}.to_{end}"] = [name, f"dial.{end}.{f:g}"]
        for sharing in SHARINGS.values():
            pair = [f"hypervolume.{sharing}", f"hypervolume.{end}"]
            pairs[f"{pair[0]}.to_{end}"] = pair
    for K, sharing in SHARINGS.items():
        for f in LAMBDAS:
            pairs[f"dial.{key(K, f)}.gain"] = [f"dial.{key(K, f)}", f"alone.{sharing}"]
    return pairs


# ---- numbers ---------------------------------------------------------------------------------


def study_numbers(frame: pd.DataFrame) -> dict[str, Estimate | str]:
    """Every number of the study by name: an Estimate over seeds, or text; "—" while not computed.

    ARM.COLUMN, ARM.n and CONTRAST.COLUMN; of QUESTION.report|selected.mrr|mse also the test: .p,
    .holm, .d, .rank_biserial, .n; verdict.NUMBER.EXPERIMENT of what was expected.
    """
    arms, told = study_arms(frame), count_numbers(frame)
    for name, runs in arms.items():
        told[f"{name}.n"] = str(len(runs))
        for column in runs.columns.intersection(list(DIGITS)):
            large = column.endswith("weighted") and name.endswith("0.99")  # a ratio far above 1
            digits, sign = 1 if large else DIGITS[column], "+" if column in SIGNED else ""
            told[f"{name}.{column}"] = Estimate(runs[column], digits, sign)
    for name, pair in contrasts().items():
        first, second = (arms[each] for each in pair)
        columns = first.columns.intersection(second.columns).intersection(list(DIGITS))
        for column in columns:
            difference = paired_difference(first[column], second[column])
            told[f"{name}.{column}"] = Estimate(difference, DIGITS[column], "+")
    for where, levels in PUBLISHED.items():
        for metric in METRICS:
            told[f"report.{key(*where)}.published_{metric}"] = show(levels[metric], 3)
    for curve in (*FAULT_LOSSES, *METRICS):
        levels = [levels[curve] for levels in PUBLISHED.values()]
        told[f"faults.published.{curve}"] = f"{show(min(levels), 3)} to {show(max(levels), 3)}"
    p_values = {}
    for question in QUESTIONS:
        family = [
            f"{question}.{experiment}.{metric}" for experiment in TESTED for metric in METRICS
        ]
        p = [signed_rank_test(told[name].values) for name in family]
        for name, alone, adjusted in zip(family, p, holm(p), strict=True):
            d, biserial = effect_sizes(told[name].values)
            told |= {f"{name}.p": show(alone, 4), f"{name}.holm": show(adjusted, 4)}
            told |= {f"{name}.d": show(d, 2, "+"), f"{name}.rank_biserial": show(biserial, 2, "+")}
            told[f"{name}.n"] = f"{told[name]:n}"
            p_values[name] = adjusted
    for number, (_, measure, question, sign, experiments) in enumerate(EXPECTED, start=1):
        for experiment in experiments:
            name = f"{question}.{experiment}.{measure}"
            interval = bootstrap_interval(told[name].values)
            word = verdict(*interval, sign, p_values.get(name, 0))  # most have no test
            told[f"verdict.{number}.{experiment}"] = word
    return told


def count_numbers(frame: pd.DataFrame) -> dict[str, str]:
    """How much was run, and what the test parts and hypervolume's box hold."""
    runs = frame[frame.experiment.isin(PLANNED)]
    seeds, hours = runs.seed.nunique(), grid_hours(frame)
    smallest = 2 / 2**seeds * len(TESTED) * len(METRICS)  # all signs alike, in a family of four
    told = {
        "runs": f"{len(runs):,}",
        "seeds": str(seeds),
        "epochs": show(runs.epochs.max(), 0),
        "stacks": str(runs["stack"].nunique()),
        "workers": str(WORKERS),
        "hours": show(hours, 1),
        "hours.each": show(hours / WORKERS, 1),
        "holm.smallest": show(min(smallest, 1), 4),
    }
    for name, point in (("reference", REFERENCE), ("ideal", IDEAL)):
        for metric, value in zip(METRICS, point, strict=True):
            told[f"box.{name}.{metric}"] = f"{value:g}"
    for name, arms in PLANNED.items():
        mine = runs[runs.experiment == name]
        there = len(mine.groupby(["shared_dims", "lambda_f"]))
        told[f"progress.{name}.arms"] = f"{there} of {arms}"
        told[f"progress.{name}.runs"] = str(len(mine))
    return told | {f"temporal.{column}": show(frame[column].max(), 0) for column in COLD}


def grid_hours(frame: pd.DataFrame) -> float:
    """Hours of training and evaluation of all the study's stacks, one after the other."""
    runs = frame[frame.experiment.isin(PLANNED)]  # a run's seconds are its whole stack's
    return runs.groupby("stack")[["train_seconds", "eval_seconds"]].max().to_numpy().sum() / 3600


def verdict(low: float, high: float, sign: int, p: float = 0) -> str:
    """Does an interval bear out a difference above (1) or below zero (−1), or none (0)?

    Where a test belongs to it, its p must bear out the difference too.
    """
    if np.isnan(low):
        return "—"
    seen = 1 if low > 0 else -1 if high < 0 else 0
    if seen and p >= 0.05:
        return f"not settled: Holm's p is {show(p, 4)}"
    if seen == sign:
        return "held" if sign else "held: no difference seen"
    if not seen:
        return "not settled"
    return "did not hold: " + ("the opposite" if sign else "higher" if seen > 0 else "lower")
