"""Does the parser ever crash, or change data silently? Odd files against an independent oracle.

    python -m checks.fuzz_data --files 10000 --seed 0

Each file starts as a well-formed one of random make (delimiter, quotes, line ends, byte-order mark,
extra columns, odd ids, repeated pairs) and then suffers up to three injuries, from a bad value to
flipped bytes. `data.load` must give exactly the rows of `expected_rows`, a reader written by hand
that shares no code with it, or refuse in one line what that refuses. The last line is JSON:

    tracebacks          an exception other than a one-line ValueError that names the file
    silent_changes      loaded, but other rows than the oracle's
    wrongly_accepted    loaded, where the oracle refuses
    wrongly_refused     refused, where the oracle reads rows
"""

import contextlib
import io
import json
import math
import random
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from arguments import Parser, number

Rows = list[tuple[str, str, float, int | None]]

NAMES = {
    "user": ["userId", "user_id", "USER", "user_id:token", "userid"],
    "item": ["movieId", "item_id", "Item", "movie_id", "itemId", "item_id:token"],
    "rating": ["rating", "Rating", "rating:float"],
    "timestamp": ["timestamp", "TIMESTAMP", "timestamp:float"],
}
IDS = ["1", "2", "10", "007", "-3", "+1", "u 1", "é", "日本", "a,b", 'a"b', "x\ny", str(2**63 - 1)]
IDS += [str(2**63), str(-(2**63)), "-0", "1_0", "٣", "1.0", " 1", "x" * 256]
BAD_IDS = ["", "x" * 257]
RATINGS = ["1", "5", "3.5", "0.5", "-1", "+2", "4.", ".5", "1e0", "25E-1", "3.3333333333333", "0"]
BAD_RATINGS = ["", "nan", "inf", "-Infinity", "1_0", "٣", " 3", "3 ", "abc", "1e39", "0x1", "1,5"]
BAD_RATINGS += ["1e", ".", "+", "--1", "1e400", "x\ny", "3\u20285", "NULL", "9" * 60]
TIMES = ["881250949", "0", "-5", "881250949.0", "8.5e2", str(2**63 - 1), str(-(2**63)), "007", "1."]
TIMES += [f"{2**53 + 1}.00", "-0.0"]
BAD_TIMES = ["", "1.5", str(2**63), "1e19", "nan", "soon", "1e-3", "1_000", "1e999", "٣", "12:30"]


# ---------------------------------------------------------------- the oracle


def expected_rows(content: bytes) -> Rows:
    """The rows `data.load` must give, in order; raises ValueError where it must refuse."""
    if content.startswith(b"\xef\xbb\xbf"):
        content = content[3:]
    text = content.decode("utf-8")
    if "\0" in text:
        raise ValueError("NUL")
    text = text.lstrip("\r\n")
    first_line = text.replace("\r", "\n").split("\n")[0]
    records = _records(text, "\t" if "\t" in first_line else ",")
    if len(records) < 2:
        raise ValueError("no rows")
    header = [name.lower() for name in records[0]]
    known = {kind: {name.lower() for name in names} for kind, names in NAMES.items()}
    if len(set(header)) < len(header):
        raise ValueError("a name twice")
    at = {}
    for kind, names in known.items():
        places = [place for place, name in enumerate(header) if name in names]
        if len(places) > 1 or (not places and kind != "timestamp"):
            raise ValueError(f"{len(places)} {kind} columns")
        at[kind] = places[0] if places else None
    rows = []
    for record in records[1:]:
        if len(record) != len(header):
            raise ValueError("fields")
        user, item, rating = (record[at[kind]] for kind in ("user", "item", "rating"))
        if not (1 <= len(user) <= 256 and 1 <= len(item) <= 256):
            raise ValueError("id")
        moment = None if at["timestamp"] is None else _number(record[at["timestamp"]])
        if moment is not None and (moment.denominator != 1 or not -(2**63) <= moment < 2**63):
            raise ValueError("time")
        with np.errstate(over="ignore"):
            value = float(np.float32(float(rating if _number(rating) is not None else "")))
        if not math.isfinite(value):
            raise ValueError("rating")
        rows.append((user, item, value, None if moment is None else int(moment)))
    latest: dict[tuple[str, str], int] = {}
    for position, (user, item, _, moment) in enumerate(rows):
        earlier = latest.get((user, item))
        if earlier is None or moment is None or moment >= rows[earlier][3]:
            latest[user, item] = position
    return [rows[position] for position in sorted(latest.values())]


def _number(text: str) -> Fraction:
    """A decimal in ASCII without frills, exactly."""
    if not text or set(text) - set("0123456789+-.eE"):
        raise ValueError(text)
    exponent = text.lower().partition("e")[2].lstrip("+-")
    if len(exponent) > 3:
        raise ValueError(text)
    return Fraction(text)


def _records(text: str, delimiter: str) -> list[list[str]]:
    """Fields by a state machine; a quote opens a field only at its start, "" in it is a quote."""
    records: list[list[str]] = []
    fields: list[str] = []
    field, state = "", "start"  # start of a field, plain, quoted, closed (just after a quote)
    for character in text:
        if state == "quoted":
            if character == '"':
                state = "closed"
            else:
                field += character
        elif state == "closed" and character == '"':
            field, state = field + '"', "quoted"
        elif character == delimiter:
            fields, field, state = [*fields, field], "", "start"
        elif character in "\r\n":
            if fields or state != "start":
                records.append([*fields, field])
            fields, field, state = [], "", "start"
        elif state == "closed":
            raise ValueError("text after a closing quote")
        elif state == "start" and character == '"':
            state = "quoted"
        else:
            field, state = field + character, "plain"
        if len(field) > 131072:
            raise ValueError("long field")
    if state == "quoted":
        raise ValueError("open quote")
    if fields or state != "start":
        records.append([*fields, field])
    return records


