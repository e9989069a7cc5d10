"""How good are the specialists? One-task recommenders on the splits the joint model is tested on.

    python -m joint.baselines                                # every method, splits 0 to 4
    python -m joint.baselines --methods ease als --splits 0  # some methods, one split
    python -m joint.baselines --split temporal               # train on the past

The simple methods are written out here or in evaluation.py; the strong ones are real libraries
(requirements-peers.txt), each behind a few lines, on one thread, skipped where not installed.

Settings, in searches.toml, are those of joint/tune.py: never chosen by a test part. A method is
fitted on the whole training part of each split and tested once: a line in results/baselines.jsonl.
Lines already there stand: an interrupted command goes on.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the libraries load: fits are timed on
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread

import contextlib
import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import evaluation
from arguments import Parser, seed_list
from data import Interactions, load, random_split, temporal_split
from joint.design import SEARCHES, SEEDS
from study import records


class Train(NamedTuple):
    """What a method may see: the training rows, and how many users and items there are."""

    user_ids: np.ndarray  # (S,) int64
    item_ids: np.ndarray  # (S,) int64
    ratings: np.ndarray  # (S,) float32
    n_users: int
    n_items: int

    def matrix(self):
        """Which user has which item in training: sparse, (n_users, n_items), float32 ones."""
        ones, shape = np.ones(len(self.user_ids), dtype=np.float32), (self.n_users, self.n_items)
        return sp.csr_matrix((ones, (self.user_ids, self.item_ids)), shape=shape)


def training_part(data: Interactions, rows: np.ndarray) -> Train:
    columns = (column[rows] for column in (data.user_ids, data.item_ids, data.ratings))
    return Train(*columns, data.n_users, data.n_items)


class Fitted(NamedTuple):
    """What every ``fit(train, seed, **settings)`` returns; None where a task isn't the method's.

    A fit of FOLDS takes ``known``, a Train: what is known of users when it predicts.
    """

    scores: Callable | None = None  # user_ids (U,) -> (U, n_items), higher is more likely
    ratings: Callable | None = None  # user_ids (n,), item_ids (n,) -> (n,) rating units


def fit_popularity(train, seed):
    scores = np.bincount(train.item_ids, minlength=train.n_items).astype(float)
    return Fitted(scores=lambda users: np.tile(scores, (len(users), 1)))


def fit_global_mean(train, seed):
    mean = train.ratings.mean(dtype=np.float64)
    return Fitted(ratings=lambda users, items: np.full(len(users), mean))


def fit_biases(train, seed, user_ridge, item_ridge, known=None):
    mean, user_bias, item_bias = evaluation.fit_biases(*train, user_ridge, item_ridge)
    if known:
        above, n = known.ratings - mean - item_bias[known.item_ids], known.n_users
        user_bias = np.bincount(known.user_ids, above, n)
        user_bias /= np.bincount(known.user_ids, minlength=n) + user_ridge
    return Fitted(ratings=lambda users, items: mean + user_bias[users] + item_bias[items])


def fit_ease(train, seed, ridge, known=None):
    """EASE (Steck, 2019): X W, W of zero diagonal with the least ||X - X W||^2 + ridge ||W||^2.

    With P = (X^T X + ridge I)^-1 it is W_ij = -P_ij / P_jj off the diagonal; X is binary.
    """
    interactions = train.matrix()
    overlap = (interactions.T @ interactions).toarray().astype(np.float64)
    inverse = np.linalg.inv(overlap + ridge * np.eye(train.n_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    interactions = (known or train).matrix()
    return Fitted(scores=lambda users: interactions[users] @ weights)


def fit_item_knn(train, seed, neighbours, shrinkage):
    """Sums of the shrunk cosines n_ij / (sqrt(n_i n_j) + shrinkage) over nearest neighbours."""
    interactions = train.matrix()
    overlap = (interactions.T @ interactions).toarray().astype(np.float64)
    norms = np.sqrt(np.diag(overlap))
    similarities = overlap / np.maximum(np.outer(norms, norms) + shrinkage, 1e-12)
    np.fill_diagonal(similarities, 0.0)
    if neighbours < train.n_items:
        kept = np.partition(similarities, -neighbours, axis=0)[-neighbours]  # by column: the target
        similarities[similarities < kept] = 0.0
    return Fitted(scores=lambda users: interactions[users] @ similarities)


def fit_implicit(train, seed, model, known=None, **settings):
    """ALS (Hu, Koren, Volinsky, 2008) or BPR (Rendle et al., 2009) by implicit."""
    import implicit

    model = attrgetter(model)(implicit)(num_threads=1, random_state=seed, **settings)
    model.fit(train.matrix(), show_progress=False)  # BPR's factors hold the item bias as well
    users = model.user_factors
    if known:  # the least squares of each user at the items' factors as they are
        users = model.recalculate_user(np.arange(known.n_users), known.matrix())
    return Fitted(scores=lambda ids: users[ids] @ model.item_factors.T)


def fit_warp(train, seed, epochs, **settings):
    """Weighted approximate-rank pairwise loss (Weston et al., 2011), by LightFM."""
    from lightfm import LightFM

    model = LightFM(loss="warp", random_state=seed, **settings)
    model.fit(train.matrix().tocoo(), epochs=epochs, num_threads=1)
    _, user_vectors = model.get_user_representations()
    item_biases, item_vectors = model.get_item_representations()
    return Fitted(scores=lambda users: user_vectors[users] @ item_vectors.T + item_biases)


def fit_cornac(train, seed, model, **settings):
    """BPR, or MF: factorization with biases by gradient descent (Koren et al., 2009), by cornac."""
    import cornac

    ids = {label: label for label in range(max(train.n_users, train.n_items))}
    rows = (train.user_ids, train.item_ids, train.ratings.astype(np.float64))
    data = cornac.data.Dataset(train.n_users, train.n_items, ids, ids, rows)
    it = getattr(cornac.models, model)(seed=seed, **settings).fit(data)  # a seed: one thread
    if model == "BPR":
        return Fitted(scores=lambda users: it.u_factors[users] @ it.i_factors.T + it.i_biases)

    def ratings(users, items):
        products = (it.u_factors[users] * it.i_factors[items]).sum(1)
        return it.global_mean + it.u_biases[users] + it.i_biases[items] + products

    return Fitted(ratings=ratings)


def fit_fm(train, seed, rank, iterations, implicit_features, ordered=False, known=None):
    """Bayesian factorization machine by Gibbs sampling (Rendle, 2012), by myfm.

    Features are the user and the item, one-hot; with ``implicit_features`` also the user's training
    items and the item's training users, each 1 / sqrt(their number), as in SVD++ (Koren, 2008).
    Each kind is a group, with a prior of its own. If ``ordered``, ratings are steps of an ordered
    probit, and the prediction is their mean by its probabilities.
    """
    from myfm import MyFMOrderedProbit, MyFMRegressor, RelationBlock

    def features(interactions):
        sides = []
        for matrix in (interactions, interactions.T.tocsr()):
            sides.append([sp.eye(matrix.shape[0])])
            if implicit_features:
                n = np.maximum(np.diff(matrix.indptr), 1)
                sides[-1].append(sp.diags(1 / np.sqrt(n)) @ matrix)
        return sides

    def blocks(sides, *ids):
        return [RelationBlock(x, sp.hstack(s).tocsr()) for x, s in zip(ids, sides, strict=True)]

    sides = features(train.matrix())
    after = [features((known or train).matrix())[0], sides[1]]
    groups = [part.shape[1] for side in sides for part in side]
    levels, steps = np.unique(train.ratings, return_inverse=True)
    model = (MyFMOrderedProbit if ordered else MyFMRegressor)(rank=rank, random_seed=seed)
    rows, told = blocks(sides, train.user_ids, train.item_ids), steps if ordered else train.ratings
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that can't be turned off
        model.fit(None, told, X_rel=rows, n_iter=iterations, group_shapes=groups)

    def ratings(users, items):
        rows = blocks(after, users, items)
        return model.predict_proba(None, rows) @ levels if ordered else model.predict(None, rows)

    return Fitted(ratings=ratings)


FITS = {
    "popularity": fit_popularity,
    "item-knn": fit_item_knn,
    "ease": fit_ease,
    "als": partial(fit_implicit, model="als.AlternatingLeastSquares"),
    "implicit-bpr": partial(fit_implicit, model="bpr.BayesianPersonalizedRanking"),
    "cornac-bpr": partial(fit_cornac, model="BPR"),
    "warp": fit_warp,
    "global-mean": fit_global_mean,
    "biases": fit_biases,
    "cornac-mf": partial(fit_cornac, model="MF"),
    "fm": partial(fit_fm, implicit_features=False),
    "fm-implicit": partial(fit_fm, implicit_features=True),
    "fm-ordered": partial(fit_fm, implicit_features=True, ordered=True),
}
METHODS = {name: SEARCHES[name] for name in FITS}
FOLDS = ("ease", "als", "biases", "fm-implicit", "fm-ordered")
TUNABLE = [name for name in METHODS if METHODS[name].space]


def missing(*names):
    """Why one of the methods can't run here, or None. Loads the libraries: no fit's time does."""
    for name in names:
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(METHODS[name].library)
        except ImportError as error:
            return f"{METHODS[name].library} isn't installed ({error}), see requirements-peers.txt"
    return None


def fit_and_test(name, data, seed, train_rows, test_rows, settings, later=(), fold=False):
    """Fit on the training rows, test on others: a dict of metrics and ``fit_seconds``.

    Ranks are over the whole catalogue with the user's items in training and in the rows `later`
    last; predicted ratings are clipped to the range of the training ratings. A metric of a task not
    the method's is None. With `fold` a method of FOLDS takes in, after the fit, what the rows
    `later` say of their users.
    """
    train = training_part(data, train_rows)
    known = training_part(data, np.concatenate([train_rows, np.asarray(later, np.int64)]))
    if fold and name in FOLDS:
        settings = settings | {"known": known}
    test_users, test_items = data.user_ids[test_rows], data.item_ids[test_rows]
    start = time.perf_counter()
    fitted = FITS[name](train, seed, **settings)
    metrics = dict.fromkeys(evaluation.METRICS) | {"fit_seconds": time.perf_counter() - start}
    if fitted.scores:
        pairs = (test_users, test_items, known.user_ids, known.item_ids)
        ranking = evaluation.FullRanking(data.n_items, *(ids[None] for ids in pairs))
        ranks = ranking.ranks(lambda ids: torch.as_tensor(fitted.scores(ids.numpy()))[None])
        metrics |= evaluation.ranking_metrics(ranks[0], test_users)
    if fitted.ratings:
        predicted, truth = fitted.ratings(test_users, test_items), data.ratings[test_rows]
        clip = (train.ratings.min(), train.ratings.max())
        metrics["mse"] = evaluation.mean_squared_error(predicted, truth, clip=clip)
    return metrics


def tested(name, data, split, seed, results):
    """The result line of a method on a split, computed where there is none on record."""
    parts = temporal_split(data) if split == "temporal" else random_split(data, seed)
    settings = METHODS[name].settings
    wanted = dict(experiment="baselines", method=name, settings=settings, split=split, seed=seed)
    path, package = results / "baselines.jsonl", METHODS[name].package or METHODS[name].library
    for line in records.read(path):
        if wanted.items() <= line.items():
            return line
    line = wanted | fit_and_test(name, data, seed, parts.train, parts.test, settings)
    line |= records.provenance("scipy", package)
    records.append(path, [line])
    return line


def main(argv=None):
    parser = Parser(prog="python -m joint.baselines", description=__doc__)
    add, told = parser.add_argument, "fit and test these (all): %(choices)s"
    add("--methods", metavar="METHOD", nargs="+", choices=METHODS, default=METHODS, help=told)
    add("--split", choices=["random", "temporal"], default="random", help="%(choices)s (random)")
    add(
        "--splits", type=seed_list, metavar="SEEDS", help="of splits and methods (0-4; temporal: 0)"
    )
    add("--results", type=Path, default=Path("results"), help="folder of the lines (results)")
    options = parser.parse_args(argv)
    seeds = options.splits or seed_list("0" if options.split == "temporal" else SEEDS)
    torch.set_num_threads(1)
    try:
        data, result = load("ml-100k"), []
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name in options.methods:
        if reason := missing(name):
            print(f"{name} skipped: {reason}", file=sys.stderr)
        else:
            result += [tested(name, data, options.split, seed, options.results) for seed in seeds]
    if result:
        columns = ["mrr", "mse", "ndcg_at_10", "recall_at_10", "fit_seconds"]
        levels = pd.DataFrame(result).set_index("method")[columns].astype(float)
        print(levels.groupby(level=0, sort=False).agg(["mean", "std"]).to_string(), file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
