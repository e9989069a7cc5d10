"""Losses, task weights, negatives and the stack: against hand-computed and independent values."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

import gradients
import multitask
from models import MLP, RATING_HEADS, Linear, MultiTaskNet, random_stream
from multitask import (
    NegativeSampler,
    Stack,
    bpr_loss,
    regression_loss,
    sigmoid_loss,
    softmax_loss,
)
from optimizers import Adam, Flat

SHARING = [None, 0, 3]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def value_and_gradient(loss, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    return value.item(), [g.tolist() for g in torch.autograd.grad(value, leaves)]


def test_sigmoid_loss_by_hand():
    positive, negative = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    value, (up, down) = value_and_gradient(sigmoid_loss, positive, negative)
    assert value == pytest.approx((1 - sigma(0.5) + 1 - sigma(-3)) / 2)
    expected = [-sigma(d) * (1 - sigma(d)) / 2 for d in (0.5, -3)]
    assert up == pytest.approx(expected)
    assert down == pytest.approx([-g for g in expected])


def test_bpr_loss_by_hand():
    positive, negative = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    value, (up, down) = value_and_gradient(bpr_loss, positive, negative)
    assert value == pytest.approx(-(math.log(sigma(0.5)) + math.log(sigma(-3))) / 2)
    expected = [-(1 - sigma(d)) / 2 for d in (0.5, -3)]
    assert up == pytest.approx(expected)
    assert down == pytest.approx([-g for g in expected])


def test_bpr_loss_is_finite_where_its_sigmoid_is_zero():
    value, (up, _) = value_and_gradient(bpr_loss, torch.tensor([-200.0]), torch.tensor([0.0]))
    assert value == pytest.approx(200) and up == pytest.approx([-1])


def test_softmax_loss_by_hand():
    scores, picked = torch.tensor([[[1.0, 0.0, -1.0]]]), torch.tensor([[1]])
    value, (slopes,) = value_and_gradient(lambda s: softmax_loss(s, picked)[0], scores)
    total = math.e + 1 + 1 / math.e
    assert value == pytest.approx(math.log(total))
    assert slopes[0][0] == pytest.approx([math.e / total, 1 / total - 1, 1 / math.e / total])


def test_regression_loss_by_hand():
    value, (slopes, _) = value_and_gradient(
        regression_loss, torch.tensor([3.0, 5.0]), torch.tensor([4.0, 2.0])
    )
    assert value == pytest.approx((1 + 9) / 2)
    assert slopes == pytest.approx([-1, 3])


@pytest.mark.parametrize("loss", [sigmoid_loss, bpr_loss, regression_loss])
def test_a_batch_against_a_column_raises_instead_of_broadcasting(loss):
    with pytest.raises(ValueError, match=r"shapes must be equal.*\(4,\).*\(4, 1\)"):
        loss(torch.zeros(4), torch.zeros(4, 1))


def test_softmax_loss_refuses_ids_of_another_batch():
    with pytest.raises(ValueError, match="shapes must be equal"):
        softmax_loss(torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.int64))


def test_a_pair_is_scored_by_itself_whatever_else_is_in_the_batch():
    """The published score multiplied each item with every user in the batch."""
    net = MultiTaskNet(7, 9, embedding_dim=4, seeds=[0])
    users, items = torch.tensor([[0, 1, 2]]), torch.tensor([[3, 4, 5]])
    together = net(users, items)[0]
    alone = torch.cat([net(users[:, k : k + 1], items[:, k : k + 1])[0] for k in range(3)], 1)
    torch.testing.assert_close(together, alone)


def test_the_item_bias_is_part_of_the_score_and_learns():
    """The published score dropped both bias terms."""
    net = MultiTaskNet(7, 9, embedding_dim=4, seeds=[0])
    pair = torch.tensor([[2]]), torch.tensor([[5]])
    before = net(*pair)[0].item()
    with torch.no_grad():
        net.item_bias[0, 5] += 0.7
        net.user_bias[0, 2] += 0.1
    assert net(*pair)[0].item() == pytest.approx(before + 0.8, abs=1e-6)
    stack = make_stack(1)
    stack.run_epoch(0)
    assert (stack.net.item_bias != 0).any()


def make_stack(runs: int = 1, n: int = 300, first: int = 0, **options) -> Stack:
    """Runs `first`, `first + 1`, … of a small problem; each has its own λ, split and seed."""
    rng = np.random.default_rng(0)
    pairs = rng.permutation(40 * 60)[:n]
    seeds = range(first, first + runs)
    names = ("net", "shared_dims", "rating_biases", "rating_head", "user_history", "item_history")
    shape = {name: options.pop(name) for name in names if name in options}
    net = shape.pop("net", MultiTaskNet)(40, 60, embedding_dim=8, hidden=6, seeds=seeds, **shape)
    train = np.stack([np.random.RandomState(s).permutation(n)[: n - 20] for s in seeds])
    ratings = rng.integers(1, 6, n).astype(np.float32)
    weights = [0.9, 0.5, 0.2, 1.0, 0.0][first : first + runs]
    options = {"batch_size": 64, "lr": 0.01, **options}
    others = [1 - weight for weight in weights]
    kind = options.pop("kind", Stack)
    return kind(net, *divmod(pairs, 60), ratings, train, seeds, weights, others, **options)


@pytest.mark.parametrize("shared_dims", SHARING)
@pytest.mark.parametrize("loss", ["sigmoid", "bpr"])
@pytest.mark.parametrize("rating_biases", [False, True])
def test_written_out_gradients_are_autograds(shared_dims, loss, rating_biases):
    stack = make_stack(3, shared_dims=shared_dims, loss=loss, rating_biases=rating_biases)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stack.net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    batch, found = next(stack.batches(0)), []
    for stack.written_out in (True, False):
        losses = stack.fill_gradients(batch)
        found.append([*losses, stack.memory.grads.clone()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
    assert found[0][-1].abs().max() > 1e-3


# ---- what the model and the losses say is what trains ---------------------------------------


def hinge(positive, negative):
    return (1 - positive + negative).relu().mean(-1)


class ThreeTimes(Stack):
    def losses(self, batch):
        factorization, regression = super().losses(batch)
        return 3 * factorization, regression


class Penalised(Stack):
    """Its penalty is zero where all biases are, as they are at first."""

    def losses(self, batch):
        factorization, regression = super().losses(batch)
        biases = self.net.rows(self.net.item_bias, batch.items).squeeze(-1)
        return factorization + biases.square().mean(1), regression


class Shifted(MultiTaskNet):
    def rating(self, *pairs):
        return super().rating(*pairs) + 3.5


class Leaky(MLP):
    def forward(self, u, q):
        features = torch.cat([u, q, u * q], -1)
        return self.output(torch.nn.functional.leaky_relu(self.hidden(features))).squeeze(-1)


@pytest.mark.parametrize(
    "edit, said",
    [
        ({}, None),
        ({"LOSSES": {"sigmoid": lambda p, n: 3 * sigmoid_loss(p, n)}}, "factorization loss"),
        # Where all margins are near zero a hinge is its linear part.
        ({"LOSSES": {"sigmoid": lambda p, n: 0.5 - (p - n).clamp(-1, 1).mean(-1) / 4}}, "loss"),
        ({"LOSSES": {"hinge": hinge}, "loss": "hinge"}, None),
        ({"RATING_HEADS": {"mlp": Leaky}}, "regression loss"),
        ({"kind": ThreeTimes}, "factorization loss"),
        ({"kind": Penalised}, "factorization loss"),
        ({"net": Shifted}, "regression loss"),
    ],
    ids="nothing,loss,clamped,hinge,head,losses,penalty,rating".split(","),
)
def test_an_edited_loss_or_model_is_what_trains(edit, said, monkeypatch, capsys):
    edit = dict(edit)
    monkeypatch.setattr(multitask, "LOSSES", multitask.LOSSES | edit.pop("LOSSES", {}))
    for name, head in edit.pop("RATING_HEADS", {}).items():
        monkeypatch.setitem(RATING_HEADS, name, head)
    stack, by_autograd = make_stack(2, **edit), make_stack(2, **edit)
    by_autograd.written_out = False
    for epoch in range(2):
        ours, expected = stack.run_epoch(epoch), by_autograd.run_epoch(epoch)
        for name in ours:
            torch.testing.assert_close(ours[name], expected[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(stack.memory.values, by_autograd.memory.values, atol=1e-5, rtol=0)
    err = capsys.readouterr().err
    assert err.count("\n") == bool(said) and (said or "") in err, err
    assert stack.written_out == (edit == {} and said is None)


def test_a_head_added_to_the_registry_trains_and_predicts(monkeypatch):
    class Bilinear(torch.nn.Module):
        def __init__(self, dim, hidden, seeds):
            super().__init__()
            self.layer = Linear(seeds, "bilinear", dim, dim)

        def forward(self, u, q):
            return (self.layer(u) * q).sum(-1)

    monkeypatch.setitem(RATING_HEADS, "bilinear", Bilinear)
    stack = make_stack(2, rating_head="bilinear")
    before = stack.net.rating_head.layer.weight.detach().clone()
    stack.run_epoch(0)
    assert (stack.net.rating_head.layer.weight != before).all()
    users, items = torch.tensor([[1, 2]] * 2), torch.tensor([[3, 4]] * 2)
    u, q = stack.net.users[1, [1, 2]], stack.net.items[1, [3, 4]]
    layer = stack.net.rating_head.layer
    expected = ((u @ layer.weight[1] + layer.bias[1, 0]) * q).sum(-1)
    torch.testing.assert_close(stack.net.ratings(users, items)[1], expected)


def test_the_proof_leaves_no_trace_and_sees_the_short_batch():
    stack = make_stack(2)
    before = stack.memory.values.clone()
    assert gradients.proved(stack)
    assert torch.equal(stack.memory.values, before) and stack.written_out is None

    class WrongWhenShort(Stack):
        def losses(self, batch):
            factorization, regression = super().losses(batch)
            return factorization * (1 + (batch.size < 64)), regression

    assert not gradients.proved(make_stack(2, kind=WrongWhenShort))


@pytest.mark.parametrize("shared_dims", SHARING)
@pytest.mark.parametrize("loss", multitask.LOSSES)
def test_a_run_in_a_stack_is_the_run_alone(shared_dims, loss):
    stack = make_stack(5, shared_dims=shared_dims, loss=loss)
    alone = [make_stack(1, first=r, shared_dims=shared_dims, loss=loss) for r in range(5)]
    for epoch in range(4):  # of 5 steps each
        together = stack.run_epoch(epoch)["joint_loss"]
        apart = [single.run_epoch(epoch)["joint_loss"] for single in alone]
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)
    for r, single in enumerate(alone):
        for ours, its in zip(stack.net.parameters(), single.net.parameters(), strict=True):
            torch.testing.assert_close(ours[r : r + 1], its, atol=1e-5, rtol=0)


class PlainNet(torch.nn.Module):
    """An independent oracle: one run, written with torch's own modules."""

    def __init__(self, net: MultiTaskNet, run: int):
        super().__init__()
        self.d_f, self.d_r = net.ranking_dim, net.rating_dim
        embedding = torch.nn.Embedding.from_pretrained
        copies = [getattr(net, name)[run].detach().clone() for name in ("users", "items")]
        self.users, self.items = (embedding(copy, freeze=False) for copy in copies)
        self.item_bias = embedding(net.item_bias[run].detach().clone(), freeze=False)
        hidden, output = torch.nn.Linear(3 * self.d_r, 6), torch.nn.Linear(6, 1)
        for layer, name in ((hidden, "hidden"), (output, "output")):
            its = getattr(net.rating_head, name)
            layer.weight.data = its.weight[run].detach().T.clone()
            layer.bias.data = its.bias[run, 0].detach().clone()
        self.head = torch.nn.Sequential(hidden, torch.nn.ReLU(), output)

    def forward(self, users, items):
        u, q = self.users(users), self.items(items)
        scores = (u[:, : self.d_f] * q[:, : self.d_f]).sum(1) + self.item_bias(items)[:, 0]
        u, q = u[:, -self.d_r :], q[:, -self.d_r :]
        return scores, self.head(torch.cat([u, q, u * q], 1))[:, 0]


