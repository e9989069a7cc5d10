"""The README's tables of speed and output, RELIABILITY.md's counts, and the scaling figure.

python -m checks.report     # of results/bench.jsonl, main.json and reliability.jsonl
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
from study.stats import markdown_table

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "RELIABILITY.md")


def records_text(results: Path) -> dict[str, str]:
    """Every table that doesn't come from the study or the joint model, by name."""
    return {
        "readme_output": main_output(results / "main.json"),
        "readme_bench": bench_table(read_bench(results / "bench.jsonl")),
        "reliability": reliability_table(results / "reliability.jsonl"),
    }


def reliability_table(path: Path) -> str:
    """The last counts of checks/kill_resume.py and of checks/fuzz_data.py."""
    counts = {name: count for line in read(path) for name, count in line.items()}
    shown = ("rounds", "kills", "differences", "files", "accepted", "refused", "tracebacks")
    shown += ("silent_changes", "wrongly_accepted", "wrongly_refused")
    rows = [[name.replace("_", " "), f"{counts[name]:,}"] for name in shown if name in counts]
    return markdown_table(["counted", ""], rows)


def main_output(path: Path) -> str:
    """How train.py's main command ends: its one line of stdout is results/main.json."""
    if not path.is_file():
        return "—"
    line = path.read_text(encoding="utf-8").strip()
    run = json.loads(line)
    lines = [f"{'λ_F':>6} {'λ_R':>6} {'runs':>5}   {'MRR':<32} MSE"]
    weights = f"{run['lambda_f']:>6} {run['lambda_r']:>6} {1:>5}"
    lines += [f"{weights}   {run['mrr']:<32.4f} {run['mse']:.4f}", f"{line[:96]}…"]
    return "\n".join(["```", *lines, "```"])


def read_bench(path: Path) -> dict[str, dict]:
    """The last record of each kind ("ratios", "scaling", "gpu") in results/bench.jsonl."""
    return {record["experiment"]: record for record in read(path)}


def bench_table(bench: dict[str, dict]) -> str:
    """The README's table of speed; a part not measured yet has no rows."""
    rows = []
    if ratios := bench.get("ratios"):
        plain, floor = ratios["ratio_to_plain"], ratios["ratio_to_floor"]
        millions = {name: n / 1e6 for name, n in ratios["samples_per_second_at_4096"].items()}
        large, evaluating = "million samples a second at batch 4,096", plain["evaluation, R=1"]
        rows += [
            ["the plain loop, seconds an epoch", f"{ratios['plain_seconds']:.2f}"],
            ["one run, share of the plain loop's seconds", f"{plain['R=1']:.3f}"],
            ["the same, separate embeddings", f"{plain['R=1 separate']:.3f}"],
            ["16 runs as a stack, share per run", f"{plain['R=16']:.3f}"],
            ["the same, separate embeddings", f"{plain['R=16 separate']:.3f}"],
            ["evaluating all users, share of the plain loop's epoch", f"{evaluating:.3f}"],
            ["one run, times the floor", f"{floor['R=1']:.1f}"],
            ["16 runs, times the floor", f"{floor['R=16']:.1f}"],
            [f"{large}: the plain loop", f"{millions['plain']:.2f}"],
            [f"{large}: ours", f"{millions['eager']:.2f}"],
            [f"{large}: ours with `--compile`", f"{millions['compiled']:.2f}"],
        ]
    if scaling := bench.get("scaling"):
        sizes = scaling["by_interactions"]
        large = sizes["20_000_000, evaluated"]
        growth = sizes["20000000"]["seconds_per_million"] / sizes["1000000"]["seconds_per_million"]
        rows += [
            ["20 million interactions, seconds an epoch", f"{sizes['20000000']['seconds']:.0f}"],
            ["their seconds per million, times those at 1 million", f"{growth:.2f}"],
            ["their evaluation, all 138,493 users, seconds", f"{large['evaluation_seconds']:.0f}"],
            ["peak memory of both, GiB", f"{large['peak_mib'] / 1024:.1f}"],
        ]
    hardware = sorted({record["hardware"] for record in bench.values()})
    return markdown_table([f"on one thread of {', '.join(hardware) or '—'}", ""], rows)


def scaling_figure(record: dict) -> Figure:
    """Cost against work, from the bench's "scaling" record: seconds, and memory on the right."""
    figure, ((by_runs, by_batch, axis),) = grid(1, 3, (10, 3.1))
    for each, name, label in (
        (by_runs, "seconds_by_runs", "runs R in the stack (batch 256)"),
        (by_batch, "seconds_by_batch_size", "batch size (one run)"),
    ):
        points = {int(x): y for x, y in record[name].items()}
        each.plot(list(points), list(points.values()), "o-", color=COLOURS[0])
        told = "seconds per run-epoch (ml-100k)"
        each.set(xscale="log", xlabel=label, ylabel=told, ylim=(0, None))
        each.set_xticks(list(points), [f"{x:,}" for x in points])
        each.xaxis.set_minor_locator(NullLocator())
    points = {int(x) / 1e6: y for x, y in record["by_interactions"].items() if x.isdigit()}
    memory = axis.twinx()
    memory.grid(False)
    seconds = [point["seconds"] for point in points.values()]
    peaks = [point["training_peak_mib"] / 1024 for point in points.values()]
    for each, values, colour, line, label in (
        (axis, seconds, COLOURS[0], "o-", "seconds an epoch"),
        (memory, peaks, COLOURS[1], "s--", "peak memory, GiB"),
    ):
        each.plot(list(points), values, line, color=colour)
        each.set_ylim(0, None)
        each.tick_params(axis="y", colors=colour)
        each.set_ylabel(label, color=colour)
    axis.set_xlabel("million interactions (batch 16,384)")
    return figure


def main(argv: list[str] | None = None) -> int:
    Parser(prog="python -m checks.report", description=__doc__).parse_args(argv)
    results = ROOT / "results"
    for name in DOCUMENTS:
        write_blocks(ROOT / name, records_text(results))
    bench = read_bench(results / "bench.jsonl")
    if "scaling" in bench:
        with report_style():
            save_figure(scaling_figure(bench["scaling"]), results / "figures", "scaling")
    return 0


if __name__ == "__main__":
    sys.exit(main())
