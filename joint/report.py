"""One joint model against the specialists: RESULTS.md, and the README's table of it.

    python -m joint.report

RESULTS.md is joint/RESULTS.md.in with its placeholders filled in, as study/report.py does it, from
unseen.jsonl, future.jsonl, recipe.jsonl, tuning.jsonl, baselines.jsonl and baselines_tuning.jsonl
in results/.
What isn't there yet shows as "—", and the command says what computes it.

    {best.mrr}               0.1498    the mean over the splits; of the temporal {temporal.best.mrr}
    {best.lead.mrr:t}        +0.0021 [−0.0038, +0.0081]    a difference, see Difference
    {unseen.ml-100k.mrr}     ahead     on unseen splits, by the corrected test
    {table: ranking}         a whole table, on a line of its own
"""

import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from arguments import Parser, pick, seed_list
from joint.design import (
    ARMS,
    COMPARED,
    LATER,
    METRICS,
    OVERLAP,
    RIVALS,
    ROOT,
    SPECIALISTS,
    TARGETS,
    TEMPORAL,
    UNSEEN,
    label,
)
from joint.future import GROUPS
from joint.tune import ranked
from models import MultiTaskNet, Structure
from run_folder import write_whole
from study.records import read, write_blocks
from study.report import number_text, rendered
from study.stats import Estimate, holm, markdown_table, paired_difference, show, t_test

TEMPLATE = Path(__file__).with_name("RESULTS.md.in")
SPLITS = {"random": "", "temporal": "temporal."}
DIGITS = {"mrr": 4, "mse": 4, "ndcg_at_10": 3, "recall_at_10": 3, "fit_seconds": 1}


@dataclass(frozen=True)
class Difference(Estimate):
    """first − second of a metric, in pairs of runs on the same split.

    f"{it:t}" is its mean with the 95% interval by Student's t, without a test. f"{it:lead}" and
    f"{it:sharing}" are the words that the interval bears out, f"{it:won}" the splits won.
    """

    better: int = +1  # +1: a higher metric is better; −1: a lower

    WORDS = {
        "lead": ("ahead", "behind", "not settled"),
        "sharing": ("helps", "hurts", "no difference seen"),
    }

    def __format__(self, spec: str) -> str:
        if spec == "won":
            return str((self.better * self.values > 0).sum())
        if spec not in ("t", *self.WORDS):
            return super().__format__(spec)
        if not len(self.values):
            return "—" if spec == "t" else "not computed yet"
        bounds = t_test(self.values)[:2]
        if spec == "t":
            return f"{self} [{', '.join(show(bound, self.digits, '+') for bound in bounds)}]"
        low, high = sorted(self.better * bound for bound in bounds)
        better, worse, neither = self.WORDS[spec]
        return better if low > 0 else worse if high < 0 else neither


class Runs:
    """Runs of arms and specialists, a row each.

    The metrics of a task that has no weight in an arm are left out: nothing has trained it.
    """

    def __init__(self, results: Path):
        self.recipe = read(results / "recipe.jsonl")
        rows = [line | {"name": line["arm"]} for line in self.recipe if "arm" in line]
        rows += [line | {"name": line["method"]} for line in read(results / "baselines.jsonl")]
        columns = ["split", "name", "seed", "method", "lambda_f", "lambda_r", "commit", *DIGITS]
        frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(DIGITS, float))
        frame.loc[frame.lambda_f == 0, ["mrr", "ndcg_at_10", "recall_at_10"]] = np.nan
        frame.loc[frame.lambda_r == 0, "mse"] = np.nan
        if (twice := frame.duplicated(["split", "name", "seed"])).any():
            raise ValueError(f"results: two lines of {frame[twice].iloc[0, :3].to_dict()}")
        self.frame = frame.set_index("seed").sort_index()

    def of(self, name: str, split: str = "random") -> pd.DataFrame:
        return self.frame[(self.frame.name == name) & (self.frame.split == split)]

    def difference(self, first: str, second: str, metric: str, split: str = "random") -> Difference:
        pair = self.of(first, split)[metric], self.of(second, split)[metric]
        return Difference(paired_difference(*pair), DIGITS[metric], "+", METRICS[metric])

    def ranked(self, metric: str, split: str = "random") -> list[str]:
        """The specialists of a metric, the best first."""
        theirs = self.frame[self.frame.method.notna() & (self.frame.split == split)]
        means = theirs.groupby("name")[metric].mean().dropna()
        return list(means.sort_values(ascending=METRICS[metric] < 0).index)


