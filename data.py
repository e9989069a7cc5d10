"""Ratings in: load, validate, split.

    data = load("ml-100k")                 # or load("ratings.csv")
    split = random_split(data, seed=0)
    data.ratings[split.train]              # split holds row indices into the data

Rows always keep the order of their source. Users and items are numbered contiguously from 0,
in the order of their labels: numeric when all labels are integers, else lexical.

A named data set is one entry of `DATASETS`; it is fetched on first use and kept in
`$MULTITASK_DATA`, by default the user's cache folder.
"""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pooch

from ratings_file import cache_folder, one_line, read_table, require, say, short, wrong

# ---------------------------------------------------------------- interactions and splits


DTYPES = {field: ["int64"] for field in ("user_ids", "item_ids", "timestamps")}
DTYPES |= {"ratings": ["float32"], "item_titles": ["str"]}
DTYPES |= {"user_labels": ["int64", "str"], "item_labels": ["int64", "str"]}


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
        lengths = {"user_labels": n_users, "item_labels": n_items, "item_titles": n_items}
        for field, dtypes in DTYPES.items():
            values = getattr(self, field)
            if values is None and field in ("timestamps", "item_titles"):
                continue
            dtype = "str" if values.dtype.kind == "U" else values.dtype.name
            found = f"Interactions: {field} is {values.dtype} {values.shape}"
            right = f"{' or '.join(dtypes)} ({lengths.get(field, n)},)"
            require(values.shape == (lengths.get(field, n),) and dtype in dtypes, found, right)
            view = values.view()
            view.setflags(write=False)
            object.__setattr__(self, field, view)
        require(n > 0, "Interactions: no rows", "at least one rating")
        finite = np.isfinite(self.ratings)
        row = finite.argmin()
        found = f"Interactions: ratings[{row}] is {self.ratings[row]}"
        require(finite.all(), found, "finite numbers")
        for side in ("user", "item"):
            ids, labels = getattr(self, f"{side}_ids"), getattr(self, f"{side}_labels")
            found = f"Interactions: {side}_ids reach from {ids.min()} to {ids.max()}"
            inside = ids.min() >= 0 and ids.max() < len(labels)
            require(inside, found, f"0 to {len(labels) - 1}, one for each label,")
            counts = np.bincount(ids, minlength=len(labels))
            require(counts.all(), f"{found} without {counts.argmin()}", "contiguous ids")
            found = f"Interactions: {side}_labels don't increase"
            require((labels[1:] > labels[:-1]).all(), found, "sorted, distinct ones")
        pairs = np.sort(self.user_ids * n_items + self.item_ids)
        if (twice := pairs[1:][pairs[1:] == pairs[:-1]]).size:
            found = "Interactions: user id {} and item id {} meet in more than one row"
            raise wrong(found.format(*divmod(twice[0], n_items)), "one rating a pair")

    @property
    def n_users(self) -> int:
        return len(self.user_labels)

    @property
    def n_items(self) -> int:
        return len(self.item_labels)

    def __len__(self) -> int:
        return len(self.ratings)

    def __str__(self) -> str:
        return (
            f"{self.name!r}: {len(self):,} ratings ({self.ratings.min():g} to "
            f"{self.ratings.max():g}) by {self.n_users:,} users of {self.n_items:,} items, "
            f"{len(self) / (self.n_users * self.n_items):.2%} of all pairs"
        )

    def __repr__(self) -> str:
        times = self.timestamps
        times = "no timestamps" if times is None else f"timestamps {times.min()} to {times.max()}"
        return f"Interactions({self}, {times}, sha256 {self.sha256[:12]})"


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
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    right = "a whole number from 0 to 4294967295"
    require(whole and 0 <= seed < 2**32, f"seed is {seed!r}", right)
    order = np.random.RandomState(seed).permutation(len(data))
    return _cut(order, test_fraction, validation_fraction)


def temporal_split(
    data: Interactions, test_fraction: float = 0.05, validation_fraction: float = 0.0
) -> Split:
    """By global time: the latest rows are the test part, those before them the validation part.

    Rows of the same time stay in the data's order. Raises ValueError as `random_split` does, and
    when the data has no timestamps.
    """
    right = "a 'timestamp' column or a random split"
    require(data.timestamps is not None, f"{data.name} has no timestamps", right)
    order = np.argsort(data.timestamps, kind="stable")
    return _cut(order, test_fraction, validation_fraction)


def _cut(order: np.ndarray, test_fraction: float, validation_fraction: float) -> Split:
    for part, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        require(0 <= fraction < 1, f"{part}_fraction is {fraction}", "at least 0 and below 1")
    n = len(order)
    n_test, n_validation = round(n * test_fraction), round(n * validation_fraction)
    n_train = n - n_test - n_validation
    require(
        n_test > 0 and n_train > 0 and (n_validation > 0 or validation_fraction == 0),
        f"test_fraction {test_fraction} and validation_fraction {validation_fraction} cut {n} "
        f"rows into {n_train} to train, {n_validation} to validate, {n_test} to test",
        "fractions that leave each part a row",
    )
    return Split(*np.split(order.astype(np.int64), [n_train, n_train + n_validation]))


