"""What does the joint recipe get, what does each part of it give, and what does it cost?

    python -m experiments.recipe             # recipes/best.txt and its ablation, splits 0 to 4
    python -m experiments.recipe --dry-run   # the arms, listed
    python -m experiments.recipe --cost      # fit seconds beside the specialists', one process

An arm is the recipe with one thing changed. It is trained on the whole training part of each split
as one stack of five runs, and looks at the test part once, after the last epoch. Lines reach
results/recipe.jsonl an arm at a time; stopped at any moment, the command goes on where it was.
"""

import json
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch

import train
from arguments import Parser, number, resolve
from data import load, random_split
from experiments import baselines
from experiments.study import Results, as_text, run_stacks
from results_tables import SPECIALISTS

ROOT = Path(__file__).parents[1]
SEEDS = "0-4"
ONCE = ["--eval-every", "1000000"]  # only after the last epoch: the test part is looked at once


def recipe(*without: str) -> list[str]:
    """The arguments of recipes/best.txt, without these flags."""
    words = shlex.split((ROOT / "recipes/best.txt").read_text(), comments=True)
    return [word for word in words if word not in without]


def plan() -> list[dict]:
    """Every arm: its name and the arguments it trains with."""
    args = resolve(recipe())
    common, ranking, rating = args["shared_dims"], args["ranking_dim"], args["rating_dim"]
    width = ranking + rating - common
    split = round(width * ranking / (ranking + rating))
    decay = args["weight_decay"]
    by_interaction = ["--batch-by", "interaction", "--batch-size", "4096"]
    arms = {
        "best": recipe(),
        "separate, each task as wide": [*recipe(), "--shared-dims", "0"],
        "separate, as many parameters": [
            *(*recipe(), "--shared-dims", "0"),
            *("--ranking-dim", f"{split}", "--rating-dim", f"{width - split}"),
        ],
        "all shared, as many parameters": [
            *(*recipe(), "--shared-dims", f"{width}"),
            *("--ranking-dim", f"{width}", "--rating-dim", f"{width}"),
        ],
        "ranking alone": [*recipe(), "--lambda-f", "1", "--lambda-r", "0"],
        "rating alone": [*recipe(), "--lambda-f", "0", "--lambda-r", "1"],
        "no user history": recipe("--user-history"),
        "no item history": recipe("--item-history"),
        "MLP for the dot product": [*recipe("--leave-one-out"), "--rating-head", "mlp"],
        "MLP beside the dot product": [*recipe("--leave-one-out"), "--rating-head", "both"],
        "no biases and mean in the rating": recipe("--rating-biases"),
        "nothing left out": recipe("--leave-one-out"),
        "history dropout for leaving out": [*recipe("--leave-one-out"), "--history-dropout", "0.3"],
        "no ranking dropout": [*recipe(), "--ranking-dropout", "0"],
        "no rating dropout": [*recipe(), "--rating-dropout", "0"],
        "no weight decay": [*recipe(), "--weight-decay", "0"],
        "one weight decay": [*recipe(), "--weight-decay", *([f"{sum(decay) / 3:.3g}"] * 3)],
        "constant learning rate": [*recipe(), "--schedule", "constant"],
        "averaged weights": [*recipe(), "--average", "0.99"],
        "batches of 4,096 interactions": [*recipe("--leave-one-out"), *by_interaction],
        "BPR loss": [*recipe("--leave-one-out"), *by_interaction, "--loss", "bpr"],
        "ensemble": ["@recipes/ensemble.txt"],
    }
    stacks = []
    for name, arguments in arms.items():
        stacks.append(stack(name, "recipe", [*arguments, "--seeds", SEEDS]))
    for name in ("best", "separate, each task as wide"):
        temporal = [*arms[name], "--split", "temporal", "--seeds", SEEDS]
        stacks.append(stack(name, "recipe temporal", temporal))
    return stacks


def stack(arm: str, experiment: str, arguments: list[str]) -> dict:
    arguments = [*arguments, *ONCE]
    args = resolve(arguments)
    return {
        "stack": f"{experiment} {arm}".replace(",", "").replace(" ", "_"),
        "experiment": experiment,
        "arm": arm,
        "protocol": "report",
        "runs": len(args["seeds"]),
        "epochs": args["epochs"],
        "arguments": arguments,
    }


def measure_cost(rounds: int = 3) -> dict:
    """Seconds of a fit on split 0: the recipe and both specialists in turn, one thread each."""
    torch.set_num_threads(1)
    data = load("ml-100k")
    split, args = random_split(data, 0), resolve(recipe())
    run = dict(seed=0, lambda_f=args["lambda_f"][0], lambda_r=args["lambda_r"][0])

    def joint():
        training = train.make_stack(args, data, [run], [split])
        for epoch in range(args["epochs"]):
            training.run_epoch(epoch)

    def specialist(name):
        columns = (data.user_ids, data.item_ids, data.ratings)
        known = baselines.Train(*(c[split.train] for c in columns), data.n_users, data.n_items)
        method = baselines.METHODS[name]
        return lambda: method.fit(known, 0, **method.settings)

    fits = {"joint": joint} | {name: specialist(name) for name in SPECIALISTS}
    seconds = {name: [] for name in fits}
    for _ in range(rounds):
        for name, fit in fits.items():
            start = time.perf_counter()
            fit()
            seconds[name].append(time.perf_counter() - start)
    record = {"experiment": "recipe cost", "stack": "cost", "seconds": seconds}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    record["share"] = medians["joint"] / sum(medians[name] for name in SPECIALISTS)
    return record | train.provenance()


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m experiments.recipe", description=__doc__)
    add = parser.add_argument
    out = Path("results/recipe.jsonl")
    add("--out", type=Path, default=out, help=f"file of the lines ({out})")
    add("--only", nargs="+", metavar="ARM", help="these arms alone")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    add("--dry-run", action="store_true", help="list the arms and stop")
    add("--cost", action="store_true", help="measure fit seconds; needs requirements-peers.txt")
    options = parser.parse_args(argv)
    stacks = plan()
    arms = dict.fromkeys(each["arm"] for each in stacks)
    for name in options.only or ():
        if name not in arms:
            parser.error(f"--only {name}: the arms are {'; '.join(arms)}")
    stacks = [each for each in stacks if not options.only or each["arm"] in options.only]
    if options.dry_run:
        for each in stacks:
            print(f"{each['stack']:44} {' '.join(each['arguments'])}")
        return 0
    try:
        results = Results(options.out, {"cost": {"runs": 1}} | {s["stack"]: s for s in stacks})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.cost:
        if reason := next(filter(None, map(baselines.missing, SPECIALISTS)), None):
            parser.error(reason)
        if "cost" in results.done:
            parser.error(f"{options.out} holds the cost: name another file by --out")
        results.append(as_text([record := measure_cost()]))
        print(json.dumps(record))
        return 0
    runs = Path("runs") / options.out.stem
    return 0 if run_stacks(stacks, results, runs, options.workers) else 1


if __name__ == "__main__":
    sys.exit(main())
