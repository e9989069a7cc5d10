"""What is committed of the joint model: recipe, settings, and documents against their lines."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from arguments import resolve
from joint import baselines, recipe, tune
from joint.design import ARMS, METRICS, PLANNED, ROOT, SPECIALISTS, TEMPORAL, label
from joint.report import DOCUMENTS, results_text
from study import records

RESULTS = ROOT / "results"
TEXT = results_text(RESULTS)
RECIPE, METHODS, TUNING, SEARCHES = (
    records.read(RESULTS / f"{name}.jsonl")
    for name in ("recipe", "baselines", "tuning", "baselines_tuning")
)
WIDE = "separate, each task as wide"


def values(name: str, metric: str, split: str = "random") -> list[float]:
    """By seed; none where the method has no such metric."""
    chosen = [each for each in RECIPE + METHODS if name in (each.get("arm"), each.get("method"))]
    own = {line["seed"]: line[metric] for line in chosen if line["split"] == split}
    return [own[seed] for seed in sorted(own) if own[seed] is not None]


def best_first(metric: str, split: str = "random") -> list[str]:
    means = {name: np.mean(values(name, metric, split) or [np.nan]) for name in baselines.METHODS}
    names = [name for name in means if np.isfinite(means[name])]
    return sorted(names, key=lambda name: -METRICS[metric] * means[name])


def row(table: str, start: str) -> list[str]:
    """The cells of the one row whose label is this, or this and a note in brackets."""
    rows = [line.strip("| ").split(" | ") for line in TEXT[table].splitlines()]
    (found,) = (cells for cells in rows if re.sub(r" \(.*", "", cells[0]) == start)
    return [cell.strip() for cell in found[1:]]


def spread(numbers: list[float]) -> str:
    return f"{np.mean(numbers):.4f}" + (f" ± {np.std(numbers, ddof=1):.4f}" if numbers[1:] else "")


def paired(first: str, second: str, metric: str, split: str = "random") -> tuple[str, str]:
    """The difference with its interval as text, and what it says of sharing."""
    test = stats.ttest_rel(values(first, metric, split), values(second, metric, split))
    low, high = test.confidence_interval(0.95)
    told = f"{(low + high) / 2:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "−")
    better, worse = (low > 0, high < 0) if metric == "mrr" else (high < 0, low > 0)
    return told, "helps" if better else "hurts" if worse else "no difference seen"


def test_the_documents_tables_are_those_of_the_results():
    assert [records.stale_blocks(ROOT / name, TEXT) for name in DOCUMENTS] == [[], []]
    there = {table for name in DOCUMENTS for table in records.block_names(ROOT / name)}
    assert TEXT.keys() <= there


@pytest.mark.parametrize("metric, table", [("mrr", "joint_ranking"), ("mse", "joint_rating")])
def test_a_tasks_table_has_each_method_on_each_split_the_best_specialist_first(metric, table):
    names = ["best", "ensemble", *best_first(metric)]
    lines = TEXT[table].splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {label(name)}" for name in names]
    for name in names:
        own = values(name, metric)
        assert row(table, label(name))[:6] == [spread(own), *(f"{each:.4f}" for each in own)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["best", "ensemble"])
def test_the_verdict_is_the_paired_difference_to_the_best_specialist(name, metric):
    ours, other = values(name, metric), best_first(metric)[0]
    start = f"- {label(name)}, **{metric.upper()} {np.mean(ours):.4f}**: "
    (line,) = (line for line in TEXT["joint_verdict"].splitlines() if line.startswith(start))
    assert f"{paired(name, other, metric)[0]} against {label(other)} (" in line
    pairs = zip(ours, values(other, metric), strict=True)
    won = sum(METRICS[metric] * (a - b) > 0 for a, b in pairs)
    assert f"better on {won} of 5 splits" in line


def test_an_arms_row_is_its_paired_difference_to_its_reference_in_the_designs_order():
    notes = [line.split(" | ")[0].strip("| ") for line in TEXT["joint_ablation"].splitlines()[2:]]
    assert [re.sub(r" \(.*", "", note) for note in notes] == [label(name) for name in ARMS]
    for (name, arm), note in zip([*ARMS.items()][1:], notes[1:], strict=True):
        cells = row("joint_ablation", label(name))
        mrr = "—" if name == "rating alone" else paired(name, arm.against, "mrr")[0]
        mse = "—" if name == "ranking alone" else paired(name, arm.against, "mse")[0]
        assert [cells[1], cells[3]] == [mrr, mse], name
        commits = {line["commit"][:7] for line in RECIPE if line.get("arm") == name}
        assert arm.on_record == any(f"on record, commit {each}" in note for each in commits)
        assert (f"(against “{arm.against}”" in note) == (arm.against != "best")
        if arm.against != "best":
            told = " and ".join(paired(name, "best", metric)[0] for metric in METRICS)
            assert f"{name} {told}" in TEXT["joint_references"]
    assert row("joint_ablation", "rating alone")[0] == "—"
    assert row("joint_ablation", "ranking alone")[2] == "—"


def test_sharing_is_judged_by_the_recipe_minus_its_separate_arms_and_each_task_alone():
    arms = [(WIDE, WIDE), ("separate, as many parameters",) * 2, ("ranking alone", "rating alone")]
    splits = ["random"] * 3 + ["temporal"]
    lines = zip(TEXT["joint_sharing"].splitlines(), [*arms, (WIDE, WIDE)], splits, strict=True)
    for line, names, split in lines:
        for metric, name in zip(METRICS, names, strict=True):
            told, word = paired("best", name, metric, split)
            assert f"{metric.upper()} {told} ({word})" in line


def test_the_temporal_table_has_ours_over_seeds_and_the_specialists_of_both_tasks():
    for name in TEMPORAL:
        levels = [spread(values(name, metric, "temporal")) for metric in METRICS]
        assert row("joint_temporal", label(name))[:3] == ["5", *levels]
    others = [name for metric in METRICS for name in best_first(metric, "temporal")]
    for name in others:
        assert row("joint_temporal", label(name))[0] == "1"
    assert len(TEXT["joint_temporal"].splitlines()) == 2 + len(TEMPORAL) + len(others)


def test_cost_and_search_add_up():
    seconds = [line["seconds"] for line in RECIPE if "seconds" in line][-1]
    joint, ease, fm = (np.median(seconds[name]) for name in ("joint", *SPECIALISTS))
    assert row("joint_ranking", "one joint model")[-1] == f"{joint:.1f}"
    assert f"EASE {ease:.1f} s and myFM, implicit features {fm:.1f} s" in TEXT["joint_cost"]
    assert f"takes {joint:.1f} s" in TEXT["joint_cost"]
    shares = f"costs {joint / (ease + fm):.2f} of the two", f"{4 * joint / (ease + fm):.2f}."
    assert all(share in TEXT["joint_cost"] for share in shares)
    ours = [line for line in TUNING if line["arguments"] not in SPECIALISTS]
    hours = sum(line["cpu_seconds_a_fold"] * 4 for line in ours) / 3600
    told = f"52 trials of 4 folds, and 6 finalists on as many again: {hours:.1f} CPU hours"
    assert told in TEXT["joint_search"] and len(ours) == 58
    best = resolve(["@recipes/best.txt"])
    chosen = [line for line in ours if resolve(line["arguments"].split()) == best]
    mrr, mse = (np.mean([line[metric] for line in chosen]) for metric in METRICS)
    assert (
        f"Over 8 validation parts the settings chosen have MRR {mrr:.4f} and MSE {mse:.4f};"
        in (TEXT["joint_search"])
    )
    hours = sum(sum(line["fit_seconds"]) for line in SEARCHES) / 3600
    assert (
        f"{len(SEARCHES)} trials, from 4 to 50 a method, {hours:.1f} hours"
        in (TEXT["joint_search"])
    )


def test_the_search_replays_from_its_record_and_ends_with_the_recipe(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "validate", None)  # nothing is left to train
    path, lines = tmp_path / "tuning.jsonl", (RESULTS / "tuning.jsonl").read_text()
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