def parameters(line: dict) -> int:
    """How many numbers the model of a recipe's line holds, over all its members."""
    head, held = line["rating_head"], {}
    for part in ["mlp", "dot"] if head == "both" else [head]:  # "both": of an arm on record
        structure = pick(Structure, line | {"rating_head": part})
        net = MultiTaskNet(line["n_users"], line["n_items"], **structure)
        held |= {name: each.numel() for name, each in net.named_parameters()}
    return sum(held.values()) * line["ensemble"]


def run_numbers(runs: Runs) -> dict[str, Estimate | str]:
    """The numbers of the runs by name, "—" while not computed.

    NAME.COLUMN, NAME.n; NAME.parameters, in millions
    NAME.share.METRIC, .to_best.METRIC   the recipe minus an arm, and the other way round
    NAME.change.METRIC                   an arm minus its reference
    NAME.lead.METRIC                     minus the best specialist
    NAME.target.METRIC                   ours against the target
    """
    told = {}
    names = [*ARMS, *runs.frame.method.dropna().unique()]
    rivals = {metric: (runs.ranked(metric) or ["—"])[0] for metric in METRICS}
    for name, (split, start) in product(names, SPLITS.items()):
        own, against = runs.of(name, split), ARMS[name].against if name in ARMS else "best"
        told |= {f"{start}{name}.n": str(len(own)), f"{start}{name}.parameters": "—"}
        for column, digits in DIGITS.items():
            told[f"{start}{name}.{column}"] = Estimate(own[column], digits)
        for metric, rival in rivals.items():
            pairs = {"share": ("best", name), "to_best": (name, "best")}
            pairs |= {"change": (name, against), "lead": (name, rival)}
            for what, pair in pairs.items():
                told[f"{start}{name}.{what}.{metric}"] = runs.difference(*pair, metric, split)
    told |= {"best.change.mrr": "", "best.change.mse": ""}
    for line in runs.recipe:
        if "arm" in line and line["lambda_f"] and line["lambda_r"] and line["seed"] == 0:
            told[f"{line['arm']}.parameters"] = show(parameters(line) / 1e6, 2)
    for metric, target in TARGETS.items():
        rival = rivals[metric]
        told |= {f"target.{metric}": f"{target:g}", f"rival.{metric}.label": label(rival)}
        told[f"rival.{metric}"] = Estimate(runs.of(rival)[metric], DIGITS[metric])
        beyond = runs.of("best")[metric].mean() - target
        word = "met" if METRICS[metric] * beyond >= 0 else "missed"
        told[f"best.target.{metric}"] = f"{word} ({show(beyond, 5, '+')})"
    return told


def cost_numbers(recipe: list[dict]) -> dict[str, Estimate | str]:
    """Median seconds of a fit in the last measurement of joint/recipe.py."""
    measured = [line["seconds"] for line in recipe if "seconds" in line] or [{}]
    seconds = pd.DataFrame(measured[-1], columns=["joint", *SPECIALISTS], dtype=float).median()
    share = seconds.joint / seconds[[*SPECIALISTS]].sum()
    told = {f"cost.{name}": show(value, 1) for name, value in seconds.items()}
    told["best.fit_seconds"] = told["cost.joint"]  # a stack's share of its own would be no fit's
    return told | {"cost.share": show(share, 2)}


def search_numbers(tuning: list[dict], specialists: list[dict]) -> dict[str, Estimate | str]:
    """What the searches spent, and what the chosen trial got on its validation parts."""
    theirs = {line["arguments"]: line for line in tuning if line["arguments"] in SPECIALISTS}
    ours = [line for line in tuning if line["arguments"] not in SPECIALISTS]
    finals = sum(line.get("first_fold", 0) > 0 for line in ours)
    best = ranked(ours)[0] if ours else dict(mrr=[], mse=[])
    told = {f"search.{metric}": Estimate(best[metric], DIGITS[metric]) for metric in METRICS}
    for name, metric in SPECIALISTS.items():
        told[f"search.{name}"] = Estimate(theirs.get(name, {}).get(metric, []), DIGITS[metric])
    hours = sum(line["cpu_seconds_a_fold"] * len(line["mrr"]) for line in ours) / 3600
    told |= {"search.trials": str(len(ours) - finals), "search.finalists": str(finals)}
    told |= {"search.parts": str(len(best["mrr"])), "search.hours": show(hours, 1)}
    hours = sum(sum(line["fit_seconds"]) for line in specialists) / 3600
    trials = pd.Series([line["method"] for line in specialists]).value_counts()
    told |= {"searches.trials": str(len(specialists)), "searches.hours": show(hours, 1)}
    told |= {f"searches.{name}": str(trials.get(name, 0)) for name in SPECIALISTS}
    for name in ("fm-implicit", *LATER["mse"]):
        own = [np.mean(line["mse"]) for line in specialists if line["method"] == name]
        told[f"searches.{name}.mse"] = show(min(own, default=np.nan), 4)
    return told | {"searches.fewest": show(trials.min(), 0), "searches.most": show(trials.max(), 0)}


