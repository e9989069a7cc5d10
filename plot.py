"""Draw the report's figure from run folders, or every figure and table of the study.

    python plot.py runs/shared                     one run: curves.png and curves.svg beside it
    python plot.py runs/shared runs/separate       two runs, with a legend of what differs
    python plot.py runs/ten-seeds --out figures    every run of a stack, drawn elsewhere
    python plot.py --study results/study.jsonl     results/figures/, results/tables.md, and the
                                                   generated blocks of the documents beside

Of runs, the five curves are drawn, overlaid; only their folders are read (config.json,
history.csv, result.json). Of a study, only its file is read. Nothing is trained or recomputed.
matplotlib is imported late, so that a wrong path is told at once and in one line.
"""

import argparse
import csv
import io
import json
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

DOCUMENTS = ("README.md", "STUDY.md", "RESULTS.md", "RELIABILITY.md")  # hold generated blocks
# Okabe and Ito's colour-blind-safe palette without its yellow, which is too pale on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINE_STYLES = ["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 2, 6, 2))]
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E4E4E4",
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3,
    "svg.hashsalt": "multitask",  # element ids would be random: the same run, the same bytes
}
# The report's five curves: (column of history.csv, TensorBoard tag, y label).
CURVES = [
    ("factorization_loss", "training/Factorization Loss", "factorization loss (no unit)"),
    ("regression_loss", "training/MSE", "squared error (rating units²)"),
    ("joint_loss", "training/Joint Loss", r"$\lambda_F$ · factorization + $\lambda_R$ · MSE"),
    ("mrr", "eval/Mean Reciprocal Rank", "reciprocal rank (0 to 1)"),
    ("mse", "eval/MSE", "squared error (rating units²)"),
]
# Keys of config.json that a label tells in another form, or that are no settings.
TOLD_ELSEWHERE = set("shared separate shared_dims lambda_f lambda_r seed".split())
TOLD_ELSEWHERE |= set("out name overwrite resume commit data_sha256 seeds".split())
TOLD_ELSEWHERE |= set("checkpoint_every eval_chunk n_users n_items".split())
LEGEND_CELL_HOLDS = 16  # lines; with more the legend stands below the panels


@dataclass(frozen=True)
class Run:
    """A run folder: its settings, and per column the epochs that have a value and the values."""

    folder: Path
    config: dict
    curves: dict[str, tuple[list[int], list[float]]]


