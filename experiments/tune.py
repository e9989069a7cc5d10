"""Which settings make one joint model best at both tasks? A search, judged by validation alone.

    python -m experiments.tune --specialists   # first: EASE and myFM on the same folds
    python -m experiments.tune                 # go on to the budget, two worker processes
    python -m experiments.tune --trials 20     # to 20 trials

The sampler's TRIALS come first, then HAND's: changes of the best of its first 28, made by hand, and
a region beside the sampler's, of lower learning rates and more steps. A trial trains its settings
on FOLDS folds inside split 0's training part, as one stack, and the sampler's value is the mean
over the folds of log(MRR) − log(MSE) on the validation parts: no test row is looked at.

The model is to be ahead of the specialists at both tasks: so settings are ranked by the smaller of
their two margins, the means of log(MRR / EASE's) and log(myFM's MSE / MSE). The FINALISTS first are
trained on as many folds again, and the first over all of them is chosen: recipes/best.txt.

Every trial is a line of results/tuning.jsonl. The search is the same every time and takes the
trials that stand there from there: stopped at any moment, it goes on where it was.
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
from experiments.baselines import (
    METHODS,
    append_line,
    fit_and_test,
    missing,
    provenance,
    read_lines,
)
from results_tables import SPECIALISTS, ranked_trials

FOLDS = 4  # of a trial; and as many again of a finalist
FINALISTS = 6
TRIALS = 30  # the sampler's budget; the hand's is HAND
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
FIRST = [  # the trials it begins with
    dict(zip(SPACE, (96, 128, 64, 0.7, 60, 128, 0.01, 1.0, 2.0, 2.0, 0.6, 0.5), strict=True)),
    dict(zip(SPACE, (96, 128, 64, 0.75, 60, 128, 0.01, 2.0, 2.0, 2.0, 0.6, 0.5), strict=True)),
    dict(zip(SPACE, (96, 192, 96, 0.75, 60, 128, 0.01, 1.5, 2.5, 2.0, 0.6, 0.5), strict=True)),
    dict(zip(SPACE, (128, 128, 64, 0.75, 60, 128, 0.01, 1.0, 2.0, 2.0, 0.6, 0.5), strict=True)),
]


ASKED = 2  # trials asked for together, whatever the workers: the search is the same every time
BEST = (115, 216, 74, 0.684, 64, 113, 0.00913, 0.799, 2.01, 1.94, 0.698, 0.462)  # of the first 28
HAND = [  # tried last: changes of it
    dict(zip(SPACE, BEST, strict=True)) | changes
    for changes in (
        dict(ranking_own=320, ranking_dropout=0.75),
        dict(lambda_f=0.8),
        dict(lambda_f=0.75, decay_ranking=0.6),
        dict(lambda_f=0.75, ranking_own=320, ranking_dropout=0.75, epochs=70),
        dict(lambda_f=0.75, rating_own=110),
        dict(batch_size=160, lr=0.011),
        dict(lambda_f=0.75, common=140),
        dict(lambda_f=0.75, ranking_dropout=0.78),
    )
]
LOWER = (96, 128, 64, 0.5, 120, 128, 0.005, 1.0, 2.0, 3.0, 0.6, 0.5)  # lower rate, more steps
LOWER = dict(zip(SPACE, LOWER, strict=True))
NARROW = LOWER | dict(common=64, ranking_own=192, ranking_dropout=0.65, epochs=100)
HAND += [
    LOWER,
    LOWER | dict(lambda_f=0.6),
    LOWER | dict(ranking_dropout=0.65, decay_ranking=1.5),
    LOWER | dict(ranking_own=192, ranking_dropout=0.65, lambda_f=0.6, epochs=95),
    NARROW | dict(ranking_dropout=0.7),
    NARROW | dict(decay_ranking=1.6),
    NARROW | dict(decay_ranking=2.2),
    NARROW | dict(lambda_f=0.6, batch_size=96, epochs=85),
    NARROW | dict(lambda_f=0.7, batch_size=96, epochs=85),
    NARROW | dict(lambda_f=0.65, batch_size=80, epochs=70, common=80, rating_own=48, lr=0.007),
]
WIDE = LOWER | dict(ranking_own=192, ranking_dropout=0.65, lambda_f=0.7, epochs=95)  # of the best
HAND += [
    WIDE,
    WIDE | dict(lambda_f=0.65, ranking_own=256, ranking_dropout=0.7, epochs=85),
    WIDE | dict(common=112, ranking_own=224, ranking_dropout=0.68, epochs=85),
    WIDE | dict(lambda_f=0.65, batch_size=96, epochs=80),
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
    metrics = train.make_evaluator(args, data, parts, "validation", "train")(stack.returned)
    record = {"experiment": "tuning", "arguments": arguments, "first_fold": first}
    record |= {name: [fold[name] for fold in metrics] for name in ("mrr", "mse")}
    values = np.log(record["mrr"]) - np.log(record["mse"])
    record |= {"value": float(values.mean()), "cpu_seconds_a_fold": seconds / folds}
    return record | train.provenance()


def validate_specialist(method: str) -> dict:
    """The best specialist of a task on all the folds: its line of the results."""
    data, metric = load("ml-100k"), SPECIALISTS[method]
    metrics = [
        fit_and_test(method, data, k, fold.train, fold.validation, METHODS[method].settings)[metric]
        for k, fold in enumerate(validation_folds(random_split(data, 0), 2 * FOLDS))
    ]
    return {"experiment": "tuning", "arguments": method, metric: metrics} | provenance(method)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m experiments.tune", description=__doc__)
    add = parser.add_argument
    add("--trials", type=number(int, 1), default=TRIALS, help=f"of the sampler ({TRIALS})")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    add("--out", type=Path, default=Path("results/tuning.jsonl"), help="file of the lines")
    add("--specialists", action="store_true", help="fit them; needs requirements-peers.txt")
    options = parser.parse_args(argv)

    done = {identity(line): line for line in read_lines(options.out)}
    if options.specialists:
        if reason := next(filter(None, map(missing, SPECIALISTS)), None):
            parser.error(reason)
        for method in SPECIALISTS:
            if (method, 0) not in done:
                append_line(options.out, validate_specialist(method))
        return 0
    for method in SPECIALISTS:
        if (method, 0) not in done:
            parser.error(f"{options.out} lacks {method}: run with --specialists first")
    tried = {(method, 0): done[method, 0] for method in SPECIALISTS}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=10, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for settings in FIRST:
        study.enqueue_trial(settings)
    space = {
        name: (IntDistribution if isinstance(low, int) else FloatDistribution)(
            low, high, log=high > 4 * low
        )
        for name, (low, high) in SPACE.items()
    }
    with ProcessPoolExecutor(options.workers) as pool:

        def records_of(asked: list[str], first: int = 0) -> list[dict]:
            new = [text for text in dict.fromkeys(asked) if (text, first) not in done]
            for record in pool.map(validate, new, [first] * len(new)):
                done[identity(record)] = record
                append_line(options.out, record)
                print(f"{record['value']:.4f} {record['arguments']}", file=sys.stderr, flush=True)
            records = [done[text, first] for text in asked]
            tried.update({identity(record): record for record in records})
            return records

        for _ in range(0, options.trials, ASKED):
            trials = [study.ask(space) for _ in range(ASKED)]
            records = records_of([arguments_of(trial.params) for trial in trials])
            for trial, record in zip(trials, records, strict=True):
                study.tell(trial, record["value"])
        if options.trials >= TRIALS:
            records_of([arguments_of(settings) for settings in HAND])
            first = ranked_trials([*tried.values()])[:FINALISTS]
            records_of([each["arguments"] for each in first], first=FOLDS)
    print(json.dumps(ranked_trials([*tried.values()])[0]))
    return 0


def identity(record: dict) -> tuple[str, int]:
    return record["arguments"], record.get("first_fold", 0)


if __name__ == "__main__":
    sys.exit(main())
