"""Claims about data.py: what load accepts and refuses, what a split is, what is planted."""

import hashlib
import io
import os
import random
import re
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import ratings_file
from checks import fuzz_data
from checks.synthetic import synthetic

HEADER = "userId,movieId,rating,timestamp\n"
TOP, BOTTOM = 2**63 - 1, -(2**63)
CELL = {"user": "5", "item": "6", "rating": "3", "timestamp": "4"}
UNTIMED = HEADER.replace("timestamp", "extra")


def write(folder: Path, text: str | bytes, name: str = "ratings.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load_text(folder: Path, text: str | bytes) -> data.Interactions:
    return data.load(write(folder, text))


def interactions(**changes) -> data.Interactions:
    """Three users, two items, four rows; `changes` replace fields."""
    columns = {"user_ids": [0, 1, 2, 0], "item_ids": [0, 1, 0, 1], "timestamps": [40, 30, 20, 10]}
    columns |= {"user_labels": [5, 6, 7], "item_labels": ["a", "b"]}
    fields = {name: np.array(values) for name, values in columns.items()}
    fields |= {"ratings": np.array([1, 2, 3, 4], np.float32), "item_titles": None}
    return data.Interactions(**(fields | {"name": "four", "sha256": "0" * 64} | changes))


# ---------------------------------------------------------------- interactions


@pytest.mark.parametrize(
    "field, values, dtype, complaint",
    [
        ("user_ids", [0, 1, 2], "int64", r"user_ids is int64 \(3,\); int64 \(4,\)"),
        ("user_ids", [0, 1, 2, 0], "int32", "user_ids is int32"),
        ("user_labels", [5, 6, 7], "int32", "user_labels is int32"),
        ("ratings", [[1], [1], [1], [1]], "float32", r"ratings is float32 \(4, 1\)"),
        ("ratings", [1, np.nan, 3, 4], "float32", r"ratings\[1\] is nan"),
        ("user_ids", [0, 1, 3, 0], "int64", "0 to 3; 0 to 2, one for each label,"),
        ("item_ids", [0, -1, 0, 1], "int64", "-1 to 1; 0 to 1"),
        ("user_ids", [0, 2, 2, 0], "int64", "0 to 2 without 1; contiguous ids"),
        ("user_labels", [5, 5, 7], "int64", "user_labels don't increase"),
        ("item_ids", [0, 1, 0, 0], "int64", "user id 0 and item id 0 meet"),
    ],
)
def test_interactions_refuse_what_breaks_their_contract(field, values, dtype, complaint):
    with pytest.raises(ValueError, match=complaint):
        interactions(**{field: np.array(values, dtype)})


def test_interactions_refuse_no_rows():
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="no rows"):
        data.Interactions(none, none, none.astype("f"), None, none, none, None, "none", "")


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
    rows, permutation = synthetic(200, 300, 8000), np.random.RandomState(3).permutation(8000)
    for fraction, cuts in ((0.1, [6800, 7600]), (0.0, [7600, 7600])):
        split = data.random_split(rows, seed=3, validation_fraction=fraction)
        for part, expected in zip(vars(split).values(), np.split(permutation, cuts), strict=True):
            np.testing.assert_array_equal(part, expected)


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
    rows, fractions = synthetic(1, n, n), (test_fraction, validation_fraction)
    for make in (lambda *a: data.random_split(rows, seed, *a), partial(data.temporal_split, rows)):
        try:
            split = make(*fractions)
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
    assert [part.tolist() for part in vars(split).values()] == [[1, 0], [2], [3]]


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
    with pytest.raises(ValueError, match="four has no timestamps"):
        data.temporal_split(interactions(timestamps=None))


