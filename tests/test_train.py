"""The command end to end, on planted data in a real file: results, stacks, extensions, stops."""

import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from small import (
    PLAIN,
    Tripled,
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

import evaluation
import models
import multitask
import train
from checks.kill_resume import scalars
from data import random_split

GOLDEN = [(0.4967822, 10.124199), (0.4860501, 6.229814)]  # L_F and L_R of the first two epochs
ONE_STEP = "--optimizer sgd --batch-size 4000"  # an epoch is one step on all training interactions


def write_csv(name: str, rows: list[tuple]) -> None:
    lines = ["userId,movieId,rating", *(f"{u},{i},{r}" for u, i, r in rows)]
    Path(name).write_text("\n".join(lines) + "\n")


# ---- what comes out ------------------------------------------------------------------------


def test_planted_structure_is_learned_by_both_tasks(command, planted):
    words = "--seeds 0-2 --embedding-dim 16 --lr 0.003 --epochs 60 --eval-every 60"
    _, results, _ = command(words)
    splits = [train.load_run(result["folder"]).split for result in results]
    easy = [evaluation.baselines(planted, split) for split in splits]
    for name, beaten, factor in (("mrr", "popularity_mrr", 1.2), ("mse", "global_mean_mse", 0.6)):
        ours, its = np.mean([r[name] for r in results]), np.mean([b[beaten] for b in easy])
        assert ours > factor * its if name == "mrr" else ours < factor * its


def test_the_first_losses_are_golden_and_the_same_seed_gives_the_same_bits(
    command, one_run, other_run
):
    """A change that moves these moves every published number: rerun the study then."""
    losses = [column(one_run, f"{task}_loss")[:2] for task in ("factorization", "regression")]
    assert list(zip(*losses, strict=True)) == [pytest.approx(pair, rel=1e-4) for pair in GOLDEN]
    command(f"{PLAIN} --deterministic")
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert same_run("run", one_run) and not same_run(one_run, other_run)


def test_select_returns_the_epoch_best_on_the_validation_part(finished):
    folder, result = finished("--epochs 25 --lr 0.05 --validation 0.1 --select")
    rows = history(folder)
    values = [np.log(float(row["val_mrr"])) - np.log(float(row["val_mse"])) for row in rows]
    best = int(np.argmax(values))
    assert result["epoch"] == best < 24
    for name in ("mrr", "mse"):
        assert result[name] == column(folder, name)[best]
        assert result[name] == pytest.approx(recomputed(folder)[name], rel=1e-6)


def test_perfect_predictions_can_be_selected(command):
    write_csv("same.csv", [(u, i, 1) for u in range(30) for i in range(u % 7, 40, 3)])
    more = "--lambda-f 1 --lambda-r 0 --validation 0.1 --select --clip-ratings --epochs 3"
    code, result, _ = command(f"--data same.csv {more}")
    assert code == 0 and result["mse"] == 0


def test_eval_every_leaves_cells_empty_and_evaluates_the_last_epoch(finished):
    folder, result = finished("--epochs 5 --eval-every 3")
    assert [bool(row["mrr"]) for row in history(folder)] == [False, False, True, False, True]
    assert result["epoch"] == 4


def test_clip_ratings_cuts_predictions_to_the_training_range(command):
    rows = [(u, i, 3 + (u + i) % 2) for u in range(30) for i in range(u % 7, 40, 3)]
    write_csv("narrow.csv", rows)
    _, free, _ = command("--data narrow.csv --epochs 1")
    _, cut, _ = command("--data narrow.csv --epochs 1 --clip-ratings --out cut")
    assert cut["mse"] <= 1 < free["mse"]  # after one epoch predictions are still near zero


def test_clipping_is_to_the_range_of_the_training_part_not_of_what_is_held_out(command):
    """One rating alone is out of range, and in the test part: a clip that knew it would let 3 by.

    Predictions begin near zero, so that all are cut to the lowest rating known.
    """
    rows = [(u, i, 3 + (u + i) % 2) for u in range(30) for i in range(u % 7, 40, 3)]
    test = random_split(rows, seed=0).test
    rows[test[0]] = (*rows[test[0]][:2], 1)
    write_csv("leak.csv", rows)
    _, result, _ = command("--data leak.csv --epochs 1 --clip-ratings")
    errors = [rows[k][2] - 3 for k in test]
    assert result["mse"] == pytest.approx(np.mean(np.square(errors)))
    assert recomputed("run")["mse"] == pytest.approx(result["mse"])


def test_odd_but_sound_data_trains(command):
    """One user; a user who rated everything; users and items seen in the test part alone."""
    write_csv("one.csv", [(7, item, item % 5 + 1) for item in range(40)])
    rows = [(1, item, 3) for item in range(30)] + [(user, user % 30, 2) for user in range(2, 60)]
    write_csv("odd.csv", rows)
    for name in ("one", "odd"):
        code, result, _ = command(f"--data {name}.csv --epochs 2 --out {name} --clip-ratings")
        assert code == 0 and 0 < result["mrr"] <= 1 and np.isfinite(result["mse"])


ALL_PICKED = [(user, item, 3 + item % 2) for user in range(20) for item in range(5)]


@pytest.mark.parametrize(
    "rows, more, named",
    [
        ([(user, 1, 4) for user in range(40)], "", "a single item"),
        (ALL_PICKED, "--exclude-positives", "has interacted with all 5 items"),
        ([(1, 1, 3), (1, 2, 4)], "", "cut 2 rows"),
    ],
)
def test_data_that_cannot_be_ranked_is_refused_in_one_line(command, rows, more, named):
    write_csv("data.csv", rows)
    assert named in refused(command, f"--data data.csv {more}")
    assert not Path("run").exists()


# ---- stacks --------------------------------------------------------------------------------


def test_a_stack_leaves_a_folder_a_run_and_each_is_the_run_alone(command):
    words = "--lambda-f 0.99 0.5 --lambda-r 0.01 0.5 --seeds 3-4 --epochs 3 --out s"
    code, results, err = command(words)
    assert code == 0 and "±" in err and "0.99" in err
    settings = [(r["lambda_f"], r["lambda_r"], r["seed"]) for r in results]
    assert settings == [(0.99, 0.01, 3), (0.99, 0.01, 4), (0.5, 0.5, 3), (0.5, 0.5, 4)]
    assert {result["stack_size"] for result in results} == {4}
    for (f, r, seed), result in zip(settings, results, strict=True):
        _, alone, _ = command(f"--lambda-f {f} --lambda-r {r} --seed {seed} --epochs 3 --overwrite")
        close = {name: pytest.approx(alone[name], rel=1e-4) for name in ("mrr", "mse")}
        assert {**result, **close} == result
        torch.testing.assert_close(
            parameters(result["folder"]), parameters("run"), atol=1e-5, rtol=0
        )
        told = config(result["folder"])
        assert (told["lambda_f"], told["lambda_r"], told["seed"]) == (f, r, seed)


def test_runs_of_nearly_equal_weights_have_folders_of_their_own(command):
    _, results, _ = command("--lambda-f 0.9999999 0.99999999 --lambda-r 0.1 0.1 --epochs 1")
    assert len({result["folder"] for result in results}) == 2


def test_split_seed_fixes_the_split_apart_from_the_rest(command):
    command("--seeds 0-1 --split-seed 7 --epochs 1")
    one, two = (train.load_run(f"run/f0.99-r0.01_seed{seed}") for seed in (0, 1))
    assert np.array_equal(one.split.test, two.split.test)
    assert not torch.equal(one.model.members.users, two.model.members.users)


def test_an_ensemble_beats_its_members_and_predicts_their_mean(finished):
    (one, single), (four, result) = (finished(f"--epochs 15 --ensemble {m}") for m in (1, 4))
    assert result["mse"] < single["mse"]
    again = recomputed(four)
    assert (result["mrr"], result["mse"]) == pytest.approx((again["mrr"], again["mse"]), rel=1e-5)
    for name, values in parameters(one).items():  # member 0 is the run alone
        torch.testing.assert_close(parameters(four)[name][:1], values, atol=1e-5, rtol=0)


def test_closing_table_gives_the_t_interval():
    setting = {"weighting": "fixed", "lambda_f": 1.0, "lambda_r": 0.5}
    results = [setting | {"mrr": m, "mse": 2 * m} for m in (1.0, 2.0, 3.0, 6.0)]
    # mean 3, sd 2.1602, t(0.975; 3) = 3.18245: half-width 3.18245 * 2.1602 / 2 = 3.4374
    assert "3.0000 ± 2.1602 [-0.4374, 6.4374]" in train.closing_table(results)


# ---- runs that break -----------------------------------------------------------------------


def test_a_run_that_diverges_stops_alone_keeps_its_checkpoint_and_is_resumed_to_the_last_bit(
    command,
):
    words = "--optimizer sgd --epochs 5 --checkpoint-every 2 --ensemble 2 --validation 0.1 --select"
    stack = f"{words} --lambda-f 0.5 1e38 0.9 --lambda-r 0.5 1e38 0.1"
    code, (healthy, broken, _), err = command(f"{stack} --out straight")
    assert code == 2 and err.count("train.py: error") == 1
    assert "epoch 0" in broken["error"] and "f1e+38-r1e+38_seed0" in broken["error"]
    folder, names = Path("straight/f1e+38-r1e+38_seed0"), ("f0.5-r0.5_seed0", "f0.9-r0.1_seed0")
    assert json.loads((folder / "failed.json").read_text())["epoch"] == 0
    assert broken["table"] in parameters(folder)
    assert all(value.isfinite().all() for value in parameters(folder).values())
    _, alone, _ = command(f"{words} --lambda-f 0.5 --lambda-r 0.5")
    assert healthy["mse"] == pytest.approx(alone["mse"], rel=1e-5)
    for stop in (0, 1, 3, 4):
        kill(command, f"{stack} --out s{stop}", at=stop)
        command(f"--resume s{stop}")
        assert all(same_run(f"s{stop}/{name}", f"straight/{name}") for name in names)


def test_a_run_whose_predictions_overflow_stops_alone(command, monkeypatch):
    class Overflowing(models.MultiTaskNet):
        calls = 0

        def ratings(self, *ids):
            values, self.calls = super().ratings(*ids), self.calls + 1
            if self.calls == 2:  # at the second epoch's evaluation
                values[1] = float("inf")
            return values

    with monkeypatch.context() as patch:
        patch.setattr(train, "MultiTaskNet", Overflowing)
        code, results, err = command("--seeds 0-2 --epochs 3 --out s")
    assert code == 2 and err.count("error") == 1
    assert [("mrr" in result) for result in results] == [True, False, True]
    assert results[1]["epoch"] == 1 and results[1]["table"] == "mse"
    assert len(history(results[0]["folder"])) == 3
    _, alone, _ = command("--seed 2 --epochs 3")
    assert results[2]["mse"] == pytest.approx(alone["mse"], rel=1e-5)


@pytest.mark.parametrize("name", ["mrr", "mrr_first"])  # with a curve, and without
def test_a_metric_that_is_no_number_is_named_and_the_rate_is_not_blamed(command, name, monkeypatch):
    nothing = dataclasses.replace(evaluation.METRICS[name], value=lambda run: math.nan)
    monkeypatch.setitem(evaluation.METRICS, name, nothing)
    code, result, err = command("--epochs 2")
    assert code == 2 and result["table"] == name and "--lr" not in err
    assert f"no longer finite at epoch 0, in {name}" in err and "look at that metric" in err


def test_a_command_whose_runs_all_broke_says_the_same_when_resumed(command):
    code, result, err = command("--optimizer sgd --lambda-f 1e38 --lambda-r 1e38 --epochs 3")
    assert code == 2 and "epoch 0" in result["error"]
    again, repeated, told = command("--resume run")
    assert (again, repeated) == (2, result) and "no longer finite" in told


# ---- signals and the machine ---------------------------------------------------------------


@pytest.mark.parametrize("kind, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_signal_ends_the_epoch_saves_and_says_how_to_go_on(command, finished, kind, code):
    with before_epoch(lambda epoch: epoch == 1 and os.kill(os.getpid(), kind)):
        stopped, _, err = command("--epochs 3")
    assert stopped == code and "--resume run" in err
    assert len(history("run")) == 2 and not Path("run/result.json").exists()
    assert command("--resume run")[0] == 0
    assert same_run("run", finished("--epochs 3")[0])


def test_a_second_stop_signal_stops_at_once(command):
    child = os.fork()
    if child == 0:
        try:
            with before_epoch(lambda epoch: [os.kill(os.getpid(), signal.SIGINT) for _ in "12"]):
                command("--epochs 1")
        finally:
            os._exit(99)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGINT  # 130 to a shell
    assert torch.load("run/resume.pt", weights_only=True)["epoch"] == 0


def test_compile_where_it_fails_says_so_and_goes_on(command, monkeypatch, finished):
    def no_compiler(batch):
        raise RuntimeError("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda *args, **named: no_compiler)
        code, _, err = command("--epochs 3 --compile")
    assert code == 0 and "--compile: going on without, No working C++ compiler found\n" in err
    assert config("run")["compile"] is False
    torch.testing.assert_close(parameters("run"), parameters(finished("--epochs 3")[0]))


# ---- what may fail beside training ---------------------------------------------------------


@pytest.mark.parametrize("stream", [None, "/dev/full"])
def test_stderr_that_takes_nothing_costs_no_run_and_stdout_only_the_answer(
    command, ratings_csv, stream
):
    words = f"--data {ratings_csv} --epochs 1".split()
    lost, err = [open(stream, "w") if stream else None for _ in "12"], io.StringIO()
    with redirect_stderr(lost[0]):
        assert train.main([*words, "--out", "one"]) == 0
    with redirect_stdout(lost[1]), redirect_stderr(err):
        assert train.main([*words, "--out", "two"]) == (2 if stream else 0)
    assert ("stdout: [Errno 28]" in err.getvalue()) == bool(stream)
    assert same_run("one", "two") and Path("two/result.json").exists()


def test_a_run_that_began_without_streams_and_with_a_path_that_is_no_text(ratings_csv, tmp_path):
    """Closed, their numbers would go to files of the run."""
    shutil.copy(ratings_csv, tmp_path / "d\udcff.csv")
    script = 'exec "$0" "$1" --epochs 1 --data "$2" <&- >&- 2>&-'
    words = ["bash", "-c", script, sys.executable, train.__file__, "d\udcff.csv"]
    assert subprocess.run(words, cwd=tmp_path).returncode == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("d-_shared") and len(train.load_run(folder).data) == 4000


def test_training_needs_no_call_of_the_system_that_windows_lacks(command, monkeypatch):
    monkeypatch.setattr(train.ctypes, "CDLL", lambda name: "/" in name)  # None: a TypeError there
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "fork")
    code, _, err = command("--epochs 1")
    assert code == 0, err


def test_ctrl_c_while_modules_are_imported_is_no_traceback(tmp_path):
    (tmp_path / "numpy.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, train.__file__, "--help"]
    done = subprocess.run(words, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_large_tables_are_told_of_the_sparse_step_once(command, monkeypatch):
    monkeypatch.setattr(train, "MANY", 269)
    told = [command(f"--epochs 2 {more}")[2].count("--sparse") for more in ("", "--sparse --out s")]
    assert told == [1, 0]
    monkeypatch.setattr(train, "MANY", 270)  # users and items
    assert "--sparse" not in command("--epochs 1 --out small")[2]


@pytest.mark.parametrize("owner, kind", [(torch, torch.uint8), (np, np.uint8)])
def test_out_of_memory_is_one_line_that_tells_how_much_is_needed(command, monkeypatch, owner, kind):
    """Of 120 users and 150 items 8 numbers each, with gradient and two moments, 4 bytes."""
    gib = f"{270 * 8 * 4 * 4 / 2**30:.3g} GiB"
    with before_epoch(lambda epoch: epoch == 1 and owner.empty(2**60, dtype=kind)):
        code, _, err = command("--epochs 2 --checkpoint-every 1")
    assert code == 2 and f"out of memory: the tables and their optimizer take {gib}" in err
    assert "train.py --resume run goes on" in err and "Traceback" not in err
    assert command("--resume run")[0] == 0
    monkeypatch.setattr(train, "memory_limit", lambda: 270 * 8 * 4 * 4 - 1)
    assert gib in refused(command, "--out other") and not Path("other").exists()
    assert command("--epochs 1 --optimizer sgd --out sgd")[0] == 0  # half of it


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_losses_train_the_same_run(finished):
    whole = "--epochs 3 --batch-size 3800"  # one shape to compile for
    runs = finished(whole), finished(f"{whole} --compile --log-gradients")
    eager, compiled = (column(folder, "joint_loss") for folder, _ in runs)
    assert eager == pytest.approx(compiled, rel=1e-4)


# ---- extensions: registered or subclassed in one place, seen in training and evaluation -----


def test_a_hinge_loss_in_the_registry_trains_and_is_evaluated(command, monkeypatch):
    def hinge(positive, negative):
        return (1 - positive + negative).relu().mean(-1)

    monkeypatch.setitem(multitask.LOSSES, "hinge", hinge)
    _, result, _ = command(f"--loss hinge {ONE_STEP} --epochs 1")
    run = train.load_run("run")
    # Margins are within ±1 at first, so ∂L/∂b_j is (drawn as negative − picked) / n, in counts.
    n, picked = len(run.split.train), np.bincount(run.data.item_ids[run.split.train])
    drawn = picked - run.model.members.item_bias[0, :, 0].numpy() * n / (0.01 * 0.99)
    assert drawn == pytest.approx(drawn.round(), abs=1e-3)
    assert drawn.min() > -0.1 and drawn.sum() == pytest.approx(n) and drawn.max() > 10
    assert column("run", "factorization_loss") == pytest.approx([1], abs=0.02)
    assert result["mrr"] == pytest.approx(recomputed("run")["mrr"], rel=1e-6)


def test_a_rating_head_in_the_registry_trains_and_is_evaluated(command, planted, monkeypatch):
    class Constant(torch.nn.Module):
        def __init__(self, dim, hidden, seeds):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(len(seeds), 1))

        def forward(self, u, q):
            return self.value.expand(u.shape[:2])

    monkeypatch.setitem(models.RATING_HEADS, "constant", Constant)
    words = f"--rating-head constant {ONE_STEP} --lr 0.1 --lambda-f 0.5 --lambda-r 0.5 --epochs 4"
    _, result, _ = command(words)
    split = train.load_run("run").split
    trained, tested = planted.ratings[split.train], planted.ratings[split.test]
    value, losses, errors = 0.0, [], []
    for _ in range(4):  # gradient descent on the mean of (value − r)²
        losses.append(np.mean((value - trained) ** 2))
        value -= 0.1 * 0.5 * 2 * (value - trained.mean())
        errors.append(np.mean((value - tested) ** 2))
    assert column("run", "regression_loss") == pytest.approx(losses, rel=1e-5)
    assert column("run", "mse") == pytest.approx(errors, rel=1e-5)
    assert recomputed("run")["mse"] == pytest.approx(errors[-1], rel=1e-5)


def test_a_metric_in_the_registry_is_in_every_output_and_has_its_panel(
    ratings_csv, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    script = """
import sys
import evaluation
def hit_at_1(run):
    return run.by_user(run.ranks <= 1).mean()
metric = evaluation.Metric(hit_at_1, tag="eval/Hit at 1", label="share of test items")
evaluation.METRICS["hit_at_1"] = metric
import plot, train
sys.exit(train.main(sys.argv[1:]) or plot.main(["run"]))
"""
    words = f"--data {ratings_csv} --epochs 20 --lr 0.01 --validation 0.1 --out run"
    environment = os.environ | {"PYTHONPATH": str(Path(train.__file__).parent)}
    python = [sys.executable, "-c", script, *words.split()]
    done = subprocess.run(python, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    hits = recomputed("run")["hit_at_1"]
    assert hits > 0 and json.loads(done.stdout.splitlines()[0])["hit_at_1"] == pytest.approx(hits)
    assert json.loads(Path("run/result.json").read_text())["hit_at_1"] == pytest.approx(hits)
    for name, tag in (("hit_at_1", "eval/Hit at 1"), ("val_hit_at_1", "validation/Hit at 1")):
        values = [value for _, value in scalars("run")[tag]]
        assert values == pytest.approx(column("run", name)) and len(set(values)) > 1
    assert column("run", "hit_at_1")[-1] == pytest.approx(hits)
    assert "eval/Hit at 1" in Path("run/curves.svg").read_text()


def test_a_stack_that_overrides_losses_trains_by_it_and_its_gradients_are_measured(
    command, monkeypatch
):
    words = f"{ONE_STEP} --log-gradients --epochs 3"
    command(f"{words} --lambda-f 0.9 --out plain")
    monkeypatch.setattr(train, "Stack", Tripled)
    _, result, _ = command(f"{words} --lambda-f 0.3")
    for name in ("factorization_loss", "users_norm_ratio"):
        tripled = [3 * value for value in column("plain", name)]
        assert column("run", name) == pytest.approx(tripled, rel=1e-4)
    torch.testing.assert_close(parameters("run"), parameters("plain"), atol=1e-6, rtol=1e-5)
    assert result["mrr"] == pytest.approx(recomputed("run")["mrr"], rel=1e-6)


# ---- what is told --------------------------------------------------------------------------


def test_a_command_tells_its_data_its_baselines_computed_once_a_split_and_its_folder(
    command, planted, monkeypatch
):
    computed = []

    def counted(*args):
        computed.append(args)
        return evaluation.baselines(*args)

    monkeypatch.setattr(train, "baselines", counted)
    words = "--epochs 1 --validation 0.1 --clip-ratings --weighting fixed dwa"
    for seeds, splits in (("--seeds 0-2", 3), ("--seeds 0-2 --split-seed 7", 1)):
        _, results, err = command(f"{words} {seeds} --overwrite")
        assert len(results) == 6 and len(computed) == splits
        for result in results:
            split = train.load_run(result["folder"]).split
            assert result["baselines"] == evaluation.baselines(planted, split, clip_ratings=True)
            whole = json.loads((Path(result["folder"]) / "result.json").read_text())
            assert whole["baselines"] == result["baselines"]
        for row, key in (("popularity", "popularity_mrr"), ("global mean", "global_mean_mse")):
            values = {result["baselines"][key] for result in results}
            told = [line for line in err.splitlines() if line.startswith(f"{row:<13} {splits:>5}")]
            assert len(told) == 1 and f"{np.mean([*values]):.4f}" in told[0]
        data = "data: 'ratings.csv': 4,000 ratings (1 to 5) by 120 users of 150 items, 22.22% of"
        data += " all pairs; random split: 3,400 train, 400 validation, 200 test"
        assert data in err.splitlines()
        assert err.splitlines()[-1].startswith("6 runs are in folders of run: plot.py")
        computed.clear()
    assert command("--epochs 1 --out one")[2].splitlines()[-1].startswith("the run is in one: ")


LEVELS = {"popularity_mrr": 0.1, "global_mean_mse": 1.2, "biases_mse": 0.9}


@pytest.mark.parametrize(
    "weights, metrics, stars",
    [
        ((0.9, 0.1), [(0.2, 0.8)], ""),
        ((0.9, 0.1), [(0.1, 0.8)], "mrr"),
        ((0.9, 0.1), [(0.2, 1.0)], "mse"),
        ((0.9, 0.1), [(0.2, 0.7), (0.05, 1.0)], ""),  # better in the mean
        ((0.9, 0.1), [(0.1, 0.7), (0.05, 1.2)], "mrr mse"),
        ((1.0, 0.0), [(0.05, 1.0)], "mrr"),
        ((0.0, 1.0), [(0.05, 1.0)], "mse"),
        ((None, None), [(0.05, 1.0)], "mrr mse"),
    ],
)
def test_a_trained_task_no_better_than_its_baseline_is_starred_with_what_to_try(
    weights, metrics, stars
):
    setting = dict(zip(("lambda_f", "lambda_r"), weights, strict=True), baselines=LEVELS)
    setting["weighting"] = "mgda" if weights[0] is None else "fixed"
    results = [setting | {"mrr": mrr, "mse": mse} for mrr, mse in metrics]
    table = train.closing_table(results).splitlines()
    _, *cells = table[1][13:].replace(" ± ", "±").split()  # runs, MRR, MSE
    pairs = zip(("mrr", "mse"), cells, strict=True)
    assert " ".join(name for name, cell in pairs if "*" in cell) == stars
    assert ("--validation 0.05 --select" in table[-1]) == ("*" in table[-1]) == bool(stars)
    rows = [line.split() for line in table[2:5]]
    assert rows == [
        ["popularity", "1", "0.1000"],
        ["global", "mean", "1", "1.2000"],
        ["biases", "1", "0.9000"],
    ]


def test_an_interval_is_labelled_and_given_from_four_runs_on():
    setting = {"weighting": "fixed", "lambda_f": 1.0, "lambda_r": 0.5}
    for n, label in ((1, ""), (2, " ± sd"), (3, " ± sd"), (4, " ± sd [95% t-interval]")):
        results = [setting | {"mrr": 1.0 + k, "mse": 2.0} for k in range(n)]
        header, row = train.closing_table(results).splitlines()
        assert header.endswith(f" MSE{label}") and f"MRR{label} " in header
        assert ("±" in row) == (n > 1) and ("[" in row) == (n > 3)


def test_the_metrics_of_an_epoch_that_is_selected_are_among_tensorboards(finished):
    folder, result = finished("--epochs 25 --lr 0.05 --validation 0.1 --select")
    for name, tag in (("mrr", "eval/Mean Reciprocal Rank"), ("mse", "eval/MSE")):
        assert scalars(folder)[f"validation/the epoch it selects, {tag}"] == [
            (result["epoch"], pytest.approx(result[name], rel=1e-6))
        ]
