"""The example notebook and the README's Python do what they tell."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from small import run_train

import arguments
import recommend
import train

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


class ExactIndex:
    """Of hnswlib's index what the README asks for, exactly."""

    def __init__(self, space: str, dim: int):
        self.init_index = self.set_ef = id

    def add_items(self, vectors: np.ndarray):
        self.vectors = vectors

    def knn_query(self, vectors: np.ndarray, k: int):
        return np.argsort(-vectors @ self.vectors.T)[:, :k], None


@pytest.mark.parametrize("words", ["", "--ensemble 2 --user-history"])
def test_the_readmes_python_recommends_what_the_command_does(
    ratings_csv, tmp_path, monkeypatch, capsys, words
):
    rows = [line.split(",") for line in ratings_csv.read_text().splitlines()[1:]]
    moved = "".join(f"{int(user) + 100},{','.join(others)}\n" for user, *others in rows)
    (tmp_path / "ratings.csv").write_text(moved)  # has a user 196 and an item 50
    folder = "runs/shared_f0.99-r0.01_seed0"
    told = f"--out {folder} --epochs 2 {words}"
    assert run_train(told, tmp_path, tmp_path / "ratings.csv")[0] == 0
    monkeypatch.chdir(tmp_path)
    recommend.main([folder, "--export", "vectors"])
    if not importlib.util.find_spec("hnswlib"):
        monkeypatch.setitem(sys.modules, "hnswlib", SimpleNamespace(Index=ExactIndex))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall("```python\n(.*?)```", readme, re.DOTALL):
        exec(block, names)
    run, printed = train.load_run(folder), capsys.readouterr().out
    assert str(run.recommend(196)) in printed and str(run.predict(196, 50)) in printed
    assert names["scores"].shape == (3, run.data.n_items) and names["ratings"].shape == (3,)
    best = run.recommend(196, known=True)["item"].tolist()
    found = names["v"]["item_ids"][names["places"][0]].tolist()
    assert found == best if hasattr(names["index"], "vectors") else len({*found} & {*best}) >= 9


def test_the_readmes_commands_are_ones_that_train_and_recommend_take(monkeypatch):
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall("```sh\n(.*?)```", readme, re.DOTALL))
    commands = re.findall(r"\b(train|recommend)\.py (?!@runs)(.*)", blocks)
    for script, words in commands:
        words = shlex.split(words, comments=True)
        arguments.resolve(words) if script == "train" else recommend.parse(words)
    assert len(commands) > 12
