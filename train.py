"""Train MultiTaskNet on two tasks at once: which items a user picks, and how they are rated.

    python train.py --shared --lambda-f 0.99 --lambda-r 0.01            # one run
    python train.py --separate --seeds 0-9                              # ten runs as one stack
    python train.py --resume runs/NAME                                  # go on where it stopped
    torchrun --nproc-per-node 2 train.py --shared --seeds 0-15          # by two processes

Each run leaves a folder (see run_folder.py): look at it with `tensorboard --logdir runs`, draw it
with `python plot.py runs/NAME`. The last line on stdout is the result as JSON, the rest goes to
stderr. Bad input ends in one line and exit code 2.
"""

import ctypes
import functools
import json
import math
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C while modules are imported: an end without a traceback
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
import torch
from tqdm import tqdm

import distributed
import run_folder
from arguments import pick, resolve
from data import Interactions, Split, load, random_split, temporal_split
from evaluation import METRICS, Evaluator, baselines
from models import MultiTaskNet, Structure
from multitask import Options, Stack
from run_folder import RunFolder, load_run

__all__ = ["Training", "load_run", "main"]

MANY = 1_000_000  # rows of tables: beyond them nearly all of a step is clearing and updating all


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
        own = int(os.environ.get("LOCAL_RANK", 0)) % len(cuda)  # of torchrun's processes, each its
        index = torch.device(args["device"]).index
        torch.cuda.set_device(own if index is None else index)
    torch.set_num_threads(args["threads"])
    # Adam's averages of a row that is seldom drawn decay below 1e-38, where the CPU crawls.
    torch.set_flush_denormal(True)
    with suppress(OSError, AttributeError, TypeError):  # glibc alone: memory freed goes to the next
        libc = ctypes.CDLL(None)  # tensor, not the system: fresh pages cost as much as arithmetic
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    if args["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def memory_limit() -> float:
    """Bytes that this process can have at most, as far as the system tells."""
    limits = [math.inf]
    with suppress(AttributeError):  # Windows has no such call
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # a container's
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def memory_needed(args: dict, data: Interactions) -> str:
    """How much memory the embedding tables, their gradients and moments take, and what takes less.

    Raises ValueError where that alone is more than there is.
    """
    width = args["ranking_dim"] + args["rating_dim"] - args["shared_dims"]
    rows = data.n_users * (1 + args["item_history"]) + data.n_items * (1 + args["user_history"])
    copies = args["ensemble"] * ((4 if args["optimizer"] == "adam" else 2) - args["sparse"])
    size, limit = 4 * len(run_folder.plan_runs(args)) * copies * rows * width, memory_limit()
    told = f"the tables and their optimizer take {size / 2**30:.3g} GiB, all else comes on top; "
    told += "fewer --seeds or a smaller --embedding-dim or --batch-size take less"
    if size > limit:
        raise ValueError(f"there are {limit / 2**30:.3g} GiB of memory, {told}")
    return told


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
    train = [split.train for split in splits for _ in members]
    return Stack(
        net.to(args["device"]),
        data.user_ids,
        data.item_ids,
        data.ratings,
        np.stack(train) if len(train) > 1 else train[0][None],  # millions of rows are not copied
        seeds=keys,
        lambda_f=[run["lambda_f"] or 0.0 for run in runs for _ in members],
        lambda_r=[run["lambda_r"] or 0.0 for run in runs for _ in members],
        weighting=[run.get("weighting", "fixed") for run in runs for _ in members],
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
        with suppress(OSError):  # a print is not safe in a handler
            os.write(2, b"stopping after this epoch; once more stops at once\n")

    def __exit__(self, *exception) -> None:
        for kind, handler in zip(self.KINDS, self.before, strict=True):
            signal.signal(kind, handler)


# ---- training ------------------------------------------------------------------------------


class Training:
    """The runs of one command, from their first epoch to their results.

    Args:
        args: as arguments.resolve gives them.
        state: what ``save`` left in resume.pt, to go on from there. Runs share nothing: one that
            stops being finite stays in the stack and spoils no other.
        data: what ``args`` name, if it is loaded already.
    """

    def __init__(self, args: dict, state: dict | None = None, data: Interactions | None = None):
        set_machine(args)
        data = load(args["data"], args["columns"], args["titles"]) if data is None else data
        self.args, self.data, self.out, self.new = args, data, Path(args["out"]), state is None
        if self.data.n_items < 2:
            raise ValueError(f"{args['data']} has a single item: ranking needs at least 2")
        rated = any(args["lambda_r"]) or args["weighting"] != ["fixed"]
        if rated and np.ptp(self.data.ratings) == 0:
            told = f"{args['data']} has no rating but {self.data.ratings[0]:g}"
            raise ValueError(f"{told}: nothing to learn of it, give --lambda-r 0")
        self.planned = run_folder.plan_runs(args)
        trained, written = distributed.shares(len(self.planned))
        self.runs = self.planned[written]
        # Runs of one split hold one object, whose baselines are computed once.
        clip = args["clip_ratings"]
        split = functools.cache(lambda seed: make_split(args, data, seed))
        one = args["split"] == "temporal" or args["split_seed"] is not None
        self.splits = [split(0 if one else run["seed"]) for run in self.planned[trained]]
        self.baselines = functools.cache(lambda split: baselines(data, split, clip))
        self.stack = make_stack(args, self.data, self.planned[trained], self.splits)
        if distributed.size() > len(self.planned):
            self.stack.part = distributed.Part(self.stack)
        self.stack.weighting.log_for(args["weighting"])  # in each process's histories the same
        if state and state["data_sha256"] != data.sha256:
            raise ValueError(f"{args['data']} is no longer the data that {self.out} began on")
        if state:
            state = distributed.picked(state, args["ensemble"], self.planned)
            self.check(state)
        try:
            self.stack.prepare()
        except RuntimeError as error:
            if not args["compile"]:
                raise
            say(f"--compile: going on without, {str(error).splitlines()[0]}")
            args["compile"] = False
            self.stack = make_stack(args, data, self.planned[trained], self.splits)
            self.stack.prepare()
        if state:
            self.stack.load_state_dict(state["stack"])
        self.state = state or {
            "args": args,
            "launcher": distributed.launcher(),
            "data_sha256": data.sha256,
            "epoch": 0,
            "train_seconds": 0.0,
            "eval_seconds": 0.0,
            "configs": [run_folder.describe(args, data, run) for run in self.runs],
            "histories": [[] for _ in self.runs],
            "best": [None] * len(self.runs),  # metrics, and with --select the parameters
            "failed": {},  # by run: where and when it stopped being finite
        }
        self.saved, self.folders, self.begun = self.epoch, [], False

    def check(self, state: dict) -> None:
        """Raise ValueError for a state that isn't this code's, or no longer whole."""
        now = run_folder.commit()
        for began in state["configs"][:1]:
            if all(began.get(name) == value for name, value in now.items()):
                break
            say(f"commit {began['commit']} began this, {now['commit']} goes on with it")
        told, saved, code = f"--resume {self.out}: ", state.get("code", {}), self.code()
        other = [name for name in saved | code if saved.get(name) != code.get(name)]
        if not other:
            initial = self.stack.memory.values.clone()
            self.stack.load_state_dict(state["stack"])
            losses, broken = self.losses_of_a_batch(), self.stack.broken_tables()
            self.stack.memory.values.copy_(initial)  # where gradients.py is proved
            if not torch.allclose(losses, state["losses"], rtol=1e-4, equal_nan=True):
                other = ["the losses of a batch"]
        if other:
            raise ValueError(f"{told}the code has changed, it differs in {', '.join(other[:3])}")
        for r, table in enumerate(broken):
            if table and r // self.args["ensemble"] not in state["failed"]:
                raise ValueError(f"{told}resume.pt is damaged, {table} isn't finite")
        if state["stack"]["written_out"] is False:
            self.stack.written_out = False  # what began by autograd goes on by it

    def code(self) -> dict:
        """By name what an edit can change of what is saved: shapes, their order, columns."""
        named = dict(self.stack.net.named_parameters())
        states = {name: x for name, x in self.stack.state_dict().items() if torch.is_tensor(x)}
        shapes = {name: list(x.shape[1:]) for name, x in (named | states).items()}
        return shapes | {"the order of parameters": list(named), "the curves": run_folder.CURVES}

    @torch.no_grad()
    def losses_of_a_batch(self) -> torch.Tensor:
        """L_F and L_R of the first batch at the parameters as they are: (R, 2)."""
        self.stack.draw_from("saved losses")
        self.stack.net.eval()
        return torch.stack(self.stack.losses(self.stack.opening[0]), 1).cpu()

    def begin(self, folders: list[Path]) -> None:
        """Open the runs' folders, of a new command with a first checkpoint, in the place of what it
        replaces in ``folders``. If that fails nothing has changed."""
        first, self.begun = distributed.rank() == 0, True
        try:
            with distributed.agreed():
                if self.new and first:
                    run_folder.set_aside(self.out, folders)
            with distributed.agreed():
                parts = self.state["configs"], self.splits, self.state["histories"]
                for run, *own in zip(self.runs, *parts, strict=False):
                    self.folders.append(RunFolder(run["folder"], *own))
            if self.new:
                self.save()
        except BaseException:
            for folder in self.folders:
                with suppress(OSError):
                    folder.close()
            raise
        finally:
            if first:
                run_folder.settle(self.out)

    @functools.cached_property
    def evaluators(self) -> tuple[Evaluator | None, Evaluator | None]:
        """Of the test and the validation part, made after the first steps, where runs are told."""
        parts, validate = (self.args, self.data, self.splits), None
        if not self.runs:
            return None, None
        if self.args["validation"]:
            validate = make_evaluator(*parts, "validation", "train")
        return make_evaluator(*parts, "test", "train", "validation"), validate

    @property
    def epoch(self) -> int:
        """How many epochs are trained, and so the number of the next."""
        return self.state["epoch"]

    def train(self) -> list[dict]:
        """Train to the last epoch; the result of each run, in order."""
        if not self.begun:
            self.begin(run_folder.command_folders(self.args))
        epochs, failed, largest = self.args["epochs"], self.state["failed"], distributed.largest
        parts = vars(self.splits[0]).items()
        sizes = ", ".join(f"{len(rows):,} {part}" for part, rows in parts if len(rows))
        say(f"data: {self.data}; {self.args['split']} split: {sizes}")
        if (rows := self.data.n_users + self.data.n_items) > MANY and not self.args["sparse"]:
            say(f"each step updates all {rows:,} rows: --sparse, another algorithm, those touched")
        bar = tqdm(total=epochs, initial=self.epoch, unit="epoch", file=sys.stderr)
        with bar, StopSignals() as stop:
            while self.epoch < epochs and largest(len(self.runs) - len(failed)):
                self.train_epoch(bar)
                received = largest(stop.received or 0)
                if received or self.epoch % self.args["checkpoint_every"] == 0:
                    self.save()
                if received and self.epoch < epochs:
                    say(
                        f"stopped after epoch {self.epoch}; go on with "
                        f"python train.py --resume {self.out}"
                    )
                    sys.exit(128 + received)
        self.save()
        results = distributed.gathered([self.finish(r) for r in range(len(self.runs))])
        if results:
            run_folder.settle(self.out)
        return [result for some in results for result in some]

    def train_epoch(self, bar: tqdm) -> None:
        state, epoch, start = self.state, self.epoch, time.perf_counter()
        losses = self.stack.run_epoch(epoch)
        seconds, tests, checks = {"train_seconds": time.perf_counter() - start}, None, None
        seconds["eval_seconds"] = 0.0
        if (epoch + 1) % self.args["eval_every"] == 0 or epoch + 1 == self.args["epochs"]:
            test, validate = self.evaluators
            start = time.perf_counter()
            self.stack.net.eval()
            if test:
                tests = test(self.stack.net)
            checks = validate(self.stack.net) if validate else None
            seconds["eval_seconds"] = time.perf_counter() - start
        for name, value in seconds.items():
            state[name] += value
        broken = self.stack.broken_tables()
        for r in range(len(self.runs)):
            if r in state["failed"]:
                continue
            row = {"epoch": epoch}
            row |= {name: x[self.members(r)].mean().item() for name, x in losses.items()}
            row |= {name: tests[r][name] if tests else None for name in run_folder.CURVES}
            for name in run_folder.CURVES if self.args["validation"] else ():
                row[f"val_{name}"] = checks[r][name] if checks else None
            values = row | (tests[r] if tests else {})
            infinite = [k for k, x in values.items() if x is not None and not math.isfinite(x)]
            for name in self.stack.MEASURED:  # a gradient of norm zero has no cosine: no fault
                if name in infinite:
                    row[name] = None
                    infinite.remove(name)
            if culprits := [*filter(None, broken[self.members(r)]), *infinite]:
                self.fail(r, culprits[0])
                continue
            self.folders[r].append(row | seconds)
            if tests:
                self.remember(r, tests[r], row)
        state["epoch"] += 1
        bar.update()
        history = next((x for r, x in enumerate(state["histories"]) if r not in state["failed"]), 0)
        if history:  # of the first run that is left
            shown = dict(L_F="factorization_loss", L_R="regression_loss", mrr="mrr", mse="mse")
            shown = {label: history[-1][name] for label, name in shown.items()}
            bar.set_postfix({name: f"{x:.4f}" for name, x in shown.items() if x is not None})

    def members(self, r: int) -> slice:
        """Where run r's members stand in the stack."""
        m = self.args["ensemble"]
        return slice(r * m, r * m + m)

    def fail(self, r: int, culprit: str) -> None:
        """Record a run that is no longer finite; its last checkpoint is what it leaves."""
        epoch, name, help = self.epoch, self.runs[r]["name"], "a lower --lr may help"
        if culprit.removeprefix("val_") in METRICS:
            help = "parameters and losses are finite: look at that metric and the predictions"
        message = (
            f"run {name} is no longer finite at epoch {epoch}, in {culprit}: its checkpoint of "
            f"{self.saved} epochs is kept; {help}"
        )
        self.state["failed"][r] = {"epoch": epoch, "table": culprit, "error": message}
        self.folders[r].fail(self.state["failed"][r])

    def remember(self, r: int, metrics: dict, row: dict) -> None:
        """Keep what the run returns: its last epoch, or with --select its best so far."""
        best = {**metrics, "epoch": row["epoch"]}
        if self.args["select"]:
            mse, before = row["val_mse"], self.state["best"][r]
            value = math.log(row["val_mrr"]) - math.log(mse) if mse > 0 else math.inf
            if before and value <= before["value"]:
                return
            best |= {"value": value, "val_mrr": row["val_mrr"], "val_mse": row["val_mse"]}
            best["parameters"] = self.parameters(r)
        self.state["best"][r] = best

    def parameters(self, r: int) -> dict[str, torch.Tensor]:
        named = self.stack.net.named_parameters()
        return {name: value.detach()[self.members(r)].clone() for name, value in named}

    def returned(self, r: int) -> dict[str, torch.Tensor]:
        """The parameters that the run would return now."""
        return (self.state["best"][r] or {}).get("parameters") or self.parameters(r)

    def save(self) -> None:
        """Each run's parameters in its folder; then all that going on needs in one file."""
        for r, folder in enumerate(self.folders):
            if r not in self.state["failed"]:
                folder.save_parameters(self.returned(r))
        self.state |= {"stack": self.stack.state_dict(), "code": self.code()}
        self.state["losses"] = self.losses_of_a_batch()
        if whole := distributed.merged(self.state):
            content = run_folder.saved_bytes(torch.save, whole)
            run_folder.write_whole(self.out / "resume.pt", content)
        self.saved = self.epoch

    def finish(self, r: int) -> dict:
        """The run's result, written into its folder."""
        run, folder = run_folder.told(self.runs[r]), self.folders[r]
        if failure := self.state["failed"].get(r):
            folder.close()
            return run | failure
        best = self.state["best"][r].items()
        result = run | {k: v for k, v in best if k not in ("value", "parameters")}
        result |= {"epochs": self.epoch, "stack_size": len(self.planned)}
        result |= {name: self.state[name] for name in ("train_seconds", "eval_seconds")}
        result |= {"baselines": self.baselines(self.splits[r])}
        result |= {"folder": str(folder.folder), "run_id": folder.run_id}
        folder.finish(result, self.returned(r))
        return result


# ---- the command ---------------------------------------------------------------------------


# By a task's metric the weight that turns it off at 0, and its baselines, the one to beat last.
TASKS = {"mrr": ("lambda_f", ["popularity"]), "mse": ("lambda_r", ["global_mean", "biases"])}
ENOUGH = 4  # runs for an interval: of fewer it reaches over 2 standard deviations to each side


def closing_table(results: list[dict]) -> str:
    """A row for each setting, over its runs that stayed finite, and each baseline, over splits."""
    rows: dict[str, list[dict]] = {}
    for x in results:
        label = f"{x['lambda_f']:>6g} {x['lambda_r']:>6g}" if x["weighting"] == "fixed" else None
        rows.setdefault(label or x["weighting"], []).extend([x] if "error" not in x else [])
    splits = {str(x["baselines"]): x["baselines"] for x in results if "baselines" in x}
    for name, (_, methods) in TASKS.items():
        for method in methods if splits else ():
            own = [{name: levels[f"{method}_{name}"]} for levels in splits.values()]
            rows[method.replace("_", " ")] = own
    most = max(map(len, rows.values()))
    note = " ± sd" * (most > 1) + " [95% t-interval]" * (most >= ENOUGH)
    lines = [f"{'λ_F':>6} {'λ_R':>6} {'runs':>5}   {'MRR' + note:<33} MSE{note}"]
    for label, own in rows.items():
        mrr, mse = (cell(own, name) for name in TASKS)
        lines.append(f"{label:<13} {len(own):>5}   {mrr:<33} {mse}".rstrip())
    if "*" in "".join(lines):
        told = "* no better than popularity, or biases, alone: --validation 0.05 --select, which "
        lines.append(told + "returns the best epoch, or @recipes/best.txt may help")
    return "\n".join(lines)


def cell(rows: list[dict], name: str) -> str:
    """Mean, and of enough rows sd and t-interval; a star if a task that is trained has no gain."""
    from scipy.special import stdtrit  # late: a quantile is all that is needed of SciPy

    values, shown = np.array([x[name] for x in rows if name in x]), f".{METRICS[name].digits}f"
    n, told = len(values), f"{values.mean():{shown}}" if len(values) else ""
    if n > 1:
        told += f" ± {values.std(ddof=1):{shown}}"
    if n >= ENOUGH:
        half = stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n)
        told += f" [{values.mean() - half:{shown}}, {values.mean() + half:{shown}}]"
    weight, baseline = TASKS[name][0], f"{TASKS[name][1][-1]}_{name}"
    trained = [x for x in rows if "baselines" in x and x[weight] != 0]
    gain = sum(METRICS[name].better * (x[name] - x["baselines"][baseline]) for x in trained)
    return f"{told}*" if trained and gain <= 0 else told


class Unfailing:
    """A stream that may be closed, full or a broken pipe: what it can't take is lost, not a run."""

    def __init__(self, stream):
        self.stream, self.error = stream or open(os.devnull, "w"), None

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:  # what it holds is written again at the interpreter's end
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            self.error = error


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit code."""
    threading.excepthook = quiet_writers
    while (free := os.open(os.devnull, os.O_RDWR)) < 3:  # were one closed, a file of a run would
        pass  # get its number, and what is told with it
    os.close(free)
    out = Unfailing(sys.stdout)
    with distributed.group(), redirect_stdout(out), redirect_stderr(told_by_first(sys.stderr)):
        try:
            code = command(sys.argv[1:] if argv is None else argv)
        except KeyboardInterrupt:
            fail("interrupted")
            return 130
        return fail(f"stdout: {out.error}; the folder has the result") if out.error else code


def quiet_writers(problem) -> None:
    """A full disk also ends TensorBoard's writing thread; the main one tells of it, in one line."""
    if not isinstance(problem.exc_value, OSError):
        threading.__excepthook__(problem)


def told_by_first(stream) -> Unfailing:
    """Of several processes the others tell nothing but the errors that are theirs alone."""
    return Unfailing(None if distributed.rank() else stream)


def claim(argv: list[str], held: ExitStack) -> tuple[dict, dict | None, list[dict] | None]:
    """A command's arguments, the state that it goes on from, and its results if it is finished.

    Its folder is its own as long as ``held`` is open.
    """
    args = resolve(argv, __doc__)
    out, state, results = Path(args.get("resume") or args["out"]), None, None
    held.enter_context(run_folder.owned(out))
    if "resume" in args:
        state = run_folder.read_resume(out)
    elif distributed.restarted() and (out / "resume.pt").is_file():
        begun = run_folder.read_resume(out)
        state = begun if begun["launcher"] == distributed.launcher() else None
    if state:
        args, results = state["args"], run_folder.finished_results(state)
    folders = run_folder.command_folders(args)
    run_folder.check_free(out, folders)
    taken = [] if state else [folder for folder in folders if run_folder.holds_run(folder)]
    if taken and not args["overwrite"]:
        raise ValueError(
            f"{taken[-1]} already holds a run: --overwrite replaces it, "
            "--resume goes on with it, --out names another folder"
        )
    return args, state, results


def command(argv: list[str]) -> int:
    claimed, began, needs, first = None, False, "the data are too large", distributed.rank() == 0
    try:
        with ExitStack() as held:
            with distributed.agreed():
                claimed = claim(argv, held) if first else None
            args, state, results = distributed.of_first(claimed)
            if results is None:
                with distributed.agreed():
                    data = load(args["data"], args["columns"], args["titles"])
                    needs = memory_needed(args, data)
                    training = Training(args, state, data)
                training.begin(run_folder.command_folders(args))
                began = True
                results = training.train()
    except Exception as error:
        if not first and (isinstance(error, ConnectionError) or not began):
            return 2
        told = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in told:
            told = f"out of memory: {needs}"
        elif isinstance(error, RuntimeError) and "deterministic" in told:
            return fail(f"--deterministic: {args['device']} can't do it: {told}")
        elif not isinstance(error, OSError | run_folder.Mismatch):
            if began or not isinstance(error, ValueError):
                raise  # a bug
        if began:
            told += f"; train.py --resume {args['out']} goes on from the last checkpoint"
        return fail(told)
    if not first:
        return 0
    out = Path(args["out"])
    say(closing_table(results))
    runs = "the run is in" if len(results) == 1 else f"{len(results)} runs are in folders of"
    say(f"{runs} {args['out']}: plot.py, recommend.py and tensorboard --logdir show them")
    for result in results:
        if "error" in result:
            fail(result["error"])
    if (out / ".replaced").exists():
        say(f"{out / '.replaced'} keeps the run that was here before")
    print(json.dumps(results if len(results) > 1 else results[0], allow_nan=False))
    return 2 if any("error" in result for result in results) else 0


def fail(message: object) -> int:
    """One line on stderr; the exit code of every error that isn't a bug."""
    stream = sys.__stderr__ if distributed.rank() else sys.stderr
    print(f"train.py: error: {' '.join(str(message).split())}", file=stream)
    return 2


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    sys.exit(main())
