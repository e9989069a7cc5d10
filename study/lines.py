"""The study's lines as a frame, a row a run: its arms, its curves, and how its runs trained."""

from pathlib import Path

import numpy as np
import pandas as pd

from study import records
from study.design import DATA, DIAL

DIGITS = {"mrr": 4, "mse": 3, "mrr_first": 3, "ndcg_at_10": 3, "recall_at_10": 3, "epoch": 0}
DIGITS |= {"last_mrr": 4, "last_mse": 3}
OWN = {"own_mrr": "mrr", "own_mse": "mse"}  # a task's metric at the epoch best for it alone
COLD = ("test_rows", "cold_users", "cold_user_rows", "cold_items", "cold_item_rows")
MEASURES = {  # of training, per run: digits and what they are
    "peak_epoch": (0, "epoch of the highest MRR"),
    "lowest_mse": (3, "lowest MSE on the way"),
    "lowest_mse_epoch": (0, "its epoch"),
    "mrr_there": (4, "MRR there"),
    "fall_epoch": (1, "epochs to 95% of the joint loss's fall"),
    "mean_joint": (3, "mean joint loss of all epochs"),
    "mean_factorization": (3, "mean factorization loss"),
    "mean_regression": (3, "mean training MSE"),
    "fluctuation": (5, "fluctuation of the joint loss"),
    "relative_fluctuation": (4, "that relative to its level"),
    "ranking_fluctuation": (5, "fluctuation of the factorization loss"),
    "relative_ranking_fluctuation": (4, "that relative to its level"),
}
# What tells a run from every other; absent from lines written before it was a field: the value.
IDENTITY = {"data": DATA, "weighting": "fixed"}
IDENTITY |= dict.fromkeys(["experiment", "protocol", "shared_dims", "embedding_dim", "lambda_f"])
IDENTITY |= dict.fromkeys(["method", "fault", "seed"])


def read_study(path: Path) -> pd.DataFrame:
    """The lines of a study, a row a run; columns that no line has are there, and empty.

    Raises:
        FileNotFoundError, ValueError: naming the file, the line and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; python -m study.run writes it")
    lines, seen = records.read(path), set()
    for number, line in enumerate(lines, start=1):
        if "experiment" not in line:
            raise ValueError(f"{path}: line {number} names no experiment")
        run = {name: line.get(name, default) for name, default in IDENTITY.items()}
        if tuple(run.values()) in seen:
            told = {name: value for name, value in run.items() if value is not None}
            raise ValueError(f"{path}: line {number} repeats the run {told}")
        seen.add(tuple(run.values()))
        line |= run
    if not lines:
        raise ValueError(f"{path}: holds no runs")
    numeric = ["shared_dims", "lambda_f", *DIGITS, *OWN, *COLD]
    numeric += ["epochs", "train_seconds", "eval_seconds"]
    frame = pd.DataFrame(lines)
    needed = [*numeric, "stack", "reciprocal_ranks", "curves"]
    frame = frame.reindex(columns=frame.columns.union(needed, sort=False))
    return frame.astype(dict.fromkeys(numeric, float))


def arm(frame: pd.DataFrame, experiment: str, shared_dims: int, lambda_f: float) -> pd.DataFrame:
    """An arm's runs, indexed and sorted by seed; experiment "dial" is any of design.DIAL."""
    chosen = frame.experiment.isin(DIAL if experiment == "dial" else [experiment])
    chosen &= (frame.shared_dims == shared_dims) & np.isclose(frame.lambda_f, lambda_f, atol=1e-5)
    chosen &= (frame.data == DATA) & (frame.weighting == "fixed")
    return frame[chosen].set_index("seed").sort_index()


def curves_of(runs: pd.DataFrame, name: str) -> np.ndarray:
    """(runs, epochs) of one curve, NaN where it wasn't measured."""
    return pd.DataFrame([curves.get(name, []) for curves in runs.curves]).to_numpy(float)


def training_measures(runs: pd.DataFrame) -> pd.DataFrame:
    """How runs trained, a row a seed (see MEASURES).

    Fluctuation is the standard deviation of a loss's change from epoch to epoch over the last 100.
    """
    if not len(runs) or not np.isfinite(curves_of(runs, "mrr")).any():
        return pd.DataFrame(columns=list(MEASURES), dtype=float)
    names = ("mrr", "mse", "joint_loss", "regression_loss", "factorization_loss")
    mrr, mse, joint, regression, factorization = (curves_of(runs, name) for name in names)
    best, fallen = np.nanargmin(mse, 1), joint[:, :1] - 0.95 * (joint[:, :1] - joint[:, -1:])
    fluctuation = np.diff(joint)[:, -100:].std(1)
    ranking_fluctuation = np.diff(factorization)[:, -100:].std(1)
    columns = {
        "peak_epoch": np.nanargmax(mrr, 1),
        "lowest_mse": np.nanmin(mse, 1),
        "lowest_mse_epoch": best,
        "mrr_there": mrr[np.arange(len(mrr)), best],
        "fall_epoch": (joint <= fallen).argmax(1) + 1,
        "mean_joint": joint.mean(1),
        "mean_factorization": factorization.mean(1),
        "mean_regression": regression.mean(1),
        "fluctuation": fluctuation,
        "relative_fluctuation": fluctuation / joint[:, -100:].mean(1),
        "ranking_fluctuation": ranking_fluctuation,
        "relative_ranking_fluctuation": ranking_fluctuation / factorization[:, -100:].mean(1),
    }
    return pd.DataFrame(columns, index=runs.index)