@pytest.mark.parametrize("make", [lambda rows: data.random_split(rows, 0), data.temporal_split])
def test_validation_folds_are_disjoint_parts_of_the_training_part_by_their_seed(make):
    split = make(synthetic(50, 60, 2000))
    folds, again, other = (data.validation_folds(split, 4, seed) for seed in (1, 1, 2))
    held_out = np.concatenate([fold.validation for fold in folds])
    assert len(folds) == 4 and len(np.unique(held_out)) == len(held_out) == 4 * len(split.test)
    assert np.isin(held_out, split.train).all() and not np.isin(held_out, split.test).any()
    for fold, same in zip(folds, again, strict=True):
        np.testing.assert_array_equal(fold.test, split.test)
        rest = np.concatenate([fold.train, fold.validation])
        np.testing.assert_array_equal(np.sort(rest), np.sort(split.train))
        assert fold.train.dtype == fold.validation.dtype == np.int64
        np.testing.assert_array_equal(fold.train, same.train)
        np.testing.assert_array_equal(fold.validation, same.validation)
    assert not np.array_equal(folds[1].validation, other[1].validation)


@pytest.mark.parametrize("folds, validation_fraction", [(0, 0), (19, 0), (2, 0.05)])
def test_validation_folds_refuse_what_they_cannot_hold_out(folds, validation_fraction):
    split = data.random_split(synthetic(50, 60, 2000), 0, 0.05, validation_fraction)
    with pytest.raises(ValueError, match=f"{folds} folds of 100 rows"):
        data.validation_folds(split, folds)


# ---------------------------------------------------------------- a file


def test_load_keeps_row_order_and_numbers_integer_labels_in_numeric_order(tmp_path):
    text = HEADER + f"10,{TOP},3.5,30\n9,{TOP},5,10\n10,{BOTTOM},0.5,20\n"
    loaded = load_text(tmp_path, text)
    ids, labels = (loaded.user_ids, loaded.item_ids), (loaded.user_labels, loaded.item_labels)
    assert [values.tolist() for values in ids] == [[1, 0, 1], [1, 1, 0]]
    assert [values.tolist() for values in labels] == [[9, 10], [BOTTOM, TOP]]
    assert loaded.ratings.tolist() == [3.5, 5, 0.5] and loaded.timestamps.tolist() == [30, 10, 20]
    assert loaded.name == "ratings.csv"
    assert loaded.sha256 == hashlib.sha256(text.encode()).hexdigest()


TWO = [("1", "2", 3.5, 4), ("2", "2", 1.0, 5)]
RECBOLE = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
LINE_ENDS = [("\r\n", "1", 3, 4), ("\n", "1", 3, 4)]
ENDS = [("a", "1", 3, TOP), ("a", "2", 3, 2**53 + 1)]
FILES = {  # name: text, rows
    "bom": ("\ufeff" + HEADER + "1,2,3.5,4\n2,2,1,5\n", TWO),
    "crlf": (HEADER.replace("\n", "\r\n") + "1,2,3.5,4\r\n2,2,1,5\r\n", TWO),
    "cr": (HEADER.replace("\n", "\r") + "1,2,3.5,4\r2,2,1,5", TWO),
    "quotes": ('"userId","movieId","rating","timestamp"\n"1","2","3.5","4"\n2,2,1,5\n', TWO),
    "blank lines": ("\n" + HEADER + "\n1,2,3.5,4\n\n2,2,1,5\n\n", TWO),
    "recbole": (RECBOLE + "1\t2\t3.5\t4.0\n2\t2\t1\t5\n", TWO),
    "reordered": ('timestamp,x,RATING,item,User\n4,"N, T",3.5,2,1\n5,"a\nb",1,2,2\n', TWO),
    "quoted line ends": (HEADER + '"\r\n",1,3,4\n"\n",1,3,4\n', LINE_ENDS),
    "one rating": (HEADER + "1,2,3,4", [("1", "2", 3, 4)]),
    "int64": (HEADER + f"a,1,3,{TOP}\na,2,3,{2**53 + 1}.0\n", ENDS),
}


