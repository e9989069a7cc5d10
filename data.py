"""Ratings in: load, validate, split.

    data = load("ml-100k")                 # or load("ratings.csv")
    split = random_split(data, seed=0)
    data.ratings[split.train]              # split holds row indices into the data

Rows always keep the order of their source. Users and items are numbered contiguously from 0,
in the order of their labels: numeric when all labels are integers, else lexical.

MovieLens 100K is GroupLens' (Harper and Konstan, "The MovieLens Datasets: History and Context",
ACM TiiS 5(4), 2015, https://doi.org/10.1145/2827872); its licence forbids redistribution, so it is
fetched on first use and kept in `$MULTITASK_DATA`, by default the user's cache folder.
"""

import contextlib
import csv
import dataclasses
import decimal
import functools
import hashlib
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
from pandas.api.types import union_categoricals


def _wrong(found: str, right: str) -> ValueError:
    return ValueError(f"{found}; {right} would be right")


# ---------------------------------------------------------------- interactions and splits


@dataclass(frozen=True, eq=False)
class Interactions:
    """n ratings of items by users, validated on construction; its arrays are read-only.

    user_ids, item_ids  (n,) int64, contiguous: every id from 0 to n_users - 1 (n_items - 1) occurs
    ratings             (n,) float32, finite, in rating units
    timestamps          (n,) int64, usually seconds since 1970, or None
    user_labels         (n_users,) the original ids by contiguous id, increasing: int64 or str
    item_labels         (n_items,) likewise
    item_titles         (n_items,) str, or None
    sha256              of the source: canonical rows (ml-100k), file bytes, or synthetic arrays

    Raises ValueError when an array breaks any of this, or a (user, item) pair occurs twice.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    ratings: np.ndarray
    timestamps: np.ndarray | None
    user_labels: np.ndarray
    item_labels: np.ndarray
    item_titles: np.ndarray | None
    name: str
    sha256: str

    def __post_init__(self) -> None:
        n, n_users, n_items = len(self.ratings), len(self.user_labels), len(self.item_labels)
        for field, length, dtypes in (
            ("user_ids", n, "int64"),
            ("item_ids", n, "int64"),
            ("ratings", n, "float32"),
            ("timestamps", n, "int64"),
            ("user_labels", n_users, "int64 or str"),
            ("item_labels", n_items, "int64 or str"),
            ("item_titles", n_items, "str"),
        ):
            values = getattr(self, field)
            if values is None and field in ("timestamps", "item_titles"):
                continue
            dtype = "str" if values.dtype.kind == "U" else values.dtype.name
            if values.shape != (length,) or dtype not in dtypes.split(" or "):
                found = f"Interactions: {field} is {values.dtype} {values.shape}"
                raise _wrong(found, f"{dtypes} ({length},)")
            view = values.view()
            view.setflags(write=False)
            object.__setattr__(self, field, view)
        if n == 0:
            raise _wrong("Interactions: no rows", "at least one rating")
        if (broken := np.flatnonzero(~np.isfinite(self.ratings))).size:
            found = f"Interactions: ratings[{broken[0]}] is {self.ratings[broken[0]]}"
            raise _wrong(found, "finite numbers")
        for side in ("user", "item"):
            ids, labels = getattr(self, f"{side}_ids"), getattr(self, f"{side}_labels")
            found = f"Interactions: {side}_ids reach from {ids.min()} to {ids.max()}"
            if ids.min() < 0 or ids.max() >= len(labels):
                raise _wrong(found, f"0 to {len(labels) - 1}, one for each label,")
            if not (counts := np.bincount(ids, minlength=len(labels))).all():
                raise _wrong(f"{found} without {np.argmin(counts)}", "contiguous ids")
            if not (labels[1:] > labels[:-1]).all():
                raise _wrong(f"Interactions: {side}_labels don't increase", "sorted, distinct ones")
        pairs = np.sort(self.user_ids * n_items + self.item_ids)
        if (twice := np.flatnonzero(pairs[1:] == pairs[:-1])).size:
            user, item = divmod(int(pairs[twice[0]]), n_items)
            found = f"Interactions: user id {user} and item id {item} meet in more than one row"
            raise _wrong(found, "one rating a pair")

    @property
    def n_users(self) -> int:
        return len(self.user_labels)

    @property
    def n_items(self) -> int:
        return len(self.item_labels)

    def __len__(self) -> int:
        return len(self.ratings)

    def __repr__(self) -> str:
        times = "no timestamps"
        if self.timestamps is not None:
            times = f"timestamps {self.timestamps.min()} to {self.timestamps.max()}"
        return (
            f"Interactions({self.name!r}: {len(self):,} ratings ({self.ratings.min():g} to "
            f"{self.ratings.max():g}) by {self.n_users:,} users of {self.n_items:,} items, "
            f"{len(self) / (self.n_users * self.n_items):.2%} of all pairs, {times}, "
            f"sha256 {self.sha256[:12]})"
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Row indices (int64) into the data; together every row once. `validation` may be empty."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def random_split(
    data: Interactions, seed: int, test_fraction: float = 0.05, validation_fraction: float = 0.0
) -> Split:
    """The report's split: `np.random.RandomState(seed).permutation(n)`, its end is the test part.

    The test part is the last round(n test_fraction) rows of the permutation; the validation part
    the round(n validation_fraction) before them, so the test part doesn't depend on it.
    Raises ValueError for a seed outside [0, 2^32), a fraction outside [0, 1), or an empty part.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise _wrong(f"seed is {seed!r}", "a whole number from 0 to 4294967295")
    order = np.random.RandomState(seed).permutation(len(data))
    return _cut(order, test_fraction, validation_fraction)


