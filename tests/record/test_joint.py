"""What is committed of the joint model: recipe, settings, and documents against their lines."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from arguments import pick, resolve
from joint import baselines, recipe, tune
from joint.design import ARMS, METRICS, PLANNED, ROOT, SPECIALISTS, TARGETS, TEMPORAL, label
from joint.report import documents
from models import MultiTaskNet, Structure
from study import records

TEXT, TABLES, _ = documents(ROOT / "results")
RECIPE, METHODS, TUNING, SEARCHES = (
    records.read(ROOT / f"results/{name}.jsonl")
    for name in ("recipe", "baselines", "tuning", "baselines_tuning")
)
ROWS = {  # table -> label without its note -> cells
    table: {
        cells[0].split(" (")[0]: cells[1:]
        for cells in (line[2:-2].split(" | ") for line in text.splitlines()[2:])
    }
    for table, text in TABLES.items()
}
WIDE, NARROW = "separate, each task as wide", "separate, as many parameters"


def values(name: str, metric: str, split: str = "random") -> list[float]:
    """By seed; none where the method has no such metric."""
    chosen = [each for each in RECIPE + METHODS if name in (each.get("arm"), each.get("method"))]
    own = {line["seed"]: line[metric] for line in chosen if line["split"] == split}
    return [own[seed] for seed in sorted(own) if own[seed] is not None]


def best_first(metric: str, split: str = "random") -> list[str]:
    means = {name: np.mean(values(name, metric, split) or [np.nan]) for name in baselines.METHODS}
    names = [name for name in means if np.isfinite(means[name])]
    return sorted(names, key=lambda name: -METRICS[metric] * means[name])


def spread(numbers: list[float]) -> str:
    return f"{np.mean(numbers):.4f}" + (f" ± {np.std(numbers, ddof=1):.4f}" if numbers[1:] else "")


def paired(first: str, second: str, metric: str, split: str = "random") -> tuple[str, int]:
    """The difference with its interval as text, and +1, −1 or 0 as it is better, worse or open."""
    test = stats.ttest_rel(values(first, metric, split), values(second, metric, split))
    low, high = test.confidence_interval(0.95)
    sign = METRICS[metric] * (int(low > 0) - int(high < 0))
    return f"{(low + high) / 2:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "−"), sign


def test_the_documents_are_what_the_results_make_of_them():
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == TEXT
    assert records.filled(ROOT / "README.md", TABLES)[1] == []
    assert "<!-- table: readme_joint -->" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("metric, table", [("mrr", "ranking"), ("mse", "rating")])
def test_a_tasks_table_has_each_method_on_each_split_the_best_specialist_first(metric, table):
    names = ["best", "ensemble", *best_first(metric)]
    assert list(ROWS[table]) == [label(name) for name in names]
    for name in names:
        own = values(name, metric)
        assert ROWS[table][label(name)][:6] == [spread(own), *(f"{each:.4f}" for each in own)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["best", "ensemble"])
def test_the_verdict_is_the_paired_difference_to_the_best_specialist(name, metric):
    ours, other = values(name, metric), best_first(metric)[0]
    theirs, target, up = values(other, metric), TARGETS[metric], METRICS[metric]
    told, sign = paired(name, other, metric)
    won = sum(up * (a - b) > 0 for a, b in zip(ours, theirs, strict=True))
    word = ["not settled", "ahead", "behind"][sign]
    met = "met" if up * (np.mean(ours) - target) >= 0 else "missed"
    told = (
        f"{label(name)}, **{metric.upper()} {np.mean(ours):.4f}**: {told} against {label(other)} "
        f"({np.mean(theirs):.4f}), better on {won} of 5 splits: {word}. The target, at "
        f"{'least' if up > 0 else 'most'} {target}, is {met} ({np.mean(ours) - target:+.5f}).\n"
    )
    assert told.replace("-", "−") in TEXT


def test_an_arms_row_is_its_paired_difference_to_its_reference_in_the_designs_order():
    assert list(ROWS["ablation"]) == [label(name) for name in ARMS]
    names = [line.split(" | ")[0] for line in TABLES["ablation"].splitlines()[2:]]
    for (name, arm), note in zip(ARMS.items(), names, strict=True):
        cells = ROWS["ablation"][label(name)]
        for metric, own in {"mrr": cells[:2], "mse": cells[2:4]}.items():
            if name == {"mrr": "rating alone", "mse": "ranking alone"}[metric]:
                assert own == ["—", "—"]  # nothing has trained it
            else:
                change = "" if name == "best" else paired(name, arm.against, metric)[0]
                assert own == [spread(values(name, metric)), change], name
        commits = {line["commit"][:7] for line in RECIPE if line.get("arm") == name}
        assert arm.on_record == any(f"on record, commit {each}" in note for each in commits)
        assert (f"(against “{arm.against}”" in note) == (arm.against != "best")
        if arm.against != "best":
            told = " and ".join(paired(name, "best", metric)[0] for metric in METRICS)
            assert f"{name} {told}" in TEXT


def test_parameters_are_counted_as_the_networks_have_them():
    for stack in recipe.plan():
        args = resolve(stack["arguments"])
        net = MultiTaskNet(943, 1682, seeds=range(args["ensemble"]), **pick(Structure, args))
        millions = f"{sum(each.numel() for each in net.parameters()) / 1e6:.2f}"
        one_task = stack["arm"] in ("ranking alone", "rating alone")
        assert ROWS["ablation"][label(stack["arm"])][-1] == ("—" if one_task else millions)


def test_sharing_is_judged_by_the_recipe_minus_its_separate_arms_and_each_task_alone():
    arms = [(WIDE, WIDE), (NARROW, NARROW), ("ranking alone", "rating alone"), (WIDE, WIDE)]
    for names, split in zip(arms, ["random"] * 3 + ["temporal"], strict=True):
        told = []
        for metric, name in zip(METRICS, names, strict=True):
            text, sign = paired("best", name, metric, split)
            word = ["no difference seen", "helps", "hurts"][sign]
            told.append(f"{metric.upper()} {text} ({word})")
        assert f": {', '.join(told)}.\n" in TEXT


def test_the_temporal_table_has_ours_over_seeds_and_the_specialists_of_both_tasks():
    others = [name for metric in METRICS for name in best_first(metric, "temporal")]
    assert list(ROWS["temporal"]) == [label(name) for name in (*TEMPORAL, *others)]
    for name in (*TEMPORAL, *others):
        own = [values(name, metric, "temporal") for metric in METRICS]
        levels = [spread(each) if each else "—" for each in own]
        assert ROWS["temporal"][label(name)][:3] == [str(max(map(len, own))), *levels]


def test_cost_and_search_add_up():
    seconds = [line["seconds"] for line in RECIPE if "seconds" in line][-1]
    joint, ease, fm = (np.median(seconds[name]) for name in ("joint", *SPECIALISTS))
    assert ROWS["ranking"]["one joint model"][-1] == f"{joint:.1f}"
    ours = [line for line in TUNING if line["arguments"] not in SPECIALISTS]
    best = resolve(["@recipes/best.txt"])
    chosen = [line for line in ours if resolve(line["arguments"].split()) == best]
    mrr, mse = (np.mean([line[metric] for line in chosen]) for metric in METRICS)
    hours = sum(line["cpu_seconds_a_fold"] * 4 for line in ours) / 3600
    fitting = sum(sum(line["fit_seconds"]) for line in SEARCHES) / 3600
    trials = pd.Series([line["method"] for line in SEARCHES]).value_counts()
    for told in (
        f"takes {joint:.1f} s, EASE {ease:.1f} s and myFM, implicit features {fm:.1f} s",
        f"costs {joint / (ease + fm):.2f} of the two",
        f"4 such fits: {4 * joint / (ease + fm):.2f}.",
        f"{len(ours) - 6} trials of 4 folds, and 6 finalists on as many again: {hours:.1f} CPU",
        f"Over 8 validation parts the settings chosen have MRR {mrr:.4f} and MSE {mse:.4f};",
        f"{len(SEARCHES)} trials, from {trials.min()} to {trials.max()} a method, {fitting:.1f} h",
    ):
        assert told in TEXT


def test_the_search_replays_from_its_record_and_ends_with_the_recipe(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "validate", None)  # nothing is left to train
    path, lines = tmp_path / "tuning.jsonl", (ROOT / "results/tuning.jsonl").read_text()
    path.write_text(lines)
    assert tune.main(["--out", str(path)]) == 0
    best = json.loads(capsys.readouterr().out)
    assert resolve(best["arguments"].split()) == resolve(["@recipes/best.txt"])
    assert path.read_text() == lines


def test_settings_are_those_the_recorded_search_chose():
    for name, method in baselines.METHODS.items():
        tried = [line for line in SEARCHES if line["method"] == name]
        assert len(tried) <= method.trials and bool(tried) == bool(method.space)
        assert all(len(line["mrr"]) == method.folds for line in tried)
        if tried:
            assert method.settings == min(tried, key=baselines.validation_loss)["settings"]


def test_every_arm_is_on_record_as_it_is_planned_and_says_what_made_it():
    lines = [line for line in RECIPE if "arm" in line]
    assert {line["arm"] for line in lines} == ARMS.keys()
    planned = {stack["stack"]: resolve(stack["arguments"]) for stack in recipe.plan()}
    for line in lines:
        assert line["commit"] and line["versions"]["torch"] and line["device"] == "cpu"
        assert (line["stack"] in planned) == (line["arm"] in PLANNED)
        several = ("lambda_f", "lambda_r", "weight_decay")  # arguments are lists
        told = line | {name: np.atleast_1d(line[name]).tolist() for name in several}
        args = planned.get(line["stack"], {})
        common = args.keys() & told.keys() - {"split_seed"}
        assert [name for name in common if args[name] != told[name]] == [], line["stack"]