def results_tables(runs: Runs, numbers: dict) -> dict[str, str]:
    """The tables of RESULTS.md, and the README's of it, by name."""

    def cell(number: str) -> str:
        name, _, form = number.partition(":")
        return number_text(numbers.get(name, "—"), form)

    def table(rows: dict[str, str], columns: dict[str, str], first: str = "method") -> str:
        """Rows are label: start of a number's name; columns head: its end."""
        lines = [
            [told, *(cell(f"{name}.{end}") for end in columns.values())]
            for told, name in rows.items()
        ]
        return markdown_table([first, *columns], lines)

    def methods(names: list[str], start: str = "") -> dict[str, str]:
        return {label(name): start + name for name in names}

    arms = {}
    for name, arm in ARMS.items():
        notes = [f"against “{arm.against}”"] if arm.against != "best" else []
        if arm.on_record and len(own := runs.of(name)):
            notes.append(f"on record, commit {own.commit.iloc[-1][:7]}")
        arms[label(name) + (f" ({'; '.join(notes)})" if notes else "")] = name
    rank, rate = (runs.ranked(metric) for metric in METRICS)
    later = [*TEMPORAL, *runs.ranked("mrr", "temporal"), *runs.ranked("mse", "temporal")]
    mrr, mse, seconds = {"MRR": "mrr:sd"}, {"MSE": "mse:sd"}, {"seconds a fit": "fit_seconds"}
    others = {"NDCG@10": "ndcg_at_10", "Recall@10": "recall_at_10"}
    changes = mrr | {"MRR, difference": "change.mrr:t"} | mse | {"MSE, difference": "change.mse:t"}
    return {
        "ranking": table(methods(["best", *rank]), mrr | others | seconds),
        "rating": table(methods(["best", *rate]), mse | seconds),
        "ablation": table(arms, changes | {"million parameters": "parameters"}, "arm"),
        "temporal": table(methods(later, "temporal."), {"runs": "n"} | mrr | mse | others),
    }


def unseen(lines: list[dict]) -> tuple[dict[str, str], dict[str, str]]:
    """Of the unseen splits: how many there are, what each comparison says; and the tables.

    A comparison is of the splits that every method of its task has. Where a specialist is ahead, it
    stands first.
    """
    columns = ["data", "seed", "method", *METRICS]
    runs = pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(METRICS, float))
    numbers, compared, tests, levels = {}, [], [], []
    for (name, seeds), metric in product(UNSEEN.items(), METRICS):
        own = runs[runs.data == name].pivot(index="seed", columns="method", values=metric)
        own = own.reindex(columns=["ours", *RIVALS[metric], *LATER[metric]])
        lacking = own[[*LATER[metric]]].notna().sum() < len(seed_list(seeds))
        own, up = own.drop(columns=lacking.index[lacking]).dropna(), METRICS[metric]
        if own.empty:
            numbers[f"unseen.{name}.{metric}"], tests = "not computed yet", [*tests, np.nan]
            numbers[f"unseen.{name}.{metric}.least"] = "—"
        else:
            rival = (own.drop(columns="ours").mean() * up).idxmax()
            change = Difference((own.ours - own[rival]).to_numpy(), 4, "+", up)
            *bounds, p = t_test(change.values, OVERLAP[name])
            level = 1 - 0.05 / len(OVERLAP) / len(METRICS)  # of Holm's first step
            low, high, _ = t_test(change.values, OVERLAP[name], level)
            numbers[f"unseen.{name}.{metric}.least"] = show((high - low) / 2, 4)
            told = [name, metric.upper(), f"{len(own)} of {len(seed_list(seeds))}"]
            told += [show(own.ours.mean(), 4), f"{label(rival)}, {show(own[rival].mean(), 4)}"]
            told += [f"{change:t}", f"[{', '.join(show(bound, 4, '+') for bound in bounds)}]"]
            compared.append((len(tests), metric, told, f"{change:lead}"))
            tests.append(p)
        numbers[f"unseen.{name}.n"] = f"{len(own)} of {len(seed_list(seeds))}"
        for method in own if len(own) else ():
            levels.append([name, label(method), metric.upper(), f"{Estimate(own[method], 4):sd}"])
    own = pd.DataFrame(lines, columns=["data", "seed", "method", "fit_seconds"])
    own = own[own.data == "ml-100k"].pivot(index="seed", columns="method", values="fit_seconds")
    own = own.reindex(columns=["ours", *SPECIALISTS]).dropna().astype(float)
    share = (own.ours / own[[*SPECIALISTS]].sum(axis=1)).median()
    numbers["unseen.cost"] = show(share, 1) if len(own) else "—"
    rows, adjusted = [], holm(tests)
    for k, metric, told, plain in compared:
        word = plain if adjusted[k] < 0.05 else "not settled"
        numbers[f"unseen.{told[0]}.{metric}"] = word
        p = "< 0.0001" if adjusted[k] < 1e-4 else show(adjusted[k], 4)
        rows.append([*told, p, f"{plain}; {word}"])
    rows.sort(key=lambda cells: "behind" not in cells[-1])
    heads = ["data", "metric", "splits", "joint model", "best specialist", "difference, plain"]
    heads += ["corrected", "Holm's p", "plainly; corrected"]
    table = markdown_table(heads, rows, 2)
    heads = ["data", "method", "metric", "mean ± deviation"]
    levels = markdown_table(heads, levels, 3)
    return numbers, {"unseen": table, "readme_joint": table, "unseen_levels": levels}


