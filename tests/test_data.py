"""Claims about data.py: what load accepts and refuses, what a split is, what is planted."""

import contextlib
import gzip
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
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import run_train

import data
import ratings_file
import run_folder
import train
from checks import fuzz_data
from checks.synthetic import synthetic

HEADER = "userId,movieId,rating,timestamp\n"
TOP, BOTTOM = 2**63 - 1, -(2**63)
CELL = {"user": "5", "item": "6", "rating": "3", "time": "4"}
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
    times = np.random.default_rng(0).integers(0, 3, 2000)
    split = data.temporal_split(replace(synthetic(50, 60, 2000), timestamps=times), 0.2, 0.2)
    order = np.concatenate(list(vars(split).values())).tolist()
    assert order == sorted(range(2000), key=lambda row: (times[row], row))


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
TIMELESS = [(*row[:3], None) for row in TWO]
ROWS = "1,2,3.5,4\n2,2,1,5\n"
PLAIN = HEADER + ROWS
RECBOLE = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
LINE_ENDS = [("\r\n", "1", 3, 4), ("\n", "1", 3, 4)]
ENDS = [("a", "1", 3, TOP), ("a", "2", 3, 2**53 + 1)]
DATED = [("é", "7", 5, 1551675967), ("b", "7", 4, 1551657600)]
DATES = "user_id,business_id,stars,date\né,7,5,2019-03-04 05:06:07\nb,7,4,2019-03-04\n"
ZONES = "uid,iid,score,time\né,7,5,2019-03-04T06:06:07.9+01:00\nb,7,4,2019-03-04T00:00Z\n"
AMERICAN = "user,item,rating,date\n1,2,3.5,12/31/2019\n2,2,1,?\n"
ODD = "user,item,rating,a,b,c\n"
WIDE = 'timestamp,x,RATING,item,User,x\n4,"N, T",3.5,2,1,\n5,"a\nb",1,2,2,\n'
FILES = {  # what it is: its text; its rows or what is wrong; what is told of its columns
    "byte order mark": ("\ufeff" + PLAIN, TWO),
    "Windows line ends": (PLAIN.replace("\n", "\r\n"), TWO),
    "old Mac line ends": (PLAIN.replace("\n", "\r"), TWO),
    "no end of line": (PLAIN.rstrip(), TWO),
    "blank lines": ("\n" + PLAIN.replace("\n", "\n\n"), TWO),
    "quotes": ('"userId","movieId","rating","timestamp"\n"1","2","3.5","4"\n2,2,1,5\n', TWO),
    "line ends in quotes": (HEADER + '"\r\n",1,3,4\n"\n",1,3,4\n', LINE_ENDS),
    "RecBole's": (RECBOLE + "1\t2\t3.5\t4.0\n2\t2\t1\t5\n", TWO),
    "other columns, some twice": (WIDE, TWO),
    "the ends of int64": (HEADER + f"a,1,3,{TOP}\na,2,3,{2**53 + 1}.0\n", ENDS),
    "MovieLens 1M's": (ROWS.replace(",", "::"), TWO),
    "u.data": (ROWS.replace(",", "\t"), TWO),
    "FilmTrust's": ("1,2,3.5\n2,2,1\n", TIMELESS),
    "blanks between columns": (" 1  2   3.5\n 2  2   1  \n", TIMELESS),
    "pipes": ("user|item|rating|time\n1|2|3.5|4\n2|2|1|5\n", TWO),
    "Excel's, in Europe": ("User;Item;Rating\n1;2;3,5\n2;2;1\n", TIMELESS),
    "Book-Crossing's": ('"User-ID";"ISBN";"Book-Rating"\n"1";"2";"3.5"\n2;2;1', TIMELESS),
    "R's, with row names": ('"","uid","iid","score"\n"1",1,2,3.5\n"2",2,2,1\n', TIMELESS),
    "pandas', with an index": (",user_id,book_id,stars\n0,1,2,3.5\n1,2,2,1\n", TIMELESS),
    "Yelp's dates": (DATES, DATED),
    "dates with zones": (ZONES, DATED),
    "gzip": (gzip.compress(PLAIN.encode()), TWO),
    "zip with a README": (fuzz_data.zipped(ROWS.encode()), TWO),
    "half a gzip": (gzip.compress(PLAIN.encode())[:-9], "can't be unpacked (Compressed file en"),
    "half a zip": (fuzz_data.zipped(b"")[:-9], "can't be unpacked (File is not a zip file)"),
    "names told": ("a,b,c,d\n" + ROWS, TWO, "user=a,item=b,rating=c,time=d"),
    "numbers told": ("a,b,c,d\n" + ROWS, TWO, "user=1,item=2,rating=3,time=4"),
    "numbers told, no header": ("2;4;3.5;1\n2;5;1;2\n", TWO, "user=4,item=1,rating=3,time=2"),
    "one of two told": ("user,item,score,rating\n1,2,0,3.5\n2,2,0,1\n", TIMELESS, "rating=4"),
    "no time told": (AMERICAN, TIMELESS, "time="),
    "American dates": (AMERICAN, "'12/31/2019' is not a time; a whole number within int64, a date"),
    "unknown names": ("a,b,c\n1,2,3\n", "no user column among 'a', 'b', 'c'; --columns user=NAME,"),
    "a misspelt name": ("user,item,raiting\n1,2,3\n", "; --columns rating='raiting', or its num"),
    "another name told": (PLAIN, "'timestamp'; 'movieId' or a number from 1 to 4", "item=movie"),
    "another number told": (PLAIN, "line 1: no column '5' among 'userId', 'movieId'", "rating=5"),
    "another kind told": (PLAIN, "columns 'movie=2'; user=NAME,rating=NUMBER or", "movie=2"),
    "two rating columns": ("user,item,score,Rating\n", "the same; --columns rating='Rating', or"),
    "two user columns": ("userId,user,item,rating\n", "columns 'userId' and 'user' mean the same"),
    "JSON lines": ('{"user": 1, "item": 2, "rating": 3}\n', " is JSON; a table with commas"),
    "KONECT's comments": ("% bip weighted\n1 2 3\n", "no user column among '%', 'bip', 'weighted'"),
    "UTF-16": (PLAIN.encode("utf-16"), "line 1: bytes that are no text; UTF-8 text"),
    "Latin-1": (PLAIN.encode() + b"\xff,2,3,4\n", "line 4: bytes that are no text; UTF-8 text"),
    "NUL": (PLAIN + "1,\0,3,4\n", "line 4: bytes that are no text"),
    "nothing": ("", "is empty; a header and at least one row"),
    "nothing but a mark": ("\ufeff\n\n", "is empty"),
    "no rows": (HEADER, "has a header but no rows"),
    "no item": ("\n\nuserId,rating\n1,2\n", "line 3: no item column among 'userId', 'rating'; -"),
    "bad rating": (HEADER + "1,2,3,4\n\n1,3,abc,4\n", "line 4, column 'rating': 'abc' is not a n"),
    "bad rating in quotes": (HEADER + '1,2,"4\n",4\n', r"line 2, column 'rating': '4\n' is not"),
    "bad rating, no header": ("1,2,3\n1,3,x\n", "line 2, column 3: 'x' is not a number"),
    "two bad cells": (PLAIN + "1,2,1e400,4\n,2,3,5\n", "line 4, column 'rating': '1e400' is too"),
    "more than float32": (HEADER + "1,2,3.4028236e38,4\n", "'3.4028236e38' is too large"),
    "a long id": (HEADER + f"1,{'x' * 300},3,4\n", "x...' has 300 characters"),
    "a short row": (HEADER + "1,2,3\n", "line 2: 3 fields, not 4"),
    "a long row": (HEADER + "1,2,3,4,5\n", "line 2: 5 fields, not 4"),
    "a short row of ignored cells": (UNTIMED + "1,2,3,\n1,3,3\n", "line 3: 3 fields, not 4"),
    "a long row of ignored cells": (UNTIMED + "1,2,3,,\n1,3,3\n", "line 2: 5 fields, not 4"),
    "a lone return": (ODD + "1,2,3,\r4,5,6\n", "line 2: 4 fields, not 6"),
    "returns and an empty cell": (ODD + "1,2,3,,,\r\r,2,3,4,5,\r", "line 4, column 'user': ''"),
    "a long row after quotes": (HEADER + '1,"2\n\n",3,4\n1,2,3,4,5\n', "line 5: 5 fields, not 4"),
    "an open quote": (PLAIN + '1,"2,3,4\n', "line 4: unexpected end of data"),
    "text after a quote": (HEADER + '1,"2"x,3,4\n', "line 2: ',' expected after '\"'"),
}
FILES |= {  # and each bad cell that the fuzzer knows
    f"{kind} {text[:20]!r}": (
        PLAIN + ",".join((CELL | {kind: f'"{text}"'}).values()),
        f"line 4, column {name!r}: {text[:30]!r}".rstrip("'"),
    )
    for kind, name in zip(CELL, HEADER.rstrip().split(","), strict=True)
    for text in fuzz_data.BAD[kind]
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_read_exactly_or_refused_in_one_line_that_says_what_would_be_right(
    tmp_path, what, capsys
):
    content, outcome, *columns = FILES[what]
    path = write(tmp_path, content)
    if isinstance(outcome, list):
        assert fuzz_data.loaded_rows(data.load(path, *columns)) == outcome
        assert re.fullmatch("(data: .* has no header: .*\n)?", capsys.readouterr().err)
        return
    with pytest.raises(ValueError) as refusal:
        data.load(path, *columns)
    message = str(refusal.value)
    assert outcome in message and len(message.splitlines()) == 1
    assert message.startswith(str(path)) and message.endswith("would be right")
    assert capsys.readouterr().err == ""


TOLD = """RecBole's|MovieLens 1M's|u.data|FilmTrust's|Excel's, in Europe|Book-Crossing's
R's, with row names|pandas', with an index|Yelp's dates|byte order mark|gzip|zip with a README
names told|numbers told, no header|a misspelt name|American dates|two rating columns|JSON lines
KONECT's comments|UTF-16|Latin-1|half a gzip""".replace("\n", "|").split("|")


def test_the_document_tells_what_becomes_of_odd_but_natural_files(tmp_path):
    document = Path(__file__).parents[1].joinpath("RELIABILITY.md").read_text(encoding="utf-8")
    for what in TOLD:
        content, outcome, *columns = FILES[what]
        lines = content.lstrip("\ufeff").splitlines() if isinstance(content, str) else [""]
        told = "read" + f", `--columns {''.join(columns)}`" * len(columns)
        if isinstance(outcome, str):
            with pytest.raises(ValueError) as refusal:
                data.load(write(tmp_path, content))
            told = str(refusal.value).removeprefix(f"{tmp_path}/ratings.csv")
        first = f"`{lines[0]}`".replace("\t", " ⇥ ") if lines[0] else ""
        assert f"\n| {what} | {first} | {told.lstrip(' ,')} |\n" in document


def test_a_file_without_a_header_is_said_to_be_one_unless_its_columns_are_told(tmp_path, capsys):
    load_text(tmp_path, ROWS)
    told = "ratings.csv has no header: its columns are taken for user, item, rating, time\n"
    assert capsys.readouterr().err.endswith(told)
    data.load(tmp_path / "ratings.csv", "user=1,item=2,rating=3")
    load_text(tmp_path, PLAIN)
    assert capsys.readouterr().err == ""


def test_parquet_is_read_as_the_same_table_in_text(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"user_id": ["é", "b"], "business_id": 7, "stars": np.float32([5, 4])})
    table["date"] = pd.to_datetime(["2019-03-04 05:06:07", "2019-03-04 00:00:00"])
    table.to_parquet(tmp_path / "ratings.parquet")
    assert fuzz_data.loaded_rows(data.load(tmp_path / "ratings.parquet")) == DATED
    write(tmp_path, b"PAR1 but no more", "broken.parquet")
    with pytest.raises(ValueError, match="broken.parquet can't be unpacked .*; one whole table"):
        data.load(tmp_path / "broken.parquet")


