"""What do sharing and task weights do? The whole study as one resumable command.

    python -m experiments.study             # everything, two worker processes; the faults last
    python -m experiments.study --dry-run   # the stacks and their runs, listed
    python -m experiments.study --quick     # four settings, 3 seeds, 40 epochs

An arm is a setting of train.py; the arms that differ in seed and task weights alone train as one
stack. The stack is the unit of the study: its membership is fixed, it trains in a worker process
of one thread, and its runs' lines reach results/study.jsonl in one write. Stopped at any moment,
even by kill -9, the command started again goes on from the stack's last checkpoint and ends with
the same lines. `python plot.py --study results/study.jsonl` draws the figures and tables.

Two protocols:
  report    95/5 random split, trained on the 95, the metrics of the last epoch.
  selected  of the 95, 5 are a validation part; the metrics of the epoch with the highest
            log(MRR) − log(MSE) there. The test part is the report's.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy.stats
import torch

import train
from arguments import Parser, number, resolve, seed_list
from data import Split, load, random_split, temporal_split
from evaluation import FullRanking, mean_squared_error, ranking_metrics, reciprocal_ranks_by_user
from run_folder import load_run, write_whole
from tables import QUESTIONS, RATIOS

BOTH = ((0.99, 0.01), (0.5, 0.5))  # the report's task weights λ_F, λ_R
DIAL = (
    [(0.0, 1.0)] + [(round(x / (1 + x), 6), round(1 / (1 + x), 6)) for x in RATIOS] + [(1.0, 0.0)]
)
SHARED, SEPARATE = "--shared", "--separate"
SELECTED = ["--validation", "0.05", "--select", "--eval-every", "2"]
SGD_LR = "1"  # the largest of 0.3, 1, 1.7, 3, 30 at which no setting grows unstable in 60 epochs
PER_USER = ("report", "selected")  # experiments whose lines hold every user's reciprocal rank
CURVES = ("factorization_loss", "regression_loss", "joint_loss", "mrr", "mse", "val_mrr", "val_mse")
CURVES += ("users_cosine", "users_norm_ratio", "items_cosine", "items_norm_ratio")


def plan(seeds: list[int], epochs: int) -> list[dict]:
    """Every stack of the study: its name, experiment, protocol, runs and train.py arguments."""
    stacks = []

    def add(experiment, protocol, structure, pairs, *more):
        for lambda_f, lambda_r in pairs:
            name = f"{experiment} {' '.join(structure)} {lambda_f:g} {lambda_r:g}"
            arguments = [*structure, "--lambda-f", f"{lambda_f:g}", "--lambda-r", f"{lambda_r:g}"]
            arguments += ["--seeds", ",".join(map(str, seeds)), "--epochs", str(epochs), *more]
            stacks.append(
                {
                    "stack": name.replace("--", "").replace(" ", "_"),
                    "experiment": experiment,
                    "protocol": protocol,
                    "runs": len(seeds),
                    "epochs": epochs,
                    "arguments": arguments + (SELECTED if protocol == "selected" else []),
                }
            )

    for sharing in (SHARED, SEPARATE):
        add("report", "report", [sharing], BOTH, "--log-gradients")
    for sharing in (SHARED, SEPARATE):
        add("selected", "selected", [sharing], BOTH)
    for dims in ("8", "16", "24"):
        add("sharing", "selected", ["--shared-dims", dims], BOTH)
    add("capacity", "selected", [SEPARATE, "--embedding-dim", "16"], BOTH)
    for sharing in (SHARED, SEPARATE):
        add("sgd", "report", [sharing], BOTH, "--optimizer", "sgd", "--lr", SGD_LR)
    for sharing in (SHARED, SEPARATE):
        add("temporal", "selected", [sharing], BOTH, "--split", "temporal")
    others = [pair for pair in DIAL if pair not in BOTH]
    for structure in ([SHARED], [SEPARATE], ["--shared-dims", "16"]):
        add("weights", "selected", structure, others)
    return stacks


# ---- one stack, in a worker process --------------------------------------------------------


def die_with_parent() -> None:
    """End this process when the other end of its standard input is gone, however it went."""

    def wait():
        os.read(0, 1)  # not sys.stdin: its lock, held here, would abort an ordinary exit
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def work(stack: dict, folder: Path) -> int:
    """Train a stack, or go on with it, in a folder; its lines go to lines.jsonl there."""
    die_with_parent()
    arguments = [*stack["arguments"], "--out", str(folder)]
    wanted, before = resolve(arguments), {}
    with contextlib.suppress(OSError, ValueError):
        before = train.stored(folder)[0]["args"]
    if {**before, "overwrite": False} == wanted:
        arguments = ["--resume", str(folder)]
    else:  # nothing there, or another study's
        arguments.append("--overwrite")
    with contextlib.redirect_stdout(sys.stderr):
        code = train.main(arguments)
    if code == 0:
        _, results = train.stored(folder)
        lines = [line_of(stack, result) for result in results]
        write_whole(folder / "lines.jsonl", as_text(lines).encode())
    return code


def line_of(stack: dict, result: dict) -> dict:
    """What results/study.jsonl keeps of a run."""
    run = load_run(result["folder"])
    config = {name: value for name, value in run.config.items() if name not in ("name", "resume")}
    line = {
        "experiment": stack["experiment"],
        "stack": stack["stack"],
        "protocol": stack["protocol"],
    }
    line |= {"arm": stack["arm"]} if "arm" in stack else {}
    line |= config | {name: value for name, value in result.items() if name != "folder"}
    measured = [row for row in run.history if row["mrr"] is not None]
    line |= {"last_mrr": measured[-1]["mrr"], "last_mse": measured[-1]["mse"]}
    if "val_mrr" in measured[0]:  # each task at the epoch that is best for it alone
        line["own_mrr"] = max(measured, key=lambda row: row["val_mrr"])["mrr"]
        line["own_mse"] = min(measured, key=lambda row: row["val_mse"])["mse"]
    if stack["experiment"] in PER_USER:
        line["reciprocal_ranks"] = users_reciprocal_ranks(run)
    if config["split"] == "temporal":
        line |= cold_counts(run.data, run.split)
    # Every epoch where the curves are drawn, every tenth elsewhere: the file is committed.
    line["curve_step"] = step = 1 if stack["experiment"] == "report" else 10
    line["curves"] = {
        name: [None if row[name] is None else float(f"{row[name]:.4g}") for row in run.history][
            step - 1 :: step
        ]
        for name in CURVES
        if name in run.history[0]
    }
    return line


def users_reciprocal_ranks(run) -> list[float | None]:
    """For each user the mean reciprocal rank of its test items, None without any."""
    data, split = run.data, run.split
    seen = np.concatenate([split.train, split.validation])
    pairs = [
        ids[rows][None] for rows in (split.test, seen) for ids in (data.user_ids, data.item_ids)
    ]
    with torch.no_grad():
        ranks = FullRanking(data.n_items, *pairs).ranks(
            lambda ids: run.model.interaction_scores(ids)[None]
        )
    users, values = reciprocal_ranks_by_user(ranks[0], data.user_ids[split.test])
    known = dict(zip(users.tolist(), values.tolist(), strict=True))
    return [None if u not in known else float(f"{known[u]:.5g}") for u in range(data.n_users)]


def cold_counts(data, split: Split) -> dict:
    """How much of the test part is of users or items that training never saw."""
    counts = {"test_rows": len(split.test)}
    for side, ids in (("user", data.user_ids), ("item", data.item_ids)):
        test = ids[split.test]
        cold = ~np.isin(test, ids[split.train])
        counts |= {
            f"cold_{side}s": len(np.unique(test[cold])),
            f"cold_{side}_rows": int(cold.sum()),
        }
    return counts


# ---- baselines -----------------------------------------------------------------------------


def baseline_lines(seeds: list[int]) -> list[dict]:
    """Popularity, global mean and regularised biases, on the training part of every protocol."""
    from experiments.baselines import METHODS, Train

    data, lines = load("ml-100k"), []
    held = dict(validation_fraction=0.05)
    splits = [("report", seed, random_split(data, seed)) for seed in seeds]
    splits += [("selected", seed, random_split(data, seed, **held)) for seed in seeds]
    splits.append(("temporal", 0, temporal_split(data, **held)))
    for protocol, seed, split in splits:
        test = [ids[split.test] for ids in (data.user_ids, data.item_ids, data.ratings)]
        known = [ids[split.train] for ids in (data.user_ids, data.item_ids, data.ratings)]
        for name in ("popularity", "global mean", "biases"):
            method, start = METHODS[name.replace(" ", "-")], time.perf_counter()
            fitted = method.fit(Train(*known, data.n_users, data.n_items), seed, **method.settings)
            line = dict(experiment="baselines", stack="baselines", method=name, seed=seed)
            line |= dict(protocol=protocol, device="cpu")
            line["fit_seconds"] = time.perf_counter() - start
            if fitted.scores:
                pairs = [ids[None] for ids in (*test[:2], *known[:2])]
                ranks = FullRanking(data.n_items, *pairs).ranks(
                    lambda ids, f=fitted: torch.tensor(f.scores(ids.numpy()))[None]
                )
                line |= ranking_metrics(ranks[0], test[0])
            if fitted.ratings:
                line["mse"] = mean_squared_error(fitted.ratings(*test[:2]), test[2])
            lines.append(line)
    return lines


# ---- user by user ---------------------------------------------------------------------------

TOLD = {"q1": "1: shared - separate, at 0.5/0.5", "q2": "2: 0.99/0.01 - 0.5/0.5, shared"}


def per_user_lines(path: Path, seeds: list[int]) -> list[dict]:
    """For each question, protocol and seed: the two arms' reciprocal ranks, compared by user.

    An empty list while an arm is missing.
    """
    ranks = {}
    for line in map(json.loads, path.read_text().splitlines()):
        if "reciprocal_ranks" in line:
            arm = line["protocol"], line["shared_dims"], line["lambda_f"], line["seed"]
            ranks[arm] = np.array(line["reciprocal_ranks"], dtype=float)
    lines = []
    for name, arms in QUESTIONS.items():
        for protocol, seed in itertools.product(PER_USER, seeds):
            pair = [ranks.get((protocol, *arm, seed)) for arm in arms]
            if pair[0] is None or pair[1] is None:
                return []
            difference = pair[0] - pair[1]
            difference = difference[np.isfinite(difference)]
            lines.append(
                {
                    "experiment": "per_user",
                    "stack": "per_user",
                    "method": f"{TOLD[name]}, {protocol}",
                    "protocol": protocol,
                    "seed": seed,
                    "users": len(difference),
                    "mean_difference": float(difference.mean()),
                    "better": int((difference > 0).sum()),
                    "worse": int((difference < 0).sum()),
                    "wilcoxon_p": float(scipy.stats.wilcoxon(difference).pvalue),
                }
            )
    return lines


# ---- the whole study -----------------------------------------------------------------------


def as_text(lines: list[dict]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


class Results:
    """The results file: whole stacks only, each appended in one write.

    Args:
        expected: of each stack its "runs" and, where it trains, its "epochs".

    Raises ValueError when the file holds a stack of another size: nothing on record is dropped.
    """

    def __init__(self, path: Path, expected: dict[str, dict]):
        self.path, self.lock = path, threading.Lock()
        text = path.read_text() if path.exists() else ""
        whole, stacks = text.splitlines(keepends=True), {}
        if whole and not whole[-1].endswith("\n"):
            whole.pop()  # a torn write
        for line in map(json.loads, whole):
            stacks.setdefault(line["stack"], []).append(line)
        self.done = set()
        for name, lines in stacks.items():
            want, first = expected.get(name), lines[0]
            if want and (
                len(lines) > want["runs"]
                or first.get("stack_size", want["runs"]) != want["runs"]
                or first.get("epochs") != want.get("epochs", first.get("epochs"))
                or (len(lines) < want["runs"] and name != list(stacks)[-1])
            ):
                raise ValueError(
                    f"{path} holds {name} with {len(lines)} runs of {first.get('epochs')} epochs, "
                    f"not {want['runs']} of {want.get('epochs')}: name another file by --out"
                )
            if not want or len(lines) == want["runs"]:
                self.done.add(name)
        kept = "".join(line for line in whole if json.loads(line)["stack"] in self.done)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # a place that can't be written to is told now, not in hours
        if kept != text:  # the stack that was being written is done again
            write_whole(path, kept.encode())

    def append(self, text: str) -> None:
        with self.lock, self.path.open("ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())


def run_stack(stack: dict, runs: Path, results: Results) -> bool:
    folder = runs / stack["stack"]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.study", "--work", json.dumps(stack), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        code = worker.wait()
    if code == 0:
        results.append((folder / "lines.jsonl").read_text())
    what = f"{stack['runs']} runs" if code == 0 else f"FAILED ({code}), see {folder / 'log.txt'}"
    print(f"{stack['stack']}: {what}", file=sys.stderr, flush=True)
    return code == 0


def run_stacks(stacks: list[dict], results: Results, runs: Path, workers: int) -> bool:
    """Train the stacks that the results lack, in worker processes; whether all went well."""
    left = [stack for stack in stacks if stack["stack"] not in results.done]
    with ThreadPoolExecutor(workers) as pool:
        return all(list(pool.map(lambda stack: run_stack(stack, runs.resolve(), results), left)))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m experiments.study", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="file of the lines (results/study.jsonl; quick: runs/quick.jsonl)")
    add("--runs", type=Path, help="folder of the run folders (runs/ and the name of --out)")
    add("--seeds", type=seed_list, help="seeds (0-9; quick: 0-2)")
    add("--epochs", type=number(int, 1), help="epochs of each run (200; quick: 40)")
    add("--only", nargs="+", metavar="EXPERIMENT", help="these experiments alone")
    add("--quick", action="store_true", help="the four settings, 3 seeds, 40 epochs")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    add("--dry-run", action="store_true", help="list the stacks and stop")
    add("--work", nargs=2, metavar=("STACK", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(json.loads(args.work[0]), Path(args.work[1]))
    args.out = args.out or Path("runs/quick.jsonl" if args.quick else "results/study.jsonl")
    seeds = args.seeds or list(range(3 if args.quick else 10))
    stacks = plan(seeds, args.epochs or (40 if args.quick else 200))
    chosen = args.only or (["report"] if args.quick else None)
    more = ("baselines", "faults")
    known = dict.fromkeys([*(stack["experiment"] for stack in stacks), *more])
    for name in chosen or ():
        if name not in known:
            parser.error(f"--only {name}: the experiments are {', '.join(known)}")
    stacks = [stack for stack in stacks if chosen is None or stack["experiment"] in chosen]
    if args.dry_run:
        for stack in stacks:
            print(f"{stack['stack']:32} {stack['runs']:4}  {' '.join(stack['arguments'])}")
        if chosen is None:
            print("besides: baselines, the users' comparison, experiments/faults.py")
        print(f"{len(stacks)} stacks, {sum(stack['runs'] for stack in stacks)} runs")
        return 0
    expected = {
        stack["stack"]: {"runs": stack["runs"], "epochs": stack["epochs"]} for stack in stacks
    }
    expected["per_user"] = {"runs": 4 * len(seeds)}
    expected["baselines"] = {"runs": 3 * (2 * len(seeds) + 1)}
    try:
        results = Results(args.out, expected)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    runs = args.runs or Path("runs") / args.out.stem
    if (chosen is None or "baselines" in chosen) and "baselines" not in results.done:
        made = train.provenance()
        results.append(as_text([line | made for line in baseline_lines(seeds)]))
    start, left = time.monotonic(), sum(s["stack"] not in results.done for s in stacks)
    fine = run_stacks(stacks, results, runs, args.workers)
    print(f"{left} stacks in {time.monotonic() - start:.0f} s", file=sys.stderr)
    if "per_user" not in results.done and (lines := per_user_lines(args.out, seeds)):
        made = train.provenance()
        results.append(as_text([line | made for line in lines]))
    if chosen is None or "faults" in chosen:
        from experiments import faults

        epochs = ["--epochs", str(args.epochs)] if args.epochs else []
        faults.main(["--out", str(args.out), *epochs])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
