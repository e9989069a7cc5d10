"""How good are the specialists? One-task recommenders on the splits the joint model is tested on.

    python -m joint.baselines                                # every method, splits 0 to 4
    python -m joint.baselines --methods ease als --splits 0  # some methods, one split
    python -m joint.baselines --split temporal               # train on the past
    python -m joint.baselines --tune ease als                # search for their settings

The simple methods are written out here or in evaluation.py. The strong ones are real libraries
(requirements-peers.txt), each behind a few lines, on one thread, skipped where not installed.

Settings are chosen by the mean over validation parts inside split 0's training part, never by its
test part: a line in results/baselines_tuning.jsonl for each settings tried, and METHODS below holds
the best. A method is then fitted on the whole training part of each split and tested once, a line
in results/baselines.jsonl for each (method, settings, split, seed). Lines already there stand, so
an interrupted command goes on where it was; delete lines to have them computed again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when the libraries load: fits are timed on
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread

import contextlib
import functools
import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import optuna
import pandas as pd
import scipy.sparse as sp
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import evaluation
from arguments import Parser, seed_list
from data import Interactions, load, random_split, temporal_split, validation_folds
from joint.design import SEEDS
from study import records, stats


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
    """What every ``fit(train, seed, **settings)`` returns; None where a task isn't the method's."""

    scores: Callable | None = None  # user_ids (U,) -> (U, n_items), higher is more likely
    ratings: Callable | None = None  # user_ids (n,), item_ids (n,) -> (n,) rating units


# ---- written out here ----


def fit_popularity(train, seed):
    scores = evaluation.popularity_scores(train.item_ids, train.n_items)
    return Fitted(scores=lambda users: np.tile(scores, (len(users), 1)))


def fit_global_mean(train, seed):
    mean = train.ratings.mean(dtype=np.float64)
    return Fitted(ratings=lambda users, items: np.full(len(users), mean))


def fit_biases(train, seed, **settings):
    mean, user_bias, item_bias = evaluation.fit_biases(*train, **settings)
    return Fitted(ratings=lambda users, items: mean + user_bias[users] + item_bias[items])


def ease_weights(interactions, ridge):
    """EASE (Steck, 2019): the W of zero diagonal with the least ||X - X W||^2 + ridge ||W||^2.

    With P = (X^T X + ridge I)^-1 it is W_ij = -P_ij / P_jj off the diagonal; X is binary.
    """
    gram = (interactions.T @ interactions).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += ridge
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def fit_ease(train, seed, ridge):
    interactions = train.matrix()
    weights = ease_weights(interactions, ridge)
    return Fitted(scores=lambda users: interactions[users] @ weights)


def item_similarities(interactions, shrinkage):
    """Shrunk cosines n_ij / (sqrt(n_i n_j) + shrinkage), zero on the diagonal."""
    overlap = (interactions.T @ interactions).toarray().astype(np.float64)
    norms = np.sqrt(np.diag(overlap))
    similarities = overlap / np.maximum(np.outer(norms, norms) + shrinkage, 1e-12)
    np.fill_diagonal(similarities, 0.0)
    return similarities


def fit_item_knn(train, seed, neighbours, shrinkage):
    """Score = sum of an item's similarities to the user's items, over its nearest neighbours."""
    interactions = train.matrix()
    similarities = item_similarities(interactions, shrinkage)
    if neighbours < train.n_items:
        kept = np.partition(similarities, -neighbours, axis=0)[-neighbours]  # by column: the target
        similarities[similarities < kept] = 0.0
    return Fitted(scores=lambda users: interactions[users] @ similarities)


# ---- other people's libraries, one thread each ----


def fit_als(train, seed, **settings):
    """Implicit-feedback matrix factorization (Hu, Koren, Volinsky, 2008), by implicit."""
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(num_threads=1, random_state=seed, **settings)
    model.fit(train.matrix(), show_progress=False)
    return Fitted(scores=lambda users: model.user_factors[users] @ model.item_factors.T)


def fit_implicit_bpr(train, seed, **settings):
    """Bayesian personalised ranking (Rendle et al., 2009), by implicit."""
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(num_threads=1, random_state=seed, **settings)
    model.fit(train.matrix(), show_progress=False)  # the factors hold the item bias as well
    return Fitted(scores=lambda users: model.user_factors[users] @ model.item_factors.T)


def fit_warp(train, seed, epochs, **settings):
    """Weighted approximate-rank pairwise loss (Weston et al., 2011), by LightFM."""
    from lightfm import LightFM

    model = LightFM(loss="warp", random_state=seed, **settings)
    model.fit(train.matrix().tocoo(), epochs=epochs, num_threads=1)
    _, user_vectors = model.get_user_representations()
    item_biases, item_vectors = model.get_item_representations()
    return Fitted(scores=lambda users: user_vectors[users] @ item_vectors.T + item_biases)


def _cornac_dataset(train):
    from cornac.data import Dataset

    rows = (train.user_ids, train.item_ids, train.ratings.astype(np.float64))
    ids = {label: label for label in range(max(train.n_users, train.n_items))}
    return Dataset(train.n_users, train.n_items, ids, ids, rows)


def fit_cornac_bpr(train, seed, **settings):
    from cornac.models import BPR

    model = BPR(seed=seed, **settings).fit(_cornac_dataset(train))  # a seed means one thread
    return Fitted(scores=lambda users: model.u_factors[users] @ model.i_factors.T + model.i_biases)


def fit_cornac_mf(train, seed, **settings):
    """Matrix factorization with biases, by gradient descent (Koren et al., 2009), by cornac."""
    from cornac.models import MF

    model = MF(seed=seed, **settings).fit(_cornac_dataset(train))

    def ratings(users, items):
        products = (model.u_factors[users] * model.i_factors[items]).sum(1)
        return model.global_mean + model.u_biases[users] + model.i_biases[items] + products

    return Fitted(ratings=ratings)


def fit_fm(train, seed, rank, iterations, implicit_features):
    """Bayesian factorization machine by Gibbs sampling (Rendle, 2012), by myfm.

    Features are the user and the item, one-hot; with ``implicit_features`` also the user's training
    items and the item's training users, each 1 / sqrt(their number), as in SVD++ (Koren, 2008).
    """
    from myfm import MyFMRegressor, RelationBlock

    user_side, item_side = [sp.eye(train.n_users)], [sp.eye(train.n_items)]
    if implicit_features:
        for side, matrix in ((user_side, train.matrix()), (item_side, train.matrix().T.tocsr())):
            side.append(sp.diags(1 / np.sqrt(np.maximum(np.diff(matrix.indptr), 1))) @ matrix)
    groups = [part.shape[1] for part in user_side + item_side]
    user_side, item_side = sp.hstack(user_side).tocsr(), sp.hstack(item_side).tocsr()

    def blocks(users, items):
        return [RelationBlock(users, user_side), RelationBlock(items, item_side)]

    model = MyFMRegressor(rank=rank, random_seed=seed)
    rows = blocks(train.user_ids, train.item_ids)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that can't be turned off
        model.fit(None, train.ratings, X_rel=rows, n_iter=iterations, group_shapes=groups)
    return Fitted(ratings=lambda users, items: model.predict(None, X_rel=blocks(users, items)))


class Method(NamedTuple):
    """A method, the settings the search chose, and the search: where it looks, and its budget."""

    fit: Callable
    settings: dict = {}
    space: dict = {}  # name -> list of choices, or (low, high) to draw from log-uniformly
    trials: int = 0  # settings to try, each once on every fold
    first: list = []  # settings to begin with; what one leaves out is drawn
    module: str = "numpy"  # the library it needs
    folds: int = 4  # validation parts a trial is judged by


PACKAGES = {"lightfm": "lightfm-next"}  # module -> its name on PyPI, where it has another there
# fmt: off
METHODS = {
    # ranking
    "popularity": Method(fit_popularity),
    "item-knn": Method(
        fit_item_knn, dict(neighbours=226, shrinkage=7.48),
        dict(neighbours=(10, 1000), shrinkage=(0.1, 1000.0)), 40),
    "ease": Method(
        fit_ease, dict(ridge=247.0), dict(ridge=(10.0, 5000.0)), 20, [dict(ridge=200.0)]),
    "als": Method(
        fit_als, dict(factors=64, regularization=20.0, alpha=2.0, iterations=30),
        dict(factors=[16, 32, 64, 128], regularization=(0.1, 100.0), alpha=(0.5, 20.0),
             iterations=[10, 20, 30]), 50,
        [dict(factors=64, regularization=20.0, alpha=2.0, iterations=30)], "implicit"),
    "implicit-bpr": Method(
        fit_implicit_bpr,
        dict(factors=128, learning_rate=0.00222, regularization=0.00139, iterations=260),
        dict(factors=[32, 64, 128], learning_rate=(0.001, 0.1), regularization=(1e-5, 0.1),
             iterations=(30, 400)), 18,
        [dict(factors=128, learning_rate=0.00222, regularization=0.00139, iterations=260),
         dict(factors=64, learning_rate=0.01, regularization=0.01, iterations=100)], "implicit"),
    "cornac-bpr": Method(
        fit_cornac_bpr, dict(k=64, max_iter=200, learning_rate=0.01, lambda_reg=0.01),
        dict(k=[32, 64, 128], max_iter=(50, 400), learning_rate=(0.005, 0.2),
             lambda_reg=(0.001, 0.1)), 18,
        [dict(k=32, max_iter=226, learning_rate=0.00761, lambda_reg=0.00555),
         dict(k=64, max_iter=200, learning_rate=0.01, lambda_reg=0.01)], "cornac"),
    "warp": Method(
        fit_warp, dict(no_components=64, learning_rate=0.02, item_alpha=2e-4, user_alpha=2e-4,
                       epochs=150),
        dict(no_components=[32, 64, 128], learning_rate=(0.01, 0.1), item_alpha=(1e-6, 1e-3),
             user_alpha=(1e-7, 1e-3), epochs=(10, 200)), 12,
        [dict(no_components=64, learning_rate=0.02, item_alpha=0.000188, user_alpha=0.000791,
              epochs=86),
         dict(no_components=64, learning_rate=0.02, item_alpha=2e-4, user_alpha=2e-4,
              epochs=150)], "lightfm"),
    # rating
    "global-mean": Method(fit_global_mean),
    "biases": Method(
        fit_biases, dict(user_ridge=5.61, item_ridge=1.72),
        dict(user_ridge=(0.1, 50.0), item_ridge=(0.1, 50.0)), 40),
    "cornac-mf": Method(
        fit_cornac_mf, dict(k=64, max_iter=98, learning_rate=0.00382, lambda_reg=0.0595),
        dict(k=[16, 32, 64, 128], max_iter=(20, 300), learning_rate=(0.002, 0.05),
             lambda_reg=(0.02, 0.3)), 50,
        [dict(k=64, max_iter=98, learning_rate=0.00382, lambda_reg=0.0595), dict(k=32)], "cornac"),
    "fm": Method(
        functools.partial(fit_fm, implicit_features=False), dict(rank=10, iterations=300),
        dict(rank=[5, 10, 20, 40], iterations=[300]), 4,
        [dict(rank=rank) for rank in (5, 10, 20, 40)], "myfm", folds=2),
    "fm-implicit": Method(
        functools.partial(fit_fm, implicit_features=True), dict(rank=32, iterations=300),
        dict(rank=[8, 16, 32, 64], iterations=[300]), 4,
        [dict(rank=rank) for rank in (8, 16, 32, 64)], "myfm", folds=2),
}
# fmt: on


# ---- fit, test, record ----


def package(name):
    module = METHODS[name].module
    return PACKAGES.get(module, module)


def missing(name):
    """Why a method can't run here, or None. Loads its library, so that no fit's time does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(METHODS[name].module)
    except ImportError as error:
        return f"{package(name)} isn't installed ({error}), see requirements-peers.txt"
    return None


