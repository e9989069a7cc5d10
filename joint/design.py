"""One joint model against specialists: what was fixed before it ran, for the runs and the report.

Protocol: MovieLens 100K, five random 95/5 splits, seeds 0 to 4. Settings are chosen by the mean
over validation parts inside split 0's training part, ours and the specialists'; with them a method
trains on the whole training part of each split, for the number of epochs chosen, and is tested
once, after the last epoch. Predicted ratings are clipped to the range of the training ratings.

The settings chosen stand in recipes/best.txt, the searches in searches.toml. An arm of the ablation
is that recipe with one thing changed, and nothing tuned again.
"""

import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

import evaluation
from arguments import resolve

ROOT = Path(__file__).parents[1]
SEEDS = "0-4"  # of the splits and of the models on them
METRICS = {name: evaluation.METRICS[name].better for name in ("mrr", "mse")}  # +1: up, −1: down
TARGETS = {"mrr": 0.152, "mse": 0.765}
SPECIALISTS = {"ease": "mrr", "fm-implicit": "mse"}  # the best at each task, to be ahead of
MEMBERS = 4  # of the ensemble, recipes/ensemble.txt
SEARCHES = tomllib.loads(Path(__file__).with_name("searches.toml").read_text(encoding="utf-8"))


def label(name: str) -> str:
    """What the documents call an arm or a specialist."""
    if name == "ensemble":
        return f"ensemble of {MEMBERS}"
    return SEARCHES[name]["label"] if name in SEARCHES else name


# ---- the ablation ----------------------------------------------------------------------------


class Arm(NamedTuple):
    """The recipe with one thing changed."""

    changes: str = ""  # arguments after the recipe's; numbers in braces are those of `widths`
    without: str = ""  # a flag of the recipe's that it goes without
    against: str = "best"  # the arm that it is compared with, where that isn't the recipe
    on_record: bool = False  # its option gave nothing and is gone: results hold its last figures


NOTHING_LEFT_OUT = dict(without="--leave-one-out", against="nothing left out")
BY_INTERACTION = "--batch-by interaction --batch-size 4096"
ARMS = {
    "best": Arm(),
    "separate, each task as wide": Arm("--shared-dims 0"),
    "separate, as many parameters": Arm(
        "--shared-dims 0 --ranking-dim {ranking} --rating-dim {rating}"
    ),
    "all shared, as many parameters": Arm(
        "--shared-dims {width} --ranking-dim {width} --rating-dim {width}"
    ),
    "ranking alone": Arm("--lambda-f 1 --lambda-r 0"),
    "rating alone": Arm("--lambda-f 0 --lambda-r 1"),
    "no user history": Arm(without="--user-history"),
    "no item history": Arm(without="--item-history"),
    "MLP for the dot product": Arm("--rating-head mlp", **NOTHING_LEFT_OUT),
    "MLP beside the dot product": Arm(against="nothing left out", on_record=True),
    "no biases and mean in the rating": Arm(without="--rating-biases"),
    "nothing left out": Arm(without="--leave-one-out"),
    "history dropout for leaving out": Arm(on_record=True),
    "no ranking dropout": Arm("--ranking-dropout 0"),
    "no rating dropout": Arm("--rating-dropout 0"),
    "no weight decay": Arm("--weight-decay 0"),
    "one weight decay": Arm("--weight-decay {decay} {decay} {decay}"),
    "constant learning rate": Arm("--schedule constant"),
    "averaged weights": Arm(on_record=True),
    "batches of 4,096 interactions": Arm(BY_INTERACTION, **NOTHING_LEFT_OUT),
    "BPR loss": Arm(
        f"{BY_INTERACTION} --loss bpr", "--leave-one-out", "batches of 4,096 interactions"
    ),
    "ensemble": Arm(f"--ensemble {MEMBERS}"),
}
PLANNED = [name for name, arm in ARMS.items() if not arm.on_record]
TEMPORAL = ("best", "separate, each task as wide")  # trained on the temporal split too


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
