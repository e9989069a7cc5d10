"""The bench: it measures both loops on small data, and is told at once what it can't do."""

import numpy as np
import pytest

from checks import bench


def test_ours_and_the_plain_loop_are_timed_in_pairs(planted):
    rows = np.arange(1000)
    loops = {
        "plain": bench.PlainLoop(planted, rows, 256),
        "ours": bench.StackLoop(planted, rows, runs=2),
    }
    loops["ours"].step()
    seconds = bench.in_turn(loops, rounds=3)
    assert {name: len(taken) for name, taken in seconds.items()} == {"plain": 3, "ours": 3}
    assert min(map(min, seconds.values())) > 0
    assert bench.median_ratio([1, 6, 4], [1, 2, 2]) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "cuda:99"], "'cuda:99' isn't there: use cpu"),
        (["--device", "gpu"], "'gpu' isn't there: use cpu"),
        (["--out", "/proc/none/bench.jsonl"], "--out /proc/none/bench.jsonl"),
    ],
)
def test_what_the_bench_cannot_do_is_one_line_and_exit_code_2(arguments, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and named in error and len(error.splitlines()) == 1
