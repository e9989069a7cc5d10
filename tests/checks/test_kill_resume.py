"""The kill-and-resume rounds themselves: a few here, hundreds by checks/kill_resume.py."""

import random
from pathlib import Path

import pytest
from small import kill

import run_folder
from checks import kill_resume


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_and_resumed_is_never_interrupted(ratings_csv, tmp_path, seed):
    kills, difference = kill_resume.one_round(random.Random(seed), ratings_csv, tmp_path)
    assert difference is None


@pytest.mark.parametrize("seed", [1, 3])
def test_of_two_commands_on_one_folder_none_is_mixed_or_lost(ratings_csv, tmp_path, seed):
    turned_away, problem = kill_resume.one_pair(random.Random(seed), ratings_csv, tmp_path)
    assert problem is None


def test_a_resume_that_starts_an_epoch_too_late_is_noticed(command, monkeypatch):
    """The comparison can fail: resume from a state that says it is further than it is."""
    words = "--epochs 4 --checkpoint-every 2"
    command(f"{words} --out alone")
    kill(command, f"{words} --out killed", at=2)
    read_resume = run_folder.read_resume

    def too_late(out):
        state = read_resume(out)
        state["stack"]["steps"] += 1  # Adam's bias correction, one step off
        return state

    monkeypatch.setattr(run_folder, "read_resume", too_late)
    assert command("--resume killed")[0] == 0
    alone, killed = (kill_resume.contents(Path(name)) for name in ("alone", "killed"))
    assert alone["."][2] != killed["."][2]
