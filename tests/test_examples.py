"""The example notebook does what it tells, from ratings to a weighting of one's own."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_the_tour_trains_four_settings_recommends_and_adds_a_weighting(
    ratings_csv, tmp_path, monkeypatch
):
    tour = nbformat.read(ROOT / "examples/tour.ipynb", 4)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)  # committed without
    (named,) = (cell for cell in code if '"ml-100k"' in cell.source)
    named.source = named.source.replace('"ml-100k"', repr(str(ratings_csv)))  # no network
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "examples").mkdir()
    NotebookClient(tour, resources={"metadata": {"path": tmp_path / "examples"}}).execute()

    shown = [output.data for cell in code for output in cell.outputs if "data" in output]
    tables = [data["text/plain"].split("\n") for data in shown if "text/html" in data]
    four, recommended, five = ([line.split()[1:] for line in table] for table in tables)
    assert four[0] == ["mrr", "mse", "ndcg_at_10"] and recommended[0] == ["score", "rating"]
    names = [row[0].removesuffix("_seed0") for row in five[1:]]
    assert names == ["f0.99-r0.01", "f0.5-r0.5", "gls", "mgda", "log-losses"] and five[:5] == four
    items, scores, _ = zip(*recommended[1:], strict=True)
    assert len({*items}) == 10 and sorted(map(float, scores), reverse=True) == [*map(float, scores)]
    assert any("image/png" in data for data in shown)
    assert len([*(tmp_path / "runs/tour").rglob("result.json")]) == 5
