"""Train MultiTaskNet on two tasks at once: which items a user picks, and how they are rated.

    python train.py --shared --lambda-f 0.99 --lambda-r 0.01            # one run
    python train.py --separate --seeds 0-9                              # ten runs as one stack
    python train.py --resume runs/NAME                                  # go on where it stopped

Each run leaves a folder (see run_folder.py): look at it with `tensorboard --logdir runs`, draw it
with `python plot.py runs/NAME`. The last line on stdout is the result as JSON, the rest goes to
stderr. Bad input ends in one line and exit code 2.
"""

import ctypes
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import run_folder
from arguments import pick, resolve
from data import Interactions, Split, load, random_split, temporal_split
from evaluation import Evaluator, NonFinite
from models import MultiTaskNet, Structure
from multitask import Options, Stack
from run_folder import RunFolder, load_run

__all__ = ["Training", "load_run", "main"]


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


# ---- the parts -----------------------------------------------------------------------------


def set_machine(args: dict) -> None:
    """Device, threads and determinism. Raises ValueError for a device that isn't there."""
    cuda = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    if args["device"] not in ("cpu", *cuda, *["cuda"] * bool(cuda)):
        has = f"as well as {', '.join(cuda)}" if cuda else "this machine has no CUDA device"
        raise ValueError(f"--device {args['device']} isn't there: use cpu; {has}")
    if args["device"] != "cpu":
        torch.cuda.set_device(torch.device(args["device"]).index or 0)
    torch.set_num_threads(args["threads"])
    # Adam's averages of a row that is seldom drawn decay below 1e-38, where the CPU crawls.
    torch.set_flush_denormal(True)
    with suppress(OSError, AttributeError):  # glibc: memory freed goes to the next tensor, not to
        libc = ctypes.CDLL(None)  # the system, whose fresh pages cost as much as the arithmetic
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    if args["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    compiler = os.environ.get("CXX") or "g++"
    if args["compile"] and args["device"] == "cpu" and not shutil.which(compiler):
        say(f"--compile: no C++ compiler here ({compiler}), going on without")
        args["compile"] = False


def make_split(args: dict, data: Interactions, seed: int) -> Split:
    if args["split"] == "temporal":
        return temporal_split(data, validation_fraction=args["validation"])
    seed = seed if args["split_seed"] is None else args["split_seed"]
    return random_split(data, seed, validation_fraction=args["validation"])


def make_stack(args: dict, data: Interactions, runs: list[dict], splits: list[Split]) -> Stack:
    """The stack of all runs, M members each: member 0 is the run alone."""
    members = range(args["ensemble"])
    keys = [f"{run['seed']}.{m}" if m else run["seed"] for run in runs for m in members]
    net = MultiTaskNet(data.n_users, data.n_items, seeds=keys, **pick(Structure, args))
    return Stack(
        net.to(args["device"]),
        data.user_ids,
        data.item_ids,
        data.ratings,
        np.stack([split.train for split in splits for _ in members]),
        seeds=keys,
        lambda_f=[run["lambda_f"] for run in runs for _ in members],
        lambda_r=[run["lambda_r"] for run in runs for _ in members],
        **pick(Options, args),
    )


def make_evaluator(args, data: Interactions, splits: list[Split], held_out: str, *seen: str):
    """Evaluator of the runs on their "test" or "validation" part; the parts seen rank last."""
    known = [np.concatenate([getattr(split, part) for part in seen]) for split in splits]
    trained = [data.ratings[split.train] for split in splits]
    return Evaluator(
        data.user_ids,
        data.item_ids,
        data.ratings,
        np.stack([getattr(split, held_out) for split in splits]),
        np.stack(known),
        members=args["ensemble"],
        clip=[(r.min(), r.max()) for r in trained] if args["clip_ratings"] else None,
        chunk=args["eval_chunk"],
        device=args["device"],
    )


class StopSignals:
    """Ctrl-C and SIGTERM end the epoch in hand, not the process; a second one stops at once."""

    KINDS = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self):
        self.received: int | None = None
        self.before = [signal.signal(kind, self.receive) for kind in self.KINDS]
        return self

    def receive(self, kind: int, frame) -> None:
        self.received = kind
        for each in self.KINDS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"stopping after this epoch; once more stops at once\n")  # safe in a handler

    def __exit__(self, *exception) -> None:
        for kind, handler in zip(self.KINDS, self.before, strict=True):
            signal.signal(kind, handler)


