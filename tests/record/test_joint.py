"""What is committed of the joint model: recipe, settings, and documents against their lines."""

import json
from itertools import product
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from arguments import pick, resolve, seed_list
from data import DATASETS
from joint import baselines, design, recipe, tune
from joint.design import ARMS, METRICS, PLANNED, ROOT, SPECIALISTS, TARGETS, TEMPORAL, label
from joint.report import documents
from models import MultiTaskNet, Structure
from study import records

TEXT, TABLES, _ = documents(ROOT / "results")
RECIPE, METHODS, TUNING, SEARCHES, UNSEEN = (
    records.read(ROOT / f"results/{name}.jsonl")
    for name in ("recipe", "baselines", "tuning", "baselines_tuning", "unseen")
)
BEST = resolve(["@recipes/best.txt"])
ROWS = {k: [row[2:-2].split(" | ") for row in v.splitlines()[2:]] for k, v in TABLES.items()}
RUNS = pd.DataFrame(RECIPE + METHODS).assign(name=lambda runs: runs.arm.fillna(runs.method))
RUNS = {key: own.sort_values("seed") for key, own in RUNS.groupby(["split", "name"])}


def values(name: str, metric: str, split: str = "random") -> np.ndarray:
    """By seed; none where the method has no such metric, or no line yet."""
    own = RUNS.get((split, name))
    return np.array([]) if own is None else own[metric].dropna().to_numpy(float)


def best_first(metric: str, split: str = "random") -> list[str]:
    names = [name for name in baselines.METHODS if len(values(name, metric, split))]
    return sorted(names, key=lambda name: -METRICS[metric] * values(name, metric, split).mean())


def spread(own: np.ndarray) -> str:
    deviation = f" ± {np.std(own, ddof=1):.4f}" if len(own) > 1 else ""
    return f"{np.mean(own):.4f}{deviation}" if len(own) else "—"


def paired(first: str, second: str, metric: str, split: str = "random") -> tuple[str, int]:
    """The difference with its interval as text, and +1, −1 or 0 as it is better, worse or open."""
    test = stats.ttest_rel(values(first, metric, split), values(second, metric, split))
    low, high = test.confidence_interval(0.95)
    sign = METRICS[metric] * (int(low > 0) - int(high < 0))
    return f"{(low + high) / 2:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "−"), sign


def test_the_documents_are_what_the_results_make_of_them():
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == TEXT
    readme = ROOT / "README.md"
    assert records.filled(readme, TABLES) == readme.read_text()
    assert "<!-- table: readme_joint -->" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_table_has_ours_and_then_the_specialists_the_best_first():
    for metric, table in {"mrr": "ranking", "mse": "rating"}.items():
        names = ["best", *best_first(metric)]
        for name, row in zip(names, ROWS[table], strict=True):
            own = values(name, metric)
            assert row[:2] == [label(name), spread(own)]
    names = [*TEMPORAL, *best_first("mrr", "temporal"), *best_first("mse", "temporal")]
    for name, row in zip(names, ROWS["temporal"], strict=True):
        mrr, mse = (values(name, metric, "temporal") for metric in METRICS)
        assert row[:4] == [label(name), str(max(len(mrr), len(mse))), spread(mrr), spread(mse)]


def test_the_leads_on_the_five_splits_and_the_targets_are_told():
    for metric, target in TARGETS.items():
        beyond = np.mean(values("best", metric)) - target
        word = "met" if METRICS[metric] * beyond >= 0 else "missed"
        assert f"{word} ({beyond:+.5f})".replace("-", "−") in TEXT
        other = best_first(metric)[0]
        told = f"{paired('best', other, metric)[0]} in {metric.upper()} over {label(other)}"
        assert told in TEXT


