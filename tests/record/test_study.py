"""What is committed of the study: documents, tables and figures against results/study.jsonl.

A fork that changes the model can leave these out: `pytest --ignore tests/record`.
"""

import re
import shutil

import numpy as np
import pytest

from checks.report import DOCUMENTS, read_bench, records_text
from study import records
from study.design import CURVES, PLANNED, PUBLISHED, WORKERS
from study.numbers import Numbers, curves_of, read_study
from study.report import RECORD, ROOT, TEMPLATE, sections, write_report

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def frame():
    return read_study(ROOT / RECORD)


def parts_of(path) -> tuple[str, np.ndarray]:
    """A figure's text without ids and numbers, and its numbers: equal but for the last digits."""
    svg = re.sub(r'id="[^"]*"|#[\w.-]+', "", path.read_text())
    number = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.sub(number, "0", svg), np.array(re.findall(number, svg), float)


def test_documents_tables_and_figures_are_those_that_the_lines_make(frame, tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    pages = [tmp_path / name for name in ("results/tables.md", "STUDY.md", "README.md")]
    *figures, tables, study, readme = write_report(frame, tmp_path / "results", tmp_path)
    assert [tables, study, readme] == pages and len(figures) == 2 * 8
    for made in [*figures, *pages]:
        kept = ROOT / made.relative_to(tmp_path)
        if made.suffix == ".md":
            assert made.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")
        if made.suffix == ".svg":
            (shape, numbers), (kept_shape, kept_numbers) = parts_of(made), parts_of(kept)
            assert shape == kept_shape and np.allclose(numbers, kept_numbers, atol=0.01), made.name
    known = sections(tables.read_text(encoding="utf-8")) | records_text(RESULTS)  # of the checks
    for document in DOCUMENTS:
        assert records.stale_blocks(ROOT / document, known) == []
        assert set(records.block_names(ROOT / document)) - {"readme_joint"} <= set(known)


def test_every_figure_in_the_studys_prose_is_generated():
    text = re.sub(r"\{[^{}]*\}", "", TEMPLATE.read_text(encoding="utf-8"))
    settings = {"0.99", "0.01", "0.5", "0.909", "0.0913", "0.05"}  # task weights, a level
    assert set(re.findall(r"\d+\.\d+", text)) <= settings


def test_a_document_leaves_nothing_to_be_done_and_links_only_to_what_is_there():
    names = ("README.md", "STUDY.md", "RESULTS.md", "RELIABILITY.md", "LOG.md", "results/tables.md")
    for document in (ROOT / name for name in names):
        text = document.read_text(encoding="utf-8")
        for left in ("TODO", "FIXME", "Not computed yet", "still being computed", "<!-- n:"):
            assert left not in text, document.name
        links = re.findall(r"\]\(([^)\s]+)\)", text)
        links = [link.split("#")[0] for link in links if "://" not in link and link[0] != "#"]
        assert links or document.name not in ("README.md", "STUDY.md")
        assert [link for link in links if not (document.parent / link).is_file()] == []


def test_the_tests_that_reliability_names_are_there():
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "RELIABILITY.md").read_text()))
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in there] == []


def test_every_line_on_record_says_what_made_it_and_the_grid_takes_six_hours(frame):
    assert frame.commit.str.len().eq(40).all()
    assert all("torch" in versions for versions in frame.versions)
    assert frame.device.eq("cpu").all()
    assert (frame.train_seconds.fillna(frame.seconds) >= 0).all()
    planned = frame[frame.experiment.isin(PLANNED)]
    runs = planned.groupby(["stack", "experiment"]).size().reset_index("experiment")
    whole = np.where(runs.experiment.str.endswith("-tries"), 2, 10)
    assert (runs[0] == whole).all()  # a stack is there whole or not at all
    assert float(Numbers(frame)["hours"]) / WORKERS < 6


def test_three_of_four_own_rates_and_decays_on_ml_100k_are_the_grids_largest(frame):
    """What STUDY.md says of them: the grid doesn't bracket the optimum."""
    own = (
        frame[frame.experiment == "ml-100k-tuned"].groupby("stack")[["lr", "weight_decay"]].first()
    )
    tried = frame[frame.experiment == "ml-100k-tries"]
    decays = [np.ravel(x.weight_decay.tolist()) for x in (own, tried)]
    assert len(own) == 4
    assert (own.lr == tried.lr.max()).sum() == (decays[0] == decays[1].max()).sum() == 3


def test_two_recorded_faults_end_each_alone_at_the_published_levels(frame):
    room = {"factorization_loss": 0.003, "regression_loss": 0.005, "mrr": 0.005, "mse": 0.05}
    means = {
        fault: {name: curves_of(runs, name)[:, -1].mean() for name in room}
        for fault, runs in frame[frame.experiment == "faults"].groupby("fault")
    }
    levels = {name: [curves[name] for curves in PUBLISHED.values()] for name in CURVES}
    for fault, name in zip(["batch product", "broadcast MSE"] * 2, room, strict=True):
        low, high = min(levels[name]) - room[name], max(levels[name]) + room[name]
        assert low < means[fault][name] < high, (fault, name)
        assert not low < means["none"][name] < high, name


def test_the_recorded_load_stays_within_its_bound():
    """20 million interactions, trained and evaluated for all users: RELIABILITY.md's 4 GiB."""
    record = read_bench(RESULTS / "bench.jsonl")["scaling"]
    load = record["by_interactions"]["20_000_000, evaluated"]
    assert 0 < load["training_peak_mib"] <= load["peak_mib"] < 4096
