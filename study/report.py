"""Figures, tables and STUDY.md from the study's lines.

    python -m study.report                    # of results/study.jsonl: results/figures,
                                              # results/tables.md, STUDY.md and the README's table
    python -m study.report runs/quick.jsonl   # of another study: figures and tables.md beside it

Every table is a section of tables.md.in, and STUDY.md is STUDY.md.in, with their placeholders
filled in; numbers.py names the numbers:

    {q1.report.mrr:ci}      −0.0728 [−0.0760, −0.0695]    mean and 95% interval over seeds
    {report.shared.0.5.mrr} 0.0576                        the number alone
    {faults.none.mrr:sd}    0.1300 ± 0.0028               mean and standard deviation
    {report.shared.0.5: mrr:ci mse}                       several of one arm, in cells of a table
    {selected.k8.0.5 − selected.shared.0.5: mse:ci}       a difference, paired by seed
    {table: report}         a whole table, on a line of its own
"""

import re
import sys
from pathlib import Path

import pandas as pd

from arguments import Parser
from plot import report_style, save_figure
from run_folder import write_whole
from study.figures import study_figures
from study.numbers import Numbers, read_study
from study.records import filled
from study.stats import Estimate

ROOT = Path(__file__).parents[1]
RECORD = Path("results/study.jsonl")
TEMPLATE, TABLES = (Path(__file__).with_name(f"{name}.md.in") for name in ("STUDY", "tables"))


def rendered(numbers: Numbers, template: Path, tables: dict[str, str] | None = None) -> str:
    """The document of a template, with its placeholders filled in.

    Raises ValueError, naming file and line, for a number, a form of it or a table that isn't there.
    """
    source = template.read_text(encoding="utf-8")

    def fill(found: re.Match) -> str:
        where, _, ends = found[1].partition(": ")
        names = [f"{where}.{end}" for end in ends.split()] or [where]
        try:
            if where == "table":
                return tables[ends]
            parts = [name.partition(":") for name in names]
            return " | ".join(number_text(numbers[name], form) for name, _, form in parts)
        except (KeyError, ValueError) as error:
            kind = "table" if where == "table" else "number"
            told = f"no {kind} {error}" if isinstance(error, KeyError) else error
            line = source[: found.start()].count("\n") + 1
            raise ValueError(f"{template}: line {line}, {found[0]}: {told}") from None

    return re.sub(r"\{([^{}\n]*)\}", fill, source)


def number_text(number: Estimate | str, form: str) -> str:
    """A number in its form; what is text already has none."""
    return number if isinstance(number, str) else format(number, form)


def sections(page: str) -> dict[str, str]:
    """The tables of tables.md by name."""
    return dict(re.findall(r"^## (\S+)\n\n(.*?)\n*(?=\n## |\Z)", page, re.DOTALL | re.MULTILINE))


def write_report(frame: pd.DataFrame, out: Path, root: Path | None = None) -> list[Path]:
    """Figures and tables.md into a folder, the documents into another; the paths written.

    Raises ValueError for a document with a fault, before anything is written.
    """
    numbers, written = Numbers(frame), []
    documents = {out / "tables.md": rendered(numbers, TABLES)}
    if root:
        tables = sections(documents[out / "tables.md"])
        documents[root / "STUDY.md"] = rendered(numbers, TEMPLATE, tables)
        documents[root / "README.md"] = filled(root / "README.md", tables)
    with report_style():
        for name, figure in study_figures(numbers.arms).items():
            written += save_figure(figure, out / "figures", name)
    out.mkdir(parents=True, exist_ok=True)
    for path, text in documents.items():
        write_whole(path, text.encode())
    return [*written, *documents]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m study.report", description=__doc__)
    add = parser.add_argument
    add("study", metavar="FILE", type=Path, nargs="?", default=RECORD, help=f"lines ({RECORD})")
    add("--out", type=Path, help="folder of figures/ and tables.md (the folder of FILE)")
    args = parser.parse_args(argv)
    out = args.out or args.study.parent
    on_record = args.study == RECORD and args.out is None  # the documents tell of it alone
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out}: is a file, should be a folder")
        written = write_report(read_study(args.study), out, ROOT if on_record else None)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
