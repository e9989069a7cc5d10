"""One joint model against the specialists: the tables of RESULTS.md, and the README's.

    python -m joint.report    # puts them into both documents

Read are recipe.jsonl, tuning.jsonl, baselines.jsonl and baselines_tuning.jsonl in results/; what
isn't there yet shows as "—" or as the command that computes it. Methods are compared in pairs of
runs on the same split: the mean difference with its 95% interval by Student's t, without tests.
"""

import sys
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pandas as pd

from arguments import Parser
from joint.design import ARMS, MEMBERS, METRICS, ROOT, SPECIALISTS, TARGETS, label, ranked_trials
from study.records import read, write_blocks
from study.stats import Estimate, markdown_table, paired_difference, show, t_interval

DOCUMENTS = ("RESULTS.md", "README.md")
OURS = ("best", "ensemble")
WIDE, NARROW = "separate, each task as wide", "separate, as many parameters"


def results_text(results: Path) -> dict[str, str]:
    """Every block of RESULTS.md, and the README's table of it, by name."""
    recipe = read(results / "recipe.jsonl")
    runs = Runs(recipe, read(results / "baselines.jsonl"))
    searches = (read(results / f"{name}.jsonl") for name in ("tuning", "baselines_tuning"))
    return {
        "joint_ranking": methods(
            runs, "mrr", {"NDCG@10": "ndcg_at_10", "Recall@10": "recall_at_10"}
        ),
        "joint_rating": methods(runs, "mse", {}),
        "joint_verdict": verdict(runs),
        "joint_ablation": ablation(runs),
        "joint_references": against_the_recipe(runs),
        "joint_sharing": sharing(runs),
        "joint_cost": cost([line for line in recipe if "seconds" in line], runs),
        "joint_search": search(*searches),
        "joint_temporal": temporal(runs),
        "readme_joint": short(runs),
    }


# ---- runs and numbers ------------------------------------------------------------------------


class Runs:
    """Runs of arms and specialists by split and name, each a frame indexed by seed.

    The metric of a task that has no weight in an arm is left out: nothing has trained it. Seconds
    of the joint model are those of the cost's record: a stack's share of its own are no fit's.
    """

    numbers = (*METRICS, "ndcg_at_10", "recall_at_10", "seconds", "parameters")
    columns = (*numbers, "commit")

    def __init__(self, recipe: list[dict], specialists: list[dict]):
        rows = []
        costs = [line["seconds"] for line in recipe if "seconds" in line]
        fit = {"best": median(costs[-1]["joint"])} if costs else {}
        for line in recipe:
            if "arm" in line:
                row = line | {"name": line["arm"], "seconds": fit.get(line["arm"])}
                if line["lambda_f"] and line["lambda_r"]:
                    row["parameters"] = parameters(line)
                if not line["lambda_f"]:
                    row |= dict.fromkeys(("mrr", "ndcg_at_10", "recall_at_10"))
                rows.append(row if line["lambda_r"] else row | {"mse": None})
        for line in specialists:
            rows.append(line | {"name": line["method"], "seconds": line["fit_seconds"]})
        frame = pd.DataFrame(rows, columns=["split", "name", "seed", *self.columns])
        frame = frame.astype(dict.fromkeys(self.numbers, float))
        if (twice := frame.duplicated(["split", "name", "seed"])).any():
            raise ValueError(f"results: two lines of {frame[twice].iloc[0, :3].to_dict()}")
        groups = frame.set_index("seed").sort_index().groupby(["split", "name"])
        self.by_name = dict(iter(groups))
        self.ours = any("arm" in line for line in recipe)
        self.specialists = list(dict.fromkeys(line["method"] for line in specialists))

    def of(self, name: str, split: str = "random") -> pd.DataFrame:
        return self.by_name.get((split, name), pd.DataFrame(columns=self.columns, dtype=float))

    def ranked(self, metric: str, split: str = "random") -> list[str]:
        """The specialists of a metric, the best first."""
        means = {name: self.of(name, split)[metric].mean() for name in self.specialists}
        names = [name for name in means if np.isfinite(means[name])]
        return sorted(names, key=lambda name: -METRICS[metric] * means[name])


def parameters(line: dict) -> int:
    """How many numbers the model of a recipe's line holds, over all its members."""
    users, items = line["n_users"], line["n_items"]
    ranking, rating, common = (line[key] for key in ("ranking_dim", "rating_dim", "shared_dims"))
    rows = users + items + line["user_history"] * items + line["item_history"] * users
    own_biases = line["rating_biases"] and not ranking == rating == common
    count = rows * (ranking + rating - common) + (users + items) * (1 + own_biases)
    if line["rating_head"] != "dot":
        count += (3 * rating + 1) * line["hidden"] + line["hidden"] + 1
    if line["rating_head"] != "mlp":  # "both", of an arm on record, has both
        count += 2 * rating
    return count * line["ensemble"]


