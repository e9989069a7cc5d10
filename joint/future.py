"""Who is it that a model of the past fails on, and what does it take to know them?

    python -m joint.future       # the temporal split of ml-100k, all methods of joint/unseen.py

Of the test part of data.temporal_split, in the order of time:
  warm    the rows of users that training knows
  cold    of users that it doesn't, the later half of each one's rows
  folded  the same rows, with the user's earlier half taken in without training: by the histories
          of ours and myFM, by EASE's items, by least squares of ALS and the biases
  met     the same rows, once all earlier halves have joined training: fitted anew

The last three rank the same candidates, without the user's earlier half. Halves are each user's own
in time: when `met` is trained, other users' earlier halves may be later than a row tested.

Settings are those on record for random splits. A fit is a line of results/future.jsonl: lines
already there stand.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from arguments import Parser, seed_list
from data import Interactions, Split, load, temporal_split
from joint import baselines
from joint.design import COMPARED, SEARCHES
from joint.tune import fit_and_test
from joint.unseen import settings_of
from study import records

GROUPS = ("warm", "cold", "folded", "met")


def future_splits(data: Interactions) -> dict[str, Split]:
    """By group what is trained on and tested; in between, as validation part, the earlier half.

    Raises ValueError where data has no timestamps.
    """
    past = temporal_split(data)
    users = pd.Series(data.user_ids[past.test])
    known = users.isin(data.user_ids[past.train]).to_numpy()
    rows = users.groupby(users)
    later = (rows.cumcount() >= rows.transform("size") // 2).to_numpy()
    train, none, earlier = past.train, past.validation, past.test[~known & ~later]
    cold, met = past.test[~known & later], np.concatenate([train, earlier])
    return {
        "warm": Split(train, none, past.test[known]),
        "cold": Split(train, earlier, cold),
        "folded": Split(train, earlier, cold),
        "met": Split(met, none, cold),
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m joint.future", description=__doc__)
    add = parser.add_argument
    add("--methods", metavar="METHOD", nargs="+", choices=COMPARED, default=COMPARED, help="(all)")
    add("--seeds", type=seed_list, default=[0], help="of what is random (0)")
    add("--results", type=Path, default=Path("results"), help="folder of the lines (results)")
    options = parser.parse_args(argv)
    path, name = options.results / "future.jsonl", "ml-100k"
    for method in options.methods:
        if method != "ours" and (reason := baselines.missing(method)):
            parser.error(reason)
    try:
        splits = future_splits(data := load(name))
        records.append(path, [])  # a place that can't be written to is told now
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for method in options.methods:
        settings = settings_of(method, name, options.results)
        fixed = method in ("popularity", "biases", "ease")  # nothing is random
        for seed in options.seeds[:1] if fixed else options.seeds:
            for group, split in splits.items():
                told = {"experiment": "future", "method": method, "group": group, "seed": seed}
                if any(told.items() <= line.items() for line in records.read(path)):
                    continue
                fold = group == "folded"
                [fit] = fit_and_test(method, data, settings, [seed], [split], "test", fold)
                size = {"rows": len(split.test), "users": len(set(data.user_ids[split.test]))}
                line = told | size | {"settings": settings} | fit
                library = SEARCHES[method].package or SEARCHES[method].library
                records.append(path, [line | records.provenance("scipy", library)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
