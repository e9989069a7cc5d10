"""Claims about data.py: what load accepts and refuses, what a split is, what is planted."""

import functools
import hashlib
import io
import os
import random
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import ratings_file
from checks import fuzz_data
from checks.synthetic import synthetic

HEADER = "userId,movieId,rating,timestamp\n"


def write(folder: Path, text: str | bytes, name: str = "ratings.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_text(folder: Path, text: str | bytes) -> data.Interactions:
    return data.load(write(folder, text))


def interactions(**changes) -> data.Interactions:
    """Three users, two items, four rows; `changes` replace fields."""
    fields = dict(
        user_ids=np.array([0, 1, 2, 0]),
        item_ids=np.array([0, 1, 0, 1]),
        ratings=np.array([1, 2, 3, 4], dtype=np.float32),
        timestamps=np.array([40, 30, 20, 10]),
        user_labels=np.array([5, 6, 7]),
        item_labels=np.array(["a", "b"]),
        item_titles=None,
        name="four",
        sha256="0" * 64,
    )
    return data.Interactions(**(fields | changes))


# ---------------------------------------------------------------- interactions


@pytest.mark.parametrize(
    "changes, complaint",
    [
        (dict(user_ids=np.array([0, 1, 2])), r"user_ids is int64 \(3,\); int64 \(4,\)"),
        (dict(user_ids=np.array([0, 1, 2, 0], dtype=np.int32)), "user_ids is int32"),
        (dict(user_labels=np.array([5, 6, 7], dtype=np.int32)), "user_labels is int32"),
        (dict(ratings=np.ones((4, 1), dtype=np.float32)), r"ratings is float32 \(4, 1\)"),
        (dict(ratings=np.array([1, np.nan, 3, 4], dtype=np.float32)), r"ratings\[1\] is nan"),
        (dict(user_ids=np.array([0, 1, 3, 0])), "0 to 3; 0 to 2, one for each label,"),
        (dict(item_ids=np.array([0, -1, 0, 1])), "-1 to 1; 0 to 1"),
        (dict(user_ids=np.array([0, 2, 2, 0])), "0 to 2 without 1; contiguous ids"),
        (dict(user_labels=np.array([5, 5, 7])), "user_labels don't increase"),
        (dict(item_ids=np.array([0, 1, 0, 0])), "user id 0 and item id 0 meet"),
    ],
)
def test_interactions_refuse_what_breaks_their_contract(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        interactions(**changes)


def test_interactions_refuse_no_rows():
    none, labels = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="no rows"):
        data.Interactions(none, none, none.astype("f"), None, labels, labels, None, "none", "")


def test_interactions_are_read_only_and_tell_what_they_are():
    four = interactions()
    with pytest.raises(ValueError, match="read-only"):
        four.ratings[0] = 9
    assert (len(four), four.n_users, four.n_items) == (4, 3, 2)
    assert repr(four) == (
        "Interactions('four': 4 ratings (1 to 4) by 3 users of 2 items, 66.67% of all pairs, "
        "timestamps 10 to 40, sha256 000000000000)"
    )


# ---------------------------------------------------------------- splits


def test_random_split_is_the_reports_permutation():
    rows = synthetic(200, 300, 8000)
    split = data.random_split(rows, seed=3, validation_fraction=0.1)
    permutation = np.random.RandomState(3).permutation(8000)
    np.testing.assert_array_equal(split.train, permutation[:6800])
    np.testing.assert_array_equal(split.validation, permutation[6800:7600])
    np.testing.assert_array_equal(split.test, permutation[7600:])
    without = data.random_split(rows, seed=3)
    np.testing.assert_array_equal(without.train, permutation[:7600])
    np.testing.assert_array_equal(without.test, split.test)
    assert without.validation.size == 0


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    test_fraction=st.floats(0, 1, allow_subnormal=False),  # other tests flush them
    validation_fraction=st.floats(0, 1, allow_subnormal=False),
)
def test_a_split_is_always_a_partition_with_a_train_and_a_test_part(
    n, seed, test_fraction, validation_fraction
):
    rows = synthetic(1, n, n)
    for make in (
        lambda *a: data.random_split(rows, seed, *a),
        lambda *a: data.temporal_split(rows, *a),
    ):
        try:
            split = make(test_fraction, validation_fraction)
        except ValueError as error:
            assert "would be right" in str(error)
            continue
        parts = [split.train, split.validation, split.test]
        assert all(part.dtype == np.int64 for part in parts)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
        assert len(split.train) >= 1 and len(split.test) == round(n * test_fraction) >= 1
        assert len(split.validation) == round(n * validation_fraction)
        assert split.validation.size or validation_fraction == 0


