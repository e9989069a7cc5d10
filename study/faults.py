"""What went wrong in the report: its code's faults, switched on one at a time.

    python -m study.faults            # five variants, 3 seeds, 200 epochs each

None of this is in the main path: a stack whose losses carry the fault trains as any other, and
is evaluated as any other. A line a run goes to results/study.jsonl, where `python -m study.report`
sets the curves beside the published levels. Variants that stand there already are left alone.

  batch product   the score (Q[items] @ U[users].T).sum(1) multiplies an item with the sum of
                  every user in the batch, not with its own user
  dropped biases  the two bias terms stand on a line of their own, and their value is dropped
  broadcast MSE   (B,) against (B, 1) broadcasts to (B, B): each prediction is compared with
                  every rating of the batch, and the best answer is the global mean
"""

import sys
import time
from collections import defaultdict

import numpy as np
from torch import Tensor
from tqdm import tqdm

from data import load, random_split
from evaluation import Evaluator
from models import MultiTaskNet
from multitask import Batch, Stack, sigmoid_loss
from study.design import DATA, METRICS, VARIANTS
from study.records import provenance


class FaultyStack(Stack):
    """A stack with the report's loss and some of its faults."""

    faults: tuple[str, ...] = ()

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        net = self.net
        users, items, ratings, negatives = batch[:4]
        u, q = net.rows(net.users, users), net.rows(net.items, items)
        other = net.rows(net.items, negatives)
        by = u.sum(1, keepdim=True).expand_as(u) if "batch product" in self.faults else u
        scores = [net.interaction(by, rows) for rows in (q, other)]
        if "dropped biases" not in self.faults:
            biases = [net.rows(net.item_bias, ids).squeeze(-1) for ids in (items, negatives)]
            scores = [score + bias for score, bias in zip(scores, biases, strict=True)]
        error = net.rating(users, items, u, q) - ratings
        if "broadcast MSE" in self.faults:
            predicted = error + ratings
            error = (predicted[:, :, None] - ratings[:, None, :]).flatten(1)
        return sigmoid_loss(*scores), error.square().mean(1)


def run_variant(name: str, seeds: list[int], epochs: int, source: str = DATA) -> list[dict]:
    """The report's recipe, shared at 0.99/0.01, with the variant's faults: a line a seed."""
    data = load(source)
    splits = [random_split(data, seed) for seed in seeds]
    train, test = (np.stack([getattr(s, part) for s in splits]) for part in ("train", "test"))
    columns = data.user_ids, data.item_ids, data.ratings
    net = MultiTaskNet(data.n_users, data.n_items, seeds=seeds)
    weights = {"lambda_f": [0.99] * len(seeds), "lambda_r": [0.01] * len(seeds)}
    stack = FaultyStack(net, *columns, train, seeds, **weights)
    stack.faults = VARIANTS[name]
    evaluate = Evaluator(*columns, test, train)
    curves, start = [defaultdict(list) for _ in seeds], time.perf_counter()
    for epoch in tqdm(range(epochs), desc=name, file=sys.stderr):
        losses = stack.run_epoch(epoch)
        for run, metrics in enumerate(evaluate(net)):
            row = {key: value[run].item() for key, value in losses.items()}
            for key, value in (row | {key: metrics[key] for key in METRICS}).items():
                curves[run][key].append(float(f"{value:.4g}"))
    line = {"experiment": "faults", "stack": f"faults {name}", "fault": name, "data": source}
    line |= {"lambda_f": 0.99, "lambda_r": 0.01, "weighting": "fixed", "epochs": epochs}
    line |= {"seconds": time.perf_counter() - start, "device": "cpu"} | provenance()
    return [
        {**line, "seed": seed, **{key: curve[key][-1] for key in METRICS}, "curves": curve}
        for seed, curve in zip(seeds, curves, strict=True)
    ]


if __name__ == "__main__":
    from study.run import main

    sys.exit(main(["--only", "faults", *sys.argv[1:]]))
