"""The tables of RESULTS.md against another computation of the same numbers, which are invented."""

import re

import numpy as np
import pytest
from scipy import stats

from arguments import resolve
from joint import design, recipe
from joint.design import ARMS, METRICS, label
from joint.report import WIDE, parameters, results_text
from models import MultiTaskNet
from study import records

METHODS = {"ease": "mrr", "als": "mrr", "fm-implicit": "mse", "fm": "mse"}
STRUCTURE = ("shared_dims", "ranking_dim", "rating_dim", "rating_head", "rating_biases")
STRUCTURE += ("user_history", "item_history", "hidden", "embedding_dim")
SETTINGS = {stack["stack"]: resolve(stack["arguments"]) for stack in recipe.plan()}


def arm_lines() -> list[dict]:
    """Lines as joint/recipe.py leaves them, the arms in another order."""
    arms = [(name, "random") for name in ARMS] + [(name, "temporal") for name in design.TEMPORAL]
    settings = {stack["arm"]: resolve(stack["arguments"]) for stack in recipe.plan()}
    lines = []
    for k, (name, split) in enumerate(arms[::-1]):
        args, random = settings.get(name, settings["best"]), np.random.default_rng(k)
        for seed in range(5):
            line = {key: args[key] for key in (*STRUCTURE, "ensemble")}
            line |= dict(arm=name, split=split, seed=seed, n_users=943, n_items=1682)
            line |= dict(lambda_f=args["lambda_f"][0], lambda_r=args["lambda_r"][0])
            line |= dict(mrr=0.15 + random.normal(0, 0.002), mse=0.76 + random.normal(0, 0.01))
            line |= dict(ndcg_at_10=0.28, recall_at_10=0.3, commit="c0ffee1234")
            lines.append(line)
    return lines


def method_lines() -> list[dict]:
    lines = []
    for k, (method, metric) in enumerate(METHODS.items()):
        for split, seed in [*(("random", seed) for seed in range(5)), ("temporal", 0)]:
            level = {"mrr": 0.148, "mse": 0.77}[metric] + 0.01 * np.sin(7 * k + seed)
            line = dict(method=method, split=split, seed=seed, fit_seconds=2.0)
            line |= dict(mrr=None, mse=None, ndcg_at_10=None, recall_at_10=None)
            lines.append(line | {metric: level})
    return lines


OURS, OTHERS = arm_lines(), method_lines()
SECONDS = {"joint": [9.0, 20.0, 10.0], "ease": [1.0, 1.0, 5.0], "fm-implicit": [90.0, 39.0, 24.0]}
TRIALS = [
    dict(arguments=str(k), mrr=[0.1, 0.12 + k / 100], mse=[0.8 + k / 100, 0.82])
    | dict(cpu_seconds_a_fold=900.0 * (k + 1))
    for k in range(4)
]
TRIALS += [TRIALS[k] | dict(first_fold=2, mrr=[0.2, 0.3 - k / 20]) for k in (1, 2)]
TRIALS += [dict(arguments="ease", mrr=[0.1] * 4), dict(arguments="fm-implicit", mse=[0.9] * 4)]
SEARCHES = [dict(method=name, fit_seconds=[1800.0, 1800.0]) for name in ("ease", "ease", "fm")]
FILES = {"recipe": [*OURS, dict(seconds=SECONDS)], "baselines": OTHERS, "tuning": TRIALS}
FILES |= {"baselines_tuning": SEARCHES}


