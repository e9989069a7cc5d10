"""A file of ratings -> checked arrays: pandas reads the plain ones, Python's csv any other.

What pandas reads is proved to be what csv would have given; whatever isn't plain, or has a wrong
cell, is read again cell by cell, so that the error names the line and the column. The arrays of
large files are kept beside the downloads, in `$MULTITASK_DATA` or the user's cache folder.
"""

import contextlib
import csv
import decimal
import functools
import hashlib
import io
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
from pandas.api.types import union_categoricals

COLUMNS = {
    "user": ("userid", "user_id", "user", "user_id:token"),
    "item": ("movieid", "movie_id", "itemid", "item_id", "item", "item_id:token"),
    "rating": ("rating", "rating:float"),
    "timestamp": ("timestamp", "timestamp:float"),
}
LONGEST_LABEL = 256  # characters; label arrays are as wide as their longest label
DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
BLOCK = 2**26  # bytes that pandas reads at a time


def wrong(found: str, right: str) -> ValueError:
    return ValueError(f"{found}; {right} would be right")


def say(message: str) -> None:
    print(f"data: {message}", file=sys.stderr)


def short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _label(text: str) -> str:
    if not 0 < len(text) <= LONGEST_LABEL:
        found = f"{short(text)} has {len(text)} characters"
        raise wrong(found, f"an id of 1 to {LONGEST_LABEL}")
    return text


@functools.lru_cache(2**16)  # a file has few distinct ratings
def _rating(text: str) -> float:
    if not DECIMAL.fullmatch(text):
        raise wrong(f"{short(text)} is not a number", "a finite decimal like 3.5")
    if abs(float(text)) >= 2.0**128 - 2.0**103:  # where float32 rounds to infinity
        raise wrong(f"{short(text)} is too large", "a rating within float32")
    return float(text)


def _time(text: str) -> int:
    if len(text) <= 18 and text.isascii() and text.isdigit():
        return int(text)
    if DECIMAL.fullmatch(text):
        number = decimal.Decimal(text)  # exact, where float would round 2^53 + 1
        if -(2**63) <= number < 2**63 and number == int(number):
            return int(number)
    raise wrong(f"{short(text)} is not a time", "a whole number of seconds within int64")


CELLS = {"user": _label, "item": _label, "rating": _rating, "timestamp": _time}


def _find_columns(header: list[str], where: str) -> dict[str, int]:
    """Kind -> position of its column."""
    kinds = {name: kind for kind, names in COLUMNS.items() for name in names}
    positions: dict[str, int] = {}
    for position, name in enumerate(header):
        kind = kinds.get(name.lower(), name.lower())
        if kind in positions:
            both = f"{short(header[positions[kind]])} and {short(name)}"
            raise wrong(f"{where}: columns {both} mean the same", "one of them")
        positions[kind] = position
    for kind in ("user", "item", "rating"):
        if kind not in positions:
            listed = ", ".join(map(short, header[:8])) + ", ..." * (len(header) > 8)
            right = " or ".join(COLUMNS[kind])
            if all(map(DECIMAL.fullmatch, header)):
                right = f"a header above the rows, with {right},"
            elif len(header) == 1 and (other := re.search("[;| ]|::", header[0])):
                right = f"commas or tabs, not {other[0]!r}, between the columns"
            raise wrong(f"{where}: no {kind} column among {listed}", right)
    return {kind: positions[kind] for kind in COLUMNS if kind in positions}


