"""From a study's lines to numbers, tables, figures and a document: each against its own count."""

import numpy as np
import pandas as pd
import pytest
from invented import USERS, study_lines, write_study
from scipy import stats

import plot
from study import numbers, report
from study.design import IDEAL, LAMBDAS, PUBLISHED, REFERENCE
from study.figures import point_labels, study_figures
from study.numbers import arm, read_study, study_numbers
from study.report import rendered, study_tables
from study.stats import hypervolume

LINES = study_lines()


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> pd.DataFrame:
    return read_study(write_study(tmp_path_factory.mktemp("s") / "s.jsonl", LINES))


@pytest.fixture(scope="module")
def named(frame) -> dict:
    return study_numbers(frame)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


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


@pytest.mark.parametrize(("metric", "digits"), [("mrr", 4), ("mse", 3)])
def test_a_question_is_its_two_arms_paired_by_seed(named, metric, digits):
    shared, separate = (
        [
            line[metric]
            for line in LINES
            if (line["experiment"], line.get("shared_dims"), line.get("lambda_f"))
            == ("selected", K, 0.5)
        ]
        for K in (32, 0)
    )
    difference, name = np.subtract(shared, separate), f"q1.selected.{metric}"
    assert f"{named[name]}" == signed(difference.mean(), digits)
    assert named[f"{name}.p"] == f"{stats.wilcoxon(difference).pvalue:.4f}"
    assert named[f"{name}.n"] == "4"


def test_shuffled_lines_give_the_same_tables_and_a_missing_seed_is_a_smaller_n(frame, named):
    shuffled = study_numbers(frame.sample(frac=1, random_state=0))
    assert study_tables(shuffled) == study_tables(named)
    lost = (frame.experiment == "selected") & (frame.shared_dims == 0) & (frame.lambda_f == 0.5)
    fewer = study_numbers(frame[~(lost & (frame.seed == 2))])
    assert (named["q1.selected.mrr.n"], fewer["q1.selected.mrr.n"]) == ("4", "3")
    assert (named["q1.report.mrr.n"], fewer["q1.report.mrr.n"]) == ("4", "4")
    assert fewer["hypervolume.separate.n"] == "3"


def test_runs_of_other_data_or_another_weighting_are_in_no_arm(frame, named, tmp_path):
    others = [
        line | other
        for line in LINES
        if line["experiment"] == "report"
        for other in ({"data": "ml-1m", "mrr": 1}, {"weighting": "uncertainty", "mrr": 1})
    ]
    no_weights = {"weighting": "a method's", "lambda_f": None, "lambda_r": None}
    others += [line | no_weights for line in LINES[:4]]
    more = read_study(write_study(tmp_path / "s.jsonl", [*LINES, *others]))
    assert len(more) == len(frame) + len(others)
    assert f"{study_numbers(more)['report.shared.0.5.mrr']:ci}" == (
        f"{named['report.shared.0.5.mrr']:ci}"
    )


def test_users_are_compared_one_by_one_without_those_who_have_no_test_items(frame, named):
    means, better = [], []
    arms = [arm(frame, "report", K, 0.5).reciprocal_ranks for K in (32, 0)]
    for seed in range(4):
        pairs = [pair for pair in zip(*(ranks[seed] for ranks in arms), strict=True) if pair[0]]
        means.append(sum(a - b for a, b in pairs) / len(pairs))
        better.append(100 * sum(a > b for a, b in pairs) / len(pairs))
        assert len(pairs) == USERS - 1
    assert f"{named['users.q1.report.difference']}" == signed(np.mean(means), 4)
    assert f"{named['users.q1.report.better']}" == f"{np.mean(better):.1f}"
    assert named["users.q1.report.n"] == "4"