@pytest.mark.parametrize("shared_dims", SHARING)
@pytest.mark.parametrize("loss", ["sigmoid", "bpr"])
def test_twenty_steps_are_those_of_a_vmapped_plain_network(shared_dims, loss):
    stack = make_stack(4, shared_dims=shared_dims, loss=loss)
    plain = [PlainNet(stack.net, run) for run in range(4)]
    parameters, buffers = stack_module_state(plain)
    optimizer = torch.optim.Adam(parameters.values(), lr=0.01)

    def joint(parameters, buffers, users, items, ratings, negatives, lambda_f, lambda_r):
        state = (parameters, buffers)
        p, r = functional_call(plain[0], state, (users, items))
        n, _ = functional_call(plain[0], state, (users, negatives))
        factorization = (
            1 - torch.sigmoid(p - n) if loss == "sigmoid" else torch.log1p((n - p).exp())
        )
        return lambda_f * factorization.mean() + lambda_r * ((r - ratings) ** 2).mean()

    weights = stack.lambda_f, stack.lambda_r
    for epoch in range(4):
        for batch in stack.batches(epoch):
            loss_values = vmap(joint)(parameters, buffers, *batch[:4], *weights)
            optimizer.zero_grad()
            loss_values.sum().backward()
            optimizer.step()
        stack.run_epoch(epoch)
    for ours, its in (("users", "users.weight"), ("items", "items.weight")):
        torch.testing.assert_close(getattr(stack.net, ours), parameters[its], atol=1e-5, rtol=0)
    hidden = parameters["head.0.weight"].transpose(1, 2)
    torch.testing.assert_close(stack.net.rating_head.hidden.weight, hidden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared_dims", SHARING)
def test_a_weight_of_zero_leaves_that_tasks_own_parameters_untouched(shared_dims):
    stack = make_stack(5, shared_dims=shared_dims)  # λ_F is 1 in run 3, 0 in run 4
    net, own = stack.net, stack.net.width - stack.net.ranking_dim
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    stack.run_epoch(0)
    changed = {name: p.detach() != before[name] for name, p in net.named_parameters()}
    for name in (name for name in changed if name.startswith("rating_head")):
        assert not changed[name][3].any() and changed[name][4].any(), name
    assert changed["item_bias"][3].any() and not changed["item_bias"][4].any()
    for name in ("users", "items"):
        assert not changed[name][3][:, net.ranking_dim :].any()
        assert not changed[name][4][:, :own].any()
        assert changed[name][3][:, : net.ranking_dim].any()
        assert changed[name][4][:, own:].any()


def test_an_epoch_visits_every_training_row_once_with_its_own_rating():
    stack = make_stack(2)
    seen = [[], []]
    for users, items, ratings, *_ in stack.batches(0):
        for run in range(2):
            rows = zip(users[run], items[run], ratings[run], strict=True)
            seen[run] += [(int(u), int(i), float(y)) for u, i, y in rows]
    for run in range(2):
        rows = stack.train[run]
        parts = (stack.users[rows], stack.items[rows], stack.ratings[rows])
        assert sorted(seen[run]) == sorted(zip(*(part.tolist() for part in parts), strict=True))


def test_blocks_of_an_epoch_change_nothing(monkeypatch):
    whole = [batch[0] for batch in make_stack(2).batches(3)]
    monkeypatch.setattr(multitask, "BLOCK", 1)
    pieces = [batch[0] for batch in make_stack(2).batches(3)]
    assert len(whole) == len(pieces) == 5
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_uniform_negatives_cover_the_catalogue_evenly():
    users = torch.zeros(60_000, dtype=torch.int64)
    drawn = NegativeSampler(users, users, 6, False).draw(users, random_stream(0, "test"))
    counts = drawn.bincount(minlength=6)
    assert (counts > 9_500).all() and (counts < 10_500).all()


def test_excluded_positives_are_never_drawn_and_the_rest_evenly():
    users = torch.tensor([0, 0, 0, 1, 2, 2])
    items = torch.tensor([0, 2, 3, 5, 1, 4])
    sampler = NegativeSampler(users, items, 6, exclude_positives=True)
    asked = torch.tensor([0, 1, 2]).repeat(30_000)
    drawn = sampler.draw(asked, random_stream(0, "test"))
    for user, free in ((0, [1, 4, 5]), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 3, 5])):
        counts = drawn[asked == user].bincount(minlength=6).tolist()
        assert [item for item, count in enumerate(counts) if count] == free
        assert min(counts[item] for item in free) > 0.93 * 30_000 / len(free)


