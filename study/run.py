"""What do sharing and task weights do? The whole study as one resumable command.

    python -m study.run             # everything, two worker processes; the faults last
    python -m study.run --dry-run   # the stacks and their runs, listed
    python -m study.run --quick     # four settings, 3 seeds, 40 epochs
    python -m study.run --part 3/8  # one of eight jobs; then once more without, to merge
    torchrun --nproc-per-node 8 -m study.run    # eight parts of one command

design.py lists the arms. The stack is the unit of the study: its membership is fixed, it trains in
a worker process of one thread, and its runs' lines reach results/study.jsonl in one write. Stopped
at any moment, even by kill -9, the command started again goes on from the stack's last checkpoint
and ends with the same lines. `python -m study.report` makes figures, tables and STUDY.md of them.

A part takes every n-th of the stacks that are left, its lines go to a file of its own, and a
command without --part takes the parts' files in. Controls, which mirror other stacks, wait for
them: those of another job are trained by the next command, torchrun's processes wait.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

import distributed
import train
from arguments import Parser, number, resolve, seed_list
from data import load, random_split, temporal_split
from evaluation import FullRanking, baselines, ranked
from run_folder import finished_results, load_run, read_resume, write_whole
from study import faults
from study.controls import controlled, register, source, tell_weights
from study.design import BASELINES, DATA, EXPERIMENTS, PLANTED, TESTED, VARIANTS, WORKERS, plan
from study.records import Results, as_text, part_file, part_files, provenance, read

ROOT = Path(__file__).parents[1]
PATIENCE = 10  # seconds
CURVES = ("factorization_loss", "regression_loss", "joint_loss", "mrr", "mse", "val_mrr", "val_mse")
CURVES += ("users_cosine", "users_norm_ratio", "items_cosine", "items_norm_ratio")
CURVES += ("weight_f", "weight_r", "norm_ratio", "weighted_norm_ratio")


def die_with_parent() -> None:
    """End this process when the other end of its standard input is gone, however it went."""

    def wait():
        os.read(0, 1)  # not sys.stdin: its lock, held here, would abort an ordinary exit
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def work(stack: dict, folder: Path) -> None:
    """Compute a stack's lines, in lines.jsonl of a folder; a training goes on where it stopped."""
    die_with_parent()
    if stack["experiment"] == "baselines":
        lines = baseline_lines(stack["stack"], stack["data"], stack["seeds"], folder)
    elif stack["experiment"] == "faults":
        lines = faults.run_variant(stack["fault"], stack["seeds"], stack["epochs"])
    else:
        lines = trained_lines(stack, folder)
    spent = {"cpu_seconds": time.process_time()}  # by this process, whatever ran beside it
    write_whole(folder / "lines.jsonl", as_text(line | spent for line in lines).encode())


def trained_lines(stack: dict, folder: Path) -> list[dict]:
    register(stack)
    arguments = [*stack["arguments"], "--out", str(folder)]
    if stack.get("data") in PLANTED:
        arguments += ["--data", source(stack["data"], folder)]
    wanted, before = resolve(arguments), {}
    with contextlib.suppress(OSError, ValueError):
        before = read_resume(folder)["args"]
    if {**before, "overwrite": False} == wanted:
        arguments = ["--resume", str(folder)]
    else:  # nothing there, or another study's
        arguments.append("--overwrite")
    with contextlib.redirect_stdout(sys.stderr):
        code = train.main(arguments)
    results = finished_results(read_resume(folder))
    if results is None:
        sys.exit(code)
    return [line_of(stack, result) for result in results]


def line_of(stack: dict, result: dict) -> dict:
    """What the results file keeps of a run."""
    dropped = ("runs", "arguments", "resume", "folder", "paths", "seeds", "out", "overwrite")
    if "error" in result:  # it stopped being finite
        line = stack | resolve(stack["arguments"]) | {"split_seed": result["seed"]} | provenance()
        line |= result | {"curves": {}}
        return {key: line[key] for key in line if key not in dropped}
    run = load_run(result["folder"])
    line = run.config | stack | result  # planted data by their name, no file
    line = {key: line[key] for key in line if key not in dropped}
    tell_weights(line, run.history)
    measured = [row for row in run.history if row["mrr"] is not None]
    line |= {"last_mrr": measured[-1]["mrr"], "last_mse": measured[-1]["mse"]}
    if "val_mrr" in measured[0]:  # each task at the epoch that is best for it alone
        line["own_mrr"] = max(measured, key=lambda row: row["val_mrr"])["mrr"]
        line["own_mse"] = min(measured, key=lambda row: row["val_mse"])["mse"]
    if stack["experiment"] in TESTED:
        line["reciprocal_ranks"] = users_reciprocal_ranks(run)
    if line["split"] == "temporal":
        line |= cold_counts(run)
    # Every epoch where the curves are drawn, every tenth elsewhere: the file is committed.
    line["curve_step"] = step = 1 if stack["experiment"] == "report" else 10
    rows, there = run.history[step - 1 :: step], [name for name in CURVES if name in measured[0]]
    return line | {"curves": {name: [rounded(row[name], 4) for row in rows] for name in there}}


def rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def users_reciprocal_ranks(run) -> list[float | None]:
    """For each user the mean reciprocal rank of its test items, None without any."""
    data, split = run.data, run.split
    seen = np.concatenate([split.train, split.validation])
    columns = data.user_ids, data.item_ids
    pairs = [ids[rows][None] for rows in (split.test, seen) for ids in columns]
    ranking = FullRanking(data.n_items, *pairs)
    ranks = ranking.ranks(lambda ids: run.model.interaction_scores(ids)[None])
    tests = ranked(ranks[0], data.user_ids[split.test])
    values = tests.by_user(1 / tests.ranks)
    known = dict(zip(tests.user_ids.tolist(), values.tolist(), strict=True))
    return [rounded(known.get(user), 5) for user in range(data.n_users)]


def cold_counts(run) -> dict:
    """How much of the test part is of users or items that training never saw."""
    split, counts = run.split, {"test_rows": len(run.split.test)}
    for side, ids in (("user", run.data.user_ids), ("item", run.data.item_ids)):
        cold = np.setdiff1d(ids[split.test], ids[split.train])  # no id twice
        counts[f"cold_{side}s"] = len(cold)
        counts[f"cold_{side}_rows"] = int(np.isin(ids[split.test], cold).sum())
    return counts


def baseline_lines(stack: str, name: str, seeds: list[int], folder: Path) -> list[dict]:
    """Popularity, global mean and regularised biases, on the training part of every protocol."""
    data, held = load(source(name, folder)), {"validation_fraction": 0.05}
    splits = [("selected", seed, random_split(data, seed, **held)) for seed in seeds]
    if name == DATA:
        splits = [("report", seed, random_split(data, seed)) for seed in seeds] + splits
        splits.append(("temporal", 0, temporal_split(data, **held)))
    lines = []
    for protocol, seed, split in splits:
        start, levels = time.perf_counter(), baselines(data, split)
        line = {"experiment": "baselines", "stack": stack, "data": name, "device": "cpu"}
        line |= {"protocol": protocol, "seed": seed, "seconds": time.perf_counter() - start}
        for method in BASELINES:
            of = method.replace(" ", "_") + "_"  # as in "popularity_mrr"
            own = {k.removeprefix(of): v for k, v in levels.items() if k.startswith(of)}
            lines.append({**line, "method": method, **own, **provenance()})
    return lines


def run_stack(stack: dict, runs: Path, results: Results) -> bool:
    """Train a stack in a process of its own; its lines join the results, or its failure is told."""
    folder = runs / stack["stack"]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "study.run", "--work", json.dumps(stack), str(folder)]
    # One process, of one thread, whoever started this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
    environment |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "1"}
    with (folder / "log.txt").open("ab") as log:  # its standard input is open as long as we live
        shape = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        code = subprocess.Popen(command, env=environment, cwd=ROOT, **shape).wait()
    if code == 0:
        results.append(read(folder / "lines.jsonl"))
    what = f"{stack['runs']} runs" if code == 0 else f"FAILED ({code}), see {folder / 'log.txt'}"
    print(f"{stack['stack']}: {what}", file=sys.stderr, flush=True)
    return code == 0


def run_stacks(
    stacks: list[dict],
    results: Results,
    runs: Path,
    workers: int,
    part: tuple[int, int] | None = None,
) -> bool:
    """Train the stacks that the results lack, in worker processes; whether all went well.

    Of a ``part`` (k, n) it is every n-th of them. Controls come last, when all others are there.
    """
    (k, n), left = part or (1, 1), [x for x in stacks if x["stack"] not in results.merged]
    plain, controls = (
        [x for x in left if ("control" in x) == c][k - 1 :: n] for c in (False, True)
    )

    def train_all(some: list[dict]) -> bool:
        mine = [stack for stack in some if stack["stack"] not in results.done]
        with ThreadPoolExecutor(workers) as pool:
            return all(list(pool.map(lambda x: run_stack(x, runs.resolve(), results), mine)))

    fine = train_all(plain)
    distributed.largest(0)  # until all processes are here
    there, ready = results.lines(), []
    for stack in controls:
        if missing := [name for name in stack["mirrors"] if name not in there]:
            print(f"{stack['stack']}: needs {missing[0]} first", file=sys.stderr, flush=True)
            fine = fine and results.path != results.whole and distributed.size() == 1  # a part's
            continue
        ready.append(controlled(stack, [x for name in stack["mirrors"] for x in there[name]]))
    return train_all(ready) and fine


