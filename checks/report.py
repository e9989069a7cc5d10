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
        plain, per_second = ratios["ratio_to_plain"], ratios["samples_per_second_at_4096"]
        rows.append(["the plain loop, seconds an epoch", f"{ratios['plain_seconds']:.2f}"])
        for name, label in (
            ("R=1", "one run, share of the plain loop's seconds"),
            ("R=1 separate", "the same, separate embeddings"),
            ("R=16", "16 runs as a stack, share per run"),
            ("R=16 separate", "the same, separate embeddings"),
            ("evaluation, R=1", "evaluating all users, share of the plain loop's epoch"),
        ):
            rows.append([label, f"{plain[name]:.3f}"])
        for name, label in (("R=1", "one run"), ("R=16", "16 runs")):
            rows.append([f"{label}, times the floor", f"{ratios['ratio_to_floor'][name]:.1f}"])
        for name, label in (
            ("plain", "the plain loop"),
            ("eager", "ours"),
            ("compiled", "ours with `--compile`"),
        ):
            millions = f"{per_second[name] / 1e6:.2f}"
            rows.append([f"million samples a second at batch 4,096: {label}", millions])
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
    figure, axes = grid(1, 3, (10, 3.1))
    for axis, name, label in (
        (axes[0, 0], "seconds_by_runs", "runs R in the stack (batch 256)"),
        (axes[0, 1], "seconds_by_batch_size", "batch size (one run)"),
    ):
        points = {int(x): y for x, y in record[name].items()}
        axis.plot(list(points), list(points.values()), "o-", color=COLOURS[0])
        axis.set(
            xscale="log", xlabel=label, ylabel="seconds per run-epoch (ml-100k)", ylim=(0, None)
        )
        axis.set_xticks(list(points), [f"{x:,}" for x in points])
        axis.xaxis.set_minor_locator(NullLocator())
    points = {int(x): y for x, y in record["by_interactions"].items() if x.isdigit()}
    axis, memory = axes[0, 2], axes[0, 2].twinx()
    for at, name, colour, marker, factor in (
        (axis, "seconds", COLOURS[0], "o-", 1),
        (memory, "training_peak_mib", COLOURS[1], "s--", 1 / 1024),
    ):
        values = [point[name] * factor for point in points.values()]
        at.plot([x / 1e6 for x in points], values, marker, color=colour)
        at.set_ylim(0, None)
        at.tick_params(axis="y", colors=colour)
    memory.grid(False)
    axis.set(xlabel="million interactions (batch 16,384)")
    axis.set_ylabel("seconds an epoch", color=COLOURS[0])
    memory.set_ylabel("peak memory, GiB", color=COLOURS[1])
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