def test_a_user_who_picked_everything_cannot_have_positives_excluded():
    users, items = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="user id 1 .* has interacted with all 2 items"):
        NegativeSampler(users, items, 2, exclude_positives=True)


def test_gradients_in_common_tables_are_compared_and_separate_ones_never_conflict():
    shared, separate = make_stack(3), make_stack(3, shared_dims=0)
    for stack in (shared, separate):
        batch = next(stack.batches(0))
        before = stack.memory.values.clone()
        measured = stack.measure_gradients(batch)
        assert torch.equal(before, stack.memory.values) and not stack.memory.grads.any()
        ranking, rating = [
            torch.autograd.grad(loss.sum(), stack.net.users, retain_graph=True)[0]
            for loss in stack.losses(batch)
        ]
        for run in range(3):
            g, h = ranking[run].flatten().double(), rating[run].flatten().double()
            cosine = (g @ h / (g.norm() * h.norm())).item()
            assert measured["users_cosine"][run].item() == pytest.approx(cosine, abs=1e-5)
            ratio = (g.norm() / h.norm()).item()
            assert measured["users_norm_ratio"][run].item() == pytest.approx(ratio, rel=1e-4)
    assert not measured["users_cosine"].any() and not measured["items_cosine"].any()


def test_a_stack_goes_on_without_a_run_as_if_it_had_never_been_there():
    stack, pair = make_stack(3), make_stack(2)
    stack.run_epoch(0), pair.run_epoch(0)
    stack.keep([0, 1])
    stack.run_epoch(1), pair.run_epoch(1)
    for ours, its in zip(stack.net.parameters(), pair.net.parameters(), strict=True):
        torch.testing.assert_close(ours, its, atol=1e-6, rtol=0)


