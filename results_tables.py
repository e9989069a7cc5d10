"""One joint model against the specialists: the generated blocks of RESULTS.md, as Markdown.

    generated = results_text(Path("results"))        # {"joint_verdict": "- **MRR** …", …}

Read are recipe.jsonl, tuning.jsonl, baselines.jsonl and baselines_tuning.jsonl; what isn't there
yet shows as "—" or as the command that computes it. Methods are compared in pairs of runs on the
same split: the mean difference with its 95% interval by Student's t, without tests.
"""

import json
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pandas as pd
from scipy import stats

from tables import METRICS, paired_difference, show

TARGETS = {"mrr": 0.152, "mse": 0.765}
BETTER = {"mrr": 1, "mse": -1}  # the sign of a difference that is an improvement
OURS = ("best", "ensemble")
MEMBERS = 4  # of the ensemble, recipes/ensemble.txt
SPECIALISTS = {"ease": "mrr", "fm-implicit": "mse"}  # the best at each task
ARMS = (  # of experiments/recipe.py, in its order
    "best; separate, each task as wide; separate, as many parameters; "
    "all shared, as many parameters; ranking alone; rating alone; no user history; "
    "no item history; MLP for the dot product; MLP beside the dot product; "
    "no biases and mean in the rating; nothing left out; history dropout for leaving out; "
    "no ranking dropout; no rating dropout; "
    "no weight decay; one weight decay; constant learning rate; averaged weights; "
    "batches of 4,096 interactions; BPR loss; ensemble"
).split("; ")
REFERENCES = {  # arms that are another arm with one thing changed, not the recipe
    "MLP for the dot product": "nothing left out",
    "MLP beside the dot product": "nothing left out",
    "batches of 4,096 interactions": "nothing left out",
    "BPR loss": "batches of 4,096 interactions",
}
LABELS = {
    "best": "one joint model",
    "ensemble": f"ensemble of {MEMBERS}",
    "ease": "EASE",
    "als": "implicit ALS",
    "warp": "LightFM WARP",
    "cornac-bpr": "Cornac BPR",
    "implicit-bpr": "implicit BPR",
    "item-knn": "item kNN",
    "fm-implicit": "myFM, implicit features",
    "fm": "myFM, one-hot",
    "cornac-mf": "Cornac MF",
    "global-mean": "global mean",
}


# ---- the files -------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    """The whole lines of a results file: none if it isn't there, a torn last one left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def parameters(line: dict) -> int:
    """How many numbers the model of a recipe's line holds, over all its members."""
    users, items = line["n_users"], line["n_items"]
    ranking, rating, common = (line[key] for key in ("ranking_dim", "rating_dim", "shared_dims"))
    rows = users + items + line["user_history"] * items + line["item_history"] * users
    own_biases = line["rating_biases"] and not ranking == rating == common
    count = rows * (ranking + rating - common) + (users + items) * (1 + own_biases)
    if line["rating_head"] != "dot":
        count += (3 * rating + 1) * line["hidden"] + line["hidden"] + 1
    if line["rating_head"] != "mlp":
        count += 2 * rating
    return count * line["ensemble"]


class Runs:
    """Runs of arms and specialists by split and name, each a frame indexed by seed.

    The metric of a task that has no weight in an arm is left out: nothing has trained it. Seconds
    of the joint model are those of the cost's record: a stack's share of its own are no fit's.
    """

    columns = (*METRICS, "ndcg_at_10", "recall_at_10", "seconds", "parameters")

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
        frame = frame.astype(dict.fromkeys(self.columns, float))
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
        return sorted(names, key=lambda name: -BETTER[metric] * means[name])


# ---- numbers ---------------------------------------------------------------------------------


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean by Student's t; NaN with fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return np.mean(values) - reach, np.mean(values) + reach


def mean_and_spread(values: pd.Series, digits: int = 4) -> str:
    spread = f" ± {show(values.std(), digits)}" if len(values.dropna()) > 1 else ""
    return show(values.mean(), digits) + spread


def difference(first: pd.Series, second: pd.Series) -> str:
    """first − second, paired by split, with its interval."""
    values = paired_difference(first, second)
    if not len(values):
        return "—"
    low, high = (show(bound, 4, "+") for bound in t_interval(values))
    return f"{show(values.mean(), 4, '+')} [{low}, {high}]"


def judged(first: pd.Series, second: pd.Series, metric: str, words: tuple[str, str, str]) -> str:
    """Which of three words the interval of first − second bears out: better, worse, neither."""
    low, high = t_interval(paired_difference(first, second) * BETTER[metric])
    return words[0] if low > 0 else words[1] if high < 0 else words[2]


