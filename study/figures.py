"""The study's figures, drawn from its arms (numbers.study_arms).

Bands are mean ± sd over seeds, bars are bootstrap 95% intervals of the mean.
"""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

import plot
from plot import COLOURS
from study import design
from study.design import BASELINES, DIAL_DIMS, PUBLISHED, SETTINGS, WEIGHED, WIDTH, label
from study.numbers import SIDES, curves_of
from study.stats import bootstrap_interval, paired_difference, pareto_front

Arms = dict[str, pd.DataFrame]
INNER = design.LAMBDAS[1:-1]
STYLES = {
    structure: {"color": colour, "marker": marker}
    for structure, colour, marker in zip(WEIGHED, COLOURS, "o^s", strict=False)
}
LABEL_PLACES = dict(shared=((6, -14), "left"), k16=((-6, 6), "right"), separate=((-2, 22), "right"))
WEIGHT_COLOURS = {"0.99": COLOURS[0], "0.5": COLOURS[1]}
AXES = {"mrr": "MRR (test)", "mse": "MSE (test, rating units²)"}
TITLES = {column: tag for column, tag, _ in plot.curves() if column in design.CURVES}
MUTED = "#777777"
PUBLISHED_LINE = {"color": "#000000", "linestyle": "--", "linewidth": 1, "zorder": 2.2}
BASELINE_STYLES = {"mrr": ("popularity", ":"), "mse": ("biases", (0, (5, 2, 1, 2)))}


def study_figures(arms: Arms) -> dict[str, Figure]:
    """The figures by name, without those whose experiment isn't there yet."""
    needs = {report_figure: "report", sharing_figure: "selected", weights_figure: "weights"}
    needs |= {pareto_figure: "selected", gradients_figure: "report", faults_figure: "faults"}
    needs |= {weighting_figure: "methods", related_figure: next(iter(design.PLANTED))}
    there = {name for runs in arms.values() if "experiment" in runs for name in runs.experiment}
    draws = [draw for draw, experiment in needs.items() if experiment in there]
    return {draw.__name__.removesuffix("_figure"): draw(arms) for draw in draws}


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


def curve_rows(rows: list[tuple], columns: list[str], size, note: str) -> Figure:
    """A row of curves for each (label, [(runs, style)], published levels, whose range is grey)."""
    figure, panels = grid(len(rows), len(columns), size, sharex=True, sharey="col")
    for row, (name, bands, published) in zip(panels, rows, strict=True):
        for axis, column in zip(row, columns, strict=True):
            for runs, style in bands:
                band(axis, curves_of(runs, column), **style)
            if levels := [each[column] for each in published]:
                axis.axhspan(min(levels), max(levels), color="black", alpha=0.12, linewidth=0)
                axis.axhline(np.mean(levels), **PUBLISHED_LINE)
        if not published:
            told = {"transform": row[0].transAxes, "ha": "right", "va": "top", "color": MUTED}
            row[0].text(0.97, 0.95, "not in the published report", **told)
        row[0].set_ylabel(name, fontsize=10)
    for axis, last, column in zip(panels[0], panels[-1], columns, strict=True):
        axis.set_title(TITLES[column])
        last.set_xlabel("epoch")
    panels[0, 0].plot([], [], label=note, **PUBLISHED_LINE)
    legend_below(figure, panels[0, :1], 2)
    return figure


def means(axis, places, values: list[pd.Series], **style) -> None:
    """The mean of each arm's values at its place, with its bar; an arm without any is left out."""
    values = {x: each.dropna().to_numpy(float) for x, each in zip(places, values, strict=True)}
    values = {x: each for x, each in values.items() if len(each)}
    if values:
        centres = np.array([each.mean() for each in values.values()])
        bounds = np.array([bootstrap_interval(each) for each in values.values()])  # (arms, 2)
        bars = np.nan_to_num(abs(bounds - centres[:, None])).T
        axis.errorbar(list(values), centres, bars, **style)


def baseline_lines(axis, arms: Arms, metric: str, across: bool = True) -> None:
    """The level of the baseline that has the metric, under the selected protocol."""
    method, linestyle = BASELINE_STYLES[metric]
    level = arms[f"baselines.selected.{method}"][metric].mean()
    draw = axis.axhline if across else axis.axvline
    style = {"color": MUTED, "linestyle": linestyle, "linewidth": 1.1, "zorder": 1.5}
    if np.isfinite(level):
        draw(level, label=f"{method} ({metric.upper()})", **style)


