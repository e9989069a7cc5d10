"""What do threads, processes and size cost or gain? One record a measurement.

    python -m checks.scale              # all of them, in turn
    python -m checks.scale start sparse

What is compared is measured in turn, pair by pair, and a ratio is the median of the pairs' ratios:
absolute times drift from minute to minute. A line goes to stdout and to results/scale.jsonl.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

from arguments import Parser, number
from checks.bench import DIM, LARGE, StackLoop, in_turn, median_ratio, record, set_machine, timed
from checks.load import write_ratings
from checks.synthetic import synthetic
from data import load, random_split
from evaluation import SCORES, Evaluator
from models import MultiTaskNet
from study.records import append

HUGE = 10_000_000, 1_000_000  # users, items
# A command of train.py that ends with its first step: CPU seconds since torch was imported.
FIRST_STEP = """import os, sys, time, torch; start = time.process_time()
import train
step = train.Stack.step
def first(self, batch):
    step(self, batch)
    os.write(1, str(time.process_time() - start).encode())
    os._exit(0)
train.Stack.step = first
train.main()"""

MEASUREMENTS: dict[str, Callable[[int], dict]] = {}  # name -> function of the number of pairs


def measurement(function: Callable[[int], dict]) -> Callable[[int], dict]:
    MEASUREMENTS[function.__name__] = function
    return function


@measurement
def start(pairs: int) -> dict:
    """CPU seconds from after `import torch` to the first step: ml-100k, and 20 million, kept."""

    compiled = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # as at any start but the first

    def seconds(*words: str) -> float:
        command = [sys.executable, "-c", FIRST_STEP, *words, "--out"]
        out = tempfile.mkdtemp(dir=folder)
        return float(subprocess.check_output([*command, out], stderr=-3, env=compiled))

    with tempfile.TemporaryDirectory() as folder:
        write_ratings(Path(folder, "ratings.csv"), LARGE[2])
        small, large = (), ("--data", f"{folder}/ratings.csv")
        seconds(*large)  # reads the file, and keeps its arrays
        seconds(*small)
        taken = {"ml_100k": [seconds(*small) for _ in range(pairs)]}
        taken["20_million"] = [seconds(*large) for _ in range(pairs)]
    return {"cpu_seconds": {name: median(x) for name, x in taken.items()}}


@measurement
def sparse(pairs: int) -> dict:
    """Seconds of a step on huge tables, batch 256, dense and sparse."""
    n, rng = 100_000, np.random.default_rng(0)
    users, items = HUGE
    data, loops = SimpleNamespace(n_users=users, n_items=items), {}
    data.user_ids, data.item_ids = rng.integers(0, users, n), rng.integers(0, items, n)
    data.ratings = rng.integers(1, 6, n).astype(np.float32)
    for name in ("dense", "sparse"):
        loop = StackLoop(data, np.arange(n), written_out=name == "dense", sparse=name == "sparse")
        batches, step = loop.stack.batches(0), loop.stack.step
        loops[name] = lambda b=batches, step=step: timed(lambda: step(next(b)))
    taken = in_turn(loops, 4 * pairs)
    seconds = {name: median(x) for name, x in taken.items()}
    ratio = median_ratio(taken["dense"], taken["sparse"])
    size = dict(users=users, items=items, dim=DIM, pairs=4 * pairs)
    return {**size, "seconds": seconds, "ratio": ratio}


@measurement
def evaluation(pairs: int) -> dict:
    """Seconds of ranking the catalogue for all users, and of its matrix product alone."""
    data = synthetic(*LARGE)
    split, net = random_split(data, 0), MultiTaskNet(data.n_users, data.n_items)
    columns = data.user_ids, data.item_ids, data.ratings
    evaluate = Evaluator(*columns, split.test[None], split.train[None])
    users, items = net.users.detach()[0], net.items.detach()[0].T.contiguous()

    def product():
        for part in users.split(SCORES["cpu"] // data.n_items):
            part @ items

    loops = {"evaluation": lambda: timed(lambda: evaluate(net)), "product": lambda: timed(product)}
    taken = in_turn(loops, pairs := max(1, pairs // 2))
    seconds, ratio = {x: median(s) for x, s in taken.items()}, median_ratio(*taken.values())
    size = dict(users=data.n_users, items=data.n_items, dim=DIM, pairs=pairs)
    return {**size, "seconds": seconds, "ratio": ratio}


def trained(folder: str, processes: int, *words: str) -> list[dict]:
    """The results of a command of train.py by so many processes of a thread."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    command += ["train.py", "--shared", *words, "--overwrite", "--out", f"{folder}/{processes}"]
    last = json.loads(subprocess.check_output(command, stderr=-3).splitlines()[-1])
    return last if isinstance(last, list) else [last]


