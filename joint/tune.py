"""Which settings for this data? A search within a budget, judged by validation alone.

    python -m joint.tune --data ratings.csv --minutes 30                # our model's, written to
    python train.py @runs/tune/ratings.txt                              # a recipe that trains it
    python -m joint.tune --data ratings.csv --minutes 30 --method ease  # a specialist's, as long
    python -m joint.tune --out results                                  # the search on record

A trial trains settings of a space in searches.toml on folds inside split 0's training part, ours as
one stack. Its value is the mean over the folds of log MRR − log MSE on their validation parts, of a
specialist the term of its task: no test row is looked at. A trial has the most folds with which
enough trials fit into the minutes. The best trials are then tried on as many folds again, and the
best of those on the most folds is chosen. The recipe in use, recipes/best.txt, is a trial of ours.

Every trial is a line of OUT/tuning.jsonl, or of a specialist OUT/baselines_tuning.jsonl. The
sampler asks for the same every time, and lines are taken from there: stopped at any moment, the
same command goes on where it was, with the minutes that are left. Lines it didn't ask for count as
trials too: on record, on ml-100k, of ours 22 made by hand, of lower learning rates and more steps
than the space has, and six finalists, the best by their margins over EASE and myFM.
"""

import json
import math
import shlex
import signal
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import train
from arguments import Parser, number, resolve
from data import DATASETS, Split, load, random_split, validation_folds
from joint import baselines
from joint.design import METRICS, SEARCHES, recipe
from models import Interacted
from run_folder import write_whole
from study import records

PARTS, ENOUGH, MOST = 8, 20, 1000  # validation parts there are; trials: enough, at most
BUDGET = dict(folds=[4, 2, 1], startup=10, at_once=2, finalists=6)  # in place of those on record
name_of = partial(json.dumps, sort_keys=True)  # settings, as keys of lines


@cache  # once a process
def loaded(source: str):
    """The ratings that train.py's --data names; columns and titles may follow as its flags."""
    args = resolve(["--data", *shlex.split(source)])
    return load(args["data"], args["columns"], args["titles"])


# ---- a trial -------------------------------------------------------------------------------


def told(method: str, settings: dict) -> dict | str:
    """What the sampler asks for as a line has it: ours as a command line."""
    if method != "ours":
        return {k: float(f"{x:.3g}") if isinstance(x, float) else x for k, x in settings.items()}
    words = {name: f"{value:.3g}" for name, value in settings.items()}
    for task in ("ranking", "rating"):
        words[task] = settings["common"] + settings[f"{task}_own"]
    words["lambda_r"] = f"{1 - float(words['lambda_f']):.3g}"
    return " ".join(SEARCHES["ours"].arguments.format(**words).split())


def fit_and_test(
    method: str, data, settings, seeds, parts, held_out: str, fold: bool = False
) -> list[dict]:
    """Train on each part's training rows, ours as one stack: metrics on those held out, seconds.

    A part's validation rows, if they aren't held out, rank last too. With `fold` they are taken in
    after training, for their users alone: in ours by the user history.
    """
    if method != "ours":
        torch.set_num_threads(1)
        test = partial(baselines.fit_and_test, method, data, settings=settings)
        rows = [(part.train, getattr(part, held_out)) for part in parts]
        later = [part.validation if held_out == "test" else () for part in parts]
        each = zip(seeds, rows, later, strict=True)
        return [test(seed, *pair, later=added, fold=fold) for seed, pair, added in each]
    args = resolve(shlex.split(settings))
    weights = dict(lambda_f=args["lambda_f"][0], lambda_r=args["lambda_r"][0])
    members = args["ensemble"]
    train.set_machine(args)
    cpu, wall = time.process_time(), time.perf_counter()
    stack = train.make_stack(args, data, [dict(seed=seed, **weights) for seed in seeds], parts)
    for epoch in range(args["epochs"]):
        stack.run_epoch(epoch)
    seconds = dict(cpu_seconds=time.process_time() - cpu, fit_seconds=time.perf_counter() - wall)
    seconds = {name: each / len(parts) for name, each in seconds.items()}
    seen = ("train", "validation") if held_out == "test" else ("train",)
    if fold:
        known = [np.concatenate([x.train, x.validation]) for x in parts for _ in range(members)]
        columns = (torch.tensor(ids[np.stack(known)]) for ids in (data.user_ids, data.item_ids))
        columns = (ids.to(stack.device) for ids in columns)
        stack.net.by_user = Interacted(*columns, data.n_users, data.n_items)
    evaluate = train.make_evaluator(args, data, parts, held_out, *seen)
    return [metrics | seconds for metrics in evaluate(stack.net)]


