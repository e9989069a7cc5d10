"""The run folder: what training leaves of a run, and how to get the run back from it.

    config.json        every argument, resolved; versions, commit, device, SHA-256 of the data
    events.out.tfevents.*   the TensorBoard curves, a step an epoch
    history.csv        a row an epoch
    split.npz          train, validation, test: row indices into the data
    checkpoint.pt      the parameters, as returned; the same in model.safetensors
    result.json        the final metrics: a run that has it is finished
    failed.json        instead of it, where and when a run stopped being finite

Files that matter are written whole or not at all (temporary file, flush, rename), and none is
ever read with pickle enabled.
"""

import contextlib
import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from data import Interactions, Split, load
from models import MultiTaskNet, OneRun

TAGS = {  # the report's names of the curves
    "factorization_loss": "training/Factorization Loss",
    "regression_loss": "training/MSE",
    "joint_loss": "training/Joint Loss",
    "mrr": "eval/Mean Reciprocal Rank",
    "mse": "eval/MSE",
    "val_mrr": "validation/Mean Reciprocal Rank",
    "val_mse": "validation/MSE",
    "users_cosine": "gradients/users, cosine of the tasks",
    "users_norm_ratio": "gradients/users, norm of ranking over rating",
    "items_cosine": "gradients/items, cosine of the tasks",
    "items_norm_ratio": "gradients/items, norm of ranking over rating",
}
STRUCTURE = ("embedding_dim", "shared_dims", "ranking_dim", "rating_dim", "hidden", "rating_biases")
STRUCTURE += ("rating_head", "user_history", "item_history")
OURS = ("config.json", "history.csv", "split.npz", "checkpoint.pt", "model.safetensors")
OURS += ("result.json", "failed.json", "resume.pt", "curves.png", "curves.svg")


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all: temporary file, flush, rename."""
    temporary = path.with_name(f".{path.name}.part")  # one name: a kill's leftover is overwritten
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def saved_bytes(save: Callable, *values, **named) -> memoryview:
    """What torch.save or numpy.savez writes: in memory, since on a full disk they raise oddly."""
    buffer = io.BytesIO()
    values = (*values, buffer) if save is torch.save else (buffer, *values)
    save(*values, **named)
    return buffer.getbuffer()


def write_json(path: Path, value: object) -> None:
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def holds_run(folder: Path) -> bool:
    """Whether a run, or a stack of runs, finished or not, stands in the folder.

    Raises ValueError when there is a file of the name of one of ours that isn't of a run.
    """
    if (folder / "resume.pt").exists():
        return True
    with contextlib.suppress(OSError, ValueError, TypeError):
        if "data_sha256" in json.loads((folder / "config.json").read_text()):
            return True
    for name in OURS[:-2]:
        if (folder / name).exists():
            raise ValueError(
                f"{folder} has a {name} that is no run's: name another folder by --out"
            )
    return False


def clear(folder: Path) -> None:
    """Remove the run in a folder: our own files and nothing else."""
    if folder.is_dir() and holds_run(folder):
        for path in [*(folder / name for name in OURS), *folder.glob("events.out.tfevents.*")]:
            path.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


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
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
        parts = {name: getattr(split, name) for name in ("train", "validation", "test")}
        write_whole(folder / "split.npz", saved_bytes(np.savez_compressed, **parts))
        stale = list(folder.glob("events.out.tfevents.*"))
        self.events = SummaryWriter(folder)
        for row in history:
            self._log(row)
        self.events.flush()
        for path in stale:
            path.unlink()
        self._open_history()

    def _open_history(self) -> None:
        names = [name for name in self.history[0] if name != "time"] if self.history else []
        head = (",".join(names) + "\n" if names else "").encode()
        rows = [_csv_line(row[name] for name in names) for row in self.history]
        write_whole(self.folder / "history.csv", b"".join([head, *rows]))
        self.csv = (self.folder / "history.csv").open("ab")

    def append(self, row: dict) -> None:
        """Record an epoch. None stands for a value that was not measured."""
        row = {**row, "time": time.time()}
        if not self.history:
            self.csv.write((",".join(name for name in row if name != "time") + "\n").encode())
        self.history.append(row)
        self.csv.write(_csv_line(value for name, value in row.items() if name != "time"))
        self.csv.flush()
        self._log(row)
        self.events.flush()

    def _log(self, row: dict) -> None:
        for name, tag in TAGS.items():
            if row.get(name) is not None:
                self.events.add_scalar(tag, row[name], row["epoch"], walltime=row["time"])

    def save_parameters(self, parameters: dict[str, torch.Tensor]) -> None:
        """checkpoint.pt and model.safetensors: (M, ...) of every parameter of the M members."""
        parameters = {name: value.detach().cpu().clone() for name, value in parameters.items()}
        write_whole(self.folder / "checkpoint.pt", saved_bytes(torch.save, parameters))
        write_whole(self.folder / "model.safetensors", safetensors.torch.save(parameters))

    def finish(self, result: dict, parameters: dict[str, torch.Tensor]) -> None:
        """Write the parameters, the hyperparameters with their metrics, and last result.json."""
        self.save_parameters(parameters)
        scalars = {k: v for k, v in self.config.items() if isinstance(v, bool | int | float | str)}
        metrics = {f"result/{name}": result[name] for name in ("mrr", "mse")}
        for summary in hparams(scalars, metrics):
            self.events.file_writer.add_summary(summary)
        for name, value in metrics.items():
            self.events.add_scalar(name, value, result["epoch"])
        self.close()
        write_json(self.folder / "result.json", result)

    def fail(self, failure: dict) -> None:
        """Record where the run stopped being finite; its last checkpoint stays as it is."""
        write_json(self.folder / "failed.json", failure)

    def close(self) -> None:
        self.events.close()
        self.csv.close()


def _csv_line(values: Iterable) -> bytes:
    return (",".join("" if value is None else repr(value) for value in values) + "\n").encode()


@dataclass(frozen=True)
class Run:
    """A trained run: ``model`` (see models.OneRun), its ``data``, ``split`` and ``config``."""

    model: OneRun
    data: Interactions
    split: Split
    config: dict
    history: list[dict]


def load_run(folder: str | Path) -> Run:
    """Give a run back, on the CPU, from its folder alone.

    Raises:
        FileNotFoundError: when the folder holds no run trained to its end.
        ValueError: when the data is no longer what the run was trained on.
    """
    folder = Path(folder)
    for name in ("config.json", "checkpoint.pt", "split.npz"):
        if not (folder / name).is_file():
            runs = sorted(path.parent for path in folder.glob("*/config.json"))
            hint = f"; name one run in it, like {runs[0]}" if runs else ""
            raise FileNotFoundError(f"{folder} holds no trained run: {name} is missing{hint}")
    config = json.loads((folder / "config.json").read_text())
    data = load(config["data"])
    if data.sha256 != config["data_sha256"]:
        raise ValueError(
            f"{config['data']} has SHA-256 {data.sha256}, but the run in {folder} "
            f"was trained on {config['data_sha256']}"
        )
    if not (folder / "result.json").is_file():  # a checkpoint of an earlier epoch
        broken = (folder / "failed.json").is_file()
        why = "failed.json says when" if broken else "train.py --resume goes on with it"
        raise FileNotFoundError(f"{folder} holds no run trained to its end: {why}")
    with np.load(folder / "split.npz", allow_pickle=False) as arrays:
        split = Split(**arrays)
    parameters = torch.load(folder / "checkpoint.pt", weights_only=True)
    structure = {name: config[name] for name in STRUCTURE if name in config}
    members = range(config["ensemble"])
    net = MultiTaskNet(data.n_users, data.n_items, seeds=members, **structure)
    net.load_state_dict(parameters)
    trained = np.stack([split.train for _ in members])
    columns = (data.user_ids, data.item_ids, data.ratings)
    net.observe(*(torch.tensor(column[trained]) for column in columns))
    with (folder / "history.csv").open(newline="") as file:
        history = [
            {name: float(cell) if cell else None for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]
    return Run(OneRun(net.requires_grad_(False).eval()), data, split, config, history)