LES, NINE = "Misérables, Les (1995)", 'The "9" (2009)'
TITLES = {  # what it is: its text
    "movies.csv": f'movieId,title,genres\r\n1,"{LES}",a|b\r\n2,"The ""9"" (2009)",\r\n',
    "with a year": 'year,item,title\n1995.0,1,"Misérables, Les"\n2009,2,"The ""9"""\n,4,x\n',
    "movies.dat": f"1::{LES}::a|b\n2::{NINE}::\n".encode("latin-1"),
    "u.item": f"1|{LES.replace(' ', '  ')}|a\n2|{NINE} |\n".encode("latin-1"),
    "tabs, packed": gzip.compress(f"item_id:token\ttitle\n1\t{LES}\n2\t{NINE}\n".encode()),
}


@pytest.mark.parametrize("what", TITLES)
def test_titles_come_from_a_file_with_the_year_in_brackets_if_it_is_apart(tmp_path, what):
    ratings = write(tmp_path, "1,2,3\n1,1,3\n1,3,4\n")
    titles = write(tmp_path, TITLES[what], "titles")
    assert data.load(ratings, titles=titles).item_titles.tolist() == [LES, NINE, ""]
    titles.write_text("7,Up\n8,Heat\n")
    with pytest.raises(ValueError, match="has no title for any item of .*; the same item ids"):
        data.load(ratings, titles=titles)


