"""Splits that no search has seen, and the tests on them."""

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import random_split
from joint.design import APART, TEST, unseen_split

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