def test_a_row_of_unseen_splits_is_the_paired_difference_to_the_best_specialist_there():
    """Holm's correction counts all six comparisons, computed or not."""
    frame, rows, p = pd.DataFrame(UNSEEN), [], []
    for (name, seeds), metric in product(design.UNSEEN.items(), METRICS):
        planned, own = seed_list(seeds), frame[(frame.data == name) & frame[metric].notna()]
        own = own.pivot(index="seed", columns="method", values=metric)
        assert own.index.isin(planned).all()
        if not {"ours", *design.RIVALS[metric]} <= {*own.columns} or own.ours.isna().all():
            p.append(1.0)
            continue
        partly = [x for x in design.LATER[metric] if x in own and own[x].count() < len(planned)]
        own = own.drop(columns=partly).dropna()
        means = METRICS[metric] * own.drop(columns="ours").mean()
        change, n = own.ours - own[means.idxmax()], len(own)
        share = 0.05 if name == "ml-100k" else 0.25
        error = change.std() * (1 / n + share / (1 - share)) ** 0.5
        p.append(2 * stats.t.sf(abs(change.mean()) / error, n - 1))
        bounds = change.mean() + np.array([-1, 1]) * error * stats.t.ppf(0.975, n - 1)
        corrected = "[{:+.4f}, {:+.4f}]".format(*bounds).replace("-", "−")
        rival = f"{label(means.idxmax())}, {own[means.idxmax()].mean():.4f}"
        cells = [name, metric.upper(), f"{n} of {len(planned)}", f"{own.ours.mean():.4f}", rival]
        rows.append((len(p) - 1, [*cells, corrected], int(METRICS[metric] * change.mean() > 0)))
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.sort(p) * np.arange(6, 0, -1))
    holm = dict(zip(order.tolist(), np.minimum(steps, 1), strict=True))
    shown = {(row[0], row[1]): row for row in ROWS["unseen"]}
    assert len(shown) == len(rows)
    for k, cells, ahead in rows:
        row = shown[cells[0], cells[1]]
        assert [*row[:5], row[6]] == cells
        word = ["behind", "ahead"][ahead] if holm[k] < 0.05 else "not settled"
        assert row[8].endswith(f"; {word}")
        assert row[7] == ("< 0.0001" if holm[k] < 1e-4 else f"{holm[k]:.4f}")


def test_an_arms_row_is_its_paired_difference_to_its_reference_in_the_designs_order():
    for (name, arm), row in zip(ARMS.items(), ROWS["ablation"], strict=True):
        notes = [] if arm.against == "best" else [f"against “{arm.against}”"]
        if arm.on_record:
            notes.append(f"on record, commit {RUNS['random', name].commit.iloc[0][:7]}")
        cells = [f"{label(name)} ({'; '.join(notes)})" if notes else label(name)]
        for metric, untrained in {"mrr": "rating alone", "mse": "ranking alone"}.items():
            change = "" if name == "best" else paired(name, arm.against, metric)[0]
            own = [spread(values(name, metric)), change]
            cells += ["—", "—"] if name == untrained else own
        assert row[:5] == cells
        if arm.against != "best":
            told = " and ".join(paired(name, "best", metric)[0] for metric in METRICS)
            assert f"{name} {told}" in TEXT


def test_sharing_is_judged_by_the_recipe_minus_its_separate_arms_and_each_task_alone():
    wide, narrow = ["separate, each task as wide"] * 2, ["separate, as many parameters"] * 2
    names = [*wide, *narrow, "ranking alone", "rating alone", *wide]
    splits = ["random"] * 6 + ["temporal"] * 2
    for name, metric, split in zip(names, ["mrr", "mse"] * 4, splits, strict=True):
        told, sign = paired("best", name, metric, split)
        word = ["no difference seen", "helps", "hurts"][sign]
        assert f"{metric.upper()} {told} ({word})" in TEXT