def tables(folder, **files: list[dict]) -> dict[str, str]:
    for name, lines in files.items():
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        records.append(folder / f"{name}.jsonl", lines)
    return results_text(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> dict[str, str]:
    return tables(tmp_path_factory.mktemp("results"), **FILES)


def values(name: str, metric: str, split: str = "random") -> list[float]:
    """By seed."""
    chosen = (line for line in (*OURS, *OTHERS) if name in (line.get("arm"), line.get("method")))
    return [line[metric] for line in chosen if line["split"] == split]


def row(block: str, start: str) -> list[str]:
    """The cells of the one row whose label is this, or this and a note in brackets."""
    rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
    (found,) = (cells for cells in rows if re.sub(r" \(.*", "", cells[0]) == start)
    return [cell.strip() for cell in found[1:]]


def paired(first: str, second: str, metric: str, split: str = "random") -> str:
    test = stats.ttest_rel(values(first, metric, split), values(second, metric, split))
    low, high = test.confidence_interval(0.95)
    told = f"{(low + high) / 2:+.4f} [{low:+.4f}, {high:+.4f}]"
    return told.replace("-", "−")


def spread(numbers: list[float]) -> str:
    return f"{np.mean(numbers):.4f} ± {np.std(numbers, ddof=1):.4f}"


def best_method(metric: str) -> str:
    names = [name for name in METHODS if METHODS[name] == metric]
    return max(names, key=lambda name: METRICS[metric] * np.mean(values(name, metric)))


@pytest.mark.parametrize("metric, table", [("mrr", "joint_ranking"), ("mse", "joint_rating")])
def test_a_tasks_table_has_each_method_on_each_split_the_best_specialist_first(text, metric, table):
    for name in ("best", "ensemble", *(name for name in METHODS if METHODS[name] == metric)):
        numbers = values(name, metric)
        shown = [spread(numbers), *(f"{number:.4f}" for number in numbers)]
        assert row(text[table], label(name))[:6] == shown
    assert text[table].splitlines()[4].startswith(f"| {label(best_method(metric))} |")
    assert row(text[table], "one joint model")[-1] == "10.0"  # the median of the cost's record
    assert row(text[table], "ensemble of 4")[-1] == "—"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["best", "ensemble"])
def test_the_verdict_is_the_paired_difference_to_the_best_specialist(text, name, metric):
    ours, other = values(name, metric), best_method(metric)
    start = f"- {label(name)}, **{metric.upper()} {np.mean(ours):.4f}**: "
    (line,) = (line for line in text["joint_verdict"].splitlines() if line.startswith(start))
    assert f"{paired(name, other, metric)} against {label(other)} (" in line
    pairs = zip(ours, values(other, metric), strict=True)
    won = sum(METRICS[metric] * (a - b) > 0 for a, b in pairs)
    assert f"better on {won} of 5 splits" in line


@pytest.mark.parametrize(
    "shift, word, met",
    [(0.02, "ahead", "met"), (-0.02, "behind", "missed"), (0, "not settled", "missed")],
)
def test_a_verdict_follows_the_interval_and_a_target_the_mean(tmp_path, shift, word, met):
    noise = np.array([-2, -1, 0, 1, 2]) * 1e-3
    lines = [dict(line) for line in OURS if (line["arm"], line["split"]) == ("best", "random")]
    others = [line for line in OTHERS if line["method"] in design.SPECIALISTS]
    for name, metric in design.SPECIALISTS.items():
        for line, other, change in zip(lines, values(name, metric), noise, strict=True):
            line[metric] = other + METRICS[metric] * shift + change
    verdicts = tables(tmp_path, recipe=lines, baselines=others)["joint_verdict"].splitlines()
    assert f"is {met}" in verdicts[0]
    for verdict, (metric, target) in zip(verdicts, design.TARGETS.items(), strict=False):
        assert f"of 5 splits: {word}." in verdict
        mean = np.mean([line[metric] for line in lines])
        reached = mean >= target if metric == "mrr" else mean <= target
        assert ("is met" if reached else "is missed") in verdict


def test_an_arms_row_is_its_paired_difference_to_its_reference_in_the_designs_order(text):
    block = text["joint_ablation"]
    told = [line.split(" | ")[0].strip("| ") for line in block.splitlines()[2:]]
    assert [re.sub(r" \(.*", "", each) for each in told] == [label(name) for name in ARMS]
    for (name, arm), note in zip([*ARMS.items()][1:], told[1:], strict=True):
        cells = row(block, label(name))
        mrr = "—" if name == "rating alone" else paired(name, arm.against, "mrr")
        mse = "—" if name == "ranking alone" else paired(name, arm.against, "mse")
        assert [cells[1], cells[3]] == [mrr, mse], name
        assert (f"against “{arm.against}”" in note) == (arm.against != "best")
        assert ("on record, commit c0ffee1" in note) == arm.on_record
        if arm.against != "best":
            pair = " and ".join(paired(name, "best", metric) for metric in METRICS)
            assert f"{name} {pair}" in text["joint_references"]
    assert row(block, "rating alone")[0] == "—" == row(block, "ranking alone")[2]