def read_table(content: bytes, shown: str) -> dict[str, np.ndarray | None]:
    """The columns of `Interactions` in a file's bytes, or what was kept of an earlier reading.

    Raises ValueError: one line that names the file as `shown`, the place, and what would be right.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    columns = _recall(sha256) if len(content) >= KEPT_FROM else None
    if columns is None:
        columns = _parse(content, shown)
        if len(content) >= KEPT_FROM:
            _keep(sha256, columns)
    columns = {"timestamps": None, **columns, "sha256": sha256}
    if dropped := int(columns.pop("dropped")):
        by = "in the file" if columns["timestamps"] is None else "by time"
        say(f"{shown}: {dropped:,} repeated (user, item) rows dropped, the last {by} kept")
    return columns


def _parse(content: bytes, shown: str) -> dict[str, np.ndarray]:
    """Fields of Interactions, timestamps only where there are some, and the rows `dropped`."""
    start, end = re.match(rb"(?:\xef\xbb\xbf)?[\r\n]*([^\r\n]*)", content).span(1)
    delimiter = "\t" if b"\t" in content[start:end] else ","
    records = _records(content, delimiter, shown)
    line, header = next(records, (0, []))
    if not header:
        raise wrong(f"{shown} is empty", "a header and at least one row")
    positions = _find_columns(header, f"{shown}, line {line}")
    first = next(records, None)
    if first is None:
        raise wrong(f"{shown} has a header but no rows", "at least one rating")
    for texts in ({"rating"}, {"rating", "user", "item"}):
        try:
            plain = _plain_blocks(content, start, delimiter, len(header))
            blocks = list(_by_pandas(plain, delimiter, len(header), positions, texts))
            break
        except ValueError:  # a bad cell, or more than pandas is trusted with here
            continue
    else:
        records = itertools.chain([first], records)
        blocks = list(_by_csv(records, header, positions, shown))
    columns: dict[str, np.ndarray] = {}
    for side in ("user", "item"):
        parts = [block.pop(side) for block in blocks]
        if isinstance(parts[0], np.ndarray):
            ids, labels = pd.factorize(np.concatenate(parts), sort=True)
        else:
            merged = union_categoricals(parts)
            labels = merged.categories.to_numpy(dtype=str)
            if all(map(_is_int64, labels.tolist())):
                labels = labels.astype(np.int64)
            labels, ranks = np.unique(labels, return_inverse=True)
            ids = ranks[merged.codes]
        columns[f"{side}_ids"], columns[f"{side}_labels"] = ids, labels
    columns["ratings"] = np.concatenate([block["rating"] for block in blocks], dtype=np.float32)
    if "timestamp" in positions:
        columns["timestamps"] = np.concatenate([block["timestamp"] for block in blocks])
    del blocks
    dropped = _superseded(columns)
    for field in ("user_ids", "item_ids", "ratings", "timestamps"):
        if dropped.size and field in columns:
            columns[field] = np.delete(columns[field], dropped)
    return dict(columns, dropped=np.int64(dropped.size))


def _plain_blocks(content: bytes, start: int, delimiter: str, width: int) -> Iterator[bytes]:
    """Whole lines below the header at `start`; ValueError where pandas isn't trusted with them.

    Pandas pads short rows, cuts long ones and trims blanks in silence, so there must be no blanks
    and no quotes, and the separators are compared with what they should be.
    """
    odd = any(byte in content for byte in b'"\0 \t\v\f' if chr(byte) != delimiter)
    if odd or (b"\r" in content and content.count(b"\r") != content.count(b"\r\n")):
        raise ValueError("not plain")
    separators = (delimiter * (width - 1) + "\n").encode()
    others = bytes(set(range(256)) - set(separators))
    start, stop = content.index(b"\n", start) + 1, len(content)
    while content[stop - 1] in b"\r\n":
        stop -= 1
    while start < stop:
        end = stop
        if start + BLOCK < stop:
            end = content.rfind(b"\n", start, start + BLOCK) + 1 or stop
        block = content[start:end] + b"\n" * (end == stop)
        found = block.translate(None, delete=others)
        if found != separators * (len(found) // width):
            raise ValueError("not plain")
        yield block
        start = end


def _by_pandas(
    blocks: Iterator[bytes], delimiter: str, width: int, positions: dict[str, int], texts: set[str]
) -> Iterator[dict]:
    """The columns of plain blocks, ids as categories of `texts` or else as the numbers they write;
    ValueError where a cell is wrong, or no canonical whole number where it should be one."""
    whole = positions.keys() - texts
    types = dict.fromkeys(set(range(width)) - {positions[kind] for kind in whole}, "category")
    # Pandas takes a category's texts for numbers if all are ("007", "1.0"): a first line of words.
    words = delimiter.join("no number" if k in types else "0" for k in range(width)) + "\n"
    options = {"sep": delimiter, "header": None, "na_filter": False, "low_memory": False}
    for block in blocks:
        if "user" in whole:
            before, digit, after = (
                np.frombuffer(block, np.uint8)[k : len(block) - 2 + k] for k in range(3)
            )
            padded = (before <= ord("-")) & (digit == ord("0")) & (after >= ord("0"))
            if block.startswith(b"0") or b"+" in block or b"-0" in block or padded.any():
                raise ValueError("'007', '+7' or '-0'")
        file = io.BytesIO(words.encode() + block)
        table = pd.read_csv(file, dtype=types, **options).iloc[1:]
        columns = {kind: table[position].values for kind, position in positions.items()}
        if any(columns[kind].dtype != np.int64 for kind in whole):
            raise ValueError("not all whole numbers")
        for kind in texts:
            columns[kind] = columns[kind].remove_categories(["no number"])
            cells = [CELLS[kind](text) for text in columns[kind].categories.tolist()]
            if kind == "rating":
                columns[kind] = np.array(cells)[columns[kind].codes]
        yield columns


def _by_csv(
    records: Iterator[tuple[int, list[str]]],
    header: list[str],
    positions: dict[str, int],
    shown: str,
) -> Iterator[dict]:
    """The columns of any file, block by block; the first bad cell is told with its place."""
    while True:
        columns: dict = {kind: [] for kind in positions}
        todo = [(p, header[p], CELLS[kind], columns[kind].append) for kind, p in positions.items()]
        for line, row in itertools.islice(records, 2**18):
            for position, name, parse, append in todo:
                try:
                    append(parse(row[position]))
                except ValueError as problem:
                    where = f"{shown}, line {line}, column {name!r}"
                    raise ValueError(f"{where}: {problem}") from None
        if not columns["user"]:
            return
        for side in ("user", "item"):
            columns[side] = pd.Categorical(columns[side])
        yield columns


def _records(content: bytes, delimiter: str, shown: str) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, each with the line where it begins, as Python's csv reads them."""
    file = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", newline="")

    def lines() -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if "\0" in line or (not line.isascii() and re.search("[\udc80-\udcff]", line)):
                raise wrong(f"{shown}, line {number}: bytes that are no text", "UTF-8 text")
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    start, width = 1, 0
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                found = f"{shown}, line {start}: {len(row)} fields, not {width}"
                raise wrong(found, "one for each column of the header")
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        found = f"{shown}, line {start}: {one_line(error)}"
        raise wrong(found, "short fields with closed quotes") from None


