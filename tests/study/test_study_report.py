"""From the lines on record to numbers, tables, figures, a document: each against a count."""

import numpy as np
import pytest
from scipy import stats

import plot
from study import numbers, records, report
from study.design import ARMS, IDEAL, LAMBDAS, PUBLISHED, REFERENCE
from study.figures import point_labels, study_figures
from study.numbers import Numbers, grid_hours, read_study
from study.report import TABLES, TEMPLATE, rendered, sections
from study.stats import hypervolume

LINES = records.read(report.ROOT / report.RECORD)
FRAME = read_study(report.ROOT / report.RECORD)
NAMED = Numbers(FRAME)
PAGE = rendered(NAMED, TABLES)


def own(metric: str, experiment: str, K: int, f: float) -> np.ndarray:
    """What an arm's lines hold, in the order of their seeds."""
    arm = (experiment, K, f)
    lines = [x for x in LINES if (x["experiment"], x.get("shared_dims"), x.get("lambda_f")) == arm]
    return np.array([line[metric] for line in sorted(lines, key=lambda line: line["seed"])])


def saved(tmp_path, lines: list[dict]):
    path = tmp_path / "mine/study.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(records.as_text(lines))
    return path


# ---- from lines to numbers -------------------------------------------------------------------


def test_training_measures_find_a_planted_peak_and_fluctuation():
    joint = [2.0, 1.3, 1.25, 1.0, 1.25]  # 95% of the fall is at 1.2875, 90% at 1.325
    curves = {"mrr": [0.1, 0.3, 0.25, 0.2, 0.1], "mse": [1.0, None, 0.7, 0.9, 1.1]}
    curves |= {"joint_loss": joint, "regression_loss": joint, "factorization_loss": [0.5] * 5}
    fluctuation = np.std([-0.7, -0.05, -0.25, 0.25])
    expected = {"peak_epoch": 1, "lowest_mse": 0.7, "lowest_mse_epoch": 2, "mrr_there": 0.25}
    expected |= {"fall_epoch": 3, "mean_joint": 1.36, "mean_factorization": 0.5}
    expected |= {"mean_regression": 1.36, "fluctuation": fluctuation}
    expected |= {"relative_fluctuation": fluctuation / 1.36}
    expected |= {"ranking_fluctuation": 0, "relative_ranking_fluctuation": 0}
    assert numbers.training_measures(curves) == pytest.approx(expected)


def test_gradients_are_summed_up_over_the_steps_that_were_measured():
    curves = {"users_cosine": [-0.5, None, 0.1, 0.1], "users_norm_ratio": [0.5, None, 3.0, 1.0]}
    measures = numbers.gradient_measures({"lambda_f": 0.75, "curves": curves})
    told = [measures[f"users_{name}"] for name in ("cosine", "conflict", "norm_ratio", "weighted")]
    assert told == pytest.approx([-0.1, 100 / 3, 1.0, 3.0])
    assert np.isnan(measures["items_cosine"])


@pytest.mark.parametrize("question", ["q1", "q2"])
def test_a_questions_tests_are_of_its_arms_paired_by_seed_and_a_family_of_four(question):
    first, second = {"q1": ((32, 0.5), (0, 0.5)), "q2": ((32, 0.99), (32, 0.5))}[question]
    p, least = {}, 0
    for name in ("report.mrr", "report.mse", "selected.mrr", "selected.mse"):
        experiment, metric = name.split(".")
        difference = own(metric, experiment, *first) - own(metric, experiment, *second)
        assert list(NAMED[f"{question}.{name}"].values) == list(difference)
        p[name] = stats.wilcoxon(difference).pvalue
    for rank, name in enumerate(sorted(p, key=p.get)):
        least = max(least, min(1, p[name] * (4 - rank)))
        told = NAMED[f"{question}.{name}.p"], NAMED[f"{question}.{name}.holm"]
        assert "{} {}".format(*told) == f"{p[name]:.4f} {least:.4f}"


def dial(metric: str, K: int, f: float) -> np.ndarray:
    ends = "selected" if K in (0, 32) else "sharing"
    return own(metric, ends if f in (0.99, 0.5) else "weights", K, f)


def volumes(K: int, prefix: str = "") -> np.ndarray:
    points = [[dial(f"{prefix}{metric}", K, f) for metric in ("mrr", "mse")] for f in LAMBDAS]
    return np.array([hypervolume(at, REFERENCE, IDEAL) for at in np.array(points).T.swapaxes(1, 2)])


