"""study/records.py: nothing on record is thrown away, and a document's tables are replaced."""

import pytest

from study import records
from study.records import Results, as_text

WANT = {"a": {"runs": 3, "epochs": 1}, "b": {"runs": 3, "epochs": 1}, "levels": {"runs": 3}}


def lines(stack: str, n: int, of: int = 3, epochs: int = 1) -> str:
    run = {"stack": stack, "seed": 0}  # without more where nothing trains
    trained = {"stack_size": of, "epochs": epochs} if stack in "ab" else {}
    return as_text([run | trained] * n)


@pytest.mark.parametrize("torn", ['{"stack": "b", "se', ""])
@pytest.mark.parametrize("last", ["b", "levels"])
def test_whole_stacks_are_done_and_a_torn_one_is_done_again(tmp_path, torn, last):
    path = tmp_path / "study.jsonl"
    path.write_text(lines("a", 3) + lines(last, 2) + torn)
    results = Results(path, WANT)
    assert results.done == {"a"} and path.read_text() == lines("a", 3)
    results.append([{"stack": last, "epochs": 1}] * 3)
    assert Results(path, WANT).done == {"a", last}
    assert Results(path, {}).done == {"a", last}  # another command's stacks stay


@pytest.mark.parametrize(
    "text", [lines("a", 10, of=10), lines("a", 3, epochs=200), lines("a", 2) + lines("b", 3)]
)
def test_stacks_of_another_size_are_refused_and_kept(tmp_path, text):
    path = tmp_path / "study.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="name another file by --out"):
        Results(path, WANT)
    assert path.read_text() == text


def test_parts_share_no_file_and_are_merged_each_stack_once(tmp_path):
    path = tmp_path / "study.jsonl"
    path.write_text(lines("a", 3))
    first, second = (Results(path, WANT, part=(k, 2)) for k in (1, 2))
    assert first.done == second.merged == {"a"}
    first.append([{"stack": "levels"}] * 3)
    second.append([{"stack": "levels"}] * 3)  # twice, as by jobs of other numbers of parts
    second.append([{"stack": "b", "stack_size": 3, "epochs": 1}] * 3)
    assert path.read_text() == lines("a", 3)
    again = Results(path, WANT, part=(1, 2))
    assert again.done == set(again.lines()) == set(WANT) and again.merged == {"a"}
    with (tmp_path / "study.part-2-of-2.jsonl").open("a") as file:
        file.write(as_text([{"stack": "c", "stack_size": 2, "epochs": 1}]))  # cut short
    assert Results(path, WANT | {"c": {"runs": 2, "epochs": 1}}).done == set(WANT)
    assert [line["stack"][0] for line in records.read(path)] == [*"aaalllbbb"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_of_which_a_command_expects_nothing_stays_as_it_is(tmp_path):
    path = tmp_path / "s[1].jsonl"
    Results(path, WANT, part=(1, 2)).append([{"stack": "a", "stack_size": 3, "epochs": 1}] * 2)
    assert Results(path, {"b": WANT["b"]}).done == set() and not path.read_text()
    assert Results(path, WANT).done == set()  # cut short
    assert list(tmp_path.iterdir()) == [path] and not path.read_text()


def test_a_torn_last_line_is_left_out_and_any_other_fault_is_named(tmp_path):
    path = tmp_path / "new/results.jsonl"
    assert records.read(path) == []
    records.append(path, [{"a": 1}, {"a": 2.5}])
    with path.open("a") as file:
        file.write('{"a": 3')
    assert records.read(path) == [{"a": 1}, {"a": 2.5}]
    records.append(path, [{"a": 4}])
    assert records.read(path) == [{"a": 1}, {"a": 2.5}, {"a": 4}]
    for wrong in ("[1]", "{]"):
        path.write_text(f'{{"a": 1}}\n{wrong}\n{{"a": 2}}\n')
        with pytest.raises(ValueError, match=r"results\.jsonl: line 2 is no JSON object"):
            records.read(path)
    with pytest.raises(ValueError, match="JSON compliant"):
        records.append(path, [{"a": float("nan")}])


def test_what_made_a_line_names_commit_and_versions():
    made = records.provenance("scipy")
    assert set(made["versions"]) == {"python", "torch", "numpy", "scipy"}
    assert made["commit"] is None or len(made["commit"]) == 40


def test_tables_are_replaced_and_all_else_stays(tmp_path):
    page, end = tmp_path / "page.md", "<!-- end -->"
    text = f"a | b\n<!-- table: one -->{{}}{end}\n<!-- table: gone -->7{end} <!-- a -->\n"
    page.write_text(text.format("old"))
    assert records.block_names(page) == ["one", "gone"]
    assert records.stale_blocks(page, {"one": "| 1 |", "two": ""}) == ["one"]
    records.write_blocks(page, {"one": "| 1 |"})
    assert page.read_text() == text.format("\n\n| 1 |\n\n")
    assert records.stale_blocks(page, {"one": "| 1 |"}) == []
    page.write_text(f"<!-- table: a -->1 <!-- table: b -->2{end}")
    with pytest.raises(ValueError, match=r"page\.md: the table a has no"):
        records.write_blocks(page, {"b": "2"})
