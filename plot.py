"""Draw the training curves of run folders.

    python plot.py runs/shared                     one run: curves.png and curves.svg beside it
    python plot.py runs/shared runs/separate       two runs, with a legend of what differs
    python plot.py runs/ten-seeds --out figures    every run of a stack, drawn elsewhere

The three losses and every metric of evaluation.METRICS that has a tag, a panel each, the runs
overlaid. Only the run folders are read (config.json, history.csv, result.json); nothing is trained
or recomputed.
"""

import io
import math
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib import cycler
from matplotlib.figure import Figure  # not pyplot: saving then takes Agg and needs no display
from matplotlib.ticker import MaxNLocator

from arguments import Parser
from evaluation import METRICS
from ratings_file import require
from run_folder import intact, read_history, read_json, write_whole

# Okabe and Ito's colour-blind-safe palette without its yellow, which is too pale on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 2, 6, 2))]  # of each in turn
LOSSES = [  # (column of history.csv, TensorBoard tag, y label)
    ("factorization_loss", "training/Factorization Loss", "factorization loss (no unit)"),
    ("regression_loss", "training/MSE", "squared error (rating units²)"),
    ("joint_loss", "training/Joint Loss", r"$\lambda_F$ · factorization + $\lambda_R$ · MSE"),
]
# Keys of config.json that a label tells in another form, or that are no settings.
TOLD_ELSEWHERE = set("shared separate shared_dims lambda_f lambda_r seed".split())
TOLD_ELSEWHERE |= set("out name overwrite resume commit data_sha256 seeds run_id".split())
TOLD_ELSEWHERE |= set("checkpoint_every n_users n_items commit_dirty".split())


def curves() -> list[tuple[str, str, str]]:
    """The panels: (column of history.csv, TensorBoard tag, y label) of losses, then of metrics."""
    return LOSSES + [(name, m.tag, m.label) for name, m in METRICS.items() if m.tag]


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
    runs = []
    for child in folder.iterdir():
        if (child / "failed.json").is_file():
            print(f"plot.py: {child} is left out: it did not stay finite", file=sys.stderr)
        elif (child / "history.csv").is_file() or (child / "config.json").is_file():
            runs.append(child)
    require(runs, f"{folder}: not a run folder, nor a stack's: history.csv is missing")
    return sorted(runs, key=lambda run: [f"{part:>020}" for part in re.split(r"(\d+)", run.name)])


def read_run(folder: Path) -> Run:
    """Read and check a run folder; a bad one raises an error that names the file and column.

    Values that are not there (epochs without an evaluation) or not finite are left out, and so is
    a metric that the run has no column of: it may be newer than the run.
    """
    path, losses = folder / "history.csv", [column for column, _, _ in LOSSES]
    config, result = (read_json(folder / f"{name}.json") for name in ("config", "result"))
    rows, n = intact(path, read_history), result.get("epochs")
    require(len(rows) == n, f"{path}: unfinished, {len(rows)} of {n} epochs")
    for column in ["epoch", *losses]:
        require(column in rows[0], f"{path}: column {column} is missing")
    columns = {column: ([], []) for column, _, _ in curves() if column in rows[0]}
    for column in [column for column, _, _ in curves() if column not in rows[0]]:
        print(f"plot.py: {path}: column {column} is missing, drawn without it", file=sys.stderr)
    for epoch, row in enumerate(rows):
        told = f"{row['epoch']!r} should be {epoch}: one row an epoch, from 0"
        require(row["epoch"] == str(epoch), f"{path}: column epoch, row {epoch + 1}: {told}")
        fits = None not in row and None not in row.values()
        require(fits, f"{path}: row {epoch + 1} has another number of cells than of columns")
        for column, (epochs, values) in columns.items():
            not_evaluated = row[column] == "" and column not in losses
            try:
                value = math.nan if not_evaluated else float(row[column])
            except ValueError:
                told = f"row {epoch + 1}: {row[column]!r} should be a number"
                raise ValueError(f"{path}: column {column}, {told}") from None
            if math.isfinite(value):
                epochs.append(epoch)
                values.append(value)
    return Run(folder, config, columns)