def _is_int64(label: str) -> bool:
    """Whether it is an integer written canonically: not "007", "+1", or in other digits."""
    canonical = re.fullmatch("0|-?[1-9][0-9]{0,18}", label)
    return canonical is not None and -(2**63) <= int(label) < 2**63


def _superseded(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Increasing indices of the rows whose pair occurs later: in time, at equal times in order."""
    pairs = columns["user_ids"] * len(columns["item_labels"]) + columns["item_ids"]
    ordered = np.sort(pairs)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not repeated.size:
        return repeated
    rows = np.flatnonzero(pd.Series(pairs).isin(repeated))
    times = columns["timestamps"][rows] if "timestamps" in columns else rows
    rows = rows[np.lexsort((times, pairs[rows]))]  # stable: by pair, then time, then row
    return np.sort(rows[:-1][pairs[rows[1:]] == pairs[rows[:-1]]])


# ---------------------------------------------------------------- what is kept of large files

KEPT_FROM = 2**24  # bytes of a file whose arrays are kept: a smaller one is read as fast
KEPT_BYTES = 2**31  # of all that is kept; the longest unused goes first


def cache_folder() -> Path:
    """For downloads and arrays."""
    return Path(os.environ.get("MULTITASK_DATA") or pooch.os_cache("multitasknet"))


def _arrays_path(sha256: str) -> Path:
    """An edited reader never meets another's arrays: its own hash is in the name."""
    reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return cache_folder() / f"rows-{sha256}-{reader[:16]}.npz"


def _recall(sha256: str) -> dict[str, np.ndarray] | None:
    try:
        path = _arrays_path(sha256)
        with np.load(path) as arrays:
            columns = dict(arrays)  # each array's checksum is compared
        os.utime(path)
        return columns
    except Exception:  # not there, or damaged in whatever way: the file itself is at hand
        return None


def _keep(sha256: str, columns: dict[str, np.ndarray]) -> None:
    """Write the arrays, whole or not at all; a folder that can't be written is no error."""
    room = KEPT_BYTES - sum(array.nbytes for array in columns.values())
    if room < 0:
        return
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        path = _arrays_path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        for kept in sorted(path.parent.glob("rows-*"), key=os.path.getmtime, reverse=True):
            room -= kept.stat().st_size
            if room < 0:
                kept.unlink()
        file = tempfile.NamedTemporaryFile(prefix="rows-", dir=path.parent, delete=False)
        stack.callback(Path(file.name).unlink, missing_ok=True)
        with file:
            np.savez(file, **columns)
        os.replace(file.name, path)
