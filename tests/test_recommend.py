"""What a run recommends, to whom it knows and to whom it doesn't, and what it is exported as."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from small import EVERY_OPTION, PLAIN

import recommend
from run_folder import load_run

HISTORY = f"--epochs 3 {EVERY_OPTION}"
ENSEMBLE = "--epochs 3 --ensemble 2 --clip-ratings --validation 0.1 --shared-dims 4 --rating-biases"
KINDS = pytest.mark.parametrize("words", [PLAIN, HISTORY, ENSEMBLE])


def command(*words) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of recommend.py."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            recommend.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def refused(*words) -> str:
    code, out, err = command(*words)
    assert code == 2 and not out and err.count("\n") == 1, err
    return err


def outputs(model, user: int, items) -> np.ndarray:
    """(2, n): a user's scores and predicted ratings of items (n,)."""
    items = torch.as_tensor(np.asarray(items))
    return torch.stack(model(torch.full_like(items, user), items)).numpy()


@pytest.fixture
def titled(one_run, monkeypatch):
    """one_run, for the command too, with titles and ids of its own: users from 500, items 1000.

    Items 1000 and 1001 share a title, item 1002 has none, item 1003's is the id of another.
    """
    run = load_run(one_run)
    labels = {"user_labels": np.arange(500, 620), "item_labels": np.arange(1000, 1150)}
    titles = [f"Film {label} (1990)" for label in labels["item_labels"]]
    titles[1:4] = titles[0], "", "1004"
    data = dataclasses.replace(run.data, **labels, item_titles=np.array(titles))
    run = dataclasses.replace(run, data=data)
    monkeypatch.setattr(recommend, "load_run", lambda folder: run)
    return run


@KINDS
@pytest.mark.parametrize("mix", [0, 0.3, 1])
def test_recommended_are_the_models_best_of_what_is_not_known(finished, words, mix):
    run = load_run(finished(words)[0])
    data, items = run.data, np.arange(run.data.n_items)
    seen = np.concatenate([run.split.train, run.split.validation])
    for user in (0, 7, 119):
        known = data.item_ids[seen[data.user_ids[seen] == user]]
        for candidates, more in ((np.delete(items, known), {}), (items, {"known": True})):
            scores, ratings = outputs(run.model, user, candidates)
            frame = run.recommend(data.user_labels[user], n=1000, mix=mix, **more)
            places = np.searchsorted(data.item_labels, frame["item"])
            assert sorted(places) == candidates.tolist() and "title" not in frame
            told = frame[["score", "rating"]].to_numpy().T
            np.testing.assert_allclose(told, outputs(run.model, user, places), rtol=1e-4, atol=1e-5)
            standard = [(x - x.mean()) / max(x.std(), 1e-9) for x in (scores, ratings)]
            value = dict(zip(candidates, (1 - mix) * standard[0] + mix * standard[1], strict=True))
            assert (np.diff([value[place] for place in places]) < 1e-3).all()
            short = run.recommend(str(data.user_labels[user]), n=3, mix=mix, **more)
            assert short["item"].tolist() == frame["item"].tolist()[:3]


@KINDS
def test_a_prediction_is_the_models_with_its_rank_among_the_unseen(finished, words):
    run = load_run(finished(words)[0])
    ranking = run.recommend(5, n=1000)
    for k in (0, 20, len(ranking) - 1):
        told = run.predict(5, ranking["item"][k])
        found = told["score"], told["rating"], told["rank"], told["unseen"]
        expected = ranking["score"][k], ranking["rating"][k], k + 1, len(ranking)
        assert found == pytest.approx(expected, rel=1e-5)
    known = run.data.item_ids[run.known_rows[5][0]]  # here ids are contiguous
    rank = run.predict(5, known)["rank"]
    assert rank == 1 + (ranking["score"] > run.predict(5, known)["score"]).sum()


