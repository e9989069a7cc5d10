"""Claims about the specialists, on data small enough to know the answer."""

import json
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from checks.synthetic import synthetic
from data import random_split
from joint import baselines
from joint.baselines import FITS, METHODS, Train, fit_and_test
from study import records

DATA = synthetic(seed=3)
SPLIT = random_split(DATA, 0)


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


@pytest.mark.parametrize("name", baselines.TUNABLE)
def test_every_method_beats_its_plain_rival(name):
    pytest.importorskip(METHODS[name].library)
    rival = "global-mean" if name == "biases" else "biases"
    own, popular, plain = (
        fit_and_test(each, DATA, 0, SPLIT.train, SPLIT.test, METHODS[each].settings)
        for each in (name, "popularity", rival)
    )
    ranks = own["mse"] is None
    assert ranks != (own["mrr"] is None)
    assert own["mrr"] > 1.1 * popular["mrr"] if ranks else own["mse"] < 0.95 * plain["mse"]


def test_a_fit_sees_its_training_rows_alone_and_predicts_within_their_range(monkeypatch):
    split = random_split(DATA, 0, validation_fraction=0.1)
    fit = Mock(return_value=baselines.Fitted(ratings=lambda users, _: np.full(len(users), 99.0)))
    monkeypatch.setitem(FITS, "spy", fit)
    metrics = fit_and_test("spy", DATA, 0, split.train, split.validation, {})
    for column in ("user_ids", "item_ids", "ratings"):
        seen = getattr(fit.call_args.args[0], column)
        assert np.array_equal(seen, getattr(DATA, column)[split.train])
    assert metrics["mse"] == pytest.approx(np.mean((5 - DATA.ratings[split.validation]) ** 2))


def test_the_command_goes_on_and_skips_a_missing_library(monkeypatch, tmp_path, capsys):
    def run(*arguments):
        baselines.main([*arguments, "--results", str(tmp_path)])
        printed = capsys.readouterr()
        assert "als skipped: implicit isn't installed" in printed.err
        return json.loads(printed.out), printed.err

    monkeypatch.setattr(baselines, "load", lambda name: DATA)
    monkeypatch.setitem(sys.modules, "implicit", None)  # makes its import fail
    arguments, path = ["--methods", "als", "ease", "global-mean"], tmp_path / "baselines.jsonl"
    first, told = run(*arguments, "--splits", "0-1")
    runs = [f"{line['method']} {line['seed']}" for line in first]
    assert runs == ["ease 0", "ease 1", "global-mean 0", "global-mean 1"]
    keys = "experiment method settings split seed mrr mse mrr_first ndcg_at_10 recall_at_10"
    assert first[0].keys() == {*keys.split(), "fit_seconds", "versions", "commit", "commit_dirty"}
    (row,) = (row.split() for row in told.splitlines() if row.startswith("ease"))
    assert float(row[1]) == pytest.approx(np.mean([line["mrr"] for line in first[:2]]), abs=1e-6)
    path.write_text(path.read_text()[:-40])  # killed while writing the last
    fit = Mock(wraps=baselines.fit_global_mean)
    monkeypatch.setitem(FITS, "global-mean", fit)
    again, _ = run(*arguments, "--splits", "0-1")
    assert fit.call_args.args[1] == 1 and fit.call_count == 1 and records.read(path) == again
    assert [line["mse"] for line in first] == [line["mse"] for line in again]
    temporal, _ = run(*arguments, "--split", "temporal")
    assert [(line["split"], line["seed"]) for line in temporal] == [("temporal", 0)] * 2