def test_temporal_split_tests_on_the_latest_and_keeps_the_order_of_equal_times():
    rows = interactions(timestamps=np.array([30, 10, 30, 30]))
    split = data.temporal_split(rows, test_fraction=0.25, validation_fraction=0.25)
    assert [split.train.tolist(), split.validation.tolist(), split.test.tolist()] == [
        [1, 0],
        [2],
        [3],
    ]


@pytest.mark.parametrize(
    "seed, fractions, complaint",
    [
        (-1, (0.5,), "seed is -1"),
        (2**32, (0.5,), "seed is 4294967296"),
        (True, (0.5,), "seed is True"),
        (0, (1.0,), "test_fraction is 1.0"),
        (0, (float("nan"),), "test_fraction is nan"),
        (0, (0.5, -0.1), "validation_fraction is -0.1"),
        (0, (0.0,), "0 to test"),
        (0, (0.05,), "0 to test"),
        (0, (0.5, 0.5), "0 to train"),
        (0, (0.5, 0.01), "0 to validate"),
    ],
)
def test_split_refuses_bad_seeds_bad_fractions_and_empty_parts(seed, fractions, complaint):
    with pytest.raises(ValueError, match=complaint):
        data.random_split(interactions(), seed, *fractions)


@pytest.mark.parametrize("make", [lambda rows: data.random_split(rows, 0), data.temporal_split])
def test_validation_folds_are_disjoint_parts_of_the_training_part(make):
    split = make(synthetic(50, 60, 2000))
    folds = data.validation_folds(split, 4, seed=1)
    held_out = np.concatenate([fold.validation for fold in folds])
    assert len(folds) == 4 and len(np.unique(held_out)) == len(held_out) == 4 * len(split.test)
    assert np.isin(held_out, split.train).all() and not np.isin(held_out, split.test).any()
    for fold in folds:
        np.testing.assert_array_equal(fold.test, split.test)
        rest = np.concatenate([fold.train, fold.validation])
        np.testing.assert_array_equal(np.sort(rest), np.sort(split.train))
        assert fold.train.dtype == fold.validation.dtype == np.int64


def test_validation_folds_follow_their_seed_alone():
    split = data.random_split(synthetic(50, 60, 2000), 0)
    first, again, other = (data.validation_folds(split, 2, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.validation, again.validation)
    assert not np.array_equal(first.validation, other.validation)


@pytest.mark.parametrize("folds, validation_fraction", [(0, 0), (19, 0), (2, 0.05)])
def test_validation_folds_refuse_what_they_cannot_hold_out(folds, validation_fraction):
    split = data.random_split(synthetic(50, 60, 2000), 0, 0.05, validation_fraction)
    with pytest.raises(ValueError, match=f"{folds} folds of 100 rows"):
        data.validation_folds(split, folds)


def test_temporal_split_refuses_data_without_timestamps():
    with pytest.raises(ValueError, match="four has no timestamps"):
        data.temporal_split(interactions(timestamps=None))


# ---------------------------------------------------------------- a file


def test_load_keeps_row_order_and_numbers_integer_labels_in_numeric_order(tmp_path):
    loaded = load_text(tmp_path, HEADER + "10,7,3.5,30\n9,7,5,10\n10,100,0.5,20\n")
    assert loaded.user_labels.tolist() == [9, 10] and loaded.user_labels.dtype == np.int64
    assert loaded.item_labels.tolist() == [7, 100]
    assert loaded.user_ids.tolist() == [1, 0, 1] and loaded.item_ids.tolist() == [0, 0, 1]
    assert loaded.ratings.tolist() == [3.5, 5.0, 0.5] and loaded.ratings.dtype == np.float32
    assert loaded.timestamps.tolist() == [30, 10, 20]
    assert loaded.name == "ratings.csv"
    assert loaded.sha256 == hashlib.sha256((tmp_path / "ratings.csv").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "1,2,3.5,4\n2,2,1,5\n",
        HEADER.replace("\n", "\r\n") + "1,2,3.5,4\r\n2,2,1,5\r\n",
        HEADER.replace("\n", "\r") + "1,2,3.5,4\r2,2,1,5",
        '"userId","movieId","rating","timestamp"\n"1","2","3.5","4"\n"2","2","1","5"\n',
        "\n" + HEADER + "\n1,2,3.5,4\n\n2,2,1,5\n\n",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3.5\t4.0\n2\t2\t1\t5\n",
        'timestamp,title,RATING,item,User\n4,"Net, The",3.5,2,1\n5,"a\nb",1,2,2\n',
    ],
    ids=["bom", "crlf", "cr", "quotes", "blank lines", "recbole", "reordered with an extra"],
)
def test_load_reads_the_same_rows_from_every_dialect(tmp_path, text):
    loaded = load_text(tmp_path, text)
    assert fuzz_data.loaded_rows(loaded) == [("1", "2", 3.5, 4), ("2", "2", 1.0, 5)]