@pytest.mark.parametrize("text, rows", FILES.values(), ids=FILES)
def test_load_reads_exactly_these_rows(tmp_path, text, rows, capsys):
    assert fuzz_data.loaded_rows(load_text(tmp_path, text)) == rows
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "header, by, kept", [(HEADER, "by time", [1, 2, 5]), (UNTIMED, "in the file", [1, 3, 5])]
)
def test_load_keeps_the_last_of_a_repeated_pair_and_says_how_many_went(
    tmp_path, header, by, kept, capsys
):
    lines = ["1,1,1,20", "2,1,5,0", "1,1,2,30", "1,1,3,10", "2,2,4,7", "2,2,5,7"]
    loaded = load_text(tmp_path, header + "\n".join(lines * 20))
    expected = load_text(tmp_path, header + "\n".join(lines[k] for k in kept))
    assert fuzz_data.loaded_rows(loaded) == fuzz_data.loaded_rows(expected)
    told = f"117 repeated (user, item) rows dropped, the last {by} kept"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["u1", "007", "1.0", "+1", "-0", "1_0", "٣", " 1", str(2**63)])
def test_load_keeps_labels_as_text_unless_all_are_canonical_integers(tmp_path, odd):
    loaded = load_text(tmp_path, HEADER + f"9,1,3,0\n{odd},1,3,0\n10,1,3,0\n")
    assert loaded.user_labels.tolist() == sorted(["9", "10", odd])
    assert loaded.item_labels.tolist() == [1]
    loaded = load_text(tmp_path, f"rating,user,item\n3,9,1\n3,9,{odd}")
    assert loaded.item_labels.tolist() == sorted(["1", odd])


@pytest.mark.parametrize("kind, text", [(k, t) for k in CELL for t in fuzz_data.BAD[k]])
def test_load_refuses_a_bad_cell_by_its_line_and_column(tmp_path, kind, text):
    header, cells = HEADER.rstrip().split(","), {**CELL, kind: f'"{text}"'}
    path = write(tmp_path, HEADER + "1,2,3,4\n" + ",".join(cells.values()))
    place = f"{path}, line 3, column {header[list(CELL).index(kind)]!r}: {text[:30]!r}"
    with pytest.raises(ValueError, match=re.escape(place.rstrip("'"))):
        data.load(path)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (HEADER + "1,2,3,4\n\n1,3,abc,4\n", "line 4, column 'rating': 'abc' is not a number"),
        (HEADER + '1,2,"4\n",4\n', r"line 2, column 'rating': '4\n' is not a number"),
        (HEADER + "1,2,1e400,4\n1,2,3,5\n", "line 2, column 'rating': '1e400' is too large"),
        (HEADER + "1,2,3.4028236e38,4\n", "'3.4028236e38' is too large"),
        (HEADER + "1,2,3,1.5\n", "column 'timestamp': '1.5' is not a time"),
        (HEADER + ",2,3,4\n", "line 2, column 'userId': '' has 0 characters"),
        (HEADER + f"1,{'x' * 300},3,4\n", "x...' has 300 characters"),
        (HEADER + "1,2,3\n", "line 2: 3 fields, not 4"),
        (HEADER + "1,2,3,4,5\n", "line 2: 5 fields, not 4"),
        (UNTIMED + "1,2,3,\n1,3,3\n", "line 3: 3 fields, not 4"),
        (UNTIMED + "1,2,3,,\n1,3,3\n", "line 2: 5 fields, not 4"),
        ("user,item,rating,a,b,c\n1,2,3,\r4,5,6\n", "line 2: 4 fields, not 6"),
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
    path = write(tmp_path, HEADER + "1,2,3,4\n")
    denied = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(Path, "read_bytes", denied)
    for source, complaint in (
        ("ml-1k", "'ml-1k' is neither a known data set .'ml-100k', .*. nor a"),
        ("x" * 5000 + "\n\0", "neither"),
        (tmp_path, "is a folder"),
        (path, "can't be read .*Permission denied.*readable file would"),
    ):
        with pytest.raises(ValueError, match=complaint):
            data.load(source)


