"""Which settings make one joint model best at both tasks? A search, judged by validation alone.

    python -m joint.tune --specialists   # first: EASE and myFM on the same folds
    python -m joint.tune                 # go on to the budget, two worker processes
    python -m joint.tune --trials 20     # to 20 trials

A trial trains its settings on FOLDS folds inside split 0's training part, as one stack, and the
sampler's value is the mean over the folds of log(MRR) − log(MSE) on the validation parts: no test
row is looked at. The FINALISTS first by their margins over the specialists (see ranked_trials) are
trained on as many folds again, and the first over all of them is chosen: recipes/best.txt.

Every trial is a line of results/tuning.jsonl. The search is the same every time and takes the
trials that stand there from there: stopped at any moment, it goes on where it was. Lines that the
sampler didn't ask for count as trials too: on record, 22 made by hand, changes of the best of its
first 28 and a region beside the sampler's, of lower learning rates and more steps.
"""

import json
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import train
from arguments import Parser, number, resolve
from data import load, random_split, validation_folds
from joint import baselines
from joint.design import METRICS, SEARCHES, SPECIALISTS
from study import records

OURS = SEARCHES["best"]
TRIALS, FOLDS = OURS.trials, OURS.folds
ASKED = 2  # trials asked for together, whatever the workers: the search is the same every time
FINALISTS = 6  # tried on as many folds again


def arguments_of(settings: dict) -> str:
    """The command line of a trial."""
    told = {name: f"{value:.3g}" for name, value in settings.items()}
    for task in ("ranking", "rating"):
        told[task] = settings["common"] + settings[f"{task}_own"]
    told["lambda_r"] = f"{1 - float(told['lambda_f']):.3g}"
    return " ".join(OURS.arguments.format(**told).split())


def fit(args: dict, data, seeds, parts) -> train.Stack:
    """Train a stack for all its epochs, a run for each seed and part of the data."""
    weights = dict(lambda_f=args["lambda_f"][0], lambda_r=args["lambda_r"][0])
    stack = train.make_stack(args, data, [dict(seed=seed, **weights) for seed in seeds], parts)
    for epoch in range(args["epochs"]):
        stack.run_epoch(epoch)
    return stack


def validate(arguments: str, first: int = 0, folds: int = FOLDS) -> dict:
    """Train on folds of split 0's training part, from the first; what a line of results says."""
    args = resolve(shlex.split(arguments))
    train.set_machine(args)
    data = load(args["data"])
    parts = validation_folds(random_split(data, 0), 2 * FOLDS)[first : first + folds]
    start = time.process_time()
    stack = fit(args, data, range(first, first + folds), parts)
    seconds = time.process_time() - start
    metrics = train.make_evaluator(args, data, parts, "validation", "train")(stack.net)
    own = {metric: [fold[metric] for fold in metrics] for metric in METRICS}
    value = float(np.mean(np.log(own["mrr"]) - np.log(own["mse"])))
    line = {"experiment": "tuning", "arguments": arguments, "first_fold": first, **own}
    return line | {"value": value, "cpu_seconds_a_fold": seconds / folds} | records.provenance()


def ranked_trials(lines: list[dict]) -> list[dict]:
    """Trials by their margin, best first; finalists alone once there are.

    A margin is the smaller of the means over the folds of log(MRR / EASE's) and of log(myFM's MSE /
    MSE); the specialists' lines hold all the folds.
    """
    theirs, trials, merged = {}, {}, []
    for line in lines:
        if metric := SPECIALISTS.get(line["arguments"]):
            theirs[metric] = np.log(line[metric])
        else:
            trials.setdefault(line["arguments"], []).append(line)
    most = max(map(len, trials.values()))
    for arguments, parts in trials.items():
        if len(parts) == most:
            own = {name: [x for part in parts for x in part[name]] for name in METRICS}
            ahead = {m: METRICS[m] * (np.log(own[m]) - theirs[m][: len(own[m])]) for m in METRICS}
            margin = min(float(values.mean()) for values in ahead.values())
            merged.append({"arguments": arguments, **own, "margin": margin})
    return sorted(merged, key=lambda each: -each["margin"])


def search(path: Path, trials: int, workers: int) -> dict:
    """The best of the trials asked for, those made that the file lacks, and put there.

    With all of the sampler's, those by hand count too, and finalists are tried on more folds.
    Raises ValueError where the file lacks the specialists.
    """
    known = {(line["arguments"], line.get("first_fold", 0)): line for line in records.read(path)}
    for name in SPECIALISTS:
        if (name, 0) not in known:
            raise ValueError(f"{path} lacks {name}: run with --specialists first")
    tried = {(name, 0): known[name, 0] for name in SPECIALISTS}
    with ProcessPoolExecutor(workers) as pool:

        def lines_of(asked: list[str], first: int = 0) -> list[dict]:
            new = [text for text in dict.fromkeys(asked) if (text, first) not in known]
            for line in pool.map(validate, new, [first] * len(new)):
                known[line["arguments"], first] = line
                records.append(path, [line])
                print(f"{line['value']:.4f} {line['arguments']}", file=sys.stderr, flush=True)
            tried.update({(text, first): known[text, first] for text in asked})
            return [known[text, first] for text in asked]

        def losses(asked: list[dict]) -> list[float]:
            return [-line["value"] for line in lines_of([arguments_of(each) for each in asked])]

        first = [dict(zip(OURS.space, values, strict=True)) for values in OURS.first]
        baselines.search(OURS.space, first, trials, losses, 10, ASKED)
        if trials >= TRIALS:
            lines_of([text for text, first in known if not first and text not in SPECIALISTS])
            finalists = ranked_trials([*tried.values()])[:FINALISTS]
            lines_of([trial["arguments"] for trial in finalists], first=FOLDS)
    return ranked_trials([*tried.values()])[0]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.tune", description=__doc__)
    add = parser.add_argument
    add("--trials", type=number(int, 1), default=TRIALS, help=f"of the sampler ({TRIALS})")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    add("--out", type=Path, default=Path("results/tuning.jsonl"), help="file of the lines")
    add("--specialists", action="store_true", help="fit them; needs requirements-peers.txt")
    options = parser.parse_args(argv)
    if options.specialists:
        if reason := baselines.missing(*SPECIALISTS):
            parser.error(reason)
        data = load("ml-100k")
        for name in SPECIALISTS:
            settings = baselines.METHODS[name].settings
            compute = partial(baselines.validate, name, data, 2 * FOLDS, settings)
            wanted = {"experiment": "tuning", "arguments": name}
            baselines.recorded(options.out, name, wanted, compute)
        return 0
    try:
        print(json.dumps(search(options.out, options.trials, options.workers)))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
