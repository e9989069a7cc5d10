"""What do threads, processes and size cost or gain? One record a measurement.

    python -m checks.scale              # all of them, in turn
    python -m checks.scale stack threads

What is compared is measured in turn, pair by pair, and a ratio is the median of the pairs' ratios:
absolute times drift from minute to minute. A line goes to stdout and to results/scale.jsonl.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from arguments import Parser, number
from checks.bench import record, set_machine
from study.records import append

MEASUREMENTS: dict[str, Callable[[int], dict]] = {}  # name -> function of the number of pairs


def measurement(function: Callable[[int], dict]) -> Callable[[int], dict]:
    MEASUREMENTS[function.__name__] = function
    return function


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m checks.scale", description=__doc__)
    add, names = parser.add_argument, list(MEASUREMENTS)
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (all)")
    add("--pairs", type=number(int, 1), default=5, help="measured of each (5)")
    add("--out", type=Path, default=Path("results/scale.jsonl"), help="records")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in MEASUREMENTS]:
        parser.error(f"{unknown[0]} is none of {', '.join(names)}")
    set_machine()
    for name in args.names or names:
        line = record(name, "cpu", {"pairs": args.pairs, **MEASUREMENTS[name](args.pairs)})
        append(args.out, [line])
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
