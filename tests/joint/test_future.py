"""joint/future.py: who is known by when."""

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import Split, temporal_split
from joint.baselines import FITS, FOLDS, METHODS, training_part
from joint.future import GROUPS, future_splits
from joint.report import future
from joint.tune import fit_and_test


def test_cold_users_are_unknown_to_training_until_their_earlier_rows_join_it():
    data = synthetic(n_users=300, n_items=60, n_interactions=3000, seed=3)
    splits, past, users = future_splits(data), temporal_split(data), data.user_ids
    assert tuple(splits) == GROUPS
    warm, cold, folded, met = splits.values()
    for part in ("train", "validation", "test"):
        assert np.array_equal(getattr(cold, part), getattr(folded, part))
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


OURS = (
    "--rating-head dot --rating-biases --user-history --item-history --loss softmax "
    "--batch-by user --leave-one-out --embedding-dim 16 --lr 0.01 --epochs 60 --weight-decay 0.3 "
    "--batch-size 32 --lambda-f 0.5 --lambda-r 0.5"
)


@pytest.mark.parametrize("method", ["ours", *FOLDS])
def test_what_is_known_of_a_new_user_helps_without_training(method):
    if method != "ours":
        pytest.importorskip(METHODS[method].library)
    data = synthetic(n_users=300, n_items=60, n_interactions=6000, seed=3)
    rng, rows = np.random.default_rng(0), np.arange(len(data))
    new = np.isin(data.user_ids, rng.choice(300, 60, replace=False))
    earlier = new & (rng.random(len(data)) < 0.5)
    split = Split(rows[~new], rows[earlier], rows[new & ~earlier])
    settings = OURS if method == "ours" else METHODS[method].settings
    cold, folded = (
        fit_and_test(method, data, settings, [0], [split], "test", fold)[0]
        for fold in (False, True)
    )
    if cold["mrr"] is not None:
        assert folded["mrr"] > 1.1 * cold["mrr"]
    if cold["mse"] is not None:
        assert folded["mse"] < 0.97 * cold["mse"]


def test_biases_fold_in_a_user_by_ridge_at_the_items_biases_and_what_is_known_already_is_nothing():
    data, settings = synthetic(seed=3), METHODS["biases"].settings
    rows, user = np.arange(len(data)), data.user_ids[0]
    others, own = (training_part(data, x) for x in (rows[data.user_ids != user], rows))
    fits = [FITS["biases"](others, 0, **settings, known=known) for known in (None, others, own)]
    plain, same, folded = (fit.ratings(data.user_ids, data.item_ids) for fit in fits)
    np.testing.assert_allclose(same, plain, atol=1e-6)
    mine = data.user_ids == user
    above = data.ratings[mine] - plain[mine]  # where the user's bias is 0
    bias = above.sum() / (mine.sum() + settings["user_ridge"])
    np.testing.assert_allclose(folded - plain, np.where(mine, bias, 0), atol=1e-6)


def test_rows_known_later_rank_last_folded_or_not():
    data = synthetic(n_users=300, n_items=60, n_interactions=6000, seed=3)
    split = temporal_split(data, 0.3, 0.3)
    parts = [Split(split.train, later, split.test) for later in (split.validation, split.test[:0])]
    masked, all_there = (
        [fit_and_test("popularity", data, {}, [0], [x], "test", fold)[0]["mrr"] for x in parts]
        for fold in (False, True)
    )
    assert masked == all_there and masked[0] > masked[1]


def test_a_group_that_was_not_run_is_a_dash_in_its_own_column():
    lines = [
        {"method": "ease", "group": group, "seed": 0, "rows": 3, "mrr": 0.25 + k, "mse": None}
        for k, group in enumerate(("warm", "met"))
    ]
    (row,) = future(lines)[1]["future"].splitlines()[2:]
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["0.2500", "—", "—", "1.2500"]
