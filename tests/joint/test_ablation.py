"""The arms of the joint recipe: each changes what its name says."""

import json

import pytest

from arguments import resolve
from joint import recipe
from joint.design import ARMS, PLANNED

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
    "ensemble": {"ensemble"},
}


def test_the_plan_trains_every_arm_once_on_five_splits_and_no_two_alike():
    assert list(ARGS) == PLANNED == [name for name in ARMS if not ARMS[name].on_record]
    told = set()
    for stack in PLAN:
        args = resolve(stack["arguments"])
        assert args["seeds"] == [0, 1, 2, 3, 4] and stack["runs"] == 5
        assert (args["split"] == "temporal") == (stack["experiment"] == "recipe temporal")
        told.add(json.dumps({**args, "out": None}, sort_keys=True))
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
    told = {"seeds": [0], "eval_every": 1, "out": written["out"]}
    assert ARGS["ensemble"] | told == written


def test_an_unknown_arm_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        recipe.main(["--only", "bset"])
    assert "--only: invalid choice: 'bset' (choose from 'best'" in capsys.readouterr().err
