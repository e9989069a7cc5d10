"""Shared by all tests: one thread, and small planted data as a real file."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

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
