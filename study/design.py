"""The study's design, fixed before it ran: arms, questions, tests, expectations.

run.py trains what `plan` lists and report.py tells what came of it. A setting is a structure and
how its tasks are weighed, like "shared.0.99" or "shared.mgda": λ_F, λ_R being 1 − λ_F, or a method.

Two protocols:
  report    95/5 random split, trained on the 95, the metrics of the last epoch.
  selected  of the 95, 5 are a validation part; the metrics of the epoch with the highest
            log(MRR) − log(MSE) there. The test part is the report's.
"""

import itertools
from collections import Counter
from typing import NamedTuple

DATA, *OTHERS = "ml-100k", "filmtrust", "ml-latest-small"
WIDTH = 32
DIAL_DIMS = range(0, WIDTH + 1, 8)  # shared dimensions
STRUCTURES = {  # as the names of arms have them: train.py's arguments
    "shared": "--shared",
    **{f"k{K}": f"--shared-dims {K}" for K in DIAL_DIMS[1:-1]},
    "separate": "--separate",
    "half": "--separate --embedding-dim 16",  # as many parameters as shared
}
ENDS = ("shared", "separate")
BOTH = (0.99, 0.5)  # the report's λ_F
SETTINGS = [f"{structure}.{f:g}" for structure in ENDS for f in BOTH]
WEIGHED = ("shared", "k16", "separate")  # structures that were trained with all of LAMBDAS
RATIOS = [99 ** (k / 4) for k in range(-4, 5)]  # λ_F : λ_R from 1:99 to 99:1, log-spaced
LAMBDAS = [0.0, *(round(ratio / (1 + ratio), 6) for ratio in RATIOS), 1.0]
BEYOND = tuple(round(ratio / (1 + ratio), 6) for ratio in (300, 1_000, 3_000, 10_000))
PROBES = ("rating-probe", "ranking-probe")  # the true ends of the dial
CAGRADS = ("cagrad:kappa=0.2", "cagrad:kappa=0.5", "cagrad:kappa=0.9")
MOVING = ("mgda", "nash-mtl", "uw", "famo", "gradnorm", *CAGRADS)  # their mean ratio isn't near 1
METHODS = (*MOVING, "pcgrad", "rlw", "adatask")
RULES = ("mgda", "nash-mtl", "uw", "pcgrad")  # one of each rule for the ratio of the norms
TUNED = (0.5, 0.99, *BEYOND[:2], *RULES)  # with a rate of their own, chosen on two seeds
RATES = tuple(f"--lr {lr} --weight-decay {w}" for lr in (5e-4, 1e-3, 2e-3) for w in (0, 0.03, 0.3))
SGD_RATES = tuple(f"--optimizer sgd --lr {lr}" for lr in (0.01, 0.03, 0.1, 0.3, 1, 3, 10))
TUNING_SEEDS = (100, 101)
SCALED = "--loss sigmoid-times-10"  # registered by controls.py
PLANTED = {f"synthetic-{share}": share / 100 for share in (0, 25, 50, 75, 100)}  # relatedness
PLANTED_SIZE = (1_000, 1_000, 30_000)  # users, items, ratings
DECIDING = (0.5, LAMBDAS[8], 0.99, *BEYOND, "rating-probe", "mgda", "nash-mtl", "uw", "famo")
SELECTED = "--validation 0.05 --select --eval-every 2"
SGD_LR = "1"  # the largest of 0.3, 1, 1.7, 3, 30 at which no setting grows unstable in 60 epochs
WORKERS = 2  # processes that the stacks train in, a thread each


class Experiment(NamedTuple):
    """Arms of one protocol: PROTOCOL.STRUCTURE.WEIGHTS, or NAME.… if it has more or is a control.

    A control takes something from other runs (see controls.py): "frozen" and "shuffled" the weights
    of a method, "tuned" the flags of the `tries` that were best on the validation parts of seeds of
    their own.
    """

    protocol: str
    structures: tuple[str, ...]
    weights: tuple[float | str, ...] = BOTH  # λ_F, or a method of weighting.py
    more: str = ""
    data: str = DATA
    control: str = ""
    tries: tuple[str, ...] = ("",)