def level(values: pd.Series) -> str:
    return f"{Estimate(values, 4):sd}"


def difference(first: pd.Series, second: pd.Series) -> str:
    """first − second, paired by split, with its interval."""
    values = paired_difference(first, second)
    if not len(values):
        return "—"
    low, high = (show(bound, 4, "+") for bound in t_interval(values))
    return f"{show(values.mean(), 4, '+')} [{low}, {high}]"


def judged(first: pd.Series, second: pd.Series, metric: str, words: tuple[str, str, str]) -> str:
    """Which of three words the interval of first − second bears out: better, worse, neither."""
    values = paired_difference(first, second) * METRICS[metric]
    if not len(values):
        return "not computed yet"
    low, high = t_interval(values)
    return words[0] if low > 0 else words[1] if high < 0 else words[2]


def waiting(script: str = "recipe") -> str:
    return f"(not computed yet: `python -m joint.{script}`)"


def with_wait(text: str, runs: Runs) -> str:
    return text if runs.ours else f"{text}\n\nOur own rows: {waiting()}"


# ---- blocks ----------------------------------------------------------------------------------


def methods(runs: Runs, metric: str, more: dict[str, str]) -> str:
    """A table of one task: ours, then its specialists, the best first."""
    rows, seeds = [], range(5)
    for name in (*OURS, *runs.ranked(metric)):
        frame = runs.of(name)
        by_split = (show(value, 4) for value in frame[metric].reindex(seeds))
        others = (show(frame[other].mean(), 3) for other in more.values())
        mean, seconds = level(frame[metric]), show(frame.seconds.mean(), 1)
        rows.append([label(name), mean, *by_split, *others, seconds])
    splits = (f"split {seed}" for seed in seeds)
    heads = ["method", metric.upper(), *splits, *more, "seconds a fit"]
    return with_wait(markdown_table(heads, rows), runs)


def verdict(runs: Runs) -> str:
    """Ours against the best specialist of each task, and against the targets."""
    if not (runs.ours and runs.specialists):
        return waiting("baselines" if runs.ours else "recipe")
    lines = []
    for name in OURS:
        for metric, target in TARGETS.items():
            ours, best = runs.of(name)[metric], runs.ranked(metric)[0]
            theirs = runs.of(best)[metric]
            if not len(ours):
                lines.append(f"- {label(name)}, {metric.upper()}: {waiting()}")
                continue
            won = (paired_difference(ours, theirs) * METRICS[metric] > 0).sum()
            met = (ours.mean() - target) * METRICS[metric] >= 0
            words = ("ahead", "behind", "not settled")
            lines.append(
                f"- {label(name)}, **{metric.upper()} {show(ours.mean(), 4)}**: "
                f"{difference(ours, theirs)} against {label(best)} ({show(theirs.mean(), 4)}), "
                f"better on {won} of {len(ours)} splits: "
                f"{judged(ours, theirs, metric, words)}. "
                f"The target, {'at least' if metric == 'mrr' else 'at most'} {target:g}, "
                f"is {'met' if met else 'missed'} ({show(ours.mean() - target, 5, '+')})."
            )
    return "\n".join(lines)


def ablation(runs: Runs) -> str:
    """The arms, each against its reference; what can't be computed any more names its commit."""
    if not runs.ours:
        return waiting()
    rows = []
    for name, arm in ARMS.items():
        frame, reference, notes = runs.of(name), runs.of(arm.against), []
        if arm.against != "best":
            notes.append(f"against “{arm.against}”")
        if arm.on_record and len(frame):
            notes.append(f"on record, commit {frame.commit.iloc[-1][:7]}")
        cells = [label(name) + (f" ({'; '.join(notes)})" if notes else "")]
        for metric in METRICS:
            change = difference(frame[metric], reference[metric]) if name != "best" else ""
            cells += [level(frame[metric]), change]
        rows.append([*cells, show(frame.parameters.mean() / 1e6, 2)])
    heads = ["arm", "MRR", "MRR, difference", "MSE", "MSE, difference", "million parameters"]
    return markdown_table(heads, rows)


def against_the_recipe(runs: Runs) -> str:
    """The arms that the ablation compares with another, against the recipe as well."""
    if not runs.ours:
        return waiting()
    told = []
    for name, arm in ARMS.items():
        if arm.against != "best":
            pairs = [(runs.of(name)[metric], runs.of("best")[metric]) for metric in METRICS]
            told.append(f"{name} {' and '.join(difference(*pair) for pair in pairs)}")
    return f"Against the recipe itself, in MRR and MSE: {'; '.join(told)}."


