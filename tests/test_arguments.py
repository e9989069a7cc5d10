"""The command line: options declared once, argument files, errors in one line, folder names."""

import dataclasses
import io
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from small import config, refused

import arguments
from arguments import Command, resolve
from models import Structure
from multitask import Options
from run_folder import plan_runs

ROOT = Path(arguments.__file__).parent
BAD = """
--data ml-99k                           | ml-99k
--lambda-f -1                           | '-1' must be a number at least 0
--lambda-f 0 --lambda-r 0               | --lambda-f 0 with --lambda-r 0
--lambda-f 1e-300 --lambda-r 0          | --lambda-f 1e-300 with --lambda-r 0 leaves no loss
--lambda-f 1 9e-39 --lambda-r 1 9e-39   | --lambda-f 9e-39 with --lambda-r 9e-39 leaves no loss
--lambda-f nan                          | 'nan'
--lambda-f 1 2                          | --lambda-f has 2 values and --lambda-r 1
--epochs 0                              | '0' must be an integer at least 1
--batch-size 0                          | '0'
--embedding-dim 1.5                     | '1.5'
--lr 0                                  | '0' must be a number at least 1e-12
--shared-dims 40                        | shared_dims is 40
--shared --shared-dims 4                | --shared-dims goes without --shared
--shared --separate                     | not allowed with
--lamda-f 0.5                           | did you mean --lambda-f?
--epoch 3                               | did you mean --epochs?
--device cuda:7                         | cuda:7
--device quantum                        | quantum
--seeds 3-1                             | '3-1'
--select                                | --select needs a validation part
--resume nowhere                        | nowhere
--resume nowhere --epochs 3             | --resume takes no other argument
--overwrite --resume=nowhere            | --resume takes no other argument
@nowhere.txt                            | nowhere.txt
--loss hinge                            | hinge
--validation 0.97                       | '0.97' must be a number at least 0 and at most 0.94
--seeds 0-99999999999                   | 0-99999999999
--threads 10000000000                   | 10000000000
--embedding-dim 1000000000              | 1000000000
--eval-every 99999999999999999999       | 99999999999999999999
--split temporal --split-seed 3         | --split-seed has no effect
--batch-by user                         | --batch-by user needs a loss over the catalogue
--weight-decay 1 2                      | --weight-decay takes 1 or 3 values
--ranking-dropout 1                     | '1' must be a number
--compile --ranking-dropout 0.5         | --compile is for
--leave-one-out --user-history          | --leave-one-out needs
--sparse --weight-decay 0.1             | --sparse leaves rows alone
--sparse --item-history                 | --sparse leaves rows alone
--sparse --weighting gls mgda           | --sparse takes the losses together
--sparse --weighting adatask            | --sparse takes the losses together
--average                               | unknown argument '--average'
--history-dropout 0.5                   | unknown argument '--history-dropout'
--learning-rate 1                       | '--learning-rate': did you mean --lr?
--patience=3                            | did you mean --select?
--batch 64                              | did you mean --batch-by or --batch-size?
--hidden 32 --rating-head dot           | --hidden has no effect on --rating-head dot
--seeds 0-                              | '0-'
--rating-head both                      | --rating-head: invalid choice: 'both'
"""


@pytest.mark.parametrize("line", BAD.strip().splitlines())
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(command, line):
    words, named = (part.strip() for part in line.split(" | "))
    assert named in refused(command, words)
    assert not list(Path().iterdir())


def test_an_unknown_flag_that_is_near_none_gets_no_hint(command):
    for word in "momentum clip-gradients test-size val-split dot workers e rating-model".split():
        assert refused(command, f"--{word} 1").endswith(f"unknown argument '--{word}'\n")


def test_help_shows_a_dozen_flags_and_help_all_every_one(capsys):
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit, match="0"):
            resolve([word])
        shown[word] = re.findall(
            r"^  (?:-h, |--seed SEEDS, )?(--[a-z-]+)", capsys.readouterr().out, re.M
        )
    few, every = shown.values()
    assert 12 <= len(few) <= 18 and {"--data", "--lambda-f", "--seeds", "--out"} <= set(few)
    actions = arguments.build_parser()._actions
    assert sorted(every) == sorted(action.option_strings[-1] for action in actions)