def provenance(name):
    return records.provenance("scipy", package(name))


def fit_and_test(name, data, seed, train_rows, test_rows, settings):
    """Fit on the training rows, test on the others: a dict of metrics and ``fit_seconds``.

    Ranks are over the whole catalogue with the user's training items last; predicted ratings are
    clipped to the range of the training ratings. A metric of a task not the method's is None.
    """
    train = training_part(data, train_rows)
    test_users, test_items = data.user_ids[test_rows], data.item_ids[test_rows]
    start = time.perf_counter()
    fitted = METHODS[name].fit(train, seed, **settings)
    metrics = dict.fromkeys(["mrr", "mse", "mrr_first", "ndcg_at_10", "recall_at_10"])
    metrics["fit_seconds"] = time.perf_counter() - start
    if fitted.scores:
        pairs = (test_users, test_items, train.user_ids, train.item_ids)
        ranking = evaluation.FullRanking(data.n_items, *(ids[None] for ids in pairs))
        ranks = ranking.ranks(lambda ids: torch.as_tensor(fitted.scores(ids.numpy()))[None])
        metrics |= evaluation.ranking_metrics(ranks[0], test_users)
    if fitted.ratings:
        predicted, truth = fitted.ratings(test_users, test_items), data.ratings[test_rows]
        clip = (train.ratings.min(), train.ratings.max())
        metrics["mse"] = evaluation.mean_squared_error(predicted, truth, clip=clip)
    return metrics


