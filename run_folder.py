"""The run folder: what training leaves of a run, how to go on with it, and how to get it back.

    config.json        every argument, resolved; versions, commit, device, SHA-256 of the data
    events.out.tfevents.*   the TensorBoard curves, a step an epoch
    history.csv        a row an epoch
    split.npz          train, validation, test: row indices into the data
    checkpoint.pt      the parameters, as returned; the same in model.safetensors
    result.json        the final metrics: a run that has it is finished
    failed.json        instead of it, where and when a run stopped being finite
    resume.pt          all that going on with a command needs, in the command's own folder

Every file of a run carries its run id, a digest of config.json. Files that matter are written whole
or not at all (temporary file, flush, rename), and none is ever read with pickle enabled. While a
command runs its folders are its own, and the run that it replaces waits in .replaced.
"""

import contextlib
import csv
import difflib
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from arguments import pick, plain, resolve, short_name
from data import Interactions, Split, load
from evaluation import METRICS
from models import MultiTaskNet, OneRun, Structure
from multitask import Options
from ratings_file import require

if TYPE_CHECKING:
    import pandas as pd

TAGS = {  # columns of history.csv -> TensorBoard's names, the report's for its five curves
    "factorization_loss": "training/Factorization Loss",
    "regression_loss": "training/MSE",
    "joint_loss": "training/Joint Loss",
}
CURVES = [name for name, metric in METRICS.items() if metric.tag]  # evaluated every epoch
TAGS |= {name: METRICS[name].tag for name in CURVES}
# TensorBoard opens the first two groups by name, eval and training: all else is named behind them.
TAGS |= {f"val_{name}": METRICS[name].tag.replace("eval/", "validation/") for name in CURVES}
TAGS |= {"weight_f": "weights/ranking", "weight_r": "weights/rating"}
TAGS["norm_ratio"] = "weights/gradient norm of ranking over rating, of what is shared"
TAGS["weighted_norm_ratio"] = "weights/weighted gradient norm of ranking over rating"
for _table in ("users", "items"):
    TAGS[f"{_table}_cosine"] = f"weights/{_table}, cosine of the tasks' gradients"
    TAGS[f"{_table}_norm_ratio"] = f"weights/{_table}, gradient norm of ranking over rating"
OURS = ("config.json", "history.csv", "split.npz", "checkpoint.pt", "model.safetensors")
OURS += ("result.json", "failed.json", "resume.pt")


# ---- files ---------------------------------------------------------------------------------


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all: temporary file, flush, rename."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def saved_bytes(save: Callable, *values, run_id: str = "", **named) -> memoryview:
    """What torch.save or numpy.savez writes: in memory, since on a full disk they raise oddly."""
    buffer = io.BytesIO()
    values = (*values, buffer) if save is torch.save else (buffer, *values)
    save(*values, **named)
    if run_id:  # both write zip archives, which have room for a comment
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.comment = run_id.encode()
    return buffer.getbuffer()


def write_json(path: Path, value: object) -> None:
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def intact(path: Path, read: Callable):
    """read(path). Raises ValueError, which names the file, where its content can't be read."""
    try:
        return read(path)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from None


def read_json(path: Path) -> dict:
    """A JSON object."""
    return intact(path, lambda path: dict(json.loads(path.read_text(encoding="utf-8")).items()))


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a history.csv, but for a last one that is torn."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return list(csv.DictReader(whole.splitlines()))


def run_ids(path: Path) -> set[str | None]:
    """The run ids that a file of a run carries; of a history without a row none."""
    if path.suffix == ".json":
        return {read_json(path).get("run_id")}
    if path.suffix == ".csv":
        return {row["run_id"] for row in read_history(path)}
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "pt") as file:
            return {(file.metadata() or {}).get("run_id")}
    with zipfile.ZipFile(path) as archive:
        return {archive.comment.decode(errors="replace")}


def check_ids(folder: Path, run_id: str) -> None:
    """Raise ValueError where a file in the folder is damaged or of another run."""
    for name in OURS[:-1]:
        ids = intact(folder / name, run_ids) if (folder / name).is_file() else {run_id}
        require(ids <= {run_id}, f"{folder}: {name} and config.json are of different runs")


