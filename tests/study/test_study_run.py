"""study/run.py, faults.py: every arm once; killed at any moment, it ends with the same lines."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import load
from study import faults, run
from study.design import PLANNED, VARIANTS, plan
from study.records import as_text

ROOT = Path(__file__).parents[2]


def test_the_command_refuses_to_replace_what_is_on_record(tmp_path, capsys):
    path, stack = tmp_path / "study.jsonl", plan([0], 1)[0]["stack"]
    text = as_text({"stack": stack, "stack_size": 10, "epochs": 200} for _ in range(10))
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        run.main(["--out", str(path), "--seeds", "0-2", "--only", "report"])
    assert "name another file by --out" in capsys.readouterr().err
    assert path.read_text() == text


def test_the_plan_names_every_arm_once():
    stacks = plan(list(range(10)), 200)
    assert len({stack["stack"] for stack in stacks}) == len(stacks) == 51
    assert len({json.dumps(stack["arguments"]) for stack in stacks}) == 51
    assert sum(stack["runs"] for stack in stacks) == 510
    assert sum(PLANNED.values()) == 51


def test_a_stack_goes_on_with_its_own_folder_and_replaces_another_studys(
    ratings_csv, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "die_with_parent", lambda: None)
    commands, real = [], run.train.main
    monkeypatch.setattr(run.train, "main", lambda argv: commands.append(argv) or real(argv))
    small = ["--data", str(ratings_csv), "--embedding-dim", "4", "--hidden", "4", "--seeds", "0,1"]
    stack = dict(stack="a", experiment="report", protocol="report")
    for epochs in ("2", "2", "3"):
        assert run.work(stack | {"arguments": [*small, "--epochs", epochs]}, tmp_path) == 0
        lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
        assert [(line["seed"], line["epochs"]) for line in lines] == [
            (0, int(epochs)),
            (1, int(epochs)),
        ]
    assert ["--resume" in command for command in commands] == [False, True, False]


def test_each_fault_does_to_training_what_it_did_to_the_report(ratings_csv):
    curves = {
        name: faults.run_variant(name, [0], 30, str(ratings_csv))[0]["curves"] for name in VARIANTS
    }
    variance = np.var(load(str(ratings_csv)).ratings)
    for name in curves:  # against every rating of the batch, the mean is the best answer
        broadcast = name in ("broadcast MSE", "all three")
        assert (curves[name]["regression_loss"][-1] > 0.95 * variance) == broadcast, name
        # A sum over the batch's users is large: the loss falls within a few epochs, and stops.
        batch = name in ("batch product", "all three")
        assert (curves[name]["factorization_loss"][2] < 0.45) == batch, name
    assert curves["dropped biases"]["mrr"] != curves["none"]["mrr"]


STUDY = """
import json, sys
from pathlib import Path
from study.records import Results
from study.run import run_stacks
out, stacks = Path(sys.argv[1]), json.loads(sys.argv[2])
results = Results(out, {stack["stack"]: stack for stack in stacks})
sys.exit(not run_stacks(stacks, results, out.parent / "runs", 2))
"""


def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_lines(ratings_csv, tmp_path):
    small = ["--data", str(ratings_csv), "--embedding-dim", "4", "--hidden", "4", "--seeds", "0,1"]
    small += ["--epochs", "40"]
    stacks = [
        dict(stack=name, experiment="report", protocol="report", runs=2, epochs=40, arguments=more)
        for name, more in (("a", small), ("b", [*small, "--separate"]), ("c", [*small, "--lr=1"]))
    ]

    def command(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        return [sys.executable, "-c", STUDY, str(tmp_path / folder / "s.jsonl"), json.dumps(stacks)]

    def lines(folder):
        text = (tmp_path / folder / "s.jsonl").read_text()
        return sorted(
            json.dumps({k: v for k, v in json.loads(line).items() if "seconds" not in k})
            for line in text.splitlines()
        )

    start = time.monotonic()
    assert subprocess.run(command("alone"), cwd=ROOT).returncode == 0
    lasts = time.monotonic() - start
    for share in (0.5, 0.7, 0.9):
        running = subprocess.Popen(command("killed"), cwd=ROOT)
        time.sleep(share * lasts)
        running.kill()
        running.wait()
    assert subprocess.run(command("killed"), cwd=ROOT).returncode == 0
    assert len(lines("alone")) == 6
    assert lines("killed") == lines("alone")


@pytest.mark.parametrize("kept", [9, 8])
def test_baselines_cut_short_are_done_again(tmp_path, monkeypatch, kept):
    path = tmp_path / "study.jsonl"
    monkeypatch.setattr(run, "baseline_lines", lambda seeds: [{"stack": "baselines"}] * 9)
    run.main(["--out", str(path), "--seeds", "0", "--only", "baselines"])
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:kept]))
    run.main(["--out", str(path), "--seeds", "0", "--only", "baselines"])
    assert path.read_text() == whole