# ---- blocks ----------------------------------------------------------------------------------


def table(heads: str, rows: list[list[str]]) -> str:
    heads = heads.split(" | ")
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def waiting(script: str = "recipe") -> str:
    return f"(not computed yet: `python -m experiments.{script}`)"


def label(name: str) -> str:
    return LABELS.get(name, name)


def results_text(results: Path) -> dict[str, str]:
    """Every block of RESULTS.md, and the README's table of it."""
    recipe = read(results / "recipe.jsonl")
    runs = Runs(recipe, read(results / "baselines.jsonl"))
    searches = (read(results / f"{name}.jsonl") for name in ("tuning", "baselines_tuning"))
    return {
        "joint_ranking": methods(runs, "mrr", "ndcg_at_10", "recall_at_10"),
        "joint_rating": methods(runs, "mse"),
        "joint_verdict": verdict(runs),
        "joint_ablation": ablation(runs),
        "joint_references": against_the_recipe(runs),
        "joint_sharing": sharing(runs),
        "joint_cost": cost([line for line in recipe if "seconds" in line], runs),
        "joint_search": search(*searches),
        "joint_temporal": temporal(runs),
        "readme_joint": short(runs),
    }


def with_wait(text: str, runs: Runs) -> str:
    return text if runs.ours else f"{text}\n\nOur own rows: {waiting()}"


def methods(runs: Runs, metric: str, *more: str) -> str:
    """A table of one task: ours, then its specialists, the best first."""
    rows, seeds = [], range(5)
    for name in (*OURS, *runs.ranked(metric)):
        frame = runs.of(name)
        by_split = frame[metric].reindex(seeds)
        cells = [mean_and_spread(frame[metric]), *(show(value, 4) for value in by_split)]
        cells += [show(frame[other].mean(), 3) for other in more]
        rows.append([label(name), *cells, show(frame.seconds.mean(), 1)])
    heads = ["method", metric.upper(), *(f"split {seed}" for seed in seeds)]
    heads += [{"ndcg_at_10": "NDCG@10", "recall_at_10": "Recall@10"}[name] for name in more]
    return with_wait(table(" | ".join([*heads, "seconds a fit"]), rows), runs)


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
            won = (paired_difference(ours, theirs) * BETTER[metric] > 0).sum()
            met = (ours.mean() - target) * BETTER[metric] >= 0
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
    if not runs.ours:
        return waiting()
    rows = []
    for arm in ARMS:
        frame, other = runs.of(arm), REFERENCES.get(arm, "best")
        told = f"{label(arm)} (against “{other}”)" if arm in REFERENCES else label(arm)
        reference = runs.of(other)
        changes = [difference(frame[m], reference[m]) if arm != "best" else "" for m in METRICS]
        levels = [mean_and_spread(frame[metric]) for metric in METRICS]
        size = show(frame.parameters.mean() / 1e6, 2)
        rows.append([told, levels[0], changes[0], levels[1], changes[1], size])
    return table("arm | MRR | MRR, difference | MSE | MSE, difference | million parameters", rows)


def against_the_recipe(runs: Runs) -> str:
    """The arms that the ablation compares with another, against the recipe as well."""
    told = []
    for arm in REFERENCES if runs.ours else ():
        pairs = [(runs.of(arm)[metric], runs.of("best")[metric]) for metric in METRICS]
        told.append(f"{arm} {' and '.join(difference(*pair) for pair in pairs)}")
    return f"Against the recipe itself, in MRR and MSE: {'; '.join(told)}." if told else waiting()


def sharing(runs: Runs) -> str:
    """Does sharing help? The recipe minus its separate arms, and minus each task alone."""
    best, lines = runs.of("best"), []
    if not len(best):
        return waiting()
    against = {f"“{arm}”": (arm, arm) for arm in ARMS[1:3]}
    against["each task trained alone"] = ("ranking alone", "rating alone")
    for told, arms in against.items():
        parts = []
        for metric, arm in zip(METRICS, arms, strict=True):
            other = runs.of(arm)[metric]
            word = judged(best[metric], other, metric, ("helps", "hurts", "no difference seen"))
            word = word if len(other) else "not computed yet"
            parts.append(f"{metric.upper()} {difference(best[metric], other)} ({word})")
        lines.append(f"- The joint model minus {told}: {', '.join(parts)}.")
    parts = []
    for metric in METRICS:
        pair = [runs.of(arm, "temporal")[metric] for arm in ("best", ARMS[1])]
        word = judged(*pair, metric, ("helps", "hurts", "no difference seen"))
        parts.append(f"{metric.upper()} {difference(*pair)} ({word if len(pair[1]) else '—'})")
    lines.append(f"- The same on the temporal split, minus “{ARMS[1]}”: {', '.join(parts)}.")
    return "\n".join(lines)