def test_titles_come_from_the_ratings_first_row_of_an_item_and_the_file_goes_before_them(tmp_path):
    text = "user,item,rating,title,Year\n1,b,3,Up,2009\n1,a,3,,1995\n2,b,4,Down,2009\n1,b,4,x,\n"
    assert load_text(tmp_path, text).item_titles.tolist() == ["", "Up (2009)"]
    titles = write(tmp_path, "b,Heat\n", "titles")
    assert data.load(tmp_path / "ratings.csv", None, titles).item_titles.tolist() == ["", "Heat"]
    told = data.load(tmp_path / "ratings.csv", "title=,year=")
    assert told.item_titles is None


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


def test_load_refuses_unknown_names_folders_and_unreadable_files(tmp_path, monkeypatch):
    path = write(tmp_path, HEADER + "1,2,3,4\n")
    denied = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(Path, "open", denied)
    for source, complaint in (
        ("ml-1k", "'ml-1k' is neither a known data set .'ml-100k', .*. nor a file; a file of"),
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
    any_text.map(lambda body: (f"user,item,rating\n1,1,1\n{body}".encode(), None)),
)


@settings(deadline=None, max_examples=400)
@given(file=odd_files)
def test_load_agrees_with_the_oracle_on_odd_files_and_any_text(tmp_path_factory, file):
    path = tmp_path_factory.getbasetemp() / "odd.csv"
    assert fuzz_data.verdict(path, *file) in ("accepted", "refused")