def part_of(text: str) -> tuple[int, int]:
    """'3/8' -> (3, 8)."""
    try:
        k, n = map(int, text.split("/"))
        if 1 <= k <= n:
            return k, n
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be K/N, from 1/N to N/N")


def compute(
    stacks: list[dict], out: Path, runs: Path, workers: int, part: tuple[int, int] | None = None
) -> bool:
    """Train what a results file lacks: all of it, a part, or by torchrun each process a part.

    Whether all went well; a part may leave controls to a later command. Raises ValueError while
    another command trains the same part, or without a part while any does.
    """
    expected, first = {stack["stack"]: stack for stack in stacks}, distributed.rank() == 0
    several, whole = distributed.size() > 1, not part
    if several:
        if part:
            raise ValueError("torchrun's processes are the parts: go without --part")
        part = distributed.rank() + 1, distributed.size()
    with contextlib.ExitStack() as held, contextlib.ExitStack() as own:
        with distributed.agreed():
            if first and whole:
                held.enter_context(owned(out))
                for path in part_files(out):
                    with owned(path):
                        pass
                results = Results(out, expected)  # takes in what parts have left
        with distributed.agreed():
            if part:
                own.enter_context(owned(part_file(out, part)))
                if not several:  # the other parts ask the same, for a moment
                    with owned(out, PATIENCE):
                        pass
                results = Results(out, expected, part)
        fine = run_stacks(stacks, results, runs, workers, part)
        own.close()
        fine = not distributed.largest(not fine)
        if several and first:
            fine = fine and expected.keys() <= Results(out, expected).done
    return fine


@contextlib.contextmanager
def owned(path: Path, patience: float = 0):
    """Within it a results file, there or not, is this command's: raises ValueError if another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=patience):
            yield
    except Timeout:
        told = "belongs to another command while that runs: wait, or name another by --out"
        raise ValueError(f"{path} {told}") from None


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m study.run", description=__doc__)
    add = parser.add_argument
    known = [*EXPERIMENTS, "baselines", "faults"]
    add("--out", type=Path, help="file of the lines (results/study.jsonl; quick: runs/quick.jsonl)")
    add("--runs", type=Path, help="folder of the run folders (runs/ and the name of --out)")
    add("--seeds", type=seed_list, help="seeds (0-9; faults, quick: 0-2)")
    add("--epochs", type=number(int, 1), help="epochs of each run (200; quick: 40)")
    add("--only", nargs="+", choices=known, metavar="EXPERIMENT", help=f"of {', '.join(known)}")
    add("--quick", action="store_true", help="the four settings, 3 seeds, 40 epochs")
    add("--workers", type=number(int, 1), help="processes of one thread (2; by torchrun 1 of each)")
    add("--part", type=part_of, metavar="K/N", help="the K-th of N parts, like 3/8")
    add("--dry-run", action="store_true", help="list the stacks and stop")
    add("--work", nargs=2, metavar=("STACK", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(json.loads(args.work[0]), Path(args.work[1]))
    out = args.out or Path("runs/quick.jsonl" if args.quick else "results/study.jsonl")
    seeds, few = args.seeds or list(range(3 if args.quick else 10)), args.seeds or [0, 1, 2]
    epochs = args.epochs or (40 if args.quick else 200)
    chosen = args.only or (["report"] if args.quick else known)
    stacks = plan(seeds, epochs)
    for name in dict.fromkeys(stack["data"] for stack in stacks):
        level = {"experiment": "baselines", "data": name, "seeds": seeds, "arguments": []}
        level["stack"] = "baselines" if name == DATA else f"baselines {name}"
        splits = 2 * len(seeds) + 1 if name == DATA else len(seeds)
        stacks.append({**level, "runs": len(BASELINES) * splits})
    for name in VARIANTS:
        fault = {"experiment": "faults", "fault": name, "seeds": few, "arguments": []}
        stacks.append({**fault, "stack": f"faults {name}", "runs": len(few), "epochs": epochs})
    stacks = [stack for stack in stacks if stack["experiment"] in chosen]
    if args.dry_run and args.part:
        parser.error("--dry-run lists all parts: go without --part")
    if args.dry_run:
        for stack in stacks:
            print(f"{stack['stack']:32} {stack['runs']:4}  {' '.join(stack['arguments'])}")
        print(f"{len(stacks)} stacks, {sum(stack['runs'] for stack in stacks)} runs")
        return 0
    workers = args.workers or (1 if "TORCHELASTIC_RUN_ID" in os.environ else WORKERS)
    start, runs = time.monotonic(), args.runs or Path("runs") / out.stem
    try:
        with distributed.group():
            fine = compute(stacks, out, runs, workers, args.part)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