def find_runs(folder: Path) -> list[Path]:
    """The run folders that `folder` stands for: itself, or those of a stack, in natural order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one that train.py wrote")
    if (folder / "history.csv").is_file():
        return [folder]
    files = [child / name for child in folder.iterdir() for name in ("history.csv", "config.json")]
    runs = {file.parent for file in files if file.is_file()}
    for run in [run for run in runs if (run / "failed.json").is_file()]:
        print(f"plot.py: {run} is left out: it did not stay finite", file=sys.stderr)
        runs.remove(run)
    if not runs:
        raise ValueError(f"{folder}: not a run folder, nor a stack's: history.csv is missing")
    return sorted(runs, key=lambda run: [f"{part:>020}" for part in re.split(r"(\d+)", run.name)])


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: missing; a finished run has one") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from None


def read_json(path: Path) -> dict:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, should be a JSON object")
    return content


def read_run(folder: Path) -> Run:
    """Read and check a run folder; a bad one raises an error that names the file and column.

    Values that are not there (epochs without an evaluation) or not finite are left out.
    """
    path, columns = folder / "history.csv", [column for column, _, _ in CURVES]
    reader = csv.DictReader(read_text(path).splitlines(), restval="")
    for column in ["epoch", *columns]:
        if column not in (reader.fieldnames or []):
            raise ValueError(f"{path}: column {column} is missing")
    curves = {column: ([], []) for column in columns}
    epochs = 0
    for epochs, row in enumerate(reader, start=1):
        if row["epoch"] != str(epochs - 1):
            told = f"{row['epoch']!r} should be {epochs - 1}: one row an epoch, from 0"
            raise ValueError(f"{path}: column epoch, row {epochs}: {told}")
        if None in row:
            raise ValueError(f"{path}: row {epochs} has more cells than there are columns")
        for column in columns:
            try:
                not_evaluated = row[column] == "" and column in ("mrr", "mse")
                value = math.nan if not_evaluated else float(row[column])
            except ValueError:
                told = f"{row[column]!r} should be a number"
                raise ValueError(f"{path}: column {column}, row {epochs}: {told}") from None
            if math.isfinite(value):
                curves[column][0].append(epochs - 1)
                curves[column][1].append(value)
    config, result = read_json(folder / "config.json"), read_json(folder / "result.json")
    if epochs == 0 or epochs != result.get("epochs", epochs):
        raise ValueError(f"{path}: unfinished, {epochs} of {result.get('epochs', '?')} epochs")
    return Run(folder, config, curves)


def settings(config: dict) -> dict[str, str]:
    """What tells a run from others, as name -> text: sharing, λ, everything else, the seed."""

    def text(value):
        return f"{value:g}" if isinstance(value, float) else str(value)

    told = {}
    common, width, seed = (config.get(key) for key in ("shared_dims", "embedding_dim", "seed"))
    if common is not None:
        widths = [config.get(key) or width for key in ("ranking_dim", "rating_dim")]
        of = widths[0] if widths[0] == widths[1] else " and ".join(map(str, widths))
        shared = "shared" if widths == [common, common] else f"{common} of {of} dims shared"
        told["sharing"] = "separate" if common == 0 else shared
    if "lambda_f" in config and "lambda_r" in config:
        told["λ"] = f"λ {text(config['lambda_f'])}/{text(config['lambda_r'])}"
    derived = {"ranking_dim": width, "rating_dim": width, "split_seed": seed}
    for key, value in config.items():
        follows = key in derived and value in (None, derived[key])
        if key not in TOLD_ELSEWHERE and not follows and not isinstance(value, dict):
            told[key] = f"{key.replace('_', ' ')} {text(value)}"
    return told if seed is None else told | {"seed": f"seed {seed}"}


def run_labels(runs: list[Run]) -> list[str]:
    """A label per run, no two alike: the settings in which they differ, else the folders.

    A run alone tells its sharing, λ and seed.
    """
    told = [settings(run.config) for run in runs]
    names = dict.fromkeys([name for one in told for name in one if name != "seed"] + ["seed"])
    if len(runs) == 1:
        names = ["sharing", "λ", "seed"]
    else:
        names = [name for name in names if len({one.get(name) for one in told}) > 1]
    labels = [", ".join(one[name] for name in names if name in one) for one in told]
    folders = [run.folder.resolve().name for run in runs]
    if len(set(folders)) < len(runs):
        folders = [str(run.folder) for run in runs]
    return [
        label if label and labels.count(label) == 1 else f"{label} ({folder})" if label else folder
        for label, folder in zip(labels, folders, strict=True)
    ]


def report_style():
    """The look of every figure here, whatever matplotlibrc says: a context manager."""
    import matplotlib.style

    return matplotlib.style.context(["default", STYLE])


def curves_figure(runs: list[Run]):
    """The report's five curves by epoch, a panel each, the runs overlaid: a matplotlib Figure.

    Epochs without a value are skipped: the line joins the epochs that were evaluated.
    """
    from matplotlib.figure import Figure  # not pyplot: saving then takes Agg and needs no display
    from matplotlib.ticker import MaxNLocator

    labels = run_labels(runs)
    cell = [textwrap.fill(label, 38) for label in labels]
    below = sum(label.count("\n") + 1 for label in cell) > LEGEND_CELL_HOLDS
    # Below the panels up to three labels share the figure's width: fewer if they are long.
    columns = min(3, max(1, 120 // max(map(len, labels))))
    labels = [textwrap.fill(label, 150 // columns) for label in labels] if below else cell
    lines = max(label.count("\n") + 1 for label in labels) * math.ceil(len(runs) / columns)
    legend_height = 0.17 * lines + 0.3 if below else 0
    figure = Figure(figsize=(10, 5.6 + legend_height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    *panels, spare = figure.subplots(2, 3).flat
    for axis, (column, tag, y_label) in zip(panels, CURVES, strict=True):
        axis.set(title=tag, xlabel="epoch", ylabel=y_label)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        for i, run in enumerate(runs):
            axis.plot(
                *run.curves[column],
                color=COLOURS[i % len(COLOURS)],
                linestyle=LINE_STYLES[i // len(COLOURS) % len(LINE_STYLES)],
                marker="o" if len(run.curves[column][0]) <= 12 else None,
            )
    spare.set_axis_off()
    place = {"loc": "outside lower center", "ncols": columns} if below else {"loc": "center left"}
    numbers = [str(i) for i in range(len(runs))]
    legend = (figure if below else spare).legend(
        panels[0].lines, numbers, alignment="left", **place
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)  # set afterwards: a label may hold "$", begin "_"
    if any("λ " in label for label in labels):
        legend.set_title(r"$\lambda$ is $\lambda_F/\lambda_R$", prop={"size": 8.5})
    return figure


def save_figure(figure, folder: Path, stem: str) -> list[Path]:
    """Write `stem`.png and `stem`.svg into `folder`, each whole or not at all."""
    content = {}
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        content[folder / f"{stem}.{kind}"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in content.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return list(content)


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line instead of the usage and the error."""

    def error(self, message):
        print(f"plot.py: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def read_runs(given: list[Path]) -> list[Run]:
    """The runs of run folders or stacks, each once."""
    folders = [folder for one in given for folder in find_runs(one)]
    return [read_run(folder) for folder in {each.resolve(): each for each in folders}.values()]


def draw_study(frame, out: Path, documents: list[Path]) -> list[Path]:
    """Figures and tables.md into `out`, blocks into the documents beside it; the paths written."""
    from figures import scaling_figure, study_figures
    from results_tables import results_text
    from tables import page, read_bench, records_text, study_text, write_blocks

    written, text = [], study_text(frame)
    figures, bench = study_figures(frame), read_bench(out / "bench.jsonl")
    if "scaling" in bench:
        figures["scaling"] = scaling_figure(bench["scaling"])
    for name, figure in figures.items():
        written += save_figure(figure, out / "figures", name)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(page(text), encoding="utf-8")
    for document in documents:
        write_blocks(document, text | records_text(out) | results_text(out))
    return [*written, out / "tables.md", *documents]


def documents_beside(out: Path) -> list[Path]:
    beside = [out.resolve().parent / name for name in DOCUMENTS]
    return [document for document in beside if document.is_file()]


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="plot.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", type=Path, help="run folder of train.py, or a stack's"
    )
    parser.add_argument(
        "--study",
        metavar="FILE",
        type=Path,
        help="lines of experiments/study.py; study.jsonl fills the documents beside --out too",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="where figures and tables go (default: the first RUN, or the folder of FILE)",
    )
    options = parser.parse_args(arguments)
    if bool(options.runs) == bool(options.study):
        parser.error("give either RUN, one or more run folders, or --study FILE")
    out = options.out or (options.study.parent if options.study else options.runs[0])
    try:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out}: is a file, should be a folder")
        if options.study:
            import tables  # pandas and scipy: late, as matplotlib is

            frame = tables.read_study(options.study)
            documents = documents_beside(out) if options.study.name == "study.jsonl" else []
            for document in documents:
                tables.stale_blocks(document, {})  # raises for a block without an end
        else:
            runs = read_runs(options.runs)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with report_style():
        try:
            if options.study:
                written = draw_study(frame, out, documents)
            else:
                written = save_figure(curves_figure(runs), out, "curves")
        except OSError as error:
            parser.error(str(error))
    print(*written, sep="\n")


if __name__ == "__main__":
    main()
