"""The study's figures, drawn from its lines (numbers.read_study).

`study_figures(frame)` gives every figure that the lines suffice for, by name; report.py saves them.
Bands are mean ± sd over seeds, bars are bootstrap 95% intervals of the mean.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
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
    VARIANTS,
    WIDTH,
    setting,
)
from study.numbers import DIAL_DIMS, arm, curves_of
from study.stats import bootstrap_interval, pareto_front

SHARING_STYLES = {
    K: {"color": colour, "marker": marker}
    for K, colour, marker in zip(SHARINGS, COLOURS, "o^s", strict=False)
}
WEIGHT_COLOURS = {0.99: COLOURS[0], 0.5: COLOURS[1]}
LABEL_PLACES = {WIDTH: ((6, -11), "left"), 16: ((-6, 6), "right"), 0: ((6, 6), "left")}
AXES = {"mrr": "MRR (test)", "mse": "MSE (test, rating units²)"}
TITLES = {column: tag for column, tag, _ in plot.curves() if column in CURVES}
MUTED = "#777777"
PUBLISHED_LINE = {"color": "#000000", "linestyle": "--", "linewidth": 1, "zorder": 2.2}
BASELINE_STYLES = {"popularity": ":", "biases": (0, (5, 2, 1, 2))}  # the global mean is far off


def study_figures(frame: pd.DataFrame) -> dict[str, Figure]:
    """The figures by name, without those whose runs aren't there yet."""
    draws = {"report": report_figure, "sharing": sharing_figure, "weights": weights_figure}
    draws |= {"pareto": pareto_figure, "gradients": gradients_figure, "faults": faults_figure}
    figures = {name: draw(frame) for name, draw in draws.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


# ---- parts -----------------------------------------------------------------------------------


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
        low, high, colour = mean - spread, mean + spread, line.get_color()
        axis.fill_between(epochs, low, high, color=colour, alpha=0.25, linewidth=0)


def published_level(axis, levels: list[float]) -> None:
    """The mean of published last values, dashed, and their range in grey."""
    axis.axhspan(min(levels), max(levels), color="black", alpha=0.12, linewidth=0)
    axis.axhline(np.mean(levels), **PUBLISHED_LINE)


def means(axis, places, values: list[pd.Series], **style) -> None:
    """The mean of each arm's values at its place, with its bar; an arm without any is left out."""
    there = [k for k, each in enumerate(values) if each.notna().any()]
    if there:
        values = [values[k].dropna().to_numpy(float) for k in there]
        centres = np.array([each.mean() for each in values])
        bounds = np.array([bootstrap_interval(each) for each in values])  # (arms, 2)
        bars = np.nan_to_num(abs(bounds - centres[:, None])).T
        axis.errorbar(np.asarray(places)[there], centres, bars, **style)


def baseline_lines(axis, frame: pd.DataFrame, metric: str, across: bool = True) -> None:
    """The levels of the baselines that have the metric, under the selected protocol."""
    for method, linestyle in BASELINE_STYLES.items():
        lines = frame[(frame.method == method) & (frame.protocol == "selected")]
        if BASELINES[method] == metric and len(lines):
            draw = axis.axhline if across else axis.axvline
            label = f"{method} ({metric.upper()})"
            draw(lines[metric].mean(), color=MUTED, ls=linestyle, lw=1.1, zorder=1.5, label=label)


def legend_below(figure: Figure, panels, columns: int, title: str | None = None) -> None:
    """A legend of all panels below them: a label once, the baselines last."""
    both = [axis.get_legend_handles_labels() for axis in panels]
    entries = {label: handle for pair in both for handle, label in zip(*pair, strict=True)}
    labels = sorted(entries, key=lambda label: label.split(" (")[0] in BASELINES)
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns)


# ---- the figures -----------------------------------------------------------------------------


def report_figure(frame: pd.DataFrame) -> Figure | None:
    """The report's five curves for each setting, and the published run's last value, dashed."""
    arms = {where: arm(frame, "report", *where) for where in SETTINGS}
    arms = {where: runs for where, runs in arms.items() if len(runs)}
    if not arms:
        return None
    figure, panels = grid(len(arms), 5, (13, 2.3 * len(arms) + 0.4), sharex=True, sharey="col")
    for row, (where, runs) in zip(panels, arms.items(), strict=True):
        for axis, column in zip(row, TITLES, strict=True):
            band(axis, curves_of(runs, column), color=WEIGHT_COLOURS[where[1]])
            if where in PUBLISHED:
                published_level(axis, [PUBLISHED[where][column]])
        if where not in PUBLISHED:
            told = {"transform": row[0].transAxes, "ha": "right", "va": "top", "color": MUTED}
            row[0].text(0.97, 0.95, "not in the published report", **told)
        row[0].set_ylabel(f"{setting(*where)}\n{len(runs)} seeds", fontsize=10)
    name_curves(panels, TITLES)
    entries = [panels[0, 0].lines[0], panels[0, 0].plot([], [], **PUBLISHED_LINE)[0]]
    labels = ["correct code, mean ± sd over seeds", "published run (a single one), last epoch"]
    figure.legend(entries, labels, loc="outside lower center", ncols=2)
    return figure


