"""Claims about checks/synthetic.py: sizes, seeds, and what is planted."""

import numpy as np
import pytest

import data
from checks.synthetic import synthetic


def test_synthetic_is_reproducible_and_seeded():
    assert synthetic(seed=1).sha256 == synthetic(seed=1).sha256 != synthetic(seed=2).sha256


@pytest.mark.parametrize(
    "sizes", [(200, 300, 8000), (1, 7, 7), (7, 1, 7), (5, 4, 20), (30, 30, 30), (40, 50, 1900)]
)
def test_synthetic_has_the_sizes_asked_for_with_every_user_and_item(sizes):
    made = synthetic(*sizes, seed=5)  # Interactions checks ids and repeats
    assert (made.n_users, made.n_items, len(made)) == sizes
    assert set(np.unique(made.ratings)) <= {1, 2, 3, 4, 5}
    assert (np.diff(made.timestamps) >= 0).all()


@pytest.mark.parametrize("sizes", [(0, 5, 5), (5, 4, 21), (5, 4, 4), (5, -1, 3)])
def test_synthetic_refuses_impossible_sizes(sizes):
    with pytest.raises(ValueError, match="would be right"):
        synthetic(*sizes)


def test_synthetic_plants_one_taste_in_ranking_and_rating_beyond_popularity_and_biases():
    made = synthetic(400, 200, 16000, seed=0)
    split = data.random_split(made, seed=0, test_fraction=0.1)
    users, items = made.user_ids, made.item_ids
    residuals = made.ratings.astype(float)
    for _ in range(20):  # what user and item biases leave of the training ratings
        for ids, n in ((users, 400), (items, 200)):
            count = np.bincount(ids[split.train], minlength=n)
            bias = np.bincount(ids[split.train], residuals[split.train], minlength=n) / (count + 1)
            residuals -= bias[ids]
    interacted, left = np.zeros((400, 200)), np.zeros((400, 200))
    interacted[users[split.train], items[split.train]] = 1
    left[users[split.train], items[split.train]] = residuals[split.train]
    # Neighbours are the 40 users most alike in what they chose; ratings play no part in that.
    expected = interacted.sum(1, keepdims=True) * interacted.sum(0) / interacted.sum()
    surprise = interacted - expected
    surprise /= np.linalg.norm(surprise, axis=1, keepdims=True)
    likeness = surprise @ surprise.T - 2 * np.eye(400)
    near = (likeness >= np.sort(likeness, axis=1)[:, -40:-39]).astype(float)
    by_neighbours = near @ interacted
    predicted = (near @ left) / (by_neighbours + 1)

    def reciprocal_rank(scores: np.ndarray) -> float:
        scores = np.where(interacted > 0, -np.inf, scores)[users[split.test]]
        own = scores[np.arange(len(split.test)), items[split.test]]
        return np.mean(1 / (1 + (scores > own[:, None]).sum(1)))

    by_popularity = np.tile(interacted.sum(0), (400, 1))
    test_residuals = residuals[split.test]
    remaining = test_residuals - predicted[users[split.test], items[split.test]]
    assert reciprocal_rank(by_neighbours) > 1.3 * reciprocal_rank(by_popularity)
    assert np.mean(remaining**2) < 0.85 * np.mean(test_residuals**2)
    assert np.sort(interacted.sum(0))[-20:].sum() > 0.2 * interacted.sum()  # a popular tenth


def test_relatedness_is_how_much_rating_follows_what_ranking_follows():
    """Of users who chose alike the ratings are alike at 1, and no more than of others at 0."""
    likeness = []
    for relatedness in (0.0, 1.0):
        made = synthetic(300, 100, 9000, seed=2, relatedness=relatedness)
        rated = np.full((300, 100), np.nan)
        rated[made.user_ids, made.item_ids] = made.ratings
        rated -= np.nanmean(rated, 0)
        rated = np.nan_to_num(rated - np.nanmean(rated, 1, keepdims=True))
        chosen = np.zeros((300, 100))
        chosen[made.user_ids, made.item_ids] = 1
        chosen -= chosen.sum(1, keepdims=True) * chosen.mean(0) / chosen.mean(0).sum()
        both = [(x @ x.T)[np.triu_indices(300, 1)] for x in (chosen, rated)]
        likeness.append(np.corrcoef(*both)[0, 1])
    assert abs(likeness[0]) < 0.05 and likeness[1] > 0.15


def test_relatedness_changes_the_ratings_alone():
    one, other = synthetic(seed=4), synthetic(seed=4, relatedness=0.3)
    assert np.array_equal(one.user_ids, other.user_ids)
    assert np.array_equal(one.item_ids, other.item_ids)
    assert not np.array_equal(one.ratings, other.ratings)
    with pytest.raises(ValueError, match="relatedness"):
        synthetic(relatedness=1.1)
