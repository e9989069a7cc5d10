"""plot.py: what the figure shows is what history.csv holds, and a bad folder is told in a line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import plot
from evaluation import METRICS, Metric

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
CONFIG = {"seed": 0, "shared_dims": 32, "embedding_dim": 32, "lambda_f": 0.99, "lambda_r": 0.01}
CONFIG |= {"batch_size": 256}


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


def panels_of(figure) -> list:
    return [axis for axis in figure.axes if axis.axison]


def test_a_run_is_five_panels_named_as_in_the_report_with_labelled_axes(tmp_path):
    figure = draw(write_run(tmp_path / "run"))
    assert [axis.get_title() for axis in panels_of(figure)] == list(DRAWN)
    assert {axis.get_xlabel() for axis in panels_of(figure)} == {"epoch"}
    units = ["no unit", "rating units²", r"\lambda_R", "0 to 1", "rating units²"]
    for axis, unit in zip(panels_of(figure), units, strict=True):
        assert unit in axis.get_ylabel()
    assert legend_texts(figure) == ["shared, λ 0.99/0.01, seed 0"]


def test_the_lines_are_the_columns_of_history_and_skip_epochs_without_evaluation(tmp_path):
    for axis in panels_of(draw(write_run(tmp_path / "run"))):
        (line,) = axis.lines
        assert (list(line.get_xdata()), list(line.get_ydata())) == DRAWN[axis.get_title()]


@pytest.mark.parametrize("more", [1, 2, 4])
def test_a_metric_with_a_tag_has_its_panel_and_a_run_older_than_it_is_still_drawn(
    tmp_path, monkeypatch, capsys, more
):
    for k in range(more):
        monkeypatch.setitem(METRICS, f"m{k}", Metric(None, f"eval/M{k}", label=f"m{k} (unit)"))
    monkeypatch.setitem(METRICS, "untagged", Metric(None))
    old = write_run(tmp_path / "old")
    assert [axis.get_title() for axis in panels_of(draw(old))] == list(DRAWN)
    assert "old/history.csv: column m0 is missing" in capsys.readouterr().err
    names = [f"m{k}" for k in range(more)]
    rows = [",".join([row, *(f"{k}.5" for k in range(more))]) for row in ROWS]
    new = write_run(tmp_path / "new", rows, ",".join([HEADER, *names]), seed=1)
    figure = draw(old, new)
    panels = panels_of(figure)
    assert [axis.get_title() for axis in panels[5:]] == [f"eval/M{k}" for k in range(more)]
    for k, axis in enumerate(panels[5:]):
        before, after = axis.lines
        assert axis.get_ylabel() == f"m{k} (unit)" and list(before.get_ydata()) == []
        assert list(after.get_ydata()) == [k + 0.5] * 4
    assert legend_texts(figure) == ["seed 0", "seed 1"]


@pytest.mark.parametrize("row", ["1,nan,nan,inf,nan,nan,0.4,0.1", None])
def test_a_run_is_drawn_as_far_as_it_has_values_and_a_single_epoch_is_visible(tmp_path, row):
    for axis in panels_of(
        draw(write_run(tmp_path / "run", rows=[ROWS[0], *([row] if row else [])]))
    ):
        assert list(axis.lines[0].get_xdata()) == [0] and axis.lines[0].get_marker() == "o"


def test_runs_are_overlaid_in_order_and_never_look_alike(tmp_path):
    rows = [f"0,{seed / 10},3,1,0.1,1,0,0" for seed in range(20)]
    figure = draw(*(write_run(tmp_path / f"{i}", rows=[r], seed=i) for i, r in enumerate(rows)))
    assert legend_texts(figure) == [f"seed {seed}" for seed in range(20)]
    looks = [
        [(line.get_color(), line.get_linestyle()) for line in lines]
        for lines in (figure.legends[0].get_lines(), *(axis.lines for axis in panels_of(figure)))
    ]
    assert len(set(looks[0])) == 20 and all(look == looks[0] for look in looks)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [s / 10 for s in range(20)]


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
    for panel in panels_of(figure):
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


def command(*arguments) -> subprocess.CompletedProcess:
    """plot.py in a process of its own, which prints what it loaded."""
    script = "import sys, plot, atexit; atexit.register(lambda: print(*sys.modules));"
    script += "plot.main(sys.argv[1:])"
    words = [sys.executable, "-c", script, *map(str, arguments)]
    root = Path(plot.__file__).parent
    return subprocess.run(words, capture_output=True, text=True, cwd=root, timeout=60)


def test_two_processes_write_the_same_svg_and_nothing_else(tmp_path):
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", seed=1)
    before = snapshot(tmp_path)
    plot.main([str(run), str(other), "--out", str(tmp_path / "a")])
    done = command(run, other, "--out", tmp_path / "b/c")
    assert (done.returncode, done.stderr) == (0, "")
    assert "train" not in done.stdout.split()
    assert (tmp_path / "a/curves.svg").read_bytes() == (tmp_path / "b/c/curves.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a/curves.svg").read_bytes()
    new = [path.name for path in snapshot(tmp_path) if path not in before]
    assert sorted(new) == sorted(["a", "b", "c"] + 2 * ["curves.png", "curves.svg"])


def test_a_wrong_path_is_told_before_matplotlib_and_evaluation_are_loaded(tmp_path):
    done = command(tmp_path / "gone")
    assert done.returncode == 2 and done.stderr.startswith("plot.py: error: ")
    assert not {"matplotlib", "evaluation"} & set(done.stdout.split())


def test_a_run_of_a_stack_that_did_not_stay_finite_is_left_out_and_told(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / f"seed{seed}", seed=seed)
    (tmp_path / "seed1/failed.json").write_text("{}")
    assert plot.find_runs(tmp_path) == [tmp_path / "seed0"]
    assert "seed1 is left out" in capsys.readouterr().err


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
    "no column": (("regression_loss,", "l,"), "history.csv: column regression_loss is missing"),
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
        ([tmp_path / "two\nlines"], "two lines"),
    ]:
        assert named in refused(capsys, *arguments)
    assert snapshot(tmp_path) == before