def settings(config: dict) -> dict[str, str]:
    """What tells a run from others, as name -> text: sharing, λ, everything else, the seed."""
    told, shown = {}, {k: f"{v:g}" if isinstance(v, float) else v for k, v in config.items()}
    common, width, seed = (config.get(key) for key in ("shared_dims", "embedding_dim", "seed"))
    if common is not None:
        widths = [config.get(key) or width for key in ("ranking_dim", "rating_dim")]
        of = widths[0] if widths[0] == widths[1] else " and ".join(map(str, widths))
        shared = "shared" if widths == [common, common] else f"{common} of {of} dims shared"
        told["sharing"] = "separate" if common == 0 else shared
    if config.get("lambda_f") is not None:
        told["λ"] = f"λ {shown['lambda_f']}/{shown['lambda_r']}"
    derived = {"ranking_dim": width, "rating_dim": width, "split_seed": seed}
    for key, value in config.items():
        follows = key in derived and value in (None, derived[key])
        if key not in TOLD_ELSEWHERE and not follows and not isinstance(value, dict):
            told[key] = f"{key.replace('_', ' ')} {shown[key]}"
    return told if seed is None else told | {"seed": f"seed {seed}"}


def run_labels(runs: list[Run]) -> list[str]:
    """A label per run, no two alike: the settings in which they differ, else the folders.

    A run alone tells its sharing, λ and seed.
    """
    told, names = [settings(run.config) for run in runs], ["sharing", "λ", "seed"]
    if len(runs) > 1:
        names = dict.fromkeys([name for one in told for name in one if name != "seed"] + ["seed"])
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
    return matplotlib.style.context(["default", Path(__file__).with_name("plot.mplstyle")])


def curves_figure(runs: list[Run]) -> Figure:
    """The curves by epoch, a panel each, the runs overlaid.

    Epochs without a value are skipped: the line joins the epochs that were evaluated. The legend
    takes the first free cell; where there is none, or it is of over 16 lines, it stands below.
    """
    panels = [panel for panel in curves() if any(panel[0] in run.curves for run in runs)]
    rows, labels = math.ceil(len(panels) / 3), run_labels(runs)
    columns, wrapped = 1, [textwrap.fill(label, 38) for label in labels]
    below = len(panels) == 3 * rows or "\n".join(wrapped).count("\n") >= 16
    height = 2.8 * rows
    if below:  # up to three labels share the figure's width: fewer if they are long
        columns = min(3, max(1, 120 // max(map(len, labels))))
        wrapped = [textwrap.fill(label, 150 // columns) for label in labels]
        lines = max(label.count("\n") + 1 for label in wrapped) * math.ceil(len(runs) / columns)
        height += 0.17 * lines + 0.3
    figure = Figure(figsize=(10, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = figure.subplots(rows, 3).flat
    for axis, (column, tag, y_label) in zip(axes, panels, strict=False):
        axis.set(title=tag, xlabel="epoch", ylabel=y_label)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        axis.set_prop_cycle(cycler(linestyle=LINES) * cycler(color=COLOURS))
        for run in runs:
            epochs, values = run.curves.get(column, ([], []))
            axis.plot(epochs, values, marker="o" if len(epochs) <= 12 else None)
    for spare in axes[len(panels) :]:
        spare.set_axis_off()
    place = {"loc": "outside lower center", "ncols": columns} if below else {"loc": "center left"}
    owner, names = figure if below else axes[len(panels)], map(str, range(len(runs)))
    legend = owner.legend(axes[0].lines, names, alignment="left", **place)
    for text, label in zip(legend.get_texts(), wrapped, strict=True):
        text.set(text=label, parse_math=False)  # set afterwards: a label may hold "$", begin "_"
    if any("λ " in label for label in labels):
        legend.set_title(r"$\lambda$ is $\lambda_F/\lambda_R$", prop={"size": 8.5})
    return figure


def save_figure(figure, folder: Path, stem: str) -> list[Path]:
    """Write `stem`.png and `stem`.svg into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    for path, metadata in zip(paths, ({}, {"Date": None}), strict=True):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
        write_whole(path, buffer.getbuffer())
    return paths


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="plot.py", description=__doc__)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="run folder of train.py, or a stack's")
    add("--out", metavar="FOLDER", type=Path, help="where the figure goes (the first RUN)")
    options = parser.parse_args(argv)
    out = options.out or options.runs[0]
    try:
        require(out.is_dir() or not out.exists(), f"--out {out}: is a file, should be a folder")
        folders = [folder for given in options.runs for folder in find_runs(given)]
        runs = [read_run(run) for run in {run.resolve(): run for run in folders}.values()]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with report_style():
        figure = curves_figure(runs)
        try:
            print(*save_figure(figure, out, "curves"), sep="\n")
        except OSError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