def compared(pairs: int, *words: str) -> dict:
    """Training by one process and by two: seconds, their ratio, and how far results differ."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = [[trained(folder, n, *words) for n in (1, 2)] for _ in range(pairs)]
    taken = [[max(x["train_seconds"] for x in results) for results in pair] for pair in rounds]
    one, two = zip(*taken, strict=True)
    told = {"seconds": {"1": median(one), "2": median(two)}, "ratio": median_ratio(one, two)}
    for name in ("mrr", "mse"):
        each = [[x[name] for x in results] for results in rounds[0]]
        told[f"{name}_differs"] = float(np.max(np.abs(np.divide(*each) - 1)))
    return told


@measurement
def shared_runs(pairs: int) -> dict:
    """Seconds of 16 and of 64 runs of ml-100k, as one stack and by two processes, each half."""
    told = {}
    for runs, epochs in ((16, 8), (64, 2)):
        told[f"of_{runs}"] = compared(pairs, "--seeds", f"0-{runs - 1}", "--epochs", str(epochs))
    return {"by_runs": told}


@measurement
def shared_batches(pairs: int) -> dict:
    """Seconds of training one run of MovieLens 20M's users and items, by one and two processes."""
    with tempfile.TemporaryDirectory() as folder:
        data, rows = f"{folder}/ratings.csv", 4_000_000
        write_ratings(Path(data), rows, LARGE[2])
        words = "--epochs", "1", "--data", data, "--batch-size"
        by_batch = {f"of_{n}": compared(pairs, *words, str(n)) for n in (16_384, 65_536)}
    return dict(users=LARGE[0], items=LARGE[1], interactions=rows, by_batch_size=by_batch)


@measurement
def threads(pairs: int) -> dict:
    """Seconds of an epoch of ml-100k by one thread and by two, at three sizes of batch."""
    data, loops, told = load("ml-100k"), {}, {}
    for size in (256, 4_096, 65_536):
        loop = StackLoop(data, random_split(data, 0).train, batch_size=size)
        for n in (1, 2):
            loops[size, n] = lambda n=n, loop=loop: (torch.set_num_threads(n), loop())[1]
    taken = in_turn(loops, 2 * pairs)
    torch.set_num_threads(1)
    for size, _ in list(loops)[::2]:
        one, two = taken[size, 1], taken[size, 2]
        told[f"of_{size}"] = {
            "seconds": [median(one), median(two)],
            "ratio": median_ratio(two, one),
        }
    return {"pairs": 2 * pairs, "by_batch_size": told}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m checks.scale", description=__doc__)
    add, names = parser.add_argument, list(MEASUREMENTS)
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (all)")
    add("--pairs", type=number(int, 1), default=5, help="measured of each (5)")
    add("--out", type=Path, default=Path("results/scale.jsonl"), help="records")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in MEASUREMENTS]:
        parser.error(f"{unknown[0]} is none of {', '.join(names)}")
    set_machine()
    for name in args.names or names:
        line = record(name, "cpu", {"pairs": args.pairs, **MEASUREMENTS[name](args.pairs)})
        append(args.out, [line])
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
