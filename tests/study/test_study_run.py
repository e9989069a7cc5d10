"""study/run.py, faults.py: every arm once; killed at any moment, it ends with the same lines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import load
from study import faults, run
from study.design import ARMS, SELECTED, VARIANTS, plan
from study.records import as_text, read

ROOT = Path(__file__).parents[2]
SMALL = ["--embedding-dim", "4", "--hidden", "4", "--seeds", "0,1", "--epochs"]


def test_the_plan_names_every_arm_once_and_the_command_lists_it(capsys):
    stacks = plan(list(range(10)), 200)
    for unique in ("stack", "arm"):
        assert len({stack[unique] for stack in stacks}) == len(stacks) == 390
    assert run.main(["--dry-run"]) == 0
    *listed, total = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:390]] == list(ARMS)
    assert total == "403 stacks, 2444 runs"


def test_the_command_refuses_to_replace_what_is_on_record(tmp_path, capsys):
    path, stack = tmp_path / "study.jsonl", plan([0], 1)[0]["stack"]
    text = as_text({"stack": stack, "stack_size": 10, "epochs": 200} for _ in range(10))
    path.write_text(text)
    for given, told in ((["report"], "name another file by --out"), (["rest"], "invalid choice")):
        with pytest.raises(SystemExit, match="2"):
            run.main(["--out", str(path), "--seeds", "0-2", "--only", *given])
        assert told in capsys.readouterr().err
    assert path.read_text() == text


def test_a_stack_goes_on_with_its_own_folder_and_replaces_another_studys(
    ratings_csv, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "die_with_parent", lambda: None)
    commands, real = [], run.train.main
    monkeypatch.setattr(run.train, "main", lambda argv: commands.append(argv) or real(argv))
    stack = dict(stack="a", experiment="selected", protocol="selected")
    small = ["--data", str(ratings_csv), "--split", "temporal", *SELECTED.split(), *SMALL]
    for epochs in (2, 2, 3):
        run.work(stack | {"arguments": [*small, str(epochs)]}, tmp_path)
        lines = read(tmp_path / "lines.jsonl")
        assert [(line["seed"], line["epochs"]) for line in lines] == [(0, epochs), (1, epochs)]
    for line in lines:
        ranks = np.array(line["reciprocal_ranks"], float)
        assert np.nanmean(ranks) == pytest.approx(line["mrr"], rel=1e-4)
        assert {"own_mrr", "own_mse", "last_mrr", "last_mse"} <= set(line)
        assert 0 <= line["cold_users"] <= line["cold_user_rows"] <= line["test_rows"] == 200
    assert ["--resume" in command for command in commands] == [False, True, False]


def test_each_fault_does_to_training_what_it_did_to_the_report(ratings_csv):
    source = str(ratings_csv)
    curves = {name: faults.run_variant(name, [0], 30, source)[0]["curves"] for name in VARIANTS}
    variance = np.var(load(source).ratings)
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
from distributed import group
from study.run import compute
out, stacks, part = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
with group():
    sys.exit(not compute(stacks, out, out.parent / "runs", 1 if part else 2, part))
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def start(ratings_csv, studies):
    """start(folder): a small study of four stacks there, one of them a control of two others."""
    small = ["--data", str(ratings_csv), *SMALL, "40"]
    arms = {"a": small, "b": [*small, "--separate"], "c": [*small, "--lr=1"], "d": small}
    shape = dict(experiment="report", protocol="report", runs=2, epochs=40)
    stacks = [shape | {"stack": n, "arguments": more} for n, more in arms.items()]
    stacks[3] |= {"control": "tuned", "mirrors": ["a", "b"]}
    (studies / "few_stacks.py").write_text(STUDY)

    def begin(folder: str, *launcher: str, part=None) -> subprocess.Popen:
        (studies / folder).mkdir(exist_ok=True)
        words = [str(studies / folder / "s.jsonl"), json.dumps(stacks), json.dumps(part)]
        command = [sys.executable, *launcher, str(studies / "few_stacks.py"), *words]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    return begin


def lines(folder: Path) -> list[str]:
    """Those of a study, without what a clock says."""
    told = ({k: v for k, v in x.items() if "seconds" not in k} for x in read(folder / "s.jsonl"))
    return sorted(json.dumps(line) for line in told)


@pytest.fixture(scope="module")
def alone(start, studies) -> tuple[list[str], float]:
    """The lines of a study left alone, and the seconds that it took."""
    before = time.monotonic()
    assert start("alone").wait() == 0
    assert len(lines(studies / "alone")) == 8
    return lines(studies / "alone"), time.monotonic() - before


def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_lines(start, alone, studies):
    expected, lasts = alone
    for share in (0.5, 0.7, 0.9):
        running = start("killed")
        time.sleep(share * lasts)
        running.kill()
        running.wait()
    assert start("killed").wait() == 0
    assert lines(studies / "killed") == expected


def test_jobs_of_a_cluster_end_with_the_lines_of_one_command(start, alone, studies):
    jobs = [start("jobs", part=(k, 2)) for k in (1, 2)]
    time.sleep(4)
    jobs[1].kill()  # and is started again
    assert jobs[1].wait() == -signal.SIGKILL
    again = start("jobs", part=(2, 2))
    assert jobs[0].wait() == again.wait() == 0  # a control may be left for later
    assert not (studies / "jobs/s.jsonl").exists()
    assert start("jobs").wait() == 0
    assert lines(studies / "jobs") == alone[0]


def test_commands_that_would_write_the_same_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 0)
    out, parts = tmp_path / "s.jsonl", [(1, 2), (2, 2)]
    for held, refused in ((out, [None, *parts]), (run.part_file(out, (1, 2)), [None, (1, 2)])):
        held.touch()
        with run.owned(held):
            for part in [None, *parts]:
                if part not in refused:
                    assert run.compute([], out, tmp_path, 1, part)
                    continue
                with pytest.raises(ValueError, match=f"{held.name} belongs to another command"):
                    run.compute([], out, tmp_path, 1, part)
    assert all(run.compute([], out, tmp_path, 1, part) for part in [*parts, None])


def test_torchruns_processes_end_with_the_lines_of_one_command(start, alone, studies):
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1".split()
    process = start("torchrun", *torchrun)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (studies / "torchrun/s.part-2-of-2.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    found = [int(child) for child in children.read_text().split()]
    each = [x for x in found if b"few_stacks.py" in Path(f"/proc/{x}/cmdline").read_bytes()]
    os.kill(each[-1], signal.SIGKILL)
    assert process.wait() == 0
    assert lines(studies / "torchrun") == alone[0]
    assert [path.name for path in (studies / "torchrun").glob("s.*")] == ["s.jsonl"]