def trial(method: str, source: str, apart: float, settings, first: int, folds: int) -> dict:
    """Train settings on folds, from the first, and validate; what a line says of it.

    A fold's validation part has 5% of the rows; none holds a row of the share that is apart.
    """
    data, start, seeds = loaded(source), time.perf_counter(), range(first, first + folds)
    split, size = random_split(data, 0, apart), len(random_split(data, 0).test)
    split = Split(split.train, split.validation, split.test[:size])
    parts = validation_folds(split, PARTS)[first : first + folds]
    metrics = fit_and_test(method, data, settings, seeds, parts, "validation")
    line = {"experiment": "tuning", "arguments": settings}
    if method == "ours":
        line["cpu_seconds_a_fold"] = metrics[0]["cpu_seconds"]
    else:
        line = {"experiment": "baselines_tuning", "settings": settings}
    line["fit_seconds"] = [fold["fit_seconds"] for fold in metrics]
    own = {name: [fold[name] for fold in metrics] for name in METRICS}
    finite = all(math.isfinite(x) for values in own.values() for x in values if x is not None)
    line |= own if finite else dict.fromkeys(METRICS, [None] * folds)
    line |= {"method": method, "data": source, "data_sha256": data.sha256, "apart": apart}
    line |= {"first_fold": first, "seconds": time.perf_counter() - start}
    return line | records.provenance()