EXPERIMENTS = {
    "report": Experiment("report", ENDS, more="--log-gradients"),
    "selected": Experiment("selected", ENDS),
    "sharing": Experiment("selected", ("k8", "k16", "k24")),
    "capacity": Experiment("selected", ("half",)),
    "sgd": Experiment("report", ENDS, more=f"--optimizer sgd --lr {SGD_LR}"),
    "temporal": Experiment("selected", ENDS, more="--split temporal"),
    "weights": Experiment("selected", (*ENDS, "k16"), tuple(f for f in LAMBDAS if f not in BOTH)),
    "beyond": Experiment("selected", ("shared",), BEYOND),
    "methods": Experiment("selected", ("shared",), (*PROBES, *METHODS)),
    "filmtrust": Experiment("selected", ("shared",), DECIDING, data="filmtrust"),
    "ml-latest-small": Experiment("selected", ("shared",), DECIDING, data="ml-latest-small"),
    # Questions 1 and 2 elsewhere, and each task alone.
    "filmtrust-sharing": Experiment("selected", ("separate", "k16"), data="filmtrust"),
    "filmtrust-alone": Experiment("selected", ("shared",), (0.0, 1.0), data="filmtrust"),
    "ml-latest-small-sharing": Experiment("selected", ("separate",), data="ml-latest-small"),
    # The same with a rate and a decay of each arm's own.
    **{f"{x}-tries": Experiment("selected", ENDS, data=x, tries=RATES) for x in (DATA, *OTHERS)},
    **{
        f"{x}-tuned": Experiment("selected", ENDS, data=x, control="tuned") for x in (DATA, *OTHERS)
    },
    "frozen": Experiment("selected", ("shared",), MOVING, control="frozen"),
    "shuffled": Experiment("selected", ("shared",), MOVING[:5], control="shuffled"),
    # Does sharing help where the tasks are related, and there alone?
    **{name: Experiment("selected", ENDS, data=name) for name in PLANTED},
    "half-shared": Experiment("selected", ("k16",), (*BEYOND, *PROBES, *RULES)),
    "scaled": Experiment("selected", ("shared",), (0.99, "mgda", "nash-mtl"), more=SCALED),
    "adam-tries": Experiment("selected", ("shared",), TUNED[2:], tries=RATES),
    "adam-tuned": Experiment("selected", ("shared",), TUNED[2:], control="tuned"),
    "sgd-tries": Experiment("selected", ("shared",), TUNED, tries=SGD_RATES),
    "sgd-tuned": Experiment("selected", ("shared",), TUNED, control="tuned"),
}
# Questions 1 and 2 on other data, planted data among it, or at own rates: their hours are apart.
ELSEWHERE = {
    x for x in EXPERIMENTS if x in PLANTED or x.startswith(tuple(f"{x}-" for x in (DATA, *OTHERS)))
}
BASELINES = {"popularity": "mrr", "global mean": "mse", "biases": "mse"}  # name -> its metric


