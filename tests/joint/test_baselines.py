"""Claims about the specialists, on data small enough to know the answer."""

import json
import sys

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import random_split
from joint import baselines
from joint.baselines import FITS, METHODS, Train, fit_and_test
from study import records

DATA = synthetic(seed=3)
SPLIT = random_split(DATA, 0)
SMALL_SETTINGS = {  # enough to learn the synthetic data within a second or two
    "item-knn": dict(neighbours=50, shrinkage=5.0),
    "ease": dict(ridge=20.0),
    "als": dict(factors=16, regularization=1.0, alpha=2.0, iterations=10),
    "implicit-bpr": dict(factors=16, learning_rate=0.1, regularization=0.01, iterations=60),
    "cornac-bpr": dict(k=16, max_iter=100, learning_rate=0.1, lambda_reg=0.01),
    "warp": dict(no_components=16, learning_rate=0.05, epochs=20),
    "biases": dict(user_ridge=3.0, item_ridge=3.0),
    "cornac-mf": dict(k=8, max_iter=100, learning_rate=0.03, lambda_reg=0.1),
    "fm": dict(rank=8, iterations=60),
    "fm-implicit": dict(rank=8, iterations=60),
}


def test_ease_is_a_ridge_regression_of_each_item_on_the_others_and_knn_sums_nearest_cosines():
    x = (np.random.default_rng(0).random((40, 12)) < 0.3).astype(float)
    train = Train(*np.nonzero(x), np.ones(int(x.sum()), dtype=np.float32), *x.shape)
    regressions, counts = np.zeros((12, 12)), x.sum(0)
    for j in range(12):
        others = np.delete(np.arange(12), j)
        gram = x[:, others].T @ x[:, others] + 7.0 * np.eye(11)
        regressions[others, j] = np.linalg.solve(gram, x[:, others].T @ x[:, j])
    cosines = (x.T @ x) / (np.sqrt(np.outer(counts, counts)) + 2.0)
    np.fill_diagonal(cosines, 0.0)
    nearest = np.where(cosines >= np.sort(cosines, axis=0)[-3], cosines, 0.0)
    ease = FITS["ease"](train, 0, ridge=7.0)
    knn = FITS["item-knn"](train, 0, neighbours=3, shrinkage=2.0)
    for users in (np.arange(40), np.array([5, 0])):
        np.testing.assert_allclose(ease.scores(users), x[users] @ regressions, atol=1e-10)
        np.testing.assert_allclose(knn.scores(users), x[users] @ nearest, atol=1e-10)


@pytest.mark.parametrize("name", SMALL_SETTINGS)
def test_every_method_beats_its_plain_rival(name):
    pytest.importorskip(METHODS[name].library)
    own = fit_and_test(name, DATA, 0, SPLIT.train, SPLIT.test, SMALL_SETTINGS[name])
    ranks = own["mrr"] is not None
    rival = "popularity" if ranks else "global-mean" if name == "biases" else "biases"
    plain = fit_and_test(rival, DATA, 0, SPLIT.train, SPLIT.test, SMALL_SETTINGS.get(rival, {}))
    assert (own["mse"] is None) == ranks
    assert own["mrr"] > 1.1 * plain["mrr"] if ranks else own["mse"] < 0.95 * plain["mse"]


def test_a_fit_sees_its_training_rows_alone_and_predicts_within_their_range(monkeypatch):
    seen, split = [], random_split(DATA, 0, validation_fraction=0.1)

    def fit(train, seed):
        seen.append(train)
        return baselines.Fitted(ratings=lambda users, items: np.full(len(users), 99.0))

    monkeypatch.setitem(FITS, "spy", fit)
    metrics = fit_and_test("spy", DATA, 0, split.train, split.validation, {})
    assert np.array_equal(seen[0].user_ids, DATA.user_ids[split.train])
    assert np.array_equal(seen[0].ratings, DATA.ratings[split.train])
    expected = np.mean((5.0 - DATA.ratings[split.validation].astype(float)) ** 2)
    assert metrics["mse"] == pytest.approx(expected)


@pytest.mark.parametrize("name, metric, best", [("ease", "mrr", max), ("biases", "mse", min)])
def test_tuning_chooses_the_best_mean_over_folds_that_hold_no_test_row_and_goes_on_where_it_was(
    name, metric, best, monkeypatch, tmp_path
):
    fits, path, method = [], tmp_path / "baselines_tuning.jsonl", METHODS[name]

    def spy(name, data, seed, train_rows, test_rows, settings):
        rows = np.concatenate([train_rows, test_rows, SPLIT.test])
        assert len(np.unique(rows)) == len(rows)
        fits.append(rows)
        return fit_and_test(name, data, seed, train_rows, test_rows, settings)

    monkeypatch.setattr(baselines, "fit_and_test", spy)
    monkeypatch.setattr(method, "trials", 5)
    chosen, whole, lines = (
        baselines.tune(name, DATA, tmp_path),
        path.read_text(),
        records.read(path),
    )
    assert len(lines) == 5 and len(fits) == 5 * method.folds
    assert chosen == best(lines, key=lambda line: np.mean(line[metric]))["settings"]
    assert [line["settings"] for line in lines][: len(method.first)] == method.first
    path.write_text(whole[: sum(map(len, whole.splitlines(keepends=True)[:3])) + 50])
    assert baselines.tune(name, DATA, tmp_path) == chosen and len(fits) == 7 * method.folds
    known = [(line["settings"], line[metric]) for line in lines]
    assert [(line["settings"], line[metric]) for line in records.read(path)] == known


def test_the_command_computes_what_the_file_lacks_and_skips_a_method_without_its_library(
    monkeypatch, tmp_path, capsys
):
    def run(*arguments):
        baselines.main([*arguments, "--results", str(tmp_path)])
        printed = capsys.readouterr()
        assert "als skipped: implicit isn't installed" in printed.err
        return json.loads(printed.out), printed.err

    monkeypatch.setattr(baselines, "load", lambda name: DATA)
    monkeypatch.setitem(sys.modules, "implicit", None)  # makes its import fail
    arguments, path = ["--methods", "als", "ease", "global-mean"], tmp_path / "baselines.jsonl"
    first, told = run(*arguments, "--splits", "0-1")
    assert [(line["method"], line["seed"]) for line in first] == [
        *(("ease", 0), ("ease", 1)),
        *(("global-mean", 0), ("global-mean", 1)),
    ]
    keys = "experiment method settings split seed mrr mse mrr_first ndcg_at_10 recall_at_10"
    assert first[0].keys() == {*keys.split(), "fit_seconds", "versions", "commit"}
    (row,) = (row.split() for row in told.splitlines() if row.startswith("ease"))
    assert float(row[1]) == pytest.approx(np.mean([line["mrr"] for line in first[:2]]), abs=1e-6)
    lines, fitted = path.read_text().splitlines(keepends=True), []
    path.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while writing the last

    def fit(train, seed):
        fitted.append(seed)
        return baselines.fit_global_mean(train, seed)

    monkeypatch.setitem(FITS, "global-mean", fit)
    again, _ = run(*arguments, "--splits", "0-1")
    assert fitted == [1] and records.read(path) == again
    assert [line["mse"] for line in first] == [line["mse"] for line in again]
    temporal, _ = run(*arguments, "--split", "temporal")
    assert [(line["split"], line["seed"]) for line in temporal] == [("temporal", 0)] * 2


@pytest.mark.parametrize("arguments", [["--methods", "eese"], ["--splits", "4-0"], ["--tune"]])
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        baselines.main(arguments)
    (told,) = capsys.readouterr().err.splitlines()
    assert arguments[0] in told
