"""Do the tests notice a fault in the core? Small changes of it, one at a time, drawn at random.

    nice -n 10 python -m checks.mutate --mutants 160 --out mutants.jsonl

A mutant has one operator, comparison, number, truth value, condition or returned value changed, and
is killed if the tests of its module fail; without a change they have to pass. Each verdict is
appended to ``--out``: the same command goes on after a stop, and tries survivors again. The last
line on stdout counts, and lists survivors with what is known of them; exit code 1 if one isn't
known to be equivalent. Type hints, texts, errors, what needs a CUDA device and the figures of named
data sets are left alone. Each mutant runs on a copy of the tree, in a process forked from one with
all libraries imported.
"""

import ast
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from tqdm import tqdm

from arguments import Parser, number

ROOT = Path(__file__).parents[1]
LIBRARIES = """torch pandas scipy.sparse matplotlib.figure torch.utils.tensorboard filelock pooch
tensorboard.backend.event_processing.event_accumulator safetensors.torch"""
TESTS = {  # of each module, the quickest first
    "weighting": ["test_weighting"],
    "models": ["test_models", "test_multitask", "test_recommend"],
    "evaluation": ["test_evaluation", "test_train"],
    "data": ["test_data"],
    "multitask": ["test_multitask", "test_gradients"],
    "gradients": ["test_multitask", "test_gradients"],
}
# Of survivors that do what the core does, a part of the changed line, and why.
EQUIVALENT = {
    "'steps': (2, 0.0)}": "both columns count the same steps",
    "n_users = 2 + max(": "one more user, without a test item",
    "close_matches(name.lower(), known, 2)": "the first alone is told",
    "zip(*pairs, strict=False)": "both are split alike",
    "self.size = max(1, 2 ** 16 *": "how many pairs are held at a time",
    "COMPARED = 2 ** 20": "how much is compared at a time",
    "ids.sort(stable=False)": "the order within an id is one of summing",
    "least > 3 * torch.finfo": "a bound of rounding",
    "{'cpu': 2 ** 20, 'cuda': 3 ** 27}": "how many scores are held at a time",
    "{'cpu': 2 ** 21, 'cuda': 2 ** 27}": "the same",
    "own.shape[1] > SORTED_FROM": "rows of so many are compared, not sorted, and counted alike",
    "values.min(initial=1)": "it is asked whether one is below 0",
    "if scale != 1 else [some]": "the probes are made at other margins",
}
SWAPS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.FloorDiv, ast.Mult), (ast.Mod, ast.Mult)]
SWAPS += [(ast.Pow, ast.Mult), (ast.BitAnd, ast.BitOr), (ast.And, ast.Or), (ast.Lt, ast.LtE)]
SWAPS += [(ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
SWAP = {b: a for a, b in SWAPS} | dict(SWAPS)
CPU_SECONDS, SECONDS = 200, 1200  # a mutant that takes longer hangs


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Fields of a node, with what may stand there instead."""
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAP:
            yield "op", SWAP[type(op)]()
        case ast.Compare(ops=[op]) if type(op) in SWAP:
            yield "ops", [SWAP[type(op)]()]
        case ast.Constant(value=bool()):
            yield "value", not node.value
        case ast.Constant(value=int() | float()):
            yield "value", node.value + 1
        case ast.UnaryOp(op=ast.USub()):
            yield "op", ast.UAdd()
        case ast.UnaryOp(op=ast.Not()):
            yield "operand", ast.UnaryOp(ast.Not(), node.operand)
        case ast.If() | ast.IfExp() | ast.While():
            yield "test", ast.UnaryOp(ast.Not(), node.test)
        case ast.Return(value=ast.expr()):
            yield "value", ast.Constant(None)


def changeable(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it that may change."""
    yield node
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            left_alone = isinstance(child, ast.JoinedStr | ast.Raise)
            left_alone |= getattr(child, "name", None) == "CapturedStep"
            left_alone |= isinstance(child, ast.Assign) and "MOVIELENS" in ast.unparse(
                child.targets
            )
            if isinstance(child, ast.AST) and not left_alone | (field in ("annotation", "returns")):
                yield from changeable(child)


def draw(n: int, seed: int) -> dict[str, tuple[str, str]]:
    """Mutants by module, line before and after: the module, and its source."""
    trees = {module: ast.parse((ROOT / f"{module}.py").read_text()) for module in TESTS}
    lines = {module: ast.unparse(tree).splitlines() for module, tree in trees.items()}
    found, drawn = [], {}
    for module, tree in trees.items():
        found += [(module, node, *new) for node in changeable(tree) for new in changes(node)]
    for module, node, field, new in random.Random(seed).sample(found, len(found)):
        old = getattr(node, field)
        setattr(node, field, new)
        source = ast.unparse(trees[module])
        setattr(node, field, old)
        pairs = zip(lines[module], source.splitlines(), strict=False)
        before, after = next((a.strip(), b.strip()) for a, b in pairs if a != b)
        drawn[f"{module}.py: {before} → {after}"] = module, source
        if len(drawn) == n:
            break
    return drawn


def survives(copy: Path, tests: list[str]) -> bool:
    """Whether the tests pass on the copy."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            for name, module in [*sys.modules.items()]:
                if (getattr(module, "__file__", None) or "").startswith(f"{ROOT}/"):
                    del sys.modules[name]  # the copy's are meant
            sys.path[:] = [str(copy), *(path for path in sys.path if path != str(ROOT))]
            os.chdir(copy)
            tqdm._instances.clear()  # the bar of the verdicts would show in what tests compare
            # A clock tells nothing of a mutant.
            flags = ["-x", "-q", "-p", "no:cacheprovider", "-k", "not under_100_ms"]
            code = pytest.main([*flags, *tests])
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    parser = Parser(prog="python -m checks.mutate", description=__doc__)
    parser.add_argument("--mutants", type=number(int, 1), default=160, help="how many (160)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--out", type=Path, required=True, help="file of verdicts")
    args = parser.parse_args()
    args.out.touch()
    verdicts = dict(map(json.loads, args.out.read_text().splitlines()))
    drawn = draw(args.mutants, args.seed)
    controls = {f"{m}.py unchanged": (m, (ROOT / f"{m}.py").read_text()) for m in TESTS}
    left = {key: x for key, x in drawn.items() if verdicts.get(key) != "killed"}
    for name in LIBRARIES.split():
        importlib.import_module(name)
    sys.dont_write_bytecode = True
    # The first failure is enough.
    settings.register_profile("brief", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("brief")
    with tempfile.TemporaryDirectory() as work, args.out.open("a") as out:
        copy = Path(work, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "runs"))
        for key, (module, source) in tqdm((controls | left).items()):
            path = copy / f"{module}.py"
            original = path.read_text()
            path.write_text(source)
            lives = survives(copy, [f"tests/{name}.py" for name in TESTS[module]])
            path.write_text(original)
            verdicts[key] = "survived" if lives else "killed"
            if key in controls and not lives:
                sys.exit(f"tests fail without a mutant: {key}")
            print(json.dumps([key, verdicts[key]], ensure_ascii=False), file=out, flush=True)
    survivors = sorted(key for key in drawn if verdicts[key] == "survived")
    why = {key: [w for part, w in EQUIVALENT.items() if part in key] for key in survivors}
    line = {"mutants": len(drawn), "killed": len(drawn) - len(survivors)}
    line |= {"equivalent": sum(map(bool, why.values())), "survivors": why}
    print(json.dumps(line, ensure_ascii=False))
    return 0 if all(why.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
