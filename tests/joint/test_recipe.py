"""The recipe's search, its arms, and the report's words (its numbers: tests/record)."""

import json
from unittest.mock import Mock

import numpy as np
import pytest

from arguments import resolve
from data import random_split
from joint import baselines, recipe, tune
from joint.design import ARMS, PLANNED, ROOT
from joint.report import Difference, documents
from study import records

PLAN = recipe.plan()
ARGS = {each["arm"]: resolve(each["arguments"]) for each in PLAN if each["experiment"] == "recipe"}
CHANGED = {
    "MLP for the dot product": {"rating_head"},
    "batches of 4,096 interactions": {"batch_by", "batch_size"},
    "BPR loss": {"loss"},
    "nothing left out": {"leave_one_out"},
    "one weight decay": {"weight_decay"},
    "ranking alone": {"lambda_f", "lambda_r"},
    "no user history": {"user_history"},
    "separate, each task as wide": {"shared_dims"},
}


def test_validation_looks_at_no_row_of_split_0s_test_part(monkeypatch):
    stack, evaluator = Mock(wraps=tune.train.make_stack), Mock(wraps=tune.train.make_evaluator)
    monkeypatch.setattr(tune.train, "make_stack", stack)
    monkeypatch.setattr(tune.train, "make_evaluator", evaluator)
    settings = dict(zip(tune.OURS.space, tune.OURS.first[0], strict=True))
    settings |= dict(epochs=1, common=2, ranking_own=2, rating_own=2)
    record = tune.validate(tune.arguments_of(settings), folds=2)
    assert len(record["mrr"]) == len(record["mse"]) == 2
    _, data, _, parts = stack.call_args.args
    assert evaluator.call_args.args[2:] == (parts, "validation", "train")
    for part in parts:
        rows = np.concatenate([random_split(data, 0).test, part.train, part.validation])
        assert len(np.unique(rows)) == len(rows)


def test_trials_are_ranked_by_the_smaller_of_their_margins():
    lines = [
        dict(arguments="ease", mrr=[0.1, 0.2, 0.1, 0.2]),
        dict(arguments="fm-implicit", mse=[0.8, 0.9, 0.8, 0.9]),
        dict(arguments="ranks", mrr=[0.2, 0.4], mse=[0.8, 0.9]),  # log 2 ahead, and 0
        dict(arguments="rates", mrr=[0.1, 0.2], mse=[0.4, 0.45]),
        dict(arguments="both", mrr=[0.11, 0.22], mse=[0.72, 0.81]),  # log 1.1, log 1 / 0.9
    ]
    first, *others = tune.ranked_trials(lines)
    assert first["arguments"] == "both"
    assert [each["margin"] for each in (first, *others)] == pytest.approx([np.log(1.1), 0, 0])
    finals = [dict(arguments="ranks", first_fold=2, mrr=[0.05, 0.1], mse=[0.8, 0.9])]
    (only,) = tune.ranked_trials(lines + finals)  # finalists alone, over all their folds
    assert only["mrr"] == [0.2, 0.4, 0.05, 0.1] and only["margin"] == pytest.approx(0)


def test_the_plan_trains_every_arm_once_on_five_splits_and_no_two_alike():
    assert list(ARGS) == PLANNED == [name for name in ARMS if not ARMS[name].on_record]
    args = [resolve(stack["arguments"]) for stack in PLAN]
    assert all(each["seeds"] == [*range(5)] for each in args) and {s["runs"] for s in PLAN} == {5}
    temporal = [each["split"] == "temporal" for each in args]
    assert temporal == [stack["experiment"] == "recipe temporal" for stack in PLAN]
    told = {json.dumps({**each, "out": None}, sort_keys=True) for each in args}
    assert len(told) == len(PLAN) == len({stack["stack"] for stack in PLAN})


def test_an_arm_differs_from_its_reference_in_what_it_is_named_for_alone():
    for name, changed in CHANGED.items():
        mine, other = ARGS[name], ARGS[ARMS[name].against]
        assert {key for key in mine if mine[key] != other[key]} - {"out"} == changed, name
    best, separate = ARGS["best"], ARGS["separate, as many parameters"]
    width = best["ranking_dim"] + best["rating_dim"] - best["shared_dims"]
    assert separate["ranking_dim"] + separate["rating_dim"] == width
    assert separate["shared_dims"] == 0 < best["shared_dims"] < width
    shared = ARGS["all shared, as many parameters"]
    assert shared["ranking_dim"] == shared["rating_dim"] == shared["shared_dims"] == width
    written = resolve(["@recipes/ensemble.txt"])
    assert ARGS["ensemble"] | dict(seeds=[0], eval_every=1, out=written["out"]) == written


@pytest.mark.parametrize(
    "shift, n, words",
    [
        (0.02, 5, "ahead, helps, 5"),
        (-0.02, 5, "behind, hurts, 0"),
        (0.001, 5, "not settled, no difference seen, 3"),
        (0.02, 1, "not settled, no difference seen, 1"),  # one split has no interval
        (0.02, 0, "not computed yet, not computed yet, 0"),
    ],
)
def test_a_word_follows_the_interval(shift, n, words):
    values = shift + np.array([0.0, -2e-3, -1e-3, 1e-3, 2e-3])[:n]
    for told in (Difference(values, 4, "+", +1), Difference(-values, 4, "+", -1)):
        assert f"{told:lead}, {told:sharing}, {told:won}" == words


def test_what_is_missing_is_a_dash_and_named_by_its_command_and_a_run_twice_is_refused(tmp_path):
    (_, tables, lacking), (nothing, _, commands) = map(documents, (ROOT / "results", tmp_path))
    ends = ["recipe", "recipe --cost", "baselines", "tune", "baselines --tune"]
    assert lacking == [] and commands == [f"python -m joint.{end}" for end in ends]
    assert "one joint model, **MRR —**: — against — (—)" in nothing
    lines = records.read(ROOT / "results/recipe.jsonl")
    records.append(tmp_path / "recipe.jsonl", [line for line in lines if line.get("arm") == "best"])
    for name in ("baselines", "tuning", "baselines_tuning"):
        records.append(tmp_path / f"{name}.jsonl", records.read(ROOT / f"results/{name}.jsonl"))
    first, rows, lacking = documents(tmp_path)
    assert lacking == commands[:2] and "MRR — (not computed yet)" in first
    assert rows["rating"].splitlines()[4:] == tables["rating"].splitlines()[4:]
    assert rows["ablation"].splitlines()[:3] == tables["ablation"].splitlines()[:3]
    assert "| no rating dropout | — | — | — | — | — |" in rows["ablation"].splitlines()
    assert "nan" not in f"{nothing}{first}"
    records.append(tmp_path / "baselines.jsonl", records.read(tmp_path / "baselines.jsonl")[:1])
    with pytest.raises(ValueError, match=r"two lines of .*random.*ease"):
        documents(tmp_path)


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        (baselines, ["--methods", "eese"], "--methods: invalid choice: 'eese'"),
        (baselines, ["--splits", "4-0"], "--splits: '4-0' must be different seeds"),
        (recipe, ["--only", "bset"], "--only: invalid choice: 'bset' (choose from 'best'"),
        (tune, ["--out", "nowhere.jsonl"], "lacks ease: run with --specialists first"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(command, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told
