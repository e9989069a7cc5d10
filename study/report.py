"""Figures, tables and STUDY.md from the study's lines.

    python -m study.report                    # of results/study.jsonl: results/figures,
                                              # results/tables.md, STUDY.md and the README's table
    python -m study.report runs/quick.jsonl   # of another study: figures and tables.md beside it

STUDY.md is study/STUDY.md.in with its placeholders filled in; numbers.py names the numbers:

    {q1.report.mrr:ci}      −0.0728 [−0.0760, −0.0695]    mean and 95% interval over seeds
    {report.shared.0.5.mrr} 0.0576                        the number alone
    {faults.none.mrr:sd}    0.1300 ± 0.0028               mean and standard deviation
    {table: report}         a whole table, on a line of its own
"""

import difflib
import re
import sys
from pathlib import Path

import pandas as pd

from arguments import Parser
from plot import report_style, save_figure
from run_folder import write_whole
from study.design import (
    BASELINES,
    BOTH,
    EXPECTED,
    LAMBDAS,
    METRICS,
    PLANNED,
    QUESTIONS,
    SETTINGS,
    SHARINGS,
    TESTED,
    VARIANTS,
    WIDTH,
    key,
    setting,
)
from study.figures import study_figures
from study.numbers import DIAL_DIMS, MEASURES, read_study, study_numbers
from study.records import filled
from study.stats import Estimate, markdown_table

ROOT = Path(__file__).parents[1]
RECORD = Path("results/study.jsonl")
TEMPLATE = Path(__file__).with_name("STUDY.md.in")
Numbers = dict[str, Estimate | str]


def study_tables(numbers: Numbers) -> dict[str, str]:
    """Every table of the study by name, as Markdown; a row not computed yet is named below it."""

    def table(heads: str, rows: dict[str, str], columns: str) -> str:
        """Rows are label: start of a name; columns its ends, or names with {} for the start.

        Labels and heads are separated by " | ". A column may end in a form, like "mrr:ci".
        """
        lines, waits, ends = [], [], columns.split()
        for label, start in rows.items():
            names = [end.format(start) if "{}" in end else f"{start}.{end}" for end in ends]
            cells = [number_text(numbers, name, "—") for name in names]
            lines.append([*label.split(" | "), *cells])
            if set(cells[:3]) <= {"—", "0"}:  # published values may stand further right
                waits.append(label.replace(" | ", ", "))
        note = f"\n\nNot computed yet: {'; '.join(waits)}." if waits else ""
        heads = heads.split(" | ")
        return markdown_table(heads, lines, len(heads) - len(ends)) + note

    def arms(experiment: str) -> dict[str, str]:
        rows = {setting(*where): f"{experiment}.{key(*where)}" for where in SETTINGS}
        return rows | baselines(experiment)

    def baselines(protocol: str) -> dict[str, str]:
        return {name: f"baselines.{protocol}.{name.replace(' ', '_')}" for name in BASELINES}

    protocols = {"report": "report's", "selected": "selected"}
    asked = {
        f"{question.label} | {protocols[experiment]}": f"{name}.{experiment}"
        for name, question in QUESTIONS.items()
        for experiment in TESTED
    }
    tests = {
        f"{label} | {m.upper()}": f"{name}.{m}" for label, name in asked.items() for m in METRICS
    }
    dial = {}
    for f in BOTH:
        dial |= {setting(K, f): f"dial.{key(K, f)}" for K in DIAL_DIMS}
        dial[f"separate, {WIDTH // 2} dimensions, {f:g}/{1 - f:g}"] = f"capacity.{f:g}"
    ratios = {f"{f:.3g}/{1 - f:.3g}": f"{f:g}" for f in LAMBDAS}
    joint = {label: f for label, f in ratios.items() if f not in ("0", "1")}
    by_sharing = " | ".join(f"{m.upper()}, {setting(K)}" for m in METRICS for K in SHARINGS)

    def per_sharing(ends: str) -> str:
        names = [f"dial.{name}.{{}}.{end}:ci" for end in ends.split() for name in SHARINGS.values()]
        return " ".join(names)

    null = {
        f"{optimizer}, {setting(K)}": f"weights.{experiment}.{SHARINGS[K]}"
        for optimizer, experiment in (("Adam", "report"), ("SGD", "sgd"))
        for K in (WIDTH, 0)
    }
    faults = {name: f"faults.{name.replace(' ', '_')}" for name in VARIANTS}
    faults = {"no fault": faults.pop("none")} | faults | {"published runs": "faults.published"}
    pulls = {
        f"{setting(*where)} | {side}": f"report.{key(*where)}.{side}"
        for where in SETTINGS
        for side in ("users", "items")
    }
    expected = [
        [
            *(
                it.claim,
                MEASURES.get(it.measure, (0, it.measure.upper()))[1],
                protocols[experiment],
            ),
            number_text(numbers, f"{it.question}.{experiment}.{it.measure}:ci"),
            numbers[f"verdict.{number}.{experiment}"],
        ]
        for number, it in enumerate(EXPECTED, start=1)
        for experiment in it.experiments
    ]
    heads = "setting | runs | MRR | MSE | MRR-first | NDCG@10 | Recall@10"
    metrics = "n mrr:ci mse:ci mrr_first ndcg_at_10 recall_at_10"
    return {
        "progress": table(
            "experiment | arms | runs", {name: f"progress.{name}" for name in PLANNED}, "arms runs"
        ),
        "report": table(
            f"{heads} | published MRR | published MSE",
            arms("report"),
            f"{metrics} published_mrr published_mse",
        ),
        "readme_report": table(
            "setting | runs | MRR | MSE | MRR published | MSE published",
            arms("report"),
            "n mrr:sd mse:sd published_mrr published_mse",
        ),
        "selected": table(
            f"{heads} | epoch | MRR at the last epoch | MSE there",
            arms("selected"),
            f"{metrics} epoch last_mrr last_mse",
        ),
        "temporal": table(f"{heads} | epoch", arms("temporal"), f"{metrics} epoch"),
        "questions": table(
            "question | protocol | metric | pairs | difference | mean/sd | rank-biserial | p "
            "| p, Holm",
            tests,
            "n {}:ci d rank_biserial p holm",
        ),
        "users": table(
            "question | protocol | seeds | difference | users better, % | worse, % | tied, % "
            "| seeds with more better than worse | seeds with p < 0.05",
            {label: f"users.{name}" for label, name in asked.items()},
            "n difference:ci better worse tied agree:sum tests:sum",
        ),
        "training": table(
            " | ".join(["setting", *(told for _, told in MEASURES.values())]),
            {setting(*where): f"report.{key(*where)}" for where in SETTINGS},
            " ".join(f"{measure}:ci" for measure in MEASURES),
        ),
        "sharing": table(
            "setting | runs | MRR | MSE | MRR − separate | MSE − separate",
            dial | baselines("selected"),
            "n mrr:ci mse:ci to_separate.mrr:ci to_separate.mse:ci",
        ),
        "weights": table(f"λ_F/λ_R | {by_sharing}", ratios, per_sharing("mrr mse")),
        "gains": table(f"λ_F/λ_R | {by_sharing}", joint, per_sharing("gain.mrr gain.mse")),
        "own_gains": table(
            f"λ_F/λ_R | {by_sharing}", joint, per_sharing("gain.own_mrr gain.own_mse")
        ),
        "hypervolume": table(
            "sharing | seeds | one epoch for both tasks | each task at its own epoch "
            "| MRR of ranking alone | MSE of rating alone",
            {setting(K): name for K, name in SHARINGS.items()},
            "hypervolume.{}.n hypervolume.{}.volume:ci hypervolume.{}.own_volume:ci "
            "alone.{}.mrr:ci alone.{}.mse:ci",
        ),
        "faults": table(
            "fault | runs | factorization loss, first epoch | last | training MSE, first epoch "
            "| last | MRR | test MSE",
            faults,
            "n factorization_loss_first:sd factorization_loss:sd regression_loss_first:sd "
            "regression_loss:sd mrr:sd mse:sd",
        ),
        "gradients": table(
            "setting | table | cosine | steps in conflict, % | norm ratio | weighted norm ratio",
            pulls,
            "{}_cosine:ci {}_conflict:ci {}_norm_ratio:ci {}_weighted:ci",
        ),
        "null": table(
            "optimizer, sharing | MRR: 0.99/0.01 − 0.5/0.5 | MSE: 0.99/0.01 − 0.5/0.5",
            null,
            "mrr:ci mse:ci",
        ),
        "expectations": markdown_table(
            ["the report expected", "measured by", "protocol", "difference", "verdict"], expected, 3
        ),
    }


