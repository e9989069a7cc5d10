"""The study's figures, drawn from the lines of results/study.jsonl (numbers.read_study).

`study_figures(frame)` gives every figure that the lines suffice for, by name; report.py saves them.
Bands are mean ± sd over seeds, bars are bootstrap 95% intervals of the mean.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import plot
from plot import COLOURS
from study.design import (
    BASELINES,
    CURVES,
    LAMBDAS,
    METRICS,
    PUBLISHED,
    SETTINGS,
    SHARINGS,
    WIDTH,
    setting,
)
from study.numbers import arm, curves_of
from study.stats import bootstrap_interval, pareto_front

SHARING_COLOURS = dict(zip(SHARINGS, COLOURS, strict=False))  # K = 32, 16, 0
WEIGHT_COLOURS = {0.99: COLOURS[0], 0.5: COLOURS[1]}
LABEL_PLACES = {WIDTH: ((6, -11), "left"), 16: ((-6, 6), "right"), 0: ((6, 6), "left")}
MARKERS = {WIDTH: "o", 16: "^", 0: "s"}
AXES = {"mrr": "MRR (test)", "mse": "MSE (test, rating units²)"}
PUBLISHED_LINE = dict(color="#000000", linestyle="--", linewidth=1, zorder=2.2)
TITLES = {column: tag for column, tag, _ in plot.curves() if column in CURVES}
MUTED = "#777777"
FAULT_STYLES = [
    "-",
    (0, (6, 2)),
    (0, (2, 1)),
    "-.",
    ":",
]  # faults that don't touch a curve coincide
BASELINE_STYLES = {"popularity": ":", "biases": (0, (5, 2, 1, 2))}  # the global mean is far off


def study_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name, without those whose runs aren't there yet."""
    draws = dict(report=report_figure, sharing=sharing_figure, weights=weights_figure)
    draws |= dict(pareto=pareto_figure, gradients=gradients_figure, faults=faults_figure)
    figures = {name: draw(frame) for name, draw in draws.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def grid(rows: int, columns: int, size: tuple[float, float], **shares):
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False, **shares)


def band(axis, values: np.ndarray, **style) -> None:
    """Mean ± sd over the runs of a (runs, epochs) curve, at the epochs where it was measured."""
    epochs = np.flatnonzero(np.isfinite(values).any(0)) if values.size else []
    if len(epochs):
        values = values[:, epochs]
        mean, spread = np.nanmean(values, 0), np.nanstd(values, 0, ddof=int(len(values) > 1))
        (line,) = axis.plot(epochs, mean, **style)
        axis.fill_between(
            epochs, mean - spread, mean + spread, color=line.get_color(), alpha=0.25, linewidth=0
        )


def mean_and_bars(values: pd.Series) -> tuple[float, list[list[float]]]:
    """The mean, and how far its 95% interval reaches below and above: ((2, 1))."""
    values = values.dropna().to_numpy(float)
    if not len(values):
        return np.nan, [[0.0], [0.0]]
    mean, (low, high) = values.mean(), bootstrap_interval(values)
    return mean, [[np.nan_to_num(mean - low)], [np.nan_to_num(high - mean)]]


def baseline_lines(axis, frame: pd.DataFrame, metric: str, across: bool = True) -> None:
    """The levels of the baselines that have the metric, under the selected protocol."""
    for method, linestyle in BASELINE_STYLES.items():
        lines = frame[(frame.method == method) & (frame.protocol == "selected")]
        if BASELINES[method] == metric and len(lines):
            draw = axis.axhline if across else axis.axvline
            label = f"{method} ({metric.upper()})"
            draw(lines[metric].mean(), color=MUTED, ls=linestyle, lw=1.1, zorder=1.5, label=label)


def legend_of(panels) -> tuple[list, list[str]]:
    """Handles and labels of all panels, a label once, the baselines last."""
    both = [axis.get_legend_handles_labels() for axis in panels]
    entries = {label: handle for pair in both for handle, label in zip(*pair, strict=True)}
    labels = sorted(entries, key=lambda label: label.split(" (")[0] in BASELINES)
    return [entries[label] for label in labels], labels


def report_figure(frame: pd.DataFrame) -> Figure | None:
    """The report's five curves for each setting, and the published run's last value, dashed."""
    arms = {where: arm(frame, "report", *where) for where in SETTINGS}
    arms = {where: runs for where, runs in arms.items() if len(runs)}
    if not arms:
        return None
    figure, panels = grid(len(arms), 5, (13, 2.3 * len(arms) + 0.4), sharex=True, sharey="col")
    for row, (where, runs) in zip(panels, arms.items(), strict=True):
        published = PUBLISHED.get(where, {})
        for axis, (column, tag) in zip(row, TITLES.items(), strict=True):
            band(axis, curves_of(runs, column), color=WEIGHT_COLOURS[where[1]])
            if column in published:
                axis.axhline(published[column], **PUBLISHED_LINE)
            elif axis is row[0]:
                told = dict(transform=axis.transAxes, ha="right", va="top", color=MUTED)
                axis.text(0.97, 0.95, "not in the published report", **told)
            if axis in panels[0]:
                axis.set_title(tag)
            if axis in panels[-1]:
                axis.set_xlabel("epoch")
        row[0].set_ylabel(f"{setting(*where)}\n{len(runs)} seeds", fontsize=10)
    entries = [panels[0, 0].lines[0], panels[0, 0].plot([], [], **PUBLISHED_LINE)[0]]
    labels = ["correct code, mean ± sd over seeds", "published run (a single one), last epoch"]
    figure.legend(entries, labels, loc="outside lower center", ncols=2)
    return figure


