"""plot.py: what the figure shows is what history.csv holds, and a bad folder is told in a line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import plot
from evaluation import METRICS, Metric

HISTORY = "history.csv"
HEADER = "epoch,factorization_loss,regression_loss,joint_loss,mrr,mse,train_seconds,eval_seconds"
ROWS = [
    "0,0.25,3.5,0.2825,0.05,0.99,0.4,0.1",
    "1,0.2,1.25,0.2105,,,0.4,0.0",
    "2,0.19,0.875,0.196875,,,0.4,0.0",
    "3,0.15,0.75,0.156,0.0625,0.875,0.4,0.1",
]
DRAWN = {  # the five curves of ROWS, written out by hand, and a part of their y labels
    "training/Factorization Loss": ([0, 1, 2, 3], [0.25, 0.2, 0.19, 0.15], "no unit"),
    "training/MSE": ([0, 1, 2, 3], [3.5, 1.25, 0.875, 0.75], "rating units²"),
    "training/Joint Loss": ([0, 1, 2, 3], [0.2825, 0.2105, 0.196875, 0.156], r"\lambda_R"),
    "eval/Mean Reciprocal Rank": ([0, 3], [0.05, 0.0625], "0 to 1"),
    "eval/MSE": ([0, 3], [0.99, 0.875], "rating units²"),
}
CONFIG = {"seed": 0, "shared_dims": 32, "embedding_dim": 32, "lambda_f": 0.99, "lambda_r": 0.01}
CONFIG |= {"batch_size": 256, "versions": {"torch": "2"}}


def write_run(folder: Path, rows=ROWS, header=HEADER, **changes) -> Path:
    """A finished run folder by hand, with the files that plot.py reads."""
    folder.mkdir(parents=True)
    config = {"out": str(folder), "split_seed": changes.get("seed", 0)} | CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / HISTORY).write_text("\n".join([header, *rows]) + "\n")
    (folder / "result.json").write_text(json.dumps({"epochs": len(rows), "mrr": 0.0625}))
    return folder


def draw(*folders: Path):
    """The figure, its panels, its legend, and the legend's texts."""
    with plot.report_style():
        figure = plot.curves_figure([plot.read_run(folder) for folder in folders])
        FigureCanvasAgg(figure).draw()
    panels = [axis for axis in figure.axes if axis.axison]
    (legend,) = figure.legends + [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    assert not any(text.get_parse_math() for text in legend.get_texts())  # a label may hold "$"
    return figure, panels, legend, [x.get_text().replace("\n", " ") for x in legend.get_texts()]


def snapshot(folder: Path) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_run_is_the_five_panels_of_the_report_and_their_lines_are_the_columns_of_history(
    tmp_path,
):
    _, panels, _, labels = draw(write_run(tmp_path / "run"))
    assert [axis.get_title() for axis in panels] == list(DRAWN)
    assert labels == ["shared, λ 0.99/0.01, seed 0"]
    for axis, (epochs, values, unit) in zip(panels, DRAWN.values(), strict=True):
        (line,) = axis.lines  # which skips epochs without evaluation
        assert (list(line.get_xdata()), list(line.get_ydata())) == (epochs, values)
        assert axis.get_xlabel() == "epoch" and unit in axis.get_ylabel()


@pytest.mark.parametrize("more", [1, 2, 4])
def test_a_metric_with_a_tag_has_its_panel_and_a_run_older_than_it_is_still_drawn(
    tmp_path, monkeypatch, capsys, more
):
    for k in range(more):
        monkeypatch.setitem(METRICS, f"m{k}", Metric(None, f"eval/M{k}", label=f"m{k} (unit)"))
    monkeypatch.setitem(METRICS, "untagged", Metric(None))
    old = write_run(tmp_path / "old")
    assert [axis.get_title() for axis in draw(old)[1]] == list(DRAWN)
    assert "old/history.csv: column m0 is missing" in capsys.readouterr().err
    header = ",".join([HEADER, *(f"m{k}" for k in range(more))])
    rows = [",".join([row, *(f"{k}.5" for k in range(more))]) for row in ROWS]
    _, panels, _, labels = draw(old, write_run(tmp_path / "new", rows, header, seed=1))
    assert len(panels) == 5 + more and labels == ["seed 0", "seed 1"]
    for k, axis in enumerate(panels[5:]):
        assert (axis.get_title(), axis.get_ylabel()) == (f"eval/M{k}", f"m{k} (unit)")
        assert [list(line.get_ydata()) for line in axis.lines] == [[], [k + 0.5] * 4]


@pytest.mark.parametrize("rows", [ROWS[:1], [ROWS[0], "1,nan,nan,inf,nan,nan,0.4,0.1"]])
def test_a_run_is_drawn_as_far_as_it_has_values_and_a_single_epoch_is_visible(tmp_path, rows):
    for axis in draw(write_run(tmp_path / "run", rows))[1]:
        assert list(axis.lines[0].get_xdata()) == [0] and axis.lines[0].get_marker() == "o"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("runs, settings", [(20, 0), (2, 26), (3, 26), (20, 26)])
def test_runs_are_overlaid_in_order_never_look_alike_and_all_labels_stand_inside(
    tmp_path, runs, settings
):
    many, folders = {f"some_{k}_setting": 1 for k in range(settings)}, []
    for seed in range(runs):
        rows, own = [f"0,{seed / 10},3,1,0.1,1,0,0"], many if seed else {}
        folders.append(write_run(tmp_path / f"{seed}", rows, seed=seed, **own))
    figure, panels, legend, labels = draw(*folders)
    for seed, label in enumerate(labels):
        assert label.endswith(f"seed {seed}") and label.count("some") == (seed and settings)
    looks = [
        [(line.get_color(), line.get_linestyle()) for line in lines]
        for lines in (legend.get_lines(), *(axis.lines for axis in panels))
    ]
    assert len(set(looks[0])) == runs and all(look == looks[0] for look in looks)
    assert [line.get_ydata()[0] for line in panels[0].lines] == [s / 10 for s in range(runs)]
    for text in legend.get_texts():
        box = text.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0
    assert all(panel.get_window_extent().height > 100 for panel in panels)


NARROW = {"shared_dims": 8, "ranking_dim": 16, "rating_dim": 16}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}, {"shared_dims": 0}], "shared|separate"),
        ([{}, {"shared_dims": 8}], "shared|8 of 32 dims shared"),
        ([{}, NARROW], "shared|8 of 16 dims shared, ranking dim 16, rating dim 16"),
        ([{}, {"lambda_f": 0.5, "lambda_r": 0.5}], "λ 0.99/0.01|λ 0.5/0.5"),
        ([{"seed": 3}, {"seed": 4}], "seed 3|seed 4"),
        ([{"split_seed": 7}, {"seed": 0}], "split seed 7|run1"),
        ([{}, {"batch_size": 512, "seed": 1}], "batch size 256, seed 0|batch size 512, seed 1"),
        ([{}, {}], "run0|run1"),
        ([{}, {}, {"seed": 1}], "seed 0 (run0)|seed 0 (run1)|seed 1"),
        ([{"note": "$a$"}, {"note": "b_$"}], "note $a$|note b_$"),
        ([{}, {"lambda_f": None, "lambda_r": None}], "λ 0.99/0.01|run1"),
    ],
)
def test_labels_tell_only_what_differs_and_each_run_apart(tmp_path, changes, labels):
    runs = [write_run(tmp_path / f"run{i}", **change) for i, change in enumerate(changes)]
    assert "|".join(draw(*runs)[3]) == labels