def test_cost_and_search_add_up():
    seconds = [line["seconds"] for line in RECIPE if "seconds" in line][-1]
    joint, ease, fm = (np.median(seconds[name]) for name in ("joint", *SPECIALISTS))
    assert ROWS["ranking"][0][-1] == f"{joint:.1f}"
    ours = [line for line in TUNING if line["arguments"] not in SPECIALISTS]
    chosen = [line for line in ours if resolve(line["arguments"].split()) == BEST]
    mrr, mse = (np.mean([line[metric] for line in chosen]) for metric in METRICS)
    hours = sum(line["cpu_seconds_a_fold"] * 4 for line in ours) / 3600
    fitting = sum(sum(line["fit_seconds"]) for line in SEARCHES) / 3600
    trials = pd.Series([line["method"] for line in SEARCHES]).value_counts()
    for told in (
        f"takes {joint:.1f} s, EASE {ease:.1f} s and myFM, implicit features {fm:.1f} s",
        f"costs {joint / (ease + fm):.2f} of the two",
        f"{len(ours) - 6} trials of 4 folds, and 6 finalists on as many again: {hours:.1f} CPU",
        f"Over 8 validation parts the settings chosen have MRR {mrr:.4f} and MSE {mse:.4f};",
        f"{len(SEARCHES)} trials, from {trials.min()} to {trials.max()} a method, {fitting:.1f} h",
    ):
        assert told in TEXT


def recorded_line(method, source, apart, settings, first, folds) -> dict:
    """In place of a trial; a worker process finds it by its name."""
    own, what = [*map(tune.key, TUNING + SEARCHES)], (tune.name_of(settings), first)
    (place,) = (k for k, (search, which) in enumerate(own) if (search[2], which) == (method, what))
    return (TUNING + SEARCHES)[place]


ON_RECORD = [x for x in baselines.TUNABLE if any(x == line["method"] for line in SEARCHES)]


@pytest.mark.parametrize("method", ["ours", *ON_RECORD])
def test_a_search_goes_on_and_ends_with_the_settings_in_use(method, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tune, "trial", recorded_line)
    ml_100k = Mock(sha256=DATASETS["ml-100k"].sha256)
    monkeypatch.setattr(tune, "loaded", lambda source: ml_100k)
    monkeypatch.setattr(baselines, "missing", lambda *names: None)
    name = "tuning" if method == "ours" else "baselines_tuning"
    lines = records.read(ROOT / f"results/{name}.jsonl")
    by_sampler = [line for line in lines if tune.key(line)[0][2] == method][
        : design.SEARCHES[method].trials
    ]
    kept = [line for line in lines if line not in by_sampler[1:]]
    records.append(tmp_path / f"{name}.jsonl", kept)
    assert tune.main(["--out", str(tmp_path), "--method", method]) == 0
    chosen = json.loads(capsys.readouterr().out)
    if method == "ours":
        assert resolve(chosen["arguments"].split()) == BEST
    else:
        assert chosen["settings"] == baselines.METHODS[method].settings
    after = records.read(tmp_path / f"{name}.jsonl")
    assert sorted(map(str, after)) == sorted(map(str, lines))


def test_every_arm_is_on_record_as_it_is_planned_with_its_size_and_what_made_it():
    lines = [line for line in RECIPE if "arm" in line]
    assert {line["arm"] for line in lines} == ARMS.keys()
    planned = {stack["stack"]: resolve(stack["arguments"]) for stack in recipe.plan()}
    for line in lines:
        assert line["commit"] and line["versions"]["torch"] and line["device"] == "cpu"
        assert (line["stack"] in planned) == (line["arm"] in PLANNED)
        several = ("lambda_f", "lambda_r", "weight_decay")  # arguments are lists
        told = line | {name: np.atleast_1d(line[name]).tolist() for name in several}
        args = planned.get(line["stack"], {})
        common = args.keys() & told.keys() - {"split_seed"}
        assert [name for name in common if args[name] != told[name]] == [], line["stack"]
        if args and line["seed"] == 0:
            net = MultiTaskNet(943, 1682, seeds=range(args["ensemble"]), **pick(Structure, args))
            size = f"{sum(each.numel() for each in net.parameters()) / 1e6:.2f}"
            size = "—" if line["arm"] in ("ranking alone", "rating alone") else size
            assert ROWS["ablation"][list(ARMS).index(line["arm"])][-1] == size