symbols = list('0123.,\t"\r\n eE+-x') + [",", "\n", "é", "\ufeff", "\0", "1,0,1\n"]
any_text = st.lists(st.sampled_from(symbols), max_size=40).map("".join)
odd_files = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda seed: fuzz_data.odd_file(random.Random(seed))),
    any_text.map(lambda body: f"user,item,rating\n1,1,1\n{body}".encode()),
)


@settings(deadline=None, max_examples=400)
@given(content=odd_files, block=st.sampled_from([16, 100, 2**26]))  # bytes read at a time
def test_load_agrees_with_the_oracle_on_odd_files_and_any_text(tmp_path_factory, content, block):
    path = tmp_path_factory.getbasetemp() / "odd.csv"
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

TINY = [("10", "3", 5, 100), ("2", "3", 4, 300), ("10", "1", 1, 200)]
CANONICAL = b"2\t3\t4\t300\n10\t1\t1\t200\n10\t3\t5\t100\n"
ML_100K = data.DATASETS["ml-100k"]
GROUPLENS, WHEEL = ML_100K.sources
WHEEL_HASH = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
ROWS = "".join("\t".join(map(str, row)) + "\n" for row in TINY)
WHEEL_TITLES = "item\ttitle\tyear\tclass\n1\tMisérables, Les\t1995\tx\n3\tunkonwn\tunkonwn\tx"
MEMBERS = {  # ratings and titles as each source has them
    GROUPLENS: (ROWS, "1|Misérables, Les (1995)|x\n3|unknown||\n".encode("latin-1")),
    WHEEL: (RECBOLE + ROWS, WHEEL_TITLES),
}


