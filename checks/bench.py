"""How fast is it? The training step and the evaluation against a plain loop and the floor.

    python -m checks.bench               # ratios to the plain loop, one thread, minutes
    python -m checks.bench --scaling     # cost against runs, batch size and interactions
    python -m checks.bench --torchjd     # task weighting beside TorchJD's, if it is installed
    python -m checks.bench --device cuda # 40 runs x 200 epochs on a GPU

Everything compared is measured in turn in one process, and ratios are medians of paired epochs:
absolute times drift from minute to minute. A table goes to stderr, one JSON line to stdout and to
results/bench.jsonl, with hardware, versions and commit. The plain loop is what one would write
first, and the floor the time that the step's matrix products and the optimizer's memory traffic
would take at the rates measured just before.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import math
import platform
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import run_folder
import train
from arguments import Parser, number, resolve
from checks.synthetic import synthetic
from data import load, random_split
from evaluation import Evaluator
from models import MultiTaskNet
from multitask import Stack

DIM, HIDDEN = 32, 64
WEIGHTINGS = "gls uw rlw famo mgda nash-mtl cagrad gradnorm pcgrad adatask rating-probe".split()
PEERS = ("torchjd", "cvxpy", "ecos", "quadprog")  # TorchJD and what its aggregators solve with
LARGE = 138_493, 26_744, 20_000_000  # users, items, interactions: as many as MovieLens 20M


def record(kind: str, device: str, values: dict) -> dict:
    """Where and when, before what was measured."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    hardware = names[0] if names else platform.processor() or platform.machine()
    if device != "cpu":
        hardware = torch.cuda.get_device_name()
    told = {"experiment": kind, "date": datetime.date.today().isoformat(), "hardware": hardware}
    return {**told, "threads": torch.get_num_threads(), **run_folder.provenance(), **values}


# ---- what is compared ----------------------------------------------------------------------


class PlainLoop:
    """One run, written with torch's own modules; a call trains an epoch and returns seconds."""

    def __init__(self, data, rows: np.ndarray, batch_size: int):
        columns = (data.user_ids, data.item_ids, data.ratings)
        self.users, self.items, self.ratings = (torch.tensor(c[rows]) for c in columns)
        self.n_items, self.batch_size = data.n_items, batch_size
        sizes = [(n, d) for n in (data.n_users, data.n_items) for d in (DIM, 1)]
        self.tables = torch.nn.ModuleList([torch.nn.Embedding(*size) for size in sizes])
        for table in self.tables:  # biases zero
            torch.nn.init.normal_(table.weight, 0, 1 / DIM if table.embedding_dim > 1 else 0)
        layers = torch.nn.Linear(3 * DIM, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1)
        self.head = torch.nn.Sequential(*layers)
        parameters = [*self.tables.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3, foreach=True)

    def score(self, u, users, q, items):
        _, user_bias, _, item_bias = self.tables
        return (u * q).sum(1) + user_bias(users).squeeze(1) + item_bias(items).squeeze(1)

    def __call__(self) -> float:
        start = time.perf_counter()
        order = torch.randperm(len(self.users))
        negatives = torch.randint(self.n_items, order.shape)
        batches = zip(*(ids.split(self.batch_size) for ids in (order, negatives)), strict=True)
        for rows, others in batches:
            users, items = self.users[rows], self.items[rows]
            u, q, n = self.tables[0](users), self.tables[2](items), self.tables[2](others)
            margin = self.score(u, users, q, items) - self.score(u, users, n, others)
            predicted = self.head(torch.cat([u, q, u * q], 1)).squeeze(1)
            regression = F.mse_loss(predicted, self.ratings[rows])
            self.optimizer.zero_grad()
            self.backward([(1 - torch.sigmoid(margin)).mean(), regression], [u, q, n])
            self.optimizer.step()
        return time.perf_counter() - start

    def backward(self, losses, shared):
        (0.99 * losses[0] + 0.01 * losses[1]).backward()


class TorchJDLoop(PlainLoop):
    """The same with an ``aggregator`` of the gradients in the tables, which both tasks share."""

    def backward(self, losses, shared):
        from torchjd import aggregation, autojac

        by_gram = isinstance(self.aggregator, aggregation.GramianWeightedAggregator)
        autojac.mtl_backward(losses, shared, parallel_chunk_size=1)  # both options: the fastest
        tables = self.tables[0].weight, self.tables[2].weight
        autojac.jac_to_grad(tables, self.aggregator, optimize_gramian_computation=by_gram)