def test_a_broken_run_is_named_with_its_table_and_spoils_no_other():
    stack, healthy = make_stack(3), make_stack(3)
    with torch.no_grad():
        stack.net.rating_head.hidden.weight[1, 0, 0] = float("nan")
    stack.run_epoch(0), healthy.run_epoch(0)
    assert stack.broken_table([1]) == "users"
    for run in (0, 2):
        assert stack.broken_table([run]) is None
        torch.testing.assert_close(stack.net.users[run], healthy.net.users[run])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_stored_stack_goes_on_to_the_last_bit(optimizer):
    straight, first, second = (make_stack(2, optimizer=optimizer) for _ in range(3))
    straight.run_epoch(0), first.run_epoch(0)
    second.load_state_dict(first.state_dict())
    straight.run_epoch(1), second.run_epoch(1)
    assert torch.equal(straight.memory.values, second.memory.values)


def test_adam_is_torchs_adamw():
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Linear(49, 1)
    memory = Flat(ours)
    memory.values.copy_(torch.linspace(-1, 1, 50))
    theirs = torch.nn.Parameter(memory.values.clone())
    optimizer = Adam(memory, 0.01, 0.3)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.3)
    for _ in range(20):
        memory.grads.copy_(torch.randn(50, generator=generator))
        theirs.grad = memory.grads.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(memory.values, theirs.data, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.weight.flatten(), theirs.data[:49], atol=1e-6, rtol=1e-6)


