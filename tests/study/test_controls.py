"""study/controls.py: what a control takes from the runs that it mirrors."""

import math

import numpy as np
import pytest
import torch

from multitask import LOSSES
from study import controls, run
from study.design import STACKS
from study.records import read
from weighting import METHODS, Weightings

PLANNED = {"stack": "control", "arguments": ["--shared"]}


def moving(seed: int, ratio: float, method: str = "gls") -> dict:
    path = {"weight_f": [ratio, 3.0, 5.0], "weight_r": [1.0, 1.0, 2.0]}
    return {"seed": seed, "weighting": method, "log_ratio": math.log(ratio), "curves": path}


def test_frozen_weights_have_the_geometric_mean_of_the_runs_ratios():
    made = controls.controlled(PLANNED | {"control": "frozen"}, [moving(0, 4.0), moving(1, 100.0)])
    _, _, f, _, r = made["arguments"]
    assert float(f) / float(r) == pytest.approx(20, rel=1e-2)
    line = {"epoch": 1}
    weights = [(8, 2), (1, 1), (1, 1000)]  # the last is after the epoch returned
    rows = [dict(epoch=k, weight_f=f, weight_r=r) for k, (f, r) in enumerate(weights)]
    controls.tell_weights(line, rows)
    assert math.exp(line["log_ratio"]) == pytest.approx(2)


@pytest.mark.parametrize("mirrored, weighs_own", [("gls", True), ("mgda", False)])
def test_shuffled_weights_are_the_runs_own_in_another_order(mirrored, weighs_own):
    before = dict(METHODS), dict(LOSSES)
    lines = [moving(seed, 2.0 + seed, mirrored) for seed in range(6)]
    stack = controls.controlled(PLANNED | {"control": "shuffled"}, lines)
    assert stack["arguments"][-2:] == ["--weighting", "shuffled"]
    controls.register(stack)
    method, seen = Weightings(["shuffled"] * 6, range(6), "cpu"), []
    for epoch in range(0, 30, controls.STRETCH):
        method.epoch_start(epoch, 5)
        shared, own = method.by_losses(torch.ones(6, 2))
        assert (own == (shared if weighs_own else 1)).all()  # as the method that it mirrors
        seen.append(shared.numpy().copy())
    for seed, own in enumerate(np.stack(seen, 1)):
        path = lines[seed]["curves"]
        given = sorted(zip(path["weight_f"], path["weight_r"], strict=True))
        assert sorted(map(tuple, own.tolist())) == given
    orders = {tuple(own[:, 0].argsort().tolist()) for own in np.stack(seen, 1)}
    assert len(orders) > 1
    for registry, held in zip((METHODS, LOSSES), before, strict=True):
        for name in registry.keys() - held.keys():
            del registry[name]


def test_an_arm_is_tuned_by_the_best_mean_validation_score_and_a_broken_run_is_the_worst():
    def tried(lr, **scores):
        return {"optimizer": "sgd", "lr": lr, "weight_decay": [0.0]} | scores

    good, better = dict(val_mrr=0.1, val_mse=0.9), dict(val_mrr=0.12, val_mse=0.9)
    lines = [tried(1.0, **good), tried(1.0, **good), tried(0.3, **better), tried(0.3, **good)]
    lines += [tried(3.0, **better), tried(3.0)]
    made = controls.controlled(PLANNED | {"control": "tuned"}, lines)
    assert made["arguments"][1:] == "--optimizer sgd --lr 0.3 --weight-decay 0".split()


def test_every_control_mirrors_stacks_of_the_plan_that_weigh_alike():
    there = [stack for stack in STACKS.values() if "control" in stack]
    assert {stack["control"] for stack in there} == {"frozen", "shuffled", "tuned"}
    for stack in there:
        mirrored = [STACKS[name] for name in stack["mirrors"]]
        assert len(mirrored) in (1, 7, 9)
        assert len({x["weighting"] for x in mirrored}) == 1


def test_a_run_that_is_no_longer_finite_is_a_line_without_metrics(
    ratings_csv, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "die_with_parent", lambda: None)
    arguments = ["--data", str(ratings_csv), *"--optimizer sgd --lr 1e30 --epochs 2".split()]
    stack = dict(stack="a", experiment="sgd-tries", protocol="selected", arguments=arguments)
    run.work(stack, tmp_path)
    (line,) = read(tmp_path / "lines.jsonl")
    assert line["lr"] == 1e30 and "mrr" not in line and "no longer finite" in line["error"]