def name_curves(panels, columns) -> None:
    for axis, column in zip(panels[0], columns, strict=True):
        axis.set_title(TITLES[column])
    for axis in panels[-1]:
        axis.set_xlabel("epoch")


def faults_figure(frame: pd.DataFrame) -> Figure | None:
    """A fault a row, beside the same without it, and the levels of the three published runs."""
    runs = {
        fault: frame[(frame.experiment == "faults") & (frame.fault == fault)] for fault in VARIANTS
    }
    faults = [fault for fault in VARIANTS if fault != "none" and len(runs[fault])]
    if not faults:
        return None
    columns = [column for column in TITLES if column != "joint_loss"]
    shape = {"sharex": True, "sharey": "col"}
    figure, panels = grid(len(faults), 4, (12, 1.9 * len(faults) + 0.5), **shape)
    for row, fault, colour in zip(panels, faults, COLOURS[1:], strict=False):
        for axis, column in zip(row, columns, strict=True):
            band(axis, curves_of(runs["none"], column), color=MUTED, linewidth=1, label="no fault")
            band(axis, curves_of(runs[fault], column), color=colour)
            published_level(axis, [levels[column] for levels in PUBLISHED.values()])
        row[0].set_ylabel(fault, fontsize=10)
    name_curves(panels, columns)
    panels[0, 0].plot([], [], label="published runs, last epoch: mean and range", **PUBLISHED_LINE)
    legend_below(figure, panels[0, :1], 2)
    return figure


def sharing_figure(frame: pd.DataFrame) -> Figure | None:
    """MRR and MSE against the number of shared dimensions, and the capacity control."""
    if not len(arm(frame, "dial", WIDTH, 0.5)) + len(arm(frame, "dial", 0, 0.5)):
        return None
    figure, panels = grid(1, 2, (9, 3.6))
    for axis, metric in zip(panels[0], AXES, strict=True):
        for shift, (f, colour) in zip((-0.35, 0.35), WEIGHT_COLOURS.items(), strict=True):
            weights, style = f"{f:g}/{1 - f:g}", {"color": colour, "capsize": 2.5}
            dial = [arm(frame, "dial", K, f)[metric] for K in DIAL_DIMS]
            means(axis, np.add(DIAL_DIMS, shift), dial, marker="o", label=f"λ {weights}", **style)
            half = [arm(frame, "capacity", 0, f)[metric]]
            style |= {"label": f"separate, {WIDTH // 2} dimensions each, {weights}"}
            means(axis, [shift - 2], half, marker="s", mfc="white", linestyle="", **style)
        axis.set(xlabel=f"shared dimensions K of {WIDTH}", ylabel=AXES[metric])
        axis.set_xticks(DIAL_DIMS, ["0\nseparate", "8", "16", "24", "32\nshared"])
        baseline_lines(axis, frame, metric)
    legend_below(figure, panels[0], 3)
    return figure


def weights_figure(frame: pd.DataFrame) -> Figure | None:
    """MRR and MSE against λ_F : λ_R, one line a sharing; a task trained alone stands apart."""
    inner = LAMBDAS[1:-1]
    if not any(len(arm(frame, "weights", K, inner[1])) for K in SHARINGS):
        return None

    def place(f):
        return np.log10(np.divide(f, np.subtract(1, f)))

    figure, panels = grid(1, 2, (9.5, 3.8))
    for axis, metric, alone, apart, task in zip(
        panels[0], METRICS, (1.0, 0.0), (2.75, -2.75), ("ranking", "rating"), strict=True
    ):
        for k, K in enumerate(SHARINGS):
            style, shift = SHARING_STYLES[K] | {"capsize": 2}, k - 1
            dial = [arm(frame, "dial", K, f)[metric] for f in inner]
            means(axis, place(inner) + 0.04 * shift, dial, label=setting(K), **style)
            own = [arm(frame, "dial", K, alone)[f"own_{metric}"]]
            means(axis, [apart + 0.12 * shift], own, linestyle="", **style)
        axis.axvline(np.sign(apart) * 2.35, color=MUTED, linewidth=0.8, linestyle=":")
        ticks = [0.01, 0.091, 0.5, 0.909, 0.99]
        labels = [*(f"{f:.2g}/{1 - f:.2g}" for f in ticks), f"{task}\nalone"]
        axis.set_xticks([*place(ticks), apart], labels, fontsize=8)
        axis.set(xlabel=r"$\lambda_F/\lambda_R$ (log of the ratio)", ylabel=AXES[metric])
        baseline_lines(axis, frame, metric)
    legend_below(figure, panels[0], 5)
    return figure


