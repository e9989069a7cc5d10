"""Small problems that tests share: train.py run on planted data, and a stack of random data."""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import train
from arguments import pick
from checks.kill_resume import contents
from models import MultiTaskNet, Structure
from multitask import Options, Stack

BASE = "--embedding-dim 8 --hidden 8 --lr 0.01 --out run"
PLAIN = "--epochs 3 --log-gradients"  # of the fixtures one_run and other_run
EVERY_OPTION = (
    "--loss softmax --batch-by user --batch-size 32 --shared-dims 4 --rating-head dot "
    "--rating-biases --user-history --item-history --ranking-dropout 0.3 --rating-dropout 0.3 "
    "--schedule cosine --weight-decay 0.1 0.2 0.3 --leave-one-out"
)


# ---- a command of train.py -----------------------------------------------------------------


def run_train(words: str, folder: Path, data: Path) -> tuple[int, object, str]:
    """Exit code, last line of stdout as JSON and stderr of train.py, started in a folder."""
    base = "" if "--resume" in words else f"--data {data} {BASE} "
    if "--rating-head" in words:  # not all have hidden units
        base = base.replace("--hidden 8 ", "")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = train.main((base + words).split())
        except SystemExit as stop:
            code = stop.code
    lines = out.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else None, err.getvalue()


@contextlib.contextmanager
def before_epoch(do):
    """Calls do(epoch) before each epoch of training."""
    run_epoch = Stack.run_epoch

    def announced(self, epoch):
        do(epoch)
        return run_epoch(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "run_epoch", announced)
        yield


class Killed(BaseException):
    """Passes every handler: nothing is saved on the way out, as by kill -9."""


def kill(command, words: str, at: int) -> None:
    """Start a command that is killed before an epoch."""

    def stop(epoch):
        if epoch == at:
            raise Killed

    with before_epoch(stop), pytest.raises(Killed):
        command(words)


def refused(command, words: str) -> str:
    """The one line on stderr by which a command is refused."""
    code, out, err = command(words)
    assert code == 2 and out is None and err.count("\n") == 1 and "error: " in err, err
    return err


# ---- what a run folder holds ---------------------------------------------------------------


def history(folder) -> list[dict]:
    with (Path(folder) / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name: str) -> list[float]:
    return [float(row[name]) for row in history(folder)]


def config(folder) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())


def parameters(folder) -> dict[str, torch.Tensor]:
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)


def same_run(one, other) -> bool:
    """Whether two folders hold the same parameters, curves, and history but for its seconds."""
    found = []
    for folder in (one, other):
        rows, _, parameters, curves = contents(Path(folder))["."]
        found.append((rows, parameters, curves))
    return found[0] == found[1]


def recomputed(folder) -> dict[str, float]:
    """Test metrics of the run that a folder gives back, by the formulas of the report."""
    run = train.load_run(folder)
    data, test = run.data, run.split.test
    users, items = data.user_ids[test], data.item_ids[test]
    error = run.model.ratings(torch.tensor(users), torch.tensor(items)).double().numpy()
    error -= data.ratings[test]
    table = run.model.interaction_scores(torch.arange(data.n_users)).numpy()
    seen = np.concatenate([run.split.train, run.split.validation])
    table[data.user_ids[seen], data.item_ids[seen]] = -np.inf
    own, rivals = table[users, items][:, None], table[users]
    ranks = (1 + (rivals > own).sum(1) + (rivals >= own).sum(1)) / 2
    by_user = pd.DataFrame({"mrr": 1 / ranks, "hit_at_1": ranks <= 1}).groupby(users).mean()
    return {**by_user.mean(), "mse": np.mean(error**2)}


# ---- a stack -------------------------------------------------------------------------------


def make_stack(runs=1, n=300, first=0, net=MultiTaskNet, kind=Stack, **options) -> Stack:
    """Runs `first`, `first + 1`, … of a small problem; each has its own λ, split and seed."""
    rng, seeds = np.random.default_rng(0), range(first, first + runs)
    pairs = rng.permutation(40 * 60)[:n]
    rows = np.stack([np.random.RandomState(seed).permutation(n)[: n - 20] for seed in seeds])
    ratings = rng.integers(1, 6, n).astype(np.float32)
    weights = [0.9, 0.5, 0.2, 1.0, 0.0][first : first + runs]
    columns = *divmod(pairs, 60), ratings, rows, seeds, weights, [1 - x for x in weights]
    structure = {"embedding_dim": 8, "hidden": 6} | pick(Structure, options)
    methods, options = options.get("weighting"), pick(Options, options)
    options = {"batch_size": 64, "lr": 0.01} | options
    return kind(net(40, 60, seeds=seeds, **structure), *columns, methods, **options)


def randomise(net: MultiTaskNet, scale: float = 1.0) -> MultiTaskNet:
    """Every parameter drawn anew, biases too."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net


class Tripled(Stack):
    """Its factorization loss is three times the one asked for."""

    def losses(self, batch):
        factorization, regression = super().losses(batch)
        return 3 * factorization, regression


class Penalised(Stack):
    """Its penalty is zero where all biases are, as they are at first."""

    def losses(self, batch):
        factorization, regression = super().losses(batch)
        biases = self.net.rows(self.net.item_bias, batch.items).squeeze(-1)
        return factorization + biases.square().mean(1), regression
