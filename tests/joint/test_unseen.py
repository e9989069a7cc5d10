"""Splits that no search has seen, and the command that tests on them."""

from unittest.mock import Mock

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import random_split
from joint import unseen
from joint.design import APART, SEARCHES, TEST, unseen_split
from study import records

DATA = synthetic(seed=3)


@pytest.mark.parametrize("name", ["ml-100k", "filmtrust"])
def test_an_unseen_test_part_is_of_rows_set_apart_and_all_others_train(name):
    parts = [unseen_split(name, DATA, seed) for seed in range(1000, 1020)]
    for part in parts:
        assert sorted([*part.train, *part.test]) == [*range(len(DATA))]
        assert len(part.test) == round(TEST * len(DATA)) and not len(part.validation)
    tested = np.unique(np.concatenate([part.test for part in parts]))
    if name in APART:  # what joint.tune --apart 0.2 leaves out of every trial
        assert np.isin(tested, random_split(DATA, 0, 0.2).test).all()
    else:
        assert len(tested) > 0.5 * len(DATA)


def test_a_fit_is_made_once_with_the_settings_chosen_and_tested_on_its_split(monkeypatch, tmp_path):
    fit = Mock(return_value=[{"mrr": 0.5, "mse": None}])
    search, chosen = Mock(), {"method": "ease", "settings": {"ridge": 7.0}, "mrr": [0.1]}
    search.return_value.run.return_value = [chosen | {"mse": [None]}]
    for name, double in dict(load=lambda name: DATA, fit_and_test=fit, Search=search).items():
        monkeypatch.setattr(unseen, name, double)
    for name, settings in {
        "ml-100k": SEARCHES["ease"].settings,
        "filmtrust": {"ridge": 7.0},
    }.items():
        command = ["--data", name, "--methods", "ease", "--results", str(tmp_path)]
        for seeds in ("1000-1001", "1000-1002", "1000-1002"):
            assert unseen.main([*command, "--seeds", seeds]) == 0
        lines = [line for line in records.read(tmp_path / "unseen.jsonl") if line["data"] == name]
        assert [line["seed"] for line in lines] == [1000, 1001, 1002]
        for line, call in zip(lines, fit.call_args_list[-3:], strict=True):
            assert call.args[2] == line["settings"] == settings and call.args[5] == "test"
            (part,) = call.args[4]
            assert (part.test == unseen_split(name, DATA, line["seed"]).test).all()
    assert fit.call_count == 6 and {call.args[2] for call in search.call_args_list} == {0.2}
