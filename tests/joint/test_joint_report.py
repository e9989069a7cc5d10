"""The report's words and blanks (its numbers: tests/record/test_joint.py)."""

import numpy as np
import pytest

from joint.design import ROOT
from joint.report import Difference, documents
from study import records

NAMES = ("recipe", "baselines", "tuning", "baselines_tuning")
FILES = {name: records.read(ROOT / f"results/{name}.jsonl") for name in NAMES}


@pytest.mark.parametrize("better", [+1, -1])
@pytest.mark.parametrize(
    "shift, n, lead, sharing, won",
    [
        (0.02, 5, "ahead", "helps", 5),
        (-0.02, 5, "behind", "hurts", 0),
        (0.001, 5, "not settled", "no difference seen", 3),
        (0.02, 1, "not settled", "no difference seen", 1),  # one split has no interval
        (0.02, 0, "not computed yet", "not computed yet", 0),
    ],
)
def test_a_word_follows_the_interval(better, shift, n, lead, sharing, won):
    values = better * (shift + np.array([0.0, -2e-3, -1e-3, 1e-3, 2e-3])[:n])
    told = Difference(values, 4, "+", better)
    assert [f"{told:lead}", f"{told:sharing}", f"{told:won}"] == [lead, sharing, str(won)]


def test_what_is_missing_is_a_dash_and_named_by_its_command_and_nothing_else_changes(tmp_path):
    def report(**files: list[dict]) -> tuple[str, dict, list[str]]:
        for name, lines in files.items():
            records.append(tmp_path / f"{name}.jsonl", lines)
        return documents(tmp_path)

    whole, tables, lacking = documents(ROOT / "results")
    assert lacking == []
    commands = ["recipe", "recipe --cost", "baselines", "tune", "baselines --tune"]
    nothing, _, lacking = report()
    assert lacking == [f"python -m joint.{command}" for command in commands]
    assert "one joint model, **MRR —**: — against — (—)" in nothing
    without, rows, lacking = report(**{name: FILES[name] for name in NAMES if name != "recipe"})
    assert lacking == [f"python -m joint.{command}" for command in commands[:2]]
    assert rows["rating"].splitlines()[4:] == tables["rating"].splitlines()[4:]
    best = [line for line in FILES["recipe"] if line.get("arm") == "best"]
    first, rows, lacking = report(recipe=best)
    assert lacking == [f"python -m joint.{command}" for command in commands[:2]]
    assert rows["ablation"].splitlines()[:3] == tables["ablation"].splitlines()[:3]
    assert "| no rating dropout | — | — | — | — | — |" in rows["ablation"].splitlines()
    assert "MRR — (not computed yet)" in first
    assert "nan" not in f"{nothing}{without}{first}"


def test_a_run_that_stands_twice_is_refused(tmp_path):
    records.append(tmp_path / "baselines.jsonl", [*FILES["baselines"], FILES["baselines"][0]])
    with pytest.raises(ValueError, match=r"two lines of .*random.*ease"):
        documents(tmp_path)
