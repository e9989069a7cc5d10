"""Does the reader ever crash, or change data silently? Odd files against an independent oracle.

    python -m checks.fuzz_data --files 10000 --seed 0

Each file starts as a well-formed one of random make and then suffers up to two injuries.
`data.load` must give exactly the rows of `expected_rows`, or refuse in one line what that refuses,
whether it reads the file in one block or in many. The last line is JSON: how many were `accepted`
and `refused` as they should be, and four that must be 0: `tracebacks` (anything but a one-line
ValueError that names the file), `silent_changes` (other rows than the oracle's),
`wrongly_accepted` and `wrongly_refused`.
"""

import csv
import io
import json
import random
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
from tqdm import tqdm

import data
import ratings_file
from arguments import Parser, number

NAMES = {
    "user": ["userId", "user_id", "USER", "user_id:token", "userid"],
    "item": ["movieId", "item_id", "Item", "movie_id", "itemId", "item_id:token"],
    "rating": ["rating", "Rating", "rating:float"],
    "timestamp": ["timestamp", "TIMESTAMP", "timestamp:float"],
}
TOP = 2**63 - 1
PLAIN = [str(n) for n in range(1, 15)]
IDS = '1 2 10 007 -3 +1 é 日本 a,b a"b -0 1_0 ٣ 1.0 NA nan True'.split()
IDS += ["u 1", "x\ny", " 1", "x" * 256, str(TOP), str(TOP + 1), str(-TOP - 1)]
RATINGS = "1 5 3.5 0.5 -1 +2 4. .5 1e0 25E-1 3.3333333333333 0".split()
TIMES = f"881250949 0 -5 881250949.0 8.5e2 {TOP} {-TOP - 1} 007 1. {2**53 + 1}.00 -0.0".split()
BAD = {
    "user": ["", "x" * 257],
    "item": ["", "x" * 257],
    "rating": ["", " 3", "3 ", "x\ny", "3\u20285", "9" * 60]
    + "nan inf -Infinity 1_0 ٣ abc 1e39 0x1 1,5 1e . + --1 1e400 NULL True".split(),
    "timestamp": ["", " 5"] + f"1.5 {2**63} 1e19 nan soon 1e-3 1_000 1e999 ٣ 12:30 True NA".split(),
    "extra": ["\t", "'", "\\", "a b"],
}
ODD_BYTES = [b"\0", b'"', b",", b"\t", b" ", b"\r", b"\n", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"''"]
OUTCOMES = "accepted refused tracebacks silent_changes wrongly_accepted wrongly_refused".split()


def expected_rows(content: bytes) -> list[tuple]:
    """(user, item, rating, time) as `data.load` must give them; ValueError where it must refuse."""
    text = content.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("NUL")
    first_line = text.lstrip("\r\n").replace("\r", "\n").partition("\n")[0]
    lines = io.StringIO(text, newline="")
    try:
        reader = csv.reader(lines, delimiter="\t" if "\t" in first_line else ",", strict=True)
        header, *records = (record for record in reader if record)
    except csv.Error as error:
        raise ValueError("quotes") from error
    header = [name.lower() for name in header]
    at = []
    for names in NAMES.values():
        at.append([k for k, name in enumerate(header) if name in map(str.lower, names)])
    if list(map(len, at)) not in ([1, 1, 1, 0], [1, 1, 1, 1]) or len(set(header)) < len(header):
        raise ValueError("header")
    if not records or any(len(record) != len(header) for record in records):
        raise ValueError("rows")
    latest: dict[tuple, tuple] = {}
    for row, record in enumerate(records):
        user, item, rating, *times = (record[k] for places in at for k in places)
        moment = _number(times[0]) if times else None
        with np.errstate(over="ignore"):
            value = float(np.float32(float(_number(rating) and rating)))
        whole = not times or (moment.denominator == 1 and -(2**63) <= moment < 2**63)
        if not (whole and np.isfinite(value) and 1 <= len(user) <= 256 and 1 <= len(item) <= 256):
            raise ValueError("cell")
        seen = latest.get((user, item))
        if seen is None or not times or moment >= seen[-1]:
            latest[user, item] = (row, user, item, value, int(moment) if times else None)
    return [row[1:] for row in sorted(latest.values())]


def _number(text: str) -> Fraction:
    """A decimal in ASCII without frills, exactly."""
    exponent = text.lower().partition("e")[2].lstrip("+-")
    if not text or set(text) - set("0123456789+-.eE") or len(exponent) > 3:
        raise ValueError(text)
    return Fraction(text)