def test_the_command_prints_what_python_gives(titled, tmp_path):
    frame = titled.recommend(507, n=4, mix=0.5)
    asked = ("run", "-n", 4, "--mix", 0.5)
    told = json.loads(command(*asked, "--user", 507, "--format", "json")[1])
    assert told == frame.to_dict("records")
    code, out, _ = command(*asked, "--user", 507)
    liked, best = out.split("and may like")
    assert code == 0 and all(title in best for title in frame["title"])
    top = np.sort(titled.data.ratings[titled.known_rows[7]])[::-1][:5]
    assert [float(line.split()[1]) for line in liked.splitlines()[3:8]] == top.tolist()
    for users, told in ((["all"], range(500, 620)), ([507, 503], [507, 503])):
        assert command(*asked, "--users", *users, "--out", tmp_path / "all.csv")[:2] == (0, "")
        rows = pd.read_csv(tmp_path / "all.csv")
        assert rows["user"].unique().tolist() == list(told) and len(rows) == 4 * len(told)
        mine = rows[rows["user"] == 507].drop(columns="user").reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, frame, check_dtype=False, rtol=1e-5)
    code, out, _ = command("run", "--predict", 507, "Film 1009 (1990)", "--format", "json")
    expected = {"item": 1009, "title": "Film 1009 (1990)", **titled.predict(507, 1009)}
    assert expected == json.loads(out)[0]
    given = {9: 5.0, 10: 1.0}
    expected = titled.best_items(recommend.new_user(titled, given), 0, [9, 10], 4, 0.5)
    code, out, _ = command(*asked, "--new", "Film 1009 (1990)=5", "1010=1", "--format", "json")
    assert expected.to_dict("records") == json.loads(out)
    assert titled.described([2])["title"][0] == "1002"  # the id where there is no title
    assert titled.place("item", "1004") == 4  # an id goes before a title


def test_a_title_that_stdout_cannot_write_is_escaped(titled, monkeypatch):
    titled.data.item_titles.base[9] = "Šarlatán (2020)"
    with io.TextIOWrapper(io.BytesIO(), "ascii") as out:
        monkeypatch.setattr("sys.stdout", out)
        recommend.main(["run", "--predict", "507", "1009"])
        assert b"\\u0160arlat\\xe1n (2020)" in out.buffer.getvalue()


@pytest.mark.parametrize(
    "words, told",
    [
        (["--user", "5070"], "there is no user '5070'; '570' or '507'"),
        (["--user", "zoe"], "an id from 500 to 619"),
        (["--like", "film 1009"], "'Film 1009 (1990)' would be right"),
        (["--predict", "507", "Flim 1149 (1990)"], "'Film 1149 (1990)' or"),
        (["--like", "Film 1000 (1990)"], "2 items are called 'Film 1000 (1990)': give an id"),
        (["--new", "1009"], "ITEM=RATING with a rating from 1 to 5"),
        (["--new", "1009=6"], "ITEM=RATING with a rating from 1 to 5"),
        (["--new", "1009=nan"], "ITEM=RATING with a rating from 1 to 5"),
        (["--new", "1009=3", "Film 1009 (1990)=4"], "gives 'Film 1009 (1990)' two ratings"),
        (["--like", "1009", "--mix", "1"], "--mix has no effect on --like"),
        (["--predict", "507", "1009", "-n", "3"], "-n has no effect on --predict"),
        (["--export", "there", "--out", "top.csv"], "--out has no effect on --export"),
        (["--user", "507", "--mix", "2"], "at most 1"),
        (["--user", "507", "-n", "0"], "at least 1"),
        (["--user", "507", "--out", "none/top.csv"], "No such file"),
        ([], "is required"),
    ],
)
def test_what_is_not_known_or_makes_no_sense_is_one_line(titled, words, told):
    assert told in refused("run", *words)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    assert "holds no trained run" in refused(tmp_path, "--user", 1)


def test_nearest_items_have_the_largest_cosines(finished):
    run = load_run(finished(HISTORY)[0])
    q = run.model.members.ranking_window(run.model.members.catalogue())[0].numpy()
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    near, cosines = recommend.similar_items(run, 5, n=9), q @ q[5]
    assert 5 not in near["item"].tolist()
    assert near["cosine"].tolist() == pytest.approx(np.sort(cosines)[::-1][1:10].tolist(), rel=1e-4)


