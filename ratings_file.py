"""A file of ratings -> checked arrays: pandas reads the plain ones, Python's csv any other.

Pandas sees only files whose separators stand as they should, without quotes and blanks. Whatever
isn't plain, or has a wrong cell, is read again cell by cell, so that the error names the line and
the column. The arrays of large files are kept beside the downloads, in `$MULTITASK_DATA` or the
user's cache folder.
"""

import contextlib
import csv
import decimal
import functools
import hashlib
import io
import os
import re
import sys
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
KEPT_FROM = 2**24  # bytes of a file whose arrays are kept: a smaller one is read as fast
KEPT_BYTES = 2**31  # of all that is kept; the longest unused goes first


def wrong(found: str, right: str) -> ValueError:
    return ValueError(f"{found}; {right} would be right")


def require(fact: bool, found: str, right: str) -> None:
    if not fact:
        raise wrong(found, right)


def say(message: str) -> None:
    print(f"data: {message}", file=sys.stderr)


def short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def cache_folder() -> Path:
    """For downloads and arrays."""
    return Path(os.environ.get("MULTITASK_DATA") or pooch.os_cache("multitasknet"))


def read_table(content: bytes, shown: str) -> dict[str, np.ndarray | str | None]:
    """The columns of `Interactions` in a file's bytes, or what was kept of an earlier reading.

    Raises ValueError: one line that names the file as `shown`, the place, and what would be right.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    if len(content) < KEPT_FROM:
        columns = _parse(content, shown)
    else:  # the reader's own hash is in the name: an edited one never meets another's arrays
        reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        path = cache_folder() / f"rows-{sha256}-{reader[:16]}.npz"
        columns = _recall(path)
        if columns is None:
            columns = _parse(content, shown)
            _keep(path, columns)
    columns = {"timestamps": None, **columns, "sha256": sha256}
    if dropped := int(columns.pop("dropped")):
        by = "in the file" if columns["timestamps"] is None else "by time"
        say(f"{shown}: {dropped:,} repeated (user, item) rows dropped, the last {by} kept")
    return columns


# ---------------------------------------------------------------- from text to arrays

Positions = dict[str, int]  # kind of column -> its place in a row
Cells = dict[str, list | np.ndarray | pd.Categorical]  # kind of column -> all its cells, checked
Records = Iterator[tuple[int, list[str]]]  # the line where a row begins, its fields


def _parse(content: bytes, shown: str) -> dict[str, np.ndarray]:
    """Fields of Interactions, timestamps only where there are some, and the rows `dropped`."""
    first_line = re.match(rb"(?:\xef\xbb\xbf)?[\r\n]*([^\r\n]*)", content)[1]
    delimiter = "\t" if b"\t" in first_line else ","
    records = _records(content, delimiter, shown)
    line, header = next(records, (0, []))
    require(header, f"{shown} is empty", "a header and at least one row")
    positions = _find_columns(header, f"{shown}, line {line}")
    cells: Cells = {}
    for whole in ({"user", "item", "timestamp"}, {"timestamp"}):
        if not cells:
            with contextlib.suppress(ValueError):  # more than pandas is trusted with, or a bad cell
                cells = _by_pandas(content, delimiter, len(header), positions, whole)
    cells = cells or _by_csv(records, header, positions, shown)
    found = f"{shown} has a header but no rows"
    require(len(cells["rating"]), found, "at least one rating")
    columns = {"ratings": np.asarray(cells["rating"], dtype=np.float32)}
    if "timestamp" in cells:
        columns["timestamps"] = np.asarray(cells["timestamp"], dtype=np.int64)
    for side in ("user", "item"):
        ids = cells.pop(side)
        if isinstance(ids, np.ndarray):
            ranks, labels = pd.factorize(ids, sort=True)
        else:
            ids = pd.Categorical(ids)
            texts = ids.categories.to_numpy(str)
            labels, ranks = np.unique(_numbers(texts), return_inverse=True)
            ranks = ranks[ids.codes]
        columns[f"{side}_ids"], columns[f"{side}_labels"] = ranks, labels
    pairs = columns["user_ids"] * len(columns["item_labels"]) + columns["item_ids"]
    kept = _latest(pairs, columns.get("timestamps"))
    for field in columns.keys() - {"user_labels", "item_labels"}:
        columns[field] = columns[field][kept]
    return {**columns, "dropped": np.int64(len(pairs) - len(columns["ratings"]))}


def _by_pandas(
    content: bytes, delimiter: str, width: int, positions: Positions, whole: set[str]
) -> Cells:
    """The cells of a plain file; ValueError where it isn't, or a cell is wrong.

    Those of the kinds in `whole` are canonical integers, all others are texts. Pandas pads short
    rows, cuts long ones and trims blanks in silence, so there must be no blanks and no quotes, and
    the separators are compared with what they should be.
    """
    separators = (delimiter * (width - 1) + "\n").encode()
    others = bytes(set(range(256)) - set(separators) - set(b'"\0 \t\v\f'))
    found = content.translate(None, delete=others).rstrip(b"\n") + b"\n"
    lone_returns = content.count(b"\r") != content.count(b"\r\n")
    if lone_returns or found != separators * (len(found) // width):
        raise ValueError("not plain")
    numbers = {position for kind, position in positions.items() if kind in whole}
    types = dict.fromkeys(set(range(width)) - numbers, "category")
    # Pandas takes a category's texts for numbers if all are ("007", "1.0"): a first line of words.
    words = delimiter.join("no number" if k in types else "0" for k in range(width)) + "\n"
    options = {"sep": delimiter, "header": None, "na_filter": False, "low_memory": False}
    file, tables = io.BytesIO(content), []
    file.readline()
    while block := file.read(BLOCK) + file.readline():
        lines = words.encode() + block + b"\n"
        if "user" in whole:
            codes = np.frombuffer(lines, np.uint8)
            before, zeros, after = codes[:-2], codes[1:-1] == ord("0"), codes[2:]
            odd = zeros & (before <= ord("-")) & ((before == ord("-")) | (after >= ord("0")))
            if odd.any() or b"+" in lines:
                raise ValueError("'007', '-0' or '+7'")
        tables.append(pd.read_csv(io.BytesIO(lines), dtype=types, **options).iloc[1:])
    cells: Cells = {}
    for kind, position in positions.items():
        parts = [table[position].values for table in tables]
        if kind in whole:
            cells[kind] = np.concatenate(parts)
            if cells[kind].dtype != np.int64:
                raise ValueError("not all whole numbers")
        else:
            texts = union_categoricals(parts).remove_categories(["no number"])
            values = np.array([CELLS[kind](text) for text in texts.categories])
            cells[kind] = values[texts.codes] if kind == "rating" else texts
    return cells


def _by_csv(records: Records, header: list[str], positions: Positions, shown: str) -> Cells:
    """The cells of any file; the first bad one is told with its place."""
    cells: Cells = {kind: [] for kind in positions}
    for line, row in records:
        found = f"{shown}, line {line}: {len(row)} fields, not {len(header)}"
        require(len(row) == len(header), found, "one for each column of the header")
        for kind, position in positions.items():
            try:
                cells[kind].append(CELLS[kind](row[position]))
            except ValueError as problem:
                where = f"{shown}, line {line}, column {header[position]!r}"
                raise ValueError(f"{where}: {problem}") from None
    return cells


def _records(content: bytes, delimiter: str, shown: str) -> Records:
    """The header and the rows, each with the line where it begins, as Python's csv reads them."""
    file = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", "surrogateescape", newline="")
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    start = 1
    try:
        for row in reader:
            found = f"{shown}, line {start}: bytes that are no text"
            require(not re.search("[\0\udc80-\udcff]", "".join(row)), found, "UTF-8 text")
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        found = f"{shown}, line {start}: {one_line(error)}"
        raise wrong(found, "short fields with closed quotes") from None