def legend_below(figure: Figure, panels, columns: int, title: str | None = None) -> None:
    """A legend of all panels below them: a label once, the baselines last."""
    both = [axis.get_legend_handles_labels() for axis in panels]
    entries = {name: handle for pair in both for handle, name in zip(*pair, strict=True)}
    names = sorted(entries, key=lambda name: name.split(" (")[0] in BASELINES)
    handles = [entries[name] for name in names]
    figure.legend(handles, names, title=title, loc="outside lower center", ncols=columns)


def report_figure(arms: Arms) -> Figure:
    """The report's five curves for each setting, and the published run's last value, dashed."""
    rows = []
    for setting in SETTINGS:
        runs, colour = arms[f"report.{setting}"], WEIGHT_COLOURS[setting.split(".", 1)[1]]
        style = {"color": colour, "label": "correct code, mean ± sd over seeds"}
        published = [PUBLISHED[setting]] if setting in PUBLISHED else []
        rows.append((f"{label(setting)}\n{len(runs)} seeds", [(runs, style)], published))
    return curve_rows(rows, list(TITLES), (13, 9.6), "published run (a single one), last epoch")


def faults_figure(arms: Arms) -> Figure:
    """A fault a row, beside the same without it, and the levels of the three published runs."""
    none = arms["faults.none"], {"color": MUTED, "linewidth": 1, "label": "no fault"}
    rows = []
    for fault, colour in zip(list(design.VARIANTS)[1:], COLOURS[1:], strict=False):
        runs = arms[f"faults.{fault}".replace(" ", "_")]
        rows.append((fault, [none, (runs, {"color": colour})], PUBLISHED.values()))
    columns = [column for column in TITLES if column != "joint_loss"]
    return curve_rows(rows, columns, (12, 8.1), "published runs, last epoch: mean and range")


def sharing_figure(arms: Arms) -> Figure:
    """MRR and MSE against the number of shared dimensions, and the capacity control."""
    figure, panels = grid(1, 2, (9, 3.6))
    dial = ["separate", *(f"k{K}" for K in DIAL_DIMS[1:-1]), "shared"]
    for axis, metric in zip(panels[0], AXES, strict=True):
        for shift, (f, colour) in zip((-0.35, 0.35), WEIGHT_COLOURS.items(), strict=True):
            weights, style = f"{f}/{1 - float(f):g}", {"color": colour, "capsize": 2.5}
            values = [arms[f"selected.{structure}.{f}"][metric] for structure in dial]
            means(axis, np.add(DIAL_DIMS, shift), values, marker="o", label=f"λ {weights}", **style)
            half = [arms[f"selected.half.{f}"][metric]]
            style |= {"label": f"separate, {WIDTH // 2} dimensions each, {weights}"}
            means(axis, [shift - 2], half, marker="s", mfc="white", linestyle="", **style)
        axis.set(xlabel=f"shared dimensions K of {WIDTH}", ylabel=AXES[metric])
        axis.set_xticks(DIAL_DIMS, ["0\nseparate", "8", "16", "24", "32\nshared"])
        baseline_lines(axis, arms, metric)
    legend_below(figure, panels[0], 3)
    return figure


def weights_figure(arms: Arms) -> Figure:
    """MRR and MSE against λ_F : λ_R, one line a structure; a task trained alone stands apart."""

    def place(f):
        return np.log10(np.divide(f, np.subtract(1, f)))

    figure, panels = grid(1, 2, (9.5, 3.8))
    apart = {"mrr": (2.75, "ranking"), "mse": (-2.75, "rating")}
    for axis, (metric, (alone, task)) in zip(panels[0], apart.items(), strict=True):
        for k, structure in enumerate(WEIGHED):
            style, shift = STYLES[structure] | {"capsize": 2}, k - 1
            dial = [arms[f"selected.{structure}.{f:g}"][metric] for f in INNER]
            means(axis, place(INNER) + 0.04 * shift, dial, label=label(structure), **style)
            own = [arms[f"alone.{structure}"][metric]]
            means(axis, [alone + 0.12 * shift], own, linestyle="", **style)
        axis.axvline(np.sign(alone) * 2.35, color=MUTED, linewidth=0.8, linestyle=":")
        ticks = [0.01, 0.091, 0.5, 0.909, 0.99]
        names = [*(f"{f:.2g}/{1 - f:.2g}" for f in ticks), f"{task}\nalone"]
        axis.set_xticks([*place(ticks), alone], names, fontsize=8)
        axis.set(xlabel=r"$\lambda_F/\lambda_R$ (log of the ratio)", ylabel=AXES[metric])
        baseline_lines(axis, arms, metric)
    legend_below(figure, panels[0], 5)
    return figure