def test_sgd_steps_by_the_learning_rate_times_the_gradient():
    stack = make_stack(2, optimizer="sgd", lr=0.5, weight_decay=[0.1])
    batch = next(stack.batches(0))
    before = stack.memory.values.clone()
    stack.fill_gradients(batch)
    gradient = stack.memory.grads.clone()
    stack.step(batch)
    torch.testing.assert_close(stack.memory.values, before * 0.95 - 0.5 * gradient)


# ---- options beyond the reference ----------------------------------------------------------

RECIPE = dict(
    loss="softmax", batch_by="user", batch_size=16, rating_head="dot", rating_biases=True,
    user_history=True, item_history=True, ranking_dropout=0.4, rating_dropout=0.3,
    weight_decay=[0.1, 0.2, 0.3], schedule="cosine", epochs=5,
)  # fmt: skip


def picked_by(stack: Stack, user: int, run: int = 0) -> torch.Tensor:
    """The items of a user's training interactions."""
    rows = stack.train[run]
    return stack.items[rows[stack.users[rows] == user]].unique()


@pytest.mark.parametrize("rating_head", RATING_HEADS)
def test_the_losses_of_a_batch_of_users_are_those_of_all_their_interactions(rating_head):
    stack = make_stack(1, loss="softmax", batch_by="user", batch_size=7, rating_head=rating_head)
    seen = []
    for batch in stack.batches(0):
        factorization, regression = stack.losses(batch)
        items, ratings, who = batch.items, batch.ratings, batch.user_ids[0]
        assert batch.real.all()  # a single run needs no padding
        scores = stack.net.catalogue_scores(who)
        expected = torch.nn.functional.cross_entropy(scores[0], items[0])
        torch.testing.assert_close(factorization[0], expected)
        predicted = stack.net.ratings(who[None], items)
        torch.testing.assert_close(regression[0], (predicted - ratings).square().mean())
        seen += zip(who.tolist(), items[0].tolist(), ratings[0].tolist(), strict=True)
    rows = stack.train[0]
    columns = (stack.users[rows], stack.items[rows], stack.ratings[rows])
    assert sorted(seen) == sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_batches_by_user_refuse_a_pairwise_loss():
    with pytest.raises(ValueError, match="--loss bpr samples by interaction"):
        make_stack(batch_by="user", loss="bpr")