def odd_file(rng: random.Random) -> bytes:
    """One file: well-formed in most cases, then injured in most cases."""
    kinds = ["user", "item", "rating"] + ["timestamp"] * (rng.random() < 0.7)
    header = [rng.choice(NAMES[kind]) for kind in kinds]
    for extra in range(rng.choice([0, 0, 0, 1, 3])):
        kinds.append("extra")
        header.append(rng.choice(["", "title", "genre"]) + "'" * extra)
    tame = rng.random() < 0.4  # a file as pandas reads it
    ids, times = (PLAIN, PLAIN) if tame else (rng.choice([IDS, PLAIN]), TIMES)
    pools = {"user": ids, "item": ids, "rating": RATINGS, "timestamp": times, "extra": ["", "a"]}
    rows = [[rng.choice(pools[kind]) for kind in kinds] for _ in range(rng.choice([1, 2, 5, 20]))]
    if rng.random() < 0.25:
        column = rng.randrange(len(kinds))
        rng.choice(rows)[column] = rng.choice(BAD[kinds[column]])
    order = rng.sample(range(len(kinds)), len(kinds))
    text, ends = io.StringIO(newline=""), rng.choice(["\n", "\n", "\r\n", "\r"])
    quoting = csv.QUOTE_ALL if rng.random() < 0.2 and not tame else csv.QUOTE_MINIMAL
    options = {"delimiter": rng.choice(",,\t"), "lineterminator": ends, "quoting": quoting}
    writer = csv.writer(text, **options)
    blank = rng.randrange(25 if tame else 5)
    for k, row in enumerate([header, *rows]):
        writer.writerows([[]] * (k == blank) + [[row[place] for place in order]])
    content = text.getvalue().encode("utf-8-sig" if rng.random() < 0.2 else "utf-8")
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        content = _injured(rng, content)
    return content


def _injured(rng: random.Random, content: bytes) -> bytes:
    place, lines = rng.randrange(len(content) + 1), content.split(b"\n")
    before, after = content[:place], content[place:]
    injuries = [
        before,
        before + rng.randbytes(1) + after[1:],
        before + rng.choice(ODD_BYTES) + after,
    ]
    injuries += [before + after[rng.randrange(1, 9) :], b"\n".join([*lines, rng.choice(lines)])]
    injuries += [b"\n".join(lines[1:]), b"\n".join(rng.sample(lines, len(lines)))]
    injuries += [content * rng.choice([0, 2]), content.decode("latin-1").encode("utf-16")]
    return rng.choice(injuries)


def verdict(path: Path, content: bytes, block: int = ratings_file.BLOCK) -> str:
    """Load the file, `block` bytes at a time, and say how it went against the oracle."""
    path.write_bytes(content)
    try:
        expected = expected_rows(content)
    except ValueError:
        expected = None
    try:
        with mock.patch.object(ratings_file, "BLOCK", block), mock.patch("sys.stderr"):
            loaded = data.load(path)
    except Exception as error:
        told = str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        if not isinstance(error, ValueError) or not told:
            return "tracebacks"
        return "refused" if expected is None else "wrongly_refused"
    if expected is None:
        return "wrongly_accepted"
    return "accepted" if loaded_rows(loaded) == expected else "silent_changes"


def loaded_rows(loaded: data.Interactions) -> list[tuple]:
    """Back to text, as the file had it."""
    users = loaded.user_labels[loaded.user_ids].astype(str).tolist()
    items = loaded.item_labels[loaded.item_ids].astype(str).tolist()
    times = [None] * len(loaded) if loaded.timestamps is None else loaded.timestamps.tolist()
    return list(zip(users, items, loaded.ratings.tolist(), times, strict=True))


def main() -> None:
    parser = Parser(prog="python -m checks.fuzz_data", description=__doc__)
    parser.add_argument("--files", type=number(int, 1), default=10000, help="how many")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the generator")
    arguments = parser.parse_args()
    counts = dict.fromkeys(OUTCOMES, 0)
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        for k in tqdm(range(arguments.files), unit="file"):
            content, block = odd_file(rng), rng.choice([16, 100, 2**26])
            outcome = verdict(Path(folder, "odd.csv"), content, block)
            counts[outcome] += 1
            if outcome not in ("accepted", "refused"):
                tqdm.write(f"file {k}: {outcome}: {content[:300]!r}", file=sys.stderr)
    print(json.dumps({"files": arguments.files, "seed": arguments.seed, **counts}))


if __name__ == "__main__":
    main()
