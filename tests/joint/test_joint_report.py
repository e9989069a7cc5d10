"""The report's words and blanks (its numbers: tests/record/test_joint.py)."""

import numpy as np
import pytest

from joint.design import ROOT
from joint.report import Difference, documents
from study import records


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


def test_what_is_missing_is_a_dash_and_named_by_its_command_and_a_run_twice_is_refused(tmp_path):
    commands = ["recipe", "recipe --cost", "baselines", "tune", "baselines --tune"]
    commands = [f"python -m joint.{command}" for command in commands]
    whole, tables, lacking = documents(ROOT / "results")
    nothing, _, all_of_them = documents(tmp_path)
    assert (lacking, all_of_them) == ([], commands)
    assert "one joint model, **MRR —**: — against — (—)" in nothing
    lines = records.read(ROOT / "results/recipe.jsonl")
    records.append(tmp_path / "recipe.jsonl", [line for line in lines if line.get("arm") == "best"])
    for name in ("baselines", "tuning", "baselines_tuning"):
        records.append(tmp_path / f"{name}.jsonl", records.read(ROOT / f"results/{name}.jsonl"))
    first, rows, lacking = documents(tmp_path)
    assert lacking == commands[:2] and "MRR — (not computed yet)" in first
    assert rows["rating"].splitlines()[4:] == tables["rating"].splitlines()[4:]
    assert rows["ablation"].splitlines()[:3] == tables["ablation"].splitlines()[:3]
    assert "| no rating dropout | — | — | — | — | — |" in rows["ablation"].splitlines()
    assert "nan" not in f"{nothing}{first}"
    records.append(tmp_path / "baselines.jsonl", records.read(tmp_path / "baselines.jsonl")[:1])
    with pytest.raises(ValueError, match=r"two lines of .*random.*ease"):
        documents(tmp_path)