def archive(source: data.Source, ratings_member: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for member, text in zip((ratings_member, source.titles), MEMBERS[source], strict=False):
            file.writestr(member, text)
    return content.getvalue()


class Shelf:
    """The data set "tiny", one entry; `serves` holds what a download brings, or its error."""

    def __init__(self, cache: Path, monkeypatch) -> None:
        self.cache, self.fetched, self.monkeypatch = cache, [], monkeypatch
        monkeypatch.setenv("MULTITASK_DATA", str(self.cache))
        self.enter({source: archive(source, source.ratings) for source in MEMBERS})

    def enter(self, archives: dict, sha256: str = hashlib.sha256(CANONICAL).hexdigest()) -> None:
        self.archives, self.serves, sources = archives, dict(archives), []
        for source, content in archives.items():
            known_hash = "sha256:" + hashlib.sha256(content).hexdigest()
            download = partial(self.download, source)
            sources.append(replace(source, known_hash=known_hash, downloader=download))
        entry = data.Dataset(sha256, tuple(sources), about="Tiny is nobody's")
        self.monkeypatch.setitem(data.DATASETS, "tiny", entry)

    def download(self, source: data.Source, address: str, output: str, _) -> None:
        self.fetched.append(source)
        served = self.serves[source]
        if isinstance(served, Exception):
            raise served
        for end in (len(served) // 2, len(served)):
            Path(output).write_bytes(served[:end])
            time.sleep(0.01)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Shelf:
    return Shelf(tmp_path / "cache", monkeypatch)


def test_ml_100k_is_the_published_one_from_grouplens_or_else_the_wheel():
    assert [(source.label, source.known_hash) for source in ML_100K.sources] == [
        ("GroupLens", "md5:0e33842e24a9c977be4e0107933c0723"),
        ("the RecBole wheel", f"sha256:{WHEEL_HASH}"),
    ]
    assert ML_100K.sha256.startswith("6cfffb52c89b05fb")


@pytest.mark.parametrize("source, other", [(GROUPLENS, WHEEL), (WHEEL, GROUPLENS)])
def test_one_entry_gives_a_data_set_by_name_the_same_from_every_source(
    shelf, source, other, capsys
):
    shelf.serves[other] = OSError("unreachable")
    loaded = data.load("tiny")
    assert fuzz_data.loaded_rows(loaded) == TINY
    assert loaded.user_labels.tolist() == [2, 10] and loaded.item_labels.tolist() == [1, 3]
    assert loaded.item_titles.tolist() == ["Misérables, Les (1995)", "unknown"]
    assert (loaded.name, loaded.sha256) == ("tiny", hashlib.sha256(CANONICAL).hexdigest())
    assert data.canonical_rows(loaded) == CANONICAL
    served = f"tiny served by {shelf.cache / source.file_name}"
    assert f"{served}; Tiny is nobody's" in capsys.readouterr().err
    shelf.serves[source] = OSError("the cache comes first")
    assert len(data.load("tiny")) == 3
    assert f"{served}\n" in capsys.readouterr().err


def test_an_archive_whose_hash_is_unknown_is_kept_only_if_its_rows_are_right(shelf, capsys):
    shelf.enter(shelf.archives)
    (grouplens, wheel) = data.DATASETS["tiny"].sources
    unknown = replace(data.DATASETS["tiny"], sources=(replace(grouplens, known_hash=None), wheel))
    shelf.monkeypatch.setitem(data.DATASETS, "tiny", unknown)
    shelf.serves[GROUPLENS] = shelf.archives[GROUPLENS][:100]
    assert len(data.load("tiny")) == 3
    assert shelf.files() == [WHEEL.file_name]


FILMTRUST = "1,1,2\n10,3,3.5\n2,1,.5\n1,1,4\n"
SMALL = ("userId,movieId,rating,timestamp\r\n1,31,2.5,1260759144\r\n10,1,4.0,1260759179\r\n",)
SMALL += ('movieId,title,genres\r\n1,"Misérables, Les (1995)",War\r\n31,Up,Drama\r\n',)


@pytest.mark.parametrize("end, gap", [("\n", ","), ("\r\n", " ")])
def test_filmtrust_and_latest_small_are_read_in_their_own_formats(shelf, end, gap):
    sources = [data.DATASETS[name].sources[0] for name in ("filmtrust", "ml-latest-small")]
    texts = (FILMTRUST.replace("\n", end).replace(",", gap),), SMALL
    rows = b"1\t1\t4\n2\t1\t0.5\n10\t3\t3.5\n", b"1\t31\t2.5\t1260759144\n10\t1\t4\t1260759179\n"
    for source, members, canonical in zip(sources, texts, rows, strict=True):
        MEMBERS[source] = members
        content, sha256 = archive(source, source.ratings), hashlib.sha256(canonical).hexdigest()
        shelf.enter({source: content}, sha256)
        loaded = data.load("tiny")
        assert data.canonical_rows(loaded) == canonical and loaded.sha256 == sha256
        (shelf.cache / source.file_name).unlink()
    assert loaded.item_titles.tolist() == ["Misérables, Les (1995)", "Up"]


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


def test_corrupt_archives_are_never_used(shelf):
    shelf.cache.mkdir()
    cached = write(shelf.cache, shelf.archives[GROUPLENS][:-1], "ml-100k.zip")
    assert len(data.load("tiny")) == 3
    assert cached.read_bytes() == shelf.archives[GROUPLENS]  # replaced
    cached.unlink()
    shelf.serves[GROUPLENS] = shelf.archives[GROUPLENS][:100]
    assert len(data.load("tiny")) == 3
    assert shelf.files() == [WHEEL.file_name]  # the next source serves


BAD_MEMBERS = {GROUPLENS: archive(GROUPLENS, "../outside"), WHEEL: b"no zip"}


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda shelf: shelf.enter(shelf.archives, "0"), "other rows than tiny's: SHA-256"),
        (lambda shelf: shelf.monkeypatch.setattr(data, "LARGEST_MEMBER", 20), "; at most 20 would"),
        (lambda shelf: write(shelf.cache.parent, "in its way", "cache"), "File exists|Not a"),
        (lambda shelf: shelf.enter(BAD_MEMBERS), "no item named .*no.* a zip file"),
    ],
    ids=["other rows", "too large a member", "no cache folder", "no archives"],
)
def test_a_named_set_that_is_not_what_it_should_be_is_refused(shelf, change, complaint):
    change(shelf)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(FileNotFoundError, match=complaint):
            data.load("tiny")


