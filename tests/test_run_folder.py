"""What a run leaves, how it is gone on with and given back, and whose files are whose."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small import (
    EVERY_OPTION,
    Killed,
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

import models
import multitask
import run_folder
import train
from checks.kill_resume import contents, scalars
from run_folder import run_ids, write_whole
from weighting import METHODS

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
    zips = [x for name in ("split.npz", "checkpoint.pt") for x in run_ids(folder / name)]
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


@pytest.mark.parametrize("name", run_folder.OURS[:6])
def test_a_file_of_another_run_is_refused_by_name(command, one_run, other_run, name):
    shutil.copytree(one_run, "run")
    shutil.copy(other_run / name, "run")
    with pytest.raises(ValueError, match=rf"run: .*{name}.* are of different runs"):
        train.load_run("run")
    assert f"{name} and config.json are of different runs" in refused(command, "--resume run")


def test_what_a_run_never_wrote_is_refused(command, one_run, other_run):
    shutil.copytree(one_run, "run")
    shutil.copy(other_run / "resume.pt", "run")
    assert "config.json are of different runs" in refused(command, "--resume run")
    told = (one_run / "config.json").read_text()
    Path("run/config.json").write_text(told.replace('"lr": 0.01', '"lr": 0.02'))
    with pytest.raises(ValueError, match="config.json is no longer what the run wrote"):
        train.load_run("run")
    Path("run/config.json").write_text(told)
    broken, state = parameters("run"), torch.load(one_run / "resume.pt", weights_only=True)
    for values in (broken["users"], state["stack"]["users"]):
        values[0] = float("nan")
    content = run_folder.saved_bytes(torch.save, broken, run_id=config("run")["run_id"])
    Path("run/checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt is damaged, not finite in users"):
        train.load_run("run")
    torch.save(state | {"epoch": 2}, "run/resume.pt")
    Path("run/result.json").unlink()
    state["losses"][:] = float("nan")
    for losses, told in (({}, "differs in the losses"), (state, "damaged, users isn't finite")):
        torch.save(torch.load("run/resume.pt", weights_only=True) | losses, "run/resume.pt")
        assert told in refused(command, "--resume run")


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
    "more",
    [
        "--validation 0.1 --select --seeds 0-1",
        f"{EVERY_OPTION} --ensemble 2 --seeds 0,1",
        "--sparse --weighting famo uw",
    ],
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
    before = {path: path.stat() for path in Path("stopped").rglob("*") if path.is_file()}
    assert command("--resume stopped")[:2] == (0, resumed)  # finished: its result again, no more
    for path, stat in before.items():
        assert path.stat().st_mtime_ns == stat.st_mtime_ns


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
    content = run_folder.saved_bytes(torch.save, Evil(), run_id=config("run")["run_id"])
    Path("run/checkpoint.pt").write_bytes(content)
    refused(command, "--resume run")
    with pytest.raises(ValueError, match="checkpoint.pt is damaged .UnpicklingError"):
        train.load_run("run")
    assert not Path("ran").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 100_000, "\xff"])
def test_a_damaged_result_is_one_line(command, one_run, text):
    shutil.copytree(one_run, "run")
    Path("run/result.json").write_bytes(text.encode("latin-1"))
    assert "result.json" in refused(command, "--resume run")
    with pytest.raises(ValueError, match="result.json"):
        train.load_run("run")


class Swapped(models.MultiTaskNet):
    """Its biases are declared in another order."""

    def __init__(self, *sizes, **named):
        super().__init__(*sizes, **named)
        self.user_bias = self._parameters.pop("user_bias")


class Grown(models.MultiTaskNet):
    def __init__(self, *sizes, **named):
        super().__init__(*sizes, **named)
        self.offset = torch.nn.Parameter(torch.zeros(len(self.users), 1, 1))


@pytest.mark.parametrize(
    "owner, name, value, told",
    [
        (train, "MultiTaskNet", Swapped, "differs in the order of parameters"),
        (train, "MultiTaskNet", Grown, "parameters, offset, adam's mean of offset"),
        (
            METHODS["dwa"],
            "starts",
            {"w": (2, 1.0), "last": (2, 0.0), "n": (1, 0.0)},
            "differs in n of dwa",
        ),
        (run_folder, "CURVES", ["mrr", "mse", "mrr_first"], "differs in the curves"),
        (multitask, "regression_loss", lambda p, r: ((p - r) ** 2).mean(1) * 1.01, "the losses"),
        (multitask.LOSSES, "sigmoid", None, "loss is 'sigmoid': it is one of"),
    ],
)
def test_an_edited_model_loss_or_metric_is_not_resumed(command, owner, name, value, told):
    words = "--epochs 3 --checkpoint-every 1 --weighting fixed dwa"
    kill(command, f"{words} --out stopped", at=2)
    before = Path("stopped/resume.pt").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value) if value else patch.delitem(owner, name)
        assert told in refused(command, "--resume stopped")
    assert Path("stopped/resume.pt").read_bytes() == before
    assert command("--resume stopped")[0] == 0


def test_a_column_that_history_began_without_is_not_written(command, monkeypatch):
    kill(command, "--epochs 3 --checkpoint-every 1", at=2)
    run_epoch = multitask.Stack.run_epoch
    more = lambda self, epoch: run_epoch(self, epoch) | {"new": torch.zeros(1)}  # noqa: E731
    monkeypatch.setattr(multitask.Stack, "run_epoch", more)
    code, _, err = command("--resume run")
    assert code == 2 and "began without or with new" in err and len(history("run")) == 2


def full_disk_error(answer) -> str:
    code, _, err = answer
    (error,) = [line for line in err.splitlines() if "error" in line.lower()]
    assert code == 2 and "Traceback" not in err and "Exception" not in err
    assert "No space left on device" in error


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(command, monkeypatch):
    writes, fsync = [], os.fsync

    def full(descriptor):
        writes.append(descriptor)
        if len(writes) > 9:  # the folder and two checkpoints still fit
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


def test_a_folder_behind_a_link_or_the_current_one_is_overwritten(command):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    for out in ("link", "."):
        for more in ("", "--overwrite"):
            assert command(f"--epochs 1 --out {out} {more}")[0] == 0
        assert train.load_run(out).config["seed"] == 0 and not [*Path(out).glob(".*")]


def killed_at(n: int, patch, *operations: str):
    """From the n-th of these calls of os on, all raise: what comes then no process does."""
    counted = itertools.count()

    def counting(call):
        def counted_call(*args, **named):
            if next(counted) >= n:
                raise Killed
            return call(*args, **named)

        return counted_call

    for name in operations:
        patch.setattr(os, name, counting(getattr(os, name)))


@pytest.mark.parametrize("old, new", [("--seed 5", "--seeds 0-1"), ("--seeds 0-1", "--seeds 1-2")])
def test_a_run_is_replaced_whole_or_not_at_all_wherever_that_is_killed(command, old, new):
    for words in (f"{old} --epochs 1 --out old", f"{new} --epochs 1 --out new"):
        command(words)
    kept, replaced, ended = contents(Path("old")), contents(Path("new")), []
    for n in itertools.count(step=5):
        shutil.copytree("old", "run", dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(n, patch, "rename", "replace", "unlink", "rmdir", "mkdir")
            try:
                command(f"{new} --epochs 1 --overwrite")
                break
            except Killed:
                pass
        refused(command, f"{new} --epochs 1")  # there is a run, and what was begun is ended
        if Path("run/.replaced").exists() or ended[-1:] == ["new"]:
            assert command("--resume run")[0] == 0
        ended.append("old" if contents(Path("run")) == kept else "new")
        assert contents(Path("run")) == (kept if ended[-1] == "old" else replaced)
        assert not [*Path("run").rglob(".*")]
        shutil.rmtree("run")
    assert ended == sorted(ended, reverse=True) and {*ended} == {"old", "new"}


@pytest.mark.parametrize("at", [0, 2, 5, 8])
def test_a_run_that_cannot_begin_leaves_the_folder_as_it_was(command, one_run, monkeypatch, at):
    """Too many open files, a file over the limit, a full disk: whichever file it meets."""
    shutil.copytree(one_run, "run")
    Path("mine").mkdir()
    for name in ("curves.png", "events.out.tfevents.1", "notes"):
        Path("mine", name).write_text("mine")
    before = contents(Path("run"))

    def failing(descriptor):
        if next(writes) % 20 >= fine:
            raise OSError(27, "File too large")

    monkeypatch.setattr(os, "fsync", failing)
    for out, seeds in (("run", "0-1"), ("new/folder", "0-1"), ("mine", "0")):
        writes, fine = itertools.count(), at if seeds == "0-1" else at // 2
        told = refused(command, f"--epochs 1 --seeds {seeds} --overwrite --out {out}")
        assert "File too large" in told and "--resume" not in told
    assert contents(Path("run")) == before and not [*Path("run").rglob(".*")]
    assert sorted(os.listdir("mine")) == ["curves.png", "events.out.tfevents.1", "notes"]
    assert not Path("new").exists()


def test_a_run_is_kept_until_another_in_its_place_has_a_result(command, one_run):
    shutil.copytree(one_run, "run")
    diverging = "--optimizer sgd --lambda-f 1e38 --lambda-r 1e38 --epochs 1 --overwrite"
    assert "run/.replaced keeps the run" in command(diverging)[2]
    assert contents(Path("run/.replaced")) == contents(one_run)
    assert command("--epochs 1 --overwrite")[0] == 0 and not Path("run/.replaced").exists()


def test_a_folder_is_one_commands_while_it_runs(command):
    told = []

    def others(epoch):
        told.extend(
            refused(command, words)
            for words in (
                "--epochs 1",
                "--epochs 1 --overwrite",
                "--resume run",
                "--epochs 1 --out run/f0.99-r0.01_seed1 --overwrite",
            )
        )

    with before_epoch(others):
        code, results, _ = command("--epochs 1 --seeds 0-1")
    assert code == 0 and len(told) == 4 and all("another command" in line for line in told)
    assert train.load_run(results[1]["folder"]).config["seed"] == 1
    with before_epoch(lambda epoch: told.append(refused(command, "--seeds 0-1 --overwrite"))):
        assert command("--epochs 1 --overwrite --out run/f0.99-r0.01_seed1")[0] == 0
    assert "seed1 belongs to another command" in told[-1] and not [*Path("run").rglob(".*")]


def test_a_file_written_by_two_at_one_moment_is_one_of_them(tmp_path, monkeypatch):
    fsync = os.fsync

    def another_in_between(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        write_whole(tmp_path / "curves.png", b"the other one")

    monkeypatch.setattr(os, "fsync", another_in_between)
    write_whole(tmp_path / "curves.png", b"one")
    assert (tmp_path / "curves.png").read_bytes() == b"one"
    assert len([*tmp_path.iterdir()]) == 1


def test_the_commit_is_of_a_checkout_of_its_own_and_tells_of_edits(tmp_path, monkeypatch):
    def git(*words):
        person = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *person, *words], cwd=tmp_path, check=True, capture_output=True)

    def commit(file: Path) -> tuple:
        monkeypatch.setattr(run_folder, "__file__", str(file))
        run_folder.commit.cache_clear()
        return tuple(run_folder.commit().values())

    (tmp_path / "inner").mkdir()
    (tmp_path / "code.py").write_text("")
    assert commit(tmp_path / "run_folder.py") == (None, None)
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    head, edited = commit(tmp_path / "run_folder.py")
    assert len(head) == 40 and edited is False
    (tmp_path / "results.jsonl").write_text("no code")
    assert commit(tmp_path / "run_folder.py") == (head, False)
    (tmp_path / "code.py").write_text("edited = True")
    assert commit(tmp_path / "run_folder.py") == (head, True)
    assert commit(tmp_path / "inner" / "run_folder.py") == (None, None)
    run_folder.commit.cache_clear()


def test_a_folder_with_somebody_elses_files_is_refused_even_with_overwrite(command):
    Path("run").mkdir()
    Path("run/config.json").write_text('{"model": "bert"}')
    Path("taken").write_text("x")
    for words in ("--epochs 1", "--epochs 1 --overwrite"):
        assert "config.json that is no run's" in refused(command, words)
    assert "taken" in refused(command, "--epochs 1 --out taken/run")  # a file in the folder's way
    assert Path("run/config.json").read_text() == '{"model": "bert"}'
    assert Path("taken").read_text() == "x"