def pareto_figure(frame: pd.DataFrame) -> Figure | None:
    """MRR against MSE of every weight, crosses of one sd, and each sharing's front in steps.

    On the left one epoch serves both tasks, on the right each task has the epoch best for it.
    Labels are those of a front's points; where all is shared, of the others too.
    """
    figure, panels = grid(1, 2, (12, 5.4))
    arms = {K: {f: arm(frame, "dial", K, f) for f in LAMBDAS[1:-1]} for K in SHARINGS}
    arms = {K: {f: runs for f, runs in dial.items() if len(runs)} for K, dial in arms.items()}
    arms = {K: dial for K, dial in arms.items() if dial}
    if not arms:
        return None
    for axis, columns, title in zip(
        panels[0],
        (["mrr", "mse"], ["own_mrr", "own_mse"]),
        ("one epoch for both tasks", "each task at its own epoch"),
        strict=True,
    ):
        points = {
            K: np.array([runs[columns].mean() for runs in dial.values()])
            for K, dial in arms.items()
        }
        for K, dial in arms.items():
            sds = np.nan_to_num([runs[columns].std() for runs in dial.values()])
            style, at = SHARING_STYLES[K] | {"markersize": 5}, points[K]
            bars = style | {"linestyle": "", "elinewidth": 0.6, "alpha": 0.35}
            axis.errorbar(at[:, 1], at[:, 0], sds[:, 0], sds[:, 1], **bars)
            front = at[pareto_front(at)]
            front = front[np.argsort(front[:, 1])]
            label = f"{setting(K)}, with its front"
            axis.step(front[:, 1], front[:, 0], where="post", label=label, **style)
        baseline_lines(axis, frame, "mrr")
        baseline_lines(axis, frame, "mse", across=False)
        axis.margins(x=0.1)
        near = 0.04 * np.ptp(axis.get_ylim()), 0.06 * np.ptp(axis.get_xlim())
        for K, at in points.items():
            shown = np.full(len(at), K == WIDTH) | pareto_front(at)
            offset, side = LABEL_PLACES[K]
            style = {"color": SHARING_STYLES[K]["color"], "ha": side, "fontsize": 8.5, "zorder": 5}
            style["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
            for label, (mrr, mse) in point_labels(at, list(arms[K]), near, shown).items():
                axis.annotate(label, (mse, mrr), offset, textcoords="offset points", **style)
        axis.set(title=title, xlabel=f"{AXES['mse']}: better to the left")
        axis.set_ylabel(f"{AXES['mrr']}: better upwards")
    legend_below(figure, panels[0], 5, r"numbers are $\lambda_F = 1 - \lambda_R$")
    return figure


def point_labels(points: np.ndarray, lambdas: list[float], near, shown) -> dict[str, np.ndarray]:
    """λ_F -> point; neighbours within `near` (MRR, MSE) have one label, like "0.01 to 0.5".

    A label stands where one of its points is `shown`, at the first such.
    """
    groups = []
    for k, point in enumerate(points):
        if groups and (abs(point - points[groups[-1][0]]) < np.asarray(near)).all():
            groups[-1].append(k)
        else:
            groups.append([k])
    labels = {}
    for group in groups:
        if visible := [k for k in group if shown[k]]:
            first, last = (f"{lambdas[k]:.2g}" for k in (group[0], group[-1]))
            labels[first if first == last else f"{first} to {last}"] = points[visible[0]]
    return labels


def gradients_figure(frame: pd.DataFrame) -> Figure | None:
    """Cosine and norm ratio of the tasks' gradients, a table a row; one step an epoch."""
    arms = {where: arm(frame, "report", *where) for where in SETTINGS}
    if not any(curves_of(runs, "users_cosine").size for runs in arms.values()):
        return None
    figure, panels = grid(2, 2, (10, 5.8), sharex=True)
    for (cosines, ratios), table in zip(panels, ("users", "items"), strict=True):
        for where, runs in arms.items():
            style = {"color": WEIGHT_COLOURS[where[1]], "linestyle": "-" if where[0] else "--"}
            cosine, label = curves_of(runs, f"{table}_cosine"), setting(*where)
            band(ratios, curves_of(runs, f"{table}_norm_ratio"), label=label, **style)
            if where[0] and np.isfinite(cosine).any():
                conflict = (cosine[np.isfinite(cosine)] < 0).mean()
                label = f"{label}: {conflict:.0%} of steps in conflict"
                band(cosines, cosine, label=label, **style)
        cosines.axhline(0, color="black", linewidth=0.8)
        cosines.set(title=f"{table}: cosine of the tasks' gradients", ylabel="cosine")
        title = f"{table}: norm of the gradients, ranking over rating"
        ratios.set(title=title, ylabel="ratio", yscale="log")
        ratios.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ratios.yaxis.set_major_formatter("{x:g}")
        ratios.yaxis.set_minor_formatter(NullFormatter())
        cosines.legend(loc="best")
        ratios.legend(loc="best")
    for axis in panels[-1]:
        axis.set_xlabel("epoch")
    return figure
