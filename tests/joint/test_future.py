"""joint/future.py: who is known by when."""

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import Split, temporal_split
from joint.baselines import FOLDS, METHODS
from joint.future import GROUPS, future_splits
from joint.tune import fit_and_test


def test_cold_users_are_unknown_to_training_until_their_earlier_rows_join_it():
    data = synthetic(n_users=300, n_items=60, n_interactions=3000, seed=3)
    splits, past, users = future_splits(data), temporal_split(data), data.user_ids
    assert tuple(splits) == GROUPS
    warm, cold, folded, met = splits.values()
    assert (cold.train == folded.train).all() and (cold.test == folded.test).all()
    assert sorted([*folded.train, *folded.validation]) == sorted(met.train)
    assert len(warm.test) and len(cold.test)
    assert np.isin(users[warm.test], users[past.train]).all() and (cold.test == met.test).all()
    assert not np.isin(users[cold.test], users[cold.train]).any()
    joined = np.setdiff1d(met.train, past.train)
    assert sorted([*warm.test, *cold.test, *joined]) == sorted(past.test)
    for user in np.unique(users[cold.test]):
        before, after = (rows[users[rows] == user] for rows in (joined, cold.test))
        assert len(after) - len(before) in (0, 1)
        assert data.timestamps[before].max(initial=0) <= data.timestamps[after].min()


@pytest.mark.parametrize("method", ["ours", *FOLDS])
def test_what_is_known_of_a_new_user_helps_without_training(method):
    if method != "ours":
        pytest.importorskip(METHODS[method].library)
    data = synthetic(n_users=300, n_items=60, n_interactions=6000, seed=3)
    rng, rows = np.random.default_rng(0), np.arange(len(data))
    new = np.isin(data.user_ids, rng.choice(300, 60, replace=False))
    earlier, train = new & (rng.random(len(data)) < 0.5), rows[~new]
    split = Split(train, rows[earlier], rows[new & ~earlier])
    settings = (
        METHODS[method].settings
        if method != "ours"
        else (
            "--rating-head dot --rating-biases --user-history --loss softmax --batch-by user "
            "--leave-one-out --embedding-dim 16 --lr 0.01 --epochs 60 --weight-decay 0.3 "
            "--batch-size 32 --lambda-f 0.5 --lambda-r 0.5"
        )
    )
    cold, folded = (
        fit_and_test(method, data, settings, [0], [split], "test", fold)[0]
        for fold in (False, True)
    )
    if cold["mrr"] is not None:
        assert folded["mrr"] > 1.1 * cold["mrr"]
    if cold["mse"] is not None:
        assert folded["mse"] < 0.97 * cold["mse"]
