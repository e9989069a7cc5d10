"""MultiTaskNet: what it computes, what is shared, what is separate."""

import pytest
import torch
from small import randomise

from arguments import resolve
from models import RATING_HEADS, MultiTaskNet, OneRun, random_stream

N_USERS, N_ITEMS = 7, 9


def net_with_random_values(**options) -> MultiTaskNet:
    return randomise(MultiTaskNet(N_USERS, N_ITEMS, **{"embedding_dim": 4, "hidden": 5, **options}))


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("shared_dims", [0, 1, 4])
@pytest.mark.parametrize("rating_biases", [False, True])
@pytest.mark.parametrize("rating_head", RATING_HEADS)
def test_forward_is_the_documented_formula(batch, shared_dims, rating_biases, rating_head):
    """The published score multiplied each item with every user in the batch, without biases."""
    options = dict(shared_dims=shared_dims, rating_biases=rating_biases, rating_head=rating_head)
    net = net_with_random_values(**options)
    net.observe(torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), torch.tensor([[2.0, 5.0]]))
    i, j = torch.arange(batch) % N_USERS, torch.arange(batch) % N_ITEMS
    scores, ratings = net(i[None], j[None])
    pairs = net.catalogue_scores(i)[:, torch.arange(batch), j]
    torch.testing.assert_close(pairs, scores)
    u, q, head = net.users[0, i], net.items[0, j], net.rating_head
    biases = net.user_bias[0, i, 0] + net.item_bias[0, j, 0]
    expected = [(u_k[:4] @ q_k[:4]).item() for u_k, q_k in zip(u, q, strict=True)]
    assert scores.tolist() == [pytest.approx((biases + torch.tensor(expected)).tolist(), abs=1e-5)]
    u, q = u[:, -4:], q[:, -4:]
    if rating_head == "dot":
        expected = ((u + head.user_shift[0]) * (q + head.item_shift[0])).sum(1)
    else:
        features = u * q
        if rating_head == "mlp":
            features = torch.cat([u, q, features], 1) @ head.hidden.weight[0] + head.hidden.bias[0]
            features = features.clamp(min=0)
        expected = features @ head.output.weight[0, :, 0] + head.output.bias[0, 0, 0]
    if rating_biases:
        if shared_dims < 4:  # shared with the ranking, so are the biases
            biases = net.rating_user_bias[0, i, 0] + net.rating_item_bias[0, j, 0]
        expected = expected + biases + 3.5
    assert ratings.tolist() == [pytest.approx(expected.tolist(), abs=1e-4)]


@pytest.mark.parametrize(
    "shared_dims, meet_in",
    [(0, ""), (1, "users items"), (4, "users items user_bias item_bias")],
)
def test_each_task_pulls_at_its_window_and_both_meet_in_the_common_columns(shared_dims, meet_in):
    net, own = net_with_random_values(shared_dims=shared_dims, rating_biases=True), 4 - shared_dims
    named, pulled = dict(net.named_parameters()), []
    for output in net(torch.tensor([[1]]), torch.tensor([[3]])):
        slopes = torch.autograd.grad(
            output.sum(), named.values(), retain_graph=True, materialize_grads=True
        )
        pulled.append({name: slope != 0 for name, slope in zip(named, slopes, strict=True)})
    ranking, rating = pulled
    for name, row in (("users", 1), ("items", 3)):
        assert ranking[name][0, row].tolist() == [True] * 4 + [False] * own
        assert rating[name][0, row].tolist() == [False] * own + [True] * 4
    assert all((ranking[name] | rating[name]).any() for name in named)
    assert {name for name in named if (ranking[name] & rating[name]).any()} == set(meet_in.split())


def test_a_history_adds_the_sum_of_what_was_interacted_with_over_the_root_of_its_size():
    net = net_with_random_values(seeds=[0, 1], shared_dims=3, user_history=True, item_history=True)
    stream = random_stream(0, "test")
    users = torch.randint(N_USERS - 1, (2, 30), generator=stream)  # the last user has none
    items = torch.randint(N_ITEMS, (2, 30), generator=stream)
    net.observe(users, items, torch.ones(2, 30))
    known = torch.zeros(2, N_USERS, N_ITEMS)
    known[torch.arange(2)[:, None], users, items] = 1  # a pair counts once
    picked, pickers = known, known.transpose(1, 2)
    u = net.users + picked / picked.sum(2, keepdim=True).clamp(min=1).sqrt() @ net.history_items
    q = net.items + pickers / pickers.sum(2, keepdim=True).clamp(min=1).sqrt() @ net.history_users
    ids = torch.tensor([[3, 6, 3, 0], [1, 1, 5, 2]])
    at = torch.arange(2)[:, None], ids
    weights = torch.randn(2, 4, net.width, generator=stream)
    for ours, expected, table in (
        (net.user_rows(ids), u[at], net.history_items),
        (net.item_rows(ids), q[at], net.history_users),
        (net.catalogue()[at], q[at], net.history_users),
    ):
        torch.testing.assert_close(ours, expected)
        sums = (ours * weights).sum(), (expected * weights).sum()
        slopes = [torch.autograd.grad(x, table, retain_graph=True)[0] for x in sums]
        torch.testing.assert_close(*slopes)


