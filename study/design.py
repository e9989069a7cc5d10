"""The study's design, fixed before it ran: arms, questions, tests, expectations.

run.py trains what `plan` lists and report.py tells what came of it. A setting is (K, λ_F): K of 32
dimensions are shared, and λ_R is 1 − λ_F.

Two protocols:
  report    95/5 random split, trained on the 95, the metrics of the last epoch.
  selected  of the 95, 5 are a validation part; the metrics of the epoch with the highest
            log(MRR) − log(MSE) there. The test part is the report's.
"""

from collections import Counter
from typing import NamedTuple

DATA = "ml-100k"
WIDTH = 32
SHARINGS = {WIDTH: "shared", 16: "k16", 0: "separate"}  # K of the dial, as the numbers name it
BOTH = (0.99, 0.5)  # the report's λ_F
SETTINGS = [(K, f) for K in (WIDTH, 0) for f in BOTH]
RATIOS = [99 ** (k / 4) for k in range(-4, 5)]  # λ_F : λ_R from 1:99 to 99:1, log-spaced
LAMBDAS = [0.0, *(round(ratio / (1 + ratio), 6) for ratio in RATIOS), 1.0]
SELECTED = ["--validation", "0.05", "--select", "--eval-every", "2"]
SGD_LR = "1"  # the largest of 0.3, 1, 1.7, 3, 30 at which no setting grows unstable in 60 epochs
WORKERS = 2  # processes that the stacks train in, a thread each


class Experiment(NamedTuple):
    """Arms under one protocol: every structure with every λ_F, and more train.py arguments."""

    protocol: str
    structures: tuple[str, ...]
    lambdas: tuple[float, ...] = BOTH
    more: tuple[str, ...] = ()


ENDS = ("--shared", "--separate")
EXPERIMENTS = {
    "report": Experiment("report", ENDS, more=("--log-gradients",)),
    "selected": Experiment("selected", ENDS),
    "sharing": Experiment("selected", tuple(f"--shared-dims {K}" for K in (8, 16, 24))),
    "capacity": Experiment("selected", ("--separate --embedding-dim 16",)),
    "sgd": Experiment("report", ENDS, more=("--optimizer", "sgd", "--lr", SGD_LR)),
    "temporal": Experiment("selected", ENDS, more=("--split", "temporal")),
    "weights": Experiment(
        "selected", (*ENDS, "--shared-dims 16"), tuple(f for f in LAMBDAS if f not in BOTH)
    ),
}
DIAL = ("selected", "sharing", "weights")  # one protocol, disjoint arms
WITH_USERS = ("report", "selected")  # experiments whose lines hold every user's reciprocal rank
BASELINES = {"popularity": "mrr", "global mean": "mse", "biases": "mse"}  # name -> its metric


def plan(seeds: list[int], epochs: int) -> list[dict]:
    """Every stack of the study: its name, experiment, protocol, runs and train.py arguments.

    The runs of a stack differ in their seed alone.
    """
    stacks = []
    for name, (protocol, structures, lambdas, more) in EXPERIMENTS.items():
        for structure in structures:
            for f in lambdas:
                pair = f"{f:g}", f"{round(1 - f, 6):g}"
                arguments = [*structure.split(), "--lambda-f", pair[0], "--lambda-r", pair[1]]
                arguments += ["--seeds", ",".join(map(str, seeds)), "--epochs", str(epochs), *more]
                stack = f"{name} {structure} {' '.join(pair)}".replace("--", "").replace(" ", "_")
                stacks.append(
                    {
                        "stack": stack,
                        "experiment": name,
                        "protocol": protocol,
                        "runs": len(seeds),
                        "epochs": epochs,
                        "arguments": arguments + (SELECTED if protocol == "selected" else []),
                    }
                )
    return stacks


PLANNED = Counter(stack["experiment"] for stack in plan([0], 1))  # experiment -> arms


# ---- questions and expectations --------------------------------------------------------------


