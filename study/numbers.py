"""The study's lines as named numbers: Numbers(read_study(path))["q1.report.mrr"] is an Estimate."""

import difflib
from pathlib import Path

import numpy as np
import pandas as pd

from study import design, records, stats
from study.design import DATA, METRICS, PLANNED, PUBLISHED, TESTED
from study.stats import Estimate, show
from weighting import METHODS

SIDES = ("users", "items")
DIGITS = {  # of every column, by how many are shown
    column: digits
    for digits, columns in {
        0: "epoch peak_epoch lowest_mse_epoch users_conflict items_conflict agree tests "
        "test_rows cold_users cold_user_rows cold_items cold_item_rows dominated",
        1: "fall_epoch better worse tied",
        3: "mse last_mse own_mse lowest_mse mrr_first ndcg_at_10 recall_at_10 volume own_volume "
        "mean_joint mean_factorization mean_regression factorization_loss regression_loss "
        "factorization_loss_first regression_loss_first users_cosine items_cosine "
        "users_norm_ratio items_norm_ratio users_weighted items_weighted score val_score",
        4: "mrr last_mrr own_mrr mrr_there difference "
        "relative_fluctuation relative_ranking_fluctuation",
        5: "fluctuation ranking_fluctuation ratio rho",
    }.items()
    for column in columns.split()
}
SECONDS = ("train_seconds", "eval_seconds", "cpu_seconds")
SIGNIFICANT = ("ratio", "rho")  # with three significant digits
SIGNED = ("difference", "users_cosine", "items_cosine")  # with a plus where above zero
# What tells a run from every other; a line from before the first two were fields has these values.
IDENTITY = {"data": DATA, "weighting": "fixed", "experiment": None, "protocol": None}
IDENTITY |= dict.fromkeys("shared_dims embedding_dim lambda_f method fault seed tried".split())


def read_study(path: Path) -> pd.DataFrame:
    """The lines of a study, a row a run; columns that no line has are there, and empty.

    Raises ValueError, naming the file, the line and what is wrong with it.
    """
    lines = records.read(path)
    if not lines:
        raise ValueError(f"{path}: no such file, or no runs in it; python -m study.run writes it")
    for number, line in enumerate(lines, start=1):
        if "experiment" not in line:
            raise ValueError(f"{path}: line {number} names no experiment")
        if str(line["experiment"]).endswith("-tries"):
            line["tried"] = "{optimizer} {lr} {weight_decay}".format(**line)
        line |= {name: line.get(name, default) for name, default in IDENTITY.items()}
        line |= {"arm": arm_of(line)} | measures(line) | weighed(line)
    frame, numeric = pd.DataFrame(lines), ["epochs", *SECONDS, *DIGITS]
    if (twice := frame.duplicated(list(IDENTITY))).any():
        run = frame.loc[twice, list(IDENTITY)].iloc[0].dropna().to_dict()
        raise ValueError(f"{path}: line {twice.argmax() + 1} repeats the run {run}")
    needed = dict.fromkeys([*frame, *numeric, "stack", "reciprocal_ranks", "curves"])
    return frame.reindex(columns=list(needed)).astype(dict.fromkeys(numeric, float))


def arm_of(line: dict) -> str | None:
    """The arm that a line is a run of, if it is the plan's."""
    planned = design.STACKS.get(line.get("stack"), {})
    same = all(planned.get(name) == line[name] for name in ("data", "weighting"))
    arm = planned["arm"] if same else None
    if line["experiment"] == "baselines":
        part = line["protocol"] if line["data"] == DATA else line["data"]
        arm = f"baselines.{part}.{line['method']}".replace(" ", "_")
    if line["experiment"] == "faults":
        arm = f"faults.{line['fault']}".replace(" ", "_")
    return arm


def weighed(line: dict) -> dict[str, float]:
    """The run's score, log MRR − log MSE, on both parts, its ratio w_F/w_R, and its ρ.

    Where weights move, these are geometric means over the epochs up to the returned one.
    """
    told = {}
    for part in ("", "val_"):
        if line.get(f"{part}mrr") and line.get(f"{part}mse"):
            told[f"{part}score"] = np.log(line[f"{part}mrr"]) - np.log(line[f"{part}mse"])
    if line["lambda_f"] is not None and line.get("lambda_r"):
        told["ratio"] = line["lambda_f"] / line["lambda_r"]
    if "log_ratio" in line:
        told["ratio"] = np.exp(line["log_ratio"])
    if "log_rho" in line and "probe" not in line["weighting"]:
        told["rho"] = np.exp(line["log_rho"])
    return told