def test_initial_values_are_the_reports():
    net = MultiTaskNet(2000, 3000, embedding_dim=32, seeds=[5])
    for table in (net.users, net.items):
        assert table.std().item() == pytest.approx(1 / 32, rel=0.02)
        assert abs(table.mean().item()) < 1e-3
    assert not net.user_bias.any() and not net.item_bias.any()
    for layer, fan_in in ((net.rating_head.hidden, 96), (net.rating_head.output, 64)):
        bound = fan_in**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize("shared_dims", [0, 3])
def test_a_seed_starts_ranking_equal_whatever_is_shared(shared_dims):
    shared = MultiTaskNet(N_USERS, N_ITEMS, embedding_dim=4, seeds=[8])
    other = MultiTaskNet(N_USERS, N_ITEMS, embedding_dim=4, shared_dims=shared_dims, seeds=[8])
    for name in ("users", "items"):
        assert torch.equal(other.ranking_window(getattr(other, name)), getattr(shared, name))
    assert torch.equal(other.rating_head.hidden.weight, shared.rating_head.hidden.weight)


def test_random_streams_differ_by_seed_purpose_and_index():
    keys = [(0, "order", 1), (1, "order", 1), (0, "negatives", 1), (0, "order", 2)]
    draws = [torch.rand(3, generator=random_stream(*key)).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == 4
    assert draws[0] == torch.rand(3, generator=random_stream(*keys[0])).tolist()


@pytest.mark.parametrize("bad", [-1, N_USERS])
def test_an_id_out_of_range_raises_and_never_reads_another_run(bad):
    net = net_with_random_values(seeds=[0, 1])
    with pytest.raises(IndexError, match=rf"user id {bad} is not in 0\.\.6"):
        net(torch.tensor([[0], [bad]]), torch.tensor([[0], [0]]))
    with pytest.raises(IndexError):
        OneRun(net).interaction_scores(torch.tensor([bad]))
    with pytest.raises(IndexError):
        OneRun(net).ratings(torch.tensor([0]), torch.tensor([N_ITEMS]))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"shared_dims": 5}, "shared_dims is 5"),
        ({"shared_dims": -1}, "shared_dims is -1"),
        ({"seeds": []}, "runs is 0"),
        ({"rating_head": "mpl"}, "rating_head is 'mpl': it is one of mlp, dot, gmf"),
    ],
)
def test_impossible_sizes_are_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        MultiTaskNet(N_USERS, N_ITEMS, **{"embedding_dim": 4, **options})


def test_a_head_whose_parameters_runs_would_share_is_refused(monkeypatch):
    class Shared(torch.nn.Module):
        def __init__(self, dim, hidden, seeds):
            super().__init__()
            self.layer = torch.nn.Linear(dim, 1)

    monkeypatch.setitem(RATING_HEADS, "shared", Shared)
    with pytest.raises(ValueError, match=r"rating_head.layer.weight has shape \(1, 4\).*2 run"):
        MultiTaskNet(7, 9, embedding_dim=4, rating_head="shared", seeds=[0, 1])


def test_within_an_evaluation_the_catalogue_is_put_together_once():
    net, users = net_with_random_values(item_history=True), torch.tensor([2, 0])
    pairs = torch.tensor([[0, 1, 2]])
    net.observe(pairs, pairs, torch.ones(1, 3))
    with torch.no_grad():
        expected = net.catalogue_scores(users)
        with net.catalogue_kept():
            for parameter in (net.items, net.history_users):  # so it would show
                parameter.zero_()
            assert net.catalogue_scores(users).equal(expected)
        assert not net.catalogue_scores(users).equal(expected)


def test_tables_are_at_most_as_wide_as_is_told(capsys):
    assert resolve(["--embedding-dim", "16384"])["embedding_dim"] == 16_384
    with pytest.raises(SystemExit, match="2"):
        resolve(["--embedding-dim", "16385"])
    assert "at most 16384" in capsys.readouterr().err