# ---- training ------------------------------------------------------------------------------


class Training:
    """The runs of one command, from their first epoch to their results.

    Args:
        args: as arguments.resolve gives them.
        state: what ``save`` left in resume.pt, to go on from there.
    """

    def __init__(self, args: dict, state: dict | None = None):
        set_machine(args)
        self.args, self.out, self.epochs = args, Path(args["out"]), args["epochs"]
        self.data = load(args["data"])
        if self.data.n_items < 2:
            raise ValueError(f"{args['data']} has a single item: ranking needs at least 2")
        self.runs = run_folder.plan_runs(args)
        self.splits = [make_split(args, self.data, run["seed"]) for run in self.runs]
        self.stack = make_stack(args, self.data, self.runs, self.splits)
        self.active = list(range(len(self.runs)))  # the runs that are still finite
        self.epoch, self.seconds = 0, [0.0, 0.0]  # of training, of evaluation
        self.best: list[dict | None] = [None] * len(self.runs)  # metrics, and with --select more
        self.failed: dict[int, dict] = {}
        self.configs = [
            run_folder.describe(args, self.data, run, len(self.runs)) for run in self.runs
        ]
        histories: list[list[dict]] = [[] for _ in self.runs]
        if state is not None:
            if state["data_sha256"] != self.data.sha256:
                raise ValueError(f"{args['data']} is no longer the data that {self.out} began on")
            if not state["stack"]["written_out"]:
                self.stack.written_out = False  # it began by autograd
        self.stack.prepare()
        if state is not None:
            self.drop_to(state["active"])
            if self.active:
                self.stack.load_state_dict(state["stack"])
            self.epoch, self.seconds = state["epoch"], state["seconds"]
            self.best, self.failed = state["best"], state["failed"]
            self.configs, histories = state["configs"], state["histories"]
        self.saved = self.epoch
        self.make_evaluators()
        if state is None and args["overwrite"]:
            for folder in run_folder.command_folders(args):
                run_folder.clear(folder)
        self.folders = [
            RunFolder(run["folder"], *parts)
            for run, *parts in zip(self.runs, self.configs, self.splits, histories, strict=True)
        ]

    def train(self) -> list[dict]:
        """Train to the last epoch; the result of each run, in order."""
        if self.epoch == 0:
            self.save()
        bar = tqdm(total=self.epochs, initial=self.epoch, unit="epoch", file=sys.stderr)
        with bar, StopSignals() as stop:
            while self.epoch < self.epochs and self.active:
                self.train_epoch(bar)
                if stop.received or self.epoch % self.args["checkpoint_every"] == 0:
                    self.save()
                if stop.received and self.epoch < self.epochs:
                    say(
                        f"stopped after epoch {self.epoch}; go on with "
                        f"python train.py --resume {self.out}"
                    )
                    sys.exit(128 + stop.received)
        self.save()
        return [self.finish(r) for r in range(len(self.runs))]

    def train_epoch(self, bar: tqdm) -> None:
        start = time.perf_counter()
        losses = self.losses_by_run(self.stack.run_epoch(self.epoch))
        trained = time.perf_counter()
        due = (self.epoch + 1) % self.args["eval_every"] == 0 or self.epoch + 1 == self.epochs
        tests, checks = self.evaluate() if due else ({}, {})
        seconds = trained - start, time.perf_counter() - trained
        self.seconds = [total + part for total, part in zip(self.seconds, seconds, strict=True)]
        for r in self.active:
            row = {"epoch": self.epoch, **losses[r]}
            for name in run_folder.CURVES:
                row[name] = tests[r][name] if due else None
            for name in run_folder.CURVES if self.validate else ():
                row[f"val_{name}"] = checks[r][name] if due else None
            row["train_seconds"], row["eval_seconds"] = seconds
            self.folders[r].append(row)
            if due:
                self.remember(r, tests[r], row)
        if self.active:
            first = self.active[0]
            shown = {"L_F": losses[first]["factorization_loss"]}
            shown["L_R"] = losses[first]["regression_loss"]
            for name in ("mrr", "mse") if self.best[first] else ():
                shown[name] = self.best[first][name]
            bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()})
        self.epoch += 1
        bar.update()

    def losses_by_run(self, losses: dict[str, torch.Tensor]) -> dict[int, dict[str, float]]:
        """Each run's losses, its members averaged. Runs that are no longer finite are dropped."""
        by_run, broken = {}, {}
        for place, r in enumerate(self.active):
            own = {
                name: values.unflatten(0, (len(self.active), -1))[place].mean().item()
                for name, values in losses.items()
            }
            losses_of_tasks = ("factorization_loss", "regression_loss")
            infinite = [name for name in losses_of_tasks if not math.isfinite(own[name])]
            if table := self.stack.broken_table(self.members(r)) or next(iter(infinite), None):
                broken[r] = table
            # A gradient of norm zero has no cosine: not measured rather than not finite.
            by_run[r] = {k: v if math.isfinite(v) else None for k, v in own.items()}
        self.drop(broken)
        return by_run

    def make_evaluators(self) -> None:
        self.test = self.validate = None
        if self.active:
            splits = [self.splits[r] for r in self.active]
            self.test = make_evaluator(self.args, self.data, splits, "test", "train", "validation")
            if self.args["validation"]:
                self.validate = make_evaluator(self.args, self.data, splits, "validation", "train")

    def evaluate(self) -> tuple[dict[int, dict], dict[int, dict]]:
        """Test and validation metrics by run. Runs that predict no numbers are dropped."""
        while self.active:
            try:
                tests = dict(zip(self.active, self.test(self.stack.net), strict=True))
                checks = self.validate(self.stack.net) if self.validate else []
                return tests, dict(zip(self.active, checks, strict=bool(checks)))
            except NonFinite as error:
                self.drop({self.active[place]: what for place, what in error.runs.items()})
        return {}, {}

    def members(self, r: int) -> list[int]:
        """Where run r's members stand in the stack."""
        first = self.active.index(r) * self.args["ensemble"]
        return list(range(first, first + self.args["ensemble"]))

    def drop_to(self, active: list[int]) -> None:
        if active and active != self.active:
            self.stack.keep([place for r in active for place in self.members(r)])
        self.active = active

    def drop(self, broken: dict[int, str]) -> None:
        """Go on without these runs, each recorded with the table that broke."""
        for r, table in broken.items():
            message = (
                f"run {self.runs[r]['name']} is no longer finite at epoch {self.epoch}, in "
                f"{table}: its checkpoint of {self.saved} epochs is kept; a lower --lr may help"
            )
            self.failed[r] = dict(epoch=self.epoch, table=table, error=message)
            self.folders[r].fail(self.failed[r])
        if broken:
            self.drop_to([r for r in self.active if r not in broken])
            self.make_evaluators()

    def remember(self, r: int, metrics: dict, row: dict) -> None:
        """Keep what the run returns: its last epoch, or with --select its best so far."""
        best = {**metrics, "epoch": self.epoch}
        if self.args["select"]:
            mse = row["val_mse"]
            value = math.log(row["val_mrr"]) - math.log(mse) if mse > 0 else math.inf
            if self.best[r] and value <= self.best[r]["value"]:
                return
            best |= {"value": value, "val_mrr": row["val_mrr"], "val_mse": row["val_mse"]}
            best["parameters"] = self.parameters(r)
        self.best[r] = best

    def parameters(self, r: int) -> dict[str, torch.Tensor]:
        named = self.stack.net.named_parameters()
        return {name: value.detach()[self.members(r)] for name, value in named}

    def returned(self, r: int) -> dict[str, torch.Tensor]:
        """The parameters that the run would return now."""
        return (self.best[r] or {}).get("parameters") or self.parameters(r)

    def save(self) -> None:
        """All that going on needs in one file; then each run's parameters in its folder."""
        state = {
            "args": self.args,
            "data_sha256": self.data.sha256,
            "active": self.active,
            "stack": self.stack.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best": self.best,
            "failed": self.failed,
            "configs": self.configs,
            "histories": [folder.history for folder in self.folders],
        }
        run_folder.write_whole(self.out / "resume.pt", run_folder.saved_bytes(torch.save, state))
        self.saved = self.epoch
        for r in self.active:
            self.folders[r].save_parameters(self.returned(r))

    def finish(self, r: int) -> dict:
        """The run's result, written into its folder."""
        run, folder = run_folder.told(self.runs[r]), self.folders[r]
        if r in self.failed:
            folder.close()
            return {**run, **self.failed[r]}
        result = {
            **run,
            **{k: v for k, v in self.best[r].items() if k not in ("value", "parameters")},
            "epochs": self.epoch,
            "stack_size": len(self.runs),
            "train_seconds": self.seconds[0],
            "eval_seconds": self.seconds[1],
            "folder": str(folder.folder),
            "run_id": folder.run_id,
        }
        folder.finish(result, self.returned(r))
        return result