@pytest.mark.parametrize("odd", ["u1", "007", "1.0", "+1", "-0", "1_0", "٣", " 1", str(2**63)])
def test_load_keeps_labels_as_text_unless_all_are_canonical_integers(tmp_path, odd):
    loaded = load_text(tmp_path, HEADER + f"9,1,3,0\n{odd},1,3,0\n10,1,3,0\n")
    assert loaded.user_labels.tolist() == sorted(["9", "10", odd])
    assert loaded.item_labels.tolist() == [1]
    loaded = load_text(tmp_path, HEADER + f"9,1,3,0\n9,{odd},3,0\n10,1,3,0\n")
    assert loaded.item_labels.tolist() == sorted(["1", odd])


def test_load_keeps_the_ends_of_int64_exactly(tmp_path):
    top, bottom = 2**63 - 1, -(2**63)
    loaded = load_text(tmp_path, HEADER + f"{top},1,3,{top}\n{bottom},1,3,{2**53 + 1}.0\n")
    assert loaded.user_labels.tolist() == [bottom, top]
    assert loaded.timestamps.tolist() == [top, 2**53 + 1]


def test_load_keeps_the_last_of_a_repeated_pair_by_time_and_says_how_many_went(tmp_path, capsys):
    rows = "1,1,1,20\n2,1,5,0\n1,1,2,30\n1,1,3,10\n2,2,4,7\n2,2,5,7\n"
    loaded = load_text(tmp_path, HEADER + rows)
    assert fuzz_data.loaded_rows(loaded) == [("2", "1", 5, 0), ("1", "1", 2, 30), ("2", "2", 5, 7)]
    assert "3 repeated (user, item) rows dropped" in capsys.readouterr().err


def test_load_without_timestamps_keeps_the_last_of_a_repeated_pair_in_the_file(tmp_path):
    loaded = load_text(tmp_path, "user,item,rating\n1,1,1\n1,2,2\n1,1,3\n")
    assert fuzz_data.loaded_rows(loaded) == [("1", "2", 2, None), ("1", "1", 3, None)]


def test_load_keeps_a_line_end_inside_quotes_as_it_is(tmp_path):
    loaded = load_text(tmp_path, HEADER + '"a\r\nb",1,3,4\n"a\nb",1,3,4\n')
    assert loaded.user_labels.tolist() == ["a\nb", "a\r\nb"]


