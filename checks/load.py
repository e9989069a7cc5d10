"""How long does loading take, against pandas? One JSON line: CPU seconds, ratios, peak memory.

    python -m checks.load --rows 20000000

Each of three runs in a process of its own, `--rounds` times in turn, medians told: `pandas` is
read_csv with default types, a sorted factorize of both id columns and drop_duplicates of the pairs;
`load` reads the file, hashed, checked and its arrays kept; `again` starts from those. The file is
planted data at MovieLens 20M's size, half stars, made in a temporary folder.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from arguments import Parser, number
from checks.synthetic import synthetic

START = "import re, sys, time, data, pandas as pd; start = time.process_time(); "
LOAD = "data.load(sys.argv[1]); "
PANDAS = (
    "table = pd.read_csv(sys.argv[1]); "
    "[pd.factorize(table[side], sort=True) for side in ('userId', 'movieId')]; "
    "table.drop_duplicates(['userId', 'movieId']); "
)
END = (
    "status = open('/proc/self/status').read(); "
    "print(time.process_time() - start, *re.findall(r'VmHWM:\\s*(\\d+)', status))"
)


def write_ratings(path: Path, rows: int) -> None:
    share = (rows / 20_000_000) ** 0.5
    n_users, n_items = round(138_493 * share), round(26_744 * share)
    made = synthetic(n_users, n_items, rows, seed=0)
    halves = np.random.default_rng(0).integers(0, 2, rows) / 2
    columns = {
        "userId": made.user_labels[made.user_ids],
        "movieId": made.item_labels[made.item_ids],
        "rating": made.ratings - halves,
        "timestamp": made.timestamps,
    }
    pd.DataFrame(columns).to_csv(path, index=False)


def main() -> None:
    parser = Parser(prog="python -m checks.load", description=__doc__)
    parser.add_argument("--rows", type=number(int, 1000), default=20_000_000, help="of the file")
    parser.add_argument("--rounds", type=number(int, 1), default=3, help="of all three")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"pandas": [], "load": [], "again": []}
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ratings.csv")
        write_ratings(path, arguments.rows)
        environment = {"MULTITASK_DATA": folder, "OMP_NUM_THREADS": "1"}
        for _ in range(arguments.rounds):
            for kept in Path(folder).glob("rows-*"):
                kept.unlink()
            for name, taken in seconds.items():
                code = START + (PANDAS if name == "pandas" else LOAD) + END
                command = [sys.executable, "-c", code, str(path)]
                done = subprocess.run(
                    command, env=os.environ | environment, capture_output=True, check=True
                )
                second, peak = done.stdout.split()
                taken.append(float(second))
                peaks[name] = round(int(peak) / 2**20, 2)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratios = {name: round(medians[name] / medians["pandas"], 3) for name in ("load", "again")}
    rounded = {name: round(median, 2) for name, median in medians.items()}
    result = {"rows": arguments.rows, "cpu_seconds": rounded, "ratio_to_pandas": ratios}
    print(json.dumps({**result, "peak_gib": peaks}))


if __name__ == "__main__":
    main()
