"""One joint model against specialists: what was fixed before it ran, for the runs and the report.

Protocol: MovieLens 100K, five random 95/5 splits, seeds 0 to 4. Settings are chosen by the mean
over validation parts inside split 0's training part, ours and the specialists'; with them a method
trains on the whole training part of each split, for the number of epochs chosen, and is tested
once, after the last epoch. Predicted ratings are clipped to the range of the training ratings.

The settings chosen stand in recipes/best.txt, the searches in searches.toml. An arm of the
ablation, in arms.toml, is that recipe with one thing changed, and nothing tuned again.

Unseen splits (joint/unseen.py), written down before any ran: 40 further random 95/5 splits of
ml-100k, with the settings above, though searches have seen ml-100k's rows; and 20 of each other
data set, whose test rows come from a fifth set apart before any search, settings chosen on the
other four fifths within one budget for every method. In the end a method trains on all rows but
the split's test part. For each data set and task the joint model is compared with the specialist
of the best mean on the same splits, in pairs; one of LATER takes part on a data set once it has all
of its splits there, which can only raise what ours is compared with. The interval is told plain,
and corrected for test and training parts that overlap (Nadeau and Bengio, Inference for the
Generalization Error, Machine Learning 2003), which takes the mean's variance as
s² (1/n + ρ / (1 − ρ)) for s² / n, ρ the share that a test part is of the rows it is drawn from. By
that variance one t-test for each data set and task, two-sided, Holm's correction over the six.
"""

import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import evaluation
from arguments import resolve
from data import Interactions, Split, random_split

ROOT = Path(__file__).parents[1]
SEEDS = "0-4"  # of the splits and of the models on them
METRICS = {name: evaluation.METRICS[name].better for name in ("mrr", "mse")}  # +1: up, −1: down
TARGETS = {"mrr": 0.152, "mse": 0.765}
SPECIALISTS = {"ease": "mrr", "fm-implicit": "mse"}  # the best at each task, to be ahead of
MEMBERS = 4  # of the ensemble, recipes/ensemble.txt

UNSEEN = {"ml-100k": "1000-1039", "filmtrust": "1000-1019", "ml-latest-small": "1000-1019"}  # seeds
RIVALS = {"mrr": ("ease", "als", "popularity"), "mse": ("fm-implicit", "biases")}
LATER = {"mrr": (), "mse": ("fm-ordered",)}  # joined after the first results
COMPARED = ("ours", *RIVALS["mrr"], *RIVALS["mse"], *LATER["mrr"], *LATER["mse"])
BUDGETS = {"filmtrust": 30, "ml-latest-small": 60}  # minutes of each method's search
TRIALS = 12  # of each method's search, at most
TEST, APART = 0.05, {"filmtrust": 0.2, "ml-latest-small": 0.2}  # shares of the rows
OVERLAP = {name: TEST / APART.get(name, 1) for name in UNSEEN}  # ρ


def unseen_split(name: str, data: Interactions, seed: int) -> Split:
    """Of ml-100k a random split; elsewhere the test rows come from those no search has seen."""
    if name not in APART:
        return random_split(data, seed, TEST)
    apart, n = random_split(data, 0, APART[name]).test, len(data)
    test = np.random.RandomState(seed).permutation(apart)[: round(TEST * n)]
    return Split(np.setdiff1d(np.arange(n), test), test[:0], test)


def read_table(name: str) -> dict[str, SimpleNamespace]:
    """The tables of a file beside this one, which says what they hold, with its [defaults]."""
    tables = tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    defaults = tables.pop("defaults")
    return {key: SimpleNamespace(**defaults | told) for key, told in tables.items()}


SEARCHES, ARMS = read_table("searches.toml"), read_table("arms.toml")
PLANNED = [name for name, arm in ARMS.items() if not arm.on_record]
TEMPORAL = ("best", "separate, each task as wide")  # trained on the temporal split too


def label(name: str) -> str:
    """What the documents call an arm or a specialist."""
    if name == "ensemble":
        return f"ensemble of {MEMBERS}"
    search = SEARCHES.get("ours" if name == "best" else name)
    return search.label if search else name


def recipe(without: str = "") -> list[str]:
    """The arguments of recipes/best.txt, without a flag."""
    words = shlex.split((ROOT / "recipes/best.txt").read_text(), comments=True)
    return [word for word in words if word != without]


def widths() -> dict[str, int | str]:
    """What arms with as many parameters, or as much decay, as the recipe have."""
    args = resolve(recipe())
    ranking, rating = args["ranking_dim"], args["rating_dim"]
    width = ranking + rating - args["shared_dims"]  # a user's or item's columns, each once
    own = round(width * ranking / (ranking + rating))
    decay = f"{sum(args['weight_decay']) / 3:.3g}"
    return dict(width=width, ranking=own, rating=width - own, decay=decay)


def arguments_of(name: str) -> list[str]:
    """What train.py is given for an arm, but for seeds and split."""
    return recipe(ARMS[name].without) + ARMS[name].changes.format(**widths()).split()
