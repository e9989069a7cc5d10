"""From the lines on record to numbers, tables, figures, a document: each against a count."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import plot
from study import numbers, records, report
from study.design import ARMS, IDEAL, LAMBDAS, PUBLISHED, REFERENCE
from study.figures import study_figures
from study.numbers import Numbers, read_study
from study.report import TABLES, rendered, sections
from study.stats import hypervolume

LINES = records.read(report.ROOT / report.RECORD)
RAW = pd.DataFrame(LINES).sort_values("seed")
FRAME = read_study(report.ROOT / report.RECORD)
NAMED = Numbers(FRAME)
PAGE = rendered(NAMED, TABLES)


def own(metric: str, experiment: str, K: int, f: float) -> np.ndarray:
    """What the lines of an arm hold, by seed."""
    mine = (RAW.experiment == experiment) & (RAW.shared_dims == K) & (RAW.lambda_f == f)
    return RAW.loc[mine, metric].to_numpy()


def dial(metric: str, K: int, f: float) -> np.ndarray:
    ends = "selected" if K in (0, 32) else "sharing"
    return own(metric, ends if f in (0.99, 0.5) else "weights", K, f)


def saved(tmp_path, lines: list[dict]):
    path = tmp_path / "mine/study.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(records.as_text(lines))
    return path


def test_training_and_gradients_are_measured_as_planted():
    joint = [2.0, 1.3, 1.25, 1.0, 1.25]  # 95% of the fall is at 1.2875, 90% at 1.325
    curves = {"mrr": [0.1, 0.3, 0.25, 0.2, 0.1], "mse": [1.0, None, 0.7, 0.9, 1.1]}
    curves |= {"joint_loss": joint, "regression_loss": joint, "factorization_loss": [0.5] * 5}
    curves |= {"users_cosine": [-0.5, None, 0.1, 0.1], "users_norm_ratio": [0.5, None, 3.0, 1.0]}
    fluctuation = np.std([-0.7, -0.05, -0.25, 0.25])
    expected = {"peak_epoch": 1, "lowest_mse": 0.7, "lowest_mse_epoch": 2, "mrr_there": 0.25}
    expected |= {"fall_epoch": 3, "mean_joint": 1.36, "mean_factorization": 0.5}
    expected |= {"mean_regression": 1.36, "fluctuation": fluctuation}
    expected |= {"relative_fluctuation": fluctuation / 1.36}
    expected |= {"ranking_fluctuation": 0, "relative_ranking_fluctuation": 0}
    expected |= {"users_cosine": -0.1, "users_conflict": 100 / 3}
    expected |= {"users_norm_ratio": 1.0, "users_weighted": 3.0}
    told = numbers.measures({"experiment": "report", "lambda_f": 0.75, "curves": curves})
    items = {name: told.pop(name) for name in list(told) if name.startswith("items")}
    assert told == pytest.approx(expected) and np.isnan(list(items.values())).all()


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


def test_numbers_are_counted_from_their_lines():
    def volumes(K, prefix=""):
        points = [[dial(f"{prefix}{metric}", K, f) for metric in ("mrr", "mse")] for f in LAMBDAS]
        by_seed = np.array(points, float).transpose(2, 0, 1)
        return np.array([hypervolume(at, REFERENCE, IDEAL) for at in by_seed])

    ends = [
        (curve["regression_loss"][0], curve["regression_loss"][-1])
        for curve in RAW.curves[RAW.fault == "broadcast MSE"]
    ]
    ranks = [own("reciprocal_ranks", "report", K, 0.5) for K in (32, 0)]
    users = [np.subtract(*np.array(pair, float)) for pair in zip(*ranks, strict=True)]
    users = [each[~np.isnan(each)] for each in users]  # with test items alone
    expected = {
        "users.q1.report.difference": [each.mean() for each in users],
        "users.q1.report.better": [100 * (each > 0).mean() for each in users],
        # over the task alone, with the same sharing
        "selected.k16.0.5 − alone.k16.mse": dial("mse", 16, 0.5) - dial("own_mse", 16, 0.0),
        "selected.separate.0.5 − alone.separate.own_mrr": dial("own_mrr", 0, 0.5)
        - dial("own_mrr", 0, 1.0),
        "hypervolume.k16.own_volume": volumes(16, "own_"),
        "hypervolume.k16 − hypervolume.separate.volume": volumes(16) - volumes(0),
        "faults.broadcast_MSE.regression_loss_first": [first for first, _ in ends],
        "faults.broadcast_MSE.regression_loss": [last for _, last in ends],
    }
    for name, values in expected.items():
        assert list(NAMED[name].values) == pytest.approx(list(values), abs=1e-12), name
    once = RAW[RAW["stack"].isin(ARMS)].drop_duplicates("stack")
    wall = once.train_seconds + once.eval_seconds  # of lines from before CPU seconds were told
    hours = wall.where(once.cpu_seconds.isna(), once.cpu_seconds) / 3600
    beside = once.experiment.str.match("synthetic-|ml-100k-|filmtrust-|ml-latest-small-")
    told = [NAMED[x] for x in ("hours", "hours.elsewhere", "stacks", "faults.published.mrr")]
    each = [f"{hours[part].sum():.1f}" for part in (~beside, beside)]
    assert told == [*each, f"{len(once)}", "0.039 to 0.046"] and beside.any()


def test_order_is_nothing_other_runs_are_in_no_arm_and_a_missing_seed_is_a_smaller_n(tmp_path):
    other = [{"data": "ml-1m", "mrr": 1}, {"weighting": "uncertainty", "lambda_f": None}]
    first = [line for line in LINES if line["experiment"] == "report" and line["lambda_f"] == 0.99]
    others = [line | changed for line in first for changed in other]
    frame = read_study(saved(tmp_path, [*LINES, *others][::-1]))
    assert len(frame) == len(LINES) + len(others)
    assert rendered(Numbers(frame), TABLES) == PAGE
    fewer = Numbers(FRAME[(FRAME.arm != "selected.separate.0.5") | (FRAME.seed != 2)])
    names = ("q1.selected.mrr", "q1.report.mrr", "hypervolume.separate.volume")
    assert [f"{fewer[name]:n}" for name in names] == ["9", "10", "9"]


def test_a_verdict_follows_the_interval_and_the_test_that_belongs_to_it():
    up, down, around = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1)
    for told, cases in {
        "held": [(*up, 1), (*down, -1), (*up, 1, 0.04)],
        "held: no difference seen": [(*around, 0)],
        "not settled": [(*around, 1), (*around, 1, 0.09)],
        "not settled: Holm's p is 0.0900": [(*up, 1, 0.09)],
        "did not hold: the opposite": [(*down, 1)],
        "did not hold: lower": [(*down, 0)],
        "—": [(np.nan, np.nan, 1)],
    }.items():
        assert {numbers.verdict(*case) for case in cases} == {told}
    adjusted = NAMED["q1.selected.mse.holm"]
    assert NAMED["q1.selected.mse.verdict"] == f"not settled: Holm's p is {adjusted}"


def test_a_documents_placeholders_are_filled_and_an_unknown_one_names_the_nearest(tmp_path):
    source, arm = tmp_path / "S.md.in", "report.shared.0.5"
    source.write_text(f"{{{arm}.mrr}}\n{{table: report}}\n{{{arm}: mrr:ci mse}}, {{seeds}} seeds\n")
    mrr, mse = (NAMED[f"{arm}.{metric}"] for metric in ("mrr", "mse"))
    expected = f"{mrr}\n| 1 |\n{mrr:ci} | {mse}, 10 seeds\n"
    assert rendered(NAMED, source, {"report": "| 1 |"}) == expected
    for wrong, told in {
        f"{{{arm}.mr}}": f"no number {arm}.mr; the nearest is {arm}.mrr",
        f"{{{arm} − report.separat.0.5: mse}}": "the nearest is report.separate.0.5.mse",
        "{table: reports}": "no table 'reports'",
        f"{{{arm}.mrr:c}}": "no form 'c' of a number: ci",
    }.items():
        source.write_text(f"fine\n{wrong}")
        with pytest.raises(ValueError, match=rf"S\.md\.in: line 2, .*{told}"):
            rendered(NAMED, source, {})


@pytest.mark.parametrize(
    ("only", "figures"),
    [
        (["report"], {"report", "gradients"}),
        (["weights", "baselines"], {"weights"}),
        (["selected", "sgd"], {"sharing", "pareto"}),
    ],
)
def test_the_command_draws_what_a_partial_file_holds_and_leaves_the_documents_alone(
    tmp_path, only, figures
):
    study, documents = saved(tmp_path, [x for x in LINES if x["experiment"] in only]), report.ROOT
    before = (documents / "STUDY.md").read_bytes()
    assert report.main([str(study)]) == 0
    assert {path.stem for path in study.parent.glob("figures/*.svg")} == figures
    page = (study.parent / "tables.md").read_text(encoding="utf-8")
    missing = "| shared, 0.99/0.01 | 0 | — | — |" in sections(page)["report"]
    assert missing == ("report" not in only) and "| temporal | 0 of 4 | 0 |" in page
    assert "nan" not in page and (documents / "STUDY.md").read_bytes() == before


def test_the_command_tells_a_fault_in_one_line_before_anything_is_written(tmp_path, capsys):
    def told(*given):
        with pytest.raises(SystemExit, match="2"):
            report.main([str(word) for word in given])
        line = capsys.readouterr().err
        return line if line.count("\n") == 1 else ""

    assert "gone.jsonl: no such file" in told(tmp_path / "gone.jsonl")
    assert "names no experiment" in told(saved(tmp_path, [LINES[0], {}]))
    assert "line 4 repeats the run" in told(saved(tmp_path, [*LINES[:3], LINES[0]]))
    study = saved(tmp_path, LINES[:1])
    assert "should be a folder" in told(study, "--out", study)
    assert [path.name for path in study.parent.iterdir()] == [study.name]
    (tmp_path / "README.md").write_text("<!-- table: a -->1")
    with pytest.raises(ValueError, match=r"README\.md: the table a has no"):
        report.write_report(FRAME, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_studys_figures_show_its_lines():
    with plot.report_style():
        drawn = study_figures(NAMED.arms)
    names = "report sharing weights pareto gradients faults weighting related"
    assert list(drawn) == names.split()
    mrr = drawn["report"].axes[3]  # shared, 0.99/0.01
    curves = [curves["mrr"] for curves in own("curves", "report", 32, 0.99)]
    assert list(mrr.lines[0].get_ydata()) == pytest.approx(np.mean(curves, 0))
    assert set(mrr.lines[1].get_ydata()) == {PUBLISHED["shared.0.99"]["mrr"]}
    means = [dial("mse", K, 0.5).mean() for K in (0, 8, 16, 24, 32)]
    mse = [line for line in drawn["sharing"].axes[1].lines if len(line.get_xdata()) == 5]
    assert any(list(line.get_ydata()) == pytest.approx(means) for line in mse)
    best = dial("own_mse", 32, 0.01).mean()
    one, each = drawn["pareto"].axes  # an epoch for both tasks, for each the best
    seen = [any(np.isclose(x.get_xdata(), best).any() for x in axis.lines) for axis in (one, each)]
    assert seen == [False, True]
    texts = [text.get_text() for text in one.texts]  # neighbours that coincide share a label
    assert texts[:4] == ["0.01 to 0.76", "0.91", "0.97", "0.99"]  # where all is shared; the fronts'
    assert texts[4:] == ["0.97", "0.99", "0.01 to 0.99"]  # of half-shared and separate tables
    dots = [line for line in drawn["weighting"].axes[0].lines if line.get_label() == "mgda"]
    arm = NAMED.arms["selected.shared.mgda"]
    assert dots[0].get_xydata()[0] == pytest.approx([arm.ratio.mean(), arm.score.mean()])
    ends = [NAMED.arms[f"synthetic-100.{end}.0.99"].own_mse for end in ("shared", "separate")]
    gains = drawn["related"].axes[1].lines[0].get_xydata()
    assert gains[-1] == pytest.approx([1, (ends[0] - ends[1]).mean()])