def sharing(runs: Runs) -> str:
    """Does sharing help? The recipe minus its separate arms, and minus each task alone."""
    if not len(runs.of("best")):
        return waiting()
    against = [
        (f"The joint model minus “{WIDE}”", (WIDE, WIDE), "random"),
        (f"The joint model minus “{NARROW}”", (NARROW, NARROW), "random"),
        (
            "The joint model minus each task trained alone",
            ("ranking alone", "rating alone"),
            "random",
        ),
        (f"The same on the temporal split, minus “{WIDE}”", (WIDE, WIDE), "temporal"),
    ]
    lines = []
    for told, arms, split in against:
        parts = []
        for metric, arm in zip(METRICS, arms, strict=True):
            pair = runs.of("best", split)[metric], runs.of(arm, split)[metric]
            word = judged(*pair, metric, ("helps", "hurts", "no difference seen"))
            parts.append(f"{metric.upper()} {difference(*pair)} ({word})")
        lines.append(f"- {told}: {', '.join(parts)}.")
    return "\n".join(lines)


def cost(lines: list[dict], runs: Runs) -> str:
    """The last measurement of joint/recipe.py --cost."""
    if not lines:
        return waiting("recipe --cost")
    seconds = {name: median(values) for name, values in lines[-1]["seconds"].items()}
    joint, others = seconds.pop("joint"), sum(seconds.values())
    told = " and ".join(f"{label(name)} {show(value, 1)} s" for name, value in seconds.items())
    size = show(runs.of("best").parameters.mean() / 1e6, 2)
    return (
        f"One fit of the joint model takes {show(joint, 1)} s, {told}: the joint model costs "
        f"{show(joint / others, 2)} of the two together. It has {size} million parameters. "
        f"The ensemble is {MEMBERS} such fits: {show(MEMBERS * joint / others, 2)}."
    )


def search(tuning: list[dict], specialists: list[dict]) -> str:
    """What the searches spent, and what the chosen trial got on its validation parts."""
    told = f"The joint model's search: {waiting('tune')}."
    if SPECIALISTS.keys() <= {line["arguments"] for line in tuning}:
        ours = [line for line in tuning if line["arguments"] not in SPECIALISTS]
        hours = sum(line["cpu_seconds_a_fold"] * len(line["mrr"]) for line in ours) / 3600
        finals = sum(line.get("first_fold", 0) > 0 for line in ours)
        best = ranked_trials(tuning)[0]
        others = [
            f"{label(name)} {metric.upper()} {show(fmean(line[metric]), 4)}"
            for line in tuning
            if (metric := SPECIALISTS.get(name := line["arguments"]))
        ]
        told = (
            f"The joint model's search: {len(ours) - finals} trials of {len(ours[0]['mrr'])} folds,"
            f" and {finals} finalists on as many again: {show(hours, 1)} CPU hours of training. "
            f"Over {len(best['mrr'])} validation parts the settings chosen have "
            f"MRR {show(fmean(best['mrr']), 4)} and MSE {show(fmean(best['mse']), 4)}; "
            f"{' and '.join(others)}."
        )
    if specialists:
        trials = pd.Series([line["method"] for line in specialists]).value_counts()
        hours = sum(sum(line["fit_seconds"]) for line in specialists) / 3600
        told += (
            f" The specialists' searches: {len(specialists)} trials, from {trials.min()} to "
            f"{trials.max()} a method, {show(hours, 1)} hours of fitting on one thread."
        )
    return told


def temporal(runs: Runs) -> str:
    rows = []
    ours = ("best", WIDE) if runs.ours else ()
    for name in (*ours, *runs.ranked("mrr", "temporal"), *runs.ranked("mse", "temporal")):
        frame = runs.of(name, "temporal")
        levels = (level(frame[metric]) for metric in METRICS)
        others = (show(frame[other].mean(), 3) for other in ("ndcg_at_10", "recall_at_10"))
        rows.append([label(name), str(len(frame)), *levels, *others])
    heads = ["method", "runs", "MRR", "MSE", "NDCG@10", "Recall@10"]
    return with_wait(markdown_table(heads, rows), runs)


def short(runs: Runs) -> str:
    """The README's table: ours, and the two best specialists of each task."""
    rows = []
    for name in (*OURS, *runs.ranked("mrr")[:2], *runs.ranked("mse")[:2]):
        frame = runs.of(name)
        levels = (level(frame[metric]) for metric in METRICS)
        rows.append([label(name), *levels, show(frame.seconds.mean(), 1)])
    return with_wait(markdown_table(["method", "MRR", "MSE", "seconds a fit"], rows), runs)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.report", description=__doc__)
    add = parser.add_argument
    add("--results", type=Path, default=ROOT / "results", help="folder of the lines (results)")
    options = parser.parse_args(argv)
    text = results_text(options.results)
    for document in DOCUMENTS:
        write_blocks(ROOT / document, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
