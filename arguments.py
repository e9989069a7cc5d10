"""The command line of train.py: options from dataclasses, argument files, one-line errors, names.

An option is declared once, as a field of Structure (models.py), Options (multitask.py) or Command
(below): its type, default, help, and range or choices. The flag, its checks, the entry of
config.json and the constructor's argument all come from there.
"""

import argparse
import dataclasses
import difflib
import hashlib
import math
import shlex
import sys
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from data import DATASETS
from models import Structure
from multitask import Options
from weighting import METHODS, parse

COUNT, WEIGHT, SEED = (1, 2**31 - 1), (0.0, math.inf), (0, 2**32 - 1)


@dataclasses.dataclass
class Command:
    """What a command of train.py does beside building and training its stack."""

    data: Annotated[str, f"{', '.join(DATASETS)}, or the path of a ratings file"] = "ml-100k"
    columns: Annotated[str | None, "which are which, as in user=uid,item=2,rating=score"] = None
    titles: Annotated[str | None, "a file with the items' titles"] = None
    split: Annotated[str, "how the last 5%% are set apart", ("random", "temporal")] = "random"
    split_seed: Annotated[int | None, "seed of the random split, if not the run's", SEED] = None
    validation: Annotated[float, "share of all held out of training", (0.0, 0.94)] = 0.0
    weighting: Annotated[tuple[str, ...], "fixed (λ), or a method of weighting.py"] = ("fixed",)
    lambda_f: Annotated[tuple[float, ...], "weights of the factorization loss", WEIGHT] = (0.99,)
    lambda_r: Annotated[tuple[float, ...], "weights of the MSE, paired with them", WEIGHT] = (0.01,)
    ensemble: Annotated[int, "members of a run, which predict their mean", COUNT] = 1
    select: Annotated[bool, "return the epoch of the best validation log MRR − log MSE"] = False
    clip_ratings: Annotated[bool, "clip predictions to the training ratings' range"] = False
    eval_every: Annotated[int, "epochs from one evaluation to the next", COUNT] = 1
    device: Annotated[str, "cpu, cuda or cuda:N"] = "cpu"
    threads: Annotated[int, "CPU threads: with 1 a busy core costs little", (1, 1024)] = 1
    deterministic: Annotated[bool, "torch's deterministic algorithms; a CPU needs none"] = False
    checkpoint_every: Annotated[int, "epochs from one checkpoint to the next", COUNT] = 50
    overwrite: Annotated[bool, "replace the run that FOLDER holds"] = False


# ---- flags ---------------------------------------------------------------------------------