def validation_folds(split: Split, folds: int, seed: int = 0) -> list[Split]:
    """Ways of holding out a part of the training rows: to choose settings by more than one part.

    The validation parts are drawn from `split.train` without overlap, each as large as
    `split.test`; a fold trains on all the other rows of `split.train`, and its test part is the
    split's. Raises ValueError when the training part is too small, or a validation part is there.
    """
    size, n_train, n_validation = len(split.test), len(split.train), len(split.validation)
    require(
        folds > 0 and folds * size < n_train and n_validation == 0,
        f"{folds} folds of {size} rows, {n_train} to train on, {n_validation} to validate",
        "1 or more folds, fewer rows than the training part, no validation",
    )
    order = np.random.RandomState(seed).permutation(split.train)
    parts = order[: folds * size].reshape(folds, size)
    return [Split(split.train[~np.isin(split.train, part)], part, split.test) for part in parts]


# ---------------------------------------------------------------- load


def load(source: str | Path) -> Interactions:
    """The ratings of a named data set (`DATASETS`) or of a CSV or TSV file with a header.

    A file has columns for user, item, rating and, if it likes, timestamp, under the names in
    `ratings_file.COLUMNS`, in any case and order; others are ignored. Text is UTF-8, fields are
    separated by tabs if the header has one, else by commas, and may be quoted. Ids are text, kept
    as they are; ratings finite decimals; timestamps whole numbers. Blank lines are skipped.
    Of a repeated (user, item) pair the last by time stays, or without timestamps the last in the
    file, and stderr says how many went.

    Raises ValueError, or FileNotFoundError when a named set can't be had: one line that says what
    is wrong, where, and what would be right.
    """
    if source in DATASETS:
        return _load_named(str(source))
    path, names = Path(source), ", ".join(map(repr, DATASETS))
    shown = str(path) if str(path).isprintable() else repr(str(path))
    found = f"{short(str(source))} is neither a known data set ({names}) nor a file"
    require(os.path.exists(path), found, f"{names} or the path of a CSV or TSV file")
    require(path.is_file(), f"{shown} is a folder or a device", "a CSV or TSV file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise wrong(f"{shown} can't be read ({one_line(error)})", "a readable file") from None
    return Interactions(**read_table(content, shown), item_titles=None, name=path.name)


# ---------------------------------------------------------------- named data sets


def _pip(requirement: str, output: str, _: object) -> None:
    """A downloader for pooch that asks the package index for a wheel."""
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "download", requirement, *options.split()]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--quiet", "--timeout=10", "--retries=1", "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        if done.returncode != 0:
            complaints = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise OSError(f"pip download: {complaints[-1]}")
        shutil.copyfile(next(Path(folder).iterdir()), output)


@dataclass(frozen=True)
class Source:
    """A zip archive with the ratings of a data set, and how to get it."""

    label: str
    address: str
    file_name: str  # in the cache folder
    known_hash: str | None  # algorithm:digest, where it is published
    ratings: str  # the member with a table as `load` reads it
    titles: str | None = None  # the member with lines of item, title and, if it likes, year
    header: bytes = b""  # of the ratings, where the member has none
    titles_in: tuple[str, str] = ("\t", "utf-8")  # separator and encoding
    downloader: Callable = pooch.HTTPDownloader(timeout=5, progressbar=True)


@dataclass(frozen=True)
class Dataset:
    """A data set with a name: what its rows must be, where to get it, whom to thank."""

    sha256: str  # of `canonical_rows`
    sources: tuple[Source, ...]  # tried in this order, after those in the cache folder
    about: str  # reference and licence, said when it is downloaded


def _grouplens(name: str, known_hash: str | None, ratings: str, titles: str, **how) -> Source:
    address, file_name = "https://files.grouplens.org/datasets/movielens/", f"{name}.zip"
    return Source("GroupLens", address + file_name, file_name, known_hash, ratings, titles, **how)


MOVIELENS = "MovieLens is GroupLens' (Harper and Konstan, ACM TiiS 5(4), 2015, "
MOVIELENS += "https://doi.org/10.1145/2827872); its licence "