def test_sharing_is_judged_by_the_recipe_minus_its_separate_arms_and_each_task_alone(text):
    arms = [(WIDE, WIDE), ("separate, as many parameters",) * 2, ("ranking alone", "rating alone")]
    *lines, temporal = text["joint_sharing"].splitlines()
    assert f"temporal split, minus “{WIDE}”: MRR {paired('best', WIDE, 'mrr', 'temporal')}" in (
        temporal
    )
    for line, names in zip(lines, arms, strict=True):
        for metric, name in zip(METRICS, names, strict=True):
            shown = paired("best", name, metric)
            low, high = (
                float(end.replace("−", "-")) for end in re.findall(r"[+−][\d.]+", shown)[1:]
            )
            better, worse = (low > 0, high < 0) if metric == "mrr" else (high < 0, low > 0)
            word = "helps" if better else "hurts" if worse else "no difference seen"
            assert f"{metric.upper()} {shown} ({word})" in line


def test_cost_and_search_add_up(text):
    cost, search = text["joint_cost"], text["joint_search"]
    assert "joint model takes 10.0 s, EASE 1.0 s and myFM, implicit features 39.0 s" in cost
    assert "costs 0.25 of the two" in cost and "4 such fits: 1.00" in cost
    assert "4 trials of 2 folds, and 2 finalists on as many again: 7.5 CPU hours" in search
    told = "the settings chosen have MRR 0.1700 and MSE 0.8150; EASE MRR 0.1000 and myFM, implicit"
    assert f"Over 4 validation parts {told} features MSE 0.9000." in search
    assert "3 trials, from 1 to 2 a method, 3.0 hours" in search


HEADS = [
    dict(shared_dims=k, ranking_dim=4, rating_dim=4, rating_head=head, hidden=6, embedding_dim=4)
    | dict(rating_biases=True, user_history=True, item_history=False, ensemble=2)
    for head, k in (("mlp", 4), ("dot", 4), ("mlp", 3))
]


@pytest.mark.parametrize("args", [*SETTINGS.values(), *HEADS])
def test_parameters_are_counted_as_the_network_has_them(args):
    structure = {name: args[name] for name in STRUCTURE}
    net = MultiTaskNet(5, 7, seeds=range(args["ensemble"]), **structure)
    line = args | dict(n_users=5, n_items=7)
    assert parameters(line) == sum(each.numel() for each in net.parameters())


def test_the_temporal_table_has_ours_over_seeds_and_the_specialists_of_both_tasks(text):
    block = text["joint_temporal"]
    for name in design.TEMPORAL:
        levels = [spread(values(name, metric, "temporal")) for metric in METRICS]
        assert row(block, label(name))[:3] == ["5", *levels]
    assert [row(block, label(name))[0] for name in METHODS] == ["1"] * 4


def test_what_is_missing_is_told_by_its_command_and_nothing_else_changes(tmp_path, text):
    nothing, waits = tables(tmp_path), "(not computed yet: `python -m joint.recipe`)"
    assert nothing.keys() == text.keys()
    for name in ("joint_verdict", "joint_ablation", "joint_references", "joint_sharing"):
        assert nothing[name] == waits
    assert nothing["joint_cost"] == "(not computed yet: `python -m joint.recipe --cost`)"
    assert "(not computed yet: `python -m joint.tune`)" in nothing["joint_search"]
    partial = tables(tmp_path, **{name: FILES[name] for name in FILES if name != "recipe"})
    assert row(partial["joint_ranking"], "EASE") == row(text["joint_ranking"], "EASE")
    assert partial["joint_temporal"].endswith(waits) and partial["readme_joint"].endswith(waits)
    first = tables(tmp_path, recipe=[line for line in OURS if line["arm"] == "best"])
    block, whole = first["joint_ablation"], text["joint_ablation"]
    assert row(block, "no rating dropout")[:4] == ["—"] * 4
    assert row(block, "one joint model") == row(whole, "one joint model")
    assert "MRR — (not computed yet)" in first["joint_sharing"]
    assert "nan" not in f"{nothing}{partial}{first}"


def test_a_run_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two lines of .*random.*ease"):
        tables(tmp_path, baselines=[*OTHERS, OTHERS[0]])