def test_load_takes_a_single_rating(tmp_path):
    loaded = load_text(tmp_path, HEADER + "1,2,3,4")
    assert (len(loaded), loaded.n_users, loaded.n_items) == (1, 1, 1)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (HEADER + "1,2,3,4\n\n1,3,abc,4\n", "line 4, column 'rating': 'abc' is not a number"),
        (HEADER + "1,2,nan,4\n", "line 2, column 'rating': 'nan'"),
        (HEADER + "1,2,-inf,4\n", "line 2, column 'rating': '-inf'"),
        (HEADER + "1,2,1_0,4\n", "column 'rating': '1_0'"),
        (HEADER + "1,2,٣,4\n", "column 'rating': '٣'"),
        (HEADER + "1,2,1e39,4\n", "column 'rating': '1e39' is too large"),
        (HEADER + '1,2,"4\n",4\n', r"line 2, column 'rating': '4\n' is not a number"),
        (HEADER + "1,2,1e400,4\n1,2,3,5\n", "line 2, column 'rating': '1e400' is too large"),
        (HEADER + "1,2,3.4028236e38,4\n", "'3.4028236e38' is too large"),
        (HEADER + "1,2,3,1.5\n", "column 'timestamp': '1.5' is not a time"),
        (HEADER + f"1,2,3,{2**63}\n", "column 'timestamp': '9223372036854775808'"),
        (HEADER + f"1,2,3,{10**30}\n", "column 'timestamp': '1000000000000000000000000000000'"),
        (HEADER + ",2,3,4\n", "line 2, column 'userId': '' has 0 characters"),
        (HEADER + f"1,{'x' * 300},3,4\n", "column 'movieId': 'xxx"),
        (HEADER + "1,2,3\n", "line 2: 3 fields, not 4"),
        (HEADER + "1,2,3,4,5\n", "line 2: 5 fields, not 4"),
        ("user,item,rating,x\n1,2,3,\n1,3,3\n", "line 3: 3 fields, not 4"),
        ("user,item,rating,x\n1,2,3,,\n1,3,3\n", "line 2: 5 fields, not 4"),
        (HEADER + '1,"2\n\n",3,4\n1,2,3,4,5\n', "line 5: 5 fields, not 4"),
        (HEADER + '1,2,3,4\n1,"2,3,4\n', "line 3: unexpected end of data"),
        (HEADER + '1,"2"x,3,4\n', "line 2: ',' expected after '\"'"),
        (HEADER + "1,2,3,4\n1,\0,3,4\n", "line 3: bytes that are no text"),
        (HEADER.encode() + b"1,2,3,4\n\xff,2,3,4\n", "line 3: bytes that are no text; UTF-8"),
        (HEADER.encode("utf-16"), "line 1: bytes that are no text"),
        ("userId,rating\n1,2\n", "line 1: no item column among 'userId', 'rating'; movieid or"),
        ("1,2,3\n1,3,4\n", "'1', '2', '3'; a header above the rows, with userid or"),
        ("userId;movieId;rating\n", "'; commas or tabs, not ';', between the columns would be"),
        ("userId,user,movieId,rating\n", "line 1: columns 'userId' and 'user' mean the same"),
        ("\n\nuserId,rating\n1,2\n", "line 3: no item column"),
        ("user,item,rating,a,A\n", "line 1: columns 'a' and 'A' mean the same"),
        ("", "is empty; a header and at least one row would be right"),
        ("\ufeff\n\n", "is empty"),
        (HEADER, "has a header but no rows"),
    ],
)
def test_load_refuses_in_one_line_that_names_file_place_and_remedy(tmp_path, content, complaint):
    path = write(tmp_path, content)
    with pytest.raises(ValueError) as refusal:
        data.load(path)
    message = str(refusal.value)
    assert complaint in message and len(message.splitlines()) == 1
    assert message.startswith(str(path)) and message.endswith("would be right")


def test_load_refuses_unknown_names_folders_and_unreadable_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'ml-1k' is neither a known data set .'ml-100k'. nor a"):
        data.load("ml-1k")
    with pytest.raises(ValueError, match="neither"):
        data.load("x" * 5000 + "\n\0")
    with pytest.raises(ValueError, match="is a folder"):
        data.load(tmp_path)
    path = write(tmp_path, HEADER + "1,2,3,4\n")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match="can't be read .*Permission denied.*readable file would"):
        data.load(path)


blocks = st.sampled_from([16, 100, 2**26])  # bytes that are read at a time


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32 - 1), block=blocks)
def test_load_agrees_with_the_oracle_on_odd_files(tmp_path_factory, seed, block):
    path = tmp_path_factory.getbasetemp() / "odd.csv"
    content = fuzz_data.odd_file(random.Random(seed))
    assert fuzz_data.verdict(path, content, block) in ("accepted", "refused")


alphabet = st.sampled_from(
    list('0123.,\t"\r\n eE+-x') + [",", "\n", "é", "\ufeff", "\0", "1,0,1\n"]
)


