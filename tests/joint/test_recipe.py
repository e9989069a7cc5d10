"""The search for the recipe, and its ablation: what they ask for, and that they go on."""

import json

import numpy as np
import pytest

from arguments import resolve
from experiments import recipe, tune
from experiments.study import as_text


def known_function(arguments: str, first: int = 0) -> dict:
    """In place of training; a worker process finds it by its name."""
    args = resolve(arguments.split())
    value = -abs(args["lr"] - 0.01) - abs(args["shared_dims"] - 64) / 1000
    mrr, mse = [np.exp(-value if first else value)], [0.5]  # finalists turn round on other folds
    return dict(arguments=arguments, first_fold=first, value=value, mrr=mrr, mse=mse)


SPECIALISTS = [dict(arguments="ease", mrr=[0.9] * 2), dict(arguments="fm-implicit", mse=[9.0] * 2)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tune, "validate", known_function)


@pytest.fixture
def search(quick, tmp_path, capsys):
    """Runs the command on a file of its own that has the specialists; its last word."""
    (tmp_path / "whole.jsonl").write_text(as_text(SPECIALISTS))
    (tmp_path / "cut.jsonl").write_text(as_text(SPECIALISTS))

    def run(path, *arguments):
        assert tune.main([*arguments, "--out", str(path)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_search_cut_short_goes_on_as_if_it_had_not_been(search, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    search(whole, "--trials", "26")
    search(cut, "--trials", "10")
    with cut.open("a") as file:
        file.write('{"arguments": "torn')
    search(cut, "--trials", "26")
    assert lines(cut) == lines(whole) and len(lines(whole)) == 28


def test_a_search_finds_the_best_and_tries_it_on_other_folds(search, tmp_path):
    path = tmp_path / "whole.jsonl"
    best = search(path, "--trials", "10")
    tried = lines(path)[2:]
    assert best["mrr"][0] == max(line["mrr"][0] for line in tried) and len(tried) == 10
    best, tried = search(path), [line for line in lines(path)[2:] if not line["first_fold"]]
    finalists = [line["arguments"] for line in lines(path)[2:] if line["first_fold"]]
    tried.sort(key=lambda line: -line["mrr"][0])
    assert finalists == [line["arguments"] for line in tried[: tune.FINALISTS]]
    assert best["arguments"] in finalists and len(best["mrr"]) == 2


def test_a_search_without_the_specialists_is_refused(quick, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--out", str(tmp_path / "lines.jsonl")])
    assert "lacks ease: run with --specialists first" in capsys.readouterr().err


def test_validation_trains_on_no_row_of_split_0s_test_part(monkeypatch):
    seen = {}
    make_stack = tune.train.make_stack

    def watched(args, data, runs, splits):
        seen.update(data=data, splits=splits)
        return make_stack(args, data, runs, splits)

    monkeypatch.setattr(tune.train, "make_stack", watched)
    settings = dict(tune.FIRST[0], epochs=1, common=2, ranking_own=2, rating_own=2)
    record = tune.validate(tune.arguments_of(settings), folds=2)
    assert len(record["mrr"]) == len(record["mse"]) == 2
    test = set(tune.random_split(seen["data"], 0).test)
    for part in seen["splits"]:
        assert not test & (set(part.train) | set(part.validation))
        assert not set(part.train) & set(part.validation)


def test_every_arm_of_the_ablation_changes_the_recipe():
    settings = {}
    for stack in recipe.plan():
        args = resolve(stack["arguments"])
        assert args["seeds"] == [0, 1, 2, 3, 4]
        settings[stack["stack"]] = json.dumps({**args, "out": None}, sort_keys=True)
    assert len(set(settings.values())) == len(settings)


def test_the_recipe_is_the_best_on_record_by_validation():
    best = tune.ranked_trials(lines(recipe.ROOT / "results/tuning.jsonl"))[0]
    assert resolve(recipe.recipe()) == resolve(best["arguments"].split())


def test_an_unknown_arm_is_refused(capsys):
    with pytest.raises(SystemExit):
        recipe.main(["--only", "bset"])
    assert "--only bset: the arms are best; " in capsys.readouterr().err


def test_separate_arms_have_no_column_in_common_and_as_many_parameters():
    arms = {stack["arm"]: resolve(stack["arguments"]) for stack in recipe.plan()}
    best, separate = arms["best"], arms["separate, as many parameters"]
    assert separate["shared_dims"] == 0 < best["shared_dims"]
    width = best["ranking_dim"] + best["rating_dim"] - best["shared_dims"]
    assert separate["ranking_dim"] + separate["rating_dim"] == width
