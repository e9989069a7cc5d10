"""Claims about the specialists, on data small enough to know the answer."""

import json
import sys

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import random_split
from joint import baselines
from joint.baselines import METHODS, Train, fit_and_test
from study import records

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


@pytest.fixture(scope="module")
def data():
    return synthetic(seed=3)


@pytest.fixture(scope="module")
def split(data):
    return random_split(data, 0)


@pytest.fixture
def interactions():
    return np.random.default_rng(0).random((40, 12)) < 0.3


def binary_train(interactions) -> Train:
    users, items = np.nonzero(interactions)
    return Train(users, items, np.ones(len(users), dtype=np.float32), *interactions.shape)


def test_popularity_ranks_by_count():
    users, items = np.array([(0, 2), (1, 2), (2, 2), (0, 0), (1, 0), (2, 1)]).T
    train = Train(users, items, np.ones(6, dtype=np.float32), 4, 4)
    scores = baselines.fit_popularity(train, 0).scores(np.array([3, 0]))
    assert scores.tolist() == [[2, 1, 3, 0]] * 2


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(interactions):
    train, x, ridge = binary_train(interactions), interactions.astype(float), 7.0
    expected = np.zeros((12, 12))
    for j in range(12):
        others = np.delete(np.arange(12), j)
        gram = x[:, others].T @ x[:, others] + ridge * np.eye(11)
        expected[others, j] = np.linalg.solve(gram, x[:, others].T @ x[:, j])
    weights = baselines.ease_weights(train.matrix(), ridge)
    assert (np.diag(weights) == 0).all()
    np.testing.assert_allclose(weights, expected, atol=1e-10)
    users = np.array([5, 0])
    scores = baselines.fit_ease(train, 0, ridge).scores(users)
    np.testing.assert_allclose(scores, x[users] @ expected, atol=1e-10)


def test_item_knn_sums_shrunk_cosines_over_an_items_nearest_neighbours(interactions):
    x = interactions.astype(float)
    counts = x.sum(0)
    cosines = (x.T @ x) / (np.sqrt(np.outer(counts, counts)) + 2.0)
    np.fill_diagonal(cosines, 0.0)
    nearest = np.where(cosines >= np.sort(cosines, axis=0)[-3], cosines, 0.0)
    fitted = baselines.fit_item_knn(binary_train(interactions), 0, neighbours=3, shrinkage=2.0)
    np.testing.assert_allclose(fitted.scores(np.arange(40)), x @ nearest, atol=1e-10)


def test_biases_minimise_the_ridge_loss(data, split):
    train = baselines.training_part(data, split.train)
    fitted = baselines.fit_biases(train, 0, user_ridge=4.0, item_ridge=9.0, rounds=300)
    rows, size = np.arange(len(train.ratings)), (len(train.ratings), data.n_users + data.n_items)
    design = np.zeros(size)
    design[rows, train.user_ids] = design[rows, data.n_users + train.item_ids] = 1
    ridge = np.diag([4.0] * data.n_users + [9.0] * data.n_items)
    mean = train.ratings.mean(dtype=np.float64)
    solution = np.linalg.solve(design.T @ design + ridge, design.T @ (train.ratings - mean))
    users, items = data.user_ids, data.item_ids  # of the test part as well
    expected = mean + solution[users] + solution[data.n_users + items]
    np.testing.assert_allclose(fitted.ratings(users, items), expected, atol=1e-6)


@pytest.mark.parametrize("name", SMALL_SETTINGS)
def test_every_method_beats_its_plain_rival(data, split, name):
    pytest.importorskip(METHODS[name].module)
    metrics = fit_and_test(name, data, 0, split.train, split.test, SMALL_SETTINGS[name])
    ranks = metrics["mrr"] is not None
    assert (metrics["mse"] is None) == ranks
    rival = "popularity" if ranks else "global-mean" if name == "biases" else "biases"
    settings = SMALL_SETTINGS.get(rival, {})
    plain = fit_and_test(rival, data, 0, split.train, split.test, settings)
    if ranks:
        assert metrics["mrr"] > 1.1 * plain["mrr"]
    else:
        assert metrics["mse"] < 0.95 * plain["mse"]


