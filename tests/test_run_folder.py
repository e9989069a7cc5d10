"""What a run leaves, how it is gone on with and given back, and whose files are whose."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small import (
    EVERY_OPTION,
    before_epoch,
    column,
    config,
    history,
    kill,
    parameters,
    recomputed,
    refused,
    same_run,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from checks.kill_resume import scalars
from run_folder import run_id_of

CURVES = {
    "training/Factorization Loss": "factorization_loss",
    "training/MSE": "regression_loss",
    "training/Joint Loss": "joint_loss",
    "eval/Mean Reciprocal Rank": "mrr",
    "eval/MSE": "mse",
    "weights/users, cosine of the tasks' gradients": "users_cosine",
    "weights/items, gradient norm of ranking over rating": "items_norm_ratio",
}


# ---- what a run leaves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    ["", "--validation 0.1", "--rating-biases", "--rating-biases --separate", EVERY_OPTION]
    + ["--clip-ratings --epochs 1"],
)
def test_a_run_folder_holds_what_recomputes_its_numbers(finished, planted, more):
    folder, result = finished(f"--epochs 3 {more}")
    assert {name: result[name] for name in ("mrr", "mse")} == pytest.approx(
        {name: recomputed(folder)[name] for name in ("mrr", "mse")}, rel=1e-5
    )
    run = train.load_run(folder)
    rows = np.concatenate([run.split.train, run.split.validation, run.split.test])
    assert rows.tolist() == np.random.RandomState(0).permutation(len(planted)).tolist()
    assert run.data.user_labels.tolist() == sorted(set(planted.user_ids.tolist()))  # the file's
    assert result == json.loads((folder / "result.json").read_text())
    whole = safe_open(folder / "model.safetensors", "pt")
    for name, values in parameters(folder).items():
        assert torch.equal(values, whole.get_tensor(name))
    if "--rating-biases" in more:
        assert run.model.members.rating_bias_tables()[0].abs().max() > 0


def test_history_and_tensorboard_tell_the_same_curves(one_run):
    folder, result = one_run, json.loads((one_run / "result.json").read_text())
    curves, (f, r, joint) = scalars(folder), (column(folder, x) for x in list(CURVES.values())[:3])
    for tag, name in CURVES.items():
        steps, values = zip(*curves[tag], strict=True)
        assert steps == (0, 1, 2) and values == pytest.approx(column(folder, name), rel=1e-6)
    assert column(folder, "epoch") == [0, 1, 2]
    assert (column(folder, "mrr")[-1], column(folder, "mse")[-1]) == (result["mrr"], result["mse"])
    assert joint == pytest.approx([0.99 * x + 0.01 * y for x, y in zip(f, r, strict=True)])
    events = EventAccumulator(str(folder)).Reload()
    session = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"lambda_f" in session and b"shared_dims" in session


def test_history_and_curves_are_on_disk_after_every_epoch(command):
    seen = []
    with before_epoch(
        lambda epoch: epoch and seen.append((len(history("run")), len(scalars("run")["eval/MSE"])))
    ):
        command("--epochs 4")
    assert seen == [(1, 1), (2, 2), (3, 3)]


def ids_of(folder: Path) -> set[str]:
    """The run ids in all files of a finished run."""
    (events,) = folder.glob("events.out.tfevents.*")
    zips = [run_id_of(folder / name) for name in ("split.npz", "checkpoint.pt")]
    told = [json.loads((folder / name).read_text()) for name in ("config.json", "result.json")]
    rows = [*told, *history(folder), safe_open(folder / "model.safetensors", "pt").metadata()]
    return {*zips, *(row["run_id"] for row in rows), events.name.rpartition(".")[2]}


def test_one_run_id_a_digest_of_config_json_is_in_every_file_of_a_run(one_run, other_run):
    ids = set()
    for folder in (one_run, other_run):
        told = config(folder)
        run_id = told.pop("run_id")
        assert run_id == hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        assert ids_of(folder) == {run_id}
        ids.add(run_id)
    assert len(ids) == 2


# ---- getting a run back --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", "config.json split.npz checkpoint.pt history.csv result.json".split()
)
def test_a_file_of_another_run_is_refused_by_name(one_run, other_run, tmp_path, name):
    run = shutil.copytree(one_run, tmp_path / "run")
    shutil.copy(other_run / name, run)
    with pytest.raises(ValueError, match=rf"run: .*{name}.* are of different runs"):
        train.load_run(run)


def test_a_folder_from_before_run_ids_is_refused_with_its_commit(one_run, tmp_path):
    run = shutil.copytree(one_run, tmp_path / "run")
    before = {name: value for name, value in config(run).items() if name != "run_id"}
    (run / "config.json").write_text(json.dumps(before | {"commit": "abc123"}))
    with pytest.raises(ValueError, match=r"^[^\n]*an earlier version .* commit abc123[^\n]*$"):
        train.load_run(run)


def test_load_run_names_what_is_missing(command):
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        train.load_run(".")
    command("--epochs 1 --seeds 0,1")
    with pytest.raises(FileNotFoundError, match="like run/f0.99-r0.01_seed0"):
        train.load_run("run")
    Path("run/f0.99-r0.01_seed1/result.json").unlink()
    with pytest.raises(FileNotFoundError, match="no run trained to its end: train.py --resume"):
        train.load_run("run/f0.99-r0.01_seed1")


def test_changed_data_is_not_trained_on(command, ratings_csv):
    copy = Path(shutil.copy(ratings_csv, "copy.csv"))
    command("--data copy.csv --epochs 1")
    Path("run/result.json").unlink()
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:-1]))
    assert "no longer the data" in refused(command, "--resume run")
    with pytest.raises(ValueError, match="was trained on"):
        train.load_run("run")


# ---- going on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", ["--validation 0.1 --select --seeds 0-1", f"{EVERY_OPTION} --ensemble 2 --seeds 0,1"]
)
def test_a_resumed_run_is_the_run_never_interrupted_to_the_last_bit(command, more):
    words = f"--epochs 6 --checkpoint-every 2 {more}"
    _, straight, _ = command(words)
    kill(command, f"{words} --out stopped", at=5)
    code, resumed, _ = command("--resume stopped")
    assert code == 0
    for one, other in zip(straight, resumed, strict=True):
        for key in ("mrr", "mse", "epoch", "seed", "ndcg_at_10", "run_id"):
            assert one[key] == other[key]
        assert same_run(one["folder"], other["folder"])
        assert ids_of(Path(other["folder"])) == {one["run_id"]}
        assert [step for step, _ in scalars(other["folder"])["eval/MSE"]] == list(range(6))
    before = {path: path.stat().st_mtime_ns for path in Path("stopped").rglob("*.*")}
    assert command("--resume stopped")[:2] == (0, resumed)  # finished: its result again, no more
    assert before == {path: path.stat().st_mtime_ns for path in Path("stopped").rglob("*.*")}


def test_a_damaged_checkpoint_or_another_versions_is_one_line_and_never_runs_code(command, one_run):
    shutil.copytree(one_run, "run")
    whole = Path("run/resume.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], os.urandom(1000), b""):
        Path("run/resume.pt").write_bytes(damaged)
        assert "damaged" in refused(command, "--resume run")
    Path("run/resume.pt").write_bytes(whole)
    state = torch.load("run/resume.pt", weights_only=True)
    del state["args"]["lr"]
    torch.save(state, "run/resume.pt")
    assert "another version" in refused(command, "--resume run")

    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("ran"),)

    torch.save(Evil(), "run/resume.pt")
    torch.save(Evil(), "run/checkpoint.pt")
    refused(command, "--resume run")
    with pytest.raises(pickle.UnpicklingError):
        train.load_run("run")
    assert not Path("ran").exists()


def full_disk_error(answer) -> str:
    code, _, err = answer
    (error,) = [line for line in err.splitlines() if "error" in line.lower()]
    assert code == 2 and "Traceback" not in err and "Exception" not in err
    assert "No space left on device" in error


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(command, monkeypatch):
    writes, fsync = [], os.fsync

    def full(descriptor):
        writes.append(descriptor)
        if len(writes) > 8:  # the folder and two checkpoints still fit
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        full_disk_error(command("--epochs 5 --checkpoint-every 1"))
    assert torch.load("run/resume.pt", weights_only=True)["epoch"] == 1
    assert not list(Path("run").glob(".*"))  # no half-written file
    assert command("--resume run")[0] == 0
    command("--epochs 5 --out straight")
    assert same_run("run", "straight")


@pytest.mark.parametrize("size, dims", [(180, 8), (720, 64), (300, 64)])
def test_a_really_full_disk_leaves_the_last_checkpoint_whole(command, size, dims):
    Path("disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", "disk"]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        words = f"--epochs 400 --checkpoint-every 5 --embedding-dim {dims} --out disk/run"
        full_disk_error(command(words))
        if size != 300:  # the smallest disk holds none
            epoch = torch.load("disk/run/resume.pt", weights_only=True)["epoch"]
            assert epoch < 400 and epoch % 5 == 0
    finally:
        subprocess.run(["umount", "disk"], check=True)


# ---- what belongs to others ----------------------------------------------------------------


def test_a_run_is_replaced_only_when_asked_also_by_a_stack(command):
    folder = Path("s/f0.99-r0.01_seed1")
    command(f"--seed 1 --epochs 1 --out {folder}")
    (folder / "notes.txt").write_text("mine")
    before = (folder / "result.json").read_bytes()
    for words in (f"--epochs 2 --out {folder}", "--seeds 0-1 --epochs 2 --out s"):
        assert "already holds a run: --overwrite" in refused(command, words)
        assert (folder / "result.json").read_bytes() == before
        assert command(f"{words} --overwrite")[0] == 0
        before = (folder / "result.json").read_bytes()
        assert len(history(folder)) == 2 and (folder / "notes.txt").read_text() == "mine"


def test_overwrite_removes_the_commands_own_runs_and_nothing_else(command):
    command("--epochs 1 --out models/one")
    foreign = Path("models/bert")
    foreign.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (foreign / name).write_text("{}")
    before = Path("models/one/result.json").read_bytes()
    for seeds in ("0-1", "1-2"):
        assert command(f"--epochs 1 --seeds {seeds} --out models --overwrite")[0] == 0
    assert not Path("models/f0.99-r0.01_seed0").exists()  # of the stack that was replaced
    assert len(list(foreign.iterdir())) == 3
    assert Path("models/one/result.json").read_bytes() == before


def test_a_folder_with_somebody_elses_files_is_refused_even_with_overwrite(command):
    Path("run").mkdir()
    Path("run/config.json").write_text('{"model": "bert"}')
    Path("taken").write_text("x")
    for words in ("--epochs 1", "--epochs 1 --overwrite"):
        assert "config.json that is no run's" in refused(command, words)
    assert "taken" in refused(command, "--epochs 1 --out taken/run")  # a file in the folder's way
    assert Path("run/config.json").read_text() == '{"model": "bert"}'
    assert Path("taken").read_text() == "x"
