"""results_tables.py: the blocks of RESULTS.md against another computation of the same numbers."""

import json
import re
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from scipy import stats

import plot
import results_tables
import tables
from arguments import resolve
from experiments import recipe
from models import MultiTaskNet
from results_tables import results_text

ROOT = Path(results_tables.__file__).parent
SPECIALISTS = {"ease": "mrr", "als": "mrr", "fm-implicit": "mse", "fm": "mse"}
STRUCTURE = ("shared_dims", "ranking_dim", "rating_dim", "rating_head", "rating_biases")
STRUCTURE += ("user_history", "item_history", "hidden")


def arm_lines() -> list[dict]:
    """Lines as experiments/recipe.py leaves them, arms in another order, their numbers invented."""
    lines = []
    for k, stack in enumerate(recipe.plan()[::-1]):
        args, random = resolve(stack["arguments"]), np.random.default_rng(k)
        for seed in range(5):
            line = dict(experiment=stack["experiment"], stack=stack["stack"], arm=stack["arm"])
            line |= {name: args[name] for name in (*STRUCTURE, "ensemble", "split")}
            line |= dict(seed=seed, n_users=943, n_items=1682, stack_size=5)
            line |= dict(lambda_f=args["lambda_f"][0], lambda_r=args["lambda_r"][0])
            line |= dict(mrr=0.15 + random.normal(0, 0.002), mse=0.76 + random.normal(0, 0.01))
            line |= dict(ndcg_at_10=0.28, recall_at_10=0.3, train_seconds=60.0 + k)
            lines.append(line)
    return lines


def specialist_lines() -> list[dict]:
    lines = []
    for k, (method, metric) in enumerate(SPECIALISTS.items()):
        for split, seed in [*(("random", seed) for seed in range(5)), ("temporal", 0)]:
            level = {"mrr": 0.148, "mse": 0.77}[metric] + 0.01 * np.sin(7 * k + seed)
            line = dict(experiment="baselines", method=method, split=split, seed=seed)
            line |= dict(mrr=None, mse=None, ndcg_at_10=None, recall_at_10=None)
            lines.append(line | {metric: level, "fit_seconds": 2.0})
    return lines


ARMS, OTHERS = arm_lines(), specialist_lines()
COST = {"joint": [9.0, 20.0, 10.0], "ease": [1.0, 1.0, 5.0], "fm-implicit": [90.0, 39.0, 24.0]}
COST = {"experiment": "recipe cost", "stack": "cost", "seconds": COST, "share": 0.25}
TRIALS = [
    dict(arguments=str(k), mrr=[0.1, 0.12 + k / 100], mse=[0.8 + k / 100, 0.82])
    | dict(cpu_seconds_a_fold=900.0 * (k + 1))
    for k in range(4)
]
TRIALS += [TRIALS[k] | dict(first_fold=2, mrr=[0.2, 0.3 - k / 20]) for k in (1, 2)]
TRIALS += [dict(arguments="ease", mrr=[0.1] * 4), dict(arguments="fm-implicit", mse=[0.9] * 4)]
SEARCHES = [dict(method=name, fit_seconds=[1800.0, 1800.0]) for name in ("ease", "ease", "fm")]
FILES = {"recipe": [*ARMS, COST], "baselines": OTHERS, "tuning": TRIALS}
FILES |= {"baselines_tuning": SEARCHES}


def write(folder: Path, **files: list[dict]) -> Path:
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> dict[str, str]:
    return results_text(write(tmp_path_factory.mktemp("results"), **FILES))


def values(name: str, metric: str, lines=(*ARMS, *OTHERS)) -> list[float]:
    """By seed, on the random splits."""
    chosen = (line for line in lines if name in (line.get("arm"), line.get("method")))
    return [line[metric] for line in chosen if line["split"] == "random"]


