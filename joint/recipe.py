"""What does the joint recipe get, what does each part of it give, and what does it cost?

    python -m joint.recipe             # recipes/best.txt and its ablation, splits 0 to 4
    python -m joint.recipe --dry-run   # the arms, listed

The arms are those of design.py. Each is trained on the whole training part of each split as one
stack of five runs, and looks at the test part once, after the last epoch. Lines reach results/ an
arm at a time, then fit seconds beside the specialists': stopped at any moment, the command goes on.
"""

import sys
from itertools import product
from pathlib import Path

from arguments import Parser, number, resolve
from joint import baselines
from joint.design import PLANNED, SEARCHES, SEEDS, SPECIALISTS, TEMPORAL, arguments_of, recipe
from joint.tune import trial
from study.records import Results, provenance
from study.run import run_stacks


def plan() -> list[dict]:
    """The stack of every arm: its name, and the arguments it trains with."""
    arms = [(arm, "recipe", []) for arm in PLANNED]
    arms += [(arm, "recipe temporal", ["--split", "temporal"]) for arm in TEMPORAL]
    stacks = []
    for arm, experiment, more in arms:
        # Only after the last epoch: the test part is looked at once.
        arguments = [*arguments_of(arm), *more, "--seeds", SEEDS, "--eval-every", "1000000"]
        args, name = resolve(arguments), f"{experiment} {arm}".replace(",", "").replace(" ", "_")
        stack = {"stack": name, "experiment": experiment, "arm": arm, "protocol": "report"}
        stack |= {"runs": len(args["seeds"]), "epochs": args["epochs"], "arguments": arguments}
        stacks.append(stack)
    return stacks


def measure_cost(rounds: int = 3) -> dict:
    """Seconds of a fit on split 0's first fold: the recipe and both specialists in turn."""
    settings = {name: SEARCHES[name].settings for name in SPECIALISTS}
    settings, seconds = {"ours": " ".join(recipe())} | settings, {}
    for _, (name, told) in product(range(rounds), settings.items()):
        line = trial(name, "ml-100k", 0.05, told, first=0, folds=1)
        seconds.setdefault("joint" if name == "ours" else name, []).extend(line["fit_seconds"])
    return {"experiment": "recipe cost", "stack": "cost", "seconds": seconds} | provenance()


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.recipe", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("results/recipe.jsonl"), help="file of the lines")
    add("--only", nargs="+", metavar="ARM", choices=PLANNED, default=PLANNED, help="these alone")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    add("--dry-run", action="store_true", help="list the arms and stop")
    options = parser.parse_args(argv)
    stacks = [each for each in plan() if each["arm"] in options.only]
    if options.dry_run:
        for each in stacks:
            print(f"{each['stack']:44} {' '.join(each['arguments'])}")
        return 0
    try:
        results = Results(options.out, {"cost": {"runs": 1}} | {s["stack"]: s for s in stacks})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    fine = run_stacks(stacks, results, Path("runs") / options.out.stem, options.workers)
    if options.only == PLANNED and "cost" not in results.done:
        if reason := baselines.missing(*SPECIALISTS):
            print(f"the cost isn't measured: {reason}", file=sys.stderr)
        else:
            results.append([measure_cost()])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
