"""Does the reader ever crash, or change data silently? Odd files against an independent oracle.

    python -m checks.fuzz_data --files 10000 --seed 0

Each file starts as a well-formed one of random make (separator, header or none, quotes, line ends,
dates, columns told by name or number, packed or not) and then suffers up to two injuries.
`data.load` must give exactly the rows of `expected`, or refuse in one line what that refuses.
The last line is JSON: how many were `accepted` and `refused` as they should be, and four that must
be 0: `tracebacks` (anything but a one-line ValueError that names the file), `silent_changes` (other
rows than the oracle's), `wrongly_accepted` and `wrongly_refused`.
"""

import csv
import datetime
import gzip
import io
import json
import random
import re
import sys
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
from tqdm import tqdm

import data
from arguments import Parser, number
from ratings_file import NAMES

TOP = 2**63 - 1
PLAIN = [str(n) for n in range(1, 15)]
IDS = '1 2 10 007 -3 +1 é 日本 a,b a"b a;b a::b -0 1_0 ٣ 1.0 NA nan True'.split()
IDS += ["u 1", "x\ny", " 1", "x" * 256, str(TOP), str(TOP + 1), str(-TOP - 1)]
TIMES = f"881250949 0 -5 881250949.0 8.5e2 {TOP} {-TOP - 1} 007 1. {2**53 + 1}.00 -0.0".split()
DATES = "2019-03-04 1969-12-31T23:59:59.9Z 2000-02-29T12:30+05:30 2019-03-04T05:06:07".split()
HEADERS = {  # by kind of column: names, cells, bad cells
    "user": ("userId,user_id,USER,user_id:token,User-ID", IDS, ["", "x" * 257]),
    "item": ("movieId,item_id,Item,isbn,item_id:token", IDS, ["", "x" * 257]),
    "rating": (
        "rating,Rating,rating:float,score,Book-Rating",
        "1 5 3.5 0.5 -1 +2 4. .5 1e0 25E-1 3.3333333333333 0".split(),
        ["", " 3", "3 ", "x\ny", "3\u20285", "9" * 60]
        + "nan inf -Infinity 1_0 ٣ abc 1e39 0x1 1,5 1,000.5 1e . + --1 1e400 NULL True".split(),
    ),
    "time": (
        "timestamp,TIMESTAMP,timestamp:float,date",
        TIMES,
        ["", " 5", "2019-13-04", "2019-02-30", "04/03/2019", "2019-03-04 25:00", "2019-03-04x05"]
        + f"1.5 {2**63} 1e19 nan soon 1e-3 1_000 1e999 ٣ 12:30 True NA".split(),
    ),
    "extra": ("genre,genre,,title,year", ["", "a", "1995"], ["\t", "'", "\\", "a b"]),
}
KINDS = ["user", "item", "rating", "time"]
BAD = {kind: bad for kind, (_, _, bad) in HEADERS.items()}
DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ][-+Z:.,\d]+)?", re.ASCII)
ODD_BYTES = [b"\0", b'"', b",", b"\t", b" ", b"\r", b"\n", b"\xff", b"\xc3", b"\xef\xbb\xbf"]
ODD_BYTES += [b"''", b";", b"::", b"|"]
OUTCOMES = "accepted refused tracebacks silent_changes wrongly_accepted wrongly_refused".split()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("README", "no ratings")
        archive.writestr("ratings.csv", content)
    return file.getvalue()


def expected(content: bytes, columns: str | None) -> list[tuple]:
    """(user, item, rating, time) as `data.load` must give them; ValueError where it must refuse."""
    try:
        if content.startswith(b"PK\3\4"):
            content = zipfile.ZipFile(io.BytesIO(content)).read("ratings.csv")
        elif content.startswith(b"\x1f\x8b"):
            content = gzip.open(io.BytesIO(content)).read()
    except Exception as error:
        raise ValueError("packing") from error
    text = content.decode("utf-8-sig")
    first_line = re.sub('"[^"]*"', "", re.split("[\r\n]", text.lstrip("\r\n"))[0])
    found = [(first_line.index(x), x) for x in ("\t", "::", ";", ",", "|") if x in first_line]
    separator = min(found)[1] if found else " " if " " in first_line else ","
    if separator == " ":
        lines = (re.split("[ \t\v\f]+", x.strip(" \t\v\f")) for x in re.split("\r\n|\r|\n", text))
        text = "\n".join("\x1f".join(line) for line in lines)
    delimiter = "\x1f" if separator in (" ", "::") else separator
    lines = io.StringIO(text.replace(separator, delimiter), newline="")
    try:
        records = [x for x in csv.reader(lines, delimiter=delimiter, strict=True) if x]
    except csv.Error as error:
        raise ValueError("quotes") from error
    if "\0" in text or not records or any(len(x) != len(records[0]) for x in records):
        raise ValueError("rows")
    at = places(records[0], columns or "")
    if not DECIMAL.fullmatch(records[0][at["rating"]].replace(",", ".")):
        records = records[1:]
    latest: dict[tuple, tuple] = {}
    for row, record in enumerate(records):
        user, item, rating, *times = (record[place] for place in at.values())
        rating = rating.replace(",", ".") if separator == ";" else rating
        moment = _moment(times[0]) if times else None
        with np.errstate(over="ignore"):
            value = float(np.float32(float(_number(rating) and rating)))
        if not (np.isfinite(value) and 1 <= len(user) <= 256 and 1 <= len(item) <= 256):
            raise ValueError("cell")
        seen = latest.get((user, item))
        if seen is None or not times or moment >= seen[-1]:
            latest[user, item] = (row, user, item, value, moment)
    if not latest:
        raise ValueError("rows")
    return [row[1:] for row in sorted(latest.values())]


