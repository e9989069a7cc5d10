"""The README's tables of speed and output, those of RELIABILITY.md and SCALE.md, and a figure.

python -m checks.report     # of results/bench.jsonl, scale.jsonl, main.json, reliability.jsonl
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from arguments import Parser
from plot import COLOURS, report_style, save_figure
from study.figures import grid
from study.records import read, write_blocks
from study.report import sections

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "RELIABILITY.md", "SCALE.md")
TABLES = Path(__file__).with_name("tables.md.in")


def records_text(results: Path) -> dict[str, str]:
    """Every table that doesn't come from the study or the joint model, by name.

    They are the sections of tables.md.in: train.py's one line of stdout, the last records of the
    bench, and the last counts of checks/kill_resume.py, checks/fuzz_data.py and checks/mutate.py.
    """
    line, bench = (results / "main.json").read_text().strip(), read_bench(results / "bench.jsonl")
    ratios, sizes = bench["ratios"], bench["scaling"]["by_interactions"]
    large, whole = sizes["20000000"], sizes["20_000_000, evaluated"]
    told = {"run": json.loads(line), "line": line, "ratios": ratios, "large": large, "whole": whole}
    counts = {k: n for each in read(results / "reliability.jsonl") for k, n in each.items()}
    counts = {k: n for k, n in counts.items() if k not in ("seed", "seconds", "survivors")}
    rows = [f"| {k.replace('_', ' ')} | {n:,.0f} |" for k, n in counts.items()]
    told["counts"] = "\n".join(rows)
    hardware = dict.fromkeys(bench[kind]["hardware"] for kind in ("ratios", "scaling"))
    told |= {"hardware": ", ".join(hardware), "torchjd": bench["torchjd"]}
    told["millions"] = {k: n / 1e6 for k, n in ratios["samples_per_second_at_4096"].items()}
    told["growth"] = large["seconds_per_million"] / sizes["1000000"]["seconds_per_million"]
    told["gib"] = whole["peak_mib"] / 1024
    told["scale"] = scale = read_bench(results / "scale.jsonl")
    for each in scale.values():
        each["date"] += ", a busy machine" * each.get("busy", False)
    tables = sections(TABLES.read_text(encoding="utf-8").format(**told))
    return tables | {"scale_planned": scale_table(scale["sparse"], scale["evaluation"])}


SIZES = {  # users, items, interactions, devices
    "MovieLens 32M": (200_948, 84_432, 32_000_204, 1),
    "200 million": (10_000_000, 1_000_000, 200_000_000, 1),
    "a billion on 8 GPUs": (100_000_000, 10_000_000, 1_000_000_000, 8),
}
BATCH, DEVICE_BATCH = 256, 65_536  # of a step on a CPU, and of each device's where there are more


def scale_table(steps: dict, evaluation: dict) -> str:
    """Arithmetic on the records "sparse" and "evaluation", for D = 32 and float32.

    A dense step is taken to cost by the rows of the tables, a sparse one by those of its batch, an
    evaluation by users times items.
    """
    columns, dim, gib = {}, steps["dim"], 2**30
    by_row = steps["seconds"]["dense"] / (steps["users"] + steps["items"])
    by_pair = evaluation["seconds"]["evaluation"] / evaluation["users"] / evaluation["items"]
    for name, (users, items, n, devices) in SIZES.items():
        rows, hours = users + items, n / BATCH / 3600  # of steps of a second
        table, sent = rows * (dim + 1) * 4 / gib, 6 * DEVICE_BATCH * dim * 4 / 2**20
        dense, sparse = by_row * rows * hours, steps["seconds"]["sparse"] * hours
        columns[name] = {
            "users": f"{users:,}",
            "items": f"{items:,}",
            "interactions": f"{n:,}",
            "their arrays, 28 bytes each, GiB": f"{28 * n / gib:.1f}",
            "tables and biases, rows · (D + 1) · 4 bytes, GiB": f"{table:.2f}",
            "with gradients and two moments, dense: 4 of these": f"{4 * table:.2f}",
            "with two moments, sparse: 3 of these, a device": f"{3 * table / devices:.2f}",
            "hours an epoch of dense steps of 256, this CPU": f"{dense:,.1f}",
            "hours an epoch of sparse steps of 256, this CPU": f"{sparse:,.2f}",
            "hours to rank all items for all users": f"{by_pair * users * items / 3600:,.2f}",
            "steps an epoch of 65,536 a device": f"{n / DEVICE_BATCH / devices:,.0f}",
            "rows that a device then exchanges a step, MiB": f"{sent * (1 - 1 / devices):.0f}",
        }
    lines = [f"| planned | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for label in next(iter(columns.values())):
        lines.append(f"| {label} | {' | '.join(x[label] for x in columns.values())} |")
    return "\n".join(lines)


def read_bench(path: Path) -> dict[str, dict]:
    """The last record of each kind ("ratios", "scaling", "gpu") in results/bench.jsonl."""
    return {record["experiment"]: record for record in read(path)}


def scaling_figure(record: dict) -> Figure:
    """Cost against work, from the bench's "scaling" record: seconds, and memory on the right."""
    figure, ((by_runs, by_batch, axis),) = grid(1, 3, (10, 3.1))
    labels = {"runs": "runs R in the stack (batch 256)", "batch_size": "batch size (one run)"}
    for each, (name, label) in zip((by_runs, by_batch), labels.items(), strict=True):
        points = {int(x): y for x, y in record[f"seconds_by_{name}"].items()}
        each.plot(list(points), list(points.values()), "o-", color=COLOURS[0])
        each.set(xscale="log", xlabel=label, ylabel="seconds per run-epoch (ml-100k)")
        each.set_ylim(0, None)
        each.set_xticks(list(points), [f"{x:,}" for x in points])
        each.xaxis.set_minor_locator(NullLocator())
    memory = axis.twinx()
    memory.grid(False)
    sizes = {int(x) / 1e6: y for x, y in record["by_interactions"].items() if x.isdigit()}
    seconds = [size["seconds"] for size in sizes.values()]
    gib = [size["training_peak_mib"] / 1024 for size in sizes.values()]
    axis.plot(list(sizes), seconds, "o-", color=COLOURS[0])
    memory.plot(list(sizes), gib, "s--", color=COLOURS[1])
    labels = "seconds an epoch", "peak memory, GiB"
    for each, colour, label in zip((axis, memory), COLOURS, labels, strict=False):
        each.tick_params(axis="y", colors=colour)
        each.set_ylim(0, None)
        each.set_ylabel(label, color=colour)
    axis.set_xlabel("million interactions (batch 16,384)")
    return figure


def main(argv: list[str] | None = None) -> int:
    Parser(prog="python -m checks.report", description=__doc__).parse_args(argv)
    results = ROOT / "results"
    for name in DOCUMENTS:
        write_blocks(ROOT / name, records_text(results))
    with report_style():
        figure = scaling_figure(read_bench(results / "bench.jsonl")["scaling"])
        save_figure(figure, results / "figures", "scaling")
    return 0


if __name__ == "__main__":
    sys.exit(main())