def test_with_a_history_a_new_user_is_the_sum_of_its_items_history_vectors(finished):
    run = load_run(finished(HISTORY)[0])
    net, given = run.model.members, {3: 5.0, 10: 1.0, 77: 3.0}
    u = net.history_items[0, list(given)].sum(0) / np.sqrt(3)
    q = net.catalogue()[0]
    scores = q[:, : net.ranking_dim] @ u[: net.ranking_dim] + net.item_bias[0, :, 0]
    rated = (u[None, None, -net.rating_dim :], q[None, :, -net.rating_dim :])
    ratings = net.rating_head(*rated) + net.rating_bias_tables()[1][..., 0] + net.mean_rating
    found = outputs(recommend.new_user(run, given), 0, range(run.data.n_items))
    np.testing.assert_allclose(found, [scores, ratings[0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid --exclude-positives", "softmax"])
def test_without_a_history_a_new_user_is_fitted_to_what_it_gives(finished, loss):
    # The halves of known users' ratings: ranks of the other half, errors of the given one.
    run = load_run(finished(f"--epochs 15 --loss {loss} --rating-biases --ensemble 2")[0])
    data, before = run.data, {k: v.clone() for k, v in run.model.members.named_parameters()}
    everybody = run.model.interaction_scores(torch.arange(data.n_users)).mean(0).numpy()
    above, errors, alone = [], [], []
    for user in range(0, 60, 6):
        given, withheld = run.known_rows[user][::2], run.known_rows[user][1::2]
        ratings = dict(zip(data.item_ids[given], data.ratings[given].tolist(), strict=True))
        scores, predicted = outputs(recommend.new_user(run, ratings), 0, range(data.n_items))
        items = data.item_ids[withheld]
        above.append([(s[items][:, None] < s).sum(1).mean() for s in (scores, everybody)])
        errors += [predicted[list(ratings)] - data.ratings[given]]
        alone.append(outputs(recommend.new_user(run, {user: 5.0}), 0, range(data.n_items)))
    own, popular = np.mean(above, 0)
    assert own < 0.95 * popular
    assert np.square(np.concatenate(errors)).mean() < 0.8 * data.ratings.var()
    assert np.abs(np.array(alone)[:, 1]).max() < 7  # one rating doesn't lead off the scale
    again = outputs(recommend.new_user(run, {user: 5.0}), 0, range(data.n_items))
    assert np.array_equal(again, alone[-1])
    assert all(torch.equal(v, before[k]) for k, v in run.model.members.named_parameters())


# ---- to use elsewhere ----------------------------------------------------------------------


@KINDS
def test_what_is_exported_gives_what_the_model_gives(finished, words, tmp_path):
    folder, _ = finished(words)
    code, out, err = command(folder, "--export", tmp_path / "out")
    assert code == 0, err
    assert set(out.split()) == {str(path) for path in (tmp_path / "out").iterdir()}
    run, arrays = load_run(folder), np.load(tmp_path / "out/vectors.npz", allow_pickle=False)
    assert arrays["user_ids"].tolist() == run.data.user_labels.tolist()
    users, items = torch.arange(120), torch.arange(120) + 30
    for task, expected in zip(("ranking", "rating"), run.model(users, items), strict=True):
        rows = [
            torch.tensor(arrays[f"{side}_{task}{part}"][:, ids])
            for part in ("", "_bias")
            for side, ids in (("user", users), ("item", items))
        ]
        program = torch.export.load(tmp_path / f"out/{task}.pt2").module()
        torch.testing.assert_close(program(*rows), expected, rtol=1e-4, atol=1e-5)
    u, q, item_bias = (arrays[k] for k in ("user_ranking", "item_ranking", "item_ranking_bias"))
    scores = (u @ q.swapaxes(1, 2) + arrays["user_ranking_bias"] + item_bias.swapaxes(1, 2)).mean(0)
    expected = run.model.interaction_scores(users)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_onnx_is_written_where_it_can_be(one_run, tmp_path):
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    recommend.export(load_run(one_run), tmp_path)
    for task in ("ranking", "rating"):
        head = recommend.Head(load_run(one_run).served, task)
        rows = [
            torch.randn(1, 5, 8),
            torch.randn(1, 5, 8),
            torch.randn(1, 5, 1),
            torch.ones(1, 5, 1),
        ]
        program = reference.ReferenceEvaluator(str(tmp_path / f"{task}.onnx"))
        inputs = dict(zip(program.input_names, (row.numpy() for row in rows), strict=True))
        torch.testing.assert_close(torch.tensor(program.run(None, inputs)[0]), head(*rows))


def test_an_export_that_differs_from_the_model_is_refused(one_run, tmp_path, monkeypatch):
    forward = recommend.Head.forward

    def off(self, u, q, user_bias, item_bias):
        return forward(self, u, q, user_bias, item_bias) + 0.01

    monkeypatch.setattr(recommend.Head, "forward", off)
    assert "differs from the model" in refused(one_run, "--export", tmp_path / "out")
    assert not (tmp_path / "out").exists()