def test_a_stack_stands_for_its_finite_runs_in_natural_order_and_holds_the_figure(tmp_path, capsys):
    for seed in (10, 9, 2, 1):
        write_run(tmp_path / f"seed{seed}", seed=seed)
    (tmp_path / "seed1/failed.json").write_text("{}")
    assert [folder.name for folder in plot.find_runs(tmp_path)] == ["seed2", "seed9", "seed10"]
    plot.main([str(tmp_path), str(tmp_path / "seed9")])
    paths, printed = [tmp_path / "curves.png", tmp_path / "curves.svg"], capsys.readouterr()
    assert printed.out.splitlines() == [str(path) for path in paths]
    assert "seed1 is left out" in printed.err
    assert [path.read_bytes()[:5] for path in paths] == [b"\x89PNG\r", b"<?xml"]
    drawn = paths[1].read_bytes()
    plot.main([str(tmp_path)])  # seed9, given twice, was drawn once
    assert paths[1].read_bytes() == drawn


def test_two_processes_write_the_same_svg_and_nothing_else_and_train_nothing(tmp_path):
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", seed=1)
    before = snapshot(tmp_path)
    plot.main([str(run), str(other), "--out", str(tmp_path / "a")])
    script = "import sys, plot; plot.main(sys.argv[1:]); sys.exit('train' in sys.modules)"
    words = [sys.executable, "-c", script, run, other, "--out", tmp_path / "b/c"]
    root = Path(plot.__file__).parent
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a/curves.svg").read_bytes() == (tmp_path / "b/c/curves.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a/curves.svg").read_bytes()
    new = [path.name for path in snapshot(tmp_path) if path not in before]
    assert sorted(new) == sorted(["a", "b", "c"] + 2 * ["curves.png", "curves.svg"])