DATASETS = {
    "ml-100k": Dataset(
        sha256="6cfffb52c89b05fbc3afb75f6912eeda04c81c2add0dc58e773a0ef6c8adb160",
        sources=(
            _grouplens(
                "ml-100k",
                "md5:0e33842e24a9c977be4e0107933c0723",
                "ml-100k/u.data",
                "ml-100k/u.item",
                header=b"user\titem\trating\ttimestamp\n",
                titles_in=("|", "latin-1"),
            ),
            Source(
                "the RecBole wheel",
                "recbole==1.2.1",
                "recbole-1.2.1-py3-none-any.whl",
                "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                ratings="recbole/dataset_example/ml-100k/ml-100k.inter",
                titles="recbole/dataset_example/ml-100k/ml-100k.item",
                downloader=_pip,
            ),
        ),
        about=MOVIELENS + "forbids redistribution",
    ),
    "ml-latest-small": Dataset(
        sha256="24d50ac01a51dac1b87885bcab73be6b7b7f5d5dec04f0fe34a9de971881a3bd",
        sources=(
            _grouplens(
                "ml-latest-small",
                None,
                "ml-latest-small/ratings.csv",
                "ml-latest-small/movies.csv",
                titles_in=(",", "utf-8"),
            ),
        ),
        about=MOVIELENS + "lets redistribute under the same licence",
    ),
    "filmtrust": Dataset(
        sha256="79d5b5f39676627f98ad8e8b5ff36d5c009e6e2a025ddda450d909bc99590355",
        sources=(
            Source(
                "LibRec",
                "https://guoguibing.github.io/librec/datasets/filmtrust.zip",
                "filmtrust.zip",
                None,
                ratings="ratings.txt",
                header=b"user,item,rating\n",
            ),
        ),
        about="FilmTrust is Guo, Zhang and Yorke-Smith's (IJCAI 2013): cite their paper",
    ),
}
LARGEST_MEMBER = 2**30  # bytes; members are read in memory, never unpacked
BROKEN = (OSError, ValueError, KeyError, RuntimeError, EOFError)  # what a source may run into
BROKEN += (zipfile.BadZipFile, zlib.error, subprocess.SubprocessError)


def canonical_rows(data: Interactions) -> bytes:
    """user, item, rating and time in tab-separated lines, sorted by user and item."""
    users, items = data.user_labels[data.user_ids], data.item_labels[data.item_ids]
    table = pd.DataFrame({"user": users, "item": items, "rating": data.ratings})
    if data.timestamps is not None:
        table["timestamp"] = data.timestamps
    table = table.sort_values(["user", "item"])
    options = {"header": False, "index": False, "float_format": "%g", "lineterminator": "\n"}
    return table.to_csv(sep="\t", **options).encode()


def _load_named(name: str) -> Interactions:
    """From the cache folder, else from each source in turn; pooch keeps only what has the hash."""
    dataset, folder, failures = DATASETS[name], cache_folder(), []
    pooch.get_logger().setLevel("ERROR")
    for source in sorted(dataset.sources, key=lambda s: not (folder / s.file_name).exists()):
        path = folder / source.file_name
        here, wanted = path.exists(), (source.address, source.known_hash, source.file_name)
        try:
            pooch.retrieve(*wanted, folder, downloader=source.downloader)
            data = _read_archive(name, source, path)
        except BROKEN as error:
            damaged = f"{path} is damaged, " if here else ""
            failures.append(f"{damaged}{source.label}: {one_line(error)}")
            if not (here or source.known_hash):
                path.unlink(missing_ok=True)  # nothing else checked what was downloaded
        else:
            say(f"{name} served by {path}" + ("" if here else f"; {dataset.about}"))
            return data
    found = f"{name} can't be had ({'; '.join(failures)})"
    files = " or ".join(source.file_name for source in dataset.sources)
    right = f"a network, or {files} in {folder}, or another file by --data PATH"
    raise FileNotFoundError(f"{found}; {right} would be right")


def _title(title: str = "", year: str = "", *_: str) -> str:
    if title == "unkonwn":  # so the wheel spells the one film without a year
        return "unknown"
    return f"{title} ({year})" if year.isdigit() else title


def _read_archive(name: str, source: Source, path: Path) -> Interactions:
    members, texts = [source.ratings] + [source.titles] * bool(source.titles), []
    with zipfile.ZipFile(path) as archive:
        for member in members:
            size = archive.getinfo(member).file_size
            found = f"{member} unpacks to {size:,} bytes"
            require(size <= LARGEST_MEMBER, found, f"at most {LARGEST_MEMBER:,}")
            texts.append(archive.read(member))
    ratings = source.header + (texts[0].replace(b" ", b",") if source.header else texts[0])
    columns = {"item_titles": None, **read_table(ratings, source.ratings)}
    if source.titles:
        separator, encoding = source.titles_in
        quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
        lines = texts[1].decode(encoding).splitlines()
        rows = csv.reader(lines, delimiter=separator, quoting=quoting)
        by_item = {item: _title(*cells) for item, *cells in rows}
        columns["item_titles"] = np.array([by_item.get(str(k), "") for k in columns["item_labels"]])
    data = Interactions(**columns, name=name)
    sha256, expected = hashlib.sha256(canonical_rows(data)).hexdigest(), DATASETS[name].sha256
    require(sha256 == expected, f"other rows than {name}'s: SHA-256 {sha256}", expected)
    return replace(data, sha256=sha256)