def test_numbers_are_counted_from_their_lines():
    fault = [line["curves"] for line in LINES if line.get("fault") == "broadcast MSE"]
    ranks = [own("reciprocal_ranks", "report", K, 0.5) for K in (32, 0)]
    by_seed = (zip(*pair, strict=True) for pair in zip(*ranks, strict=True))
    users = [[(a, b) for a, b in pairs if a is not None] for pairs in by_seed]
    middle, separate = "selected.k16.0.5 − alone.k16", "selected.separate.0.5 − alone.separate"
    expected = {
        # of those with test items alone
        "users.q1.report.difference": [sum(a - b for a, b in us) / len(us) for us in users],
        "users.q1.report.better": [100 * sum(a > b for a, b in us) / len(us) for us in users],
        # over the task alone, with the same sharing
        f"{middle}.mse": dial("mse", 16, 0.5) - dial("own_mse", 16, 0.0),
        f"{separate}.own_mrr": dial("own_mrr", 0, 0.5) - dial("own_mrr", 0, 1.0),
        "hypervolume.k16.own_volume": volumes(16, "own_"),
        "hypervolume.k16 − hypervolume.separate.volume": volumes(16) - volumes(0),
        "faults.broadcast_MSE.regression_loss_first": [c["regression_loss"][0] for c in fault],
        "faults.broadcast_MSE.regression_loss": [c["regression_loss"][-1] for c in fault],
    }
    for name, values in expected.items():
        assert list(NAMED[name].values) == pytest.approx(list(values), abs=1e-12), name
    assert NAMED["faults.published.mrr"] == "0.039 to 0.046"
    once = {line["stack"]: line for line in LINES if line["stack"] in ARMS}.values()
    seconds = sum(line["train_seconds"] + line["eval_seconds"] for line in once)
    assert grid_hours(FRAME) == pytest.approx(seconds / 3600) and NAMED["stacks"] == f"{len(once)}"


def test_the_order_of_lines_is_nothing_other_runs_are_in_no_arm_and_a_missing_seed_is_a_smaller_n(
    tmp_path,
):
    others = [
        line | other
        for line in LINES
        if line["experiment"] == "report" and line["lambda_f"] == 0.99
        for other in ({"data": "ml-1m", "mrr": 1}, {"weighting": "uncertainty", "lambda_f": None})
    ]
    frame = read_study(saved(tmp_path, [*LINES, *others][::-1]))
    assert len(frame) == len(LINES) + len(others)
    assert rendered(Numbers(frame), TABLES) == PAGE
    lost = (FRAME.arm == "selected.separate.0.5") & (FRAME.seed == 2)
    fewer = Numbers(FRAME[~lost])
    names = ("q1.selected.mrr", "q1.report.mrr", "hypervolume.separate.volume")
    assert [f"{fewer[name]:n}" for name in names] == ["9", "10", "9"]


@pytest.mark.parametrize("only", [["report"], ["weights", "baselines"], ["selected", "sgd"]])
def test_a_partial_file_says_what_is_missing(tmp_path, only):
    partial = Numbers(read_study(saved(tmp_path, [x for x in LINES if x["experiment"] in only])))
    page = rendered(partial, TABLES)
    assert ("| shared, 0.99/0.01 | 0 | — | — |" in sections(page)["report"]) == (
        "report" not in only
    )
    assert "| temporal | 0 of 4 | 0 |" in page
    assert "nan" not in page + rendered(partial, TEMPLATE, sections(page))
    assert study_figures(partial.arms)


def test_a_verdict_follows_the_interval_and_the_test_that_belongs_to_it():
    for told, given in [
        ("held", (0.1, 0.2, 1)),
        ("held", (-0.2, -0.1, -1)),
        ("held: no difference seen", (-0.1, 0.1, 0)),
        ("not settled", (-0.1, 0.1, 1)),
        ("did not hold: the opposite", (-0.2, -0.1, 1)),
        ("did not hold: lower", (-0.2, -0.1, 0)),
        ("held", (0.1, 0.2, 1, 0.04)),
        ("not settled: Holm's p is 0.0900", (0.1, 0.2, 1, 0.09)),
        ("not settled", (-0.1, 0.1, 1, 0.09)),
        ("—", (np.nan, np.nan, 1)),
    ]:
        assert numbers.verdict(*given) == told, given
    assert (
        NAMED["q1.selected.mse.verdict"]
        == f"not settled: Holm's p is {NAMED['q1.selected.mse.holm']}"
    )


def test_a_file_with_a_fault_is_refused_by_name_and_line(tmp_path):
    for content, told in [
        ([{}, *LINES[:3]], "line 1 names no experiment"),
        ([*LINES[:3], LINES[0]], "line 4 repeats the run"),
        ([], "holds no runs"),
    ]:
        with pytest.raises(ValueError, match=told):
            read_study(saved(tmp_path, content))
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl: no such file"):
        read_study(tmp_path / "gone.jsonl")