@pytest.mark.parametrize("by", ["user", "interaction"])
def test_a_run_with_every_option_in_a_stack_is_the_run_alone(by):
    options = {**RECIPE, "batch_by": by}
    stack = make_stack(3, **options)
    for r in range(3):
        alone = make_stack(1, first=r, **options)
        for epoch in range(2):
            its = alone.run_epoch(epoch)["joint_loss"]
        if r == 0:
            for epoch in range(2):
                together = stack.run_epoch(epoch)["joint_loss"]
        assert together[r].item() == pytest.approx(its.item(), abs=1e-5)
        for ours, theirs in zip(stack.net.parameters(), alone.net.parameters(), strict=True):
            torch.testing.assert_close(ours[r : r + 1], theirs, atol=2e-5, rtol=0)


def test_a_stack_with_every_option_goes_on_without_a_run_and_from_a_stored_state():
    straight, kept, second = (make_stack(3, **RECIPE) for _ in range(3))
    pair = make_stack(2, **RECIPE)
    straight.run_epoch(0), kept.run_epoch(0), pair.run_epoch(0)
    second.load_state_dict(copy.deepcopy(straight.state_dict()))
    straight.run_epoch(1), second.run_epoch(1)
    assert torch.equal(straight.memory.values, second.memory.values)
    kept.keep([0, 1])
    kept.run_epoch(1), pair.run_epoch(1)
    for ours, its in zip(kept.net.parameters(), pair.net.parameters(), strict=True):
        torch.testing.assert_close(ours, its, atol=2e-5, rtol=0)