@settings(deadline=None, max_examples=200)
@given(body=st.lists(alphabet, max_size=40).map("".join), block=blocks)
def test_load_agrees_with_the_oracle_on_any_text(tmp_path_factory, body, block):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    content = ("user,item,rating\n1,1,1\n" + body).encode()
    assert fuzz_data.verdict(path, content, block) in ("accepted", "refused")


@pytest.mark.parametrize("ids", ["12", "007", "é", "NA", "1.0"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_plain_files_are_left_to_pandas(tmp_path, monkeypatch, ids, end):
    monkeypatch.delattr(ratings_file, "_by_csv")
    monkeypatch.setattr(ratings_file, "BLOCK", 40)
    rows = "".join(f"{ids},{k},3.5,4{end}" for k in range(20))
    loaded = load_text(tmp_path, HEADER.replace("\n", end) + rows + "\n")
    assert fuzz_data.loaded_rows(loaded) == [(ids, str(k), 3.5, 4) for k in range(20)]
    with pytest.raises(NameError, match="_by_csv"):
        load_text(tmp_path, HEADER + f'"{ids}",2,3.5,4\n')


# ---------------------------------------------------------------- named data sets

TINY = [(10, 3, 5, 100), (2, 3, 4, 300), (10, 1, 1, 200)]
CANONICAL = b"2\t3\t4\t300\n10\t1\t1\t200\n10\t3\t5\t100\n"
ML_100K = data.DATASETS["ml-100k"]
GROUPLENS, WHEEL = ML_100K.sources


def tiny_archive(source: data.Source, ratings_member: str) -> bytes:
    rows = "".join("\t".join(map(str, row)) + "\n" for row in TINY)
    titles = "1|Misérables, Les (1995)|x\n3|unknown||\n".encode("latin-1")
    if source is WHEEL:
        rows = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + rows
        titles = "item_id:token\tmovie_title\tyear\tclass\n1\tMisérables, Les\t1995\tx\n".encode()
        titles += b"3\tunkonwn\tunkonwn\tunknown"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(ratings_member, rows)
        archive.writestr(source.titles, titles)
    return content.getvalue()


class Shelf:
    """The data set "tiny", one entry; `serves` holds what a download brings, or its error."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.cache, self.fetched, self.monkeypatch = folder / "cache", [], monkeypatch
        self.archives = {
            source: tiny_archive(source, source.ratings) for source in (GROUPLENS, WHEEL)
        }
        self.serves: dict[data.Source, bytes | Exception] = dict(self.archives)
        monkeypatch.setenv("MULTITASK_DATA", str(self.cache))
        self.enter(hashlib.sha256(CANONICAL).hexdigest())

    def enter(self, sha256: str) -> None:
        sources = []
        for source, archive in self.archives.items():
            known_hash = "sha256:" + hashlib.sha256(archive).hexdigest()
            download = functools.partial(self.download, source)
            sources.append(replace(source, known_hash=known_hash, downloader=download))
        entry = data.Dataset(sha256, tuple(sources), about="Tiny is nobody's")
        self.monkeypatch.setitem(data.DATASETS, "tiny", entry)

    def download(self, source: data.Source, address: str, output: str, _) -> None:
        self.fetched.append(source)
        served = self.serves[source]
        if isinstance(served, Exception):
            raise served
        Path(output).write_bytes(served[: len(served) // 2])
        time.sleep(0.01)
        Path(output).write_bytes(served)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)


def test_ml_100k_is_the_published_one_from_grouplens_or_else_the_wheel():
    assert [source.label for source in ML_100K.sources] == ["GroupLens", "the RecBole wheel"]
    assert GROUPLENS.known_hash == "md5:0e33842e24a9c977be4e0107933c0723"
    wheel = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
    assert WHEEL.known_hash == f"sha256:{wheel}"
    assert ML_100K.sha256.startswith("6cfffb52c89b05fb")


@pytest.mark.parametrize("source, other", [(GROUPLENS, WHEEL), (WHEEL, GROUPLENS)])
def test_one_entry_gives_a_data_set_by_name_the_same_from_every_source(
    shelf, source, other, capsys
):
    shelf.serves[other] = OSError("unreachable")
    loaded = data.load("tiny")
    assert [tuple(map(int, row)) for row in fuzz_data.loaded_rows(loaded)] == TINY
    assert loaded.user_labels.tolist() == [2, 10] and loaded.item_labels.tolist() == [1, 3]
    assert loaded.item_titles.tolist() == ["Misérables, Les (1995)", "unknown"]
    assert (loaded.name, loaded.sha256) == ("tiny", hashlib.sha256(CANONICAL).hexdigest())
    assert data.canonical_rows(loaded) == CANONICAL
    served = f"tiny served by {shelf.cache / source.file_name}"
    assert f"{served}; Tiny is nobody's" in capsys.readouterr().err
    shelf.serves[source] = OSError("the cache comes first")
    assert len(data.load("tiny")) == 3
    assert f"{served}\n" in capsys.readouterr().err


def test_canonical_rows_are_sorted_by_number_with_the_shortest_decimals(tmp_path):
    loaded = load_text(tmp_path, "user,item,rating\n10,1,3.5\n9,2,4.0\n9,1,0.5\n")
    assert data.canonical_rows(loaded) == b"9\t1\t0.5\n9\t2\t4\n10\t1\t3.5\n"


def test_grouplens_comes_before_the_wheel_and_what_is_there_before_both(shelf):
    data.load("tiny")
    data.load("tiny")
    assert shelf.fetched == [GROUPLENS] and shelf.files() == ["ml-100k.zip"]
    (shelf.cache / "ml-100k.zip").unlink()
    write(shelf.cache, shelf.archives[WHEEL], WHEEL.file_name)
    data.load("tiny")
    assert shelf.fetched == [GROUPLENS]


def test_a_corrupt_cached_file_is_replaced_and_never_used(shelf):
    shelf.cache.mkdir()
    cached = write(shelf.cache, shelf.archives[GROUPLENS][:-1], "ml-100k.zip")
    assert len(data.load("tiny")) == 3
    assert cached.read_bytes() == shelf.archives[GROUPLENS]


def test_a_truncated_download_is_thrown_away_and_the_next_source_serves(shelf):
    shelf.serves[GROUPLENS] = shelf.archives[GROUPLENS][:100]
    assert len(data.load("tiny")) == 3
    assert shelf.files() == [WHEEL.file_name]


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda shelf: shelf.enter("0" * 64), "other rows than tiny's: SHA-256"),
        (
            lambda shelf: shelf.monkeypatch.setattr(data, "LARGEST_MEMBER", 20),
            "unpacks to .* bytes; at most 20 would",
        ),
        (
            lambda shelf: write(shelf.cache.parent, "a file in its way", "cache"),
            "File exists|Not a",
        ),
    ],
    ids=["other rows", "too large a member", "no cache folder"],
)
def test_a_named_set_that_is_not_what_it_should_be_is_refused(shelf, change, complaint):
    change(shelf)
    with pytest.raises(FileNotFoundError, match=complaint):
        data.load("tiny")
    with pytest.raises(FileNotFoundError, match=complaint):  # nor from the cache
        data.load("tiny")


def test_an_archive_without_the_ratings_is_refused(shelf):
    shelf.archives = {GROUPLENS: tiny_archive(GROUPLENS, "../outside"), WHEEL: b"no zip"}
    shelf.serves = dict(shelf.archives)
    shelf.enter("")
    with pytest.raises(FileNotFoundError, match="no item named .*no.* a zip file"):
        data.load("tiny")


def test_no_network_and_no_cache_say_in_one_line_what_was_tried_and_what_would_help(shelf):
    shelf.serves[GROUPLENS] = OSError("timed out\nafter 5 s")
    shelf.serves[WHEEL] = shelf.archives[WHEEL][:100]
    with pytest.raises(FileNotFoundError) as refusal:
        data.load("tiny")
    message = str(refusal.value)
    assert len(message.splitlines()) == 1
    for part in ("GroupLens: timed out after 5 s", str(shelf.cache), "--data PATH"):
        assert part in message
    assert "the RecBole wheel: SHA256 hash of downloaded file" in message
    assert shelf.files() == []


def test_downloads_at_the_same_time_dont_hurt_each_other(shelf):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(len, pool.map(data.load, ["tiny"] * 8))) == [3] * 8
    assert shelf.files() == ["ml-100k.zip"]


def test_a_failing_pip_is_reported_by_its_last_line(tmp_path, monkeypatch):
    fake = write(tmp_path, "#!/bin/sh\necho noise >&2\necho 'ERROR: no such thing' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(data.sys, "executable", str(fake))
    with pytest.raises(OSError, match="^pip download: ERROR: no such thing$"):
        WHEEL.downloader(WHEEL.address, str(tmp_path / "wheel"), None)


# ---------------------------------------------------------------- what is kept of large files


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """The folder where arrays are kept; every file counts as large."""
    monkeypatch.setenv("MULTITASK_DATA", str(tmp_path / "kept"))
    monkeypatch.setattr(ratings_file, "KEPT_FROM", 0)
    return tmp_path / "kept"


def everything(loaded: data.Interactions) -> list:
    arrays = [value for value in vars(loaded).values() if isinstance(value, np.ndarray)]
    return [(a.dtype.str, a.tolist()) for a in arrays] + [repr(loaded), loaded.timestamps is None]


@pytest.mark.parametrize("header", [HEADER, HEADER.replace("timestamp", "extra")])
def test_a_large_file_is_read_once_and_then_recalled_the_same(
    kept, tmp_path, header, capsys, monkeypatch
):
    path = write(tmp_path, header + "é,007,3.5,4\nb,2,1,5\nb,2,4,6\n")
    first, told = everything(data.load(path)), capsys.readouterr().err
    assert len(list(kept.iterdir())) == 1 and "1 repeated" in told
    with monkeypatch.context() as patch:
        patch.delattr(ratings_file, "_parse")
        assert everything(data.load(path)) == first
        assert capsys.readouterr().err == told
        write(tmp_path, header + "é,007,3.5,4\nb,2,1,5\nb,2,5,6\n")  # of the same length
        with pytest.raises(NameError, match="_parse"):
            data.load(path)


def test_arrays_kept_by_another_reader_are_not_recalled(kept, tmp_path, monkeypatch):
    path = write(tmp_path, HEADER + "1,2,3,4\n")
    data.load(path)
    monkeypatch.setattr(
        ratings_file, "__file__", str(write(tmp_path, "an edited reader", "data.py"))
    )
    data.load(path)
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_kept_arrays_are_ignored_and_replaced(kept, tmp_path, place, cut, capsys):
    path = write(tmp_path, HEADER + "".join(f"{k},{k % 7},3,{k}\n" for k in range(500)))
    first = everything(data.load(path))
    (arrays,) = kept.iterdir()
    whole = arrays.read_bytes()
    at = int(place * len(whole))
    arrays.write_bytes(whole[:at] + (b"" if cut else bytes([whole[at] ^ 255]) + whole[at + 1 :]))
    assert everything(data.load(path)) == first and everything(data.load(path)) == first
    assert list(kept.iterdir()) == [arrays] and capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_no_error(kept, tmp_path, monkeypatch, capsys):
    path = write(tmp_path, HEADER + "1,2,3,4\n")
    write(tmp_path, "a file in its way", "kept")
    assert len(data.load(path)) == 1
    kept.unlink()
    monkeypatch.setattr(ratings_file.np, "savez", lambda file, **arrays: os.write(-1, b"disk full"))
    assert len(data.load(path)) == 1
    assert list(kept.iterdir()) == [] and capsys.readouterr().err == ""


def test_kept_arrays_are_bounded_and_the_longest_unused_go_first(kept, tmp_path, monkeypatch):
    paths = [write(tmp_path, HEADER + f"{k},2,3,4\n", f"{k}.csv") for k in range(3)]
    used, unused = ("rows-" + data.load(path).sha256 for path in paths[:2])
    for age, name in ((200, used), (100, unused)):
        (arrays,) = kept.glob(f"{name}*")
        os.utime(arrays, (1e9 - age, 1e9 - age))
    data.load(paths[0])
    monkeypatch.setattr(ratings_file, "KEPT_BYTES", int(2.1 * arrays.stat().st_size))
    added = "rows-" + data.load(paths[2]).sha256
    assert {file.name[: len(added)] for file in kept.iterdir()} == {used, added}


def test_small_files_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTITASK_DATA", str(tmp_path / "kept"))
    load_text(tmp_path, HEADER + "1,2,3,4\n")
    assert not (tmp_path / "kept").exists()
