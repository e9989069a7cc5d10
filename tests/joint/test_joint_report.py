"""The report's words and blanks, on changes of what is on record (its numbers: tests/record)."""

import numpy as np
import pytest

from arguments import resolve
from joint import recipe
from joint.design import METRICS, ROOT, SPECIALISTS, TARGETS
from joint.report import parameters, results_text
from models import MultiTaskNet
from study import records

NAMES = ("recipe", "baselines", "tuning", "baselines_tuning")
FILES = {name: records.read(ROOT / f"results/{name}.jsonl") for name in NAMES}
STRUCTURE = ("shared_dims", "ranking_dim", "rating_dim", "rating_head", "rating_biases")
STRUCTURE += ("user_history", "item_history", "hidden", "embedding_dim")
HEADS = [
    dict(shared_dims=k, ranking_dim=4, rating_dim=4, rating_head=head, hidden=6, embedding_dim=4)
    | dict(rating_biases=True, user_history=True, item_history=False, ensemble=2)
    for head, k in (("mlp", 4), ("dot", 4), ("mlp", 3))
]


def tables(folder, **files: list[dict]) -> dict[str, str]:
    for name, lines in files.items():
        records.append(folder / f"{name}.jsonl", lines)
    return results_text(folder)


@pytest.mark.parametrize(
    "shift, word, met",
    [(0.02, "ahead", "met"), (-0.02, "behind", "missed"), (0, "not settled", "missed")],
)
def test_a_verdict_follows_the_interval_and_a_target_the_mean(tmp_path, shift, word, met):
    noise = np.array([-2, -1, 0, 1, 2]) * 1e-3
    lines = [dict(line) for line in FILES["recipe"] if line["stack"] == "recipe_best"]
    others = [line for line in FILES["baselines"] if line["method"] in SPECIALISTS]
    for line, change in zip(lines, noise, strict=True):
        for other in others:
            if (other["split"], other["seed"]) == ("random", line["seed"]):
                metric = SPECIALISTS[other["method"]]
                line[metric] = other[metric] + METRICS[metric] * shift + change
    verdicts = tables(tmp_path, recipe=lines, baselines=others)["joint_verdict"].splitlines()
    assert f"is {met}" in verdicts[0]
    for verdict, (metric, target) in zip(verdicts, TARGETS.items(), strict=False):
        assert f"of 5 splits: {word}." in verdict
        mean = np.mean([line[metric] for line in lines])
        reached = mean >= target if metric == "mrr" else mean <= target
        assert ("is met" if reached else "is missed") in verdict


def test_what_is_missing_is_told_by_its_command_and_nothing_else_changes(tmp_path):
    whole, nothing = results_text(ROOT / "results"), results_text(tmp_path)
    waits = "(not computed yet: `python -m joint.recipe`)"
    assert nothing.keys() == whole.keys()
    for name in ("joint_verdict", "joint_ablation", "joint_references", "joint_sharing"):
        assert nothing[name] == waits
    assert nothing["joint_cost"] == "(not computed yet: `python -m joint.recipe --cost`)"
    assert "(not computed yet: `python -m joint.tune`)" in nothing["joint_search"]
    without = tables(tmp_path, **{name: FILES[name] for name in NAMES if name != "recipe"})
    assert set(whole["joint_rating"].splitlines()[5:]) <= set(without["joint_rating"].splitlines())
    assert without["joint_temporal"].endswith(waits) and without["readme_joint"].endswith(waits)
    first = tables(tmp_path, recipe=[each for each in FILES["recipe"] if each.get("arm") == "best"])
    block = first["joint_ablation"].splitlines()
    assert block[:3] == whole["joint_ablation"].splitlines()[:3]
    assert "| no rating dropout | — | — | — | — | — |" in block
    assert "MRR — (not computed yet)" in first["joint_sharing"]
    assert "nan" not in f"{nothing}{without}{first}"


def test_a_run_that_stands_twice_is_refused(tmp_path):
    twice = [*FILES["baselines"], FILES["baselines"][0]]
    with pytest.raises(ValueError, match=r"two lines of .*random.*ease"):
        tables(tmp_path, baselines=twice)


@pytest.mark.parametrize("args", [*(resolve(each["arguments"]) for each in recipe.plan()), *HEADS])
def test_parameters_are_counted_as_the_network_has_them(args):
    structure = {name: args[name] for name in STRUCTURE}
    net = MultiTaskNet(5, 7, seeds=range(args["ensemble"]), **structure)
    line = args | dict(n_users=5, n_items=7)
    assert parameters(line) == sum(each.numel() for each in net.parameters())
