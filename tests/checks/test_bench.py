"""The bench: it measures both loops on small data, and is told at once what it can't do."""

import numpy as np
import pytest

from checks import bench


def test_ours_and_the_plain_loop_are_timed_in_pairs(planted):
    rows = np.arange(1000)
    plain, ours = bench.PlainLoop(planted, rows, 256), bench.StackLoop(planted, rows, runs=2)
    seconds = bench.in_turn({"plain": plain, "ours": ours}, rounds=3)
    assert {name: len(taken) for name, taken in seconds.items()} == {"plain": 3, "ours": 3}
    assert min(map(min, seconds.values())) > 0 and ours.epoch == 4  # the first isn't counted
    assert bench.median_ratio([1, 6, 4], [1, 2, 2]) == 2


@pytest.mark.parametrize("words", ["--device cuda:99", "--device gpu", "--out /proc/none/b.jsonl"])
def test_what_the_bench_cannot_do_is_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(words.split())
    error, (option, value) = capsys.readouterr().err, words.split()
    assert stopped.value.code == 2 and option in error and value in error
    assert len(error.splitlines()) == 1
