"""joint/future.py: who is known by when."""

import numpy as np

from checks.synthetic import synthetic
from data import temporal_split
from joint.future import GROUPS, future_splits


def test_cold_users_are_unknown_to_training_until_their_earlier_rows_join_it():
    data = synthetic(n_users=300, n_items=60, n_interactions=3000, seed=3)
    splits, past, users = future_splits(data), temporal_split(data), data.user_ids
    assert tuple(splits) == GROUPS
    warm, cold, met = splits.values()
    assert len(warm.test) and len(cold.test)
    assert np.isin(users[warm.test], users[past.train]).all() and (cold.test == met.test).all()
    assert not np.isin(users[cold.test], users[cold.train]).any()
    joined = np.setdiff1d(met.train, past.train)
    assert sorted([*warm.test, *cold.test, *joined]) == sorted(past.test)
    for user in np.unique(users[cold.test]):
        before, after = (rows[users[rows] == user] for rows in (joined, cold.test))
        assert len(after) - len(before) in (0, 1)
        assert data.timestamps[before].max(initial=0) <= data.timestamps[after].min()
