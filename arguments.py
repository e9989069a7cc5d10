"""The command line of train.py: every flag, its help, its checks.

Values come out as one dictionary of plain numbers and strings, every default settled: it is what
config.json holds, and what a resumed command goes on with.
"""

import argparse
import difflib
import hashlib
import math
import shlex
import sys
from pathlib import Path

from models import RATING_HEADS
from multitask import LOSSES


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, `#` comments in argument files, and a word on typos."""

    def __init__(self, **named):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=layout, allow_abbrev=False, **named)

    def _read_args_from_files(self, words: list[str], within: tuple[str, ...] = ()) -> list[str]:
        """Each @FILE replaced by the words it holds; argparse's own names no file in its errors."""
        found = []
        for word in words:
            if not word.startswith("@"):
                found.append(word)
                continue
            name = word[1:]
            if name in within:
                self.error(f"argument file {name} includes itself")
            try:
                lines = Path(name).read_text(encoding="utf-8").splitlines()
                held = [word for line in lines for word in shlex.split(line, comments=True)]
            except UnicodeDecodeError:
                self.error(f"argument file {name}: not UTF-8 text")
            except (OSError, ValueError) as error:
                self.error(f"argument file {name}: {getattr(error, 'strerror', None) or error}")
            found += self._read_args_from_files(held, (*within, name))
        return found

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        for word in unknown:
            close = difflib.get_close_matches(word.split("=")[0], self._option_string_actions)
            self.error(
                f"unknown argument {word!r}" + (f": did you mean {close[0]}?" if close else "")
            )
        return args

    def error(self, message: str) -> None:
        print(f"{self.prog}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def number(kind: type, low: float, high: float = math.inf, open_ends: bool = False):
    """An argparse type: a finite int or float from low to high, the ends left out on request."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        inside = low < value < high if open_ends else low <= value <= high
        if not (inside and math.isfinite(value)):
            noun = "an integer" if kind is int else "a number"
            limits = f"above {low}" if open_ends else f"at least {low}"
            if high < math.inf:
                limits += f" and {'below' if open_ends else 'at most'} {high}"
            raise argparse.ArgumentTypeError(f"{text!r} must be {noun} {limits}")
        return value

    return parse


def seed_list(text: str) -> list[int]:
    """'3' -> [3], '0-2,7' -> [0, 1, 2, 7]."""
    try:
        seeds = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            if not 0 <= int(first) <= int(last or first) < int(first) + 10_000:
                raise ValueError
            seeds += range(int(first), int(last or first) + 1)
        if not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be different seeds from 0 to 2**32 - 1, like 3 or 0-9 or 0,2,5"
        ) from None
    return seeds


def build_parser(description: str = "") -> argparse.ArgumentParser:
    parser = Parser(
        prog="train.py",
        description=description,
        fromfile_prefix_chars="@",
        epilog="@FILE reads arguments from a file, like @recipes/reference.txt.",
    )
    size, positive = number(int, 1, 2**31 - 1), number(float, 0, open_ends=True)
    width = number(int, 1, 2**14)
    add = parser.add_argument_group("data").add_argument
    add("--data", default="ml-100k", metavar="NAME|PATH", help="ml-100k, or a CSV or TSV file")
    add(
        "--split",
        choices=["random", "temporal"],
        default="random",
        help="how the last 5%% for the test are set apart",
    )
    add(
        "--split-seed",
        type=number(int, 0, 2**32 - 1),
        metavar="S",
        help="seed of the random split (default: the run's seed)",
    )
    add(
        "--validation",
        type=number(float, 0, 0.94),
        default=0.0,
        metavar="SHARE",
        help="share of all interactions taken from training for validation (default: none)",
    )
    add(
        "--exclude-positives",
        action="store_true",
        help="never draw one of the user's own training items as a negative",
    )

    group = parser.add_argument_group("model")
    add = group.add_argument
    dial = group.add_mutually_exclusive_group()
    dial.add_argument(
        "--shared", action="store_true", help="both tasks use the same embeddings (default)"
    )
    dial.add_argument("--separate", action="store_true", help="each task has embeddings of its own")
    dial.add_argument(
        "--shared-dims",
        type=number(int, 0),
        metavar="K",
        help="K dimensions common to both tasks, the others each task's own",
    )
    add(
        "--embedding-dim",
        type=width,
        default=32,
        metavar="D",
        help="dimensions that a task sees (32); tables begin with standard deviation 1/D",
    )
    add("--ranking-dim", type=width, metavar="D_F", help="dimensions that ranking sees (D)")
    add("--rating-dim", type=width, metavar="D_R", help="dimensions that rating sees (D)")
    add("--hidden", type=width, default=64, metavar="H", help="hidden units of the MLP (64)")
    add(
        "--rating-head",
        choices=RATING_HEADS,
        default="mlp",
        help="predict a rating by the MLP, a dot product of u and q, or their sum (mlp)",
    )
    add(
        "--rating-biases",
        action="store_true",
        help="the mean rating, user and item biases in the rating head too",
    )
    add(
        "--user-history",
        action="store_true",
        help="a user's vector also sums a vector of each training item",
    )
    add(
        "--item-history",
        action="store_true",
        help="an item's vector also sums a vector of each training user",
    )

    add = parser.add_argument_group("tasks").add_argument
    weight = number(float, 0)
    add(
        "--lambda-f",
        type=weight,
        nargs="+",
        default=[0.99],
        metavar="λ_F",
        help="weight of the factorization loss (0.99); several, paired with λ_R, make a stack",
    )
    add(
        "--lambda-r",
        type=weight,
        nargs="+",
        default=[0.01],
        metavar="λ_R",
        help="weight of the regression loss, in 1 / squared rating units (0.01)",
    )
    add(
        "--loss",
        choices=LOSSES,
        default="sigmoid",
        help="factorization loss: 1 − σ(p⁺ − p⁻), −log σ(p⁺ − p⁻), or softmax over the catalogue",
    )

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=size, default=200, help="passes over the training interactions (200)")
    add(
        "--batch-by",
        choices=["interaction", "user"],
        default="interaction",
        help="what a batch is of: interactions, or users with all theirs, for --loss softmax",
    )
    add(
        "--batch-size",
        type=size,
        default=256,
        metavar="B",
        help="interactions, or users, a step (256)",
    )
    add("--optimizer", choices=["adam", "sgd"], default="adam", help="adam or sgd")
    add("--lr", type=positive, default=1e-3, help="learning rate (0.001)")
    add(
        "--schedule",
        choices=["constant", "cosine"],
        default="constant",
        help="of the learning rate, over the epochs: as it is, or down to 0 as a cosine",
    )
    add(
        "--weight-decay",
        type=number(float, 0),
        nargs="+",
        default=[0.0],
        metavar="W",
        help="weight decay of all parameters, decoupled in adam (0); or three: of the tables' "
        "columns that are ranking's own, common, and rating's own",
    )
    rate = number(float, 0, 0.99)
    add(
        "--history-dropout",
        type=rate,
        default=0.0,
        metavar="P",
        help="share of a history left out in training (0)",
    )
    add(
        "--ranking-dropout",
        type=rate,
        default=0.0,
        metavar="P",
        help="dropout of the user's vector that ranking sees (0)",
    )
    add(
        "--rating-dropout",
        type=rate,
        default=0.0,
        metavar="P",
        help="dropout of the user's and the item's vector that rating sees (0)",
    )
    add(
        "--leave-one-out",
        action="store_true",
        help="in training, predict an interaction as if it weren't in the histories",
    )
    add(
        "--average",
        type=number(float, 0, 0.999999),
        default=0.0,
        metavar="DECAY",
        help="return the steps' exponential average of the parameters, with this decay (0: off)",
    )
    add(
        "--seed",
        "--seeds",
        type=seed_list,
        default=[0],
        metavar="SEEDS",
        help="seed, or several as in 0-9: one run each, trained as a stack (0)",
    )
    add(
        "--ensemble",
        type=size,
        default=1,
        metavar="M",
        help="members of a run, on one split, that predict their mean (1)",
    )

    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--select",
        action="store_true",
        help="return the epoch with the highest validation log(MRR) − log(MSE), not the last",
    )
    add(
        "--clip-ratings",
        action="store_true",
        help="clip predicted ratings to the training ratings' range",
    )
    add(
        "--eval-every",
        type=size,
        default=1,
        metavar="N",
        help="epochs from one evaluation to the next (1)",
    )
    add(
        "--eval-chunk",
        type=size,
        default=1024,
        metavar="ROWS",
        help="rows of scores, one a run and user, held at a time (1024)",
    )
    add(
        "--log-gradients",
        action="store_true",
        help="log cosine and norm ratio of the tasks' gradients, once an epoch",
    )

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    add(
        "--threads",
        type=number(int, 1, 1024),
        default=1,
        metavar="N",
        help="CPU threads (1: a busy second core costs little then)",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the losses: faster for large batches (needs a C++ compiler, or CUDA)",
    )
    add(
        "--deterministic",
        action="store_true",
        help="torch's deterministic algorithms (the CPU needs no such thing)",
    )

    add = parser.add_argument_group("output").add_argument
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder (default: runs/ and a name that tells the settings)",
    )
    add("--overwrite", action="store_true", help="replace the run that FOLDER holds")
    add(
        "--checkpoint-every",
        type=size,
        default=50,
        metavar="N",
        help="epochs from one checkpoint to the next (50)",
    )
    add(
        "--resume",
        type=Path,
        metavar="FOLDER",
        help="go on with the command that wrote FOLDER; takes no other argument",
    )
    return parser


def resolve(argv: list[str], description: str = "") -> dict:
    """The command line as a dictionary of plain values, every default settled.

    Raises ValueError for values that contradict each other.
    """
    parser = build_parser(description)
    args = vars(parser.parse_args(argv))
    if args["resume"] is not None:
        others = {name: parser.get_default(name) for name in args if name != "resume"}
        if others.items() != {name: args[name] for name in others}.items():
            raise ValueError("--resume takes no other argument: a run goes on as it began")
        return {"resume": str(args["resume"])}
    del args["resume"]
    args["seeds"] = args.pop("seed")
    args["ranking_dim"] = args["ranking_dim"] or args["embedding_dim"]
    args["rating_dim"] = args["rating_dim"] or args["embedding_dim"]
    narrower = min(args["ranking_dim"], args["rating_dim"])
    shared, separate = args.pop("shared"), args.pop("separate")
    if args["shared_dims"] is None:
        args["shared_dims"] = 0 if separate else narrower
    if args["shared_dims"] > narrower:
        raise ValueError(
            f"--shared-dims {args['shared_dims']} is more than the narrower task's {narrower} "
            "dimensions: it must be from 0 to that"
        )
    if shared and args["ranking_dim"] != args["rating_dim"]:
        raise ValueError(
            f"--shared needs equal widths, not --ranking-dim {args['ranking_dim']} and "
            f"--rating-dim {args['rating_dim']}: give --shared-dims {narrower}"
        )
    weights = args["lambda_f"], args["lambda_r"]
    if len(weights[0]) != len(weights[1]):
        raise ValueError(
            f"--lambda-f has {len(weights[0])} values and --lambda-r {len(weights[1])}: "
            "they are paired, so it must be as many"
        )
    pairs = list(zip(*weights, strict=True))
    for pair in pairs:
        if pair == (0, 0):
            raise ValueError("--lambda-f 0 with --lambda-r 0 leaves no loss: one must be above 0")
    if len(set(pairs)) < len(pairs):
        raise ValueError("--lambda-f and --lambda-r name a pair of weights twice: give it once")
    decay = args["weight_decay"]
    if len(decay) not in (1, 3):
        raise ValueError(f"--weight-decay takes 1 or 3 values, not {len(decay)}")
    args["weight_decay"] = decay[0] if len(decay) == 1 else decay
    by_user = args["batch_by"] == "user"
    if by_user and args["loss"] != "softmax":
        raise ValueError(
            f"--batch-by user needs --loss softmax: --loss {args['loss']} samples by interaction"
        )
    histories = args["user_history"] or args["item_history"]
    if args["history_dropout"] and not histories:
        raise ValueError(
            "--history-dropout has no effect without a history: add --user-history or "
            "--item-history"
        )
    if args["leave_one_out"] and (
        not (by_user and histories and args["rating_head"] == "dot") or args["history_dropout"]
    ):
        raise ValueError(
            "--leave-one-out needs a history, --batch-by user and --rating-head dot, "
            "and goes without --history-dropout"
        )
    dropouts = args["ranking_dropout"] or args["rating_dropout"]
    if args["compile"] and (by_user or histories or dropouts):
        raise ValueError("--compile is for batches by interaction, without history or dropout")
    if args["select"] and not args["validation"]:
        raise ValueError("--select needs a validation part: add --validation 0.05")
    if args["split"] == "temporal" and args["split_seed"] is not None:
        raise ValueError("--split-seed has no effect on --split temporal: drop one of them")
    if args["exclude_positives"] and args["loss"] == "softmax":
        raise ValueError("--exclude-positives has no effect on --loss softmax: drop one of them")
    if args["data"] != "ml-100k" and Path(args["data"]).exists():
        args["data"] = str(Path(args["data"]).resolve())
    args["out"] = str(args["out"] or Path("runs") / default_name(args))
    return args


def plain(value: float) -> str:
    """0.5 -> '0.5', 1.0 -> '1': short, and different for different numbers."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def default_name(args: dict) -> str:
    """A folder name that tells what isn't a default, and always sharing, weights and seeds."""
    dims, widths = args["shared_dims"], (args["ranking_dim"], args["rating_dim"])
    sharing = "separate" if dims == 0 else "shared" if (dims, dims) == widths else f"shared{dims}"
    pairs = zip(args["lambda_f"], args["lambda_r"], strict=True)
    weights = "-".join(f"f{plain(f)}-r{plain(r)}" for f, r in pairs)
    seeds = args["seeds"]
    run = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    seeds = f"{seeds[0]}-{seeds[-1]}" if run else ",".join(map(str, seeds))
    name = [sharing, weights, f"seed{seeds}"]
    parser = build_parser()
    told = ("data", "shared_dims", "lambda_f", "lambda_r", "seeds", "out", "overwrite")
    for key, value in args.items():
        default = parser.get_default(key)
        default = args["embedding_dim"] if key in ("ranking_dim", "rating_dim") else default
        default = default[0] if key == "weight_decay" else default
        if key not in told and value != default:
            text = "-".join(map(plain, value)) if isinstance(value, list) else f"{value}"
            name.append(key.replace("_", "-") + ("" if value is True else text))
    if args["data"] != "ml-100k":
        name.insert(0, Path(args["data"]).stem)
    name = "_".join(name).replace("/", "-").encode()
    if len(name) > 200:  # file systems take 255 bytes; what is cut off is told apart by a digest
        name = name[:190] + b"-" + hashlib.sha256(name).hexdigest()[:8].encode()
    return name.decode(errors="ignore")
