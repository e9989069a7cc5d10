"""Ratings in: load, validate, split.

    data = load("ml-100k")                 # or load("ratings.csv")
    split = random_split(data, seed=0)
    data.ratings[split.train]              # split holds row indices into the data

Rows always keep the order of their source. Users and items are numbered contiguously from 0,
in the order of their labels: numeric when all labels are integers, else lexical.

A named data set is one entry of `DATASETS`; it is fetched on first use and kept in
`$MULTITASK_DATA`, by default the user's cache folder.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pooch

import ratings_file
from ratings_file import one_line, require, say, wrong

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
    sha256              of a named set's canonical rows if they are known, else of the file's bytes

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
        pairs = self.user_ids * n_items + self.item_ids
        pairs.sort()
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
    return Split(*np.split(order.astype(np.int64, copy=False), [n_train, n_train + n_validation]))


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


def load(
    source: str | Path, columns: str | None = None, titles: str | Path | None = None
) -> Interactions:
    """The ratings of a named data set (`DATASETS`) or of a file.

    A file is a table with columns for user, item, rating and, if it likes, time, title and year,
    known by `ratings_file.NAMES` or by `columns`: "user=uid,item=3" tells names or numbers from 1,
    "time=" that there is none; without a header they stand in this order. Tabs, `::`, `;`, `,` or
    `|` separate them, whichever comes first, else blanks. The file may be gzip, zip or parquet.

    Text is UTF-8. Ids are text, kept as they are; ratings finite decimals, with a comma if `;`
    separates; times whole numbers or dates (ISO 8601, UTC if they name no zone, cut to the second).
    Of a repeated (user, item) pair the last by time stays, or without times the last in the file,
    and stderr says how many went. Titles come from the file `titles`, else from the data's own.

    Raises ValueError, or FileNotFoundError when a named set can't be had: one line that says what
    is wrong, where, and what would be right.
    """
    if source in DATASETS:
        require(not columns, f"columns {columns} for {source}", "none, they are known,")
        data = _load_named(str(source))
    else:
        names = ", ".join(map(repr, DATASETS))
        missing, right = f"neither a known data set ({names}) nor a file", "a file of ratings"
        with ratings_file.opened(source, missing, right) as (file, shown):
            columns = ratings_file.read_table(file, shown, columns)
        data = Interactions(**columns, name=Path(source).name)
    if titles:
        with ratings_file.opened(titles, "no file", "a file of titles") as (file, shown):
            named = ratings_file.read_titles(file.read(), shown, data.item_labels)
        require(any(named), f"{titles} has no title for any item of {source}", "the same item ids")
        data = replace(data, item_titles=named)
    return data


# ---------------------------------------------------------------- named data sets


def _pip(address: str, output: str, _: object) -> None:
    """A downloader for pooch that asks the package index for a wheel."""
    name, version, *_ = Path(address).name.split("-")
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "download", f"{name}=={version}", *options.split()]
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

    address: str
    known_hash: str | None  # algorithm:digest, where it is published
    ratings: str  # the member with a table as `load` reads it
    titles: str | None = None  # the member with titles as `load` reads them
    columns: str | None = None  # of the ratings, where they have no header
    downloader: Callable = pooch.HTTPDownloader(timeout=5, progressbar=True)

    @property
    def path(self) -> Path:
        return ratings_file.cache_folder() / Path(self.address).name


@dataclass(frozen=True)
class Dataset:
    """A data set with a name: where to get it, what its rows must be, whom to thank."""

    sources: tuple[Source, ...]  # tried in this order, after those in the cache folder
    counts: tuple[int, int, int]  # of ratings, users and rated items
    about: str  # reference and licence, said when it is downloaded
    sha256: str | None = None  # of `canonical_rows`, where it is known


RECBOLE = Source(
    "https://pypi.org/simple/recbole/recbole-1.2.1-py3-none-any.whl",
    "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    ratings="recbole/dataset_example/ml-100k/ml-100k.inter",
    titles="recbole/dataset_example/ml-100k/ml-100k.item",
    downloader=_pip,
)
CSV, DAT = ("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat")
MOVIELENS = {  # name: MD5 of its archive, counts, members, SHA-256 of its rows, other sources
    "ml-100k": (
        "0e33842e24a9c977be4e0107933c0723",
        (100_000, 943, 1_682),
        ("u.data", "u.item"),
        "6cfffb52c89b05fbc3afb75f6912eeda04c81c2add0dc58e773a0ef6c8adb160",
        RECBOLE,
    ),
    "ml-latest-small": (
        *(None, (100_836, 610, 9_724), CSV),
        "24d50ac01a51dac1b87885bcab73be6b7b7f5d5dec04f0fe34a9de971881a3bd",
    ),
    "ml-1m": ("c4d9eecfca2ab87c1945afe126590906", (1_000_209, 6_040, 3_706), DAT),
    "ml-10m": ("ce571fd55effeba0271552578f2648bd", (10_000_054, 69_878, 10_677), DAT),
    "ml-20m": ("cd245b17a1ae2cc31bb14903e1204af3", (20_000_263, 138_493, 26_744), CSV),
    "ml-25m": ("6b51fb2759a8657d3bfcbfc42b592ada", (25_000_095, 162_541, 59_047), CSV),
    "ml-32m": ("d472be332d4daa821edc399621853b57", (32_000_204, 200_948, 84_432), CSV),
}


def _movielens(
    name: str, md5: str | None, counts: tuple, members: tuple, sha256: str | None = None, *others
) -> Dataset:
    folder = "ml-10M100K" if name == "ml-10m" else name
    source = Source(
        f"https://files.grouplens.org/datasets/movielens/{name}.zip",
        md5 and f"md5:{md5}",
        *(f"{folder}/{member}" for member in members),
        None if members == CSV else "user=1,item=2,rating=3,time=4",
    )
    about = "MovieLens is GroupLens' (Harper and Konstan, ACM TiiS 5(4), 2015, "
    about += "https://doi.org/10.1145/2827872); the README in the archive has its licence"
    return Dataset((source, *others), counts, about, sha256)


LIBREC = "https://guoguibing.github.io/librec/datasets/filmtrust.zip"
DATASETS = {name: _movielens(name, *entry) for name, entry in MOVIELENS.items()}
DATASETS["filmtrust"] = Dataset(
    (Source(LIBREC, None, "ratings.txt", columns="user=1,item=2,rating=3"),),
    (35_494, 1_508, 2_071),
    "FilmTrust is Guo, Zhang and Yorke-Smith's (IJCAI 2013): cite their paper",
    "79d5b5f39676627f98ad8e8b5ff36d5c009e6e2a025ddda450d909bc99590355",
)


def canonical_rows(data: Interactions) -> bytes:
    """user, item, rating and time in tab-separated lines, sorted by user and item."""
    values, places = np.unique(data.ratings, return_inverse=True)
    texts = [(data.user_labels, data.user_ids), (data.item_labels, data.item_ids)]
    order = np.lexsort([labels[ids] for labels, ids in reversed(texts)])
    texts.append(([f"{value:g}" for value in values], places))
    columns = [np.array([*map(str, labels)], object)[ids[order]] for labels, ids in texts]
    if data.timestamps is not None:
        columns.append(map(str, data.timestamps[order].tolist()))
    columns[-1] = [f"{text}\n" for text in columns[-1]]
    return "".join(map("\t".join, zip(*columns, strict=True))).encode()


def _load_named(name: str) -> Interactions:
    """From the cache folder, else from each source in turn; pooch keeps only what has the hash."""
    dataset, failures = DATASETS[name], []
    pooch.get_logger().setLevel("ERROR")
    for source in sorted(dataset.sources, key=lambda source: not source.path.exists()):
        path, here = source.path, source.path.exists()
        try:
            wanted = source.address, source.known_hash, path.name, path.parent
            pooch.retrieve(*wanted, downloader=source.downloader)
            data = _read_archive(name, source, path.read_bytes())
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            damaged = f"{path} is damaged, " if here else ""
            failures.append(f"{damaged}{source.address.split('/')[2]}: {one_line(error)}")
            if not (here or source.known_hash):
                path.unlink(missing_ok=True)  # its rows were all there was to know it by
        else:
            say(f"{name} served by {path}" + ("" if here else f"; {dataset.about}"))
            return data
    found = f"{name} can't be had ({'; '.join(failures)})"
    paths = " or ".join(str(source.path) for source in dataset.sources)
    right = f"a network, or its archive as {paths}, or any file of ratings by --data PATH"
    raise FileNotFoundError(f"{found}; {right} would be right")


def _read_archive(name: str, source: Source, archive: bytes) -> Interactions:
    dataset = DATASETS[name]

    def read() -> dict:
        table = ratings_file.unpack(archive, name, source.ratings)
        sha256 = hashlib.sha256(table).hexdigest()
        columns = ratings_file.parse(table, source.ratings, source.columns)
        if source.titles:
            titles = ratings_file.unpack(archive, name, source.titles), source.titles
            columns["item_titles"] = ratings_file.read_titles(*titles, columns["item_labels"])
        own = {field: columns.get(field) for field in DTYPES}
        data = Interactions(**own, name=name, sha256=sha256)
        counts = "{:,} ratings by {:,} users of {:,} items".format
        found, right = counts(len(data), data.n_users, data.n_items), counts(*dataset.counts)
        if dataset.sha256:
            sha256 = hashlib.sha256(canonical_rows(data)).hexdigest()
            found += f", SHA-256 {sha256}"
            right += f", SHA-256 {dataset.sha256}"
        require(found == right, f"other rows than {name}'s: {found}", right)
        return columns | {"sha256": np.array(sha256)}

    told = source.ratings, source.titles, source.columns, dataset.counts, dataset.sha256
    told += (hashlib.sha256(Path(__file__).read_bytes()).digest(),)
    columns = ratings_file.kept(hashlib.sha256(archive).hexdigest(), source.ratings, told, read)
    return Interactions(**columns, name=name)
