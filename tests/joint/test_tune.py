"""The search for settings: what it may look at, what it costs, how it goes on, what it chooses."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from arguments import resolve
from checks.synthetic import synthetic
from data import random_split
from joint import tune
from joint.design import SEARCHES
from study import records

DATA = synthetic(seed=3)
SPACE = SEARCHES["ours"].space
CLOCK, STOP_AFTER = [0.0], [math.inf]  # seconds; lines


class Pool:
    """In place of the worker processes: two trials take as long as one of them."""

    def __init__(self, *named): ...

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def submit(self, function, *given):
        return SimpleNamespace(result=lambda: function(*given))

    def map(self, function, asked):
        for settings in asked:
            if not STOP_AFTER[0]:
                raise KeyboardInterrupt
            STOP_AFTER[0] -= 1
            yield function(settings)
            CLOCK[0] += 5.0 * function.keywords["folds"]


def trial(method, source, apart, settings, first, folds):
    """In place of a fit of 10 seconds a fold: the best ridge is 100, the best rate 0.01."""
    if method == "ours":
        away, line = abs(math.log(resolve(settings.split())["lr"] / 0.01)), {"arguments": settings}
    else:
        away, line = abs(math.log(settings["ridge"] / 100)), {"settings": settings}
    mrr = [1 / (1 + away + 0.1 * fold) for fold in range(first, first + folds)]
    line |= {"data_sha256": DATA.sha256, "method": method, "apart": apart, "first_fold": first}
    mse = [1.0 if method == "ours" else None] * folds
    return line | {"mrr": mrr, "mse": mse, "seconds": 10.0 * folds}


@pytest.fixture
def search(monkeypatch, tmp_path, capsys):
    """search("--minutes 5") runs the command: exit code, lines of its file, and what it says."""
    CLOCK[0], STOP_AFTER[0] = 0.0, math.inf
    monkeypatch.setattr(tune, "loaded", lambda source: DATA)
    monkeypatch.setattr(tune, "trial", trial)
    monkeypatch.setattr(tune, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=lambda: CLOCK[0]))

    def run(words, method="ease", out=tmp_path):
        code = tune.main(["--method", method, "--out", str(out), *words.split()])
        (path,) = out.glob("*.jsonl")
        return code, records.read(path), capsys.readouterr().err

    return run


@pytest.mark.parametrize("method", ["ours", "ease"])
def test_a_trial_looks_at_no_row_that_is_apart(method, monkeypatch):
    monkeypatch.setattr(tune, "loaded", lambda source: DATA)
    stack, fit = Mock(wraps=tune.train.make_stack), Mock(wraps=tune.baselines.fit_and_test)
    evaluator = Mock(wraps=tune.train.make_evaluator)
    monkeypatch.setattr(tune.train, "make_stack", stack)
    monkeypatch.setattr(tune.train, "make_evaluator", evaluator)
    monkeypatch.setattr(tune.baselines, "fit_and_test", fit)
    settings = {"ridge": 20.0}
    if method == "ours":
        small = dict(zip(SPACE, SEARCHES["ours"].first[0], strict=True))
        settings = tune.told("ours", small | dict(epochs=1, common=2, ranking_own=2, rating_own=2))
    line = tune.trial(method, "some.csv", 0.2, settings, 1, 2)
    if method == "ours":
        parts = stack.call_args.args[3]
        assert evaluator.call_args.args[2:] == (parts, "validation", "train")
        pairs = [(part.train, part.validation) for part in parts]
    else:
        pairs = [call.args[3:] for call in fit.call_args_list]
    apart = random_split(DATA, 0, 0.2).test
    for trained, validated in pairs:
        rows = np.concatenate([apart, trained, validated])
        assert len(rows) == len(DATA) == len(np.unique(rows)) and len(validated) == 400
    assert len(pairs) == len(line["mrr"]) == 2 and not np.intersect1d(*(v for _, v in pairs)).size
    assert (line["mse"] == [None, None]) == (method == "ease")


def test_a_search_keeps_to_its_minutes_with_the_folds_that_leave_it_enough_trials(search, tmp_path):
    for minutes, folds in ((10, 4), (5, 2), (2, 1)):
        CLOCK[0] = 0.0
        _, lines, told = search(f"--minutes {minutes}", out=tmp_path / f"{minutes}")
        first = [line for line in lines if not line["first_fold"]]
        assert {len(line["mrr"]) for line in lines} == {folds} and len(first) >= 16
        assert len(lines) - len(first) == min(6, len(first) // 8 * 2)
        assert minutes * 60 - 2 * 10 * folds <= CLOCK[0] <= minutes * 60
        assert f"on {folds} validation part(s) in {minutes} minutes" in told
    assert len(search("--trials 8", out=tmp_path / "trials")[1]) == 8 + 2
    with pytest.raises(SystemExit, match="2"):
        search("--minutes 0.1", out=tmp_path / "few")


@pytest.mark.parametrize("after", [1, 7, 18])
def test_a_stopped_search_goes_on_to_the_same_lines_and_more_minutes_extend_it(
    after, search, tmp_path
):
    _, lines, _ = search("--minutes 5", out=tmp_path / "whole")
    CLOCK[0], STOP_AFTER[0] = 0.0, after
    code, before, told = search("--minutes 5", out=tmp_path / "stopped")
    assert code == 130 and len(before) == after and told.endswith("the same command goes on\n")
    CLOCK[0], STOP_AFTER[0] = 0.0, math.inf
    assert search("--minutes 5", out=tmp_path / "stopped")[1] == lines
    more = search("--minutes 8", out=tmp_path / "stopped")[1]
    assert more[: len(lines)] == lines and len(more) > len(lines) + 10


def test_the_best_on_most_folds_is_chosen_and_what_is_not_finite_is_last():
    def line(ridge, mrr, first=0):
        told = {"method": "ease", "settings": {"ridge": ridge}, "first_fold": first}
        return told | {"mrr": mrr, "mse": [None] * 2}

    lines = [line(1, [0.1, 0.4]), line(2, [0.3, 0.3]), line(3, [0.2, 0.2]), line(4, [None] * 2)]
    order = [trial["settings"]["ridge"] for trial in tune.ranked(lines)]
    assert order == [2, 1, 3, 4]  # log means 0.3, 0.2, 0.2, and equal ones stay in their order
    again = [line(1, [0.4, 0.4], 2), line(3, [0.5, 0.5], 2)]
    first, second = tune.ranked(lines + again)
    assert first["settings"]["ridge"] == 3 and first["mrr"] == [0.2, 0.2, 0.5, 0.5]
    assert second["value"] == pytest.approx(np.log([0.1, 0.4, 0.4, 0.4]).mean())
    joint = {"arguments": "--lr 1", "mrr": [0.1, 0.2], "mse": [0.5, 1.0]}
    assert tune.value(joint) == pytest.approx((math.log(0.2) + math.log(0.2)) / 2)


def test_a_recipe_is_what_train_takes_and_no_worse_than_the_one_in_use(search, tmp_path):
    _, lines, told = search("--minutes 5 --data ml-100k", method="ours")
    (line, *_) = tune.ranked(lines)
    written = resolve([f"@{tmp_path / 'ml-100k.txt'}"])
    assert written == resolve(line["arguments"].split()) and f"@{tmp_path}" in told
    in_use = resolve(["@recipes/best.txt"])
    assert in_use in [resolve(each["arguments"].split()) for each in lines]
    assert abs(math.log(written["lr"] / 0.01)) < abs(math.log(in_use["lr"] / 0.01))


def test_the_columns_told_go_with_the_file_into_the_search_and_its_recipe(tmp_path):
    path = tmp_path / "my ratings.csv"
    path.write_text("score,iid,uid\n5,b,1\n3,a,2\n")
    source = tune.shlex.join([str(path), "--columns", "user=uid,item=iid,rating=score"])
    assert tune.loaded(source).ratings.tolist() == [5, 3]
    tune.write_recipe(
        tmp_path / "r.txt", source, {"arguments": "--lr 0.01", "mrr": [1], "mse": [1]}
    )
    assert tune.resolve([f"@{tmp_path / 'r.txt'}"])["columns"] == "user=uid,item=iid,rating=score"
