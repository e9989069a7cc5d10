"""The search for the recipe: it goes on, chooses by its rule, and looks at no test row."""

import json

import numpy as np
import pytest

from arguments import resolve
from data import random_split
from joint import tune
from joint.tune import FINALISTS, ranked_trials
from study import records

SPECIALISTS = [dict(arguments="ease", mrr=[0.9] * 2), dict(arguments="fm-implicit", mse=[9.0] * 2)]


def known_function(arguments: str, first: int = 0) -> dict:
    """In place of training; a worker process finds it by its name."""
    args = resolve(arguments.split())
    value = -abs(args["lr"] - 0.01) - abs(args["shared_dims"] - 64) / 1000
    mrr, mse = [np.exp(-2 * value if first else value)], [0.5]  # other folds turn them round
    return dict(arguments=arguments, first_fold=first, value=value, mrr=mrr, mse=mse)


@pytest.fixture
def search(monkeypatch, tmp_path, capsys):
    """Runs the command on a file that begins with these lines; its last word, and the new lines."""
    monkeypatch.setattr(tune, "validate", known_function)

    def run(*arguments, after=()):
        path = tmp_path / "lines.jsonl"
        path.unlink(missing_ok=True)
        records.append(path, [*SPECIALISTS, *after])
        with path.open("a") as file:
            file.write('{"arguments": "torn')
        assert tune.main([*arguments, "--out", str(path)]) == 0
        return json.loads(capsys.readouterr().out), records.read(path)[len(SPECIALISTS) :]

    return run


def test_a_search_cut_short_goes_on_as_if_it_had_not_been(search):
    best, whole = search("--trials", "26")
    again, lines = search("--trials", "26", after=whole[:9])
    assert again == best and lines == whole and len(whole) == 26


def test_a_search_finds_the_best_and_tries_it_on_other_folds(search):
    best, tried = search("--trials", "10")
    assert best["mrr"][0] == max(line["mrr"][0] for line in tried) and len(tried) == 10
    by_hand = known_function("--shared-dims 64 --ranking-dim 70 --rating-dim 70 --lr 0.01")
    best, lines = search(after=[*tried, by_hand])
    finalists = [line["arguments"] for line in lines if line["first_fold"]]
    tried = [line for line in lines if not line["first_fold"]]
    tried.sort(key=lambda line: -line["mrr"][0])
    assert finalists == [line["arguments"] for line in tried[:FINALISTS]]
    assert finalists[0] == by_hand["arguments"]
    assert best["arguments"] == finalists[-1] and len(best["mrr"]) == 2


def test_a_search_without_the_specialists_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--out", str(tmp_path / "lines.jsonl")])
    assert "lacks ease: run with --specialists first" in capsys.readouterr().err


def test_validation_looks_at_no_row_of_split_0s_test_part(monkeypatch):
    seen = {}

    def watched(name):
        make = getattr(tune.train, name)
        monkeypatch.setattr(tune.train, name, lambda *a: seen.update({name: a}) or make(*a))

    watched("make_stack")
    watched("make_evaluator")
    settings = dict(zip(tune.OURS.space, tune.OURS.first[0], strict=True))
    settings |= dict(epochs=1, common=2, ranking_own=2, rating_own=2)
    record = tune.validate(tune.arguments_of(settings), folds=2)
    assert len(record["mrr"]) == len(record["mse"]) == 2
    _, data, _, parts = seen["make_stack"]
    assert seen["make_evaluator"][2:] == (parts, "validation", "train")
    test = set(random_split(data, 0).test)
    for part in parts:
        assert not test & (set(part.train) | set(part.validation))
        assert not set(part.train) & set(part.validation)


def test_trials_are_ranked_by_the_smaller_of_their_margins():
    lines = [
        dict(arguments="ease", mrr=[0.1, 0.2, 0.1, 0.2]),
        dict(arguments="fm-implicit", mse=[0.8, 0.9, 0.8, 0.9]),
        dict(arguments="ranks", mrr=[0.2, 0.4], mse=[0.8, 0.9]),  # log 2 ahead, and 0
        dict(arguments="rates", mrr=[0.1, 0.2], mse=[0.4, 0.45]),
        dict(arguments="both", mrr=[0.11, 0.22], mse=[0.72, 0.81]),  # log 1.1, log 1 / 0.9
    ]
    first, *others = ranked_trials(lines)
    assert first["arguments"] == "both" and first["margin"] == pytest.approx(np.log(1.1))
    assert [each["margin"] for each in others] == pytest.approx([0, 0])
    finals = [dict(arguments="ranks", first_fold=2, mrr=[0.05, 0.1], mse=[0.8, 0.9])]
    (only,) = ranked_trials(lines + finals)  # finalists alone, over all their folds
    assert only["arguments"] == "ranks" and only["mrr"] == [0.2, 0.4, 0.05, 0.1]
    assert only["margin"] == pytest.approx(0)