def holds_run(folder: Path) -> bool:
    """Whether a run, or a stack of runs, finished or not, stands in the folder.

    Raises ValueError when there is a file of the name of one of ours that isn't of a run.
    """
    if (folder / "resume.pt").exists():
        return True
    with contextlib.suppress(OSError, ValueError):
        if "data_sha256" in read_json(folder / "config.json"):
            return True
    for name in OURS:
        told = f"{folder} has a {name} that is no run's: name another folder by --out"
        require(not (folder / name).exists(), told)
    return False


def own_files(folder: Path) -> list[Path]:
    """The files of a run, or of a stack, in a folder: of TensorBoard's those with its run id."""
    names = [*OURS]
    with contextlib.suppress(OSError, ValueError):
        run_id = read_json(folder / "config.json").get("run_id", "")
        names.append(f"events.out.tfevents.*{run_id}")
    return [path for name in names for path in folder.glob(name)]


# ---- whose a folder is ---------------------------------------------------------------------


@contextlib.contextmanager
def owned(out: Path):
    """Within it a folder, made if need be, is one command's; to read it takes no right.

    The lock is the system's, on a file .lock: it is gone with the process, however that ends.
    Raises ValueError when it is another command's.
    """
    with contextlib.ExitStack() as undo:
        for path in [*reversed(out.parents), out]:
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                undo.callback(remove, path)
        undo.enter_context(locked(out))
        undo.callback(remove, out / ".lock")
        remove_torn(out)
        settle(out)
        yield


@contextlib.contextmanager
def locked(folder: Path):
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        told = "belongs to another command while that runs: name another by --out, or wait"
        raise ValueError(f"{folder} {told}") from None


def check_free(out: Path, folders: list[Path]) -> None:
    """Raise ValueError where another command owns a folder of the one in ``out``, or that above."""
    for folder in [out.resolve().parent, *(folder for folder in folders if folder != out)]:
        if (folder / ".lock").exists():
            with locked(folder):
                pass


def remove(path: Path) -> None:
    """Remove a file or an empty folder if that can be done."""
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()


def remove_torn(folder: Path) -> None:
    """Remove what a kill left half written."""
    for name in OURS:
        for path in folder.glob(f".{name}.*part"):
            path.unlink()


def clear(folder: Path) -> None:
    """Remove the run in a folder, our own files and nothing else, and the folder if it is empty."""
    for path in own_files(folder):
        path.unlink()
    remove_torn(folder)
    remove(folder)


def set_aside(out: Path, folders: list[Path]) -> None:
    """Move the runs in a new command's folders into out/.replaced; ``settle`` decides about them.

    If they replace others themselves and were stopped, those stay there and they go.
    """
    aside, part = out / ".replaced", out / ".replaced.part"
    into = aside if aside.exists() else part
    for folder in folders:
        target = into / folder.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        if into == part:
            for path in [*own_files(folder), *folder.glob("curves.[ps][nv]g")]:
                path.rename(target / path.name)
        clear(folder)
    if into == part:
        part.rename(aside)


def settle(out: Path) -> None:
    """End the replacing of a run, wherever it stopped: the old one is back, or waits, or is gone.

    Back if the new one has no checkpoint, gone if that has a result or there was none.
    """
    aside, part = out / ".replaced", out / ".replaced.part"
    if aside.exists() and not (out / "resume.pt").exists():
        for path in [aside, *aside.rglob("*")]:
            clear(out / path.relative_to(aside))
        aside.rename(part)
    for path in [path for path in part.rglob("*") if path.is_file()]:
        home = out / path.relative_to(part)
        home.parent.mkdir(parents=True, exist_ok=True)
        path.replace(home)
    shutil.rmtree(part, ignore_errors=True)
    with contextlib.suppress(OSError, ValueError):
        waits = any(path.is_file() for path in aside.rglob("*"))
        results = finished_results(read_resume(out)) if waits else [{}]
        if any("error" not in result for result in results or []):
            shutil.rmtree(aside)


# ---- what a command will leave, and what it says of itself ---------------------------------