def row(block: str, label: str) -> list[str]:
    (line,) = (line for line in block.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")][1:]


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def paired(first: str, second: str, metric: str) -> str:
    a, b = values(first, metric), values(second, metric)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    return f"{signed(np.mean(a) - np.mean(b))} [{signed(low)}, {signed(high)}]"


def best_specialist(metric: str) -> str:
    sign = 1 if metric == "mrr" else -1
    names = [name for name in SPECIALISTS if SPECIALISTS[name] == metric]
    return max(names, key=lambda name: sign * np.mean(values(name, metric)))


def test_the_arms_are_those_of_the_recipe_and_its_ensemble_has_four_members():
    planned = [stack["arm"] for stack in recipe.plan() if stack["experiment"] == "recipe"]
    assert results_tables.ARMS == planned
    assert resolve(["@recipes/ensemble.txt"])["ensemble"] == 4


@pytest.mark.parametrize("metric", ["mrr", "mse"])
def test_a_tasks_table_has_each_method_on_each_split_the_best_specialist_first(text, metric):
    block = text["joint_ranking" if metric == "mrr" else "joint_rating"]
    for name in (
        "best",
        "ensemble",
        *(name for name in SPECIALISTS if SPECIALISTS[name] == metric),
    ):
        numbers = values(name, metric)
        cells = row(block, results_tables.label(name))
        shown = [f"{np.mean(numbers):.4f} ± {np.std(numbers, ddof=1):.4f}"]
        assert cells[:6] == shown + [f"{number:.4f}" for number in numbers]
    assert block.splitlines()[4].startswith(f"| {results_tables.label(best_specialist(metric))} |")
    assert row(block, "one joint model")[-1] == "10.0"  # the median of the cost's record
    assert row(block, "ensemble of 4")[-1] == "—"


@pytest.mark.parametrize("metric", ["mrr", "mse"])
@pytest.mark.parametrize("name", ["best", "ensemble"])
def test_the_verdict_is_the_paired_difference_to_the_best_specialist_and_to_the_target(
    text, name, metric
):
    start = (
        f"- {results_tables.label(name)}, **{metric.upper()} {np.mean(values(name, metric)):.4f}**"
    )
    (line,) = (line for line in text["joint_verdict"].splitlines() if line.startswith(start))
    other = best_specialist(metric)
    assert f": {paired(name, other, metric)} against {results_tables.label(other)} (" in line
    pairs = zip(values(name, metric), values(other, metric), strict=True)
    won = sum(a > b if metric == "mrr" else a < b for a, b in pairs)
    assert f"better on {won} of 5 splits" in line
    mean = np.mean(values(name, metric))
    met = mean >= 0.152 if metric == "mrr" else mean <= 0.765
    assert ("is met" if met else "is missed") in line


@pytest.mark.parametrize(
    "shift, word, met",
    [(0.02, "ahead", "met"), (-0.02, "behind", "missed"), (0, "not settled", "missed")],
)
def test_a_verdict_follows_the_interval_and_a_target_the_mean(tmp_path, shift, word, met):
    noise = np.array([-2, -1, 0, 1, 2]) * 1e-3
    lines = [dict(line) for line in ARMS if line["stack"] == "recipe_best"]
    for line, other, change in zip(lines, values("ease", "mrr"), noise, strict=True):
        line["mrr"] = other + shift + change
    for line, other, change in zip(lines, values("fm-implicit", "mse"), noise, strict=True):
        line["mse"] = other - shift + change
    others = [line for line in OTHERS if line["method"] in ("ease", "fm-implicit")]
    folder = write(tmp_path, recipe=lines, baselines=others)
    verdicts = results_text(folder)["joint_verdict"].splitlines()[:2]
    for verdict, metric in zip(verdicts, ("mrr", "mse"), strict=True):
        assert f"of 5 splits: {word}." in verdict
        mean = np.mean([line[metric] for line in lines])
        reached = mean >= 0.152 if metric == "mrr" else mean <= 0.765
        assert ("is met" if reached else "is missed") in verdict
    assert f"is {met}" in verdicts[0]


def test_an_arms_row_is_its_paired_difference_to_the_recipe_in_the_plans_order(text):
    block = text["joint_ablation"]
    labels = [line.split(" | ")[0].strip("| ") for line in block.splitlines()[2:]]
    against = re.compile(r" \(against “(.*)”\)")
    assert [against.sub("", each) for each in labels] == [
        results_tables.label(arm) for arm in results_tables.ARMS
    ]
    for arm, told in zip(results_tables.ARMS[1:], labels[1:], strict=True):
        cells = row(block, told)
        other = found[1] if (found := against.search(told)) else "best"
        mrr = ["—"] if arm == "rating alone" else [paired(arm, other, "mrr")]
        mse = ["—"] if arm == "ranking alone" else [paired(arm, other, "mse")]
        assert [cells[1], cells[3]] == mrr + mse, arm


@pytest.mark.parametrize(
    "arm, changed",
    [
        ("MLP for the dot product", {"rating_head"}),
        ("MLP beside the dot product", {"rating_head"}),
        ("batches of 4,096 interactions", {"batch_by", "batch_size"}),
        ("BPR loss", {"loss"}),
    ],
)
def test_an_arm_that_is_not_the_recipe_changed_differs_from_its_reference_alone(arm, changed):
    settings = {each["arm"]: resolve(each["arguments"]) for each in recipe.plan()}
    mine, other = settings[arm], settings[results_tables.REFERENCES[arm]]
    assert {name for name in mine if mine[name] != other[name]} - {"out"} == changed


def test_the_ensemble_has_as_many_members_as_its_label_and_cost_say():
    (ensemble,) = (each for each in recipe.plan() if each["arm"] == "ensemble")
    assert resolve(ensemble["arguments"])["ensemble"] == results_tables.MEMBERS


def test_the_referenced_arms_are_told_against_the_recipe_too(text):
    for arm in results_tables.REFERENCES:
        pair = " and ".join(paired(arm, "best", metric) for metric in ("mrr", "mse"))
        assert f"{arm} {pair}" in text["joint_references"]


def test_single_tasks_show_nothing_of_the_other(text):
    block = text["joint_ablation"]
    assert row(block, "rating alone")[0] == "—" == row(block, "ranking alone")[2]


def test_sharing_is_judged_by_the_recipe_minus_its_separate_arms_and_each_task_alone(text):
    *lines, temporal = text["joint_sharing"].splitlines()
    pairs = [(arm, arm) for arm in ("separate, each task as wide", "separate, as many parameters")]
    for line, arms in zip(lines, [*pairs, ("ranking alone", "rating alone")], strict=True):
        for metric, arm in zip(("mrr", "mse"), arms, strict=True):
            shown = paired("best", arm, metric)
            low, high = (
                float(end.replace("−", "-")) for end in re.findall(r"[+−][\d.]+", shown)[1:]
            )
            better, worse = (low > 0, high < 0) if metric == "mrr" else (high < 0, low > 0)
            word = "helps" if better else "hurts" if worse else "no difference seen"
            assert f"{metric.upper()} {shown} ({word})" in line
    assert "temporal split, minus “separate, each task as wide”: MRR " in temporal


def test_cost_and_search_add_up(text):
    assert "joint model takes 10.0 s, EASE 1.0 s and myFM, implicit features 39.0 s" in (
        cost := text["joint_cost"]
    )
    assert "costs 0.25 of the two" in cost
    search = text["joint_search"]
    assert "4 trials of 2 folds, and 2 finalists on as many again: 7.5 CPU hours" in search
    told = "the settings chosen have MRR 0.1700 and MSE 0.8150; EASE MRR 0.1000 and myFM, implicit"
    assert f"Over 4 validation parts {told} features MSE 0.9000." in search
    assert "3 trials, from 1 to 2 a method, 3.0 hours" in search


def test_trials_are_ranked_by_the_smaller_of_their_margins():
    lines = [
        dict(arguments="ease", mrr=[0.1, 0.2, 0.1, 0.2]),
        dict(arguments="fm-implicit", mse=[0.8, 0.9, 0.8, 0.9]),
        dict(arguments="ranks", mrr=[0.2, 0.4], mse=[0.8, 0.9]),  # log 2 ahead, and 0
        dict(arguments="rates", mrr=[0.1, 0.2], mse=[0.4, 0.45]),
        dict(arguments="both", mrr=[0.11, 0.22], mse=[0.72, 0.81]),  # log 1.1, log 1 / 0.9
    ]
    first, *others = results_tables.ranked_trials(lines)
    assert first["arguments"] == "both" and first["margin"] == pytest.approx(np.log(1.1))
    assert [each["margin"] for each in others] == pytest.approx([0, 0])
    finals = [dict(arguments="ranks", first_fold=2, mrr=[0.05, 0.1], mse=[0.8, 0.9])]
    (only,) = results_tables.ranked_trials(lines + finals)  # finalists alone, over all their folds
    assert only["arguments"] == "ranks" and only["mrr"] == [0.2, 0.4, 0.05, 0.1]
    assert only["margin"] == pytest.approx(0)


@pytest.mark.parametrize("stack", recipe.plan(), ids=lambda stack: stack["stack"])
def test_parameters_are_counted_as_the_network_has_them(stack):
    args = resolve(stack["arguments"])
    structure = {name: args[name] for name in (*STRUCTURE, "embedding_dim")}
    net = MultiTaskNet(5, 7, seeds=range(args["ensemble"]), **structure)
    line = args | dict(n_users=5, n_items=7)
    assert results_tables.parameters(line) == sum(each.numel() for each in net.parameters())


def test_a_networks_hidden_layer_and_common_biases_are_counted_too():
    for head, common in (("mlp", 4), ("both", 4), ("mlp", 3)):
        structure = dict(shared_dims=common, ranking_dim=4, rating_dim=4, rating_head=head)
        structure |= dict(rating_biases=True, user_history=True, item_history=False, hidden=6)
        net = MultiTaskNet(5, 7, **structure)
        line = structure | dict(n_users=5, n_items=7, ensemble=1)
        assert results_tables.parameters(line) == sum(each.numel() for each in net.parameters())


def test_the_temporal_table_has_ours_over_seeds_and_the_specialists_of_both_tasks(text):
    block = text["joint_temporal"]
    for arm in ("best", "separate, each task as wide"):
        chosen = [line for line in ARMS if (line["arm"], line["split"]) == (arm, "temporal")]
        mrr, mse = ([line[metric] for line in chosen] for metric in ("mrr", "mse"))
        cells = row(block, results_tables.label(arm))
        assert cells[:3] == [
            "5",
            f"{np.mean(mrr):.4f} ± {np.std(mrr, ddof=1):.4f}",
            f"{np.mean(mse):.4f} ± {np.std(mse, ddof=1):.4f}",
        ]
    assert [row(block, results_tables.label(name))[0] for name in SPECIALISTS] == ["1"] * 4


def test_what_is_missing_is_told_by_its_command_and_nothing_else_changes(tmp_path, text):
    nothing = results_text(tmp_path)
    assert nothing.keys() == text.keys()
    recipes = "(not computed yet: `python -m experiments.recipe`)"
    for name in ("joint_verdict", "joint_ablation", "joint_sharing"):
        assert nothing[name] == recipes
    assert nothing["joint_cost"] == "(not computed yet: `python -m experiments.recipe --cost`)"
    assert "(not computed yet: `python -m experiments.tune`)" in nothing["joint_search"]
    without = {name: lines for name, lines in FILES.items() if name != "recipe"}
    partial = results_text(write(tmp_path, **without))
    assert row(partial["joint_ranking"], "EASE") == row(text["joint_ranking"], "EASE")
    assert partial["joint_temporal"].endswith(recipes) and partial["readme_joint"].endswith(recipes)
    write(tmp_path, recipe=[line for line in ARMS if line["arm"] == "best"])
    with (tmp_path / "recipe.jsonl").open("a") as file:
        file.write('{"experiment": "reci')
    first = results_text(tmp_path)
    assert row(first["joint_ablation"], "no rating dropout")[:4] == ["—"] * 4
    assert row(first["joint_ablation"], "one joint model") == (
        row(text["joint_ablation"], "one joint model")
    )
    assert "MRR — (not computed yet)" in first["joint_sharing"]
    assert "nan" not in f"{nothing}{partial}{first}"


def test_a_run_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two lines of .*random.*ease"):
        results_text(write(tmp_path, baselines=[*OTHERS, OTHERS[0]]))


def test_every_block_stands_in_a_document_and_goes_stale_with_its_results(tmp_path, text):
    assert "RESULTS.md" in plot.DOCUMENTS
    documents = [ROOT / "RESULTS.md", ROOT / "README.md"]
    stale = [name for document in documents for name in tables.stale_blocks(document, text)]
    assert text.keys() <= set(stale)
    document = tmp_path / "RESULTS.md"
    copy(documents[0], document)
    tables.write_blocks(document, text)
    assert tables.stale_blocks(document, text) == []
    moved = [
        line | {"mrr": line["mrr"] + 0.001} if "arm" in line else line for line in FILES["recipe"]
    ]
    changed = results_text(write(tmp_path, **FILES | {"recipe": moved}))
    stale = tables.stale_blocks(document, changed)
    assert {"joint_ranking", "joint_verdict", "joint_ablation", "joint_temporal"} <= set(stale)
