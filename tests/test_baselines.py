"""Claims about the baselines, on data small enough to know the answer."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import random_split
from experiments import baselines
from experiments.baselines import METHODS, Train, fit_and_test

RESULTS = Path(baselines.__file__).parent.parent / "results"
SMALL_SETTINGS = {  # enough to learn the synthetic data within a second or two
    "item-knn": {"neighbours": 50, "shrinkage": 5.0},
    "ease": {"ridge": 20.0},
    "als": {"factors": 16, "regularization": 1.0, "alpha": 2.0, "iterations": 10},
    "implicit-bpr": {
        "factors": 16,
        "learning_rate": 0.1,
        "regularization": 0.01,
        "iterations": 60,
    },
    "cornac-bpr": {"k": 16, "max_iter": 100, "learning_rate": 0.1, "lambda_reg": 0.01},
    "warp": {"no_components": 16, "learning_rate": 0.05, "epochs": 20},
    "biases": {"user_ridge": 3.0, "item_ridge": 3.0},
    "cornac-mf": {"k": 8, "max_iter": 100, "learning_rate": 0.03, "lambda_reg": 0.1},
    "fm": {"rank": 8, "iterations": 60},
    "fm-implicit": {"rank": 8, "iterations": 60},
}


@pytest.fixture(scope="module")
def data():
    return synthetic(seed=3)


def train_part(pairs, n_users, n_items, ratings=None):
    users, items = np.array(pairs).T
    ratings = np.ones(len(users)) if ratings is None else ratings
    return Train(users, items, np.asarray(ratings, dtype=np.float32), n_users, n_items)


def random_interactions(n_users=40, n_items=12, seed=0):
    return np.random.default_rng(seed).random((n_users, n_items)) < 0.3


def binary_train(interactions):
    return train_part(np.argwhere(interactions), *interactions.shape)


def test_popularity_ranks_by_count():
    train = train_part([(0, 2), (1, 2), (2, 2), (0, 0), (1, 0), (2, 1)], 4, 4)
    scores = baselines.fit_popularity(train, 0).scores(np.array([3, 0]))
    assert scores.tolist() == [[2, 1, 3, 0]] * 2


def test_ease_is_a_ridge_regression_of_each_item_on_the_others():
    interactions, ridge = random_interactions(), 7.0
    train = binary_train(interactions)
    x = interactions.astype(float)
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


def test_item_similarities_are_shrunk_cosines():
    interactions = random_interactions()
    similarities = baselines.item_similarities(binary_train(interactions).matrix(), 2.0)
    assert np.array_equal(similarities, similarities.T)
    both = (interactions[:, 3] & interactions[:, 8]).sum()
    norms = np.sqrt(interactions[:, 3].sum() * interactions[:, 8].sum())
    assert both > 0
    assert similarities[3, 8] == pytest.approx(both / (norms + 2.0))
    assert similarities[3, 3] == 0


def test_item_knn_scores_an_item_by_its_own_nearest_neighbours():
    interactions = random_interactions()
    train = binary_train(interactions)
    similarities = baselines.item_similarities(train.matrix(), 0.0)
    scores = baselines.fit_item_knn(train, 0, neighbours=1, shrinkage=0.0).scores(np.arange(40))
    nearest = similarities.max(axis=0)
    for item in range(12):
        has_nearest = interactions[:, similarities[:, item] == nearest[item]].any(axis=1)
        assert (scores[has_nearest, item] >= nearest[item] - 1e-12).all()
        assert (scores[~has_nearest, item] == 0).all()


def test_biases_recover_planted_biases():
    rng = np.random.default_rng(1)
    user_bias, item_bias = rng.normal(0, 0.5, 30), rng.normal(0, 0.5, 20)
    planted = 3.5 + user_bias[:, None] + item_bias
    known = rng.random((30, 20)) < 0.5
    train = train_part(np.argwhere(known), 30, 20, planted[known])
    settings = {"user_ridge": 1e-6, "item_ridge": 1e-6, "rounds": 200}
    predicted = baselines.fit_biases(train, 0, **settings).ratings(*np.nonzero(~known))
    np.testing.assert_allclose(predicted, planted[~known], atol=1e-4)


def test_biases_minimise_the_ridge_loss(data):
    split = random_split(data, 0)
    columns = (column[split.train] for column in (data.user_ids, data.item_ids, data.ratings))
    train = Train(*columns, data.n_users, data.n_items)
    fitted = baselines.fit_biases(train, 0, user_ridge=4.0, item_ridge=9.0, rounds=300)
    rows, n = np.arange(len(train.ratings)), len(train.ratings)
    design = np.zeros((n, data.n_users + data.n_items))
    design[rows, train.user_ids] = design[rows, data.n_users + train.item_ids] = 1
    ridge = np.diag([4.0] * data.n_users + [9.0] * data.n_items)
    target = train.ratings - train.ratings.mean(dtype=np.float64)
    solution = np.linalg.solve(design.T @ design + ridge, design.T @ target)
    expected = train.ratings.mean(dtype=np.float64) + design @ solution
    np.testing.assert_allclose(fitted.ratings(train.user_ids, train.item_ids), expected, atol=1e-6)


@pytest.mark.parametrize("name", SMALL_SETTINGS)
def test_every_method_beats_its_plain_rival(data, name):
    if METHODS[name].module:
        pytest.importorskip(METHODS[name].module)
    split = random_split(data, 0)
    rows = (split.train, split.test)
    metrics = fit_and_test(name, data, 0, *rows, SMALL_SETTINGS[name])
    if metrics["mrr"] is not None:
        assert metrics["mrr"] > 1.1 * fit_and_test("popularity", data, 0, *rows, {})["mrr"]
        assert metrics["mse"] is None
    else:
        plain = ("global-mean", {}) if name == "biases" else ("biases", SMALL_SETTINGS["biases"])
        assert metrics["mse"] < 0.95 * fit_and_test(plain[0], data, 0, *rows, plain[1])["mse"]


def test_predictions_are_clipped_to_the_training_range(data, monkeypatch):
    too_high = baselines.Fitted(ratings=lambda users, items: np.full(len(users), 99.0))
    monkeypatch.setitem(METHODS, "wild", baselines.Method(lambda train, seed: too_high))
    split = random_split(data, 0)
    metrics = fit_and_test("wild", data, 0, split.train, split.test, {})
    expected = np.mean((5.0 - data.ratings[split.test].astype(float)) ** 2)
    assert metrics["mse"] == pytest.approx(expected)


def test_a_fit_sees_nothing_but_its_training_rows(data, monkeypatch):
    seen = []

    def fit(train, seed):
        seen.append(train)
        return baselines.fit_popularity(train, seed)

    monkeypatch.setitem(METHODS, "spy", baselines.Method(fit))
    split = random_split(data, 0, validation_fraction=0.1)
    fit_and_test("spy", data, 0, split.train, split.validation, {})
    assert np.array_equal(seen[0].user_ids, data.user_ids[split.train])
    assert np.array_equal(seen[0].ratings, data.ratings[split.train])


@pytest.fixture
def searched(data, monkeypatch, tmp_path):
    """(name, trials) -> the settings chosen; the rows of every fit; the file of lines."""
    rows = []

    def fit_and_test_spy(name, data, seed, train_rows, test_rows, settings):
        rows.append((train_rows, test_rows))
        return fit_and_test(name, data, seed, train_rows, test_rows, settings)

    def search(name, trials):
        monkeypatch.setitem(METHODS, name, METHODS[name]._replace(trials=trials))
        return baselines.tune(name, data, tmp_path / "tuning.jsonl")

    monkeypatch.setattr(baselines, "fit_and_test", fit_and_test_spy)
    return search, rows, tmp_path / "tuning.jsonl"


@pytest.mark.parametrize("name, metric, best", [("ease", "mrr", max), ("biases", "mse", min)])
def test_tuning_chooses_the_best_mean_over_folds_that_hold_no_test_row(
    data, searched, name, metric, best
):
    search, rows, path = searched
    chosen = search(name, 3)
    lines = baselines.read_lines(path)
    assert len(lines) == 3 and len(rows) == 3 * METHODS[name].folds
    test_rows = random_split(data, 0).test
    assert not any(np.isin(part, test_rows).any() for parts in rows for part in parts)
    assert not any(np.isin(*parts).any() for parts in rows)
    assert chosen == best(lines, key=lambda line: np.mean(line[metric]))["settings"]


def test_tuning_begins_with_the_first_settings_and_goes_on_where_it_was_cut_short(searched):
    search, rows, path = searched
    chosen, whole = search("ease", 6), path.read_text()
    assert json.loads(whole.splitlines()[0])["settings"] == METHODS["ease"].first[0]
    cut = sum(map(len, whole.splitlines(keepends=True)[:4])) + 50
    path.write_text(whole[:cut])
    rows.clear()
    assert search("ease", 6) == chosen
    assert len(rows) == 2 * METHODS["ease"].folds
    keys = ("settings", "mrr")
    lines, again = map(json.loads, whole.splitlines()), baselines.read_lines(path)
    assert [[line[key] for key in keys] for line in lines] == [
        [line[key] for key in keys] for line in again
    ]


def run_main(arguments, data, monkeypatch, capsys):
    monkeypatch.setattr(baselines, "load", lambda name: data)
    baselines.main(arguments)
    return capsys.readouterr()


def test_a_missing_library_is_skipped_with_a_line(data, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "implicit", None)  # makes its import fail
    arguments = ["--results", str(tmp_path), "--splits", "0", "--methods", "als", "popularity"]
    printed = run_main(arguments, data, monkeypatch, capsys)
    assert [line for line in printed.err.splitlines() if "skipped" in line][0].startswith("als ")
    assert [line["method"] for line in json.loads(printed.out)] == ["popularity"]


def test_a_line_that_is_there_is_not_computed_again(data, monkeypatch, capsys, tmp_path):
    arguments = ["--results", str(tmp_path), "--methods", "popularity", "global-mean"]
    first = run_main([*arguments, "--splits", "0-1"], data, monkeypatch, capsys)
    path = tmp_path / "baselines.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    identities = sorted(baselines.identity(json.loads(line)) for line in lines)
    assert len(set(identities)) == 4
    path.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while writing the last
    fitted = []

    def fit(train, seed):
        fitted.append(seed)
        return baselines.fit_global_mean(train, seed)

    monkeypatch.setitem(METHODS, "popularity", METHODS["popularity"]._replace(fit=None))
    monkeypatch.setitem(METHODS, "global-mean", METHODS["global-mean"]._replace(fit=fit))
    again = run_main([*arguments, "--splits", "0-1"], data, monkeypatch, capsys)
    assert fitted == [1]
    assert sorted(map(baselines.identity, baselines.read_lines(path))) == identities
    assert path.read_text().count("\n") == 4
    first, again = json.loads(first.out), json.loads(again.out)
    assert [line["mse"] for line in first] == [line["mse"] for line in again]


def test_a_result_line_holds_what_the_table_needs(data, monkeypatch, capsys, tmp_path):
    arguments = ["--results", str(tmp_path), "--methods", "ease", "--split", "temporal"]
    run_main(arguments, data, monkeypatch, capsys)
    (line,) = (tmp_path / "baselines.jsonl").read_text().splitlines()
    record = json.loads(line)
    keys = "experiment method settings split seed mrr mse mrr_first ndcg_at_10 recall_at_10"
    assert set(record) == {*keys.split(), "fit_seconds", "versions", "commit"}
    assert (record["experiment"], record["split"], record["mse"]) == ("baselines", "temporal", None)


@pytest.mark.parametrize("arguments", [["--methods", "eese"], ["--splits", "4-0"], ["--tune"]])
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        baselines.main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and arguments[0] in err


def test_settings_are_those_the_recorded_search_chose():
    lines = baselines.read_lines(RESULTS / "baselines_tuning.jsonl")
    for name, method in METHODS.items():
        tried = [line for line in lines if line["method"] == name]
        assert len(tried) <= method.trials and bool(tried) == bool(method.space)
        assert all(len(line["mrr"]) == method.folds for line in tried)
        if tried:
            assert method.settings == min(tried, key=baselines.validation_loss)["settings"]
