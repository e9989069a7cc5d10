"""tables.py: the statistics against oracles of their own, and documents that can't go stale."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import plot
import tables
from results_tables import results_text

ROOT = Path(tables.__file__).parent
STUDY = ROOT / "results/study.jsonl"
USERS = 40


def study_lines(seeds=range(4), epochs=12, only=None) -> list[dict]:
    """Lines of a study as experiments/study.py writes them, their numbers invented."""
    arms = [(name, 32, K, f) for name in ("report", "selected") for K, f in tables.SETTINGS]
    arms += [(name, 32, K, f) for name in ("temporal", "sgd") for K, f in tables.SETTINGS]
    arms += [("sharing", 32, K, f) for K in (8, 16, 24) for f in (0.99, 0.5)]
    arms += [("capacity", 16, 0, f) for f in (0.99, 0.5)]
    others = [f for f in tables.LAMBDAS if f not in (0.99, 0.5)]
    arms += [("weights", 32, K, f) for K in (32, 0, 16) for f in others]
    lines = []
    for index, (experiment, width, K, f) in enumerate(arms):
        for seed in seeds if only is None or experiment in only else ():
            random = np.random.default_rng((index, seed))
            fall = np.exp(-np.arange(epochs) / epochs * 5)

            def curve(start, end, noise, fall=fall, random=random):
                values = end + (start - end) * fall + random.normal(0, noise, len(fall))
                return [float(f"{value:.4g}") for value in values]

            lost = (1 - f) * (K / 32) ** 2  # shared and weighted to rating: ranking suffers
            mrr = 0.13 - 0.12 * lost + 0.004 * np.random.default_rng(seed).normal()
            mse = 0.86 + 0.1 * f - 0.04 * (K == 16) + random.normal(0, 0.01)
            if f in (0.0, 1.0):
                mrr, mse = (0.01, mse) if f == 0 else (mrr, 12.6)
            curves = {
                "factorization_loss": curve(0.45, 0.09 + 0.1 * lost, 0.001),
                "regression_loss": curve(3.0, 0.1 + 0.4 * f, 0.003),
                "joint_loss": curve(1.6 if f == 0.5 else 0.5, 0.11, 0.001),
                "mrr": [0.05 if fall[0] < x else x for x in curve(0.05, mrr, 0.002)],
                "mse": curve(1.0, mse, 0.02),
            }
            if experiment == "report":
                for side in ("users", "items"):
                    cosine = curve(-0.1, 0.02, 0.03) if K else [0.0] * epochs
                    curves |= {f"{side}_cosine": cosine}
                    curves |= {f"{side}_norm_ratio": curve(0.06, 0.02, 0.001)}
            else:
                curves["mrr"][1::2] = curves["mse"][1::2] = [None] * (epochs // 2)
            selected = experiment not in ("report", "sgd")
            line = dict(experiment=experiment, stack=f"{experiment}{index}", seed=seed)
            line |= dict(protocol="selected" if selected else "report", epochs=epochs)
            line |= dict(shared_dims=K, embedding_dim=width, lambda_f=f, lambda_r=1 - f)
            line |= dict(optimizer="sgd" if experiment == "sgd" else "adam")
            line |= dict(split="temporal" if experiment == "temporal" else "random")
            line |= dict(mrr=mrr, mse=mse, mrr_first=0.3, ndcg_at_10=0.2, recall_at_10=0.2)
            line |= dict(epoch=epochs // 2, last_mrr=mrr, last_mse=mse + 1)
            line |= dict(train_seconds=9.0 + index, eval_seconds=1.0)
            line |= dict(own_mrr=mrr + 0.001, own_mse=mse - 0.01) if selected else {}
            if experiment in ("report", "selected"):
                ranks = np.clip(mrr + random.normal(0, 0.05, USERS), 0.001, 1).round(4).tolist()
                line["reciprocal_ranks"] = [None, *ranks[1:]]
            if experiment == "temporal":
                line |= dict(test_rows=5000, cold_users=7, cold_user_rows=90)
                line |= dict(cold_items=30, cold_item_rows=33)
            lines.append(line | {"curves": curves})
    for method, metric in tables.BASELINES.items():
        both = [(protocol, seed) for protocol in ("report", "selected") for seed in seeds]
        for protocol, seed in [*both, ("temporal", 0)]:
            value = {"mrr": 0.055} if metric == "mrr" else {"mse": 1.2}
            line = dict(experiment="baselines", stack="baselines", method=method)
            if only is None or "baselines" in only:
                lines.append(line | dict(protocol=protocol, seed=seed) | value)
    return lines


def write_study(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> pd.DataFrame:
    return tables.read_study(write_study(tmp_path_factory.mktemp("s") / "s.jsonl", study_lines()))


@pytest.fixture(scope="module")
def text(study) -> dict[str, str]:
    return tables.study_text(study)


# ---- statistics ------------------------------------------------------------------------------


def test_holm_is_the_step_down_procedure_worked_by_hand():
    assert tables.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert tables.holm([0.6, 0.5]) == pytest.approx([1, 1])
    waiting = tables.holm([np.nan, 0.01, np.nan, 0.2])  # a family of four all the same
    assert waiting[[1, 3]] == pytest.approx([0.04, 0.6])
    assert np.isnan(waiting[[0, 2]]).all()


@pytest.mark.parametrize("n", [10, 40])
def test_the_bootstrap_interval_covers_a_known_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(1).normal(2.0, 1.0, (1000, n))
    intervals = np.array([tables.bootstrap_interval(sample) for sample in samples])
    covered = ((intervals[:, 0] < 2.0) & (intervals[:, 1] > 2.0)).mean()
    assert 0.935 < covered < 0.965  # percentiles at 2.5% and 97.5% cover 0.90 and 0.93


def test_the_bootstrap_interval_is_near_the_normal_one_and_the_same_every_time():
    sample = np.random.default_rng(2).normal(5, 1, 200)
    low, high = tables.bootstrap_interval(sample)
    reach = 1.96 * sample.std(ddof=1) / 200**0.5
    assert (low, high) == pytest.approx((sample.mean() - reach, sample.mean() + reach), abs=0.02)
    assert tables.bootstrap_interval(sample) == (low, high)
    assert np.isnan(tables.bootstrap_interval(sample[:1])).all()


def test_the_signed_rank_test_is_scipys_and_exact_by_enumeration():
    random = np.random.default_rng(3)
    first, second = random.normal(size=(2, 9))
    p = tables.signed_rank_test(tables.paired_difference(pd.Series(first), pd.Series(second)))
    assert p == pytest.approx(stats.wilcoxon(first, second).pvalue)
    difference = first - second
    ranks = abs(difference).argsort().argsort() + 1
    signs = np.array(np.meshgrid(*[[0, 1]] * 9)).reshape(9, -1)
    sums = ranks @ signs
    middle = ranks.sum() / 2
    observed = ranks[difference > 0].sum()
    assert p == pytest.approx((abs(sums - middle) >= abs(observed - middle)).mean())
    assert tables.signed_rank_test(np.zeros(5)) == 1


def test_pairs_are_made_by_seed_whatever_the_order_and_a_lone_seed_is_dropped():
    first = pd.Series({0: 1.0, 1: 5.0, 2: 9.0})
    second = pd.Series({2: 8.0, 0: 0.5, 1: 4.75})
    assert list(tables.paired_difference(first, second)) == [0.5, 0.25, 1.0]
    assert list(tables.paired_difference(first.drop(1), second)) == [0.5, 1.0]
    assert list(tables.paired_difference(pd.Series({0: np.nan, 2: 9.0}), second)) == [1.0]


def test_effect_sizes_by_hand():
    d, biserial = tables.effect_sizes(np.array([1.0, 2.0, -3.0, 4.0]))
    assert d == pytest.approx(1 / np.std([1, 2, -3, 4], ddof=1))
    assert biserial == pytest.approx((1 + 2 - 3 + 4) / 10)


def test_the_pareto_front_is_what_no_other_point_beats():
    random = np.random.default_rng(4)
    points = random.integers(0, 12, (20, 2)).astype(float)
    points = np.concatenate([points, points[:5]])  # with ties and doubles

    def dominated(p):
        return any((q[0] >= p[0] and q[1] <= p[1]) and (q[0] > p[0] or q[1] < p[1]) for q in points)

    front = tables.pareto_front(points)
    assert list(front) == [not dominated(point) for point in points]
    assert 2 <= front.sum() < 20


def test_the_hypervolume_is_the_share_of_a_fine_grid_that_is_dominated():
    random = np.random.default_rng(5)
    points = np.column_stack([random.uniform(0.03, 0.16, 7), random.uniform(0.7, 1.4, 7)])
    n = 800
    x = tables.REFERENCE[0] + (np.arange(n) + 0.5) / n * (0.15 - tables.REFERENCE[0])
    y = tables.REFERENCE[1] - (np.arange(n) + 0.5) / n * (tables.REFERENCE[1] - 0.75)
    inside = np.minimum(points[:, 0], 0.15), np.maximum(points[:, 1], 0.75)
    covered = np.zeros((n, n), bool)
    for mrr, mse in zip(*inside, strict=True):
        covered |= (x[:, None] <= mrr) & (y[None] >= mse)
    assert tables.hypervolume(np.column_stack(inside)) == pytest.approx(covered.mean(), abs=0.003)
    assert tables.hypervolume([tables.IDEAL]) == pytest.approx(1)
    assert tables.hypervolume([(0.05, 0.8), (0.14, 1.3)]) == 0  # each behind in one of the two


def test_training_measures_find_a_planted_peak_and_fluctuation():
    joint = [2.0, 1.5, 1.25, 1.0, 1.25]  # 95% of the fall is at 1.2875
    curves = {"mrr": [0.1, 0.3, None, 0.2, 0.1], "mse": [1.0, None, 0.7, 0.9, 1.1]}
    curves |= {"joint_loss": joint, "regression_loss": joint, "factorization_loss": [0.5] * 5}
    curves["mrr"][2] = 0.25
    row = tables.training_measures(pd.DataFrame({"curves": [curves]}, index=[3])).loc[3]
    expected = dict(peak_epoch=1, lowest_mse=0.7, lowest_mse_epoch=2, mrr_there=0.25)
    expected |= dict(fall_epoch=3, mean_regression=1.4, ranking_fluctuation=0)
    expected |= dict(mean_joint=1.4, mean_factorization=0.5, relative_ranking_fluctuation=0)
    expected |= dict(fluctuation=np.std([-0.5, -0.25, -0.25, 0.25]))
    for name, value in expected.items():
        assert row[name] == pytest.approx(value), name


# ---- from lines to numbers -------------------------------------------------------------------


def test_the_dial_is_the_studys():
    from experiments.study import BOTH, DIAL, plan

    assert [pair[0] for pair in DIAL] == tables.LAMBDAS
    arms = {}
    for stack in plan([0], 1):
        arms[stack["experiment"]] = arms.get(stack["experiment"], 0) + stack["runs"]
    assert arms == tables.PLANNED
    assert [f for _, f in tables.SETTINGS[:2]] == [pair[0] for pair in BOTH]


def test_a_question_is_its_two_arms_paired_by_seed(text):
    lines = study_lines()
    for metric, digits in (("mrr", 4), ("mse", 3)):
        by_arm = [
            {
                line["seed"]: line[metric]
                for line in lines
                if (line["experiment"], line.get("shared_dims"), line.get("lambda_f"))
                == ("selected", K, 0.5)
            }
            for K in (32, 0)
        ]
        difference = [by_arm[0][seed] - by_arm[1][seed] for seed in range(4)]
        name = f"q1.selected.{metric}"
        shown = f"{np.mean(difference):+.{digits}f}".replace("-", "−")
        assert text[f"{name}.difference"] == shown
        assert text[f"{name}.p"] == f"{stats.wilcoxon(difference).pvalue:.4f}"
        assert text[f"{name}.n"] == "4"


def test_shuffled_lines_give_the_same_text_and_a_missing_seed_is_a_smaller_n(study, text):
    assert tables.study_text(study.sample(frac=1, random_state=0)) == text
    lost = (study.experiment == "selected") & (study.shared_dims == 0) & (study.lambda_f == 0.5)
    fewer = tables.study_numbers(study[~(lost & (study.seed == 2))])
    assert (text["q1.selected.mrr.n"], fewer["q1.selected.mrr.n"]) == ("4", "3")
    assert (text["q1.report.mrr.n"], fewer["q1.report.mrr.n"]) == ("4", "4")
    assert fewer["hypervolume.separate.n"] == "3"


def test_users_are_compared_one_by_one_without_those_who_have_no_test_items(study, text):
    means, better = [], []
    for seed in range(4):
        first, second = (
            tables.arm(study, "report", K, 0.5).reciprocal_ranks[seed] for K in (32, 0)
        )
        pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None]
        means.append(sum(a - b for a, b in pairs) / len(pairs))
        better.append(100 * sum(a > b for a, b in pairs) / len(pairs))
        assert len(pairs) == USERS - 1
    shown = f"{np.mean(means):+.4f}".replace("-", "−")
    assert text["users.q1.report.difference"] == shown
    assert text["users.q1.report.better"] == f"{np.mean(better):.1f}"
    assert text["users.q1.report.n"] == "4"


def test_a_gain_is_against_the_task_alone_with_the_same_sharing(study, text):
    alone = tables.arm(study, "weights", 16, 0.0).own_mse
    joint = tables.arm(study, "sharing", 16, 0.5).mse
    shown = f"{(joint - alone).mean():+.3f}".replace("-", "−")
    assert text["dial.k16.0.5.mse.gain"] == shown


def test_own_gains_compare_each_task_at_the_epoch_that_is_best_for_it(study, text):
    alone = tables.arm(study, "weights", 0, 1.0).own_mrr
    joint = tables.arm(study, "selected", 0, 0.5).own_mrr
    shown = f"{(joint - alone).mean():+.4f}".replace("-", "−")
    assert text["dial.separate.0.5.own_mrr.gain"] == shown != text["dial.separate.0.5.mrr.gain"]
    assert shown in text["own_gains"]
    arms, others = ([tables.arm(study, "dial", K, f) for f in tables.LAMBDAS] for K in (16, 0))
    for end, columns in (("", ["mrr", "mse"]), (".own", ["own_mrr", "own_mse"])):
        volumes, below = (
            [
                tables.hypervolume(np.array([runs.loc[seed, columns] for runs in each], float))
                for seed in range(4)
            ]
            for each in (arms, others)
        )
        assert text[f"hypervolume.k16{end}"] == f"{np.mean(volumes):.3f}"
        shown = f"{np.subtract(volumes, below).mean():+.3f}".replace("-", "−")
        assert text[f"hypervolume.k16{end}.to_separate"] == shown


def test_the_grid_costs_the_sum_of_its_stacks_each_counted_once(study, text):
    seconds = {
        line["stack"]: line["train_seconds"] + 1 for line in study_lines() if "epoch" in line
    }
    assert tables.grid_hours(study) == pytest.approx(sum(seconds.values()) / 3600)
    assert text["stacks"] == str(len(seconds))


def test_a_verdict_follows_the_interval_and_the_test_that_belongs_to_it():
    for told, *given in [
        ("held", 0.1, 0.2, 1),
        ("held", -0.2, -0.1, -1),
        ("held: no difference seen", -0.1, 0.1, 0),
        ("not settled", -0.1, 0.1, 1),
        ("did not hold: the opposite", -0.2, -0.1, 1),
        ("did not hold: lower", -0.2, -0.1, 0),
        ("held", 0.1, 0.2, 1, 0.04),
        ("not settled: Holm's p is 0.0900", 0.1, 0.2, 1, 0.09),
        ("not settled", -0.1, 0.1, 1, 0.09),
    ]:
        assert tables.verdict(*given) == told, given


def test_a_faults_numbers_are_the_ends_of_its_curves(tmp_path):
    lines = [
        dict(experiment="faults", stack="f", fault="broadcast MSE", seed=seed)
        | dict(curves={name: [3.0 + seed, 9.0, 1.0 + seed] for name in tables.FAULT_CURVES})
        for seed in (0, 1)
    ]
    frame = tables.read_study(write_study(tmp_path / "study.jsonl", lines))
    told = tables.fault_numbers(frame)
    name = "faults.broadcast_MSE.regression_loss"
    assert (told[f"{name}.first"], told[name], told[f"{name}.n"]) == ("3.500", "1.500", "2")
    assert told["faults.published.mrr"] == "0.039 to 0.046"
    assert "| broadcast MSE | 2 | 3.500 ± 0.707 |" in tables.study_text(frame)["faults"]


@pytest.mark.parametrize("only", [["report"], ["weights", "baselines"], ["selected", "sgd"]])
def test_a_partial_file_says_what_is_missing_and_names_the_same_numbers(tmp_path, text, only):
    path = write_study(tmp_path / "study.jsonl", study_lines(only=only))
    partial = tables.study_text(tables.read_study(path))
    assert partial.keys() == text.keys()
    missing = "Not computed yet: shared, 0.99/0.01"
    assert (missing in partial["report"]) == ("report" not in only)
    assert "| temporal | 0 of 4 | 0 |" in partial["progress"]
    assert "nan" not in str(partial)
    assert "Not computed yet" not in text["report"]


def test_a_torn_last_line_is_left_out_and_any_other_fault_is_named(tmp_path):
    lines = study_lines(seeds=[0], only=["selected"])
    path = write_study(tmp_path / "study.jsonl", lines)
    whole = path.read_text()
    path.write_text(whole + '{"experiment": "sel')
    assert len(tables.read_study(path)) == len(lines)
    for content, told in [
        ("{}\n" + whole, "line 1 is not"),
        (whole + "[1\n", f"line {len(lines) + 1} is not"),
        (whole + whole.splitlines()[0] + "\n", f"line {len(lines) + 1} repeats"),
        ("", "holds no runs"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=told):
            tables.read_study(path)
    with pytest.raises(FileNotFoundError, match="gone.jsonl: no such file"):
        tables.read_study(tmp_path / "gone.jsonl")


# ---- documents -------------------------------------------------------------------------------


def test_blocks_are_replaced_and_all_else_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a | b\n<!-- table: one -->old<!-- end -->\nMRR <!-- n: q.mrr -->0<!-- end -->, "
        "<!-- n: gone -->7<!-- end --> <!-- a remark -->\n"
    )
    generated = {"one": "| 1 |", "q.mrr": "0.129"}
    assert tables.stale_blocks(page, generated) == ["one", "q.mrr", "gone (no such number)"]
    tables.write_blocks(page, generated)
    assert page.read_text() == (
        "a | b\n<!-- table: one -->\n\n| 1 |\n\n<!-- end -->\nMRR <!-- n: q.mrr -->0.129"
        "<!-- end -->, <!-- n: gone -->7<!-- end --> <!-- a remark -->\n"
    )
    del generated["one"]
    assert tables.stale_blocks(page, generated | {"gone": "7"}) == ["one (no such table)"]
    page.write_text("<!-- n: a -->1 <!-- n: b -->2<!-- end -->")
    with pytest.raises(ValueError, match=r"page\.md: the block a has no"):
        tables.write_blocks(page, {"a": "1", "b": "2"})


OTHERS = tables.records_text(ROOT / "results") | results_text(ROOT / "results")
DOCUMENTS = [*(ROOT / name for name in plot.DOCUMENTS), ROOT / "results/tables.md"]


@pytest.mark.parametrize("document", DOCUMENTS[:-1], ids=lambda path: path.name)
def test_a_document_names_only_what_exists_and_begins_no_line_with_a_number(document, text):
    if not document.is_file():
        pytest.skip(f"{document.name} isn't there")
    assert not [name for name in tables.stale_blocks(document, text | OTHERS) if "no such" in name]
    assert "\n<!-- n:" not in document.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_says_what_the_results_say(document):
    if not STUDY.is_file():
        pytest.skip("results/study.jsonl isn't there: python -m experiments.study writes it")
    if not document.is_file():
        pytest.skip(f"{document.name} isn't there")
    text = tables.study_text(tables.read_study(STUDY))
    if document.name == "tables.md":
        assert document.read_text(encoding="utf-8") == tables.page(text)
    assert tables.stale_blocks(document, text | OTHERS) == []


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "LOG.md"], ids=lambda path: path.name)
def test_a_document_leaves_nothing_to_be_done_and_links_only_to_what_is_there(document):
    text = document.read_text(encoding="utf-8")
    for left in ("TODO", "FIXME", "Not computed yet", "still being computed"):
        assert left not in text
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links = [link.split("#")[0] for link in links if "://" not in link and link[0] != "#"]
    assert links or document.name not in ("README.md", "STUDY.md")
    assert [link for link in links if not (document.parent / link).is_file()] == []


def test_every_figure_in_the_studys_prose_is_generated():
    text = re.sub(tables.BLOCK, "", (ROOT / "STUDY.md").read_text(encoding="utf-8"))
    settings = {"0.99", "0.01", "0.5", "0.909", "0.0913", "0.05"}  # task weights, a level
    assert set(re.findall(r"\d+\.\d+", text)) <= settings


def test_two_recorded_faults_end_each_alone_at_the_published_levels():
    lines = tables.read_study(STUDY)
    means = {
        fault: [tables.curves_of(runs, name)[:, -1].mean() for name in tables.FAULT_CURVES]
        for fault, runs in lines[lines.experiment == "faults"].groupby("fault")
    }
    levels = np.array([list(values) for values in tables.PUBLISHED.values()])
    levels = levels[:, [place for place, _ in tables.FAULT_CURVES.values()]]
    room = np.array([0.003, 0.005, 0.005, 0.05])
    low, high = levels.min(0) - room, levels.max(0) + room
    for fault, k in zip(["batch product", "broadcast MSE"] * 2, (0, 1, 2, 3), strict=True):
        assert low[k] < means[fault][k] < high[k], (fault, k)
        assert not low[k] < means["none"][k] < high[k], k


def test_the_recorded_grid_takes_two_workers_less_than_three_hours():
    frame = tables.read_study(STUDY)
    assert frame[frame.experiment.isin(tables.PLANNED)].groupby("experiment").size().to_dict() == {
        name: 10 * arms for name, arms in tables.PLANNED.items()
    }
    assert tables.grid_hours(frame) / tables.WORKERS < 3


def test_the_recorded_load_stays_within_its_bound():
    """20 million interactions, trained and evaluated for all users: RELIABILITY.md's 4 GiB."""
    record = tables.read_bench(ROOT / "results/bench.jsonl")["scaling"]
    load = record["by_interactions"]["20_000_000, evaluated"]
    assert 0 < load["training_peak_mib"] <= load["peak_mib"] < 4096