def places(first: list[str], columns: str) -> dict[str, int]:
    """Where each kind of column stands, by the first line and what was told of it."""
    kinds: list[str | None] = [None] * len(first)
    for place, name in enumerate(first):
        plain = re.sub("[-_. ]", "", name.lower().split(":")[0])
        kinds[place] = next((kind for kind, x in NAMES.items() if plain in x.split()), None)
    numbers = [DECIMAL.fullmatch(x.replace(",", ".")) or DATE.fullmatch(x) for x in first]
    if not any(kinds) and len(first) > 2 and numbers[2]:
        kinds[:3] = "user", "item", "rating"
        kinds[3:4] = ["time" if number else None for number in numbers[3:4]]
    for kind, name in (part.split("=") for part in columns.split(",") if part):
        kinds = [None if x == kind else x for x in kinds]
        at = range(1, len(first) + 1) if name.isdecimal() else first
        named = [k for k, x in enumerate(at) if str(x) == name]
        if name and not named:
            raise ValueError("told")
        for place in named:
            kinds[place] = kind
    if not all(kinds.count(kind) == 1 for kind in KINDS[:3]) or kinds.count("time") > 1:
        raise ValueError("header")
    return {kind: kinds.index(kind) for kind in KINDS if kind in kinds}


def _number(text: str) -> Fraction:
    """A decimal in ASCII without frills, exactly."""
    if not DECIMAL.fullmatch(text):
        raise ValueError(text)
    return Fraction(text)


def _moment(text: str) -> int:
    if DATE.fullmatch(text):
        moment = datetime.datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=None) - (moment.utcoffset() or datetime.timedelta())
        return (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(seconds=1)
    number = _number(text)
    if number.denominator != 1 or not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return int(number)


def odd_file(rng: random.Random) -> tuple[bytes, str | None]:
    """One file and what is told of its columns: well-formed at first, injured in most cases."""
    kinds = ["user", "item", "rating"] + ["time"] * (rng.random() < 0.7)
    headed, told = rng.random() < 0.8, rng.random() < 0.15
    kinds += ["extra"] * rng.choice([0, 0, 0, 1, 3])
    header = [rng.choice(HEADERS[kind][0].split(",")) for kind in kinds]
    tame = rng.random() < 0.4  # a file as pandas reads it
    pools = {kind: cells for kind, (_, cells, _) in HEADERS.items()}
    pools["user"] = pools["item"] = PLAIN if tame else rng.choice([IDS, PLAIN])
    pools["time"] = PLAIN if tame else rng.choice([TIMES, DATES, TIMES + DATES])
    rows = [[rng.choice(pools[kind]) for kind in kinds] for _ in range(rng.choice([1, 2, 5, 20]))]
    if rng.random() < 0.25:
        column = rng.randrange(len(kinds))
        rng.choice(rows)[column] = rng.choice(BAD[kinds[column]])
    order = list(range(len(kinds)))
    if headed or told:
        rng.shuffle(order)
    if told:
        header = [f"{rng.choice('abc')}{k}" for k in range(len(kinds))]
        names = [[x, str(order.index(k) + 1)][not headed :] for k, x in enumerate(header)]
        told = [f"{kind}={rng.choice(names[k])}" for k, kind in enumerate(kinds) if kind != "extra"]
    separator, ends = rng.choice(",,,\t;|\x1f\x1f "), rng.choice(["\n", "\n", "\r\n", "\r"])
    if separator == ";" and rng.random() < 0.5:
        rows = [[x.replace(".", ",") if k == 2 else x for k, x in enumerate(row)] for row in rows]
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if rng.random() < 0.2 and not tame else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=separator, lineterminator=ends, quoting=quoting)
    blank = rng.randrange(25 if tame else 5)
    for k, row in enumerate([header] * headed + rows):
        writer.writerows([[]] * (k == blank) + [[row[place] for place in order]])
    text = text.getvalue().replace("\x1f", "::")
    content = text.encode("utf-8-sig" if rng.random() < 0.2 else "utf-8")
    pack = rng.choice([gzip.compress, zipped]) if rng.random() < 0.1 else bytes
    injuries = rng.choice([0, 0, 0, 1, 1, 2])
    packed = rng.randrange(injuries + 1)  # so many injuries happen before
    for k in range(injuries + 1):
        content = pack(content) if k == packed else content
        content = _injured(rng, content) if k < injuries else content
    return content, ",".join(told) if told else None


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


def verdict(path: Path, content: bytes, columns: str | None = None) -> str:
    """Load the file and say how it went against the oracle."""
    path.write_bytes(content)
    try:
        rows = expected(content, columns)
    except (ValueError, OverflowError):
        rows = None
    try:
        with mock.patch("sys.stderr"):
            loaded = data.load(path, columns)
    except Exception as error:
        told = str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        if not isinstance(error, ValueError) or not told:
            return "tracebacks"
        return "refused" if rows is None else "wrongly_refused"
    if rows is None:
        return "wrongly_accepted"
    return "accepted" if loaded_rows(loaded) == rows else "silent_changes"


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
            content, columns = odd_file(rng)
            outcome = verdict(Path(folder, "odd.csv"), content, columns)
            counts[outcome] += 1
            if outcome not in ("accepted", "refused"):
                shown = f"file {k}: {outcome}: columns {columns}: {content[:300]!r}"
                tqdm.write(shown, file=sys.stderr)
    print(json.dumps({"files": arguments.files, "seed": arguments.seed, **counts}))


if __name__ == "__main__":
    main()