def measures(line: dict) -> dict[str, float]:
    """How a run of the report's experiment trained; of a fault, both ends of its losses.

    Fluctuation is the standard deviation of a loss's change from epoch to epoch over the last 100;
    the two tasks' gradients are those of one step an epoch.
    """
    curves, told, f = line.get("curves"), {}, line["lambda_f"]
    if line["experiment"] == "faults":
        for loss in ("factorization_loss", "regression_loss"):
            told[f"{loss}_first"], *_, told[loss] = curves[loss]
    if line["experiment"] != "report":
        return told
    names = ("mrr", "mse", "joint_loss", "regression_loss", "factorization_loss")
    mrr, mse, joint, rating, ranking = (np.array(curves[name], float) for name in names)
    lowest, fallen = np.nanargmin(mse), joint[0] - 0.95 * (joint[0] - joint[-1])
    fluctuation, of_ranking = (np.diff(loss)[-100:].std() for loss in (joint, ranking))
    weights = np.nan if f in (None, 1) else f / (1 - f)  # λ_F/λ_R; none where a method weighs
    for side in SIDES:
        names = f"{side}_cosine", f"{side}_norm_ratio"
        cosine, ratio = (pd.Series(curves.get(name), dtype=float) for name in names)
        conflict = 100 * (cosine.dropna() < 0).mean()  # % of the steps
        told |= {names[0]: cosine.mean(), f"{side}_conflict": conflict, names[1]: ratio.median()}
        told[f"{side}_weighted"] = ratio.median() * weights
    told |= {"fluctuation": fluctuation, "ranking_fluctuation": of_ranking}
    told["relative_fluctuation"] = fluctuation / joint[-100:].mean()
    told["relative_ranking_fluctuation"] = of_ranking / ranking[-100:].mean()
    told |= {"peak_epoch": np.nanargmax(mrr), "lowest_mse_epoch": lowest}
    told |= {"lowest_mse": mse[lowest], "mrr_there": mrr[lowest], "mean_joint": joint.mean()}
    told |= {"mean_factorization": ranking.mean(), "mean_regression": rating.mean()}
    return told | {"fall_epoch": (joint <= fallen).argmax() + 1}  # epochs to 95% of the fall