# ---- the command ---------------------------------------------------------------------------


def closing_table(results: list[dict]) -> str:
    """Mean, standard deviation and 95% t-interval of the mean over the seeds of each setting."""
    from scipy.special import stdtrit  # late: a quantile is all that is needed of SciPy

    lines = [f"{'λ_F':>6} {'λ_R':>6} {'runs':>5}   {'MRR':<32} MSE"]
    weights = dict.fromkeys((result["lambda_f"], result["lambda_r"]) for result in results)
    for pair in weights:
        own = [x for x in results if (x["lambda_f"], x["lambda_r"]) == pair and "mrr" in x]
        cells = []
        for name in ("mrr", "mse"):
            values = np.array([result[name] for result in own])
            if len(values) < 2:
                cells.append("".join(f"{value:.4f}" for value in values))
                continue
            mean, sd = values.mean(), values.std(ddof=1)
            half = stdtrit(len(values) - 1, 0.975) * sd / math.sqrt(len(values))
            cells.append(f"{mean:.4f} ± {sd:.4f} [{mean - half:.4f}, {mean + half:.4f}]")
        lines.append(f"{pair[0]:>6g} {pair[1]:>6g} {len(own):>5}   {cells[0]:<32} {cells[1]}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit code."""
    threading.excepthook = quiet_writers
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        fail("interrupted")
        return 130


def quiet_writers(problem) -> None:
    """A full disk also ends TensorBoard's writing thread; the main one tells of it, in one line."""
    if not isinstance(problem.exc_value, OSError):
        threading.__excepthook__(problem)


def command(argv: list[str]) -> int:
    training = results = state = None
    try:
        args = resolve(argv, __doc__)
        if "resume" in args:
            state = run_folder.read_resume(Path(args["resume"]))
            results, args = run_folder.finished_results(state), state["args"]
        else:
            taken = [
                folder
                for folder in run_folder.command_folders(args)
                if run_folder.holds_run(folder)
            ]
            if taken and not args["overwrite"]:
                raise ValueError(
                    f"{taken[-1]} already holds a run: --overwrite replaces it, "
                    "--resume goes on with it, --out names another folder"
                )
        if results is None:
            training = Training(args, state)
    except (ValueError, OSError) as error:
        return fail(error)
    if training is not None:
        try:
            results = training.train()
        except (OSError, FloatingPointError) as error:
            return fail(
                f"{error}; train.py --resume {args['out']} goes on from the last checkpoint"
            )
        except RuntimeError as error:
            if not args["deterministic"] or "deterministic" not in str(error):
                raise
            return fail(f"--deterministic: {args['device']} can't do it: {error}")
    say(closing_table(results))
    for result in results:
        if "error" in result:
            fail(result["error"])
    print(json.dumps(results if len(results) > 1 else results[0], allow_nan=False))
    return 2 if any("error" in result for result in results) else 0


def fail(message: object) -> int:
    """One line on stderr; the exit code of every error that isn't a bug."""
    print(f"train.py: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
