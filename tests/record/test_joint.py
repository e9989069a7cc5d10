"""What is committed of the joint model: recipe, settings and documents hang together."""

import json

from arguments import resolve
from joint import baselines, recipe, tune
from joint.design import ARMS, PLANNED, ROOT
from joint.report import DOCUMENTS, results_text
from study import records

RESULTS = ROOT / "results"


def test_the_documents_tables_are_those_of_the_results():
    text = results_text(RESULTS)
    assert [records.stale_blocks(ROOT / name, text) for name in DOCUMENTS] == [[], []]
    there = {table for name in DOCUMENTS for table in records.block_names(ROOT / name)}
    assert text.keys() <= there


def test_the_search_replays_from_its_record_and_ends_with_the_recipe(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "validate", None)  # nothing is left to train
    path, lines = tmp_path / "tuning.jsonl", (RESULTS / "tuning.jsonl").read_text()
    path.write_text(lines)
    assert tune.main(["--out", str(path)]) == 0
    best = json.loads(capsys.readouterr().out)
    assert resolve(best["arguments"].split()) == resolve(["@recipes/best.txt"])
    assert path.read_text() == lines


def test_settings_are_those_the_recorded_search_chose():
    lines = records.read(RESULTS / "baselines_tuning.jsonl")
    for name, method in baselines.METHODS.items():
        tried = [line for line in lines if line["method"] == name]
        assert len(tried) <= method.trials and bool(tried) == bool(method.space)
        assert all(len(line["mrr"]) == method.folds for line in tried)
        if tried:
            assert method.settings == min(tried, key=baselines.validation_loss)["settings"]


def test_every_arm_is_on_record_as_it_is_planned_and_says_what_made_it():
    lines = [line for line in records.read(RESULTS / "recipe.jsonl") if "arm" in line]
    assert {line["arm"] for line in lines} == ARMS.keys()
    planned = {stack["stack"]: resolve(stack["arguments"]) for stack in recipe.plan()}
    for line in lines:
        assert line["commit"] and line["versions"]["torch"] and line["device"] == "cpu"
        assert (line["stack"] in planned) == (line["arm"] in PLANNED)
        told = line | {name: [line[name]] for name in ("lambda_f", "lambda_r")}  # as arguments are
        args = planned.get(line["stack"], {})
        common = args.keys() & told.keys() - {"split_seed"}
        assert [name for name in common if args[name] != told[name]] == [], line["stack"]