def test_a_fit_sees_its_training_rows_alone_and_predicts_within_their_range(data, monkeypatch):
    seen = []

    def fit(train, seed):
        seen.append(train)
        return baselines.Fitted(ratings=lambda users, items: np.full(len(users), 99.0))

    monkeypatch.setitem(METHODS, "spy", baselines.Method(fit))
    split = random_split(data, 0, validation_fraction=0.1)
    metrics = fit_and_test("spy", data, 0, split.train, split.validation, {})
    assert np.array_equal(seen[0].user_ids, data.user_ids[split.train])
    assert np.array_equal(seen[0].ratings, data.ratings[split.train])
    expected = np.mean((5.0 - data.ratings[split.validation].astype(float)) ** 2)
    assert metrics["mse"] == pytest.approx(expected)


# ---- the search ----


@pytest.fixture
def searched(data, monkeypatch, tmp_path):
    """(name, trials) -> the settings chosen; the rows of every fit; the file of lines."""
    rows, path = [], tmp_path / "tuning.jsonl"

    def spy(name, data, seed, train_rows, test_rows, settings):
        rows.append((train_rows, test_rows))
        return fit_and_test(name, data, seed, train_rows, test_rows, settings)

    def search(name, trials):
        monkeypatch.setitem(METHODS, name, METHODS[name]._replace(trials=trials))
        return baselines.tune(name, data, path)

    monkeypatch.setattr(baselines, "fit_and_test", spy)
    return search, rows, path


@pytest.mark.parametrize("name, metric, best", [("ease", "mrr", max), ("biases", "mse", min)])
def test_tuning_chooses_the_best_mean_over_folds_that_hold_no_test_row(
    split, searched, name, metric, best
):
    search, rows, path = searched
    chosen, lines = search(name, 3), records.read(path)
    assert len(lines) == 3 and len(rows) == 3 * METHODS[name].folds
    assert not any(np.isin(part, split.test).any() for parts in rows for part in parts)
    assert not any(np.isin(*parts).any() for parts in rows)
    assert chosen == best(lines, key=lambda line: np.mean(line[metric]))["settings"]


def test_tuning_begins_with_the_first_settings_and_goes_on_where_it_was_cut_short(searched):
    search, rows, path = searched
    chosen, whole, lines = search("ease", 6), path.read_text(), records.read(path)
    assert lines[0]["settings"] == METHODS["ease"].first[0]
    path.write_text(whole[: sum(map(len, whole.splitlines(keepends=True)[:4])) + 50])
    rows.clear()
    assert search("ease", 6) == chosen
    assert len(rows) == 2 * METHODS["ease"].folds
    known = [(line["settings"], line["mrr"]) for line in lines]
    assert [(line["settings"], line["mrr"]) for line in records.read(path)] == known


# ---- the command ----


@pytest.fixture
def command(data, monkeypatch, tmp_path, capsys):
    """Runs the command on the small data; its last word, its stderr, and its file of lines."""
    monkeypatch.setattr(baselines, "load", lambda name: data)

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
    assert len(set(map(baselines.identity, first))) == 4 and records.read(path) == first
    lines, fitted = path.read_text().splitlines(keepends=True), []
    path.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while writing the last

    def fit(train, seed):
        fitted.append(seed)
        return baselines.fit_global_mean(train, seed)

    monkeypatch.setitem(METHODS, "popularity", METHODS["popularity"]._replace(fit=None))
    monkeypatch.setitem(METHODS, "global-mean", METHODS["global-mean"]._replace(fit=fit))
    again, _, _ = command(*arguments)
    assert fitted == [1] and records.read(path) == again
    assert [line["mse"] for line in first] == [line["mse"] for line in again]


def test_a_result_line_holds_what_the_table_needs(command):
    (line,), told, path = command("--methods", "ease", "--split", "temporal")
    assert records.read(path) == [line]
    keys = "experiment method settings split seed mrr mse mrr_first ndcg_at_10 recall_at_10"
    assert set(line) == {*keys.split(), "fit_seconds", "versions", "commit"}
    assert (line["experiment"], line["split"], line["mse"]) == ("baselines", "temporal", None)
    assert f"| ease | {line['mrr']:.4f} | — |" in told


@pytest.mark.parametrize("arguments", [["--methods", "eese"], ["--splits", "4-0"], ["--tune"]])
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        baselines.main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and arguments[0] in err