# ---------------------------------------------------------------- the files


def odd_file(rng: random.Random) -> bytes:
    """One file: well-formed in most cases, then injured in most cases."""
    kinds = ["user", "item", "rating"] + ["timestamp"] * (rng.random() < 0.7)
    header = [rng.choice(NAMES[kind]) for kind in kinds]
    for extra in range(rng.choice([0, 0, 0, 1, 3])):
        kinds, header = (
            [*kinds, "extra"],
            [*header, rng.choice(["", "title", "genre"]) + "'" * extra],
        )
    order = rng.sample(range(len(kinds)), len(kinds))
    ids = IDS if rng.random() < 0.5 else [str(n) for n in range(1, 15)]
    pools = {"user": ids, "item": ids, "rating": RATINGS, "timestamp": TIMES, "extra": ["", "a b"]}
    rows = [[rng.choice(pools[kind]) for kind in kinds] for _ in range(rng.choice([1, 2, 5, 20]))]
    for _ in range(rng.choice([0, 0, 0, 1])):  # a bad value
        column = rng.choice([kinds.index(kind) for kind in ("user", "rating", kinds[-1])])
        bad = {"user": BAD_IDS, "rating": BAD_RATINGS, "timestamp": BAD_TIMES}
        rng.choice(rows)[column] = rng.choice(bad.get(kinds[column], ["\t", "'", "\\"]))
    delimiter, end = rng.choice(",,\t"), rng.choice(["\n", "\n", "\r\n", "\r"])
    quote_all = rng.random() < 0.2

    def written(value: str) -> str:
        if quote_all or set(value) & set(',\t"\r\n'):
            return '"' + value.replace('"', '""') + '"'
        return value

    lines = [delimiter.join(written(row[place]) for place in order) for row in [header, *rows]]
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), "")
    text = end.join(lines) + (end if rng.random() < 0.8 else "")
    content = (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.encode()
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        content = _injured(rng, content)
    return content


def _injured(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content) + 1)
    lines = content.split(b"\n")
    match rng.randrange(8):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
        case 2:
            odd = [b"\0", b'"', b",", b"\t", b"\r", b"\n", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"''"]
            return content[:place] + rng.choice(odd) + content[place:]
        case 3:
            return content[:place] + content[place + rng.randrange(1, 9) :]
        case 4:
            return b"\n".join([*lines, rng.choice(lines)])
        case 5:
            return b"\n".join(lines[1:])
        case 6:
            return b"\n".join(rng.sample(lines, len(lines)))
        case _:
            return rng.choice([b"", b"\n", content * 2, content.decode("latin-1").encode("utf-16")])


# ---------------------------------------------------------------- the comparison


def verdict(path: Path, content: bytes) -> str:
    """Load the file and say how it went against the oracle."""
    path.write_bytes(content)
    try:
        expected = expected_rows(content)
    except ValueError:
        expected = None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            loaded = data.load(path)
    except ValueError as error:
        message = str(error)
        if not message.startswith(str(path)) or len(message.splitlines()) != 1:
            return "tracebacks"
        return "refused" if expected is None else "wrongly_refused"
    except Exception:
        return "tracebacks"
    if expected is None:
        return "wrongly_accepted"
    return "accepted" if loaded_rows(loaded) == expected else "silent_changes"


def loaded_rows(loaded: data.Interactions) -> Rows:
    """Back to text, as the file had it."""
    users = map(str, loaded.user_labels[loaded.user_ids].tolist())
    items = map(str, loaded.item_labels[loaded.item_ids].tolist())
    times = [None] * len(loaded) if loaded.timestamps is None else loaded.timestamps.tolist()
    return list(zip(users, items, loaded.ratings.tolist(), times, strict=True))


def main() -> None:
    parser = Parser(prog="python -m checks.fuzz_data", description=__doc__)
    parser.add_argument(
        "--files", type=number(int, 1), default=10000, help="number of files (default 10000)"
    )
    parser.add_argument(
        "--seed", type=number(int, 0), default=0, help="seed of the generator (default 0)"
    )
    arguments = parser.parse_args()
    kinds = ["accepted", "refused", "tracebacks", "silent_changes", "wrongly_accepted"]
    counts = dict.fromkeys([*kinds, "wrongly_refused"], 0)
    rng = random.Random(arguments.seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for k in tqdm(range(arguments.files), unit="file"):
            content = odd_file(rng)
            outcome = verdict(Path(folder, "odd.csv"), content)
            counts[outcome] += 1
            if outcome not in ("accepted", "refused"):
                tqdm.write(f"file {k}: {outcome}: {content[:300]!r}", file=sys.stderr)
    seconds = round(time.perf_counter() - started, 1)
    print(
        json.dumps({"files": arguments.files, "seed": arguments.seed, **counts, "seconds": seconds})
    )


if __name__ == "__main__":
    main()