def sharing_figure(frame: pd.DataFrame) -> Figure | None:
    """MRR and MSE against the number of shared dimensions, and the capacity control."""
    if not len(arm(frame, "dial", WIDTH, 0.5)) + len(arm(frame, "dial", 0, 0.5)):
        return None
    figure, panels = grid(1, 2, (9, 3.6))
    for axis, metric in zip(panels[0], AXES, strict=True):
        for shift, (lambda_f, colour) in zip((-0.35, 0.35), WEIGHT_COLOURS.items(), strict=True):
            dims = [K for K in range(0, WIDTH + 1, 8) if len(arm(frame, "dial", K, lambda_f))]
            points = [mean_and_bars(arm(frame, "dial", K, lambda_f)[metric]) for K in dims]
            axis.errorbar(
                np.add(dims, shift),
                [mean for mean, _ in points],
                np.hstack([bars for _, bars in points]) if points else None,
                color=colour,
                marker="o",
                capsize=2.5,
                label=f"λ {lambda_f:g}/{1 - lambda_f:g}",
            )
            mean, bars = mean_and_bars(arm(frame, "capacity", 0, lambda_f)[metric])
            if np.isfinite(mean):
                label = f"separate, {WIDTH // 2} dimensions each, {lambda_f:g}/{1 - lambda_f:g}"
                style = dict(color=colour, marker="s", mfc="white", capsize=2.5, linestyle="")
                axis.errorbar([shift - 2], [mean], bars, label=label, **style)
        axis.set(xlabel=f"shared dimensions K of {WIDTH}", ylabel=AXES[metric])
        axis.set_xticks(range(0, WIDTH + 1, 8), ["0\nseparate", "8", "16", "24", "32\nshared"])
        baseline_lines(axis, frame, metric)
    figure.legend(*legend_of(panels[0]), loc="outside lower center", ncols=3)
    return figure


def weights_figure(frame: pd.DataFrame) -> Figure | None:
    """MRR and MSE against λ_F : λ_R, one line a sharing; a task trained alone stands apart."""
    inner = LAMBDAS[1:-1]
    if not any(len(arm(frame, "weights", K, inner[1])) for K in SHARINGS):
        return None
    places, apart = np.log10([f / (1 - f) for f in inner]), 2.75
    figure, panels = grid(1, 2, (9.5, 3.8))
    for axis, (metric, alone, place) in zip(
        panels[0], (("mrr", 1.0, apart), ("mse", 0.0, -apart)), strict=True
    ):
        for k, K in enumerate(SHARINGS):
            points = [mean_and_bars(arm(frame, "dial", K, f)[metric]) for f in inner]
            style = dict(color=SHARING_COLOURS[K], marker=MARKERS[K], capsize=2)
            shifted = places + 0.04 * (k - 1)
            means, bars = [mean for mean, _ in points], np.hstack([bars for _, bars in points])
            axis.errorbar(shifted, means, bars, label=setting(K), **style)
            mean, bars = mean_and_bars(arm(frame, "dial", K, alone)[f"own_{metric}"])
            if np.isfinite(mean):
                axis.errorbar([place + 0.12 * (k - 1)], [mean], bars, linestyle="", **style)
        axis.axvline(np.sign(place) * 2.35, color=MUTED, linewidth=0.8, linestyle=":")
        ticks = [0.01, 0.091, 0.5, 0.909, 0.99]
        labels = [f"{f:.2g}/{1 - f:.2g}" for f in ticks] + [
            "ranking\nalone" if metric == "mrr" else "rating\nalone"
        ]
        axis.set_xticks([*np.log10([f / (1 - f) for f in ticks]), place], labels, fontsize=8)
        axis.set(xlabel=r"$\lambda_F/\lambda_R$ (log of the ratio)", ylabel=AXES[metric])
        baseline_lines(axis, frame, metric)
    figure.legend(*legend_of(panels[0]), loc="outside lower center", ncols=5)
    return figure


