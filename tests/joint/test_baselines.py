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
X = (np.random.default_rng(0).random((40, 12)) < 0.3).astype(float)


def by_ridge_regressions(ridge: float) -> np.ndarray:
    """Each item on the others."""
    weights = np.zeros((12, 12))
    for j in range(12):
        others = np.delete(np.arange(12), j)
        gram = X[:, others].T @ X[:, others] + ridge * np.eye(11)
        weights[others, j] = np.linalg.solve(gram, X[:, others].T @ X[:, j])
    return weights


def nearest_cosines(neighbours: int, shrinkage: float) -> np.ndarray:
    cosines = (X.T @ X) / (np.sqrt(np.outer(X.sum(0), X.sum(0))) + shrinkage)
    np.fill_diagonal(cosines, 0.0)
    return np.where(cosines >= np.sort(cosines, axis=0)[-neighbours], cosines, 0.0)


@pytest.mark.parametrize(
    "name, oracle, settings",
    [
        ("ease", by_ridge_regressions, dict(ridge=7.0)),
        ("item-knn", nearest_cosines, dict(neighbours=3, shrinkage=2.0)),
    ],
)
def test_a_users_items_are_weighed_as_by_a_slow_loop(name, oracle, settings):
    train = Train(*np.nonzero(X), np.ones(int(X.sum()), dtype=np.float32), *X.shape)
    scores = FITS[name](train, 0, **settings).scores
    for users in (np.arange(40), np.array([5, 0])):
        np.testing.assert_allclose(scores(users), X[users] @ oracle(**settings), atol=1e-10)


@pytest.mark.parametrize("name", SMALL_SETTINGS)
def test_every_method_beats_its_plain_rival(name):
    pytest.importorskip(METHODS[name].library)
    metrics = fit_and_test(name, DATA, 0, SPLIT.train, SPLIT.test, SMALL_SETTINGS[name])
    ranks = metrics["mrr"] is not None
    assert (metrics["mse"] is None) == ranks
    rival = "popularity" if ranks else "global-mean" if name == "biases" else "biases"
    settings = SMALL_SETTINGS.get(rival, {})
    plain = fit_and_test(rival, DATA, 0, SPLIT.train, SPLIT.test, settings)
    if ranks:
        assert metrics["mrr"] > 1.1 * plain["mrr"]
    else:
        assert metrics["mse"] < 0.95 * plain["mse"]


def test_a_fit_sees_its_training_rows_alone_and_predicts_within_their_range(monkeypatch):
    seen = []

    def fit(train, seed):
        seen.append(train)
        return baselines.Fitted(ratings=lambda users, items: np.full(len(users), 99.0))

    monkeypatch.setitem(FITS, "spy", fit)
    split = random_split(DATA, 0, validation_fraction=0.1)
    metrics = fit_and_test("spy", DATA, 0, split.train, split.validation, {})
    assert np.array_equal(seen[0].user_ids, DATA.user_ids[split.train])
    assert np.array_equal(seen[0].ratings, DATA.ratings[split.train])
    expected = np.mean((5.0 - DATA.ratings[split.validation].astype(float)) ** 2)
    assert metrics["mse"] == pytest.approx(expected)


@pytest.mark.parametrize("name, metric, best", [("ease", "mrr", max), ("biases", "mse", min)])
def test_tuning_chooses_the_best_mean_over_folds_that_hold_no_test_row_and_goes_on_where_it_was(
    name, metric, best, monkeypatch, tmp_path
):
    fits, path = [], tmp_path / "baselines_tuning.jsonl"

    def spy(name, data, seed, train_rows, test_rows, settings):
        fits.append(1)
        assert not np.isin(SPLIT.test, np.concatenate([train_rows, test_rows])).any()
        assert not np.isin(train_rows, test_rows).any()
        return fit_and_test(name, data, seed, train_rows, test_rows, settings)

    monkeypatch.setattr(baselines, "fit_and_test", spy)
    monkeypatch.setattr(METHODS[name], "trials", 5)
    chosen, whole, lines = (
        baselines.tune(name, DATA, tmp_path),
        path.read_text(),
        records.read(path),
    )
    assert len(lines) == 5 and len(fits) == 5 * METHODS[name].folds
    assert chosen == best(lines, key=lambda line: np.mean(line[metric]))["settings"]
    assert [line["settings"] for line in lines][: len(METHODS[name].first)] == METHODS[name].first
    path.write_text(whole[: sum(map(len, whole.splitlines(keepends=True)[:3])) + 50])
    fits.clear()
    assert baselines.tune(name, DATA, tmp_path) == chosen
    assert len(fits) == 2 * METHODS[name].folds
    known = [(line["settings"], line[metric]) for line in lines]
    assert [(line["settings"], line[metric]) for line in records.read(path)] == known


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command on the small data; its last word, its stderr, and its file of lines."""
    monkeypatch.setattr(baselines, "load", lambda name: DATA)

    def run(*arguments):
        baselines.main([*arguments, "--results", str(tmp_path)])
        printed = capsys.readouterr()
        return json.loads(printed.out), printed.err, tmp_path / "baselines.jsonl"

    return run


def test_a_missing_library_is_skipped_with_a_line(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)  # makes its import fail
    lines, told, _ = command("--splits", "0", "--methods", "als", "popularity")
    assert [line for line in told.splitlines() if "skipped" in line][0].startswith("als ")
    assert [line["method"] for line in lines] == ["popularity"]


def test_a_line_that_is_there_is_not_computed_again(command, monkeypatch):
    arguments = ("--methods", "popularity", "global-mean", "--splits", "0-1")
    first, _, path = command(*arguments)
    assert len({(line["method"], line["seed"]) for line in first}) == 4
    assert records.read(path) == first
    lines, fitted = path.read_text().splitlines(keepends=True), []
    path.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while writing the last

    def fit(train, seed):
        fitted.append(seed)
        return baselines.fit_global_mean(train, seed)

    monkeypatch.setitem(FITS, "popularity", None)
    monkeypatch.setitem(FITS, "global-mean", fit)
    again, _, _ = command(*arguments)
    assert fitted == [1] and records.read(path) == again
    assert [line["mse"] for line in first] == [line["mse"] for line in again]


def test_a_result_line_holds_what_the_table_needs(command):
    (line,), told, path = command("--methods", "ease", "--split", "temporal")
    assert records.read(path) == [line]
    keys = "experiment method settings split seed mrr mse mrr_first ndcg_at_10 recall_at_10"
    assert set(line) == {*keys.split(), "fit_seconds", "versions", "commit"}
    assert (line["experiment"], line["split"], line["mse"]) == ("baselines", "temporal", None)
    (row,) = (row.split() for row in told.splitlines() if row.startswith("ease"))
    assert float(row[1]) == pytest.approx(line["mrr"], abs=1e-6) and row[2:5] == ["NaN"] * 3


@pytest.mark.parametrize("arguments", [["--methods", "eese"], ["--splits", "4-0"], ["--tune"]])
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        baselines.main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and arguments[0] in err