# ---- documents and figures -------------------------------------------------------------------


def test_a_documents_placeholders_are_filled_and_an_unknown_one_names_the_nearest(tmp_path):
    source, arm = tmp_path / "S.md.in", "report.shared.0.5"
    source.write_text(f"{{{arm}.mrr}}\n{{table: report}}\n{{{arm}: mrr:ci mse}}, {{seeds}} seeds\n")
    mrr, mse = (NAMED[f"{arm}.{metric}"] for metric in ("mrr", "mse"))
    expected = f"{mrr}\n| 1 |\n{mrr:ci} | {mse}, 10 seeds\n"
    assert rendered(NAMED, source, {"report": "| 1 |"}) == expected
    for wrong, told in [
        (f"{{{arm}.mr}}", f"no number {arm}.mr; the nearest is {arm}.mrr"),
        (f"{{{arm} − report.separat.0.5: mse}}", "the nearest is report.separate.0.5.mse"),
        ("{table: reports}", "no table 'reports'"),
        (f"{{{arm}.mrr:c}}", "no form 'c' of a number: ci"),
    ]:
        source.write_text(f"fine\n{wrong}")
        with pytest.raises(ValueError, match=rf"S\.md\.in: line 2, .*{told}"):
            rendered(NAMED, source, {})


def test_the_command_draws_what_a_file_holds_and_leaves_the_documents_alone(tmp_path, capsys):
    only = ("sharing", "selected")
    study = saved(tmp_path, [x for x in LINES if x["experiment"] in only and x["seed"] < 3])
    page = report.ROOT / "STUDY.md"
    before = page.read_bytes()
    assert report.main([str(study)]) == 0
    names = {path.name for path in (tmp_path / "mine/figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("sharing", "pareto") for kind in ("png", "svg")}
    assert "| 16 of 32 shared, 0.5/0.5 | 3 |" in (tmp_path / "mine/tables.md").read_text()
    report.main([str(study), "--out", str(tmp_path / "elsewhere/again")])
    again, svg = (tmp_path / f"{at}/figures/pareto.svg" for at in ("elsewhere/again", "mine"))
    assert again.read_bytes() == svg.read_bytes()
    assert page.read_bytes() == before
    capsys.readouterr()
    for given, told in [
        ([tmp_path / "gone.jsonl"], "gone.jsonl: no such file"),
        ([study, "--out", study], "is a file, should be a folder"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            report.main([str(word) for word in given])
        assert told in (line := capsys.readouterr().err) and line.count("\n") == 1
    (tmp_path / "README.md").write_text("<!-- table: a -->1")
    with pytest.raises(ValueError, match=r"README\.md: the table a has no"):
        report.write_report(FRAME, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()  # told before anything is written


def test_neighbours_on_the_dial_that_coincide_share_a_label():
    points = np.array([[0.057, 0.860], [0.058, 0.861], [0.09, 0.861], [0.12, 0.93]])
    for shown_, expected in [
        ([True] * 4, {"0.01 to 0.5": 0.057, "0.91": 0.09, "0.99": 0.12}),
        ([False, True, False, True], {"0.01 to 0.5": 0.058, "0.99": 0.12}),
    ]:
        labels = point_labels(points, [0.01, 0.5, 0.909, 0.99], (0.003, 0.02), shown_)
        assert {name: at[0] for name, at in labels.items()} == expected


def test_the_studys_figures_show_its_lines():
    with plot.report_style():
        drawn = study_figures(NAMED.arms)
    assert list(drawn) == ["report", "sharing", "weights", "pareto", "gradients", "faults"]
    mrr = drawn["report"].axes[3]  # shared, 0.99/0.01
    curves = [curves["mrr"] for curves in own("curves", "report", 32, 0.99)]
    assert list(mrr.lines[0].get_ydata()) == pytest.approx(np.mean(curves, 0))
    assert set(mrr.lines[1].get_ydata()) == {PUBLISHED["shared.0.99"]["mrr"]}
    means = [dial("mse", K, 0.5).mean() for K in (0, 8, 16, 24, 32)]
    mse = [line for line in drawn["sharing"].axes[1].lines if len(line.get_xdata()) == 5]
    assert any(list(line.get_ydata()) == pytest.approx(means) for line in mse)
    one, each = drawn["pareto"].axes
    best = dial("own_mse", 32, 0.01).mean()
    seen = [any(np.isclose(x.get_xdata(), best).any() for x in axis.lines) for axis in (one, each)]
    assert seen == [False, True]