def temporal_split(
    data: Interactions, test_fraction: float = 0.05, validation_fraction: float = 0.0
) -> Split:
    """By global time: the latest rows are the test part, those before them the validation part.

    Rows of the same time stay in the data's order. Raises ValueError as `random_split` does, and
    when the data has no timestamps.
    """
    if data.timestamps is None:
        raise _wrong(f"{data.name} has no timestamps", "a 'timestamp' column or a random split")
    order = np.argsort(data.timestamps, kind="stable")
    return _cut(order, test_fraction, validation_fraction)


def validation_folds(split: Split, folds: int, seed: int = 0) -> list[Split]:
    """Ways of holding out a part of the training rows: to choose settings by more than one part.

    The validation parts are drawn from `split.train` without overlap, each as large as
    `split.test`; a fold trains on all the other rows of `split.train`, and its test part is the
    split's. Raises ValueError when the training part is too small, or a validation part is there.
    """
    size = len(split.test)
    if folds < 1 or folds * size >= len(split.train) or split.validation.size:
        found = f"{folds} folds of {size} rows, {len(split.train)} to train on"
        found += f", {len(split.validation)} to validate"
        raise _wrong(found, "1 or more folds, fewer rows than the training part, no validation")
    order = np.random.RandomState(seed).permutation(split.train)
    parts = order[: folds * size].reshape(folds, size)
    return [Split(split.train[~np.isin(split.train, part)], part, split.test) for part in parts]


def _cut(order: np.ndarray, test_fraction: float, validation_fraction: float) -> Split:
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise _wrong(f"{name} is {fraction}", "at least 0 and below 1")
    n = len(order)
    n_test, n_validation = round(n * test_fraction), round(n * validation_fraction)
    n_train = n - n_test - n_validation
    if n_test < 1 or n_train < 1 or (validation_fraction > 0 and n_validation < 1):
        raise _wrong(
            f"test_fraction {test_fraction} and validation_fraction {validation_fraction} cut "
            f"{n} rows into {n_train} to train, {n_validation} to validate, {n_test} to test",
            "fractions that leave each part a row",
        )
    order = order.astype(np.int64, copy=False)
    return Split(*np.split(order, [n_train, n_train + n_validation]))


# ---------------------------------------------------------------- reading a file