def page(tables: dict[str, str]) -> str:
    """All the tables as one page."""
    parts = [f"## {name}\n\n{table}\n" for name, table in tables.items()]
    return "\n".join(["# Every table of the study\n", *parts])


def number_text(numbers: Numbers, name: str, missing: str | None = None) -> str:
    """The number "NAME" or "NAME:FORM" as text; `missing` where there is no such name.

    Raises ValueError, naming the nearest one, for an unknown name, or a form that it doesn't have.
    """
    name, _, form = name.partition(":")
    if name not in numbers and missing is None:
        raise ValueError(f"no number {name}{nearest(name, numbers)}")
    number = numbers.get(name, missing)
    return format(number, form) if isinstance(number, Estimate) else number


def nearest(name: str, known: dict) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff=0.3)
    return f"; the nearest is {close[0]}" if close else ""


def rendered(numbers: Numbers, tables: dict[str, str], template: Path = TEMPLATE) -> str:
    """The document of a template, with its {NAME}, {NAME:FORM} and {table: NAME} filled in.

    Raises ValueError, naming file and line, for a name or form that isn't there.
    """
    source = template.read_text(encoding="utf-8")

    def fill(found: re.Match) -> str:
        name = found[1].removeprefix("table:").strip()
        try:
            if name == found[1]:
                return number_text(numbers, name)
            if name not in tables:
                raise ValueError(f"no table {name}{nearest(name, tables)}")
            return tables[name]
        except ValueError as error:
            line = source[: found.start()].count("\n") + 1
            raise ValueError(f"{template}: line {line}, {found[0]}: {error}") from None

    return re.sub(r"\{([^{}\n]*)\}", fill, source)


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


def write_report(frame: pd.DataFrame, out: Path, root: Path | None = None) -> list[Path]:
    """Figures and tables.md into a folder, the documents into another; the paths written.

    Raises ValueError for a document with a fault, before anything is written.
    """
    numbers = study_numbers(frame)
    tables, written = study_tables(numbers), []
    if root:
        study = rendered(numbers, tables)
        readme, _ = filled(root / "README.md", tables)
    with report_style():
        for name, figure in study_figures(frame).items():
            written += save_figure(figure, out / "figures", name)
    documents = {out / "tables.md": page(tables)}
    if root:
        documents |= {root / "STUDY.md": study, root / "README.md": readme}
    out.mkdir(parents=True, exist_ok=True)
    for path, text in documents.items():
        write_whole(path, text.encode())
    return [*written, *documents]


if __name__ == "__main__":
    sys.exit(main())