@pytest.mark.parametrize("ids", ["12", "007", "é", "NA", "1.0", "a b"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("time", ["4", "4.0", "1970-01-01 00:00:04"])
def test_plain_files_are_left_to_pandas(tmp_path, monkeypatch, ids, end, time):
    monkeypatch.delattr(ratings_file, "_by_csv")
    rows = "".join(f"{ids},{k},3.5,{time}{end}" for k in range(20))
    loaded = load_text(tmp_path, HEADER.replace("\n", end) + rows + "\n")
    assert fuzz_data.loaded_rows(loaded) == [(ids, str(k), 3.5, 4) for k in range(20)]
    with pytest.raises(NameError, match="_by_csv"):
        load_text(tmp_path, HEADER + f'"{ids}",2,3.5,4\n')


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_reads_its_data_again_as_it_was_told_to(tmp_path, planted, resumed):
    rows = zip(planted.item_ids, planted.ratings, planted.user_ids, strict=True)
    ratings = write(tmp_path, "a,b,c\n" + "".join(f"{i},{r},{u}\n" for i, r, u in rows))
    write(tmp_path, "0;Zero\n1;One\n", "titles.csv")
    told = ["--columns", "user=c,item=1,rating=b", "--titles", "titles.csv"]
    code, _, err = run_train(f"{' '.join(told)} --epochs 1", tmp_path, ratings)
    assert code == 0, err
    with contextlib.chdir("/"):
        if resumed:
            state = run_folder.read_resume(tmp_path / "run")
            read = train.Training(state["args"], state).data
        else:
            read = train.load_run(tmp_path / "run").data
    assert read.item_titles[:3].tolist() == ["Zero", "One", ""]
    np.testing.assert_array_equal(read.user_ids, planted.user_ids)
    np.testing.assert_array_equal(read.item_ids, planted.item_ids)
    np.testing.assert_array_equal(read.ratings, planted.ratings)


def test_a_constant_rating_is_refused_unless_ranking_has_all_the_weight(tmp_path):
    rows = "".join(f"{k},{k % 7},1\n" for k in range(100))
    ratings = write(tmp_path, "user,item,rating\n" + rows)
    for weights in ("", "--lambda-f 1 0.5 --lambda-r 0 0.5", "--weighting uw"):
        code, _, err = run_train(f"{weights} --epochs 1", tmp_path, ratings)
        assert code == 2 and err.endswith(
            "no rating but 1: nothing to learn of it, give --lambda-r 0\n"
        )
        assert not (tmp_path / "run").exists()
    code, _, err = run_train("--lambda-f 1 --lambda-r 0 --epochs 1", tmp_path, ratings)
    assert code == 0, err


# ---------------------------------------------------------------- named data sets

TINY = [("10", "3", 5, 100), ("2", "3", 4, 300), ("10", "1", 1, 200)]
HALVES = [("10", "3", 5, 100), ("2", "3", 0.5, 300), ("10", "1", 3.5, 200)]
TIMELESS_HALVES = [(*row[:3], None) for row in HALVES]
CANONICAL = b"2\t3\t4\t300\n10\t1\t1\t200\n10\t3\t5\t100\n"
GROUPLENS, WHEEL = data.DATASETS["ml-100k"].sources
ITEMS = f"1|{LES}|01-Jan-1995||http://us.imdb.com/M/|0|1\n3|unknown||||1|0\n".encode("latin-1")
WHEEL_ITEMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
WHEEL_ITEMS += "1\tMisérables, Les\t1995\tDrama War\n3\tunkonwn\tunkonwn\tunknown\n"
MOVIES = f'movieId,title,genres\r\n1,"{LES}",Drama|War\r\n3,unknown,(no genres listed)\r\n'
DAT = f"1::{LES}::Drama|War\n3::unknown::Drama\n"


def lines(rows: list, separator: str, header: str = "", end: str = "\n") -> str:
    return header + "".join(separator.join(map(str, row)) + end for row in rows)


def archive(source: data.Source, ratings: str, titles: str | bytes | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for member, text in {source.ratings: ratings, source.titles: titles, "README": ""}.items():
            if member and text is not None:
                file.writestr(member, text)
    return content.getvalue()


ARCHIVES = {  # of the set "tiny", as each source has it
    GROUPLENS: archive(GROUPLENS, lines(TINY, "\t"), ITEMS),
    WHEEL: archive(WHEEL, lines(TINY, "\t", RECBOLE), WHEEL_ITEMS),
}
FORMATS = {  # rows, then ratings and titles as the set's archive has them
    "ml-100k": (TINY, lines(TINY, "\t"), ITEMS),
    "ml-1m": (TINY, lines(TINY, "::"), DAT.encode("latin-1")),
    "ml-10m": (HALVES, lines(HALVES, "::"), DAT),
    "filmtrust": (TIMELESS_HALVES, lines([row[:3] for row in HALVES], " ")),
    "filmtrust with commas": (TIMELESS_HALVES, lines([row[:3] for row in HALVES], ",")),
}
FORMATS |= {
    name: (HALVES, lines(HALVES, ",", HEADER.replace("\n", "\r\n"), "\r\n"), MOVIES)
    for name in data.DATASETS.keys() - FORMATS.keys()
}


@pytest.mark.parametrize("what", sorted(FORMATS))
def test_each_named_set_is_read_in_its_own_format_and_checked(tmp_path, what, monkeypatch, capsys):
    monkeypatch.setenv("MULTITASK_DATA", str(tmp_path))
    name, (rows, *texts) = what.split()[0], FORMATS[what]
    dataset = data.DATASETS[name]
    source = dataset.sources[0]
    assert source.known_hash or dataset.sha256
    source.path.write_bytes(archive(source, *texts))
    source = replace(source, known_hash=None)
    entry = replace(dataset, sources=(source,), counts=(3, 2, 2), sha256=None)
    monkeypatch.setitem(data.DATASETS, name, entry)
    loaded = data.load(name)
    assert fuzz_data.loaded_rows(loaded) == rows and loaded.name == name
    assert loaded.user_labels.tolist() == [2, 10] and loaded.item_labels.tolist() == [1, 3]
    titles = None if loaded.item_titles is None else loaded.item_titles.tolist()
    assert titles == (None if name == "filmtrust" else [LES, "unknown"])
    assert capsys.readouterr().err == f"data: {name} served by {source.path}\n"
    monkeypatch.setitem(data.DATASETS, name, replace(entry, counts=(1_000_209, 2, 2)))
    with pytest.raises(FileNotFoundError) as refusal:
        data.load(name)
    found = f"other rows than {name}'s: 3 ratings by 2 users of 2 items; 1,000,209 ratings by 2"
    assert found in str(refusal.value) and source.path.exists()


def test_filmtrust_has_the_counts_that_are_published():
    assert data.DATASETS["filmtrust"].counts == (35_494, 1_508, 2_071)


class Shelf:
    """The data set "tiny", one entry; `serves` holds what a download brings, or its error."""

    def __init__(self, cache: Path, monkeypatch) -> None:
        self.cache, self.fetched, self.monkeypatch = cache, [], monkeypatch
        monkeypatch.setenv("MULTITASK_DATA", str(self.cache))
        self.enter(ARCHIVES)

    def enter(self, archives: dict, known: bool = True, **changes) -> None:
        self.archives, self.serves, sources = archives, dict(archives), []
        for source, content in archives.items():
            known_hash = "sha256:" + hashlib.sha256(content).hexdigest() if known else None
            download = partial(self.download, source)
            sources.append(replace(source, known_hash=known_hash, downloader=download))
        entry = data.Dataset(tuple(sources), (3, 2, 2), "Tiny is nobody's")
        sha256 = hashlib.sha256(CANONICAL).hexdigest()
        entry = replace(entry, **({"sha256": sha256} | changes))
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
    wheel_hash = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
    assert [(source.path.name, source.known_hash) for source in (GROUPLENS, WHEEL)] == [
        ("ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723"),
        ("recbole-1.2.1-py3-none-any.whl", f"sha256:{wheel_hash}"),
    ]
    assert data.DATASETS["ml-100k"].sha256.startswith("6cfffb52c89b05fb")


@pytest.mark.parametrize("source, other", [(GROUPLENS, WHEEL), (WHEEL, GROUPLENS)])
def test_one_entry_gives_a_data_set_by_name_the_same_from_every_source(
    shelf, source, other, capsys
):
    shelf.serves[other] = OSError("unreachable")
    loaded = data.load("tiny")
    assert fuzz_data.loaded_rows(loaded) == TINY
    assert loaded.item_titles.tolist() == [LES, "unknown"]
    assert (loaded.name, loaded.sha256) == ("tiny", hashlib.sha256(CANONICAL).hexdigest())
    assert data.canonical_rows(loaded) == CANONICAL
    served = f"tiny served by {source.path}"
    assert f"{served}; Tiny is nobody's\n" in capsys.readouterr().err
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
    write(shelf.cache, shelf.archives[WHEEL], WHEEL.path.name)
    data.load("tiny")
    assert shelf.fetched == [GROUPLENS]


@pytest.mark.parametrize("known", [True, False])  # is the archives' hash?
def test_corrupt_archives_are_never_used(shelf, known):
    shelf.enter(ARCHIVES, known)
    shelf.cache.mkdir()
    cached = write(shelf.cache, shelf.archives[GROUPLENS][:-1], "ml-100k.zip")
    assert len(data.load("tiny")) == 3
    if known:
        assert cached.read_bytes() == shelf.archives[GROUPLENS]  # replaced
    else:
        assert shelf.files() == ["ml-100k.zip", WHEEL.path.name]  # someone's own file is theirs
    for file in shelf.cache.iterdir():
        file.unlink()
    shelf.serves[GROUPLENS] = shelf.archives[GROUPLENS][:100]
    assert len(data.load("tiny")) == 3
    assert shelf.files() == [WHEEL.path.name]  # the next source serves


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda shelf: shelf.enter(ARCHIVES, sha256="0"), "other rows than tiny's: 3 .*SHA-256 "),
        (lambda shelf: shelf.enter(ARCHIVES, counts=(3, 2, 3)), "other rows than tiny's: 3 ratin"),
        (lambda shelf: shelf.monkeypatch.setattr(ratings_file, "LARGEST_MEMBER", 20), "most 20 wo"),
        (lambda shelf: write(shelf.cache.parent, "in its way", "cache"), "File exists|Not a"),
        (lambda shelf: shelf.enter({GROUPLENS: fuzz_data.zipped(b"")}), "t be unpacked .it holds"),
        (lambda shelf: shelf.enter({WHEEL: b"no zip"}), "no user column among 'no', 'zip'"),
    ],
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
    tried = "files.grouplens.org: timed out after 5 s", "pypi.org: SHA256 hash of downloaded file"
    for part in (*tried, str(GROUPLENS.path), "--data PATH"):
        assert part in message
    with pytest.raises(ValueError, match="columns user=1 for tiny; none, they are known, would"):
        data.load("tiny", "user=1")


def test_downloads_at_the_same_time_dont_hurt_each_other(shelf):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(len, pool.map(data.load, ["tiny"] * 8))) == [3] * 8
    assert shelf.files() == ["ml-100k.zip"]