def distribution(choices):
    if isinstance(choices, list):
        return CategoricalDistribution(choices)
    kind = IntDistribution if isinstance(choices[0], int) else FloatDistribution
    return kind(*choices, log=True)


def tune(name, data, path):
    """Search for a method's settings: the best, by the mean over folds of split 0's training part.

    A search is the same every time, and takes the figures that are in `path` from there: one that
    was cut short goes on where it was.
    """
    method, done = METHODS[name], {identity(line): line for line in records.read(path)}
    folds = validation_folds(random_split(data, 0), method.folds)
    space = {key: distribution(choices) for key, choices in method.space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=method.trials // 4)
    study, tried = optuna.create_study(sampler=sampler), []
    for settings in method.first:
        study.enqueue_trial(settings)
    for _ in range(method.trials):
        trial = study.ask(space)
        settings = {
            key: float(f"{value:.3g}") if isinstance(value, float) else value
            for key, value in trial.params.items()
        }
        line = {"experiment": "baselines_tuning", "method": name, "settings": settings}
        line |= {"split": "random", "seed": 0}
        if identity(line) not in done:
            metrics = [
                fit_and_test(name, data, seed, fold.train, fold.validation, settings)
                for seed, fold in enumerate(folds)
            ]
            for metric in ("mrr", "mse", "fit_seconds"):  # a list, one a fold
                line[metric] = [fold[metric] for fold in metrics]
            done[identity(line)] = line | provenance(name)
            records.append(path, [done[identity(line)]])
        tried.append(done[identity(line)])
        study.tell(trial, validation_loss(tried[-1]))
    return min(tried, key=validation_loss)["settings"]


def validation_loss(line):
    """What the search makes small: the mean MSE over the folds, or minus the mean MRR."""
    rates = line["mrr"][0] is None
    return fmean(line["mse"] if rates else [-mrr for mrr in line["mrr"]])


def identity(line):
    """What makes one result line the same as another: a line with it isn't computed again."""
    key = {name: line[name] for name in ("method", "settings", "split", "seed")}
    return json.dumps(key, sort_keys=True)


def results_of(name, data, split, seeds, path):
    """The result lines of a method on a kind of split, those that the file lacks computed."""
    done = {identity(line): line for line in records.read(path)}
    lines = []
    for seed in seeds:
        line = {"experiment": "baselines", "method": name, "settings": METHODS[name].settings}
        line |= {"split": split, "seed": seed}
        if identity(line) not in done:
            parts = temporal_split(data) if split == "temporal" else random_split(data, seed)
            line |= fit_and_test(name, data, seed, parts.train, parts.test, line["settings"])
            line |= provenance(name)
            records.append(path, [line])
        lines.append(done.get(identity(line), line))
    return lines


def summary(lines):
    """Mean and standard deviation over the splits, a row a method."""
    columns = {"mrr": 4, "mse": 4, "ndcg_at_10": 4, "recall_at_10": 4, "fit_seconds": 2}
    rows = [
        [name, *(f"{stats.Estimate(own[c], digits):sd}" for c, digits in columns.items())]
        for name, own in pd.DataFrame(lines).groupby("method", sort=False)
    ]
    return stats.markdown_table(["method", *columns], rows)


def main(argv=None):
    tunable = [name for name in METHODS if METHODS[name].space]
    parser = Parser(prog="python -m joint.baselines", description=__doc__)
    add = parser.add_argument
    text = "which to fit and test: %(choices)s (default: all)"
    add("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help=text)
    text = "search for the settings of these, by validation, and test nothing: %(choices)s"
    add("--tune", nargs="+", choices=tunable, metavar="METHOD", help=text)
    text = "what the test part is (default: %(default)s)"
    add("--split", choices=["random", "temporal"], default="random", help=text)
    text = "of the random splits and the methods (default: 0-4; 0 for the one temporal split)"
    add("--splits", type=seed_list, metavar="SEEDS", help=text)
    text = "folder of the result lines (default: %(default)s)"
    add("--results", type=Path, default=Path("results"), help=text)
    options = parser.parse_args(argv)
    seeds = options.splits or seed_list("0" if options.split == "temporal" else SEEDS)

    torch.set_num_threads(1)
    try:
        data, result = load("ml-100k"), []
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name in options.tune or options.methods:
        if reason := missing(name):
            print(f"{name} skipped: {reason}", file=sys.stderr)
        elif options.tune:
            settings = tune(name, data, options.results / "baselines_tuning.jsonl")
            result.append({"method": name, "settings": settings})
        else:
            path = options.results / "baselines.jsonl"
            result += results_of(name, data, options.split, seeds, path)
    if result and not options.tune:
        print(summary(result), file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
