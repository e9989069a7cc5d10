"""The study's bookkeeping: whole stacks only, and nothing on record is ever thrown away."""

import json

import pytest

from experiments.study import Results, as_text, main, plan


def lines(stack: str, n: int) -> str:
    return as_text([{"stack": stack, "seed": seed} for seed in range(n)])


def test_whole_stacks_are_done_and_a_torn_one_is_done_again(tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text(lines("a", 3) + lines("b", 2) + '{"stack": "b", "se')
    results = Results(path, {"a": 3, "b": 3})
    assert results.done == {"a"} and path.read_text() == lines("a", 3)
    results.append(lines("b", 3))
    assert Results(path, {"a": 3, "b": 3}).done == {"a", "b"}


def test_stacks_of_another_size_are_refused_and_kept(tmp_path, capsys):
    path = tmp_path / "study.jsonl"
    stack = plan([0], 1)[0]["stack"]
    path.write_text(lines(stack, 10))
    with pytest.raises(ValueError, match="holds 10 runs of .*, not 3: name another file by --out"):
        Results(path, {stack: 3})
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(path), "--seeds", "0-2", "--only", "report"])
    assert "name another file by --out" in capsys.readouterr().err
    assert path.read_text() == lines(stack, 10)


def test_the_plan_names_every_arm_once():
    stacks = plan(list(range(10)), 200)
    assert len({stack["stack"] for stack in stacks}) == len(stacks) == 51
    assert len({json.dumps(stack["arguments"]) for stack in stacks}) == 51
