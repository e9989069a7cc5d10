"""Does a killed run, resumed, become the run never interrupted? To the last bit, many times.

    python -m checks.kill_resume --rounds 200 --pairs 60
    python -m checks.kill_resume --rounds 0 --pairs 0 --soak 2000

A round draws a small command of train.py, kills it by SIGKILL at a random moment, resumes it,
perhaps kills that too, and lets the last attempt finish. Then it compares with the same command
left alone: every parameter bit by bit, the history but for its seconds, the results, and every
TensorBoard curve (no step missing, none doubled). Children are forked from a process that has
everything imported, so a kill lands in the work and not in the imports.

A pair is two commands started together on one folder, empty, or with a run that both replace, or
with one that a kill left unfinished. One that ends well must have left what it leaves alone, unless
the other has replaced it since; one that is turned away, nothing. A soak is one long round: a stack
of 16, killed ten times, and the peak memory of the command left alone after a tenth of it and at
its end. The last line on stdout counts all of these; exit code 1 if there is a difference, a
mixture or a loss.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

import train
from arguments import Parser, number
from checks.synthetic import synthetic
from data import Interactions
from weighting import METHODS


def write_ratings(path: Path, data: Interactions) -> None:
    """The data as a CSV file with MovieLens' header."""
    columns = {"userId": data.user_ids, "movieId": data.item_ids, "rating": data.ratings}
    pd.DataFrame({**columns, "timestamp": data.timestamps}).to_csv(path, index=False)


LOSSES = [
    "--loss sigmoid",
    "--loss bpr",
    "--loss softmax",
    "--loss softmax --batch-by user --rating-head dot --rating-biases --user-history "
    "--item-history --leave-one-out --ranking-dropout 0.5 --rating-dropout 0.5 "
    "--schedule cosine",  # what recipes/best.txt adds
]


def draw_command(rng: random.Random) -> list[str]:
    parts = [
        "--embedding-dim 4 --lr 0.01 --batch-size 64",
        f"--epochs {rng.randint(4, 25)} --checkpoint-every {rng.randint(1, 9)}",
        rng.choice(["--shared", "--separate", "--shared-dims 2"]),
        rng.choice(LOSSES),
        rng.choice(["--optimizer adam", "--optimizer sgd"]),
        f"--seeds {rng.choice(['0', '3', '0-2'])} --ensemble {rng.choice('112')}",
        rng.choice(["", "--validation 0.1", "--validation 0.1 --select"]),
        rng.choice(["", "--eval-every 3", "--log-gradients"]),
        rng.choice(["", f"--weighting {' '.join(rng.sample(sorted(METHODS), 2))}"]),
    ]
    if "history" not in parts[3] and not parts[-1]:
        parts.append(rng.choice(["", "--sparse"]))
    if "adatask" in parts[-1]:  # it is an Adam
        parts[4] = "--optimizer adam"
    return " ".join(parts).split()


def start(arguments: list[str]) -> int:
    """Run train.py in a child: its process id."""
    child = os.fork()
    if child == 0:
        code = 99
        try:  # whatever happens, the child may not go on as its parent
            # tqdm's own lock is shared with the next child: killed inside it, one would hang all.
            tqdm.set_lock(threading.RLock())
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = train.main(arguments)
        finally:
            os._exit(code)
    return child


def ended(child: int, kill_after: float | None = None) -> int | None:
    """A child's exit code, or None if it was killed first."""
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # ended, it is still there until it is waited for
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The TensorBoard curves of a run: tag -> (step, value) pairs."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def contents(out: Path) -> dict:
    """All of a command's folders that must not depend on interruptions.

    Not the run's id, which is another once the code is committed: load_run compares those.
    """

    def own(name: str) -> bool:
        return name.endswith("seconds") or name in ("folder", "run_id")

    found = {}
    for folder in sorted(config.parent for config in out.rglob("config.json")):
        history = pd.read_csv(folder / "history.csv", dtype=str, keep_default_na=False)
        rows = {k: list(x) for k, x in history.items() if not own(k)}
        result = json.loads((folder / "result.json").read_text())
        result = {k: v for k, v in result.items() if not own(k)}
        parameters = torch.load(folder / "checkpoint.pt", weights_only=True)
        parameters = {name: value.numpy().tobytes() for name, value in parameters.items()}
        found[str(folder.relative_to(out))] = rows, result, parameters, scalars(folder)
    return found


def peaks(child: int) -> list[float]:
    """The peak memory of a child so far, MiB, every 50 ms until it ends."""
    found = []
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        lines = Path(f"/proc/{child}/status").read_text().splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
        time.sleep(0.05)
    return found


def one_round(rng: random.Random, ratings: Path, folder: Path) -> tuple[int, str | None]:
    """How many kills landed, and what differs, if anything."""
    arguments, started = ["--data", str(ratings), *draw_command(rng)], time.perf_counter()
    if ended(start([*arguments, "--out", str(folder / "alone")])) != 0:
        return 0, f"failed uninterrupted: {' '.join(arguments)}"
    duration = time.perf_counter() - started
    moments = [rng.uniform(0, 1.1 * duration) for _ in range(rng.randint(1, 3))]
    return killed_and_resumed(arguments, moments, folder)


