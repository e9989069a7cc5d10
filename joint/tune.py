"""Which settings make one joint model best at both tasks? A search, judged by validation alone.

    python -m joint.tune --specialists   # first: EASE and myFM on the same folds
    python -m joint.tune                 # go on to the budget, two worker processes
    python -m joint.tune --trials 20     # to 20 trials

A trial trains its settings on FOLDS folds inside split 0's training part, as one stack, and the
sampler's value is the mean over the folds of log(MRR) − log(MSE) on the validation parts: no test
row is looked at. The FINALISTS first by their margins over the specialists (design.ranked_trials)
are trained on as many folds again, and the first over all of them is chosen: recipes/best.txt.

Every trial is a line of results/tuning.jsonl. The search is the same every time and takes the
trials that stand there from there: stopped at any moment, it goes on where it was, and where all
stand it trains nothing. Lines there that the sampler didn't ask for count as trials too: the search
on record ends with 22 made by hand, changes of the best of its first 28 and a region beside the
sampler's, of lower learning rates and more steps.
"""

import json
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution

import train
from arguments import Parser, number, resolve
from data import load, random_split, validation_folds
from joint import baselines
from joint.design import FINALISTS, FOLDS, METRICS, SPECIALISTS, TRIALS, ranked_trials
from study import records

ASKED = 2  # trials asked for together, whatever the workers: the search is the same every time
FIXED = """
--embedding-dim 100 --rating-head dot --rating-biases --user-history --item-history
--leave-one-out --loss softmax --batch-by user --schedule cosine --clip-ratings
"""
SPACE = {  # searched on a logarithmic scale where a range spans more than a factor of 4
    "common": (64, 160),
    "ranking_own": (64, 256),
    "rating_own": (32, 128),
    "lambda_f": (0.5, 0.85),
    "epochs": (40, 90),
    "batch_size": (64, 192),
    "lr": (0.006, 0.016),
    "decay_ranking": (0.5, 3.0),
    "decay_common": (1.0, 4.0),
    "decay_rating": (1.0, 4.0),
    "ranking_dropout": (0.3, 0.8),
    "rating_dropout": (0.3, 0.7),
}
FIRST = [  # the trials it begins with, in the space's order
    (96, 128, 64, 0.7, 60, 128, 0.01, 1.0, 2.0, 2.0, 0.6, 0.5),
    (96, 128, 64, 0.75, 60, 128, 0.01, 2.0, 2.0, 2.0, 0.6, 0.5),
    (96, 192, 96, 0.75, 60, 128, 0.01, 1.5, 2.5, 2.0, 0.6, 0.5),
    (128, 128, 64, 0.75, 60, 128, 0.01, 1.0, 2.0, 2.0, 0.6, 0.5),
]


def arguments_of(settings: dict) -> str:
    """The command line of a trial."""
    s = {name: f"{value:.3g}" for name, value in settings.items()}
    common = settings["common"]
    ranking, rating = common + settings["ranking_own"], common + settings["rating_own"]
    decays = " ".join(s[f"decay_{part}"] for part in ("ranking", "common", "rating"))
    text = f"{FIXED} --shared-dims {s['common']} --ranking-dim {ranking} --rating-dim {rating}"
    text += f" --lambda-f {s['lambda_f']} --lambda-r {1 - float(s['lambda_f']):.3g}"
    text += f" --epochs {s['epochs']} --batch-size {s['batch_size']} --lr {s['lr']}"
    text += f" --weight-decay {decays}"
    text += f" --ranking-dropout {s['ranking_dropout']} --rating-dropout {s['rating_dropout']}"
    return " ".join(text.split())


