"""The recipe's arms, and the report's words (its numbers: tests/record)."""

import json

import numpy as np
import pytest

from arguments import resolve
from joint import baselines, recipe, tune
from joint.design import ARMS, PLANNED, ROOT, UNSEEN
from joint.report import Difference, documents, unseen
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


def test_cost_is_measured_in_turn_after_the_arms_where_the_specialists_are(monkeypatch, tmp_path):
    asked = []

    def trial(method, source, apart, settings, first, folds):
        asked.append((method, settings))
        return {"fit_seconds": [float(len(asked))]}

    monkeypatch.setattr(recipe, "trial", trial)
    monkeypatch.setattr(recipe, "run_stacks", lambda *given: True)
    monkeypatch.setattr(baselines, "missing", lambda *names: "no myfm")
    arguments = ["--out", str(tmp_path / "recipe.jsonl")]
    assert recipe.main(arguments) == 0 and asked == []
    monkeypatch.setattr(baselines, "missing", lambda *names: None)
    assert recipe.main(arguments) == recipe.main(arguments) == 0  # the second measures nothing
    (line,) = records.read(tmp_path / "recipe.jsonl")
    assert line["seconds"] == {"joint": [1, 4, 7], "ease": [2, 5, 8], "fm-implicit": [3, 6, 9]}
    assert resolve(asked[0][1].split()) == resolve(["@recipes/best.txt"])
    assert asked[1] == ("ease", {"ridge": 247.0})


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


@pytest.mark.parametrize(
    "n, rival", [(39, "myFM, implicit features"), (40, "myFM, ordered probit")]
)
def test_a_later_specialist_is_compared_once_it_has_all_splits(n, rival):
    """The best of all here, and only where whole."""
    levels = {"ours": 0.7, "biases": 0.9, "fm-implicit": 0.8, "fm-ordered": 0.6}
    lines = [
        dict(data="ml-100k", seed=1000 + k, method=method, mrr=None, mse=level * (1 + k / 1000))
        for method, level in levels.items()
        for k in range(n if method == "fm-ordered" else 40)
    ]
    _, tables = unseen(lines)
    (row,) = (row for row in tables["unseen"].splitlines() if row.startswith("| ml-100k | MSE"))
    assert "| 40 of 40 |" in row and f"| {rival}, " in row


def test_what_is_missing_is_a_dash_and_named_by_its_command_and_a_run_twice_is_refused(tmp_path):
    (_, tables, lacking), (nothing, _, commands) = map(documents, (ROOT / "results", tmp_path))
    ends = ["recipe", "baselines", "tune --out results"]
    ends.append("tune --out results --method ease, and so on")
    ends += [*(f"unseen --data {name}" for name in UNSEEN), "future"]
    assert {*lacking} <= {*commands[4:]} and commands == [f"python -m joint.{e}" for e in ends]
    assert "on filmtrust not computed yet and not computed yet (0 of 20)" in nothing
    lines = records.read(ROOT / "results/recipe.jsonl")
    records.append(tmp_path / "recipe.jsonl", [line for line in lines if line.get("arm") == "best"])
    for name in ("baselines", "tuning", "baselines_tuning"):
        records.append(tmp_path / f"{name}.jsonl", records.read(ROOT / f"results/{name}.jsonl"))
    first, rows, lacking = documents(tmp_path)
    assert lacking == [commands[0], *commands[4:]] and "MRR — (not computed yet)" in first
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
        (tune, ["--data", "mine.csv"], "--data mine.csv needs --minutes: the search on record is"),
        (tune, ["--data", "mine.csv", "--minutes", "5"], "'mine.csv' is neither a known data set"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(command, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    (told,) = capsys.readouterr().err.splitlines()
    assert message in told
