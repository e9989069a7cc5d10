"""Processes that torchrun starts leave what one process leaves."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import BASE, kill, run_train

ROOT = Path(__file__).parents[1]
RUNS = "--epochs 4 --seeds 0-2 --weighting fixed uw --ensemble 2 --validation 0.1 --select"
ONE = "--epochs 4 --batch-size 300 --eval-every 2"
LONG = "--epochs 20 --checkpoint-every 2 --batch-size 32"


def started(words: str, folder: Path, data: Path, *flags: str) -> subprocess.Popen:
    """Two processes of train.py in a folder, to run/, by torchrun."""
    base = [] if "--resume" in words else f"--data {data} {BASE}".split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", *flags, ROOT / "train.py", *base, *words.split()]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(torchrun, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **told)


def two(words: str, folder: Path, data: Path, *flags: str) -> tuple[int, str, str]:
    process = started(words, folder, data, *flags)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def workers(process: subprocess.Popen) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    told = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in found}
    return [child for child, words in told.items() if b"train.py" in words]


def after_epoch(process: subprocess.Popen, folder: Path, epoch: int) -> None:
    """Wait for a row of the history of the first run; folders may come and go meanwhile."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        there = sorted(at for at, _, names in os.walk(folder) if "history.csv" in names)
        with contextlib.suppress(FileNotFoundError):
            if there and Path(there[0], "history.csv").read_text().count("\n") > epoch + 1:
                return
        time.sleep(0.01)
    pytest.fail("it never came to that epoch")


def state(folder: Path) -> dict:
    return torch.load(folder / "resume.pt", weights_only=True)


LEFT_OUT = ("out", "launcher", "time", "train_seconds", "eval_seconds")


def differences(one: object, other: object, at: str = "", within: float = 1e-4) -> list[str]:
    """Where two states differ by more than rounding."""
    if isinstance(one, dict | list):
        keys = list(one) if isinstance(one, dict) else range(len(one))
        if set(keys) ^ set(other if isinstance(one, dict) else range(len(other))):
            return [at]
        keys = [key for key in keys if key not in LEFT_OUT]
        pairs = ((one[key], other[key], f"{at} {key}", within) for key in keys)
        return [x for pair in pairs for x in differences(*pair)]
    if torch.is_tensor(one):
        bound = within * max(one.abs().max().item(), 1e-4)
        return [at] * (one.shape != other.shape or (one - other).abs().max().item() > bound)
    expected = pytest.approx(other, rel=within, abs=1e-6) if isinstance(one, float) else other
    return [f"{at}: {one} {other}"] * (one != expected)


@pytest.mark.parametrize("words", [RUNS, ONE])
def test_two_processes_leave_what_one_leaves(tmp_path, ratings_csv, finished, words):
    code, out, err = two(words, tmp_path, ratings_csv)
    assert code == 0 and out.count("\n") == 1, err
    alone, _ = finished(words)
    within = 1e-5 if words == RUNS else 1e-4  # a stack's rounding, or sums in another order
    assert not differences(state(alone), state(tmp_path / "run"), within=within)
    found = []
    for folder in (alone, tmp_path / "run"):
        paths = sorted(folder.rglob("*"))
        found.append([str(path.relative_to(folder)).partition("tfevents")[0] for path in paths])
    assert found[0] == found[1]


def test_a_group_that_lost_a_process_is_restarted_and_loses_no_run(tmp_path, ratings_csv, finished):
    words = f"{LONG} --seeds 0-2"
    process = started(words, tmp_path, ratings_csv, "--max-restarts", "1")
    after_epoch(process, tmp_path, 3)
    os.kill(workers(process)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and out.count("\n") == 1, err
    assert not differences(state(finished(words)[0]), state(tmp_path / "run"))


def test_any_number_of_processes_goes_on(tmp_path, ratings_csv, finished):
    process = started(LONG, tmp_path, ratings_csv)
    after_epoch(process, tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=300)[1]
    stopped = state(tmp_path / "run")["epoch"]
    assert 1 < stopped < 16 and err.count(f"stopped after epoch {stopped}; go on") == 1, err
    kill(lambda words: run_train(words, tmp_path, ratings_csv), "--resume run", at=stopped + 4)
    assert state(tmp_path / "run")["epoch"] == stopped - stopped % 2 + 4
    code, _, err = two("--resume run", tmp_path, ratings_csv)
    assert code == 0, err
    assert not differences(state(finished(LONG)[0]), state(tmp_path / "run"))


PARTS = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import pytest, torch
import distributed
from small import make_stack

by_user = dict(loss="softmax", batch_by="user", batch_size=7, rating_head="dot",
    rating_biases=True, user_history=True, item_history=True, leave_one_out=True)
methods = "fixed", "uw", "famo", "mgda", "gradnorm", "adatask"
cases = [dict(weighting=[method]) for method in methods]
cases += [by_user, dict(batch_size=3), dict(loss="softmax"), dict(optimizer="sgd", lr=0.1),
    dict(weight_decay=(0.1, 0.2, 0.3))]
with distributed.group():
    for options in cases:
        stack, alone = make_stack(**options), make_stack(**options)
        stack.part = distributed.Part(stack)
        for epoch in range(2):
            logged, expected = (each.run_epoch(epoch) for each in (stack, alone))
            for name, values in expected.items():
                torch.testing.assert_close(logged[name], values, rtol=1e-4, atol=1e-5)
        own = stack.part.bounds is not None
        assert own == (stack.written_out and alone.written_out), options
        for name, values in alone.state_dict().items():
            if torch.is_tensor(values):
                bound = 1e-3 * values.abs().max().item()
                torch.testing.assert_close(stack.state_dict()[name], values, rtol=0, atol=bound)
    for told, options in (("dropout", dict(ranking_dropout=0.5)), ("compile", dict(compile=True))):
        with pytest.raises(ValueError, match=told):
            distributed.Part(make_stack(**options))
    with pytest.raises(ValueError, match="2 runs are too few for 3 processes"):
        distributed.shares(2)
"""


def test_parts_of_a_batch_train_what_the_whole_does(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*torchrun, "3", tmp_path / "parts.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