GIVEN = [  # arguments in a folder that holds `run`, `file` and `empty`, what the error names
    ("", "RUN"),
    ("run --ou out", "--ou"),
    ("gone", "gone: no such folder"),
    ("run file", "file: no such folder"),
    ("empty", "empty: not a run folder"),
    ("run --out file", "file: is a file"),
    ("run --out file/below", "below"),
    ("two\nlines", "two lines"),
]
SPOILT = [  # file of a run, what it holds instead (None: it is gone; a pair: an edit), the error
    (HISTORY, None, HISTORY),
    ("config.json", None, "config.json"),
    ("result.json", None, "result.json"),
    ("config.json", b"[1]", "config.json is damaged"),
    ("result.json", b'{"epochs": 9}', "4 of 9 epochs"),
    (HISTORY, b"x" * 200_000 + b"\n", "history.csv is damaged"),
    (HISTORY, b"", "history.csv: unfinished, 0 of 4"),
    (HISTORY, b"\xff\x00", "history.csv is damaged"),
    (HISTORY, ("regression_loss,", "l,"), "column regression_loss is missing"),
    (HISTORY, ("0.875,0.4", "abc,0.4"), "history.csv: column mse, row 4: 'abc'"),
    (HISTORY, ("2,0.19,0.875", "2,0.19,"), "column regression_loss, row 3: ''"),
    (HISTORY, (ROWS[3][2:], "0.15"), "history.csv: row 4 has another number"),
    (HISTORY, ("0.4,0.1", "0.4,0.1,7"), "history.csv: row 1 has another number"),
    (HISTORY, ("\n1,", "\n0,"), "history.csv: column epoch, row 2: '0'"),
]
# A stack, ".", whose unfinished run must not be passed over.
BAD = [(words, None, None, named) for words, named in GIVEN]
BAD += [("run bad" if content else ".", name, content, named) for name, content, named in SPOILT]


@pytest.mark.parametrize("arguments, name, content, named", BAD)
def test_bad_input_exits_2_with_one_line_that_names_it_and_writes_nothing(
    tmp_path, monkeypatch, capsys, arguments, name, content, named
):
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"))
    Path("file").write_text("")
    Path("empty").mkdir()
    if name:
        path = write_run(Path("bad")) / name
        if isinstance(content, tuple):
            assert content[0] in path.read_text()
            content = path.read_text().replace(*content).encode()
        path.write_bytes(content) if content is not None else path.unlink()
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        plot.main(arguments.split(" ") if arguments else [])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert printed.err.startswith("plot.py: error: ") and named in printed.err
    assert len(printed.err.splitlines()) == 1, printed.err
    assert snapshot(tmp_path) == before
