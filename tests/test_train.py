"""The command end to end, on planted data in a real file: folders, curves, results, errors."""

import csv
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluation
import train
from arguments import resolve

ROOT = Path(train.__file__).parent
REPORT_TAGS = {
    "training/Factorization Loss": "factorization_loss",
    "training/MSE": "regression_loss",
    "training/Joint Loss": "joint_loss",
    "eval/Mean Reciprocal Rank": "mrr",
    "eval/MSE": "mse",
}


class Killed(BaseException):
    """Passes every handler: nothing is saved on the way out, as by kill -9."""


@pytest.fixture
def command(ratings_csv, tmp_path, monkeypatch, capsys):
    """Run train.py in an empty folder: exit code, last line of stdout as JSON, stderr."""
    monkeypatch.chdir(tmp_path)
    base = ["--data", str(ratings_csv), "--embedding-dim", "8", "--hidden", "8", "--lr", "0.01"]

    def run(*arguments, small=True):
        try:
            code = train.main([*(base if small else []), *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else None, err

    return run


def history(folder) -> list[dict]:
    with (Path(folder) / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(folder) -> list[dict]:
    return [
        {k: v for k, v in row.items() if "seconds" not in k and k != "run_id"}
        for row in history(folder)
    ]


def parameters(folder) -> dict:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def equal_parameters(one, other) -> bool:
    one, other = parameters(one), parameters(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


GOLDEN = [[0.4967822, 10.124199], [0.4860501, 6.229814]]  # L_F and L_R of the first two epochs

# ---- what a run leaves ---------------------------------------------------------------------


def test_planted_structure_is_learned_by_both_tasks(command, planted):
    settings = ["--seeds", "0-2", "--embedding-dim", 16, "--lr", 0.003, "--epochs", 60]
    code, results, _ = command(*settings, "--eval-every", 60, "--out", "s")
    assert code == 0
    by_popularity, variances = [], []
    for result in results:
        rows = np.random.RandomState(result["seed"]).permutation(len(planted))
        known, test = rows[:3800], rows[3800:]
        pairs = planted.user_ids[None], planted.item_ids[None]
        ranking = evaluation.FullRanking(
            planted.n_items, *(ids[:, test] for ids in pairs), *(ids[:, known] for ids in pairs)
        )
        counts = torch.tensor(np.bincount(planted.item_ids[known], minlength=planted.n_items))
        ranks = ranking.ranks(lambda users, counts=counts: counts.float().repeat(1, len(users), 1))
        by_popularity.append(evaluation.ranking_metrics(ranks[0], pairs[0][0, test])["mrr"])
        variances.append(planted.ratings[test].var())
    assert np.mean([r["mrr"] for r in results]) > 1.2 * np.mean(by_popularity)
    assert np.mean([r["mse"] for r in results]) < 0.6 * np.mean(variances)


def test_a_run_folder_holds_what_recomputes_its_numbers(command, planted):
    _, result, _ = command("--epochs", 3, "--validation", 0.1, "--out", "run")
    run = train.load_run("run")
    split = run.split
    everything = np.concatenate([split.train, split.validation, split.test])
    expected = np.random.RandomState(0).permutation(len(planted))
    assert everything.tolist() == expected.tolist()  # row order of the source, test part last
    users, items = run.data.user_ids[split.test], run.data.item_ids[split.test]
    with torch.no_grad():
        predicted = run.model.ratings(torch.tensor(users), torch.tensor(items)).numpy()
        table = run.model.interaction_scores(torch.arange(run.data.n_users)).numpy()
    error = predicted.astype(float) - run.data.ratings[split.test]
    assert (error**2).mean() == pytest.approx(result["mse"], rel=1e-6)
    seen = np.concatenate([split.train, split.validation])
    table[run.data.user_ids[seen], run.data.item_ids[seen]] = -np.inf
    by_user: dict[int, list[float]] = {}
    for user, item in zip(users, items, strict=True):
        higher, equal = (table[user] > table[user, item]).sum(), (table[user] == table[user, item])
        by_user.setdefault(user, []).append(1 / (higher + (equal.sum() + 1) / 2))
    mrr = np.mean([np.mean(values) for values in by_user.values()])
    assert mrr == pytest.approx(result["mrr"], rel=1e-6)
    assert result == json.loads(Path("run/result.json").read_text())
    for name, values in load_file("run/model.safetensors").items():
        assert torch.equal(values, parameters("run")[name])
    assert run.data.user_labels.tolist() == sorted(set(planted.user_ids.tolist()))  # the file's


def test_history_and_tensorboard_tell_the_same_five_curves(command):
    _, result, _ = command("--epochs", 4, "--out", "run")
    rows, curves = history("run"), scalars("run")
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    for tag, column in REPORT_TAGS.items():
        assert [step for step, _ in curves[tag]] == [0, 1, 2, 3]
        values = [float(row[column]) for row in rows]
        assert [value for _, value in curves[tag]] == pytest.approx(values, rel=1e-6)
    assert float(rows[-1]["mrr"]) == result["mrr"] and float(rows[-1]["mse"]) == result["mse"]
    for row in rows:
        joint = 0.99 * float(row["factorization_loss"]) + 0.01 * float(row["regression_loss"])
        assert float(row["joint_loss"]) == pytest.approx(joint, rel=1e-5)


def test_tensorboard_started_on_a_run_serves_the_five_curves(command, tmp_path):
    command("--epochs", 2, "--out", "runs/one")
    # As a user starts it; port 0 lets it choose one.
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = next(w for line in server.stderr for w in line.split() if "http://" in w)
        deadline, tags = time.time() + 30, {}
        while time.time() < deadline and not tags.get("one"):
            with urllib.request.urlopen(f"{address}data/plugin/scalars/tags") as answer:
                tags = json.load(answer)
            time.sleep(0.2)
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    assert set(REPORT_TAGS) <= set(tags["one"])


def test_the_same_seed_gives_the_same_bits(command):
    for name in ("one", "two"):
        command("--epochs", 3, "--out", name)
    command("--epochs", 3, "--seed", 1, "--out", "other")
    assert untimed("one") == untimed("two") != untimed("other")
    assert equal_parameters("one", "two")


def test_the_first_losses_are_golden(command):
    """A change that moves these moves every published number: rerun the study then."""
    command("--epochs", 2, "--out", "run")
    losses = [
        [float(row[c]) for c in ("factorization_loss", "regression_loss")] for row in history("run")
    ]
    assert losses == [pytest.approx(pair, rel=1e-4) for pair in GOLDEN]


# ---- stacks --------------------------------------------------------------------------------


def test_a_stack_leaves_a_folder_a_run_and_each_is_the_run_alone(command):
    code, results, err = command(
        "--lambda-f",
        0.99,
        0.5,
        "--lambda-r",
        0.01,
        0.5,
        "--seeds",
        "3-4",
        "--epochs",
        3,
        "--out",
        "s",
    )
    assert code == 0
    settings = [(r["lambda_f"], r["lambda_r"], r["seed"]) for r in results]
    assert settings == [(0.99, 0.01, 3), (0.99, 0.01, 4), (0.5, 0.5, 3), (0.5, 0.5, 4)]
    assert "±" in err and "0.99" in err
    for result in results:
        weights = ["--lambda-f", result["lambda_f"], "--lambda-r", result["lambda_r"]]
        _, alone, _ = command(
            *weights, "--seed", result["seed"], "--epochs", 3, "--out", "alone", "--overwrite"
        )
        assert result["mrr"] == pytest.approx(alone["mrr"], rel=1e-4)
        assert result["mse"] == pytest.approx(alone["mse"], rel=1e-4)
        ours, its = parameters(result["folder"]), parameters("alone")
        assert all((ours[name] - its[name]).abs().max() < 1e-5 for name in ours)
        config = json.loads((Path(result["folder"]) / "config.json").read_text())
        assert config["seed"] == result["seed"] and config["lambda_f"] == result["lambda_f"]


def test_an_ensemble_beats_its_members_and_predicts_their_mean(command):
    _, single, _ = command("--epochs", 15, "--out", "single")
    _, result, _ = command("--epochs", 15, "--ensemble", 4, "--out", "four")
    assert result["mse"] < single["mse"]
    run = train.load_run("four")
    users, items = torch.tensor([0, 1]), torch.tensor([2, 3])
    members = run.model.members
    expected = members(users.expand(4, -1), items.expand(4, -1))[1].mean(0)
    torch.testing.assert_close(run.model.ratings(users, items), expected)
    for name, values in parameters("single").items():  # member 0 is the run alone
        torch.testing.assert_close(parameters("four")[name][:1], values, atol=1e-5, rtol=0)


def test_split_seed_fixes_the_split_apart_from_the_rest(command):
    command("--seeds", "0-1", "--split-seed", 7, "--epochs", 1, "--out", "s")
    one, two = (train.load_run(f"s/f0.99-r0.01_seed{seed}") for seed in (0, 1))
    assert np.array_equal(one.split.test, two.split.test)
    assert not torch.equal(one.model.members.users, two.model.members.users)


def test_select_returns_the_epoch_best_on_the_validation_part(command):
    _, result, _ = command(
        "--epochs", 25, "--lr", 0.05, "--validation", 0.1, "--select", "--out", "run"
    )
    rows = history("run")
    values = [np.log(float(row["val_mrr"])) - np.log(float(row["val_mse"])) for row in rows]
    best = int(np.argmax(values))
    assert result["epoch"] == best < 24
    assert result["mrr"] == float(rows[best]["mrr"]) and result["mse"] == float(rows[best]["mse"])
    run = train.load_run("run")
    pairs = (run.data.user_ids[run.split.test], run.data.item_ids[run.split.test])
    with torch.no_grad():
        predicted = run.model.ratings(*(torch.tensor(ids) for ids in pairs)).numpy()
    error = ((predicted.astype(float) - run.data.ratings[run.split.test]) ** 2).mean()
    assert error == pytest.approx(result["mse"], rel=1e-6)


def test_eval_every_leaves_cells_empty_and_evaluates_the_last_epoch(command):
    _, result, _ = command("--epochs", 5, "--eval-every", 3, "--out", "run")
    assert [bool(row["mrr"]) for row in history("run")] == [False, False, True, False, True]
    assert result["epoch"] == 4


# ---- stopping and going on -----------------------------------------------------------------


def test_a_resumed_run_is_the_run_never_interrupted_to_the_last_bit(command, monkeypatch):
    settings = [
        "--seeds",
        "0-1",
        "--epochs",
        7,
        "--checkpoint-every",
        2,
        "--validation",
        0.1,
        "--select",
    ]
    _, straight, _ = command(*settings, "--out", "straight")
    run_epoch = train.Training.train_epoch

    def killed(self, bar):
        if self.epoch == 5:
            raise Killed
        run_epoch(self, bar)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "train_epoch", killed)
        with pytest.raises(Killed):
            command(*settings, "--out", "stopped")
    code, resumed, _ = command("--resume", "stopped", small=False)
    assert code == 0
    for one, other in zip(straight, resumed, strict=True):
        for key in ("mrr", "mse", "epoch", "seed", "ndcg_at_10"):
            assert one[key] == other[key]
        assert untimed(one["folder"]) == untimed(other["folder"])
        assert equal_parameters(one["folder"], other["folder"])
        curves, expected = scalars(other["folder"]), scalars(one["folder"])
        assert curves == expected
        assert [step for step, _ in curves["eval/MSE"]] == list(range(7))


def test_resuming_a_finished_run_prints_its_result(command):
    _, result, _ = command("--epochs", 2, "--out", "run")
    before = {path.name: path.stat().st_mtime_ns for path in Path("run").iterdir()}
    code, again, _ = command("--resume", "run", small=False)
    assert (code, again) == (0, result)
    assert before == {path.name: path.stat().st_mtime_ns for path in Path("run").iterdir()}


@pytest.mark.parametrize("kind, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_ends_the_epoch_saves_and_says_how_to_go_on(command, monkeypatch, kind, code):
    run_epoch = train.Training.train_epoch

    def interrupted(self, bar):
        if self.epoch == 2:
            os.kill(os.getpid(), kind)
        run_epoch(self, bar)

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "train_epoch", interrupted)
        stopped, _, err = command("--epochs", 5, "--out", "run")
    assert stopped == code and "--resume run" in err
    assert len(history("run")) == 3
    assert not Path("run/result.json").exists()
    assert command("--resume", "run", small=False)[0] == 0
    command("--epochs", 5, "--out", "straight")
    assert untimed("run") == untimed("straight") and equal_parameters("run", "straight")


def test_a_run_that_diverges_stops_alone_and_keeps_its_checkpoint(command):
    weights = ["--lambda-f", 0.5, 1e38, "--lambda-r", 0.5, 1e38]
    code, results, err = command(*weights, "--optimizer", "sgd", "--epochs", 4, "--out", "s")
    healthy, broken = results
    assert code == 2 and "mrr" in healthy
    assert "epoch 0" in broken["error"] and "f1e+38-r1e+38_seed0" in broken["error"]
    assert broken["table"] in parameters("s/f0.5-r0.5_seed0")
    assert err.count("train.py: error") == 1
    folder = Path("s/f1e+38-r1e+38_seed0")
    assert json.loads((folder / "failed.json").read_text())["epoch"] == 0
    assert all(value.isfinite().all() for value in parameters(folder).values())
    _, alone, _ = command(
        "--lambda-f", 0.5, "--lambda-r", 0.5, "--optimizer", "sgd", "--epochs", 4, "--out", "alone"
    )
    assert healthy["mse"] == pytest.approx(alone["mse"], rel=1e-5)


# ---- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--data", "ml-99k"], "ml-99k"),
        (["--lambda-f", "-1"], "'-1' must be a number at least 0"),
        (["--lambda-f", "0", "--lambda-r", "0"], "--lambda-f 0 with --lambda-r 0"),
        (["--lambda-f", "nan"], "'nan'"),
        (["--lambda-f", "1", "2"], "--lambda-f has 2 values and --lambda-r 1"),
        (["--epochs", "0"], "'0' must be an integer at least 1"),
        (["--batch-size", "0"], "'0'"),
        (["--embedding-dim", "1.5"], "'1.5'"),
        (["--lr", "0"], "'0' must be a number at least 1e-12"),
        (["--shared-dims", "40"], "shared_dims is 40"),
        (["--shared", "--shared-dims", "4"], "--shared-dims goes without --shared"),
        (["--shared", "--separate"], "not allowed with"),
        (["--lamda-f", "0.5"], "did you mean --lambda-f?"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "quantum"], "quantum"),
        (["--seeds", "3-1"], "'3-1'"),
        (["--select"], "--select needs a validation part"),
        (["--resume", "nowhere"], "nowhere"),
        (["--resume", "nowhere", "--epochs", "3"], "--resume takes no other argument"),
        (["@nowhere.txt"], "nowhere.txt"),
        (["--loss", "hinge"], "hinge"),
        (["--validation", "0.97"], "'0.97' must be a number at least 0 and at most 0.94"),
        (["--seeds", "0-99999999999"], "0-99999999999"),
        (["--threads", "10000000000"], "10000000000"),
        (["--embedding-dim", "1000000000"], "1000000000"),
        (["--eval-chunk", "99999999999999999999"], "99999999999999999999"),
        (["--split", "temporal", "--split-seed", "3"], "--split-seed has no effect"),
        (["--overwrite", "--resume=nowhere"], "--resume takes no other argument"),
        (["--batch-by", "user"], "--batch-by user needs a loss over the catalogue"),
        (["--weight-decay", "1", "2"], "--weight-decay takes 1 or 3 values"),
        (["--ranking-dropout", "1"], "'1' must be a number"),
        (["--compile", "--ranking-dropout", "0.5"], "--compile is for"),
        (["--leave-one-out", "--user-history"], "--leave-one-out needs"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    command, ratings_csv, arguments, named
):
    data = (
        [] if "--data" in arguments or "resume" in str(arguments) else ["--data", str(ratings_csv)]
    )
    code, out, err = command(*data, *arguments, small=False)
    assert code == 2 and out is None
    assert len(err.splitlines()) == 1 and named in err, err
    assert not list(Path().iterdir())


def test_a_folder_that_holds_a_run_is_refused_unless_overwritten(command):
    command("--epochs", 1, "--out", "run")
    Path("run/notes.txt").write_text("mine")
    before = Path("run/result.json").read_bytes()
    code, _, err = command("--epochs", 2, "--out", "run")
    assert code == 2 and len(err.splitlines()) == 1 and "--overwrite" in err
    assert Path("run/result.json").read_bytes() == before
    assert command("--epochs", 2, "--out", "run", "--overwrite")[0] == 0
    assert len(history("run")) == 2 and Path("run/notes.txt").read_text() == "mine"


def test_a_file_in_the_way_of_the_folder_is_one_line(command):
    Path("taken").write_text("x")
    code, _, err = command("--epochs", 1, "--out", "taken/run")
    assert code == 2 and len(err.splitlines()) == 1 and "taken" in err
    assert Path("taken").read_text() == "x"


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(command, monkeypatch):
    writes, fsync = [], os.fsync

    def full(descriptor):
        writes.append(descriptor)
        if len(writes) > 8:  # the folder and two checkpoints still fit
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, err = command("--epochs", 5, "--checkpoint-every", 1, "--out", "run")
    errors = [line for line in err.splitlines() if "error" in line]
    assert code == 2 and len(errors) == 1 and "No space left on device" in errors[0]
    assert "Traceback" not in err
    assert torch.load("run/resume.pt", weights_only=True)["epoch"] == 1
    assert not list(Path("run").glob(".*"))  # no half-written file
    assert command("--resume", "run", small=False)[0] == 0
    command("--epochs", 5, "--out", "straight")
    assert untimed("run") == untimed("straight")


def test_changed_data_is_not_trained_on(command, ratings_csv, tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(ratings_csv.read_bytes())
    command("--data", copy, "--epochs", 1, "--out", "run")
    Path("run/result.json").unlink()
    copy.write_bytes(ratings_csv.read_bytes().replace(b"\r\n", b"\n"))
    code, _, err = command("--resume", "run", small=False)
    assert code == 2 and "no longer the data" in err
    with pytest.raises(ValueError, match="was trained on"):
        train.load_run("run")


def test_arguments_come_from_a_file_with_comments(command):
    Path("recipe.txt").write_text("# a recipe\n--epochs 2  # few\n--separate\n")
    code, result, _ = command("@recipe.txt", "--out", "run")
    assert code == 0 and result["epochs"] == 2
    assert json.loads(Path("run/config.json").read_text())["shared_dims"] == 0


def test_an_argument_file_that_cannot_be_read_is_named(command):
    Path("quote.txt").write_text('--data "unclosed\n')
    Path("bytes.txt").write_bytes(b"--data \xff\n")
    Path("itself.txt").write_text("--epochs 1\n@itself.txt\n")
    Path("nested.txt").write_text("@bytes.txt\n")
    whys = dict(quote="closing quotation", bytes="not UTF-8", no="No such", itself="itself")
    for file, why in {**whys, "nested": "file bytes.txt: not UTF-8"}.items():
        code, _, err = command(f"@{file}.txt", small=False)
        assert code == 2 and len(err.splitlines()) == 1 and why in err and "argument file" in err


def test_an_argument_file_is_read_once_so_a_pipe_serves(command):
    read, write = os.pipe()
    os.write(write, b"--epochs 2 --embedding-dim 7\n")
    os.close(write)
    command(f"@/dev/fd/{read}", "--out", "run")
    os.close(read)
    assert json.loads(Path("run/config.json").read_text())["embedding_dim"] == 7


def test_load_run_names_what_is_missing(command, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        train.load_run(tmp_path)
    command("--epochs", 1, "--seeds", "0,1", "--out", "two")
    with pytest.raises(FileNotFoundError, match="like two/f0.99-r0.01_seed0"):
        train.load_run("two")
    Path("two/f0.99-r0.01_seed1/result.json").unlink()
    with pytest.raises(FileNotFoundError, match="no run trained to its end: train.py --resume"):
        train.load_run("two/f0.99-r0.01_seed1")


def test_long_settings_that_differ_have_folders_that_differ():
    recipe = shlex.split((ROOT / "recipes/best.txt").read_text(), comments=True)
    more = ([], ["--ensemble", "4"], ["--ranking-dropout", "0.1"], ["--data", "日" * 70])
    names = [resolve([*recipe, *each])["out"] for each in more]
    assert len(set(names)) == len(names)
    assert all(len(Path(name).name.encode()) <= 200 for name in names)


def test_a_command_of_another_version_is_not_gone_on_with(command):
    command("--epochs", 1, "--out", "run")
    state = torch.load("run/resume.pt", weights_only=True)
    del state["args"]["lr"]
    torch.save(state, "run/resume.pt")
    code, _, err = command("--resume", "run", small=False)
    assert code == 2 and len(err.splitlines()) == 1 and "another version" in err


def write_csv(path: Path, rows: list[tuple]) -> Path:
    path.write_text("userId,movieId,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in rows))
    return path


def test_odd_but_sound_data_trains(command, tmp_path):
    """One user; a user who rated everything; users and items seen in the test part alone."""
    one_user = write_csv(tmp_path / "one.csv", [(7, item, item % 5 + 1) for item in range(40)])
    rows = [(1, item, 3) for item in range(30)] + [(user, user % 30, 2) for user in range(2, 60)]
    odd = write_csv(tmp_path / "odd.csv", rows)
    for name, path in (("one", one_user), ("odd", odd)):
        code, result, _ = command("--data", path, "--epochs", 2, "--out", name, "--clip-ratings")
        assert code == 0 and 0 < result["mrr"] <= 1 and np.isfinite(result["mse"])


def test_data_that_cannot_be_ranked_is_refused_in_one_line(command, tmp_path):
    one_item = write_csv(tmp_path / "item.csv", [(user, 1, 4) for user in range(40)])
    everything = write_csv(tmp_path / "all.csv", [(u, i, 3) for u in range(20) for i in range(5)])
    single = write_csv(tmp_path / "single.csv", [(1, 1, 3), (1, 2, 4)])
    for path, more, named in (
        (one_item, [], "a single item"),
        (everything, ["--exclude-positives"], "has interacted with all 5 items"),
        (single, [], "cut 2 rows"),
    ):
        code, _, err = command("--data", path, *more, "--epochs", 1, "--out", "run")
        assert code == 2 and len(err.splitlines()) == 1 and named in err, err
        assert not Path("run").exists()


@pytest.mark.parametrize("size, dims, every", [(180, 8, 5), (720, 64, 5), (300, 64, 5)])
def test_a_really_full_disk_leaves_the_last_checkpoint_whole(command, tmp_path, size, dims, every):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        settings = ["--epochs", 400, "--checkpoint-every", every, "--embedding-dim", dims]
        code, _, err = command(*settings, "--out", disk / "run")
        errors = [line for line in err.splitlines() if "error" in line.lower()]
        assert code == 2 and len(errors) == 1 and "No space left" in errors[0]
        assert "Traceback" not in err and "Exception" not in err
        if (disk / "run/resume.pt").exists():  # the smallest disk holds none
            state = torch.load(disk / "run/resume.pt", weights_only=True)
            assert state["epoch"] < 400 and state["epoch"] % every == 0
        assert (disk / "run/resume.pt").exists() or size == 300
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_deterministic_gives_the_same_bits_and_leaves_torch_as_told(command):
    command("--epochs", 2, "--out", "plain")
    command("--epochs", 2, "--deterministic", "--out", "strict")
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert untimed("plain") == untimed("strict")


def test_a_second_stop_signal_stops_at_once(ratings_csv, tmp_path):
    script = (
        "import os, signal, sys, train\n"
        "def slow(self, bar):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os._exit(99)\n"
        "train.Training.train_epoch = slow\n"
        "sys.exit(train.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "--data", str(ratings_csv), "--out", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGINT  # 130 to a shell
    assert torch.load(tmp_path / "run/resume.pt", weights_only=True)["epoch"] == 0


def test_a_damaged_checkpoint_is_one_line(command):
    command("--epochs", 2, "--out", "run")
    whole = Path("run/resume.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], os.urandom(1000), b""):
        Path("run/resume.pt").write_bytes(damaged)
        code, _, err = command("--resume", "run", small=False)
        assert code == 2 and len(err.splitlines()) == 1 and "damaged" in err


def test_a_checkpoint_never_runs_code(command):
    command("--epochs", 1, "--out", "run")

    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("ran"),)

    torch.save(Evil(), "run/resume.pt")
    torch.save(Evil(), "run/checkpoint.pt")
    assert command("--resume", "run", small=False)[0] == 2
    with pytest.raises(pickle.UnpicklingError):
        train.load_run("run")
    assert not Path("ran").exists()


def test_compile_without_a_compiler_says_so_and_goes_on(command, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, _, err = command("--epochs", 1, "--compile", "--out", "run")
    assert code == 0 and "no C++ compiler here (no-such-compiler)" in err
    assert json.loads(Path("run/config.json").read_text())["compile"] is False


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_losses_train_the_same_run(command):
    whole = ["--epochs", 3, "--batch-size", 3800]  # one shape to compile for
    command(*whole, "--out", "eager")
    command(*whole, "--compile", "--log-gradients", "--out", "compiled")
    one, other = (
        [float(row["joint_loss"]) for row in history(name)] for name in ("eager", "compiled")
    )
    assert one == pytest.approx(other, rel=1e-4)


# ---- what belongs to others ----------------------------------------------------------------


def test_overwrite_removes_the_commands_own_runs_and_nothing_else(command):
    command("--epochs", 1, "--out", "models/one")
    foreign = Path("models/bert")
    foreign.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (foreign / name).write_text("{}")
    before = Path("models/one/result.json").read_bytes()
    assert command("--epochs", 1, "--seeds", "0-1", "--out", "models", "--overwrite")[0] == 0
    assert command("--epochs", 1, "--seeds", "1-2", "--out", "models", "--overwrite")[0] == 0
    assert not Path("models/f0.99-r0.01_seed0").exists()  # of the stack that was replaced
    assert len(list(foreign.iterdir())) == 3
    assert Path("models/one/result.json").read_bytes() == before


def test_a_folder_with_somebody_elses_files_is_refused_even_with_overwrite(command):
    Path("run").mkdir()
    Path("run/config.json").write_text('{"model": "bert"}')
    for more in ([], ["--overwrite"]):
        code, _, err = command("--epochs", 1, *more, "--out", "run")
        assert code == 2 and "config.json that is no run's" in err
    assert Path("run/config.json").read_text() == '{"model": "bert"}'


def test_a_stack_never_replaces_a_single_run_unasked(command):
    command("--seed", 1, "--epochs", 1, "--out", "s/f0.99-r0.01_seed1")
    before = Path("s/f0.99-r0.01_seed1/result.json").read_bytes()
    code, _, err = command("--seeds", "0-1", "--epochs", 2, "--out", "s")
    assert code == 2 and "already holds a run" in err
    assert Path("s/f0.99-r0.01_seed1/result.json").read_bytes() == before


def test_runs_of_nearly_equal_weights_have_folders_of_their_own(command):
    weights = ["--lambda-f", 0.9999999, 0.99999999, "--lambda-r", 0.1, 0.1]
    _, results, _ = command(*weights, "--epochs", 1, "--out", "s")
    assert len({result["folder"] for result in results}) == 2


def test_a_folder_called_ml_100k_is_not_taken_for_the_data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("ml-100k").mkdir()
    assert train.resolve(["--epochs", "1"])["data"] == "ml-100k"


# ---- runs that break -----------------------------------------------------------------------


def test_a_run_whose_predictions_overflow_stops_alone(command, monkeypatch):
    ratings = train.MultiTaskNet.ratings
    calls = []

    def overflow(self, *ids):
        calls.append(1)
        values = ratings(self, *ids)
        if len(calls) == 2:  # at the second epoch's evaluation
            values[1] = float("inf")
        return values

    with monkeypatch.context() as patch:
        patch.setattr(train.MultiTaskNet, "ratings", overflow)
        code, results, err = command("--seeds", "0-2", "--epochs", 3, "--out", "s")
    assert code == 2 and err.count("error") == 1
    assert [("mrr" in result) for result in results] == [True, False, True]
    assert results[1]["epoch"] == 1 and results[1]["table"] == "mse"
    assert len(history(results[0]["folder"])) == 3
    _, alone, _ = command("--seed", 2, "--epochs", 3, "--out", "alone")
    assert results[2]["mse"] == pytest.approx(alone["mse"], rel=1e-5)


def test_a_command_whose_runs_all_broke_says_the_same_when_resumed(command):
    broken = ["--lambda-f", 1e38, "--lambda-r", 1e38, "--optimizer", "sgd", "--epochs", 3]
    code, result, err = command(*broken, "--out", "run")
    assert code == 2 and "epoch 0" in result["error"]
    again, repeated, told = command("--resume", "run", small=False)
    assert (again, repeated) == (2, result) and "no longer finite" in told


def test_runs_that_break_are_resumed_to_the_last_bit(command, monkeypatch):
    settings = ["--lambda-f", 0.5, 1e38, 0.9, "--lambda-r", 0.5, 1e38, 0.1, "--optimizer", "sgd"]
    settings += ["--epochs", 6, "--checkpoint-every", 2, "--ensemble", 2, "--validation", 0.1]
    settings += ["--select"]
    command(*settings, "--out", "straight")
    train_epoch = train.Training.train_epoch
    for stop in range(6):

        def killed(self, bar, stop=stop):
            if self.epoch == stop:
                raise Killed
            train_epoch(self, bar)

        with monkeypatch.context() as patch:
            patch.setattr(train.Training, "train_epoch", killed)
            with pytest.raises(Killed):
                command(*settings, "--out", f"s{stop}")
        command("--resume", f"s{stop}", small=False)
        for name in ("f0.5-r0.5_seed0", "f0.9-r0.1_seed0"):
            assert untimed(f"s{stop}/{name}") == untimed(f"straight/{name}")
            assert equal_parameters(f"s{stop}/{name}", f"straight/{name}")


def test_perfect_predictions_can_be_selected(command, tmp_path):
    rows = [(u, i, 1) for u in range(30) for i in range(u % 7, 40, 3)]
    same = write_csv(tmp_path / "same.csv", rows)
    more = ["--validation", 0.1, "--select", "--clip-ratings", "--epochs", 3]
    code, result, _ = command("--data", same, *more, "--out", "run")
    assert code == 0 and result["mse"] == 0


# ---- flags that must reach what they are for -----------------------------------------------


def test_clip_ratings_cuts_predictions_to_the_training_range(command, tmp_path):
    rows = [(u, i, 3 + (u + i) % 2) for u in range(30) for i in range(u % 7, 40, 3)]
    data = write_csv(tmp_path / "narrow.csv", rows)
    _, free, _ = command("--data", data, "--epochs", 1, "--out", "free")
    _, cut, _ = command("--data", data, "--epochs", 1, "--clip-ratings", "--out", "cut")
    assert cut["mse"] <= 1 < free["mse"]  # after one epoch predictions are still near zero


def test_weight_decay_reaches_the_tables(command):
    command("--epochs", 3, "--out", "free")
    command("--epochs", 3, "--weight-decay", 5, "--out", "decayed")
    norms = [parameters(name)["users"].norm() for name in ("free", "decayed")]
    assert norms[1] < 0.7 * norms[0]


def test_log_gradients_reach_history_and_tensorboard(command):
    command("--epochs", 2, "--log-gradients", "--out", "run")
    for row in history("run"):
        assert -1 <= float(row["users_cosine"]) <= 1 and float(row["items_norm_ratio"]) > 0
    assert [step for step, _ in scalars("run")["gradients/users, cosine of the tasks"]] == [0, 1]


def test_hyperparameters_and_their_metrics_reach_tensorboard(command):
    _, result, _ = command("--epochs", 1, "--out", "run")
    events = EventAccumulator("run").Reload()
    session = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"lambda_f" in session and b"shared_dims" in session
    assert scalars("run")["result/mrr"][0][1] == pytest.approx(result["mrr"], rel=1e-6)


@pytest.mark.parametrize("sharing", ["--shared", "--separate"])
def test_rating_biases_are_trained_and_given_back(command, sharing):
    _, result, _ = command("--epochs", 3, "--rating-biases", sharing, "--out", "run")
    run = train.load_run("run")
    assert run.model.members.rating_bias_tables()[0].abs().max() > 0
    pairs = (run.data.user_ids[run.split.test], run.data.item_ids[run.split.test])
    predicted = run.model.ratings(*(torch.tensor(ids) for ids in pairs)).numpy().astype(float)
    error = ((predicted - run.data.ratings[run.split.test]) ** 2).mean()
    assert error == pytest.approx(result["mse"], rel=1e-6)


RECIPE = (
    "--loss softmax --batch-by user --batch-size 32 --shared-dims 4 --rating-head dot "
    "--rating-biases --user-history --item-history --ranking-dropout 0.3 --rating-dropout 0.3 "
    "--schedule cosine --weight-decay 0.1 0.2 0.3 --leave-one-out"
).split()


def test_a_run_with_every_option_is_given_back_and_resumed(command, monkeypatch):
    settings = [*RECIPE, "--epochs", 6, "--checkpoint-every", 2]
    settings += ["--ensemble", 2, "--seeds", "0,1"]
    _, results, _ = command(*settings, "--out", "straight")
    for result in results:
        run = train.load_run(result["folder"])
        test = run.split.test
        users, items = (torch.tensor(x[test]) for x in (run.data.user_ids, run.data.item_ids))
        error = (run.model.ratings(users, items) - torch.tensor(run.data.ratings[test])).square()
        assert error.mean().item() == pytest.approx(result["mse"], rel=1e-5)
        seen = (ids[run.split.train][None] for ids in (run.data.user_ids, run.data.item_ids))
        ranking = evaluation.FullRanking(run.data.n_items, users[None], items[None], *seen)
        ranks = ranking.ranks(lambda ids, run=run: run.model.interaction_scores(ids)[None])
        mrr = evaluation.ranking_metrics(ranks[0], users)["mrr"]
        assert mrr == pytest.approx(result["mrr"], rel=1e-5)

    run_epoch = train.Stack.run_epoch

    def killed(self, epoch):
        if epoch == 5:
            raise Killed
        return run_epoch(self, epoch)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train.Stack, "run_epoch", killed)
        command(*settings, "--out", "killed")
    command("--resume", "killed", small=False)
    for result in results:
        name = Path(result["folder"]).name
        assert equal_parameters(f"straight/{name}", f"killed/{name}")


def test_history_and_curves_are_on_disk_after_every_epoch(command, monkeypatch):
    train_epoch, seen = train.Training.train_epoch, []

    def look(self, bar):
        train_epoch(self, bar)
        seen.append((len(history("run")), len(scalars("run")["eval/MSE"])))

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "train_epoch", look)
        command("--epochs", 3, "--out", "run")
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_closing_table_gives_the_t_interval(command):
    results = [dict(lambda_f=1.0, lambda_r=0.5, mrr=m, mse=2 * m) for m in (1.0, 2.0, 3.0, 6.0)]
    # mean 3, sd 2.1602, t(0.975; 3) = 3.18245: half-width 3.18245 * 2.1602 / 2 = 3.4374
    assert "3.0000 ± 2.1602 [-0.4374, 6.4374]" in train.closing_table(results)
