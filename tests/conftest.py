"""Shared by all tests: one thread, small planted data as a real file, train.py run on it."""

import functools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from small import PLAIN, run_train

from checks.kill_resume import write_ratings
from checks.synthetic import synthetic

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def planted():
    return synthetic(n_users=120, n_items=150, n_interactions=4000, seed=1)


@pytest.fixture(scope="session")
def ratings_csv(planted, tmp_path_factory) -> Path:
    """The planted data as a CSV file with MovieLens' header, read by the ordinary loader."""
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    write_ratings(path, planted)
    return path


@pytest.fixture
def command(ratings_csv, tmp_path, monkeypatch):
    """command(words): train.py in an empty folder, by default to run/, as small.run_train."""
    monkeypatch.chdir(tmp_path)
    return lambda words: run_train(words, tmp_path, ratings_csv)


@pytest.fixture(scope="session")
def finished(ratings_csv, tmp_path_factory):
    """finished(words): the folder and the result of a command, run once for all tests.

    Only to be read, and never asked for under a monkeypatch, which would stay in it.
    """

    @functools.cache
    def run(words: str):
        folder = tmp_path_factory.mktemp("finished")
        code, result, err = run_train(words, folder, ratings_csv)
        assert code == 0, err
        return folder / "run", result

    return run


@pytest.fixture(scope="session")
def one_run(finished) -> Path:
    return finished(PLAIN)[0]


@pytest.fixture(scope="session")
def other_run(finished) -> Path:
    return finished(f"{PLAIN} --seed 1")[0]
