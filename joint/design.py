"""One joint model against specialists: what was fixed before it ran, for the runs and the report.

Protocol: MovieLens 100K, five random 95/5 splits, seeds 0 to 4. Settings are chosen by the mean
over validation parts inside split 0's training part, ours and the specialists'; with them a method
trains on the whole training part of each split, for the number of epochs chosen, and is tested
once, after the last epoch. Predicted ratings are clipped to the range of the training ratings.

The settings chosen stand in recipes/best.txt, the searches in searches.toml. An arm of the
ablation, in arms.toml, is that recipe with one thing changed, and nothing tuned again.
"""

import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import evaluation
from arguments import resolve

ROOT = Path(__file__).parents[1]
SEEDS = "0-4"  # of the splits and of the models on them
METRICS = {name: evaluation.METRICS[name].better for name in ("mrr", "mse")}  # +1: up, −1: down
TARGETS = {"mrr": 0.152, "mse": 0.765}
SPECIALISTS = {"ease": "mrr", "fm-implicit": "mse"}  # the best at each task, to be ahead of
MEMBERS = 4  # of the ensemble, recipes/ensemble.txt


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