def test_a_history_adds_the_mean_like_sum_of_what_was_interacted_with():
    net = make_stack(2, user_history=True, item_history=True).net
    stack = make_stack(2, user_history=True, item_history=True)
    net = stack.net
    for run, user in ((0, 3), (1, 7), (0, 3)):
        items = picked_by(stack, user, run)
        expected = net.users[run, user] + net.history_items[run, items].sum(0) / len(items) ** 0.5
        torch.testing.assert_close(net.user_rows(torch.tensor([[user], [user]]))[run, 0], expected)
    item = 5
    rows = stack.train[1]
    users = stack.users[rows[stack.items[rows] == item]].unique()
    expected = net.items[1, item] + net.history_users[1, users].sum(0) / len(users) ** 0.5
    torch.testing.assert_close(net.item_rows(torch.tensor([[item], [item]]))[1, 0], expected)
    torch.testing.assert_close(net.catalogue()[1, item], expected)


def test_gradients_of_a_history_are_those_of_a_dense_product():
    stack = make_stack(2, user_history=True)
    net, ids = stack.net, torch.tensor([[3, 7, 3, 0], [1, 1, 1, 39]])
    weights = torch.randn(2, 4, net.width, generator=torch.Generator().manual_seed(0))
    (net.user_rows(ids) * weights).sum().backward()
    ours, net.history_items.grad = net.history_items.grad.clone(), None
    for run in range(2):
        dense = torch.zeros(4, 60)
        for k, user in enumerate(ids[run]):
            items = picked_by(stack, user, run)
            dense[k, items] = len(items) ** -0.5
        torch.testing.assert_close(ours[run], dense.T @ weights[run])


def test_dropout_keeps_the_mean_and_leaves_out_its_share():
    stack = make_stack(2)
    stack._draw_from("dropout", 0)
    values = stack.mask(torch.ones(2, 20_000), 0.25)
    assert values.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (values == 0).float().mean(1).tolist() == pytest.approx([0.25, 0.25], abs=0.02)
    assert not torch.equal(values[0], values[1])
    assert stack.dropped(values, 0.0) is values


@pytest.mark.parametrize("by", ["user", "interaction"])
def test_every_step_of_every_epoch_drops_out_anew(by, monkeypatch):
    mask, drawn = Stack.mask, []

    def record(self, like, rate):
        drawn.append(mask(self, like, rate))
        return drawn[-1]

    monkeypatch.setattr(Stack, "mask", record)
    stack = make_stack(2, **{**RECIPE, "batch_by": by})
    for epoch in range(2):
        stack.run_epoch(epoch)
    drawn = {part.numpy().tobytes() for one in drawn for part in one.flatten(1)[:, :64]}
    assert len(drawn) >= 2 * 2 * stack.steps * 3  # epochs, runs and rates, each step