def load(source: str | Path) -> Interactions:
    """The ratings of a named data set (`DATASETS`) or of a CSV or TSV file with a header.

    A file has columns for user, item, rating and, if it likes, timestamp, under the names of
    MovieLens, RecBole or the obvious ones (`COLUMNS`, in any case and order); others are ignored.
    Text is UTF-8, fields are separated by tabs if the header has one, else by commas, and may be
    quoted. Ids are text, kept as they are; ratings finite decimals; timestamps whole numbers.
    Blank lines are skipped. Of a repeated (user, item) pair the last by time stays, or without
    timestamps the last in the file, and stderr says how many went.

    Raises ValueError, or FileNotFoundError when a named set can't be had: one line that says what
    is wrong, where, and what would be right.
    """
    if source in DATASETS:
        return _load_named(str(source))
    path, names = Path(source), ", ".join(map(repr, DATASETS))
    shown = str(path) if str(path).isprintable() else repr(str(path))
    if not os.path.exists(path):
        found = f"{_short(str(source))} is neither a known data set ({names}) nor a file"
        raise _wrong(found, f"{names} or the path of a CSV or TSV file")
    if not path.is_file():
        raise _wrong(f"{shown} is a folder or a device", "a CSV or TSV file")
    try:
        with path.open("rb") as file:
            content = file.read()
    except OSError as error:
        raise _wrong(f"{shown} can't be read ({_one_line(error)})", "a readable file") from None
    return _read_table(content, shown, path.name)


def _say(message: str) -> None:
    print(f"data: {message}", file=sys.stderr)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


COLUMNS = {
    "user": ("userid", "user_id", "user", "user_id:token"),
    "item": ("movieid", "movie_id", "itemid", "item_id", "item", "item_id:token"),
    "rating": ("rating", "rating:float"),
    "timestamp": ("timestamp", "timestamp:float"),
}
LONGEST_LABEL = 256  # characters; label arrays are as wide as their longest label
DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
BLOCK = 2**26  # bytes that pandas reads at a time


def _label(text: str) -> str:
    if not 0 < len(text) <= LONGEST_LABEL:
        found = f"{_short(text)} has {len(text)} characters"
        raise _wrong(found, f"an id of 1 to {LONGEST_LABEL}")
    return text


@functools.lru_cache(2**16)  # a file has few distinct ratings
def _rating(text: str) -> float:
    if not DECIMAL.fullmatch(text):
        raise _wrong(f"{_short(text)} is not a number", "a finite decimal like 3.5")
    if abs(float(text)) >= 2.0**128 - 2.0**103:  # where float32 rounds to infinity
        raise _wrong(f"{_short(text)} is too large", "a rating within float32")
    return float(text)


def _time(text: str) -> int:
    if len(text) <= 18 and text.isascii() and text.isdigit():
        return int(text)
    if DECIMAL.fullmatch(text):
        number = decimal.Decimal(text)  # exact, where float would round 2^53 + 1
        if -(2**63) <= number < 2**63 and number == int(number):
            return int(number)
    raise _wrong(f"{_short(text)} is not a time", "a whole number of seconds within int64")


CELLS = {"user": _label, "item": _label, "rating": _rating, "timestamp": _time}


def _find_columns(header: list[str], where: str) -> dict[str, int]:
    """Kind -> position of its column."""
    kinds = {name: kind for kind, names in COLUMNS.items() for name in names}
    positions: dict[str, int] = {}
    for position, name in enumerate(header):
        kind = kinds.get(name.lower(), name.lower())
        if kind in positions:
            both = f"{_short(header[positions[kind]])} and {_short(name)}"
            raise _wrong(f"{where}: columns {both} mean the same", "one of them")
        positions[kind] = position
    for kind in ("user", "item", "rating"):
        if kind not in positions:
            listed = ", ".join(map(_short, header[:8])) + ", ..." * (len(header) > 8)
            right = " or ".join(COLUMNS[kind])
            if all(map(DECIMAL.fullmatch, header)):
                right = f"a header above the rows, with {right},"
            elif len(header) == 1 and (other := re.search("[;| ]|::", header[0])):
                right = f"commas or tabs, not {other[0]!r}, between the columns"
            raise _wrong(f"{where}: no {kind} column among {listed}", right)
    return {kind: positions[kind] for kind in COLUMNS if kind in positions}


def _read_table(content: bytes, shown: str, name: str) -> Interactions:
    """Read a file's rows, or recall what an earlier reading of the same bytes gave."""
    sha256 = hashlib.sha256(content).hexdigest()
    columns = _recall(sha256) if len(content) >= KEPT_FROM else None
    if columns is None:
        columns = _parse(content, shown)
        if len(content) >= KEPT_FROM:
            _keep(sha256, columns)
    columns = {"timestamps": None, **columns}
    if dropped := int(columns.pop("dropped")):
        by = "in the file" if columns["timestamps"] is None else "by time"
        _say(f"{shown}: {dropped:,} repeated (user, item) rows dropped, the last {by} kept")
    return Interactions(**columns, item_titles=None, name=name, sha256=sha256)


