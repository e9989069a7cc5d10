"""The bench: it measures both loops on small data, and is told at once what it can't do."""

import numpy as np
import pytest
import torch

from checks import bench


def test_ours_and_the_plain_loop_are_timed_in_pairs(planted):
    rows = np.arange(1000)
    plain, ours = bench.PlainLoop(planted, rows, 256), bench.StackLoop(planted, rows, runs=2)
    seconds = bench.in_turn({"plain": plain, "ours": ours}, rounds=3)
    assert {name: len(taken) for name, taken in seconds.items()} == {"plain": 3, "ours": 3}
    assert min(map(min, seconds.values())) > 0 and ours.epoch == 4  # the first isn't counted
    assert bench.median_ratio([1, 6, 4], [1, 2, 2]) == 2


def test_torchjds_step_trains_the_same_model_and_is_skipped_in_one_line(
    planted, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bench, "PEERS", ("json", "no_such_module"))
    out = tmp_path / "bench.jsonl"
    assert bench.main(["--torchjd", "--out", str(out)]) == 0 and out.read_text() == ""
    assert (
        capsys.readouterr().err == "skipped: requirements-peers.txt has no_such_module, not here\n"
    )
    aggregation = pytest.importorskip("torchjd.aggregation")
    weights, tables = aggregation.Constant(torch.tensor([0.99, 0.01])), []
    for kind in (bench.PlainLoop, bench.TorchJDLoop):
        torch.manual_seed(0)
        loop = kind(planted, np.arange(256), 256)
        loop.aggregator = weights
        loop()
        tables.append([loop.tables[0].weight, loop.tables[2].weight])
    for own, other in zip(*tables, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("words", ["--device cuda:99", "--device gpu", "--out /proc/none/b.jsonl"])
def test_what_the_bench_cannot_do_is_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(words.split())
    error, (option, value) = capsys.readouterr().err, words.split()
    assert stopped.value.code == 2 and option in error and value in error
    assert len(error.splitlines()) == 1
