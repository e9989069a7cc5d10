"""What checks/scale.py measures of size runs, and what SCALE.md plans by it is right."""

from checks import report, scale


def test_a_sparse_step_costs_less_than_a_dense_one_and_evaluation_more_than_its_product(
    monkeypatch,
):
    monkeypatch.setattr(scale, "HUGE", (400_000, 40_000))
    monkeypatch.setattr(scale, "LARGE", (500, 300, 20_000))
    assert scale.sparse(1)["ratio"] > 1 and scale.evaluation(1)["ratio"] > 1


def test_the_plan_is_the_measured_times_the_size():
    step = {"users": 3, "items": 1, "dim": 32, "seconds": {"dense": 4e-6, "sparse": 0.00256}}
    rank = {"users": 10, "items": 10, "seconds": {"evaluation": 1e-6}}
    rows = {}
    for line in report.scale_table(step, rank).splitlines():
        _, label, *cells, _ = (cell.strip() for cell in line.split("|"))
        rows[label.split(",")[0].split(":")[0]] = cells
    # 11 million rows of 33 numbers of 4 bytes; 200 million / 256 steps of 11 s, and of 2.56 ms.
    assert rows["tables and biases"][1] == f"{11e6 * 33 * 4 / 2**30:.2f}"
    hours = [float(cells[1].replace(",", "")) for label, cells in rows.items() if "hours" in label]
    assert hours == [round(200e6 / 256 * 11 / 3600, 1), round(2000 / 3600, 2), round(1e5 / 3600, 2)]
