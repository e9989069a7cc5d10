"""plot.py: what the figure shows is what history.csv holds, and a bad folder is told in a line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_tables import study_lines, write_study

import plot
from figures import point_labels, study_figures
from tables import read_study

TAGS = [
    "training/Factorization Loss",
    "training/MSE",
    "training/Joint Loss",
    "eval/Mean Reciprocal Rank",
    "eval/MSE",
]
HEADER = "epoch,factorization_loss,regression_loss,joint_loss,mrr,mse,train_seconds,eval_seconds"
ROWS = [
    "0,0.25,3.5,0.2825,0.05,0.99,0.4,0.1",
    "1,0.2,1.25,0.2105,,,0.4,0.0",
    "2,0.19,0.875,0.196875,,,0.4,0.0",
    "3,0.15,0.75,0.156,0.0625,0.875,0.4,0.1",
]
DRAWN = {  # the five curves of ROWS, written out by hand
    "training/Factorization Loss": ([0, 1, 2, 3], [0.25, 0.2, 0.19, 0.15]),
    "training/MSE": ([0, 1, 2, 3], [3.5, 1.25, 0.875, 0.75]),
    "training/Joint Loss": ([0, 1, 2, 3], [0.2825, 0.2105, 0.196875, 0.156]),
    "eval/Mean Reciprocal Rank": ([0, 3], [0.05, 0.0625]),
    "eval/MSE": ([0, 3], [0.99, 0.875]),
}
CONFIG = {
    "seed": 0,
    "shared_dims": 32,
    "embedding_dim": 32,
    "lambda_f": 0.99,
    "lambda_r": 0.01,
    "batch_size": 256,
}


def write_run(folder: Path, rows=ROWS, header=HEADER, **changes) -> Path:
    """A finished run folder by hand, with the files that plot.py reads."""
    folder.mkdir(parents=True)
    config = CONFIG | {"out": str(folder), "versions": {"torch": "2"}} | changes
    config = {"split_seed": config["seed"]} | config
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "history.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "result.json").write_text(json.dumps({"epochs": len(rows), "mrr": 0.0625}))
    return folder


def draw(*folders: Path):
    with plot.report_style():
        return plot.curves_figure([plot.read_run(folder) for folder in folders])


def legend_texts(figure) -> list[str]:
    legends = figure.legends + [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    return [t.get_text().replace("\n", " ") for each in legends for t in each.get_texts()]


def labels_of(tmp_path: Path, *changes: dict) -> list[str]:
    runs = [write_run(tmp_path / f"run{i}", **change) for i, change in enumerate(changes)]
    return legend_texts(draw(*runs))


def snapshot(folder: Path) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_run_is_five_panels_named_as_in_the_report_with_labelled_axes(tmp_path):
    figure = draw(write_run(tmp_path / "run"))
    panels = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in panels] == TAGS
    assert {axis.get_xlabel() for axis in panels} == {"epoch"}
    units = ["no unit", "rating units²", r"\lambda_R", "0 to 1", "rating units²"]
    for axis, unit in zip(panels, units, strict=True):
        assert unit in axis.get_ylabel()
    assert legend_texts(figure) == ["shared, λ 0.99/0.01, seed 0"]


def test_the_lines_are_the_columns_of_history_and_skip_epochs_without_evaluation(tmp_path):
    for axis in draw(write_run(tmp_path / "run")).axes[:5]:
        (line,) = axis.lines
        epochs, values = DRAWN[axis.get_title()]
        assert list(line.get_xdata()) == epochs
        assert list(line.get_ydata()) == values


def test_a_diverged_run_is_drawn_as_far_as_it_has_values(tmp_path):
    rows = [ROWS[0], "1,nan,nan,inf,nan,nan,0.4,0.1"]
    for axis in draw(write_run(tmp_path / "run", rows=rows)).axes[:5]:
        assert list(axis.lines[0].get_xdata()) == [0]


def test_a_single_epoch_is_visible(tmp_path):
    for axis in draw(write_run(tmp_path / "run", rows=ROWS[:1])).axes[:5]:
        assert axis.lines[0].get_marker() == "o"


def test_runs_are_overlaid_in_order_and_never_look_alike(tmp_path):
    rows = [f"0,{seed / 10},3,1,0.1,1,0,0" for seed in range(20)]
    runs = [write_run(tmp_path / f"{i}", rows=[row], seed=i) for i, row in enumerate(rows)]
    figure = draw(*runs)
    assert legend_texts(figure) == [f"seed {seed}" for seed in range(20)]
    for axis in figure.axes[:5]:
        assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 20
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [s / 10 for s in range(20)]
    entries = figure.legends[0].get_lines()
    for entry, line in zip(entries, figure.axes[0].lines, strict=True):
        assert (entry.get_color(), entry.get_linestyle()) == (
            line.get_color(),
            line.get_linestyle(),
        )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("runs", [2, 3, 20])
def test_however_much_runs_differ_all_labels_stand_inside_the_figure(tmp_path, runs):
    many = {f"some_{name}_setting": 1 for name in "abcdefghijklmnopqrstuvwxyz"}
    folders = [write_run(tmp_path / "plain")]
    folders += [write_run(tmp_path / f"{k}", seed=k, **many) for k in range(1, runs)]
    figure = draw(*folders)
    with plot.report_style():
        FigureCanvasAgg(figure).draw()
    legends = figure.legends + [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    for text in legends[0].get_texts():
        box = text.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0
    for panel in figure.axes[:5]:
        assert panel.get_window_extent().height > 100


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}, {"shared_dims": 0}], ["shared", "separate"]),
        ([{}, {"shared_dims": 8}], ["shared", "8 of 32 dims shared"]),
        (
            [{}, {"shared_dims": 8, "ranking_dim": 16, "rating_dim": 16}],
            ["shared", "8 of 16 dims shared, ranking dim 16, rating dim 16"],
        ),
        ([{}, {"lambda_f": 0.5, "lambda_r": 0.5}], ["λ 0.99/0.01", "λ 0.5/0.5"]),
        ([{"seed": 3}, {"seed": 4}], ["seed 3", "seed 4"]),
        ([{"split_seed": 7}, {"seed": 0}], ["split seed 7", "run1"]),
        (
            [{}, {"batch_size": 512, "seed": 1}],
            ["batch size 256, seed 0", "batch size 512, seed 1"],
        ),
        ([{}, {}], ["run0", "run1"]),
        ([{}, {}, {"seed": 1}], ["seed 0 (run0)", "seed 0 (run1)", "seed 1"]),
        ([{"note": "$a$"}, {"note": "b_$"}], ["note $a$", "note b_$"]),
    ],
)
def test_labels_tell_only_what_differs_and_each_run_apart(tmp_path, changes, labels):
    assert labels_of(tmp_path, *changes) == labels


def test_a_stack_stands_for_its_runs_in_natural_order_and_holds_the_figure(tmp_path, capsys):
    for seed in (10, 9, 2):
        write_run(tmp_path / "stack" / f"seed{seed}", seed=seed)
    names = [folder.name for folder in plot.find_runs(tmp_path / "stack")]
    assert names == ["seed2", "seed9", "seed10"]
    plot.main([str(tmp_path / "stack"), str(tmp_path / "stack" / "seed9")])
    paths = [tmp_path / "stack" / "curves.png", tmp_path / "stack" / "curves.svg"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    assert [path.read_bytes()[:5] for path in paths] == [b"\x89PNG\r", b"<?xml"]


def test_two_processes_write_the_same_svg_and_load_nothing_that_trains(tmp_path):
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", seed=1)
    before = snapshot(tmp_path)
    plot.main([str(run), str(other), "--out", str(tmp_path / "a")])
    script = "import sys, plot; plot.main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", script, str(run), str(other), "--out", str(tmp_path / "b/c")]
    root = Path(plot.__file__).parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert not {"torch", "train", "models", "multitask"} & set(done.stdout.split())
    assert (tmp_path / "a/curves.svg").read_bytes() == (tmp_path / "b/c/curves.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a/curves.svg").read_bytes()
    new = [path.name for path in snapshot(tmp_path) if path not in before]
    assert sorted(new) == sorted(["a", "b", "c"] + 2 * ["curves.png", "curves.svg"])


BAD_RUNS = {  # what is done to a good run folder, and what the error must name
    "no history": (lambda run: (run / "history.csv").unlink(), "history.csv"),
    "no config": (lambda run: (run / "config.json").unlink(), "config.json"),
    "no result": (lambda run: (run / "result.json").unlink(), "result.json"),
    "config no JSON": (lambda run: (run / "config.json").write_text("{,"), "config.json"),
    "config a list": (lambda run: (run / "config.json").write_text("[1]"), "config.json"),
    "unfinished": (lambda run: (run / "result.json").write_text('{"epochs": 9}'), "4 of 9 epochs"),
    "header only": (lambda run: (run / "history.csv").write_text(HEADER), "history.csv"),
    "empty": (lambda run: (run / "history.csv").write_text(""), "history.csv: column epoch"),
    "binary": (lambda run: (run / "history.csv").write_bytes(b"\xff\x00"), "history.csv"),
}
BAD_CELLS = {  # an edit of history.csv, and what the error must name
    "no column": (("mrr,", "rank,"), "history.csv: column mrr is missing"),
    "text": (("0.875,0.4", "abc,0.4"), "history.csv: column mse, row 4: 'abc'"),
    "empty loss": (("2,0.19,0.875", "2,0.19,"), "history.csv: column regression_loss, row 3: ''"),
    "cut row": (("0.15,0.75,0.156,0.0625,0.875,0.4,0.1", "0.15"), "column regression_loss, row 4"),
    "long row": (("0.4,0.1", "0.4,0.1,7"), "history.csv: row 1"),
    "epoch twice": (("\n1,", "\n0,"), "history.csv: column epoch, row 2: '0'"),
}


def refused(capsys, *arguments) -> str:
    """The one line that `plot.py ARGUMENTS` leaves on stderr as it exits with code 2."""
    with pytest.raises(SystemExit) as stopped:
        plot.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert printed.err.startswith("plot.py: error: ")
    assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err


@pytest.mark.parametrize("fault", [*BAD_RUNS, *BAD_CELLS])
def test_a_bad_run_exits_2_with_one_line_that_names_it_and_writes_nothing(tmp_path, capsys, fault):
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    if fault in BAD_RUNS:
        spoil, named = BAD_RUNS[fault]
        spoil(bad)
    else:
        (old, new), named = BAD_CELLS[fault]
        text = (bad / "history.csv").read_text()
        assert old in text
        (bad / "history.csv").write_text(text.replace(old, new))
    if fault == "no history":  # given as a stack, whose unfinished run must not be passed over
        bad = tmp_path
    before = snapshot(tmp_path)
    line = refused(capsys, good, bad, "--out", tmp_path / "out")
    assert named in line and str(tmp_path) in line
    assert snapshot(tmp_path) == before


def test_bad_arguments_exit_2_with_one_line_and_write_nothing(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    for arguments, named in [
        ([], "RUN"),
        ([run, "--ou", tmp_path / "out"], "--ou"),
        ([tmp_path / "gone"], "gone: no such folder"),
        ([run, tmp_path / "file"], "file: no such folder"),
        ([tmp_path / "empty"], "empty: not a run folder"),
        ([run, "--out", tmp_path / "file"], "file: is a file"),
        ([run, "--out", tmp_path / "file" / "below"], "below"),
        ([run, "--study", tmp_path / "study.jsonl"], "either RUN, one or more run folders, or"),
        (["--study", tmp_path / "study.jsonl"], "study.jsonl: no such file"),
        (["--study", tmp_path / "file"], "file: holds no runs"),
        ([tmp_path / "two\nlines"], "two lines"),
    ]:
        assert named in refused(capsys, *arguments)
    assert snapshot(tmp_path) == before


# ---- the study -------------------------------------------------------------------------------


def test_a_study_draws_what_it_has_writes_its_tables_and_fills_the_documents_beside(tmp_path):
    only = ["sharing", "selected"]
    study = write_study(tmp_path / "results/study.jsonl", study_lines([0, 1, 2], only=only))
    page = tmp_path / "STUDY.md"
    page.write_text("<!-- table: sharing --><!-- end --> <!-- n: seeds -->?<!-- end -->")
    plot.main(["--study", str(study)])
    names = {path.name for path in (tmp_path / "results/figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("sharing", "pareto") for kind in ("png", "svg")}
    assert "| 16 of 32 shared, 0.5/0.5 | 3 |" in (tmp_path / "results/tables.md").read_text()
    assert "| 16 of 32 shared, 0.5/0.5 | 3 |" in page.read_text()
    assert page.read_text().endswith("<!-- n: seeds -->3<!-- end -->")
    svg = (tmp_path / "results/figures/pareto.svg").read_bytes()
    before = page.read_text()
    plot.main(["--study", str(study), "--out", str(tmp_path / "elsewhere/again")])
    assert (tmp_path / "elsewhere/again/figures/pareto.svg").read_bytes() == svg
    assert page.read_text() == before


def test_a_broken_document_is_told_before_anything_is_written(tmp_path, capsys):
    study = write_study(tmp_path / "results/study.jsonl", study_lines([0], only=["report"]))
    (tmp_path / "README.md").write_text("<!-- n: a -->1 <!-- n: b -->2<!-- end -->")
    before = snapshot(tmp_path)
    assert "README.md: the block a has no" in refused(capsys, "--study", study)
    assert snapshot(tmp_path) == before


def test_neighbours_on_the_dial_that_coincide_share_a_label():
    points = np.array([[0.057, 0.860], [0.058, 0.861], [0.09, 0.861], [0.12, 0.93]])
    labels = point_labels(points, [0.01, 0.5, 0.909, 0.99], (0.003, 0.02))
    assert {name: list(at) for name, at in labels.items()} == {
        "0.01 to 0.5": [0.057, 0.860],
        "0.91": [0.09, 0.861],
        "0.99": [0.12, 0.93],
    }


def test_the_studys_figures_show_its_lines(tmp_path):
    lines = study_lines()
    faults = dict(experiment="faults", fault="all pairs", seed=0, curves=lines[0]["curves"])
    frame = read_study(write_study(tmp_path / "study.jsonl", [*lines, faults]))
    with plot.report_style():
        drawn = study_figures(frame)
    assert list(drawn) == ["report", "sharing", "weights", "pareto", "gradients", "faults"]
    mrr = drawn["report"].axes[3]  # shared, 0.99/0.01
    curves = [line["curves"]["mrr"] for line in lines[:4]]
    assert list(mrr.lines[0].get_ydata()) == pytest.approx(np.mean(curves, 0))
    assert list(mrr.lines[1].get_ydata()) == [0.046, 0.046]
    at_half = [line for line in lines if line["experiment"] in ("selected", "sharing")]
    means = [
        sum(line["mse"] for line in at_half if (line["shared_dims"], line["lambda_f"]) == (K, 0.5))
        for K in (0, 8, 16, 24, 32)
    ]
    mse = [line for line in drawn["sharing"].axes[1].lines if len(line.get_xdata()) == 5]
    assert any(list(line.get_ydata()) == pytest.approx([m / 4 for m in means]) for line in mse)
    assert len(drawn["faults"].axes) == 4
    one, own = drawn["pareto"].axes
    dial = [line for line in lines if line.get("shared_dims") == 32 and line.get("own_mrr")]
    best = np.mean([line["own_mse"] for line in dial if line["lambda_f"] == 0.01])
    assert any(np.isclose(line.get_xdata(), best).any() for line in own.lines)
    assert not any(np.isclose(line.get_xdata(), best).any() for line in one.lines)
    with plot.report_style():
        assert list(study_figures(frame[frame.experiment == "baselines"])) == []


def parts_of(svg: str) -> tuple[str, np.ndarray]:
    """A figure's text without ids and numbers, and its numbers: equal but for the last digits."""
    svg = re.sub(r'id="[^"]*"|#[\w.-]+', "", svg)
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.sub(number, "0", svg), np.array(re.findall(number, svg), float)


def test_the_figures_committed_are_those_that_the_results_draw(tmp_path):
    results = Path(__file__).parents[1] / "results"
    if not (results / "study.jsonl").is_file():
        pytest.skip("results/study.jsonl isn't there: python -m experiments.study writes it")
    with plot.report_style():
        drawn = plot.draw_study(read_study(results / "study.jsonl"), tmp_path, [])
    names = [path.name for path in drawn if path.suffix == ".svg"]
    assert len(names) == 6
    for name in names:
        pair = [(folder / "figures" / name).read_text() for folder in (tmp_path, results)]
        (shape, numbers), (kept_shape, kept_numbers) = map(parts_of, pair)
        assert shape == kept_shape, name
        assert np.allclose(numbers, kept_numbers, atol=0.01), name