def validate(arguments: str, first: int = 0, folds: int = FOLDS) -> dict:
    """Train on folds of split 0's training part, from the first; what a line of results says."""
    args = resolve(shlex.split(arguments))
    train.set_machine(args)
    data = load(args["data"])
    parts = validation_folds(random_split(data, 0), 2 * FOLDS)[first : first + folds]
    weights = dict(lambda_f=args["lambda_f"][0], lambda_r=args["lambda_r"][0])
    runs = [dict(seed=first + k, **weights) for k in range(folds)]
    stack = train.make_stack(args, data, runs, parts)
    start = time.process_time()
    for epoch in range(args["epochs"]):
        stack.run_epoch(epoch)
    seconds = time.process_time() - start
    metrics = train.make_evaluator(args, data, parts, "validation", "train")(stack.net)
    mrr, mse = ([fold[metric] for fold in metrics] for metric in METRICS)
    return {
        "experiment": "tuning",
        "arguments": arguments,
        "first_fold": first,
        "mrr": mrr,
        "mse": mse,
        "value": float(np.mean(np.log(mrr) - np.log(mse))),
        "cpu_seconds_a_fold": seconds / folds,
        **records.provenance(),
    }


def validate_specialist(method: str) -> dict:
    """The best specialist of a task on all the folds: its line of the results."""
    data, settings = load("ml-100k"), baselines.METHODS[method].settings
    folds = enumerate(validation_folds(random_split(data, 0), 2 * FOLDS))
    metrics = [
        baselines.fit_and_test(method, data, k, fold.train, fold.validation, settings)
        for k, fold in folds
    ]
    return {
        "experiment": "tuning",
        "arguments": method,
        SPECIALISTS[method]: [fold[SPECIALISTS[method]] for fold in metrics],
        **baselines.provenance(method),
    }


def search(done: dict[tuple[str, int], dict], path: Path, trials: int, workers: int) -> dict:
    """The best of the trials done (by arguments and first fold) and of those added to the file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=10, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values in FIRST:
        study.enqueue_trial(dict(zip(SPACE, values, strict=True)))
    space = {}
    for name, (low, high) in SPACE.items():
        kind = IntDistribution if isinstance(low, int) else FloatDistribution
        space[name] = kind(low, high, log=high > 4 * low)
    tried = {(method, 0): done[method, 0] for method in SPECIALISTS}
    with ProcessPoolExecutor(workers) as pool:

        def lines_of(asked: list[str], first: int = 0) -> list[dict]:
            new = [text for text in dict.fromkeys(asked) if (text, first) not in done]
            for line in pool.map(validate, new, [first] * len(new)):
                done[identity(line)] = line
                records.append(path, [line])
                print(f"{line['value']:.4f} {line['arguments']}", file=sys.stderr, flush=True)
            tried.update({(text, first): done[text, first] for text in asked})
            return [done[text, first] for text in asked]

        for _ in range(0, trials, ASKED):
            asked = [study.ask(space) for _ in range(ASKED)]
            lines = lines_of([arguments_of(trial.params) for trial in asked])
            for trial, line in zip(asked, lines, strict=True):
                study.tell(trial, line["value"])
        if trials >= TRIALS:
            lines_of([text for text, first in done if not first and text not in SPECIALISTS])
            finalists = ranked_trials([*tried.values()])[:FINALISTS]
            lines_of([trial["arguments"] for trial in finalists], first=FOLDS)
    return ranked_trials([*tried.values()])[0]


def identity(line: dict) -> tuple[str, int]:
    return line["arguments"], line.get("first_fold", 0)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.tune", description=__doc__)
    add = parser.add_argument
    add("--trials", type=number(int, 1), default=TRIALS, help=f"of the sampler ({TRIALS})")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    add("--out", type=Path, default=Path("results/tuning.jsonl"), help="file of the lines")
    add("--specialists", action="store_true", help="fit them; needs requirements-peers.txt")
    options = parser.parse_args(argv)
    done = {identity(line): line for line in records.read(options.out)}
    lacking = [method for method in SPECIALISTS if (method, 0) not in done]
    if options.specialists:
        if reason := next(filter(None, map(baselines.missing, SPECIALISTS)), None):
            parser.error(reason)
        for method in lacking:
            records.append(options.out, [validate_specialist(method)])
        return 0
    if lacking:
        parser.error(f"{options.out} lacks {lacking[0]}: run with --specialists first")
    print(json.dumps(search(done, options.out, options.trials, options.workers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