def future(lines: list[dict]) -> tuple[dict[str, str], dict[str, str]]:
    """What each method gets on the groups of joint/future.py: rows of each, and the table."""
    heads, cells = ["method"], defaultdict(dict)
    runs = pd.DataFrame(lines, columns=["method", "group", "seed", "rows", "users", *METRICS])
    sizes = runs.groupby("group").rows.first()
    told = {x: f"{sizes[x]:,}" if x in sizes else "not yet counted" for x in GROUPS}
    numbers = {f"future.{group}.rows": text for group, text in told.items()}
    users = runs[runs.group == "cold"].users.dropna()
    numbers["future.cold.users"] = f"{users.iloc[0]:g}" if len(users) else "—"
    for metric, group in product(METRICS, GROUPS):
        heads.append(f"{metric.upper()}, {group}")
        for method, own in runs[runs.group == group].groupby("method")[metric]:
            shown = show(own.astype(float).mean(), 4) if own.notna().all() else "—"
            cells[method][metric, group] = shown
    order = [method for method in COMPARED if method in cells]
    columns = [*product(METRICS, GROUPS)]
    rows = [[label(x), *(cells[x].get(column, "—") for column in columns)] for x in order]
    return numbers, {"future": markdown_table(heads, rows)}


def documents(results: Path) -> tuple[str, dict[str, str], list[str]]:
    """RESULTS.md, the tables of it and of the README, and the commands that would complete them."""
    runs = Runs(results)
    searches = [read(results / f"{name}.jsonl") for name in ("tuning", "baselines_tuning")]
    numbers = run_numbers(runs) | cost_numbers(runs.recipe) | search_numbers(*searches)
    tables = results_tables(runs, numbers)
    lines = read(results / "unseen.jsonl")
    counts, apart = Counter((x["data"], x["method"]) for x in lines), unseen(lines)
    later = future(read(results / "future.jsonl"))
    numbers, tables = numbers | apart[0] | later[0], tables | apart[1] | later[1]
    there = {
        "recipe": {*ARMS} <= {*runs.frame.name} and any("seconds" in x for x in runs.recipe),
        "baselines": runs.frame.method.notna().any(),
        "tune --out results": searches[0],
        "tune --out results --method ease, and so on": searches[1],
    }
    for name in UNSEEN:
        there[f"unseen --data {name}"] = all(
            counts[name, method] == len(seed_list(UNSEEN[name])) for method in COMPARED
        )
    there["future"] = (results / "future.jsonl").exists()
    lacking = [f"python -m joint.{command}" for command, done in there.items() if not done]
    return rendered(numbers, TEMPLATE, tables), tables, lacking


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="the lines' folder")
    text, tables, lacking = documents(parser.parse_args(argv).results)
    write_whole(ROOT / "RESULTS.md", text.encode())
    write_blocks(ROOT / "README.md", tables)
    for command in lacking:
        print(f"not computed yet: {command}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
