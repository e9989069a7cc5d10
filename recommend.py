"""What to recommend, from the run folder that train.py leaves.

    python recommend.py RUN --user 196                       # what it liked, ten unseen items
    python recommend.py RUN --users all -n 20 --out top.csv  # to everybody
    python recommend.py RUN --new "Toy Story (1995)=5" "Heat (1995)=3"    # to somebody new
    python recommend.py RUN --like "Toy Story (1995)"        # the nearest items
    python recommend.py RUN --predict 196 "Heat (1995)"      # one pair
    python recommend.py RUN --export FOLDER                  # vectors and heads, to use elsewhere

Users and items are named by their original ids, items by their titles too. Recommended are the best
items outside the user's training and validation part, by the score s or, with --mix W, by
(1 − W) · s + W · r̂, score and predicted rating each standardised over the user's candidates.
From Python: `run = load_run(RUN)`, then `run.recommend(196)`, `run.predict(196, "Heat (1995)")`.
"""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from arguments import Parser, number
from models import MultiTaskNet, OneRun
from multitask import LOSSES, OverCatalogue, regression_loss
from run_folder import Run, load_run, saved_bytes, write_whole

STEPS, RATE = 200, 0.05  # of a new user's fit


# ---- who is new, what is near --------------------------------------------------------------


def new_user(run: Run, ratings: dict[int, float]) -> OneRun:
    """The model of one new user, of id 0, who gives k items (by contiguous id) these ratings.

    With a user history its row is the history part, Σ_j h_j / √k, and its biases are zero: at once
    and whatever the ratings. Else row and biases are fitted, as in fit_user.
    """
    net, model = run.model.members.as_used(), run.model
    items = torch.tensor(list(ratings))
    if model.members.structure.user_history:
        tables = {name: torch.zeros_like(table[:, :1]) for name, table in user_tables(net).items()}
        history = model.members.history_items[:, items]
        tables["users"] = history.sum(1, keepdim=True) / len(items) ** 0.5
    else:
        tables = fit_user(net, items, torch.tensor(list(ratings.values())), run.config)
    net.n_users = 1
    for name, table in tables.items():
        setattr(net, name, nn.Parameter(table, requires_grad=False))
    return OneRun(net, model.clip)


def user_tables(net: MultiTaskNet) -> dict[str, Tensor]:
    """What a net without histories knows of its users, (M, n_users, ...) each: rows and biases."""
    named = net.named_parameters()
    return {name: value for name, value in named if name == "users" or name.endswith("user_bias")}


def fit_user(net: MultiTaskNet, items: Tensor, ratings: Tensor, config: dict) -> dict[str, Tensor]:
    """Row and biases of a user with these k items and ratings, (k,) each: (M, 1, ...) each.

    They are x = m + s ∘ z, m and s the mean and standard deviation over the users of the net, and z
    minimises, by Adam from 0, all other parameters fixed,

        λ_F · L_F + λ_R · L_R + (1 / k) Σ_d w_d z_d²

    with the losses of the run's training but for dropout (a pairwise loss is over all negatives),
    and its λ, or 0.5 each where a weighting without λ trained it.
    The last term is a Gaussian prior, w_d = 0.01 λ_F plus λ_R where rating sees x_d: without it a
    handful of ratings is met by a row unlike any other. Nothing is drawn at random.
    """
    loss, weights = LOSSES[config["loss"]], [config.get(name) for name in ("lambda_f", "lambda_r")]
    lambda_f, lambda_r = [0.5, 0.5] if None in weights else weights
    tables, members = user_tables(net), len(net.users)
    mean = {name: table.mean(1, keepdim=True) for name, table in tables.items()}
    spread = {name: table.std(1, keepdim=True, correction=0) for name, table in tables.items()}
    prior = {name: torch.full_like(m, 0.01 * lambda_f + lambda_r) for name, m in mean.items()}
    prior["users"][..., : net.width - net.rating_dim] = 0.01 * lambda_f
    z = {name: torch.zeros_like(value, requires_grad=True) for name, value in mean.items()}
    optimizer = torch.optim.Adam(z.values(), lr=RATE)
    catalogue, own = torch.arange(net.n_items).expand(members, -1), items.expand(members, -1)
    negatives = torch.ones(net.n_items, dtype=torch.bool)
    negatives[items] = not config["exclude_positives"]
    for _ in range(STEPS):
        x = {name: mean[name] + spread[name] * z[name] for name in z}
        user = torch.zeros_like(catalogue)
        scores, predicted = functional_call(net, x, (user, catalogue))  # (M, n_items) each
        if isinstance(loss, OverCatalogue):
            factorization = loss.loss(scores[:, None], own, torch.zeros_like(own), None)
        else:
            pairs = torch.broadcast_tensors(scores[:, items, None], scores[:, None, negatives])
            factorization = loss(*pairs).mean(-1)
        regression = regression_loss(predicted[:, items], ratings.expand(members, -1))
        away = sum((prior[name] * z[name].square()).sum((1, 2)) for name in z) / len(items)
        optimizer.zero_grad()
        (lambda_f * factorization + lambda_r * regression + away).sum().backward()
        optimizer.step()
    return {name: value.detach() for name, value in x.items()}