def seconds_of_a_fold(method: str, source: str, apart: float, settings) -> float:
    """About what a trial takes for each of its folds: ours by a tenth of its epochs."""
    if method != "ours":
        return trial(method, source, apart, settings, 0, 1)["seconds"]
    epochs = resolve(shlex.split(settings))["epochs"]
    short = max(1, epochs // 10)
    line = trial(method, source, apart, f"{settings} --epochs {short}", 0, 1)
    return line["seconds"] * epochs / short


def value(line: dict) -> float:
    """The mean over its folds of log MRR − log MSE, of the tasks it has; −inf if not finite."""
    own = {name: line[name] for name in METRICS if line[name][0] is not None}
    terms = [METRICS[name] * np.log(values).mean() for name, values in own.items()]
    return float(sum(terms)) if terms else -math.inf


def key(line: dict) -> tuple:
    """Data, share apart and method; settings and first fold. Early lines lack what was the same."""
    settings = line.get("arguments") or line["settings"]
    method = line.get("method") or (settings if settings in SEARCHES else "ours")
    data = line.get("data_sha256", DATASETS["ml-100k"].sha256), line.get("apart", 0.05)
    return (*data, method), (name_of(settings), line.get("first_fold", 0))


def ranked(lines: list[dict]) -> list[dict]:
    """The trials of a search by their value, best first; those on the most folds alone."""
    trials: dict[str, list[dict]] = {}
    for line in lines:
        trials.setdefault(key(line)[1][0], []).append(line)
    most, merged = max(map(len, trials.values())), []
    for parts in trials.values():
        if len(parts) == most:
            merged.append(parts[0] | {m: [x for part in parts for x in part[m]] for m in METRICS})
            merged[-1]["value"] = value(merged[-1])
    return sorted(merged, key=lambda each: -each["value"])


# ---- a search ------------------------------------------------------------------------------


def distribution(choices: list | dict):
    """Of a setting in searches.toml."""
    if isinstance(choices, list):
        return CategoricalDistribution(choices)
    kind = IntDistribution if isinstance(choices["low"], int) else FloatDistribution
    return kind(**{"log": True, **choices})


class Search:
    """A method's search on some data, by ``plan``: its table of searches.toml, and minutes."""

    def __init__(self, method: str, source: str, apart: float, plan, path: Path, workers: int):
        self.what, self.plan, self.path, self.workers = (method, source, apart), plan, path, workers
        own = loaded(source).sha256, apart, method
        keyed = [(*key(line), line) for line in records.read(path)]
        self.lines = {which: line for search, which, line in keyed if search == own}
        self.parallel = min(workers, plan.at_once)
        spent = sum(line.get("seconds", 0) for line in self.lines.values()) / self.parallel
        self.end = time.perf_counter() + plan.minutes * 60 - spent
        self.folds, self.a_fold = plan.folds[0], 0.0  # of a trial; seconds, until there is a line

    def seconds(self, trials: int) -> float:
        """About what so many take."""
        taken = [x["seconds"] / self.folds for x in self.lines.values() if "seconds" in x]
        return trials * self.folds * fmean(taken or [self.a_fold]) / self.parallel

    def finalists(self, trials: int) -> int:
        """How many of so many trials are tried on as many folds again."""
        return min(self.plan.finalists, trials // 8 * 2)

    def begin(self, settings: dict | str) -> None:
        """Settle the folds and tell the cost. Raises ValueError where the minutes are too few."""
        plan, (method, source, _) = self.plan, self.what
        if before := [line for (_, first), line in self.lines.items() if not first]:
            self.folds = len(before[0]["mrr"])
        else:
            self.a_fold = self.pool.submit(seconds_of_a_fold, *self.what, settings).result()
            for self.folds in plan.folds:
                if self.seconds(ENOUGH) <= plan.minutes * 60:
                    break
            if (least := self.seconds(plan.at_once) / 60) > plan.minutes:
                raise ValueError(f"--minutes {plan.minutes:g}: the first trials take {least:.2g}")
        if each := self.seconds(1):
            trials = min(plan.trials, plan.minutes * 60 // each)
            told = f"{trials:.0f} trials on {self.folds} validation part(s)"
            train.say(f"{method} on {source}: about {told} in {trials * each / 60:.0f} minutes")

    def lines_of(self, asked: list, first: int = 0) -> list[dict]:
        """The lines of settings on the folds from the first; those that are lacking are made."""
        names = [(name_of(settings), first) for settings in asked]
        lacking = {w: x for w, x in zip(names, asked, strict=True) if w not in self.lines}
        make = partial(partial(trial, *self.what), first=first, folds=self.folds)
        for which, line in zip(lacking, self.pool.map(make, lacking.values()), strict=True):
            self.lines[which] = line
            records.append(self.path, [line])
            train.say(f"{value(line):.4f} {which[0]}")
        return [self.lines[which] for which in names]

    def run(self) -> list[dict]:
        """Its lines, those made that the file lacks, and put there. Raises as ``begin`` does."""
        plan = self.plan
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options = {"n_startup_trials": plan.startup or plan.trials // 4, "multivariate": True}
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, **options))
        space = {name: distribution(choices) for name, choices in plan.space.items()}
        for settings in plan.first:
            given = isinstance(settings, dict)
            study.enqueue_trial(settings if given else dict(zip(space, settings, strict=True)))
        at_interrupt = signal.SIGINT, signal.SIG_DFL
        with ProcessPoolExecutor(self.workers, None, signal.signal, at_interrupt) as self.pool:
            for made in range(0, plan.trials, plan.at_once):
                trials = [study.ask(space) for _ in range(plan.at_once)]
                asked = [told(self.what[0], each.params) for each in trials]
                if not made:
                    self.begin(asked[0])
                    self.lines_of(plan.also)
                costs = plan.at_once + self.finalists(made + plan.at_once)
                late = time.perf_counter() + self.seconds(costs) > self.end
                if late and any((name_of(each), 0) not in self.lines for each in asked):
                    break
                for each, line in zip(trials, self.lines_of(asked), strict=True):
                    study.tell(each, -value(line))
            first = [line for (_, fold), line in self.lines.items() if not fold]
            best = ranked(first)[: self.finalists(len(first))]
            self.lines_of([line.get("arguments") or line["settings"] for line in best], self.folds)
        return [*self.lines.values()]


def write_recipe(path: Path, source: str, best: dict) -> None:
    """The settings chosen as a file of arguments."""
    got = " and ".join(f"{name.upper()} {fmean(best[name]):.4f}" for name in METRICS)
    text = f"# Chosen by {got} on validation parts inside the training part of seed 0.\n"
    arguments = textwrap.fill(best["arguments"], 98, break_on_hyphens=False)
    text += f"--data {source}\n{arguments}\n"
    write_whole(path, text.encode())
    train.say(f"python train.py @{path}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.tune", description=__doc__)
    methods, add = ["ours", *baselines.TUNABLE], parser.add_argument
    add("--data", default="ml-100k", help="a named data set, or a ratings file (ml-100k)")
    add("--columns", help="as train.py has it")
    add("--titles", help="as train.py has it, for the recipe")
    add("--method", choices=methods, default="ours", help="(ours) %(choices)s")
    add("--minutes", type=number(float, 0), help="of wall time, in all")
    add("--trials", type=number(int, 1), help="of the sampler, at most")
    add("--workers", type=number(int, 1), default=2, help="worker processes, a thread each (2)")
    share = number(float, 0.05, 0.5)
    add("--apart", type=share, default=0.05, help="share of ratings it never sees (0.05)")
    add("--out", type=Path, default=Path("runs/tune"), help="folder of its files (runs/tune)")
    options = parser.parse_args(argv)
    method, on_record = options.method, not (options.minutes or options.trials)
    if on_record and options.data != "ml-100k":
        parser.error(f"--data {options.data} needs --minutes: the search on record is of ml-100k")
    if method != "ours" and (reason := baselines.missing(method)):
        parser.error(reason)
    plan = SimpleNamespace(**vars(SEARCHES[method]), minutes=options.minutes or math.inf, also=[])
    if not on_record:
        vars(plan).update(BUDGET, trials=options.trials or MOST)
        plan.also = [" ".join(recipe())] if method == "ours" else []
    try:
        flags = {name: getattr(options, name) for name in ("columns", "titles")}
        flags = [word for name, x in flags.items() if x for word in (f"--{name}", x)]
        source = resolve(["--data", options.data, *flags])["data"]
        file, source = Path(source).stem, shlex.join([source, *flags])
        path = options.out / ("tuning.jsonl" if method == "ours" else "baselines_tuning.jsonl")
        best = ranked(Search(method, source, options.apart, plan, path, options.workers).run())[0]
        if plan.also:
            write_recipe(options.out / f"{file}.txt", source, best)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        train.say("stopped: the same command goes on")
        return 130
    print(json.dumps(best))
    return 0


if __name__ == "__main__":
    sys.exit(main())