def _parse(content: bytes, shown: str) -> dict[str, np.ndarray]:
    """Fields of Interactions, timestamps only where there are some, and the rows `dropped`."""
    start, end = re.match(rb"(?:\xef\xbb\xbf)?[\r\n]*([^\r\n]*)", content).span(1)
    delimiter = "\t" if b"\t" in content[start:end] else ","
    records = _records(content, delimiter, shown)
    line, header = next(records, (0, []))
    if not header:
        raise _wrong(f"{shown} is empty", "a header and at least one row")
    positions = _find_columns(header, f"{shown}, line {line}")
    first = next(records, None)
    if first is None:
        raise _wrong(f"{shown} has a header but no rows", "at least one rating")
    for texts in ({"rating"}, {"rating", "user", "item"}):
        try:
            plain = _plain_blocks(content, start, delimiter, len(header))
            blocks = list(_by_pandas(plain, delimiter, len(header), positions, texts))
            break
        except (ValueError, OverflowError):  # a bad cell, or more than pandas is trusted with here
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
        end = content.rfind(b"\n", start, min(start + BLOCK, stop)) + 1 or stop
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
    options = {"na_filter": False, "low_memory": False, "skip_blank_lines": False}
    for block in blocks:
        if "user" in whole:
            before, digit, after = (
                np.frombuffer(block, np.uint8)[k : len(block) - 2 + k] for k in range(3)
            )
            padded = (before <= ord("-")) & (digit == ord("0")) & (after >= ord("0"))
            if block.startswith(b"0") or b"+" in block or b"-0" in block or padded.any():
                raise ValueError("'007', '+7' or '-0'")
        file = io.BytesIO(words.encode() + block)
        table = pd.read_csv(file, sep=delimiter, header=None, dtype=types, **options).iloc[1:]
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
                raise _wrong(f"{shown}, line {number}: bytes that are no text", "UTF-8 text")
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    start, width = 1, 0
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                found = f"{shown}, line {start}: {len(row)} fields, not {width}"
                raise _wrong(found, "one for each column of the header")
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        found = f"{shown}, line {start}: {_one_line(error)}"
        raise _wrong(found, "short fields with closed quotes") from None


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


def _folder() -> Path:
    """For downloads and arrays."""
    return Path(os.environ.get("MULTITASK_DATA") or pooch.os_cache("multitasknet"))


def _arrays_path(sha256: str) -> Path:
    """An edited reader never meets another's arrays: its own hash is in the name."""
    reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return _folder() / f"rows-{sha256}-{reader[:16]}.npz"


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


# ---------------------------------------------------------------- named data sets


def _pip(requirement: str, output: str, _: object) -> None:
    """A downloader for pooch that asks the package index for a wheel."""
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--no-input", "--timeout=10"]
    command += ["--disable-pip-version-check", "--retries=1"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, "--dest", folder],
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            complaints = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise OSError(f"pip download: {complaints[-1]}")
        (wheel,) = Path(folder).iterdir()
        shutil.copyfile(wheel, output)


def _grouplens_titles(content: bytes) -> dict[str, str]:
    fields = [line.split("|") for line in content.decode("latin-1").split("\n") if line]
    return {item: title for item, title, *_ in fields}


def _recbole_titles(content: bytes) -> dict[str, str]:
    fields = [line.split("\t") for line in content.decode().split("\n")[1:] if line]
    return {  # the one film without a year is spelt "unkonwn" here, "unknown" by GroupLens
        item: f"{title} ({year})" if year.isdigit() else "unknown"
        for item, title, year, *_ in fields
    }


@dataclass(frozen=True)
class Source:
    """A zip archive with the ratings of a data set, and how to get it."""

    label: str
    address: str
    file_name: str  # in the cache folder
    known_hash: str  # algorithm:digest
    ratings: str  # the member with a table as `load` reads it,
    header: bytes  # but for this first line
    titles: str  # the member with titles
    read_titles: Callable[[bytes], dict[str, str]]  # item label -> "Title (Year)"
    downloader: Callable = pooch.HTTPDownloader(timeout=5, progressbar=True)


