"""Planted data: interactions whose structure is known, of any size."""

import hashlib
import math

import numpy as np

from data import Interactions
from ratings_file import require

N_TASTES = 8  # kinds of users
TASTE_DIMENSIONS = 4


def synthetic(
    n_users: int = 200,
    n_items: int = 300,
    n_interactions: int = 8000,
    seed: int = 0,
    relatedness: float = 1.0,
) -> Interactions:
    """Seeded interactions with planted structure: how much ranking and rating share is known.

    A user has one of 8 tastes t_g, an item a vector v_j, and their affinity is
    s_gj = t_g·v_j / |t_g| (standard deviation 1). Pairs are drawn without repeats with
    p(j | g) ∝ popularity_j exp(1.5 s_gj), popularity Zipf-like; ratings are
    2.8 + b_u + b_j + r_ij + noise (0.5), rounded and clipped to 1..5, where
    r = ρ s + √(1 − ρ²) s', ρ the ``relatedness`` and s' an affinity of other tastes and vectors:
    at 1 both tasks see one affinity, at 0 unrelated ones. So popularity and biases explain a part
    of both tasks, the affinities most of the rest. Every user and every item occurs; rows are in
    order of time.

    Raises ValueError unless max(n_users, n_items) ≤ n_interactions ≤ n_users n_items and
    0 ≤ ρ ≤ 1.
    """
    require(0 <= relatedness <= 1, f"relatedness {relatedness}", "0 to 1")
    found = f"{n_interactions} interactions of {n_users} users and {n_items} items"
    require(min(n_users, n_items) > 0, found, "at least 1 user and 1 item")
    least, most = max(n_users, n_items), n_users * n_items
    require(least <= n_interactions <= most, found, f"{least} to {most} interactions")
    rng = np.random.default_rng(seed)
    tastes, affinity = _affinity(rng, n_users, n_items)
    popularity = rng.permutation(1 / (np.arange(n_items) + 10))
    weights = popularity * np.exp(1.5 * affinity)  # (N_TASTES, n_items)
    pairs = _draw_pairs(rng, n_interactions, tastes, weights)
    rng.shuffle(pairs)
    user_ids, item_ids = np.divmod(pairs, n_items)
    # Items nobody drew take the place of rows whose item occurs in an earlier row.
    first_rows = np.unique(item_ids, return_index=True)[1]
    absent = np.setdiff1d(np.arange(n_items), item_ids[first_rows])
    if absent.size:
        spare = np.delete(np.arange(n_interactions), first_rows)
        item_ids[rng.choice(spare, absent.size, replace=False)] = absent
    user_bias, item_bias = rng.normal(0, 0.4, n_users), rng.normal(0, 0.4, n_items)
    ratings = 0.5 * rng.standard_normal(n_interactions, dtype=np.float32)
    ratings += (2.8 + user_bias.astype(np.float32))[user_ids]
    shared = (relatedness * affinity + item_bias).astype(np.float32)
    ratings += shared[tastes[user_ids], item_ids]
    if relatedness < 1:
        tastes, affinity = _affinity(np.random.default_rng([seed, 1]), n_users, n_items)
        own = (math.sqrt(1 - relatedness**2) * affinity).astype(np.float32)
        ratings += own[tastes[user_ids], item_ids]
    np.clip(np.rint(ratings, out=ratings), 1, 5, out=ratings)
    timestamps = 1_000_000_000 + np.cumsum(rng.integers(0, 60, n_interactions))
    digest = hashlib.sha256()
    for values in (user_ids, item_ids, ratings, timestamps):
        digest.update(values)
    labels = {"user_labels": np.arange(1, n_users + 1), "item_labels": np.arange(1, n_items + 1)}
    rest = {"item_titles": None, "name": "synthetic", "sha256": digest.hexdigest()}
    return Interactions(user_ids, item_ids, ratings, timestamps, **labels, **rest)


def _affinity(rng: np.random.Generator, n_users: int, n_items: int) -> tuple:
    """Each user's taste, (n_users,), and the affinity of tastes and items, (N_TASTES, n_items)."""
    tastes = rng.permutation(np.arange(n_users) % N_TASTES)
    directions = rng.normal(size=(N_TASTES, TASTE_DIMENSIONS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return tastes, directions @ rng.normal(size=(TASTE_DIMENSIONS, n_items))


def _draw_pairs(
    rng: np.random.Generator, n: int, tastes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """n distinct pairs user·n_items + item, sorted; users have log-normal shares, 1 to n_items.

    A few rounds of inverse-CDF draws with repeats thrown away serve nearly everyone; users who
    want most of the catalogue get their rest by Gumbel top-k over the items they lack.
    """
    n_users, n_items = len(tastes), weights.shape[1]
    shares = rng.lognormal(0, 1, n_users)
    extra = (n - n_users) * shares / shares.sum()
    degrees = np.minimum(1 + extra.astype(np.int64), n_items)
    while missing := n - int(degrees.sum()):
        room = np.flatnonzero(degrees < n_items)
        degrees[rng.choice(room, min(missing, len(room)), replace=False)] += 1
    cumulative = np.cumsum(weights, axis=1)
    pairs, lacking = np.empty(0, dtype=np.int64), degrees
    for _ in range(6):
        drawn = [pairs]
        for taste in range(N_TASTES):
            members = np.flatnonzero(tastes == taste)
            users = np.repeat(members, lacking[members])
            points = rng.random(len(users)) * cumulative[taste, -1]
            items = np.searchsorted(cumulative[taste], points, side="right")
            drawn.append(users * n_items + np.minimum(items, n_items - 1))
        pairs = np.sort(np.concatenate(drawn))
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]
        lacking = degrees - np.bincount(pairs // n_items, minlength=n_users)
    rest = [pairs]
    for user in np.flatnonzero(lacking):
        keys = np.log(weights[tastes[user]]) + rng.gumbel(size=n_items)
        first, end = np.searchsorted(pairs, [user * n_items, (user + 1) * n_items])
        keys[pairs[first:end] % n_items] = -np.inf
        best = np.argpartition(keys, -lacking[user])[-lacking[user] :]
        rest.append(user * n_items + best)
    return np.sort(np.concatenate(rest))