def test_a_gain_is_over_the_task_alone_with_the_same_sharing(frame, named):
    alone, joint = arm(frame, "weights", 16, 0.0), arm(frame, "sharing", 16, 0.5)
    assert f"{named['dial.k16.0.5.gain.mse']}" == signed((joint.mse - alone.own_mse).mean(), 3)
    # With an epoch for each task, the joint run's is the best for it too.
    alone, joint = arm(frame, "weights", 0, 1.0), arm(frame, "selected", 0, 0.5)
    shown = signed((joint.own_mrr - alone.own_mrr).mean(), 4)
    assert f"{named['dial.separate.0.5.gain.own_mrr']}" == shown
    assert shown != f"{named['dial.separate.0.5.gain.mrr']}"
    assert shown in study_tables(named)["own_gains"]


@pytest.mark.parametrize(
    ("volume", "columns"), [("volume", ["mrr", "mse"]), ("own_volume", ["own_mrr", "own_mse"])]
)
def test_a_hypervolume_is_of_one_seeds_arms(frame, named, volume, columns):
    middle, separate = (
        [
            hypervolume(
                [arm(frame, "dial", K, f).loc[seed, columns].astype(float) for f in LAMBDAS],
                REFERENCE,
                IDEAL,
            )
            for seed in range(4)
        ]
        for K in (16, 0)
    )
    assert f"{named[f'hypervolume.k16.{volume}']}" == f"{np.mean(middle):.3f}"
    shown = signed(np.subtract(middle, separate).mean(), 3)
    assert f"{named[f'hypervolume.k16.to_separate.{volume}']}" == shown


def test_the_grid_costs_the_sum_of_its_stacks_each_counted_once(frame, named):
    seconds = {line["stack"]: line["train_seconds"] + 1 for line in LINES if "epoch" in line}
    assert numbers.grid_hours(frame) == pytest.approx(sum(seconds.values()) / 3600)
    assert named["stacks"] == str(len(seconds)) == "51"


@pytest.mark.parametrize(
    ("told", "given"),
    [
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
    ],
)
def test_a_verdict_follows_the_interval_and_the_test_that_belongs_to_it(told, given):
    assert numbers.verdict(*given) == told


def test_a_faults_numbers_are_the_ends_of_its_curves(tmp_path):
    curves = {"factorization_loss": [1, 2, 3]}
    lines = [
        {"experiment": "faults", "stack": "f", "fault": "broadcast MSE", "seed": seed}
        | {"curves": curves | {"regression_loss": [3.0 + seed, 9.0, 1.0 + seed]}}
        for seed in (0, 1)
    ]
    named = study_numbers(read_study(write_study(tmp_path / "study.jsonl", lines)))
    name = "faults.broadcast_MSE.regression_loss"
    assert (f"{named[f'{name}_first']} {named[name]:sd}") == "3.500 1.500 ± 0.707"
    assert named["faults.published.mrr"] == "0.039 to 0.046"
    assert "| broadcast MSE | 2 | 1.000 ± 0.000 |" in study_tables(named)["faults"]


@pytest.mark.parametrize("only", [["report"], ["weights", "baselines"], ["selected", "sgd"]])
def test_a_partial_file_says_what_is_missing_and_names_the_same_numbers(tmp_path, named, only):
    path = write_study(tmp_path / "study.jsonl", study_lines(only=only))
    partial = study_numbers(read_study(path))
    tables = study_tables(partial)
    assert partial.keys() == named.keys()
    assert ("Not computed yet: shared, 0.99/0.01" in tables["report"]) == ("report" not in only)
    assert "| temporal | 0 of 4 | 0 |" in tables["progress"]
    assert "nan" not in str(tables)
    assert "Not computed yet" not in study_tables(named)["report"]


def test_a_file_with_a_fault_is_refused_by_name_and_line(tmp_path):
    lines = study_lines(seeds=[0], only=["selected"])
    path = tmp_path / "study.jsonl"
    for content, told in [
        ([{}, *lines], "line 1 names no experiment"),
        ([*lines, lines[0]], f"line {len(lines) + 1} repeats the run"),
        ([], "holds no runs"),
    ]:
        with pytest.raises(ValueError, match=told):
            read_study(write_study(path, content))
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl: no such file"):
        read_study(tmp_path / "gone.jsonl")


# ---- documents -------------------------------------------------------------------------------