@pytest.mark.parametrize("options", [Structure, Options, Command])
def test_every_option_is_a_flag_and_an_entry_of_config_json_under_one_name(options, one_run):
    parser, written = arguments.build_parser(), config(one_run)
    defaults, flags = vars(parser.parse_args([])), parser.format_help()
    for field in dataclasses.fields(options):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        assert len(re.findall(rf"^  {flag}(?=\s)", flags, re.MULTILINE)) == 1, flag
        assert defaults[field.name] == (list(default) if type(default) is tuple else default)
        assert field.name in written or field.name == "overwrite"  # of the folder, not the run
    asked = resolve(["--epochs", "3", "--log-gradients"])
    alike = asked.keys() & written.keys() - set("lambda_f lambda_r data lr hidden".split())
    other = {name for name in alike if asked[name] != written[name]}
    dims = {"embedding_dim", "ranking_dim", "rating_dim", "shared_dims"}
    assert other == {*dims, "split_seed", "weighting"}  # of which a run has one


def test_an_option_is_declared_once():
    names = [x.name for kind in (Structure, Options, Command) for x in dataclasses.fields(kind)]
    own = {"seeds", "out", "resume", "shared", "separate"}  # of the parser alone
    assert vars(arguments.build_parser().parse_args([])).keys() == own | set(names)
    assert len(set(names)) == len(names)


def test_arguments_come_from_a_file_with_comments_or_from_a_pipe_read_once(command):
    Path("recipe.txt").write_text("# a recipe\n--epochs 2  # few\n--separate\n")
    read, write = os.pipe()
    os.write(write, b"--embedding-dim 7\n")
    os.close(write)
    code, result, _ = command(f"@recipe.txt @/dev/fd/{read}")
    os.close(read)
    assert code == 0 and result["epochs"] == 2
    assert (config("run")["shared_dims"], config("run")["embedding_dim"]) == (0, 7)


def test_an_argument_file_that_cannot_be_read_is_named(command):
    Path("quote.txt").write_text('--data "unclosed\n')
    Path("bytes.txt").write_bytes(b"--data \xff\n")
    Path("itself.txt").write_text("--epochs 1\n@itself.txt\n")
    Path("nested.txt").write_text("@bytes.txt\n")
    whys = dict(quote="closing quotation", bytes="not UTF-8", no="No such", itself="itself")
    for file, why in {**whys, "nested": "file bytes.txt: not UTF-8"}.items():
        err = refused(command, f"@{file}.txt")
        assert why in err and "argument file" in err


def test_long_settings_that_differ_have_folders_that_differ():
    recipe = shlex.split((ROOT / "recipes/best.txt").read_text(), comments=True)
    more = ([], ["--ensemble", "4"], ["--ranking-dropout", "0.1"], ["--data", "日" * 70])
    names = [resolve([*recipe, *each])["out"] for each in more]
    assert len(set(names)) == len(names)
    assert all(len(Path(name).name) <= 40 for name in names)


@pytest.mark.parametrize(
    "words, out",
    [
        ("--shared", "shared_f0.99-r0.01_seed0"),
        ("--shared --seeds 0-9", "shared_seed0-9"),
        ("--weighting mgda --seeds 0-9", "shared_mgda_seed0-9"),
        (
            "--separate --lambda-f 0.99 0.5 --lambda-r 0.01 0.5 --seeds 0-9",
            "separate_f0.99--1f73c2",
        ),
    ],
)
def test_a_run_is_called_by_40_letters_in_tensorboard(words, out):
    args = resolve(words.split())
    assert args["out"] == f"runs/{out}"
    assert all(len(str(run["folder"])) <= len("runs/") + 40 for run in plan_runs(args))
    args["lambda_f"] = [1 / 3] * len(args["lambda_f"])  # told in full
    args["lambda_r"] = [2 / 3] * len(args["lambda_r"])
    assert all(len(run["name"]) <= 40 for run in plan_runs(args))


def test_a_folder_called_ml_100k_is_not_taken_for_the_data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("ml-100k").mkdir()
    assert resolve(["--epochs", "1"])["data"] == "ml-100k"


def test_help_is_shown_where_greek_letters_cannot_be(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as stopped:
        resolve(["--help"])
    out.flush()
    assert stopped.value.code == 0 and b"--lambda-f \\u03bb_F" in out.buffer.getvalue()