class Question(NamedTuple):
    """Is the first setting another than the second? Each is a family of four tests.

    MRR and MSE under both protocols: Wilcoxon's signed-rank test over seeds, Holm's correction.
    All else of the study is estimation without tests.
    """

    label: str
    first: tuple[int, float]
    second: tuple[int, float]


QUESTIONS = {
    "q1": Question("1: shared − separate, at 0.5/0.5", (WIDTH, 0.5), (0, 0.5)),
    "q2": Question("2: 0.99/0.01 − 0.5/0.5, shared", (WIDTH, 0.99), (WIDTH, 0.5)),
}
TESTED = ("report", "selected")  # experiments of a family
METRICS = ("mrr", "mse")


class Expectation(NamedTuple):
    """What the report expected of first − second: above zero (1), below (−1) or none (0)."""

    claim: str
    measure: str
    question: str
    sign: int
    experiments: tuple[str, ...] = ("report",)


EXPECTED = [
    Expectation("sharing converges more slowly", "fall_epoch", "q1", 1),
    Expectation("… or its losses stay higher: both", "mean_joint", "q1", 1),
    Expectation("… ranking's", "mean_factorization", "q1", 1),
    Expectation("… rating's", "mean_regression", "q1", 1),
    Expectation("sharing makes the joint loss fluctuate more", "fluctuation", "q1", 1),
    Expectation("… also in relation to its level", "relative_fluctuation", "q1", 1),
    Expectation("sharing ends with a better MRR", "mrr", "q1", 1, TESTED),
    Expectation("sharing ends with a better MSE", "mse", "q1", -1, TESTED),
    Expectation("0.99/0.01 makes the factorization loss smoother", "ranking_fluctuation", "q2", -1),
    Expectation("… and in relation to its level", "relative_ranking_fluctuation", "q2", -1),
    Expectation("0.99/0.01 makes the regression loss fall more slowly", "mean_regression", "q2", 1),
    Expectation("0.99/0.01 ends with the same MRR", "mrr", "q2", 0, TESTED),
    Expectation("0.99/0.01 ends with a worse MSE", "mse", "q2", 1, TESTED),
]

# ---- given from outside ----------------------------------------------------------------------

# The published report's event files at the last epoch (minhtcai/multitask-recsys on GitHub).
CURVES = ("factorization_loss", "regression_loss", "joint_loss", "mrr", "mse")
PUBLISHED = {
    (WIDTH, 0.99): dict(zip(CURVES, (0.1935, 1.268, 0.204, 0.046, 1.299), strict=True)),
    (WIDTH, 0.5): dict(zip(CURVES, (0.1888, 1.270, 0.730, 0.041, 1.272), strict=True)),
    (0, 0.5): dict(zip(CURVES, (0.1910, 1.268, 0.730, 0.039, 1.253), strict=True)),
}
# The faults of its code, switched on one at a time by faults.py.
FAULTS = ("batch product", "dropped biases", "broadcast MSE")
VARIANTS = {"none": (), **{fault: (fault,) for fault in FAULTS}, "all three": FAULTS}
# Hypervolume's box, MRR and MSE: from what needs no model (popularity, global mean) to about the
# best specialist of each task. Fixed, so that an arm's volume doesn't depend on other arms.
REFERENCE, IDEAL = (0.0549, 1.276), (0.15, 0.75)


# ---- names -----------------------------------------------------------------------------------


def setting(shared_dims: int, lambda_f: float | None = None) -> str:
    """A setting as text: "16 of 32 shared, 0.5/0.5"."""
    name = {WIDTH: "shared", 0: "separate"}.get(shared_dims, f"{shared_dims} of {WIDTH} shared")
    return name if lambda_f is None else f"{name}, {lambda_f:g}/{1 - lambda_f:g}"


def key(shared_dims: int, lambda_f: float) -> str:
    """A setting in the names of numbers: "k16.0.5"."""
    return f"{SHARINGS.get(shared_dims, f'k{shared_dims}')}.{lambda_f:g}"
