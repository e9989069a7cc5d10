"""The kill-and-resume rounds themselves: a few here, hundreds by checks/kill_resume.py."""

import random

import pytest

import run_folder
import train
from checks import kill_resume
from checks.synthetic import synthetic


class Killed(BaseException):
    """Passes every handler: nothing is saved on the way out."""


@pytest.fixture
def ratings(tmp_path):
    kill_resume.write_ratings(tmp_path / "ratings.csv", synthetic(60, 80, 1500, seed=0))
    return tmp_path / "ratings.csv"


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_resumed_is_never_interrupted(ratings, tmp_path, seed):
    kills, difference = kill_resume.one_round(random.Random(seed), ratings, tmp_path)
    assert difference is None


def test_a_resume_that_starts_an_epoch_too_late_is_noticed(ratings, tmp_path, monkeypatch):
    """The comparison can fail: resume from a state that says it is further than it is."""
    arguments = ["--data", str(ratings), "--epochs", "6", "--embedding-dim", "4"]
    assert kill_resume.attempt([*arguments, "--out", str(tmp_path / "alone")], None) == 0
    train_epoch = train.Training.train_epoch

    def stop_at_4(self, bar):
        if self.epoch == 4:
            raise Killed
        train_epoch(self, bar)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "train_epoch", stop_at_4)
        with pytest.raises(Killed):
            out = str(tmp_path / "killed")
            train.main([*arguments, "--checkpoint-every", "2", "--out", out])
    read_resume = run_folder.read_resume

    def too_late(out):
        state = read_resume(out)
        state["stack"]["steps"] += 1  # Adam's bias correction, one step off
        return state

    monkeypatch.setattr(run_folder, "read_resume", too_late)
    assert train.main(["--resume", str(tmp_path / "killed")]) == 0
    alone, killed = (kill_resume.contents(tmp_path / name) for name in ("alone", "killed"))
    assert alone["."][2] != killed["."][2]