@pytest.mark.parametrize("rating_head", RATING_HEADS)
@pytest.mark.parametrize("histories", [(True, True), (True, False), (False, True)])
def test_left_out_an_interaction_is_predicted_as_if_it_had_not_been(histories, rating_head):
    of_users, of_items = histories
    options = {**RECIPE, "ranking_dropout": 0.0, "rating_dropout": 0.0, "rating_head": rating_head}
    options |= dict(user_history=of_users, item_history=of_items, shared_dims=3, batch_size=40)
    stack = make_stack(1, leave_one_out=True, **options)
    with torch.no_grad():
        for parameter in stack.net.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
    batch, net = next(stack.batches(0)), stack.net
    users, items, ratings, _, place, _ = batch
    losses, who = stack.losses(batch), batch.user_ids[0]
    scores, predicted = net.catalogue_scores(users[0])[0], []
    for k, (i, j) in enumerate(zip(who.tolist(), items[0].tolist(), strict=True)):
        u, q = net.user_rows(torch.tensor([[i]]))[0, 0], net.item_rows(torch.tensor([[j]]))[0, 0]
        if of_users:
            u = u - net.history_items[0, j] / len(picked_by(stack, i)) ** 0.5
        if of_items:
            q = q - net.history_users[0, i] / (items[0] == j).sum() ** 0.5
        own = u[:8] @ q[:8] + net.user_bias[0, i, 0] + net.item_bias[0, j, 0]
        scores[place[0, k], j] = own
        rated = net.rating_head(u[None, None, -8:], q[None, None, -8:])[0, 0]
        rated = rated + net.rating_user_bias[0, i, 0] + net.rating_item_bias[0, j, 0]
        predicted.append(rated + net.mean_rating[0, 0])
    expected = torch.nn.functional.cross_entropy(scores[place[0]], items[0])
    torch.testing.assert_close(losses[0][0], expected)
    error = (torch.stack(predicted) - ratings[0]).square().mean()
    torch.testing.assert_close(losses[1][0], error)


def test_what_is_left_out_is_left_out_of_the_dropped_out_vectors_too():
    options = {**RECIPE, "batch_size": 40, "leave_one_out": True}
    stack = make_stack(1, n=21, **options)  # one training interaction: the histories are it alone
    batch, losses = next(stack.batches(0)), []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            stack.net.history_items.mul_(scale), stack.net.history_users.mul_(scale)
        stack._draw_from("dropout", 0)
        losses.append(stack.losses(batch)[1])
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("option", ["ranking_dropout", "rating_dropout"])
@pytest.mark.parametrize("by", ["user", "interaction"])
def test_each_dropout_changes_training_and_its_own_task_alone(option, by):
    settings = {**RECIPE, "batch_by": by, "shared_dims": 0}
    settings |= {"ranking_dropout": 0.0, "rating_dropout": 0.0}
    without, dropped = make_stack(1, **settings), make_stack(1, **{**settings, option: 0.5})
    losses = [stack.run_epoch(0) for stack in (without, dropped)]
    pairs = [(losses[0][f"{name}_loss"], losses[1][f"{name}_loss"])
             for name in ("factorization", "regression")]  # fmt: skip
    changed = [not torch.equal(*pair) for pair in pairs]
    assert changed == [option == "ranking_dropout", option == "rating_dropout"]


def test_the_cosine_takes_the_rate_from_lr_to_zero(monkeypatch):
    stack, rates = make_stack(1, schedule="cosine", epochs=4, batch_size=100), []
    step = stack.optimizer.step
    monkeypatch.setattr(stack.optimizer, "step", lambda: (rates.append(stack.optimizer.lr), step()))
    for epoch in range(4):
        stack.run_epoch(epoch)
    expected = [0.01 * (1 + np.cos(np.pi * t / 12)) / 2 for t in range(12)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weight_decay_by_column_shrinks_each_window_at_its_own_rate(optimizer):
    settings = dict(shared_dims=3, user_history=True, optimizer=optimizer, lr=0.01)
    stack = make_stack(1, weight_decay=[1.0, 2.0, 4.0], **settings)
    before = {name: table.detach().clone() for name, table in stack.net.named_parameters()}
    stack.memory.grads.zero_()
    stack.optimizer.step()
    for name, parameter in stack.net.named_parameters():
        kept = torch.ones(parameter.shape[-1])
        if name in ("users", "items", "history_items"):
            kept = 1 - 0.01 * torch.tensor([1.0] * 5 + [2.0] * 3 + [4.0] * 5)
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def test_measuring_gradients_changes_no_draw():
    quiet, logged = make_stack(2, **RECIPE), make_stack(2, log_gradients=True, **RECIPE)
    for epoch in range(2):
        quiet.run_epoch(epoch)
        measured = logged.run_epoch(epoch)
    assert torch.equal(quiet.memory.values, logged.memory.values)
    assert measured["users_cosine"].abs().gt(0).all()
