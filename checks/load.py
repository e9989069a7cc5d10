"""How long does loading take, against pandas? One JSON line: CPU seconds, ratios, peak memory.

    python -m checks.load --rows 20000000

Each of three runs in a process of its own, `--rounds` times in turn, medians told: `pandas` is
read_csv with default types, a sorted factorize of both id columns and drop_duplicates of the pairs;
`load` reads the file, hashed, checked and its arrays kept; `again` starts from those. The file is
planted data at MovieLens 20M's size, half stars, made in a temporary folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from arguments import Parser, number
from checks.synthetic import synthetic

PANDAS = """table = pd.read_csv(sys.argv[1])
[pd.factorize(table[side], sort=True) for side in ("userId", "movieId")]
table.drop_duplicates(["userId", "movieId"])"""
CODES = {"pandas": PANDAS, "load": "data.load(sys.argv[1])", "again": "data.load(sys.argv[1])"}
TIMED = r"""import re, sys, time, data, pandas as pd; start = time.process_time()
{}
status = open("/proc/self/status").read()
print(time.process_time() - start, int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 2**20)"""


def write_ratings(path: Path, rows: int, sized_like: int | None = None) -> None:
    """A ratings file, with as many users and items as one of ``sized_like`` rows would have."""
    share = ((sized_like or rows) / 20_000_000) ** 0.5
    made = synthetic(round(138_493 * share), round(26_744 * share), rows, seed=0)
    table = {"userId": made.user_ids + 1, "movieId": made.item_ids + 1}
    table["rating"] = made.ratings - np.random.default_rng(0).integers(0, 2, rows) / 2
    pd.DataFrame({**table, "timestamp": made.timestamps}).to_csv(path, index=False)


def main() -> None:
    parser = Parser(prog="python -m checks.load", description=__doc__)
    parser.add_argument("--rows", type=number(int, 1000), default=20_000_000, help="of the file")
    parser.add_argument("--rounds", type=number(int, 1), default=3, help="of all three")
    arguments = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        write_ratings(Path(folder, "ratings.csv"), arguments.rows)
        environment = os.environ | {"MULTITASK_DATA": folder, "OMP_NUM_THREADS": "1"}
        for _ in range(arguments.rounds):
            for kept in Path(folder).glob("rows-*"):
                kept.unlink()
            for name, code in CODES.items():
                command = [sys.executable, "-c", TIMED.format(code), f"{folder}/ratings.csv"]
                printed = subprocess.check_output(command, env=environment, text=True)
                measured.append([name, *map(float, printed.split())])
    table = pd.DataFrame(measured, columns=["name", "cpu_seconds", "peak_gib"])
    medians = table.groupby("name", sort=False).median()
    medians["ratio_to_pandas"] = medians["cpu_seconds"] / medians["cpu_seconds"]["pandas"]
    print(json.dumps({"rows": arguments.rows, **medians.round(3).to_dict()}))


if __name__ == "__main__":
    main()
