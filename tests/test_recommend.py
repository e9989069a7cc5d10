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
    """one_run with titles, for the command too; items 1 and 2 share theirs, item 3 has none."""
    run = load_run(one_run)
    titles = [f"Film {label} (1990)" for label in run.data.item_labels]
    titles[1], titles[2] = titles[0], ""
    data = dataclasses.replace(run.data, item_titles=np.array(titles))
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
    known = run.data.item_labels[run.data.item_ids[run.known_rows[4][0]]]  # of user 5
    rank = run.predict(5, known)["rank"]
    assert rank == 1 + (ranking["score"] > run.predict(5, known)["score"]).sum()


def test_the_command_prints_what_python_gives(titled, tmp_path):
    frame = titled.recommend(7, n=4, mix=0.5)
    asked = ("run", "-n", 4, "--mix", 0.5)
    assert json.loads(command(*asked, "--user", 7, "--format", "json")[1]) == frame.to_dict(
        "records"
    )
    code, out, _ = command(*asked, "--user", 7)
    liked, best = out.split("and may like")
    assert code == 0 and all(title in best for title in frame["title"])
    own = titled.known_rows[6]
    top = np.sort(titled.data.ratings[own])[::-1][:5]
    assert [float(line.split()[1]) for line in liked.splitlines()[3:8]] == top.tolist()
    for users, told in ((["all"], titled.data.user_labels), ([7, 3], [7, 3])):
        assert command(*asked, "--users", *users, "--out", tmp_path / "all.csv")[:2] == (0, "")
        rows = pd.read_csv(tmp_path / "all.csv")
        assert rows["user"].unique().tolist() == list(told) and len(rows) == 4 * len(told)
        mine = rows[rows["user"] == 7].drop(columns="user").reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, frame, check_dtype=False, rtol=1e-5)
    code, out, _ = command("run", "--predict", 7, "Film 9 (1990)", "--format", "json")
    assert {"item": 9, "title": "Film 9 (1990)", **titled.predict(7, 9)} == json.loads(out)[0]
    assert titled.described([2])["title"][0] == "3"  # the id where there is no title


def test_nearest_items_have_the_largest_cosines(finished):
    run = load_run(finished(HISTORY)[0])
    q = run.model.members.ranking_window(run.model.members.catalogue())[0].numpy()
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    near, cosines = recommend.similar_items(run, 5, n=9), q @ q[4]
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
    run = load_run(finished(f"--epochs 15 --loss {loss} --rating-biases --ensemble 2")[0])
    before = {k: v.clone() for k, v in run.model.members.named_parameters()}
    places, errors, few = [], [], []
    for user in range(0, 60, 2):
        rows = run.known_rows[user]
        given, withheld = rows[::2], rows[1::2]
        ratings = dict(zip(run.data.item_ids[given], run.data.ratings[given].tolist(), strict=True))
        new = recommend.new_user(run, ratings)
        scores, predicted = outputs(new, 0, range(run.data.n_items))
        mean_scores = run.model.interaction_scores(torch.arange(120)).mean(0).numpy()
        items = run.data.item_ids[withheld]
        places.append([(s[items][:, None] < s).sum(1).mean() for s in (scores, mean_scores)])
        errors.append((predicted - run.data.ratings.mean())[list(ratings)])
        few.append(outputs(recommend.new_user(run, {user: 5.0}), 0, range(run.data.n_items))[1])
        if user == 0:
            again = outputs(recommend.new_user(run, ratings), 0, range(run.data.n_items))
            assert np.array_equal(again, [scores, predicted])
    fitted, popular = np.mean(places, 0)
    print(fitted, popular, np.abs(few).max())
    assert all(torch.equal(v, before[k]) for k, v in run.model.members.named_parameters())
