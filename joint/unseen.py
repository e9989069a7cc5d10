"""Is one joint model ahead of the specialists on splits that no search has seen?

    python -m joint.unseen                               # ml-100k
    python -m joint.unseen --data filmtrust              # each method's search, then the splits
    python -m joint.unseen --methods ours --seeds 1000-1009

Splits, methods, budgets and tests are design.py's. A method's settings are those on record on
ml-100k, elsewhere those its search chose. A fit is a line of results/unseen.jsonl, a trial one of
unseen_tuning.jsonl: lines already there stand, an interrupted command goes on.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from arguments import Parser, seed_list
from data import load
from joint import baselines
from joint.design import APART, BUDGETS, COMPARED, SEARCHES, TRIALS, UNSEEN, recipe, unseen_split
from joint.tune import BUDGET, Search, fit_and_test, ranked
from study import records
from train import say


def settings_of(method: str, name: str, results: Path) -> dict | str:
    """On ml-100k those on record, elsewhere the best of the method's search, made if lacking."""
    on_record = " ".join(recipe()) if method == "ours" else SEARCHES[method].settings
    if name not in BUDGETS or not SEARCHES[method].space:
        return on_record
    plan = vars(SEARCHES[method]) | BUDGET | dict(trials=TRIALS, minutes=BUDGETS[name])
    plan |= {"also": [on_record]}
    search = method, name, APART[name], SimpleNamespace(**plan), results / "unseen_tuning.jsonl"
    best = ranked(Search(*search, workers=1).run())[0]
    return best["arguments" if method == "ours" else "settings"]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.unseen", description=__doc__)
    add = parser.add_argument
    add("--data", choices=UNSEEN, default="ml-100k", help="%(choices)s (ml-100k)")
    add("--methods", metavar="METHOD", nargs="+", choices=COMPARED, default=COMPARED, help="(all)")
    add("--seeds", type=seed_list, help="of splits and methods (those of design.py)")
    add("--results", type=Path, default=Path("results"), help="folder of the lines (results)")
    options = parser.parse_args(argv)
    name, path = options.data, options.results / "unseen.jsonl"
    for method in options.methods:
        if method != "ours" and (reason := baselines.missing(method)):
            parser.error(reason)
    try:
        data = load(name)
        settings = {m: settings_of(m, name, options.results) for m in options.methods}
        records.append(path, [])  # a place that can't be written to is told now
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for seed in options.seeds or seed_list(UNSEEN[name]):
        for method in options.methods:
            told = {"experiment": "unseen", "data": name, "method": method, "seed": seed}
            if any(told.items() <= line.items() for line in records.read(path)):
                continue
            part = unseen_split(name, data, seed)
            [fit] = fit_and_test(method, data, settings[method], [seed], [part], "test")
            line = told | {"settings": settings[method], "data_sha256": data.sha256} | fit
            library = SEARCHES[method].package or SEARCHES[method].library
            records.append(path, [line | records.provenance("scipy", library)])
            say(f"{name} {method} {seed}: " + json.dumps({m: line[m] for m in ("mrr", "mse")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