def test_a_failing_pip_is_reported_by_its_last_line(tmp_path, monkeypatch):
    told = '#!/bin/sh\necho noise >&2\necho "ERROR: no $4" >&2\nexit 1\n'
    fake = write(tmp_path, told)
    fake.chmod(0o755)
    monkeypatch.setattr(data.sys, "executable", str(fake))
    with pytest.raises(OSError, match="^pip download: ERROR: no recbole==1.2.1$"):
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
        patch.delattr(ratings_file, "parse")
        assert everything(load_text(tmp_path, text)) == first
        assert capsys.readouterr().err == told
        with pytest.raises(NameError, match="parse"):
            load_text(tmp_path, text.replace("4,6", "5,6"))
    edited = write(tmp_path, "an edited reader", "reader.py")
    monkeypatch.setattr(ratings_file, "__file__", str(edited))
    load_text(tmp_path, text)
    assert len(list(kept.iterdir())) == 2


def test_a_named_data_set_is_read_and_compared_once_too(shelf, monkeypatch):
    monkeypatch.setattr(ratings_file, "KEPT_FROM", 0)
    first = everything(data.load("tiny"))
    with monkeypatch.context() as patch:
        for name in ("parse", "read_titles"):
            patch.delattr(ratings_file, name)
        patch.delattr(data, "canonical_rows")
        assert everything(data.load("tiny")) == first
    for wanted in (dict(sha256="0"), dict(counts=(3, 2, 3))):
        shelf.enter(ARCHIVES, **wanted)
        with pytest.raises(FileNotFoundError, match="other rows than tiny's"):
            data.load("tiny")
    shelf.enter(ARCHIVES)
    entry = data.DATASETS["tiny"]
    source = replace(entry.sources[0], titles=None)
    monkeypatch.setitem(data.DATASETS, "tiny", replace(entry, sources=(source,)))
    assert data.load("tiny").item_titles is None
    there = len(list(shelf.cache.glob("rows-*")))
    monkeypatch.setattr(data, "__file__", write(shelf.cache.parent, "edited", "data.py"))
    data.load("tiny")
    assert len(list(shelf.cache.glob("rows-*"))) == there + 1


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