def plan(seeds: list[int], epochs: int) -> list[dict]:
    """Every stack of the study: its name, arm, experiment, protocol, runs and train.py arguments.

    The runs of a stack differ in their seed alone. A control still lacks some of its arguments:
    "mirrors" names the stacks that they come from.
    """
    stacks = []
    for name, experiment in EXPERIMENTS.items():
        protocol, structures, dial, more, data, control, tries = experiment
        own = name if more or control or data != DATA or tries != ("",) else protocol
        mine = seeds if tries == ("",) else TUNING_SEEDS
        length = max(1, epochs // 2) if data in PLANTED else epochs  # smaller, and soon learned
        after = ["--seeds", ",".join(map(str, mine)), "--epochs", str(length), *more.split()]
        after += SELECTED.split() if protocol == "selected" else []
        after += ["--data", data] if data != DATA else []
        for structure, weights, tried in itertools.product(structures, dial, tries):
            flags, told, weigh = STRUCTURES[structure].split(), [weights], ["--weighting", weights]
            if not isinstance(weights, str):
                told = [f"{weights:g}", f"{round(1 - weights, 6):g}"]
                weigh = ["--lambda-f", told[0], "--lambda-r", told[1]]
            told = [word.replace(":kappa=", "-") for word in told]
            parts = [*(flag.replace("--", "") for flag in flags), *told]
            stack = {"stack": "_".join([name, *parts, *numbers_in(tried)])}
            stack |= {"arm": "-".join([f"{own}.{structure}.{told[0]}", *numbers_in(tried)])}
            stack |= {"experiment": name, "protocol": protocol, "data": data}
            stack["weighting"] = weights if isinstance(weights, str) else "fixed"
            if control == "tuned":
                source = name.replace("tuned", "tries")
                each = [numbers_in(flags) for flags in EXPERIMENTS[source].tries]
                mirrored = ["_".join([source, *parts, *words]) for words in each]
            elif control:  # the weights are the mirrored run's
                weigh, mirrored = [], ["_".join(["methods", *parts])]
                stack["weighting"] = "fixed" if control == "frozen" else control
            if control:
                stack |= {"control": control, "mirrors": mirrored}
            arguments = [*flags, *weigh, *after, *tried.split()]
            stacks.append({**stack, "arguments": arguments, "runs": len(mine), "epochs": length})
    return stacks


def numbers_in(flags: str) -> list[str]:
    return [word for word in flags.split() if word[0].isdigit()]


STACKS = {stack["stack"]: stack for stack in plan([0], 1)}
ARMS = {name: stack["arm"] for name, stack in STACKS.items()}
PLANNED = Counter(stack["experiment"] for stack in STACKS.values())  # experiment -> arms

# Is the first setting another than the second? Each question is a family of four tests, MRR and
# MSE under both protocols: Wilcoxon's signed-rank test over seeds, Holm's correction. All else of
# the study is estimation without tests.
QUESTIONS = {"q1": ("shared.0.5", "separate.0.5"), "q2": ("shared.0.99", "shared.0.5")}
TESTED = ("report", "selected")  # experiments of a family; lines hold users' reciprocal ranks
# And a third family of four, on the dial of PLACES: does a method beat the fixed ratio that each
# seed's validation part chooses: the method that it chooses, and MGDA as it is?
PLACES = ("selected", *OTHERS)
QUESTION_3 = {
    "q3.method": ("selected.chosen.method", "selected.chosen.fixed"),
    "q3.mgda": ("selected.shared.mgda", "selected.chosen.fixed"),
}
METRICS = ("mrr", "mse")
# What the report expected of first − second: above zero (1), below (−1) or none (0). Its words
# stand in tables.md.in.
EXPECTED = {
    name: sign
    for sign, names in {
        1: "q1.report.fall_epoch q1.report.mean_joint q1.report.mean_factorization "
        "q1.report.mean_regression q1.report.fluctuation q1.report.relative_fluctuation "
        "q1.report.mrr q1.selected.mrr q2.report.mean_regression q2.report.mse q2.selected.mse",
        0: "q2.report.mrr q2.selected.mrr",
        -1: "q1.report.mse q1.selected.mse q2.report.ranking_fluctuation "
        "q2.report.relative_ranking_fluctuation",
    }.items()
    for name in names.split()
}

# The published report's event files at the last epoch (minhtcai/multitask-recsys on GitHub).
CURVES = ("factorization_loss", "regression_loss", "joint_loss", "mrr", "mse")
PUBLISHED = {
    "shared.0.99": dict(zip(CURVES, (0.1935, 1.268, 0.204, 0.046, 1.299), strict=True)),
    "shared.0.5": dict(zip(CURVES, (0.1888, 1.270, 0.730, 0.041, 1.272), strict=True)),
    "separate.0.5": dict(zip(CURVES, (0.1910, 1.268, 0.730, 0.039, 1.253), strict=True)),
}
# The faults of its code, switched on one at a time by faults.py.
FAULTS = ("batch product", "dropped biases", "broadcast MSE")
VARIANTS = {"none": (), **{fault: (fault,) for fault in FAULTS}, "all three": FAULTS}
# Hypervolume's box, MRR and MSE: from what needs no model (popularity, global mean) to about the
# best specialist of each task. Fixed, so that an arm's volume doesn't depend on other arms.
REFERENCE, IDEAL = (0.0549, 1.276), (0.15, 0.75)


def label(setting: str) -> str:
    """A structure or setting as text: "k16.0.5" is "16 of 32 shared, 0.5/0.5"."""
    structure, _, f = setting.partition(".")
    text = f"{structure[1:]} of {WIDTH} shared" if structure[0] == "k" else structure
    return f"{text}, {f}/{1 - float(f):g}" if f else text
