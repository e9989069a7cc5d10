"""Lines of a study as study/run.py writes them, their numbers invented."""

import json
from pathlib import Path

import numpy as np

from arguments import resolve
from study.design import BASELINES, WITH_USERS, plan

USERS = 40


def study_lines(seeds=range(4), epochs=12, only=None) -> list[dict]:
    lines = []
    for index, stack in enumerate(plan(list(seeds), epochs)):
        if only is None or stack["experiment"] in only:
            lines += [invented_run(stack, index, seed) for seed in seeds]
    both = [(protocol, seed) for protocol in ("report", "selected") for seed in seeds]
    for method, metric in BASELINES.items() if only is None or "baselines" in only else ():
        for protocol, seed in [*both, ("temporal", 0)]:
            line = {"experiment": "baselines", "stack": "baselines", "method": method}
            lines.append(line | {"protocol": protocol, "seed": seed, metric: 0.055})
    return lines


def invented_run(stack: dict, index: int, seed: int) -> dict:
    args, random = resolve(stack["arguments"]), np.random.default_rng((index, seed))
    experiment, epochs = stack["experiment"], stack["epochs"]
    K, f = args["shared_dims"], args["lambda_f"][0]
    fall = np.exp(-np.arange(epochs) / epochs * 5)

    def curve(start, end, noise):
        values = end + (start - end) * fall + random.normal(0, noise, epochs)
        return [float(f"{value:.4g}") for value in values]

    lost = (1 - f) * (K / 32) ** 2  # shared and weighted to rating: ranking suffers
    mrr = 0.13 - 0.12 * lost + 0.004 * np.random.default_rng(seed).normal()
    mse = 0.86 + 0.1 * f - 0.04 * (K == 16) + random.normal(0, 0.01)
    curves = {
        "factorization_loss": curve(0.45, 0.09 + 0.1 * lost, 0.001),
        "regression_loss": curve(3.0, 0.1 + 0.4 * f, 0.003),
        "joint_loss": curve(1.6 if f == 0.5 else 0.5, 0.11, 0.001),
        "mrr": curve(0.05, mrr, 0.002),
        "mse": curve(1.0, mse, 0.02),
    }
    line = {name: stack[name] for name in ("experiment", "stack", "protocol", "epochs")}
    line |= {name: args[name] for name in ("shared_dims", "embedding_dim", "optimizer", "split")}
    line |= {"seed": seed, "lambda_f": f, "lambda_r": 1 - f, "mrr": mrr, "mse": mse}
    line |= {"mrr_first": 0.3, "ndcg_at_10": 0.2, "recall_at_10": 0.2, "epoch": epochs // 2}
    line |= {"last_mrr": mrr, "last_mse": mse + 1, "train_seconds": 9.0 + index, "eval_seconds": 1}
    if stack["protocol"] == "selected":
        line |= {"own_mrr": mrr + 0.001 + 0.003 * random.random(), "own_mse": mse - 0.01}
        curves["mrr"][1::2] = curves["mse"][1::2] = [None] * (epochs // 2)
    if experiment == "report":
        for side in ("users", "items"):
            curves[f"{side}_cosine"] = curve(-0.1, 0.02, 0.03) if K else [0.0] * epochs
            curves[f"{side}_norm_ratio"] = curve(0.06, 0.02, 0.001)
    if experiment in WITH_USERS:
        ranks = np.clip(mrr + random.normal(0, 0.05, USERS), 0.001, 1).round(4).tolist()
        line["reciprocal_ranks"] = [None, *ranks[1:]]
    if experiment == "temporal":
        line |= {"test_rows": 5000, "cold_users": 7, "cold_user_rows": 90}
        line |= {"cold_items": 30, "cold_item_rows": 33}
    return line | {"curves": curves}


def write_study(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