def pareto_figure(frame: pd.DataFrame) -> Figure | None:
    """MRR against MSE of every weight, crosses of one sd, and each sharing's front in steps.

    On the left one epoch serves both tasks, on the right each task has the epoch best for it.
    """
    figure, panels = grid(1, 2, (12, 4.9))
    arms = {K: {f: arm(frame, "dial", K, f) for f in LAMBDAS[1:-1]} for K in SHARINGS}
    arms = {K: {f: runs for f, runs in dial.items() if len(runs)} for K, dial in arms.items()}
    if not any(arms.values()):
        return None
    for axis, columns, title in zip(
        panels[0],
        (list(METRICS), ["own_mrr", "own_mse"]),
        ("one epoch for both tasks", "each task at its own epoch"),
        strict=True,
    ):
        for K, dial in arms.items():
            if not dial:
                continue
            style = dict(color=SHARING_COLOURS[K], marker=MARKERS[K], markersize=5)
            means = np.array([runs[columns].mean() for runs in dial.values()])
            sds = np.nan_to_num([runs[columns].std() for runs in dial.values()])
            bars = dict(linestyle="", elinewidth=0.7, alpha=0.55) | style
            axis.errorbar(means[:, 1], means[:, 0], sds[:, 0], sds[:, 1], **bars)
            front = means[pareto_front(means)]
            front = front[np.argsort(front[:, 1])]
            label = f"{setting(K)}, with its front"
            axis.step(front[:, 1], front[:, 0], where="post", label=label, **style)
        baseline_lines(axis, frame, "mrr")
        baseline_lines(axis, frame, "mse", across=False)
        axis.margins(x=0.1)
        near = 0.04 * np.ptp(axis.get_ylim()), 0.06 * np.ptp(axis.get_xlim())
        for K, dial in arms.items():
            means = np.array([runs[columns].mean() for runs in dial.values()]).reshape(-1, 2)
            offset, side = LABEL_PLACES[K]
            told = dict(textcoords="offset points", fontsize=8, color=SHARING_COLOURS[K], ha=side)
            for label, place in point_labels(means, list(dial), near).items():
                axis.annotate(label, place[::-1], offset, **told)
        axis.set(title=title, xlabel=f"{AXES['mse']}: better to the left")
        axis.set_ylabel(f"{AXES['mrr']}: better upwards")
    handles, labels = legend_of(panels[0])
    title = r"numbers are $\lambda_F = 1 - \lambda_R$"
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=5)
    return figure


def point_labels(means: np.ndarray, lambdas: list[float], near) -> dict[str, np.ndarray]:
    """λ_F -> point; neighbours within `near` (MRR, MSE) have one label, like "0.01 to 0.5"."""
    groups = []
    for point, f in zip(means, lambdas, strict=True):
        if groups and (abs(point - groups[-1][0]) < np.asarray(near)).all():
            groups[-1][1].append(f)
        else:
            groups.append((point, [f]))
    return {f"{fs[0]:.2g}" + (f" to {fs[-1]:.2g}" if fs[1:] else ""): at for at, fs in groups}


def gradients_figure(frame: pd.DataFrame) -> Figure | None:
    """Cosine and norm ratio of the tasks' gradients, a table a row; one step an epoch."""
    arms = {where: arm(frame, "report", *where) for where in SETTINGS}
    if not any(curves_of(runs, "users_cosine").size for runs in arms.values()):
        return None
    figure, panels = grid(2, 2, (10, 5.8), sharex=True)
    for row, table in zip(panels, ("users", "items"), strict=True):
        for where, runs in arms.items():
            style = dict(color=WEIGHT_COLOURS[where[1]], linestyle="-" if where[0] else "--")
            cosine, label = curves_of(runs, f"{table}_cosine"), setting(*where)
            band(row[1], curves_of(runs, f"{table}_norm_ratio"), label=label, **style)
            if where[0] and np.isfinite(cosine).any():
                conflict = (cosine[np.isfinite(cosine)] < 0).mean()
                label = f"{label}: {conflict:.0%} of steps in conflict"
                band(row[0], cosine, label=label, **style)
        row[0].axhline(0, color="black", linewidth=0.8)
        row[0].set(title=f"{table}: cosine of the tasks' gradients", ylabel="cosine")
        row[1].set(
            title=f"{table}: norm of the gradients, ranking over rating",
            ylabel="ratio",
            yscale="log",
        )
        row[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        row[1].yaxis.set_major_formatter("{x:g}")
        row[1].yaxis.set_minor_formatter(NullFormatter())
        for axis in row:
            axis.legend(loc="best")
    for axis in panels[-1]:
        axis.set_xlabel("epoch")
    return figure


def faults_figure(frame: pd.DataFrame) -> Figure | None:
    """The report's faults one at a time, beside the levels of the three published runs."""
    lines = frame[frame.experiment == "faults"]
    if not len(lines):
        return None
    chosen = [(column, tag) for column, tag in TITLES.items() if column != "joint_loss"]
    figure, panels = grid(1, 4, (13, 3.6))
    published = "published runs, last epoch: mean and range"
    for axis, (column, tag) in zip(panels[0], chosen, strict=True):
        for i, (fault, runs) in enumerate(lines.groupby("fault", sort=False)):
            style = dict(color=COLOURS[i % len(COLOURS)], linestyle=FAULT_STYLES[i % 5])
            label = "no fault" if fault == "none" else fault
            band(axis, curves_of(runs, column), label=label, **style)
        levels = [curves[column] for curves in PUBLISHED.values()]
        axis.axhspan(min(levels), max(levels), color="black", alpha=0.12, linewidth=0)
        axis.axhline(np.mean(levels), label=published, **PUBLISHED_LINE)
        axis.set(title=tag, xlabel="epoch")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