MEANT = {"--learning-rate": "--lr", "--patience": "--select", "--early-stopping": "--select"}
MEANT |= {"--dim": "--embedding-dim", "--gpu": "--device", "--output": "--out"}


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
            name, flags = word.split("=")[0], self._option_string_actions
            near = [flag for flag in flags if flag.startswith(name) or flag == MEANT.get(name)]
            near = near or difflib.get_close_matches(name, flags, 1, 0.87)  # a letter or two
            hint = f": did you mean {' or '.join(near)}?" if 0 < len(near) < 5 else ""
            self.error(f"unknown argument {word!r}{hint}")
        return args

    def _print_message(self, message: str, file=None) -> None:
        """Help where λ can't be written: by its number."""
        encoding = getattr(file, "encoding", None) or "utf-8"
        super()._print_message(message.encode(encoding, "backslashreplace").decode(encoding), file)

    def error(self, message: str) -> None:
        print(f"{self.prog}: error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def number(kind: type, low: float, high: float = math.inf):
    """An argparse type: a finite int or float from low to high."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            noun = "an integer" if kind is int else "a number"
            limits = f"at least {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"{text!r} must be {noun} {limits}")
        return value

    return parse


def seed_list(text: str) -> list[int]:
    """'3' -> [3], '0-2,7' -> [0, 1, 2, 7]."""
    try:
        seeds = []
        for part in text.split(","):
            first, dash, last = part.partition("-")
            first, last = int(first), int(last if dash else first)
            if not 0 <= first <= last < first + 10_000:
                raise ValueError
            seeds += range(first, last + 1)
        if not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
            raise ValueError
    except ValueError:
        told = f"{text!r} must be different seeds from 0 to 2**32 - 1, like 3 or 0-9 or 0,2,5"
        raise argparse.ArgumentTypeError(told) from None
    return seeds


def add_options(parser: Parser, options: type, title: str) -> argparse._ArgumentGroup:
    """A flag for each field of a dataclass: Annotated[type, help, range or choices] = default.

    ``bool`` is a switch, a tuple takes one or more values, None means not given.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        kind, told, *limits = hints[field.name].__origin__, *hints[field.name].__metadata__
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        if kind is bool:
            group.add_argument(flag, action="store_true", help=told)
            continue
        several = typing.get_origin(kind) is tuple
        if several or typing.get_origin(kind) is types.UnionType:
            kind = typing.get_args(kind)[0]
        shown = " ".join(x if kind is str else plain(x) for x in default) if several else default
        named = {"help": told if default is None else f"{told} ({shown})"}
        named["default"] = list(default) if several else default
        named["metavar"] = LETTERS.get(field.name, {int: "N", float: "X"}.get(kind))
        if several:
            named["nargs"] = "+"
        if kind is not str:
            named["type"] = number(kind, *limits[0])
        elif limits:
            named["choices"] = list(limits[0])
        group.add_argument(flag, **named)
    return group


FEW = "help help_all data shared separate shared_dims weighting lambda_f lambda_r loss epochs lr "
FEW += "validation select seeds out resume"  # what --help shows
LETTERS = dict(shared_dims="K", embedding_dim="D", ranking_dim="D_F", rating_dim="D_R", hidden="H")
LETTERS |= dict(lambda_f="λ_F", lambda_r="λ_R", batch_size="B", ensemble="M", data="NAME|PATH")
LETTERS |= dict(columns="KIND=COLUMN,...", titles="PATH")


def build_parser(description: str = "") -> Parser:
    parser = Parser(
        prog="train.py",
        usage="%(prog)s [@FILE ...] [--FLAG VALUE ...]",
        description=description,
        fromfile_prefix_chars="@",
        epilog="@FILE reads arguments from a file, like @recipes/reference.txt.",
    )
    parser.add_argument("--help-all", action="help", help="show every flag, and exit")
    model = add_options(parser, Structure, "model")
    dial = model.add_mutually_exclusive_group()
    same = "both tasks use the same embeddings (default)"
    dial.add_argument("--shared", action="store_true", help=same)
    dial.add_argument("--separate", action="store_true", help="each task has embeddings of its own")
    add_options(parser, Options, "training")
    add = add_options(parser, Command, "data, tasks, evaluation, machine").add_argument
    told = "seed, or several as in 0-9: one run each, trained as a stack (0)"
    add("--seed", "--seeds", dest="seeds", type=seed_list, default=[0], metavar="SEEDS", help=told)
    told = "run folder (runs/ and a name that tells the settings)"
    add("--out", metavar="FOLDER", help=told)
    told = "go on with the command that wrote FOLDER; takes no other argument"
    add("--resume", metavar="FOLDER", help=told)
    return parser


def pick(options: type, values: dict) -> dict:
    """The entries of a dictionary that are fields of a dataclass."""
    return {f.name: values[f.name] for f in dataclasses.fields(options) if f.name in values}


def resolve(argv: list[str], description: str = "") -> dict:
    """The command line as a dictionary of plain values, every default settled.

    It is what config.json holds, and what a resumed command goes on with.
    Raises ValueError for values that contradict each other.
    """
    parser = build_parser(description)
    for action in parser._actions:
        if action.dest not in FEW.split() and "--help-all" not in argv:
            action.help = argparse.SUPPRESS
    args = vars(parser.parse_args(argv))
    if args["resume"] is not None:
        if any(args[name] != parser.get_default(name) for name in args.keys() - {"resume"}):
            raise ValueError("--resume takes no other argument: a run goes on as it began")
        return {"resume": args["resume"]}
    del args["resume"]
    shared, separate = args.pop("shared"), args.pop("separate")
    if (shared or separate) and args["shared_dims"] is not None:
        raise ValueError("--shared-dims goes without --shared and --separate: give one of them")
    if separate:
        args["shared_dims"] = 0
    structure = Structure(**pick(Structure, args))
    args |= dataclasses.asdict(structure)
    if shared and not structure.all_shared:
        raise ValueError(
            f"--shared needs equal widths, not --ranking-dim {args['ranking_dim']} and "
            f"--rating-dim {args['rating_dim']}: give --shared-dims {args['shared_dims']}"
        )
    Options(**pick(Options, args)).check(structure)
    if structure.rating_head in ("dot", "gmf") and structure.hidden != Structure.hidden:
        raise ValueError(f"--hidden has no effect on --rating-head {structure.rating_head}")
    pairs = list(zip(args["lambda_f"], args["lambda_r"], strict=False))
    if len(args["lambda_f"]) != len(args["lambda_r"]):
        raise ValueError(
            f"--lambda-f has {len(args['lambda_f'])} values and --lambda-r "
            f"{len(args['lambda_r'])}: they are paired, so it must be as many"
        )
    methods = [parse(text) for text in args["weighting"]]
    if len({str(method) for method in methods}) < len(methods):
        raise ValueError("--weighting names a method twice: give it once")
    if "fixed" not in args["weighting"]:
        if pairs != [(0.99, 0.01)]:
            raise ValueError("--lambda-f and --lambda-r weigh --weighting fixed alone: add it")
        args["lambda_f"] = args["lambda_r"] = []
    methods = [METHODS[name] for name, _ in methods]
    apart = any(m.needs_gram or m.per_task_moments or not m.weights_own for m in methods)
    for name in ("compile", "sparse"):
        if args[name] and apart:
            raise ValueError(f"--{name} takes the losses together: no weighting by gradients")
    if none := [pair for pair in pairs if max(pair) < 2**-126]:  # what is below is 0 in training
        told = "--lambda-f {:g} with --lambda-r {:g} leaves no loss".format(*none[0])
        raise ValueError(f"{told}: one must be above 1.2e-38, in float32")
    if len(set(pairs)) < len(pairs):
        raise ValueError("--lambda-f and --lambda-r name a pair of weights twice: give it once")
    if args["select"] and not args["validation"]:
        raise ValueError("--select needs a validation part: add --validation 0.05")
    if args["split"] == "temporal" and args["split_seed"] is not None:
        raise ValueError("--split-seed has no effect on --split temporal: drop one of them")
    for name in ("data", "titles"):
        if args[name] and args[name] not in DATASETS and Path(args[name]).exists():
            args[name] = str(Path(args[name]).resolve())
    args["out"] = args["out"] or str(Path("runs") / default_name(args))
    return args


# ---- names ---------------------------------------------------------------------------------


def plain(value: float) -> str:
    """0.5 -> '0.5', 1.0 -> '1': short, and different for different numbers."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def short_name(parts: Iterable[str], longest: int = 40) -> str:
    """The parts joined to a folder name; what is cut off a long one is told apart by a digest."""
    name = "_".join(parts).encode(errors="replace").decode()  # a path need not be UTF-8
    name = name.translate(str.maketrans("/:=,?", "-----"))
    if len(name) > longest:
        name = f"{name[: longest - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return name


def default_name(args: dict) -> str:
    """A folder name that tells what isn't a default, and always sharing and seeds, of one run λ."""
    dims, widths = args["shared_dims"], (args["ranking_dim"], args["rating_dim"])
    sharing = "separate" if dims == 0 else "shared" if (dims, dims) == widths else f"shared{dims}"
    pairs = zip(args["lambda_f"], args["lambda_r"], strict=True)
    seeds = args["seeds"]
    run = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    parts = [] if args["data"] == "ml-100k" else [Path(args["data"]).stem]
    weights = [f"f{plain(f)}-r{plain(r)}" for f, r in pairs]
    weights += [method for method in args["weighting"] if method != "fixed"]
    stack = len(seeds) * len(weights) > 1  # whose runs' own names tell weights and seed again
    parts.append(sharing)
    if not stack or weights != ["f0.99-r0.01"]:
        parts.append("-".join(weights))
    parts.append(f"seed{seeds[0]}-{seeds[-1]}" if run else f"seed{','.join(map(str, seeds))}")
    parser = build_parser()
    told = "data columns titles shared_dims weighting lambda_f lambda_r seeds out overwrite".split()
    for key, value in args.items():
        default = parser.get_default(key)
        default = args["embedding_dim"] if key in ("ranking_dim", "rating_dim") else default
        if key not in told and value != default:
            text = "-".join(map(plain, value)) if isinstance(value, list) else f"{value}"
            parts.append(key.replace("_", "-") + ("" if value is True else text))
    return short_name(parts, 22 if stack else 40)  # with a run's own name 40 in TensorBoard
