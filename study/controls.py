"""Is it a method's adapting, or the ratio it happens to have? Its own weights again, without it.

frozen    the geometric mean of w_F/w_R, over a run's epochs up to its selected one and over the
          runs, as a constant λ_F/λ_R.
shuffled  each run's own weights in another order of time, ten epochs at a stretch.

And is it the method, or the rate that suits it?

tuned     each arm with the flags that were best on the validation parts of two seeds of their own.
"""

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from checks.synthetic import synthetic
from models import random_stream
from multitask import LOSSES, sigmoid_loss
from run_folder import write_whole
from study.design import PLANTED, PLANTED_SIZE
from weighting import METHODS, Weighting, parse

STRETCH = 10  # epochs, as far apart as the lines of a study hold a run's weights


class Shuffled(Weighting):
    """w = those that `paths`, (stretches, 2) of each seed, holds at another place."""

    paths: dict[int, np.ndarray]
    starts = {"w": (2, 1.0)}

    def epoch_start(self, epoch, steps):
        for r, seed in enumerate(self.seeds):
            path, stream = self.paths[seed], random_stream(seed, "shuffled weights", 0)
            stretch = torch.randperm(len(path), generator=stream)[epoch // STRETCH]
            self.state["w"][r].copy_(torch.tensor(path[stretch]))

    def weights(self, losses, gram):
        return self.state["w"]


def source(data: str, folder: Path) -> str:
    """What `load` takes: a data set as it is named, or a file in the folder for planted data."""
    if data not in PLANTED:
        return data
    path, made = folder / f"{data}.csv", synthetic(*PLANTED_SIZE, relatedness=PLANTED[data])
    columns = {"user": made.user_ids, "item": made.item_ids, "rating": made.ratings}
    write_whole(path, pd.DataFrame(columns).to_csv(index=False).encode())
    return str(path)


def controlled(stack: dict, lines: list[dict]) -> dict:
    """A planned control with what it lacks, from the lines of the runs that it mirrors."""
    if stack["control"] == "shuffled":
        curves = [line["curves"] for line in lines]
        paths = [list(zip(x["weight_f"], x["weight_r"], strict=True)) for x in curves]
        paths = {str(line["seed"]): path for line, path in zip(lines, paths, strict=True)}
        stack = stack | {"paths": paths, "method": lines[0]["weighting"]}
        more = ["--weighting", "shuffled"]
    elif stack["control"] == "frozen":
        ratio = math.exp(np.mean([line["log_ratio"] for line in lines]))
        more = ["--lambda-f", f"{ratio / (1 + ratio):.6f}", "--lambda-r", f"{1 / (1 + ratio):.3g}"]
    else:
        scores = defaultdict(list)
        for line in lines:  # of one that stopped being finite there is no score
            value = -math.inf
            if "val_mrr" in line:
                value = math.log(line["val_mrr"]) - math.log(line["val_mse"])
            decay = line["weight_decay"]
            decay = decay[0] if isinstance(decay, list) else decay
            scores[line["optimizer"], line["lr"], decay].append(value)
        best = max(scores, key=lambda flags: np.mean(scores[flags]))
        more = "--optimizer {} --lr {:g} --weight-decay {:g}".format(*best).split()
    return stack | {"arguments": [*stack["arguments"], *more]}


def register(stack: dict) -> None:
    """Make known to train.py what the stack's arguments name and no module of it has."""
    LOSSES["sigmoid-times-10"] = lambda positive, negative: 10 * sigmoid_loss(positive, negative)
    if "paths" in stack:  # weighs what the method does that it mirrors
        paths = {int(seed): np.array(path) for seed, path in stack["paths"].items()}
        own = METHODS[parse(stack["method"])[0]].weights_own
        METHODS["shuffled"] = type("Shuffled", (Shuffled,), {"paths": paths, "weights_own": own})


def tell_weights(line: dict, history: list[dict]) -> None:
    """Add to a run's line the mean logs of w_F/w_R and of ρ over its epochs up to the returned."""
    rows = [row for row in history if row["epoch"] <= line["epoch"]]
    if "weight_f" in rows[0]:  # a weight of 0 counts as 1e-8
        pairs = np.array([(row["weight_f"], row["weight_r"]) for row in rows])
        line["log_ratio"] = float(np.diff(np.log(np.maximum(pairs, 1e-8)))[:, 0].mean() * -1)
    logs = [math.log(row["weighted_norm_ratio"]) for row in rows if row.get("weighted_norm_ratio")]
    if logs:
        line["log_rho"] = float(np.mean(logs))