def test_no_network_and_no_cache_say_in_one_line_what_was_tried_and_what_would_help(shelf):
    shelf.serves = {GROUPLENS: OSError("timed out\nafter 5 s"), WHEEL: b"a half"}
    with pytest.raises(FileNotFoundError) as refusal:
        data.load("tiny")
    message = str(refusal.value)
    assert len(message.splitlines()) == 1 and shelf.files() == []
    wheel = "the RecBole wheel: SHA256 hash of downloaded file"
    for part in ("GroupLens: timed out after 5 s", wheel, str(shelf.cache), "--data PATH"):
        assert part in message


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


@pytest.mark.parametrize("header", [HEADER, UNTIMED])
def test_a_large_file_is_read_once_and_then_recalled_the_same(
    kept, tmp_path, header, capsys, monkeypatch
):
    text = header + "é,007,3.5,4\nb,2,1,5\nb,2,4,6\n"
    first, told = everything(load_text(tmp_path, text)), capsys.readouterr().err
    assert len(list(kept.iterdir())) == 1 and "1 repeated" in told
    with monkeypatch.context() as patch:
        patch.delattr(ratings_file, "_parse")
        assert everything(load_text(tmp_path, text)) == first
        assert capsys.readouterr().err == told
        with pytest.raises(NameError, match="_parse"):
            load_text(tmp_path, text.replace("4,6", "5,6"))
    edited = write(tmp_path, "an edited reader", "reader.py")
    monkeypatch.setattr(ratings_file, "__file__", str(edited))
    load_text(tmp_path, text)
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


def test_what_cannot_be_kept_is_no_error_and_leaves_nothing(kept, tmp_path, monkeypatch, capsys):
    write(tmp_path, "a file in its way", "kept")
    assert len(load_text(tmp_path, HEADER + "1,2,3,4\n")) == 1
    kept.unlink()

    def fill_the_disk(part: Path, **arrays) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(ratings_file.np, "savez", fill_the_disk)
    assert len(load_text(tmp_path, HEADER + "1,2,3,4\n")) == 1
    assert list(kept.iterdir()) == [] and capsys.readouterr().err == ""
    kept.rmdir()
    monkeypatch.setattr(ratings_file, "KEPT_FROM", 2**24)  # small files are not kept
    load_text(tmp_path, HEADER + "1,2,3,4\n")
    assert not kept.exists()


def test_kept_arrays_are_bounded_and_the_longest_unused_go_first(kept, tmp_path, monkeypatch):
    texts = [HEADER + f"{k},2,3,4\n" for k in range(3)]
    used, unused = ("rows-" + load_text(tmp_path, text).sha256 for text in texts[:2])
    for age, name in ((200, used), (100, unused)):
        (arrays,) = kept.glob(f"{name}*")
        os.utime(arrays, (1e9 - age, 1e9 - age))
    load_text(tmp_path, texts[0])
    monkeypatch.setattr(ratings_file, "KEPT_BYTES", int(2.1 * arrays.stat().st_size))
    added = "rows-" + load_text(tmp_path, texts[2]).sha256
    assert {file.name[: len(added)] for file in kept.iterdir()} == {used, added}
    monkeypatch.setattr(ratings_file, "KEPT_BYTES", 20)
    load_text(tmp_path, texts[1])  # larger than all the room: not kept, and nothing goes for it
    assert len(list(kept.iterdir())) == 2
