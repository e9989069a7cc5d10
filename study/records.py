"""Results on record: one JSON object a line, appended whole; and the tables documents show of them.

read(path)  append(path, records)  provenance("scipy")   any results/*.jsonl
Results(path, expected)                                  a file of whole stacks of runs
write_blocks(document, tables)                           between <!-- table: NAME --> and
                                                         <!-- end -->
"""

import contextlib
import glob
import importlib.metadata
import json
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import run_folder
from run_folder import write_whole


def read(path: Path) -> list[dict]:
    """The lines of a results file; none if there is no file. A torn last line is left out.

    Raises ValueError, naming file and line, where a line is no JSON object.
    """
    if not path.is_file():
        return []
    text, records = path.read_text(encoding="utf-8"), []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
        if len(records) < number or not isinstance(records[-1], dict):
            raise ValueError(f"{path}: line {number} is no JSON object")
    return records


def as_text(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def append(path: Path, records: Iterable[dict]) -> None:
    """Put records at a file's end in one write, flushed to the disk.

    The folder is made, and a torn last line, of a write that was killed, is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    if (whole := before.rfind(b"\n") + 1) < len(before):
        os.truncate(path, whole)
    with path.open("ab") as file:
        file.write(as_text(records).encode())
        file.flush()
        os.fsync(file.fileno())


def provenance(*packages: str) -> dict:
    """What computed a result: the commit, and the versions of Python, torch, numpy, `packages`."""
    made = run_folder.provenance()
    made["versions"] |= {name: importlib.metadata.version(name) for name in packages}
    return made


def part_file(path: Path, part: tuple[int, int]) -> Path:
    """Where the k-th of n parts of a results file puts its lines."""
    return path.with_stem("{}.part-{}-of-{}".format(path.stem, *part))


def part_files(path: Path) -> list[Path]:
    stem, suffix = glob.escape(path.stem), glob.escape(path.suffix)
    return sorted(path.parent.glob(f"{stem}.part-*-of-*{suffix}"))


class Results:
    """A results file of whole stacks; `done` names those that need not be computed.

    A stack's lines are appended in one write. The last stack of the file, where it was cut short,
    is dropped and to be done again. `expected` tells each stack's "runs" and, where it trains, its
    "epochs". Of a `part` (k, n) the lines go to a file beside it, NAME.part-k-of-n.jsonl, and what
    that and other parts hold is done too; without one the stacks of the parts' files are taken in,
    each once, and the files removed, but for one that holds others than those expected. Raises
    ValueError when a file holds a stack of another size: nothing is thrown away.
    """

    def __init__(self, path: Path, expected: dict[str, dict], part: tuple[int, int] | None = None):
        self.whole = self.path = path
        if part:
            self.path = part_file(path, part)
        self.lock, self.expected = threading.Lock(), expected
        records = read(self.path)
        self.done = set(self._stacks(self.path, records))
        append(self.path, [])  # a place that can't be written to is told now, not in hours
        kept = as_text(record for record in records if record["stack"] in self.done)
        if kept != self.path.read_text(encoding="utf-8"):
            write_whole(self.path, kept.encode())
        self.merged = set(self.done)  # what the parts need not share among them
        for other in self._others():
            stacks = self._stacks(other, records := read(other))
            if part:
                self.merged = set(stacks) if other == path else self.merged
                self.done |= stacks.keys()
                continue
            for name in [x for x in stacks if x in expected and x not in self.done]:
                self.append(stacks[name])
                self.done.add(name)
            if {record["stack"] for record in records} <= expected.keys():
                other.unlink()

    def lines(self) -> dict[str, list[dict]]:
        """Of each stack the lines, whichever part has computed it."""
        files = [self.path, *self._others()]
        return {n: x for path in files for n, x in self._stacks(path, read(path)).items()}

    def _others(self) -> list[Path]:
        return [path for path in [self.whole, *part_files(self.whole)] if path != self.path]

    def _stacks(self, path: Path, records: list[dict]) -> dict[str, list[dict]]:
        """A file's whole stacks."""
        stacks: dict[str, list[dict]] = {}
        for number, record in enumerate(records, start=1):
            if "stack" not in record:
                raise ValueError(f"{path}: line {number} names no stack")
            stacks.setdefault(record["stack"], []).append(record)
        for name in stacks.keys() & self.expected.keys():
            n, first, runs = len(stacks[name]), stacks[name][0], self.expected[name]["runs"]
            epochs = first.get("epochs")
            wanted = self.expected[name].get("epochs", epochs)
            cut_short = n < runs == first.get("stack_size", runs) and name == records[-1]["stack"]
            if epochs != wanted or n != runs and not cut_short:
                raise ValueError(
                    f"{path} holds {name} with {n} runs of {epochs} epochs, "
                    f"not {runs} of {wanted}: name another file by --out"
                )
            if cut_short:
                del stacks[name]
        return stacks

    def append(self, records: list[dict]) -> None:
        with self.lock:
            append(self.path, records)


END = "<!-- end -->"
MARK = re.compile(rf"(<!-- table: \S+ -->|{END})")


def filled(document: Path, tables: dict[str, str]) -> str:
    """A document's text with these tables in its blocks; one that `tables` lacks stays as it is.

    Raises ValueError for a block without an end.
    """
    parts = MARK.split(document.read_text(encoding="utf-8"))  # text, mark, block, END, text, …
    for k in range(1, len(parts), 4):
        name = parts[k].split()[-2]
        if parts[k + 2 : k + 3] != [END]:
            raise ValueError(f"{document}: the table {name} has no {END}")
        if name in tables:
            parts[k + 1] = f"\n\n{tables[name]}\n\n"
    return "".join(parts)


def write_blocks(document: Path, tables: dict[str, str]) -> None:
    """Put tables into a document's blocks; it is written only where one changes."""
    new = filled(document, tables)
    if new != document.read_text(encoding="utf-8"):
        write_whole(document, new.encode())


def stale_blocks(document: Path, tables: dict[str, str]) -> list[str]:
    """Names of the document's tables that differ from these."""
    text, names = document.read_text(encoding="utf-8"), block_names(document)
    return [n for n in names if n in tables and filled(document, {n: tables[n]}) != text]


def block_names(document: Path) -> list[str]:
    return re.findall(r"<!-- table: (\S+) -->", document.read_text(encoding="utf-8"))