class StackLoop:
    """R runs of ours; a call trains an epoch and returns seconds per run-epoch.

    All that the bench knows of Stack's interface stands here.
    """

    def __init__(
        self, data, rows, runs=1, batch_size=256, shared_dims=DIM, device="cpu",
        weighting="fixed", written_out=None, **options,
    ):  # fmt: skip
        net = MultiTaskNet(data.n_users, data.n_items, shared_dims=shared_dims, seeds=range(runs))
        columns = data.user_ids, data.item_ids, data.ratings, np.tile(rows, (runs, 1)), range(runs)
        options |= {"lambda_f": [0.99] * runs, "lambda_r": [0.01] * runs, "batch_size": batch_size}
        options["weighting"] = [weighting] * runs
        self.stack = Stack(net.to(device), *columns, **options)
        self.net, self.runs, self.epoch = self.stack.net, runs, 0
        self.stack.written_out = written_out  # False: by autograd
        self.stack.prepare()

    def __call__(self) -> float:
        self.epoch += 1
        return timed(lambda: self.stack.run_epoch(self.epoch - 1)) / self.runs


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(loops: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each loop in each of the rounds, after a round that isn't counted."""
    taken = [[loop() for loop in loops.values()] for _ in range(rounds + 1)][1:]
    return dict(zip(loops, map(list, zip(*taken, strict=True)), strict=True))


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def floor_seconds(data, n_rows: int, batch_size: int = 256) -> dict:
    """The least that a run-epoch can take: its matrix products and the optimizer's traffic."""
    n_parameters = (data.n_users + data.n_items) * (DIM + 1) + (3 * DIM + 2) * HIDDEN + 1
    a, b, x, y = *torch.randn(2, 512, 512), *torch.randn(2, n_parameters)
    product = min(timed(lambda: a @ b) for _ in range(50))
    copy = min(timed(lambda: torch.mul(x, 2, out=y)) for _ in range(200))
    flops_per_second, bytes_per_second = 2 * 512**3 / product, 8 * n_parameters / copy
    flops = 3 * 2 * n_rows * (3 * DIM + 1) * HIDDEN  # forward, and both gradients of each product
    # Adam reads parameter, gradient and two averages and writes three of them, each step.
    traffic = math.ceil(n_rows / batch_size) * 7 * 4 * n_parameters
    seconds = flops / flops_per_second + traffic / bytes_per_second
    return {"gflops": flops_per_second / 1e9, "gbytes": bytes_per_second / 1e9, "seconds": seconds}


# ---- the records ---------------------------------------------------------------------


def ratios(rounds: int) -> dict:
    """The step and the evaluation against the plain loop, on ml-100k."""
    data = load("ml-100k")
    split = random_split(data, 0)
    columns = data.user_ids, data.item_ids, data.ratings
    small = {"plain": PlainLoop(data, split.train, 256)}
    for runs in (1, 16):
        loop = small[f"R={runs}"] = StackLoop(data, split.train, runs)
        small[f"R={runs} autograd"] = StackLoop(data, split.train, runs, written_out=False)
        small[f"R={runs} separate"] = StackLoop(data, split.train, runs, shared_dims=0)
        evaluate = Evaluator(*columns, *(np.tile(x, (runs, 1)) for x in (split.test, split.train)))
        small[f"evaluation, R={runs}"] = lambda e=evaluate, ours=loop: (
            timed(lambda: e(ours.net)) / ours.runs
        )
    small |= {name: StackLoop(data, split.train, 16, weighting=name) for name in WEIGHTINGS}
    large = {
        "plain": PlainLoop(data, split.train, 4096),
        "eager": StackLoop(data, split.train, batch_size=4096),
        "compiled": StackLoop(data, split.train, batch_size=4096, compile=True),
    }
    floor = floor_seconds(data, len(split.train))
    seconds, at_4096 = in_turn(small, rounds), in_turn(large, 2 * rounds)
    plain, median = seconds["plain"], statistics.median
    return {
        "rounds": rounds,
        "plain_seconds": median(plain),
        "ratio_to_plain": {x: median_ratio(seconds[x], plain) for x in small if x != "plain"},
        "ratio_to_fixed": {x: median_ratio(seconds[x], seconds["R=16"]) for x in WEIGHTINGS},
        "floor": floor,
        "ratio_to_floor": {x: median(seconds[x]) / floor["seconds"] for x in ("R=1", "R=16")},
        "samples_per_second_at_4096": {x: len(split.train) / median(at_4096[x]) for x in large},
    }


def torchjd(rounds: int) -> dict:
    """A run's step with weights by the gradients: TorchJD's, and ours alone and in a stack."""
    from torchjd.aggregation import MGDA, CAGrad, NashMTL, UPGrad

    theirs = {"mgda": MGDA(), "nash-mtl": NashMTL(2), "upgrad": UPGrad(), "cagrad": CAGrad(0.5)}
    data, steps, loops = load("ml-100k"), 64, {}
    rows = random_split(data, 0).train[: steps * 256]
    for name, aggregator in theirs.items():
        loops[f"{name} torchjd"] = TorchJDLoop(data, rows, 256)
        loops[f"{name} torchjd"].aggregator = aggregator
        for runs in (1, 16):
            loops[f"{name} R={runs}"] = StackLoop(data, rows, runs, weighting=name)
    seconds = in_turn(loops, rounds)
    pairs = {name: (seconds[f"{name} R=16"], seconds[f"{name} torchjd"]) for name in theirs}
    return {
        "peers": {name: importlib.metadata.version(name) for name in PEERS},
        "milliseconds": {x: statistics.median(s) / steps * 1000 for x, s in seconds.items()},
        "ratio_to_torchjd": {name: median_ratio(*pair) for name, pair in pairs.items()},
    }


def scaling(rounds: int) -> dict:
    """Seconds per run-epoch against R and batch size; seconds and memory against interactions."""
    data = load("ml-100k")
    rows = random_split(data, 0).train

    def seconds(rounds, **options):
        loop = StackLoop(data, rows, **options)
        return statistics.median(in_turn({"stack": loop}, rounds)["stack"])

    by_runs = {n: seconds(max(1, rounds // 2), runs=n) for n in (1, 2, 4, 8, 16, 32, 64)}
    by_batch = {n: seconds(rounds, batch_size=n) for n in (256, 1024, 4096, 16384)}
    by_interactions = {}
    with tempfile.TemporaryDirectory() as folder:
        big = synthetic(*LARGE, seed=0)
        np.savez(Path(folder, "big.npz"), u=big.user_ids, i=big.item_ids, r=big.ratings)
        del big
        for n in (100_000, 1_000_000, 5_000_000, LARGE[2], "20_000_000, evaluated"):
            size, evaluated = (n, False) if isinstance(n, int) else (LARGE[2], True)
            # A process each, since memory is measured at its peak.
            with ProcessPoolExecutor(1, get_context("spawn"), initializer=set_machine) as pool:
                by_interactions[n] = pool.submit(point, folder, size, evaluated).result()
    costs = {"seconds_by_runs": by_runs, "seconds_by_batch_size": by_batch}
    return {**costs, "by_interactions": by_interactions}


def point(folder: str, n: int, evaluate: bool) -> dict:
    """Seconds of an epoch of n interactions at batch 16,384, and the process's peak memory.

    The first n of the large synthetic data, tables at full size. With ``evaluate``, also the
    seconds of ranking the catalogue for all users, 5% held out.
    """
    with np.load(Path(folder, "big.npz")) as arrays:
        users, items, ratings = (arrays[name][:n].copy() for name in "uir")
    data = SimpleNamespace(user_ids=users, item_ids=items, ratings=ratings)
    data.n_users, data.n_items, _ = LARGE
    rows = np.random.default_rng(0).permutation(n)
    test, rows = np.split(rows, [n // 20 if evaluate else 0])
    loop = StackLoop(data, rows, batch_size=16_384)
    loop.stack.step(next(loop.stack.batches(0)))  # which allocates what an epoch needs
    epochs = max(1, min(5, 2_000_000 // n))
    seconds = statistics.median(loop() for _ in range(epochs))
    values = {"seconds": seconds, "seconds_per_million": seconds / len(rows) * 1e6}
    values["training_peak_mib"] = peak_mib()
    if evaluate:
        evaluate_all = Evaluator(users, items, ratings, test[None], rows[None])
        values["evaluation_seconds"] = timed(lambda: evaluate_all(loop.net))
        values["peak_mib"] = peak_mib()
    return values


def peak_mib() -> float:
    """This process's peak memory, on Linux. (getrusage's would begin at its parent's.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def on_gpu(device: str) -> dict:
    """40 runs of 200 epochs on a GPU: seconds of training, the capture of its graph included."""
    data = load("ml-100k")
    torch.cuda.set_device(device)
    loop = StackLoop(data, random_split(data, 0).train, 40, device=device)
    torch.cuda.synchronize()
    seconds = timed(lambda: [loop() for _ in range(200)])
    return {"runs": 40, "epochs": 200, "seconds": seconds}


def set_machine() -> None:
    train.set_machine(resolve([]))  # as the command sets it, for all that is compared


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m checks.bench", description=__doc__)
    cuda = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    devices, add = ["cpu", *["cuda"] * bool(cuda), *cuda], parser.add_argument
    add("--scaling", action="store_true", help="cost against work")
    add("--torchjd", action="store_true", help="task weighting beside TorchJD's")
    add("--rounds", type=number(int, 1), default=7, help="paired epochs (7)")
    add("--device", default="cpu", choices=devices, help="cpu or cuda (cpu)")
    add("--out", type=Path, default=Path("results/bench.jsonl"), help="records")
    args = parser.parse_args(argv)
    set_machine()
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.open("a").close()  # a place that can't be written to is told now
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    if args.torchjd and (absent := [x for x in PEERS if not importlib.util.find_spec(x)]):
        print(f"skipped: requirements-peers.txt has {absent[0]}, not here", file=sys.stderr)
        return 0
    if args.device != "cpu":
        line = record("gpu", args.device, on_gpu(args.device))
    else:
        measured = torchjd if args.torchjd else scaling if args.scaling else ratios
        line = record(measured.__name__, "cpu", measured(args.rounds))
    for name, value in line.items():
        print(f"{name:28} {value}", file=sys.stderr)
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
