"""The search for the recipe: it goes on, chooses by its rule, and looks at no test row."""

import json
from unittest.mock import Mock

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


def test_a_search_cut_short_goes_on_finds_the_best_and_tries_it_on_other_folds(search):
    best, tried = search("--trials", "26")
    assert search("--trials", "26", after=tried[:9]) == (best, tried)
    assert best["mrr"][0] == max(line["mrr"][0] for line in tried) and len(tried) == 26
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
    spies = [Mock(wraps=getattr(tune.train, name)) for name in ("make_stack", "make_evaluator")]
    for spy, name in zip(spies, ("make_stack", "make_evaluator"), strict=True):
        monkeypatch.setattr(tune.train, name, spy)
    settings = dict(zip(tune.OURS.space, tune.OURS.first[0], strict=True))
    settings |= dict(epochs=1, common=2, ranking_own=2, rating_own=2)
    record = tune.validate(tune.arguments_of(settings), folds=2)
    assert len(record["mrr"]) == len(record["mse"]) == 2
    _, data, _, parts = spies[0].call_args.args
    assert spies[1].call_args.args[2:] == (parts, "validation", "train")
    for part in parts:
        together = [*random_split(data, 0).test, *part.train, *part.validation]
        assert len(set(together)) == len(together)


def test_trials_are_ranked_by_the_smaller_of_their_margins():
    lines = [
        dict(arguments="ease", mrr=[0.1, 0.2, 0.1, 0.2]),
        dict(arguments="fm-implicit", mse=[0.8, 0.9, 0.8, 0.9]),
        dict(arguments="ranks", mrr=[0.2, 0.4], mse=[0.8, 0.9]),  # log 2 ahead, and 0
        dict(arguments="rates", mrr=[0.1, 0.2], mse=[0.4, 0.45]),
        dict(arguments="both", mrr=[0.11, 0.22], mse=[0.72, 0.81]),  # log 1.1, log 1 / 0.9
    ]
    margins = [(each["arguments"], each["margin"]) for each in ranked_trials(lines)]
    assert margins[0] == ("both", pytest.approx(np.log(1.1)))
    assert [margin for _, margin in margins[1:]] == pytest.approx([0, 0])
    finals = [dict(arguments="ranks", first_fold=2, mrr=[0.05, 0.1], mse=[0.8, 0.9])]
    (only,) = ranked_trials(lines + finals)  # finalists alone, over all their folds
    assert only["arguments"] == "ranks" and only["mrr"] == [0.2, 0.4, 0.05, 0.1]
    assert only["margin"] == pytest.approx(0)