@dataclass(frozen=True)
class Dataset:
    """A data set with a name: what its rows must be, where to get it, whom to thank."""

    sha256: str  # of `canonical_rows`
    sources: tuple[Source, ...]  # tried in this order, after those in the cache folder
    about: str  # reference and licence, said when it is downloaded


DATASETS = {
    "ml-100k": Dataset(
        sha256="6cfffb52c89b05fbc3afb75f6912eeda04c81c2add0dc58e773a0ef6c8adb160",
        sources=(
            Source(
                "GroupLens",
                "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                "ml-100k.zip",
                "md5:0e33842e24a9c977be4e0107933c0723",
                ratings="ml-100k/u.data",
                header=b"user\titem\trating\ttimestamp\n",
                titles="ml-100k/u.item",
                read_titles=_grouplens_titles,
            ),
            Source(
                "the RecBole wheel",
                "recbole==1.2.1",
                "recbole-1.2.1-py3-none-any.whl",
                "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                ratings="recbole/dataset_example/ml-100k/ml-100k.inter",
                header=b"",
                titles="recbole/dataset_example/ml-100k/ml-100k.item",
                read_titles=_recbole_titles,
                downloader=_pip,
            ),
        ),
        about="MovieLens 100K is GroupLens' (Harper and Konstan, ACM TiiS 5(4), 2015, "
        "https://doi.org/10.1145/2827872); its licence forbids redistribution",
    )
}
LARGEST_MEMBER = 2**30  # bytes; members are read in memory, never unpacked


def canonical_rows(data: Interactions) -> bytes:
    """user, item, rating and time in tab-separated lines, sorted by user and item."""
    order = np.lexsort((data.item_ids, data.user_ids))
    users, items = data.user_labels[data.user_ids], data.item_labels[data.item_ids]
    ratings = np.array([f"{rating:g}" for rating in data.ratings.tolist()])
    columns = [users, items, ratings] + ([] if data.timestamps is None else [data.timestamps])
    rows = zip(*(column[order].tolist() for column in columns), strict=True)
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def _load_named(name: str) -> Interactions:
    """From the cache folder, else from each source in turn; pooch keeps only what has the hash."""
    dataset, folder, failures = DATASETS[name], _folder(), []
    pooch.get_logger().setLevel("ERROR")
    for source in sorted(dataset.sources, key=lambda s: not (folder / s.file_name).exists()):
        path = folder / source.file_name
        here = path.exists()
        try:
            pooch.retrieve(
                source.address,
                source.known_hash,
                source.file_name,
                folder,
                downloader=source.downloader,
            )
            data = _read_archive(name, source, path)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            damaged = f"{path} is damaged, " if here else ""
            failures.append(f"{damaged}{source.label}: {_one_line(error)}")
        else:
            _say(f"{name} served by {path}" + ("" if here else f"; {dataset.about}"))
            return data
    raise FileNotFoundError(
        f"{name} can't be had ({'; '.join(failures)}); a network, or "
        f"{' or '.join(source.file_name for source in dataset.sources)} in {folder}, "
        "or another file by --data PATH would be right"
    )


def _read_archive(name: str, source: Source, path: Path) -> Interactions:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in (source.ratings, source.titles):
                if archive.getinfo(member).file_size > LARGEST_MEMBER:
                    raise ValueError(f"{member} unpacks to more than {LARGEST_MEMBER:,} bytes")
            ratings, titles = archive.read(source.ratings), archive.read(source.titles)
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source.file_name} is no archive of {name} ({error})") from None
    data = _read_table(source.header + ratings, source.ratings, name)
    sha256 = hashlib.sha256(canonical_rows(data)).hexdigest()
    expected = DATASETS[name].sha256
    if sha256 != expected:
        raise ValueError(f"other rows than {name}'s: SHA-256 {sha256}, expected {expected}")
    by_item = source.read_titles(titles)
    item_titles = np.array([by_item.get(str(label), "") for label in data.item_labels])
    return dataclasses.replace(data, item_titles=item_titles, sha256=sha256)