def given_ratings(run: Run, words: list[str]) -> dict[int, float]:
    """["ITEM=RATING", ...] -> contiguous id -> rating. Raises ValueError for what isn't so."""
    low, high, ratings = run.data.ratings.min(), run.data.ratings.max(), {}
    for word in words:
        name, _, text = word.rpartition("=")
        rating = float(pd.to_numeric(text, errors="coerce"))
        if not name or not low <= rating <= high:
            right = f"ITEM=RATING with a rating from {low:g} to {high:g}"
            raise ValueError(f"--new {word!r}: {right} would be right")
        item = run.place("item", name)
        if item in ratings:
            raise ValueError(f"--new gives {name!r} two ratings: one would be right")
        ratings[item] = rating
    return ratings


def similar_items(run: Run, item: object, n: int = 10) -> pd.DataFrame:
    """The n items nearest to one, by cosine of the vectors that ranking sees (members' mean)."""
    net, place = run.served.members, run.place("item", item)
    vectors = F.normalize(net.ranking_window(net.items), dim=-1)  # (M, n_items, D_F)
    cosines = (vectors @ vectors[:, place, :, None]).squeeze(-1).mean(0)
    order = cosines.argsort(descending=True, stable=True)
    order = order[order != place][:n]
    return run.described(order, cosine=cosines[order])


# ---- to use elsewhere ----------------------------------------------------------------------


class Head(nn.Module):
    """A task's output from rows of exported arrays: u, q (M, B, D), biases (M, B, 1) -> (B,)."""

    def __init__(self, model: OneRun, task: str):
        super().__init__()
        self.task, self.head, self.clip = task, model.members.rating_head, model.clip
        self.register_buffer("mean_rating", model.members.mean_rating)

    def forward(self, u: Tensor, q: Tensor, user_bias: Tensor, item_bias: Tensor) -> Tensor:
        biases = (user_bias + item_bias).squeeze(-1)
        if self.task == "ranking":
            return ((u * q).sum(-1) + biases).mean(0)
        ratings = (self.head(u, q) + biases + self.mean_rating).mean(0)
        return ratings if self.clip is None else ratings.clamp(*self.clip)


def exported_arrays(run: Run) -> dict[str, np.ndarray]:
    """`user_ids`, `item_ids`, `item_titles` (n,), and for user and item, ranking and rating:
    `user_ranking` (M, n, D), with the histories, and `user_ranking_bias` (M, n, 1), zero if none.
    """
    net, data = run.served.members, run.data
    arrays = {"user_ids": data.user_labels, "item_ids": data.item_labels}
    if data.item_titles is not None:
        arrays["item_titles"] = data.item_titles
    biases = {"ranking": (net.user_bias, net.item_bias), "rating": net.rating_bias_tables()}
    for task, window in (("ranking", net.ranking_window), ("rating", net.rating_window)):
        none = task == "rating" and not net.structure.rating_biases
        tables = zip(("user", "item"), (net.users, net.items), biases[task], strict=True)
        for side, vectors, bias in tables:
            arrays[f"{side}_{task}"] = window(vectors).numpy()
            arrays[f"{side}_{task}_bias"] = (torch.zeros_like(bias) if none else bias).numpy()
    return arrays


def export(run: Run, folder: Path) -> list[Path]:
    """Write vectors.npz, ranking.pt2 and rating.pt2 (torch.export) and, with onnx, both as .onnx.

    A program takes rows of the arrays, see Head. Raises ValueError, and writes nothing, if a
    program, as read back, differs from the model on any of 1,000 pairs by over 1e-4 of its range.
    """
    arrays = exported_arrays(run)
    files = {"vectors.npz": saved_bytes(np.savez_compressed, **arrays)}
    rng, sizes = np.random.default_rng(0), {"user": run.data.n_users, "item": run.data.n_items}
    pairs = {side: torch.from_numpy(rng.integers(n, size=1000)) for side, n in sizes.items()}
    expected = run.model(pairs["user"], pairs["item"])
    for task, values in zip(("ranking", "rating"), expected, strict=True):
        names = [(side, f"{side}_{task}{part}") for part in ("", "_bias") for side in pairs]
        rows = tuple(torch.from_numpy(arrays[name])[:, pairs[side]] for side, name in names)
        shapes = [{1: torch.export.Dim("pairs")}] * 4
        program = torch.export.export(Head(run.served, task).eval(), rows, dynamic_shapes=shapes)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        files[f"{task}.pt2"] = buffer.getvalue()
        outputs = {f"{task}.pt2": torch.export.load(buffer).module()(*rows)}
        if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
            from onnx.reference import ReferenceEvaluator

            proto = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
            inputs = {x.name: row.numpy() for x, row in zip(proto.graph.input, rows, strict=True)}
            files[f"{task}.onnx"] = proto.SerializeToString()
            outputs[f"{task}.onnx"] = torch.tensor(ReferenceEvaluator(proto).run(None, inputs)[0])
        for name, output in outputs.items():
            if not (output - values).abs().max() <= 1e-4 * values.abs().max():
                raise ValueError(f"--export: {name} differs from the model: nothing is written")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