def _find_columns(header: list[str], where: str) -> Positions:
    kinds = {name: kind for kind, names in COLUMNS.items() for name in names}
    positions: Positions = {}
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


@functools.lru_cache(2**16)  # one text in memory for each label
def _label(text: str) -> str:
    found = f"{short(text)} has {len(text)} characters"
    require(0 < len(text) <= LONGEST_LABEL, found, f"an id of 1 to {LONGEST_LABEL}")
    return text


@functools.lru_cache(2**16)  # a file has few distinct ratings
def _rating(text: str) -> float:
    right = "a finite decimal like 3.5"
    require(DECIMAL.fullmatch(text), f"{short(text)} is not a number", right)
    fits = abs(float(text)) < 2.0**128 - 2.0**103  # from there on float32 rounds to infinity
    require(fits, f"{short(text)} is too large", "a rating within float32")
    return float(text)


def _time(text: str) -> int:
    if DECIMAL.fullmatch(text):
        number = decimal.Decimal(text)  # exact, where float would round 2^53 + 1
        if -(2**63) <= number < 2**63 and number == int(number):
            return int(number)
    raise wrong(f"{short(text)} is not a time", "a whole number of seconds within int64")


CELLS = {"user": _label, "item": _label, "rating": _rating, "timestamp": _time}


def _numbers(labels: np.ndarray) -> np.ndarray:
    """As int64 if all are integers written canonically: not "007", "+1", or in other digits."""
    try:
        numbers = labels.astype(np.int64)
    except (ValueError, OverflowError):
        return labels
    return numbers if (numbers.astype(str) == labels).all() else labels


def _latest(pairs: np.ndarray, times: np.ndarray | None) -> np.ndarray | slice:
    """The last rows of the pairs: by time, at equal times by order; in their order."""
    ordered = np.sort(pairs)
    if (ordered[1:] != ordered[:-1]).all():
        return slice(None)
    rows = pd.Series(pairs)
    if times is not None:
        rows = rows.iloc[np.argsort(times, kind="stable")]
    return np.sort(rows.drop_duplicates(keep="last").index)


# ---------------------------------------------------------------- what is kept of large files


def _recall(path: Path) -> dict[str, np.ndarray] | None:
    """None where nothing is, or it is damaged in whatever way: the file itself is at hand."""
    with contextlib.suppress(Exception), np.load(path) as arrays:
        columns = dict(arrays)  # each array's checksum is compared
        os.utime(path)
        return columns
    return None


def _keep(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write the arrays, whole or not at all; a folder that can't be written is no error."""
    if sum(array.nbytes for array in columns.values()) > KEPT_BYTES:
        return
    part = path.with_name(f"{path.name}-{os.getpid()}.npz")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.savez(part, **columns)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        newest_first = sorted(path.parent.glob("rows-*"), key=os.path.getmtime, reverse=True)
        sizes = np.cumsum([file.stat().st_size for file in newest_first])
        for file in newest_first[(sizes <= KEPT_BYTES).sum() :]:
            file.unlink()