def pareto_figure(arms: Arms) -> Figure:
    """MRR against MSE of every weight, crosses of one sd, and each structure's front in steps.

    On the left one epoch serves both tasks, on the right each task has the epoch best for it.
    Labels are those of a front's points; where all is shared, of the others too.
    """
    figure, panels = grid(1, 2, (12, 5.4))
    titles = {"": "one epoch for both tasks", "own_": "each task at its own epoch"}
    for axis, (own, title) in zip(panels[0], titles.items(), strict=True):
        columns, points = [f"{own}mrr", f"{own}mse"], {}
        for structure in WEIGHED:
            runs = {f: arms[f"selected.{structure}.{f:g}"][columns] for f in INNER}
            lambdas = [f for f in INNER if len(runs[f])]
            at = np.array([runs[f].mean() for f in lambdas]).reshape(-1, 2)
            sds = np.nan_to_num([runs[f].std() for f in lambdas]).reshape(-1, 2)
            points[structure], style = (lambdas, at), STYLES[structure] | {"markersize": 5}
            bars = style | {"linestyle": "", "elinewidth": 0.6, "alpha": 0.35}
            axis.errorbar(at[:, 1], at[:, 0], sds[:, 0], sds[:, 1], **bars)
            front = at[pareto_front(at)]
            front = front[np.argsort(front[:, 1])]
            style["label"] = f"{label(structure)}, with its front"
            axis.step(front[:, 1], front[:, 0], where="post", **style)
        baseline_lines(axis, arms, "mrr")
        baseline_lines(axis, arms, "mse", across=False)
        axis.margins(0.1)
        near = 0.04 * np.ptp(axis.get_ylim()), 0.06 * np.ptp(axis.get_xlim())
        for structure, (lambdas, at) in points.items():
            shown = np.full(len(at), structure == "shared") | pareto_front(at)
            offset, side = LABEL_PLACES[structure]
            style = {"color": STYLES[structure]["color"], "ha": side, "fontsize": 8.5, "zorder": 5}
            style["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
            for text, (mrr, mse) in point_labels(at, lambdas, near, shown).items():
                axis.annotate(text, (mse, mrr), offset, textcoords="offset points", **style)
        axis.set(title=title, xlabel=f"{AXES['mse']}: better to the left")
        axis.set_ylabel(f"{AXES['mrr']}: better upwards")
    legend_below(figure, panels[0], 5, r"numbers are $\lambda_F = 1 - \lambda_R$")
    return figure


def point_labels(points: np.ndarray, lambdas: list[float], near, shown) -> dict[str, np.ndarray]:
    """λ_F -> point; neighbours within `near` (MRR, MSE) have one label, like "0.01 to 0.5".

    A label stands where one of its points is `shown`, at the first such.
    """
    starts, labels = [], {}  # of groups of neighbours
    for k, point in enumerate(points):
        if not starts or (abs(point - points[starts[-1]]) >= np.asarray(near)).any():
            starts.append(k)
    for first, end in zip(starts, [*starts[1:], len(points)], strict=False):
        if visible := [k for k in range(first, end) if shown[k]]:
            several = f" to {lambdas[end - 1]:.2g}" if end - first > 1 else ""
            labels[f"{lambdas[first]:.2g}{several}"] = points[visible[0]]
    return labels


def gradients_figure(arms: Arms) -> Figure:
    """Cosine and norm ratio of the tasks' gradients, a table a row; one step an epoch."""
    figure, panels = grid(2, 2, (10, 5.8), sharex=True)
    for (cosines, ratios), side in zip(panels, SIDES, strict=True):
        for setting in SETTINGS:
            runs, (structure, f) = arms[f"report.{setting}"], setting.split(".", 1)
            line = "-" if structure == "shared" else "--"
            style = {"color": WEIGHT_COLOURS[f], "linestyle": line}
            band(ratios, curves_of(runs, f"{side}_norm_ratio"), label=label(setting), **style)
            if structure == "shared":
                conflict = f"{runs[f'{side}_conflict'].mean():.0f}% of steps in conflict"
                style["label"] = f"{label(setting)}: {conflict}"
                band(cosines, curves_of(runs, f"{side}_cosine"), **style)
        cosines.axhline(0, color="black", linewidth=0.8)
        cosines.set(title=f"{side}: cosine of the tasks' gradients", ylabel="cosine")
        ratios.set(title=f"{side}: norm of the gradients, ranking over rating", ylabel="ratio")
        ratios.set_yscale("log")
        ratios.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ratios.yaxis.set_major_formatter("{x:g}")
        ratios.yaxis.set_minor_formatter(NullFormatter())
        for axis in (cosines, ratios):
            axis.legend(loc="best")
            axis.set_xlabel("epoch" if side == "items" else "")
    return figure


def weighting_figure(arms: Arms) -> Figure:
    """Score against the ratio of the weights: the fixed curve of each data set, the methods on it.

    A method's bar across is the range of its ratio over the run (every tenth epoch, mean over
    runs). Last what a method's score gains over its own mean ratio, frozen, and over its own
    weights in another order.
    """
    figure, panels = grid(2, 2, (12, 9))
    methods = [name.replace(":kappa=", "-") for name in design.METHODS]
    colours = dict(zip(methods, colormaps["tab20"].colors, strict=False))
    titles = dict(zip(design.PLACES, (design.DATA, *design.PLACES[1:]), strict=True))
    for axis, (place, title) in zip(panels.flat, titles.items(), strict=False):
        dial = {n.removeprefix(f"{place}.shared."): runs for n, runs in arms.items() if len(runs)}
        dial = {name: runs for name, runs in dial.items() if name[0] in "01"}
        fixed = {runs.ratio.mean(): runs.score for runs in dial.values()}
        fixed = {x: fixed[x] for x in sorted(fixed) if 0 < x < np.inf}
        style = {"color": "black", "marker": "o", "markersize": 4, "capsize": 2, "zorder": 2}
        axis.set_visible(bool(fixed))
        means(axis, fixed, list(fixed.values()), label="fixed ratio", **style)
        probe = arms[f"{place}.shared.{design.PROBES[0]}"].score.mean()
        axis.axhline(probe, color=MUTED, linestyle=":", label=design.PROBES[0])
        for name in methods:
            runs = arms.get(f"{place}.shared.{name}", ())
            if len(runs) and (score := runs.score.mean()):
                paths = curves_of(runs, "weight_f") / curves_of(runs, "weight_r")
                path, at = np.exp(np.log(paths).mean(0)), runs.ratio.mean()
                if path.size:
                    axis.hlines(score, path.min(), path.max(), color=colours[name], lw=1.5)
                at = at if np.isfinite(at) else 1
                axis.plot(at, score, "D", color=colours[name], ms=7, mec="black", label=name)
        axis.set(xscale="log", title=title, xlabel="ratio of the weights, ranking over rating")
        axis.set_ylabel("log MRR − log MSE (test)")
    axis, moving = panels[1, 1], methods[: len(design.MOVING)]
    nothing = arms["selected.chosen.fixed"][:0]
    for shift, control, marker in ((-0.12, "frozen", "o"), (0.12, "shuffled", "s")):
        named = [[f"{of}.shared.{name}" for of in ("selected", control)] for name in moving]
        pairs = [[arms.get(name, nothing).score for name in pair] for pair in named]
        gains = [first - second for first, second in pairs]
        style = {"marker": marker, "capsize": 2.5, "label": f"minus its weights, {control}"}
        means(axis, np.arange(len(moving)) + shift, gains, linestyle="", **style)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(moving)), moving, rotation=20, ha="right", fontsize=9)
    axis.set(title=f"what adapting adds, {design.DATA}", ylabel="difference in log MRR − log MSE")
    legend_below(figure, panels.flat, 6)
    return figure


def related_figure(arms: Arms) -> Figure:
    """What sharing gains against how related the tasks are, each task at the epoch best for it."""
    figure, panels = grid(1, 2, (7.5, 3.2))
    for axis, metric in zip(panels[0], ("mrr", "mse"), strict=True):
        for f, colour in WEIGHT_COLOURS.items():
            gains = []
            for data in design.PLANTED:
                shared, separate = (arms[f"{data}.{end}.{f}"] for end in design.ENDS)
                gain = paired_difference(shared[f"own_{metric}"], separate[f"own_{metric}"])
                gains.append(pd.Series(gain))
            means(axis, list(design.PLANTED.values()), gains, color=colour, marker="o", label=f)
        axis.axhline(0, color=MUTED, linewidth=1)
        axis.set_xlabel("relatedness of the tasks, planted")
        axis.set_ylabel(f"shared − separate, {metric.upper()}")
    legend_below(figure, panels[0], 2, "λ_F, λ_R being 1 − λ_F")
    return figure