# ---- the command ---------------------------------------------------------------------------


def as_table(frame: pd.DataFrame) -> str:
    """Numbers to the right, text to the left."""
    columns = []
    for name, values in frame.items():
        cells = [name, *(f"{x:.2f}" if isinstance(x, float) else str(x) for x in values)]
        side, width = ">" if values.dtype.kind in "iuf" else "<", max(map(len, cells))
        columns.append([f"{cell:{side}{width}}" for cell in cells])
    return "".join("  ".join(row).rstrip() + "\n" for row in zip(*columns, strict=True))


FORMATS = {
    "table": as_table,
    "csv": lambda frame: frame.to_csv(index=False, float_format="%.7g"),
    "json": lambda frame: json.dumps(frame.to_dict("records"), ensure_ascii=False) + "\n",
}


def liked(run: Run, user: object, n: int = 5) -> pd.DataFrame:
    """A user's n highest-rated items of the training and validation part."""
    rows = run.known_rows[run.place("user", user)]
    rows = rows[np.argsort(-run.data.ratings[rows], kind="stable")][:n]
    return run.described(run.data.item_ids[rows], rating=run.data.ratings[rows])


def answer(run: Run, args) -> pd.DataFrame:
    """The rows that the command line asks for."""
    if args.like is not None:
        return similar_items(run, args.like, args.n)
    if args.predict:
        pair = run.predict(*args.predict)
        return run.described([run.place("item", args.predict[1])], **pair)
    if args.new:
        ratings = given_ratings(run, args.new)
        left_out = [] if args.known else list(ratings)
        return run.best_items(new_user(run, ratings), 0, left_out, args.n, args.mix)
    if args.user is not None:
        return run.recommend(args.user, args.n, args.mix, args.known)
    users = run.data.user_labels
    if args.users != ["all"]:
        users = users[[run.place("user", user) for user in args.users]]
    frames = [run.recommend(user, args.n, args.mix, args.known) for user in users]
    return pd.concat(frames, keys=users, names=["user", None]).reset_index("user")


def parse(argv: list[str] | None) -> tuple[Parser, object]:
    parser = Parser(prog="recommend.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder of train.py")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--user", metavar="ID", help="to a user, with what it liked")
    what.add_argument("--users", metavar="ID", nargs="+", help="to several, or to all")
    told = "to a new user, by some ratings"
    what.add_argument("--new", metavar="ITEM=RATING", nargs="+", help=told)
    what.add_argument("--like", metavar="ITEM", help="the items nearest to one")
    told = "predicted rating, score, and its rank among the user's unseen items"
    what.add_argument("--predict", metavar=("USER", "ITEM"), nargs=2, help=told)
    told = "write vectors.npz, and both heads as torch.export programs"
    what.add_argument("--export", metavar="FOLDER", type=Path, help=told)
    parser.add_argument("-n", metavar="N", type=number(int, 1), help="items (10)")
    told = "weight of the predicted rating in the order (0)"
    parser.add_argument("--mix", metavar="W", type=number(float, 0, 1), default=0.0, help=told)
    parser.add_argument("--known", action="store_true", help="leave out no known item")
    told = "if not as FILE's name ends, or a table"
    parser.add_argument("--format", choices=FORMATS, help=told)
    parser.add_argument("--out", metavar="FILE", type=Path, help="instead of stdout")
    args = parser.parse_args(argv)
    without = {"like": "--mix --known", "predict": "--mix --known -n"}
    without["export"] = "--mix --known -n --format --out"
    for what, flags in without.items():
        given = [flag for flag in flags.split() if getattr(args, flag.strip("-"))]
        if given and getattr(args, what) is not None:
            parser.error(f"{given[0]} has no effect on --{what}: drop it")
    args.n = args.n or 10
    return parser, args


def main(argv: list[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        run = load_run(args.run)
        if args.export:
            print(*export(run, args.export), sep="\n")
            return
        ending = args.out.suffix[1:] if args.out else ""
        form = args.format or (ending if ending in FORMATS else "table")
        text = FORMATS[form](answer(run, args))
        if form == "table" and args.user is not None:
            before = as_table(liked(run, args.user))
            text = f"User {args.user} liked\n\n{before}\nand may like\n\n{text}"
        if args.out:
            write_whole(args.out, text.encode())
        else:
            encoding = sys.stdout.encoding or "utf-8"  # a title may have what it lacks
            print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