def plan_runs(args: dict) -> list[dict]:
    """The runs of a command, in order: seed, weighting, its λ if fixed, name, and folder."""
    runs = []
    for method in args["weighting"]:
        pairs = [(None, None)]
        if method == "fixed":
            pairs = zip(args["lambda_f"], args["lambda_r"], strict=True)
        for f, r in pairs:
            weights = method if f is None else f"f{plain(f)}-r{plain(r)}"
            for seed in args["seeds"]:
                run = {"name": short_name([weights, f"seed{seed}"]), "seed": seed}
                runs.append(run | {"weighting": method, "lambda_f": f, "lambda_r": r})
    for run in runs:
        run["folder"] = Path(args["out"]) / (run["name"] if len(runs) > 1 else "")
    return runs


def command_folders(args: dict) -> list[Path]:
    """The folders that a command writes, and those of the command before it in the same place."""
    before = []
    with contextlib.suppress(OSError, ValueError):
        before = plan_runs(read_resume(Path(args["out"]))["args"])
    folders = [run["folder"] for run in [*before, *plan_runs(args)]]
    return list(dict.fromkeys([*folders, Path(args["out"])]))


@functools.cache
def commit() -> dict:
    """The commit of this code and whether the code differs from it; outside a git checkout of its
    own None."""
    here, top = Path(__file__).resolve().parent, ""
    git = functools.partial(subprocess.run, cwd=here, capture_output=True, check=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = git(["git", "rev-parse", "HEAD", "--show-toplevel"]).stdout
        head, _, top = os.fsdecode(told).strip().partition("\n")
        changed = git(["git", "--no-optional-locks", "status", "--porcelain", "--", "*.py"]).stdout
    if not top or Path(top).resolve() != here:
        return {"commit": None, "commit_dirty": None}
    return {"commit": head, "commit_dirty": bool(changed)}


def provenance() -> dict:
    """What computed a result: versions and commit."""
    versions = {"torch": str(torch.__version__), "numpy": np.__version__}
    return {"versions": {"python": platform.python_version(), **versions}, **commit()}


def describe(args: dict, data: Interactions, run: dict) -> dict:
    """What config.json says of a run; ``run_id`` is a digest of all the rest."""
    stacked = ("seeds", "weighting", "lambda_f", "lambda_r", "out", "overwrite")
    config = {
        **told(run),
        **{name: value for name, value in args.items() if name not in stacked},
        "split_seed": run["seed"] if args["split_seed"] is None else args["split_seed"],
        "n_users": data.n_users,
        "n_items": data.n_items,
        "data_sha256": data.sha256,
        "stack_size": len(plan_runs(args)),
        **provenance(),
    }
    return config | {"run_id": digest(config)}


def digest(config: dict) -> str:
    told = {name: value for name, value in config.items() if name != "run_id"}
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def told(run: dict) -> dict:
    """What every result tells of its run."""
    return {name: run[name] for name in ("name", "seed", "weighting", "lambda_f", "lambda_r")}


# ---- writing -------------------------------------------------------------------------------


FIRST = "lambda_f lambda_r loss lr seed shared_dims weighting".split()


def hyperparameters(config: dict) -> dict:
    """Of a config.json what TensorBoard's HParams tab tells of the run.

    It shows five: those that differ between runs first, and then by name, hence the "with".
    """
    others = pick(Structure, config) | pick(Options, config)
    others |= {name: config[name] for name in "data split validation select clip_ratings".split()}
    others["data"] = os.fsencode(config["data"]).decode(errors="backslashreplace")
    others = {f"with {k}": v for k, v in others.items() if k not in FIRST}
    shown = {name: config[name] for name in FIRST} | others
    return {k: str(v) if isinstance(v, list) else v for k, v in shown.items()}


class Mismatch(Exception):
    """A run would not go on as what it began as."""


class RunFolder:
    """One run's folder while it trains: its history, in history.csv and in TensorBoard.

    Args:
        folder: made if it isn't there.
        config: what config.json holds.
        history: the rows so far; whatever stands in the folder is replaced by them, so a resumed
            run has every epoch once.
    """

    def __init__(self, folder: Path, config: dict, split: Split, history: list[dict]):
        self.folder, self.config, self.history = folder, config, history
        self.run_id = config["run_id"]
        folder.mkdir(exist_ok=True)
        remove_torn(folder)
        write_json(folder / "config.json", config)
        content = saved_bytes(np.savez, run_id=self.run_id, **vars(split))
        write_whole(folder / "split.npz", content)
        stale = list(folder.glob(f"events.out.tfevents.*.{self.run_id}"))
        self.events = SummaryWriter(folder, filename_suffix=f".{self.run_id}")
        for row in history:
            self._log(row)
        self.events.flush()
        for path in stale:
            path.unlink()
        lines = [self._line(history[0])] if history else []
        lines += [self._line(row.values()) for row in history]
        write_whole(folder / "history.csv", b"".join(lines))

    def append(self, row: dict) -> None:
        """Record an epoch. None stands for a value that was not measured."""
        row = {**row, "run_id": self.run_id, "time": time.time()}
        if self.history and (other := row.keys() ^ self.history[-1].keys()):
            raise Mismatch(f"the history of {self.folder} began without or with {min(other)}")
        self.history.append(row)
        with (self.folder / "history.csv").open("ab") as file:  # open no longer than that: a
            names = self._line(row) if len(self.history) == 1 else b""  # system has so many files
            file.write(names + self._line(row.values()))
        self._log(row)
        self.events.flush()

    @staticmethod
    def _line(values: Iterable) -> bytes:
        """A row as a line of history.csv, without its last value, the time of day."""
        *cells, _ = values
        return (",".join("" if cell is None else str(cell) for cell in cells) + "\n").encode()

    def _log(self, row: dict) -> None:
        for name, tag in TAGS.items():
            if row.get(name) is not None:
                self.events.add_scalar(tag, row[name], row["epoch"], walltime=row["time"])

    def save_parameters(self, parameters: dict[str, torch.Tensor]) -> None:
        """checkpoint.pt and model.safetensors: (M, ...) of every parameter of the M members."""
        parameters = {name: value.detach().cpu().clone() for name, value in parameters.items()}
        whole = safetensors.torch.save(parameters, metadata={"run_id": self.run_id})
        content = saved_bytes(torch.save, parameters, run_id=self.run_id)
        write_whole(self.folder / "checkpoint.pt", content)
        write_whole(self.folder / "model.safetensors", whole)

    def finish(self, result: dict, parameters: dict[str, torch.Tensor]) -> None:
        """Write the parameters, the hyperparameters for TensorBoard, and last result.json."""
        self.save_parameters(parameters)
        for summary in hparams(hyperparameters(self.config), {})[1:]:  # the first is of one run
            self.events.file_writer.add_summary(summary)
        for name in ("mrr", "mse") if self.config["select"] else ():
            tag = f"validation/the epoch it selects, {METRICS[name].tag}"
            self.events.add_scalar(tag, result[name], result["epoch"])
        self.close()
        write_json(self.folder / "result.json", {**result, "run_id": self.run_id})

    def fail(self, failure: dict) -> None:
        """Record where the run stopped being finite; its last checkpoint stays as it is."""
        write_json(self.folder / "failed.json", {**failure, "run_id": self.run_id})

    def close(self) -> None:
        self.events.close()


# ---- going on ------------------------------------------------------------------------------


def read_resume(out: Path) -> dict:
    """What resume.pt holds: the state of a command, its arguments among it.

    Raises FileNotFoundError when there is no such file, ValueError when it is damaged, of another
    version of this code, or of other runs than the folders.
    """
    if not (out / "resume.pt").is_file():
        raise FileNotFoundError(f"--resume {out}: there is no resume.pt, so no run to go on with")
    read = functools.partial(torch.load, map_location="cpu", weights_only=True)
    state = intact(out / "resume.pt", lambda path: dict(args={}, configs=[]) | read(path))
    state["args"]["out"] = str(out)  # the folder may have been moved
    other = ", ".join(sorted(state["args"].keys() ^ resolve([]).keys()))
    told = f"--resume {out}: another version of this code wrote resume.pt (it differs in {other})"
    require(not other, f"{told}; config.json names its commit")
    for run, config in zip(plan_runs(state["args"]), state["configs"], strict=True):
        check_ids(run["folder"], config["run_id"])
    return state


def finished_results(state: dict) -> list[dict] | None:
    """The results of the command that a resume.pt is of, or None if it isn't finished."""
    results, runs = [], plan_runs(state["args"])
    over = state["epoch"] == state["args"]["epochs"] or len(state["failed"]) == len(runs)
    for r, run in enumerate(runs):
        path = run["folder"] / "result.json"
        if r in state["failed"] and over:
            results.append({**told(run), **state["failed"][r]})
        elif path.is_file():
            results.append(read_json(path))
        else:
            return None
    return results


# ---- getting a run back --------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A trained run: ``model`` (see models.OneRun), its ``data``, ``split`` and ``config``.

    Users and items are given to its methods by their original ids, items by their titles too; who
    isn't known is a ValueError that names the nearest.
    """

    model: OneRun
    data: Interactions
    split: Split
    config: dict
    history: list[dict]

    def recommend(
        self, user: object, n: int = 10, mix: float = 0.0, known: bool = False
    ) -> "pd.DataFrame":
        """A user's n best items as rows of item, score, rating and title, best first.

        They are ordered by the interaction score; with 0 < ``mix`` <= 1 by
        (1 − mix) · score + mix · predicted rating, both standardised over the user's candidates.
        Candidates are the items outside the user's training and validation part, or with
        ``known`` all. Raises ValueError for n below 1 and mix outside [0, 1].
        """
        u = self.place("user", user)
        left_out = self.data.item_ids[[] if known else self.known_rows[u]]
        return self.best_items(self.served, u, left_out, n, mix)

    def predict(self, user: object, item: object) -> dict[str, float]:
        """Predicted rating, score, and rank of a pair: 1 + unseen items that score higher."""
        u, i = self.place("user", user), self.place("item", item)
        scores = self.served.interaction_scores(torch.tensor([u]))[0]
        rating = self.served.ratings(torch.tensor([u]), torch.tensor([i])).item()
        unseen = np.delete(np.arange(self.data.n_items), self.data.item_ids[self.known_rows[u]])
        rank = 1 + int((scores[unseen] > scores[i]).sum())
        return {"rating": rating, "score": scores[i].item(), "rank": rank, "unseen": len(unseen)}

    @functools.cached_property
    def served(self) -> OneRun:
        """The model with its histories summed up once: to be asked for many users."""
        return OneRun(self.model.members.as_used(), self.model.clip)

    @functools.cached_property
    def known_rows(self) -> list[np.ndarray]:
        """Of each user the rows of the data that are in its training and validation part."""
        rows = np.concatenate([self.split.train, self.split.validation])
        users = self.data.user_ids[rows]
        ends = np.bincount(users, minlength=self.data.n_users).cumsum()
        return np.split(rows[np.argsort(users, kind="stable")], ends[:-1])

    def best_items(self, model: OneRun, user: int, left_out, n: int, mix: float) -> "pd.DataFrame":
        """As recommend, of the user of a contiguous id in any model of the same items."""
        fine = n >= 1 and 0 <= mix <= 1
        require(fine, f"n is {n} and mix {mix}", "at least 1, and from 0 to 1,")
        items = torch.from_numpy(np.delete(np.arange(self.data.n_items), left_out))
        scores = model.interaction_scores(torch.tensor([user]))[0, items]
        scores, order = scores.sort(descending=True, stable=True)
        items = items[order] if mix else items[order][:n]
        ratings = model.ratings(torch.full_like(items, user), items)
        if mix:  # equal ones stay in the order of their scores
            pair = scores, ratings
            both = [(x - x.mean()) / x.std(correction=0).clamp(min=1e-12) for x in pair]
            order = torch.lerp(*both, mix).argsort(descending=True, stable=True)[:n]
            items, scores, ratings = items[order], scores[order], ratings[order]
        return self.described(items, score=scores[:n], rating=ratings)

    def described(self, items: np.ndarray | torch.Tensor, **columns) -> "pd.DataFrame":
        """Rows of items (n,) by original id, with columns (n,), and titles where there are any."""
        items = np.asarray(items)
        import pandas as pd

        columns = {name: np.asarray(values) for name, values in columns.items()}
        frame = pd.DataFrame({"item": self.data.item_labels[items], **columns})
        if self.data.item_titles is not None:
            titles = self.data.item_titles[items]
            frame["title"] = np.where(titles == "", frame["item"].astype(str), titles)
        return frame

    def place(self, kind: str, name: object) -> int:
        """The contiguous id of a "user" or an "item", by original id or, of items, by title."""
        found, names = self.names[kind].get(str(name), []), self.names[kind]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(map(str, self.data.item_labels[found]))
            raise ValueError(f"{len(found)} items are called {name!r}: give an id, one of {ids}")
        near = [other for other in names if str(name).lower() in other.lower()]
        near = sorted(near, key=len)[:3] or difflib.get_close_matches(str(name), names)
        labels = self.data.user_labels if kind == "user" else self.data.item_labels
        nearest = " or ".join(map(repr, near)) or f"an id from {labels[0]} to {labels[-1]}"
        raise ValueError(f"there is no {kind} {name!r}; {nearest} would be right")

    @functools.cached_property
    def names(self) -> dict[str, dict[str, list[int]]]:
        """By "user" and "item" the contiguous ids of each name; an id goes before a title."""
        data, titles = self.data, {}
        for i, title in enumerate([] if data.item_titles is None else data.item_titles.tolist()):
            titles.setdefault(title, []).append(i)
        titles.pop("", None)
        users, items = (
            {str(label): [i] for i, label in enumerate(labels.tolist())}
            for labels in (data.user_labels, data.item_labels)
        )
        return {"user": users, "item": titles | items}


def load_run(folder: str | Path) -> Run:
    """Give a run back, on the CPU, from its folder alone.

    Raises:
        FileNotFoundError: when the folder holds no run trained to its end.
        ValueError: when the data is no longer what the run was trained on, when files are damaged
            or of different runs, or when another version of this code wrote them.
    """
    folder = Path(folder)
    for name in ("config.json", "checkpoint.pt", "split.npz"):
        if not (folder / name).is_file():
            runs = sorted(path.parent for path in folder.glob("*/config.json"))
            hint = f"; name one run in it, like {runs[0]}" if runs else ""
            raise FileNotFoundError(f"{folder} holds no trained run: {name} is missing{hint}")
    config = read_json(folder / "config.json")
    told = f"{folder} was written by an earlier version of this code, commit {config.get('commit')}"
    require("run_id" in config, f"{told}: that reads it")
    check_ids(folder, config["run_id"])
    intended = digest(config) == config["run_id"]
    require(intended, f"{folder}: config.json is no longer what the run wrote")
    data = load(config["data"], config.get("columns"), config.get("titles"))
    told = f"{config['data']} has SHA-256 {data.sha256}, but the run in {folder} was trained on "
    require(data.sha256 == config["data_sha256"], told + config["data_sha256"])
    if not (folder / "result.json").is_file():  # a checkpoint of an earlier epoch
        broken = (folder / "failed.json").is_file()
        why = "failed.json says when" if broken else "train.py --resume goes on with it"
        raise FileNotFoundError(f"{folder} holds no run trained to its end: {why}")
    split = intact(folder / "split.npz", lambda path: Split(**np.load(path, allow_pickle=False)))
    parameters = intact(folder / "checkpoint.pt", lambda path: torch.load(path, weights_only=True))
    members = range(config["ensemble"])
    net = MultiTaskNet(data.n_users, data.n_items, seeds=members, **pick(Structure, config))
    try:
        net.load_state_dict(parameters)
    except RuntimeError:
        raise ValueError(f"{folder}: checkpoint.pt is of another model than this code's") from None
    for name, value in parameters.items():
        told = f"{folder}: checkpoint.pt is damaged, not finite in {name}"
        require(value.isfinite().all(), told)
    trained = np.stack([split.train for _ in members])
    columns = (data.user_ids, data.item_ids, data.ratings)
    net.observe(*(torch.tensor(column[trained]) for column in columns))
    history = [
        {name: float(cell) if cell else None for name, cell in row.items() if name != "run_id"}
        for row in read_history(folder / "history.csv")
    ]
    known, clip = data.ratings[split.train], None
    if config["clip_ratings"]:
        clip = float(known.min()), float(known.max())
    return Run(OneRun(net.requires_grad_(False).eval(), clip), data, split, config, history)