def test_a_documents_placeholders_are_filled_and_an_unknown_one_names_the_nearest(named, tmp_path):
    source, tables = tmp_path / "S.md.in", {"report": "| 1 |"}
    name = "report.shared.0.5.mrr"
    source.write_text(f"MRR {{{name}:ci}}, {{{name}}}\n\n{{table: report}}\n\n{{seeds}} seeds\n")
    number = named[name]
    expected = f"MRR {number:ci}, {number}\n\n| 1 |\n\n4 seeds\n"
    assert rendered(named, tables, source) == expected
    for wrong, told in [
        (
            "{report.shared.0.5.mr}",
            "line 2, .*: no number .*; the nearest is report.shared.0.5.mrr",
        ),
        ("{table: reports}", "S.md.in: line 2, .*no table reports; the nearest is report"),
        (f"{{{name}:sdd}}", "no form 'sdd'"),
    ]:
        source.write_text(f"\n{wrong}")
        with pytest.raises(ValueError, match=told):
            rendered(named, tables, source)


def test_the_command_draws_what_a_file_holds_and_leaves_the_documents_alone(tmp_path, capsys):
    only = ["sharing", "selected"]
    study = write_study(tmp_path / "mine/study.jsonl", study_lines([0, 1, 2], only=only))
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


def test_a_document_with_a_fault_is_told_before_anything_is_written(frame, tmp_path):
    (tmp_path / "README.md").write_text("<!-- table: a -->1")
    with pytest.raises(ValueError, match=r"README\.md: the table a has no"):
        report.write_report(frame, tmp_path / "out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


# ---- figures ---------------------------------------------------------------------------------


def test_neighbours_on_the_dial_that_coincide_share_a_label():
    points = np.array([[0.057, 0.860], [0.058, 0.861], [0.09, 0.861], [0.12, 0.93]])
    given = points, [0.01, 0.5, 0.909, 0.99], (0.003, 0.02)
    labels = point_labels(*given, shown=[True] * 4)
    assert {name: list(at) for name, at in labels.items()} == {
        "0.01 to 0.5": [0.057, 0.860],
        "0.91": [0.09, 0.861],
        "0.99": [0.12, 0.93],
    }
    labels = point_labels(*given, shown=[False, True, False, True])
    assert {name: at[0] for name, at in labels.items()} == {"0.01 to 0.5": 0.058, "0.99": 0.12}


def test_the_studys_figures_show_its_lines(tmp_path):
    fault = {"experiment": "faults", "seed": 0, "curves": LINES[0]["curves"]}
    faults = [fault | {"fault": name} for name in ("none", "batch product")]
    frame = read_study(write_study(tmp_path / "study.jsonl", [*LINES, *faults]))
    with plot.report_style():
        drawn = study_figures(frame)
        assert list(study_figures(frame[frame.experiment == "baselines"])) == []
    assert list(drawn) == ["report", "sharing", "weights", "pareto", "gradients", "faults"]
    mrr = drawn["report"].axes[3]  # shared, 0.99/0.01
    curves = [line["curves"]["mrr"] for line in LINES[:4]]
    assert list(mrr.lines[0].get_ydata()) == pytest.approx(np.mean(curves, 0))
    assert set(mrr.lines[1].get_ydata()) == {PUBLISHED[32, 0.99]["mrr"]}
    at_half = [line for line in LINES if line["experiment"] in ("selected", "sharing")]
    means = [
        sum(line["mse"] for line in at_half if (line["shared_dims"], line["lambda_f"]) == (K, 0.5))
        for K in (0, 8, 16, 24, 32)
    ]
    mse = [line for line in drawn["sharing"].axes[1].lines if len(line.get_xdata()) == 5]
    assert any(list(line.get_ydata()) == pytest.approx([m / 4 for m in means]) for line in mse)
    assert len(drawn["faults"].axes) == 4
    one, own = drawn["pareto"].axes
    dial = [line for line in LINES if line.get("shared_dims") == 32 and line.get("own_mrr")]
    best = np.mean([line["own_mse"] for line in dial if line["lambda_f"] == 0.01])
    assert any(np.isclose(line.get_xdata(), best).any() for line in own.lines)
    assert not any(np.isclose(line.get_xdata(), best).any() for line in one.lines)