def cost(lines: list[dict], runs: Runs) -> str:
    """The last measurement of experiments/recipe.py --cost."""
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


def ranked_trials(lines: list[dict]) -> list[dict]:
    """Trials of experiments/tune.py by their margin, best first; finalists alone once there are.

    A margin is the smaller of the means over the folds of log(MRR / EASE's) and of log(myFM's MSE /
    MSE); the specialists' lines hold all the folds.
    """
    specialists = {line["arguments"]: line for line in lines if line["arguments"] in SPECIALISTS}
    ease, fm = (np.log(specialists[name][metric]) for name, metric in SPECIALISTS.items())
    trials: dict[str, list[dict]] = {}
    for line in lines:
        if line["arguments"] not in SPECIALISTS:
            trials.setdefault(line["arguments"], []).append(line)
    most, merged = max(map(len, trials.values())), []
    for arguments, parts in trials.items():
        if len(parts) == most:
            mrr, mse = ([x for part in parts for x in part[name]] for name in METRICS)
            ahead = np.log(mrr) - ease[: len(mrr)], fm[: len(mse)] - np.log(mse)
            margin = min(float(each.mean()) for each in ahead)
            merged.append({"arguments": arguments, "mrr": mrr, "mse": mse, "margin": margin})
    return sorted(merged, key=lambda each: -each["margin"])


def search(tuning: list[dict], specialists: list[dict]) -> str:
    """What the searches spent, and what the chosen trial got on its validation parts."""
    told = []
    if SPECIALISTS.keys() <= {line["arguments"] for line in tuning}:
        ours = [line for line in tuning if line["arguments"] not in SPECIALISTS]
        hours = sum(line["cpu_seconds_a_fold"] * len(line["mrr"]) for line in ours) / 3600
        finals = sum(line.get("first_fold", 0) > 0 for line in ours)
        best, trials = ranked_trials(tuning)[0], len(ours) - finals
        told.append(
            f"The joint model's search: {trials} trials of {len(ours[0]['mrr'])} folds, and "
            f"{finals} finalists on as many again: {show(hours, 1)} CPU hours of training. "
            f"Over {len(best['mrr'])} validation parts the settings chosen have "
            f"MRR {show(fmean(best['mrr']), 4)} and MSE {show(fmean(best['mse']), 4)}; "
            + " and ".join(
                f"{label(name)} {metric.upper()} {show(fmean(line[metric]), 4)}"
                for line in tuning
                if (metric := SPECIALISTS.get(name := line["arguments"]))
            )
            + "."
        )
    else:
        told.append(f"The joint model's search: {waiting('tune')}.")
    if specialists:
        trials = pd.Series([line["method"] for line in specialists]).value_counts()
        hours = sum(sum(line["fit_seconds"]) for line in specialists) / 3600
        told.append(
            f"The specialists' searches: {len(specialists)} trials, from {trials.min()} to "
            f"{trials.max()} a method, {show(hours, 1)} hours of fitting on one thread."
        )
    return " ".join(told)


def temporal(runs: Runs) -> str:
    rows = []
    ours = ("best", "separate, each task as wide") if runs.ours else ()
    for name in (*ours, *runs.ranked("mrr", "temporal"), *runs.ranked("mse", "temporal")):
        frame = runs.of(name, "temporal")
        cells = [mean_and_spread(frame[metric]) for metric in METRICS]
        cells += [show(frame[other].mean(), 3) for other in ("ndcg_at_10", "recall_at_10")]
        rows.append([label(name), str(len(frame)), *cells])
    return with_wait(table("method | runs | MRR | MSE | NDCG@10 | Recall@10", rows), runs)


def short(runs: Runs) -> str:
    """The README's table: ours, and the two best specialists of each task."""
    rows = []
    for name in (*OURS, *runs.ranked("mrr")[:2], *runs.ranked("mse")[:2]):
        frame = runs.of(name)
        cells = [mean_and_spread(frame[metric]) for metric in METRICS]
        rows.append([label(name), *cells, show(frame.seconds.mean(), 1)])
    return with_wait(table("method | MRR | MSE | seconds a fit", rows), runs)