def killed_and_resumed(arguments, moments: list[float], folder: Path) -> tuple[int, str | None]:
    """The command of folder / "alone", each attempt but the last killed after so many seconds."""
    out, kills = folder / "killed", 0
    command = [*arguments, "--out", str(out)]
    for moment in [*moments, None]:
        code = ended(start(command), moment)
        if code not in (None, 0):
            return kills, f"exit code {code}: {' '.join(command)}"
        kills += code is None
        if (out / "resume.pt").exists():
            command = ["--resume", str(out)]
    if left := [path.name for path in out.rglob(".*")]:
        return kills, f"left behind: {left}"
    same = contents(out) == contents(folder / "alone")
    return kills, None if same else f"differs: {' '.join(arguments)}"


def soak(rng: random.Random, ratings: Path, folder: Path, epochs: int) -> tuple[dict, str | None]:
    """What a long round counts, and what differs, if anything."""
    arguments, started = ["--data", str(ratings), "--epochs", str(epochs)], time.perf_counter()
    arguments += "--shared --seeds 0-15 --embedding-dim 4 --eval-every 10".split()
    arguments += "--weighting mgda --batch-size 512 --checkpoint-every 25".split()
    child = start([*arguments, "--out", str(folder / "alone")])
    memory = peaks(child)
    if ended(child) != 0:
        return {}, f"failed uninterrupted: {' '.join(arguments)}"
    duration = time.perf_counter() - started
    moments = [rng.uniform(0, duration / 10) for _ in range(10)]
    kills, problem = killed_and_resumed(arguments, moments, folder)
    line = {"soak_epochs": epochs, "soak_kills": kills, "soak_differences": int(bool(problem))}
    return line | {"soak_mib_early": memory[len(memory) // 10], "soak_mib": memory[-1]}, problem


def one_pair(rng: random.Random, ratings: Path, folder: Path) -> tuple[int, str | None]:
    """How many of two commands were turned away, and what was mixed or lost, if anything."""
    out, commands, alone = folder / "both", [], []
    for name in ("before", "one", "other"):
        commands.append(["--data", str(ratings), *draw_command(rng), "--out", str(out)])
        if ended(start([*commands[-1][:-1], str(folder / name)])) != 0:
            return 0, f"failed alone: {' '.join(commands[-1])}"
        alone.append(contents(folder / name))
    there = rng.choice(["nothing", "a run", "an unfinished run"])
    if there != "nothing":
        ended(start(commands[0]), None if there == "a run" else rng.uniform(0, 0.3))
        commands = [[*words, "--overwrite"] for words in commands]
    if (out / "resume.pt").exists() and there == "an unfinished run":
        commands[1], alone[1] = ["--resume", str(out)], alone[0]
    children = [start(words) for words in commands[1:]]
    codes = [ended(child) for child in children]
    told = f"of two started with {there}, exit codes {codes}: {commands}"
    ran = [x for x, code in zip(alone[1:], codes, strict=True) if code == 0]
    if not ran or not set(codes) <= {0, 2}:
        return 0, f"lost: {told}"
    if contents(out) not in ran or [*out.rglob(".*")]:
        return 0, f"mixed: {told}"
    for config in out.rglob("config.json"):
        train.load_run(config.parent)
    return codes.count(2), None


def main() -> int:
    parser = Parser(prog="python -m checks.kill_resume", description=__doc__)
    parser.add_argument("--rounds", type=number(int, 0), default=200, help="rounds (200)")
    parser.add_argument("--pairs", type=number(int, 0), default=60, help="pairs (60)")
    parser.add_argument("--soak", type=number(int, 0), default=0, help="epochs of the soak (0)")
    parser.add_argument("--seed", type=int, default=0, help="of commands and moments (0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, problems = random.Random(args.seed), []
    kinds = [one_round] * args.rounds + [one_pair] * args.pairs
    counts = {one_round: 0, one_pair: 0}
    with tempfile.TemporaryDirectory() as work:
        ratings = Path(work, "ratings.csv")
        write_ratings(ratings, synthetic(60, 80, 1500, seed=0))
        for k, kind in enumerate(tqdm(kinds, file=sys.stderr)):
            folder = Path(work, f"{k}")
            folder.mkdir()
            counted, problem = kind(rng, ratings, folder)
            counts[kind] += counted
            if problem:
                problems.append(problem.split()[0])
                tqdm.write(f"{k}: {problem}", file=sys.stderr)
            shutil.rmtree(folder)
        soaked, problem = soak(rng, ratings, Path(work), args.soak) if args.soak else ({}, None)
        if problem:
            problems.append(problem.split()[0])
            tqdm.write(problem, file=sys.stderr)
    mixed, lost = problems.count("mixed:"), problems.count("lost:")
    line = {}
    if args.rounds or not args.pairs + args.soak:
        differences = len(problems) - mixed - lost
        line = {"rounds": args.rounds, "kills": counts[one_round], "differences": differences}
    if args.pairs:
        line |= {"pairs": args.pairs, "turned_away": counts[one_pair]}
        line |= {"mixed": mixed, "lost": lost}
    print(json.dumps(line | soaked))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
