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

import csv
import decimal
import functools
import hashlib
import io
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch


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


# ---------------------------------------------------------------- load


def load(source: str | Path) -> Interactions:
    """The ratings of a known data set ("ml-100k") or of a CSV or TSV file with a header.

    A file has columns for user, item, rating and, if it likes, timestamp, under the names of
    MovieLens, RecBole or the obvious ones (`COLUMNS`, in any case and order); others are ignored.
    Text is UTF-8, fields are separated by tabs if the header has one, else by commas, and may be
    quoted. Ids are text, kept as they are; ratings finite decimals; timestamps whole numbers.
    Blank lines are skipped. Of a repeated (user, item) pair the last by time stays, or without
    timestamps the last in the file, and stderr says how many went.

    Raises ValueError, or FileNotFoundError when ml-100k can't be had: one line that says what is
    wrong, where, and what would be right.
    """
    if source == "ml-100k":
        return _load_ml_100k()
    path = Path(source)
    shown = str(path) if str(path).isprintable() else repr(str(path))
    if not os.path.exists(path):
        found = f"{_short(str(source))} is neither a known data set ('ml-100k') nor a file"
        raise _wrong(found, "'ml-100k' or the path of a CSV or TSV file")
    if not path.is_file():
        raise _wrong(f"{shown} is a folder or a device", "a CSV or TSV file")
    try:
        return _read_table(path, shown)
    except OSError as error:
        raise _wrong(f"{shown} can't be read ({_one_line(error)})", "a readable file") from None