def study_arms(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is compared, by name: frames with a row a seed, empty while there are no runs.

    PROTOCOL.STRUCTURE.λ_F, temporal.…, sgd.…   the runs of a planned arm
    baselines.PROTOCOL.METHOD, faults.FAULT
    alone.STRUCTURE          each task trained alone, at the epoch best for it
    hypervolume.STRUCTURE    volume, own_volume: an epoch for both tasks, for each
    users.QUESTION.PROTOCOL  the difference in reciprocal ranks, user by user
    PLACE.chosen.fixed, PLACE.chosen.method   of each seed the arm of the best validation score,
                             among the fixed ratios and among the methods; PLACE as in PLACES
    """
    names = list(design.ARMS.values())
    for part in ("report", "selected", "temporal", *design.PLACES[1:], *design.PLANTED):
        names += [f"baselines.{part}.{method}" for method in design.BASELINES]
    names += [f"faults.{fault}" for fault in design.VARIANTS]
    runs = frame.set_index("seed").sort_index()
    there = dict(iter(runs.groupby("arm")))
    arms = {name: there.get(name, runs[:0]) for name in (n.replace(" ", "_") for n in names)}
    box = design.REFERENCE, design.IDEAL
    for structure in design.WEIGHED:
        dial = [arms[f"selected.{structure}.{f:g}"] for f in design.LAMBDAS]
        alone = pd.DataFrame({"mrr": dial[-1].own_mrr, "mse": dial[0].own_mse})
        arms[f"alone.{structure}"] = alone.assign(own_mrr=alone.mrr, own_mse=alone.mse)
        volumes = {}  # of a structure's arms together, for each seed that all of them have
        for seed, runs in pd.concat(dial).groupby(level="seed"):
            if len(runs) == len(dial):
                pairs = runs[["mrr", "mse"]], runs[["own_mrr", "own_mse"]]
                volumes[seed] = [stats.hypervolume(pair.to_numpy(float), *box) for pair in pairs]
        arms[f"hypervolume.{structure}"] = pd.DataFrame(volumes, ["volume", "own_volume"]).T
    for question, settings in design.QUESTIONS.items():
        for protocol in TESTED:
            pair = (arms[f"{protocol}.{setting}"] for setting in settings)
            arms[f"users.{question}.{protocol}"] = user_by_user(*pair)
    for place in design.PLACES:
        dial = {n: runs for n, runs in arms.items() if n.startswith(f"{place}.shared.")}
        dial = {name: runs for name, runs in dial.items() if len(runs) and "probe" not in name}
        fixed = {n for n, runs in dial.items() if (runs.weighting == "fixed").all()}
        for name in dial:
            others = [dial[other] for other in fixed - {name}]
            arms[name] = dial[name].assign(dominated=dominated(dial[name], others))
        for kind, names in (("fixed", fixed), ("method", dial.keys() - fixed)):
            runs = pd.concat([dial[name] for name in sorted(names)]) if names else runs[:0]
            best = runs.sort_values("val_score", kind="stable").groupby(level="seed").tail(1)
            arms[f"{place}.chosen.{kind}"] = best.sort_index()
    return arms


def dominated(runs: pd.DataFrame, others: list[pd.DataFrame]) -> pd.Series:
    """1 where another arm's run of the same seed is at least as good in both metrics."""
    found = pd.Series(0.0, runs.index)
    for other in others:
        other = other.reindex(runs.index)
        found[(other.mrr >= runs.mrr) & (other.mse <= runs.mse)] = 1.0
    return found


def user_by_user(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Reciprocal ranks user by user, first − second, summed up a row a seed.

    % of users better, worse, tied; 1 where more are better than worse, where their test has p < 5%.
    """
    rows = {}
    for seed in first.index.intersection(second.index):
        pair = [runs.reciprocal_ranks[seed] for runs in (first, second)]
        difference = np.subtract(*np.array(pair, float))
        difference = difference[np.isfinite(difference)]
        shares = [100 * (np.sign(difference) == sign).mean() for sign in (1, -1, 0)]
        significant = stats.signed_rank_test(difference) < 0.05
        rows[seed] = [difference.mean(), *shares, shares[0] > shares[1], significant]
    columns = "difference better worse tied agree tests".split()
    return pd.DataFrame.from_dict(rows, "index", float, columns)


class Numbers:
    """Every number of the study by name: an Estimate over seeds, or text; "—" while not computed.

    ARM.COLUMN                    arms as study_arms names them, columns as DIGITS does
    FIRST − SECOND.COLUMN         of two arms, paired by seed
    QUESTION.EXPERIMENT.COLUMN    of a question's settings, also paired; of mrr and mse the tests
                                  too, .p .holm .d .rank_biserial; of what was expected .verdict
    runs, seeds, hours, …         how much was run (see counted)
    """

    def __init__(self, frame: pd.DataFrame):
        self.arms = study_arms(frame)
        self.told = counted(frame)
        families = [[f"{q}.{protocol}" for protocol in TESTED] for q in design.QUESTIONS]
        for family in [*families, list(design.QUESTION_3)]:
            names = [f"{where}.{metric}" for where in family for metric in METRICS]
            p_values = [stats.signed_rank_test(self[name].values) for name in names]
            for name, p, adjusted in zip(names, p_values, stats.holm(p_values), strict=True):
                self.told[f"{name}.p"] = Estimate([p], 4)
                self.told[f"{name}.holm"] = Estimate([adjusted], 4)
                for size, value in stats.effect_sizes(self[name].values).items():
                    self.told[f"{name}.{size}"] = Estimate([value], 2, "+")
        for name, sign in design.EXPECTED.items():
            interval = stats.bootstrap_interval(self[name].values)
            test = self.told.get(f"{name}.holm", Estimate([0], 4))  # most have none
            self.told[f"{name}.verdict"] = verdict(*interval, sign, *test.values)

    def __getitem__(self, name: str) -> Estimate | str:
        """Raises ValueError, naming the nearest one, for an unknown name."""
        if name in self.told:
            return self.told[name]
        where, _, column = name.rpartition(".")
        question, _, experiment = where.partition(".")
        if where in design.QUESTION_3:
            where = " − ".join(design.QUESTION_3[where])
        elif question in design.QUESTIONS:
            where = " − ".join(f"{experiment}.{each}" for each in design.QUESTIONS[question])
        pair = [self.column(arm, column, name) for arm in where.split(" − ")]
        if len(pair) == 2:
            return Estimate(stats.paired_difference(*pair), DIGITS[column], "+")
        large = column.endswith("weighted") and pair[0].mean() > 1  # a ratio
        digits = 1 if large else DIGITS[column]
        if column in SIGNIFICANT and pair[0].mean() > 0:
            digits = int(np.clip(2 - np.floor(np.log10(pair[0].mean())), 0, 3))
        return Estimate(pair[0], digits, "+" if column in SIGNED else "")

    def column(self, arm: str, column: str, name: str) -> pd.Series:
        if arm not in self.arms or column not in DIGITS or column not in self.arms[arm]:
            known = [f"{arm}.{each}" for arm, runs in self.arms.items() for each in runs]
            close = difflib.get_close_matches(f"{arm}.{column}", [*self.told, *known], 1, 0.3)
            raise ValueError(f"no number {name}{f'; the nearest is {close[0]}' if close else ''}")
        return self.arms[arm][column]


def counted(frame: pd.DataFrame) -> dict[str, str]:
    """How much was run, hypervolume's box, and the published levels."""
    runs = frame[frame.arm.isin(design.ARMS.values())]
    seconds = runs.cpu_seconds.fillna(runs.train_seconds + runs.eval_seconds)  # of a whole stack
    hours = seconds.groupby([runs.experiment.isin(design.ELSEWHERE), runs["stack"]]).max() / 3600
    hours, elsewhere = (hours[hours.index.get_level_values(0) == x].sum() for x in (False, True))
    seeds = runs.seed[~runs.experiment.str.endswith("-tries")].nunique()
    smallest = 2 / 2**seeds * len(TESTED) * len(METRICS)  # all signs alike, in a family of four
    told = {
        "runs": f"{len(runs):,}",
        "seeds": str(seeds),
        "epochs": show(runs.epochs.max(), 0),
        "stacks": str(runs["stack"].nunique()),
        "planned": str(len(design.STACKS)),
        "workers": str(design.WORKERS),
        "methods": str(len(design.METHODS)),
        "hours": show(hours, 1),
        "hours.each": show(hours / design.WORKERS, 1),
        "hours.elsewhere": show(elsewhere, 1),
        "holm.smallest": show(min(smallest, 1), 4),
    }
    for name, point in (("reference", design.REFERENCE), ("ideal", design.IDEAL)):
        told[f"box.{name}"] = "MRR {:g}, MSE {:g}".format(*point)
    # Of a run in a stack of 16, from the bench's last record: not the study's own, noisy seconds.
    bench = records.read(Path(__file__).parents[1] / "results/bench.jsonl")
    costs = [line["ratio_to_fixed"] for line in bench if "ratio_to_fixed" in line]
    told |= {f"cost.{name}": "—" for name in METHODS}
    told |= {f"cost.{name}": show(ratio, 2) for name, ratio in costs[-1].items()}
    for name, arms in PLANNED.items():
        mine = runs[runs.experiment == name]
        told[f"progress.{name}.arms"] = f"{mine.arm.nunique()} of {arms}"
        told[f"progress.{name}.runs"] = str(len(mine))
    levels = pd.DataFrame(PUBLISHED)  # a column a setting
    for curve, low, high in zip(levels.index, levels.min(axis=1), levels.max(axis=1), strict=True):
        told[f"faults.published.{curve}"] = f"{low:.3f} to {high:.3f}"
        for setting in levels:
            told[f"report.{setting}.published_{curve}"] = f"{levels[setting][curve]:.3f}"
    return told


def verdict(low: float, high: float, sign: int, p: float = 0) -> str:
    """Does an interval bear out a difference above (1) or below zero (−1), or none (0)?

    Where a test belongs to it, its p must bear out the difference too.
    """
    if np.isnan(low):
        return "—"
    seen = int(low > 0) - int(high < 0)
    if seen and p >= 0.05:
        return f"not settled: Holm's p is {show(p, 4)}"
    if not seen:
        return "not settled" if sign else "held: no difference seen"
    if seen == sign:
        return "held"
    return "did not hold: " + ("the opposite" if sign else "higher" if seen > 0 else "lower")


def curves_of(runs: pd.DataFrame, name: str) -> np.ndarray:
    """(runs, epochs) of one curve, NaN where it wasn't measured."""
    return pd.DataFrame([curves.get(name, []) for curves in runs.curves]).to_numpy(float)