def _say(message: str) -> None:
    print(f"data: {message}", file=sys.stderr)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _one_line(error: Exception | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# ---------------------------------------------------------------- load: a CSV or TSV file

COLUMNS = {
    "user": ("userid", "user_id", "user", "user_id:token"),
    "item": ("movieid", "movie_id", "itemid", "item_id", "item", "item_id:token"),
    "rating": ("rating", "rating:float"),
    "timestamp": ("timestamp", "timestamp:float"),
}
LONGEST_LABEL = 256  # characters; label arrays are as wide as their longest label
DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" leaves of bad bytes


class _Labels(dict[str, int]):
    """Label -> code, in order of first appearance; a new label is checked, then numbered."""

    def __missing__(self, label: str) -> int:
        if not 0 < len(label) <= LONGEST_LABEL:
            found = f"{_short(label)} has {len(label)} characters"
            raise _wrong(found, f"an id of 1 to {LONGEST_LABEL}")
        self[label] = len(self)
        return self[label]

    def numbered(self, codes: array) -> tuple[np.ndarray, np.ndarray]:
        """(contiguous ids (n,), sorted labels); integers when every label is written as one."""
        if all(map(_is_int64, self)):
            labels = np.array([int(label) for label in self], dtype=np.int64)
        else:
            labels = np.array(list(self))
        order = np.argsort(labels, kind="stable")
        ids = np.empty(len(order), dtype=np.int64)
        ids[order] = np.arange(len(order))
        return ids[np.frombuffer(codes, dtype=np.int32)], labels[order]


def _is_int64(label: str) -> bool:
    """Whether it is an integer written canonically: not "007", "+1", or in other digits."""
    canonical = re.fullmatch("0|-?[1-9][0-9]{0,18}", label)
    return canonical is not None and -(2**63) <= int(label) < 2**63


@functools.lru_cache(maxsize=2**16)  # a file has few distinct ratings
def _rating(text: str) -> float:
    if not DECIMAL.fullmatch(text):
        raise _wrong(f"{_short(text)} is not a number", "a finite decimal like 3.5")
    value = array("f", [float(text)])[0]  # infinite where float32 ends
    if not math.isfinite(value):
        raise _wrong(f"{_short(text)} is too large", "a rating within float32")
    return value


def _timestamp(text: str) -> int:
    if len(text) <= 18 and text.isascii() and text.isdigit():
        return int(text)
    if DECIMAL.fullmatch(text):
        number = decimal.Decimal(text)  # exact, where float would round 2^53 + 1
        if -(2**63) <= number < 2**63 and number == int(number):
            return int(number)
    raise _wrong(f"{_short(text)} is not a time", "a whole number of seconds within int64")


def _lines(file: io.TextIOBase, shown: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line or (not line.isascii() and UNDECODED.search(line)):
            raise _wrong(f"{shown}, line {number}: bytes that are no text", "UTF-8 text")
        yield line


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
    for kind, names in COLUMNS.items():
        if kind not in positions and kind != "timestamp":
            listed = ", ".join(map(_short, header[:8])) + ", ..." * (len(header) > 8)
            right = " or ".join(names)
            if all(map(DECIMAL.fullmatch, header)):
                right = f"a header above the rows, with {right},"
            elif len(header) == 1 and (other := re.search("[;| ]|::", header[0])):
                right = f"commas or tabs, not {other[0]!r}, between the columns"
            raise _wrong(f"{where}: no {kind} column among {listed}", right)
    return {kind: positions[kind] for kind in COLUMNS if kind in positions}


def _read_table(path: Path, shown: str) -> Interactions:
    users, items = _Labels(), _Labels()
    rows = {"user": array("i"), "item": array("i"), "rating": array("f"), "timestamp": array("q")}
    parsers: dict[str, Callable] = {
        "user": users.__getitem__,
        "item": items.__getitem__,
        "rating": _rating,
        "timestamp": _timestamp,
    }
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _lines(file, shown)
        filled = ((n, line) for n, line in enumerate(lines) if line.strip("\r\n"))
        blank_lines, first = next(filled, (0, ""))
        if not first:
            raise _wrong(f"{shown} is empty", "a header and at least one row")
        delimiter = "\t" if "\t" in first else ","
        reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        start = blank_lines + 1  # the line where the current record begins
        try:
            header = next(reader)
            positions = _find_columns(header, f"{shown}, line {start}")
            columns = [(p, header[p], parsers[k], rows[k].append) for k, p in positions.items()]
            start = blank_lines + reader.line_num + 1
            for row in reader:
                if row and len(row) != len(header):
                    found = f"{shown}, line {start}: {len(row)} fields, not {len(header)}"
                    raise _wrong(found, "one for each column of the header")
                if row:
                    for position, name, parse, append in columns:
                        try:
                            append(parse(row[position]))
                        except ValueError as problem:
                            where = f"{shown}, line {start}, column {name!r}"
                            raise ValueError(f"{where}: {problem}") from None
                start = blank_lines + reader.line_num + 1
        except csv.Error as error:
            found = f"{shown}, line {start}: {_one_line(error)}"
            raise _wrong(found, "short fields with closed quotes") from None
        file.seek(0)
        sha256 = hashlib.file_digest(file.buffer, "sha256").hexdigest()
    if not rows["rating"]:
        raise _wrong(f"{shown} has a header but no rows", "at least one rating")
    user_ids, user_labels = users.numbered(rows["user"])
    item_ids, item_labels = items.numbered(rows["item"])
    ratings = np.frombuffer(rows["rating"], dtype=np.float32)
    timestamps = None
    if "timestamp" in positions:
        timestamps = np.frombuffer(rows["timestamp"], dtype=np.int64)
    kept = _last_of_each_pair(user_ids * len(item_labels) + item_ids, timestamps)
    if dropped := len(ratings) - len(kept):
        by = "in the file" if timestamps is None else "by time"
        _say(f"{shown}: {dropped:,} repeated (user, item) rows dropped, the last {by} kept")
        user_ids, item_ids, ratings = user_ids[kept], item_ids[kept], ratings[kept]
        timestamps = None if timestamps is None else timestamps[kept]
    rows_and_labels = user_ids, item_ids, ratings, timestamps, user_labels, item_labels
    return Interactions(*rows_and_labels, item_titles=None, name=path.name, sha256=sha256)


def _last_of_each_pair(pairs: np.ndarray, timestamps: np.ndarray | None) -> np.ndarray:
    """Increasing row indices: of the rows of a pair the latest, among equals the last."""
    keys = (pairs,) if timestamps is None else (timestamps, pairs)
    order = np.lexsort(keys)  # stable: by pair, then time, then row
    last = np.append(pairs[order[1:]] != pairs[order[:-1]], True)
    return np.sort(order[last])


# ---------------------------------------------------------------- load: MovieLens 100K

ML_100K_SHA256 = "6cfffb52c89b05fbc3afb75f6912eeda04c81c2add0dc58e773a0ef6c8adb160"
LARGEST_MEMBER = 2**24  # bytes; members are read in memory, never unpacked


class _Source(NamedTuple):
    """An archive with the rows of ml-100k, and how to fetch it into a folder."""

    label: str
    file_name: str
    algorithm: str
    digest: str
    ratings_member: str
    titles_member: str
    fetch: Callable[[Path], None]


def _fetch_grouplens(folder: Path) -> None:
    pooch.get_logger().setLevel("ERROR")
    pooch.retrieve(
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        known_hash=f"{GROUPLENS.algorithm}:{GROUPLENS.digest}",
        path=folder,
        fname=GROUPLENS.file_name,
        downloader=pooch.HTTPDownloader(timeout=5, progressbar=True),
    )


def _fetch_wheel(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "recbole==1.2.1", "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=1", "--timeout=10"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        complaints = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(f"pip download: {complaints[-1]}")


GROUPLENS = _Source(
    label="GroupLens",
    file_name="ml-100k.zip",
    algorithm="md5",
    digest="0e33842e24a9c977be4e0107933c0723",
    ratings_member="ml-100k/u.data",
    titles_member="ml-100k/u.item",
    fetch=_fetch_grouplens,
)
WHEEL = _Source(
    label="the RecBole wheel",
    file_name="recbole-1.2.1-py3-none-any.whl",
    algorithm="sha256",
    digest="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    ratings_member="recbole/dataset_example/ml-100k/ml-100k.inter",
    titles_member="recbole/dataset_example/ml-100k/ml-100k.item",
    fetch=_fetch_wheel,
)
SOURCES = (GROUPLENS, WHEEL)


def _load_ml_100k() -> Interactions:
    """From the cache, else from each source in turn; a download lands in the cache verified."""
    cache = Path(os.environ.get("MULTITASK_DATA") or pooch.os_cache("multitasknet"))
    failures = []
    for source in SOURCES:
        path = cache / source.file_name
        if os.path.lexists(path):
            try:
                data = _read_archive(source, _verified(source, path))
            except (OSError, ValueError) as error:
                failures.append(f"{path}: {_one_line(error)}")
                _say(f"{failures[-1]}; not used")
            else:
                _say(f"ml-100k served by the cache, {path}")
                return data
    failures = failures or [f"{cache}: holds no copy"]
    for source in SOURCES:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
                source.fetch(Path(folder))
                path = Path(folder, source.file_name)
                data = _read_archive(source, _verified(source, path))
                os.replace(path, cache / source.file_name)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            failures.append(f"{source.label}: {_one_line(error)}")
        else:
            _say(f"ml-100k served by {source.label}, kept in {cache}")
            return data
    raise FileNotFoundError(
        f"ml-100k can't be had ({'; '.join(failures)}); a network, or "
        f"{' or '.join(source.file_name for source in SOURCES)} in {cache}, "
        "or another file by --data PATH would be right"
    )


def _verified(source: _Source, path: Path) -> bytes:
    content = path.read_bytes()
    digest = hashlib.new(source.algorithm, content, usedforsecurity=False).hexdigest()
    if digest != source.digest:
        raise ValueError(
            f"corrupt or truncated: {len(content):,} bytes with {source.algorithm} {digest}, "
            f"expected {source.digest}"
        )
    return content


def _read_archive(source: _Source, content: bytes) -> Interactions:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            ratings = _read_member(archive, source.ratings_member)
            titles = _read_member(archive, source.titles_member)
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError) as error:
        raise ValueError(f"{source.file_name} is no archive of ml-100k ({error})") from None
    rows = np.loadtxt(  # (n, 4): user, item, rating, timestamp
        io.BytesIO(ratings), dtype=np.int64, delimiter="\t", comments="user_id", ndmin=2
    )
    user_labels, user_ids = np.unique(rows[:, 0], return_inverse=True)
    item_labels, item_ids = np.unique(rows[:, 1], return_inverse=True)
    order = np.lexsort((item_ids, user_ids))
    canonical = "".join("\t".join(map(str, row)) + "\n" for row in rows[order].tolist())
    sha256 = hashlib.sha256(canonical.encode()).hexdigest()
    if sha256 != ML_100K_SHA256:
        raise ValueError(f"other rows than ml-100k's: SHA-256 {sha256}, expected {ML_100K_SHA256}")
    by_item = _parse_titles(titles, source.titles_member)
    return Interactions(
        user_ids,
        item_ids,
        rows[:, 2].astype(np.float32),
        np.ascontiguousarray(rows[:, 3]),
        user_labels,
        item_labels,
        item_titles=np.array([by_item.get(item, "") for item in item_labels.tolist()]),
        name="ml-100k",
        sha256=sha256,
    )


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        content = member.read(LARGEST_MEMBER + 1)
    if len(content) > LARGEST_MEMBER:
        raise ValueError(f"{name} unpacks to more than {LARGEST_MEMBER:,} bytes")
    return content


def _parse_titles(content: bytes, member: str) -> dict[int, str]:
    """Item -> "Title (Year)", as u.item has it and ml-100k.item can be composed."""
    if member.endswith("u.item"):
        fields = [line.split("|") for line in content.decode("latin-1").split("\n") if line]
        return {int(item): title for item, title, *_ in fields}
    fields = [line.split("\t") for line in content.decode("utf-8").split("\n")[1:] if line]
    return {  # the one film without a year is spelt "unkonwn" here, "unknown" in u.item
        int(item): f"{title} ({year})" if year.isdigit() else "unknown"
        for item, title, year, *_ in fields
    }
