"""Losses, batches, negatives and the stack: against hand-computed and independent values."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import make_stack, randomise
from torch.utils._python_dispatch import TorchDispatchMode

import multitask
from models import RATING_HEADS, random_stream
from multitask import (
    BATCHES,
    NegativeSampler,
    OverCatalogue,
    Stack,
    bpr_loss,
    regression_loss,
    sigmoid_loss,
    softmax_loss,
)
from weighting import METHODS, Weighting

SHARING = [None, 0, 3]
RECIPE = dict(
    loss="softmax", batch_by="user", batch_size=16, rating_head="dot", rating_biases=True,
    user_history=True, item_history=True, ranking_dropout=0.4, rating_dropout=0.3,
    weight_decay=[0.1, 0.2, 0.3], schedule="cosine", epochs=5,
)  # fmt: skip


# ---- losses --------------------------------------------------------------------------------


S, T = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(3))  # σ of the differences of the pair
PAIR, E = ([1.0, -2.0], [0.5, 1.0]), math.e
Z = E + 1 + 1 / E


@pytest.mark.parametrize(
    "loss, first, second, value, slopes",
    [
        (sigmoid_loss, *PAIR, 1 - (S + T) / 2, [-S * (1 - S) / 2, -T * (1 - T) / 2]),
        (bpr_loss, *PAIR, -math.log(S * T) / 2, [(S - 1) / 2, (T - 1) / 2]),
        (bpr_loss, [-200.0], [0.0], 200, [-1]),  # finite, though σ(−200) is 0 in float32
        (regression_loss, [3.0, 5.0], [4.0, 2.0], (1 + 9) / 2, [-1, 3]),
        (softmax_loss, [[[1.0, 0.0, -1.0]]], [[1]], math.log(Z), [E / Z, 1 / Z - 1, 1 / E / Z]),
    ],
)
def test_losses_by_hand(loss, first, second, value, slopes):
    first, second = torch.tensor(first, requires_grad=True), torch.tensor(second)
    found = loss(first, second.requires_grad_(second.is_floating_point())).sum()
    found.backward()
    assert found.item() == pytest.approx(value)
    assert first.grad.flatten().tolist() == pytest.approx(slopes)
    if loss is not softmax_loss:  # of differences
        assert torch.equal(second.grad, -first.grad)


@pytest.mark.parametrize("loss", [sigmoid_loss, bpr_loss, regression_loss, softmax_loss])
def test_a_batch_against_a_column_raises_instead_of_broadcasting(loss):
    with pytest.raises(ValueError, match=r"shapes must be equal.*\(4,\).*\(4, 1\)"):
        loss(torch.zeros(4, 9) if loss is softmax_loss else torch.zeros(4), torch.zeros(4, 1))


# ---- batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch_by": "user", "loss": "softmax", "batch_size": 7}])
def test_an_epoch_visits_every_training_row_once_with_its_own_rating(options):
    stack, seen = make_stack(2, **options), [[], []]
    for batch in stack.batches(0):
        real = torch.ones_like(batch.items) > 0 if batch.real is None else batch.real
        for run in range(2):
            columns = (x[run][real[run]] for x in (batch.user_ids, batch.items, batch.ratings))
            seen[run] += zip(*(x.tolist() for x in columns), strict=True)
    for run, rows in enumerate(stack.train):
        columns = stack.users[rows], stack.items[rows], stack.ratings[rows]
        assert sorted(seen[run]) == sorted(zip(*(x.tolist() for x in columns), strict=True))


def test_every_run_and_epoch_draws_its_own_and_blocks_of_an_epoch_change_nothing(monkeypatch):
    whole, later = list(make_stack(2).batches(3)), next(make_stack(2).batches(4))
    for ours, its in zip(whole[0][:4], later[:4], strict=True):
        assert not torch.equal(ours[0], ours[1]) and not torch.equal(ours, its)
    monkeypatch.setattr(multitask, "BLOCK", 1)
    pieces = list(make_stack(2).batches(3))
    assert len(whole) == len(pieces) == 5
    for one, other in zip(whole, pieces, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


@pytest.mark.parametrize("exclude", [False, True])
def test_negatives_are_even_over_the_catalogue_or_over_what_a_user_has_not_picked(exclude):
    users, items = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 2, 3, 5, 1, 4])
    sampler = NegativeSampler(users, items, 6, exclude_positives=exclude)
    asked = torch.tensor([0, 1, 2]).repeat(30_000)
    drawn = sampler.draw(asked, random_stream(0, "test"))
    for user, free in ((0, [1, 4, 5]), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 3, 5])):
        free = free if exclude else range(6)
        counts = drawn[asked == user].bincount(minlength=6)
        assert counts.nonzero().flatten().tolist() == list(free)
        assert counts[list(free)].tolist() == pytest.approx([30_000 / len(free)] * len(free), 0.07)


# ---- the stack -----------------------------------------------------------------------------


@pytest.mark.parametrize("shared_dims", SHARING)
@pytest.mark.parametrize("loss", ["sigmoid", "bpr"])
def test_twenty_steps_are_those_of_the_formulas_by_torchs_adam(shared_dims, loss):
    stack = make_stack(5, shared_dims=shared_dims, loss=loss)
    own = {name: p.detach().clone().requires_grad_() for name, p in stack.net.named_parameters()}
    adam = torch.optim.Adam(own.values(), lr=0.01)
    for epoch in range(4):
        for users, items, ratings, negatives, *_ in stack.batches(epoch):
            adam.zero_grad()
            for r, (i, j, k) in enumerate(zip(users, items, negatives, strict=True)):
                mine = {name: value[r] for name, value in own.items()}
                u, q, bias = mine["users"][i], mine["items"][j], mine["item_bias"][:, 0]
                margin = (u[:, :8] * (q - mine["items"][k])[:, :8]).sum(1) + bias[j] - bias[k]
                u, q = u[:, -8:], q[:, -8:]
                x = torch.cat([u, q, u * q], 1)
                for layer in ("hidden", "output"):
                    weight, c = (mine[f"rating_head.{layer}.{x}"] for x in ("weight", "bias"))
                    x = (x.relu() if layer == "output" else x) @ weight + c
                each = 1 - margin.sigmoid() if loss == "sigmoid" else (1 + (-margin).exp()).log()
                error = (x[:, 0] - ratings[r]).square()
                (
                    stack.weighting.shared[r, 0] * each.mean()
                    + stack.weighting.shared[r, 1] * error.mean()
                ).backward()
            adam.step()
        stack.run_epoch(epoch)
    for name, parameter in stack.net.named_parameters():
        torch.testing.assert_close(parameter, own[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shared_dims", SHARING)
def test_a_weight_of_zero_leaves_that_tasks_own_parameters_untouched(shared_dims):
    stack = make_stack(5, shared_dims=shared_dims)  # λ_F is 1 in run 3, 0 in run 4
    before = {name: p.detach().clone() for name, p in stack.net.named_parameters()}
    stack.run_epoch(0)
    changed = {name: p.detach() != before[name] for name, p in stack.net.named_parameters()}
    head = {name for name in changed if name.startswith("rating_head")}
    for run, others in ((3, {"item_bias"}), (4, head)):
        assert {name for name in changed if changed[name][run].any()} == {"users", "items"} | others
    for name in ("users", "items"):  # rows of ranking's own | common | rating's own
        columns = changed[name].any(1).tolist()
        own = [False] * (stack.net.width - 8)
        assert columns[3:] == [[True] * 8 + own, own + [True] * 8]


@pytest.mark.parametrize("shared_dims", [None, 0])
def test_gradients_in_common_tables_are_compared_and_separate_ones_never_conflict(shared_dims):
    stack = make_stack(3, shared_dims=shared_dims)
    batch, before = next(stack.batches(0)), stack.memory.values.clone()
    measured, gram = stack.measure_gradients(batch)
    assert torch.equal(before, stack.memory.values) and not stack.memory.grads.any()
    ranking, rating = [
        torch.autograd.grad(loss.sum(), stack.net.users, retain_graph=True)[0]
        for loss in stack.losses(batch)
    ]
    g, h = ranking.flatten(1), rating.flatten(1)
    cosine, ratio = F.cosine_similarity(g, h), g.norm(dim=1) / h.norm(dim=1)
    torch.testing.assert_close(measured["users_cosine"], cosine, atol=1e-5, rtol=0)
    torch.testing.assert_close(measured["users_norm_ratio"], ratio)
    for name in ("users_cosine", "items_cosine"):
        assert measured[name].any() == (shared_dims is None)
    assert gram.any() == (shared_dims is None)


def test_measuring_gradients_changes_no_draw():
    quiet, logged = make_stack(2, **RECIPE), make_stack(2, log_gradients=True, **RECIPE)
    for epoch in range(2):
        quiet.run_epoch(epoch)
        measured = logged.run_epoch(epoch)
    assert torch.equal(quiet.memory.values, logged.memory.values)
    assert measured["users_cosine"].abs().gt(0).all()


def test_the_cosine_takes_the_rate_from_lr_to_zero(monkeypatch):
    stack, rates = make_stack(1, schedule="cosine", epochs=4, batch_size=100), []
    step = stack.step
    monkeypatch.setattr(stack, "step", lambda b: rates.append(stack.optimizer.lr) or step(b))
    for epoch in range(4):
        stack.run_epoch(epoch)
    assert rates == pytest.approx([0.01 * (1 + np.cos(np.pi * t / 12)) / 2 for t in range(12)])


# ---- batches by user, dropout, leaving one out ---------------------------------------------


def test_dropout_keeps_the_mean_and_leaves_out_its_share_anew_in_each_run_and_step():
    drawn = []

    class Recording(Stack):
        def mask(self, like, rate):
            drawn.append(super().mask(like, rate))
            return drawn[-1]

    for by in ("user", "interaction"):
        drawn.clear()
        stack = make_stack(2, **{**RECIPE, "batch_by": by}, kind=Recording)
        for epoch in range(2):
            stack.run_epoch(epoch)
        first = {part.numpy().tobytes() for one in drawn for part in one.flatten(1)[:, :64]}
        assert len(first) >= 2 * 2 * stack.steps * 3  # epochs, runs and rates, each step
    values = Stack.mask(stack, torch.ones(2, 20_000), 0.25)
    assert values.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (values == 0).float().mean(1).tolist() == pytest.approx([0.25, 0.25], abs=0.02)
    assert not torch.equal(values[0], values[1])
    assert stack.dropped(values, 0.0) is values


@pytest.mark.parametrize("option", ["ranking_dropout", "rating_dropout"])
@pytest.mark.parametrize("by", ["user", "interaction"])
def test_each_dropout_changes_training_and_its_own_task_alone(option, by):
    settings = {**RECIPE, "batch_by": by, "shared_dims": 0}
    settings |= {"ranking_dropout": 0.0, "rating_dropout": 0.0}
    without, dropped = (
        make_stack(1, **{**settings, **more}).run_epoch(0) for more in ({}, {option: 0.5})
    )
    for task, its in (("factorization", "ranking_dropout"), ("regression", "rating_dropout")):
        changed = not torch.equal(without[f"{task}_loss"], dropped[f"{task}_loss"])
        assert changed == (option == its)


@pytest.mark.parametrize("rating_head", RATING_HEADS)
@pytest.mark.parametrize("of_users", [False, True])
@pytest.mark.parametrize("of_items", [False, True])
def test_the_losses_of_a_batch_of_users_are_those_of_all_their_interactions(
    of_users, of_items, rating_head
):
    """With a history each interaction is left out of it: predicted as if it had not been."""
    options = {**RECIPE, "ranking_dropout": 0.0, "rating_dropout": 0.0, "rating_head": rating_head}
    options |= dict(user_history=of_users, item_history=of_items, shared_dims=3, batch_size=40)
    stack = make_stack(1, leave_one_out=of_users or of_items, **options)
    batch, net = next(stack.batches(0)), randomise(stack.net, 1 / 3)
    users, items, ratings, _, place, real, _ = batch
    losses, who = stack.losses(batch), batch.user_ids[0]
    assert real.all()  # a single run needs no padding
    scores, predicted = net.catalogue_scores(users[0])[0], []
    for k, (i, j) in enumerate(zip(who, items[0], strict=True)):
        u, q = net.user_rows(i.view(1, 1))[0, 0], net.item_rows(j.view(1, 1))[0, 0]
        if of_users:
            u = u - net.history_items[0, j] / (who == i).sum() ** 0.5
        if of_items:
            q = q - net.history_users[0, i] / (items[0] == j).sum() ** 0.5
        own = u[:8] @ q[:8] + net.user_bias[0, i, 0] + net.item_bias[0, j, 0]
        scores[place[0, k], j] = own
        rated = net.rating_head(u[None, None, -8:], q[None, None, -8:])[0, 0]
        rated = rated + net.rating_user_bias[0, i, 0] + net.rating_item_bias[0, j, 0]
        predicted.append(rated + net.mean_rating[0, 0])
    torch.testing.assert_close(losses[0][0], F.cross_entropy(scores[place[0]], items[0]))
    error = (torch.stack(predicted) - ratings[0]).square().mean()
    torch.testing.assert_close(losses[1][0], error)


def test_what_is_left_out_is_left_out_of_the_dropped_out_vectors_too(monkeypatch):
    def picked(scores, item_ids, place, real):
        return scores.flatten(1).gather(1, place * scores.shape[-1] + item_ids).sum(1)

    monkeypatch.setitem(multitask.LOSSES, "picked", OverCatalogue(picked))
    options = {**RECIPE, "loss": "picked", "batch_size": 40, "leave_one_out": True}
    stack = make_stack(1, n=21, **options)  # one training interaction: the histories are it alone
    batch, losses = next(stack.batches(0)), []
    for scale in (1.0, 0.0):
        with torch.no_grad():
            stack.net.history_items.mul_(scale)
            stack.net.history_users.mul_(scale)
        stack.streams = [random_stream(0, "dropout")]
        losses.append(torch.stack(stack.losses(batch)))
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)


# ---- on a device ---------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Collects the operations for which the host waits for a device, by values or by sizes."""

    HOST = "item _local_scalar_dense nonzero masked_select _unique2 repeat_interleave is_nonzero"

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        sized = name == "repeat_interleave" and "output_size" in (kwargs or {})
        self.found |= {name} & set(self.HOST.split()) if not sized else set()
        return function(*args, **(kwargs or {}))


STEPS = [{**RECIPE, "user_history": False, "item_history": False, "batch_by": by} for by in BATCHES]
STEPS += [{"loss": loss} for loss in multitask.LOSSES]


@pytest.mark.parametrize("options", STEPS)
@pytest.mark.parametrize("methods", [["fixed"], sorted({*METHODS} - {"adatask"}), ["adatask"]])
def test_no_step_waits_for_a_device(options, methods):
    stack = weighted(methods, **options)
    stack.prepare()
    stack.weighting.epoch_start(0, stack.steps)
    stack.draw_from("dropout")
    batches = stack.batches(0)
    first = next(batches)  # an epoch begins with draws
    with Waits() as waits:
        stack.step(first)
        stack.step(next(batches))
    assert not waits.found


@pytest.mark.parametrize("options", [{}, {"exclude_positives": True}, *STEPS[:2]])
def test_order_negatives_and_masks_are_drawn_on_the_stacks_device(options, monkeypatch):
    drawn = []

    def recorded(*key):
        drawn.append(key)
        return random_stream(*key[:3])

    stack = make_stack(2, **options)
    monkeypatch.setattr(multitask, "random_stream", recorded)
    stack.run_epoch(0)
    assert {key[1] for key in drawn} >= {"order", "dropout"}
    assert all(len(key) == 4 and key[3] == stack.device for key in drawn)


def test_every_device_has_streams_of_its_own_keyed_alike(monkeypatch):
    made = []

    class Generator:
        def __init__(self, device):
            self.device = device

        def manual_seed(self, seed):
            made.append((self.device, seed))

    cpu = random_stream(3, "order", 1).initial_seed()
    monkeypatch.setattr(torch, "Generator", Generator)
    random_stream(3, "order", 1, "cuda:1")
    assert made == [("cuda:1", cpu)]


# ---- task weighting: what the methods do stands in test_weighting.py ------------------------


def weighted(methods: list[str], **options):
    return make_stack(len(methods), weighting=methods, **options)


@pytest.mark.parametrize("shared_dims", SHARING)
@pytest.mark.parametrize("rating_biases", [False, True])
@pytest.mark.parametrize("loss", ["sigmoid", "bpr"])
def test_the_written_out_step_is_proved_equal_to_autograd(shared_dims, rating_biases, loss):
    """And each method steps by it as by autograd."""
    methods = [name for name in METHODS if name != "adatask"]
    options = {"shared_dims": shared_dims, "rating_biases": rating_biases, "loss": loss}
    groups = methods[:5], methods[5:10], methods[10:15], methods[-5:], ["adatask"] * 2
    for group in groups:
        ours, theirs = (weighted(group, **options) for _ in range(2))
        theirs.written_out = False
        logged, expected = ours.run_epoch(0), theirs.run_epoch(0)
        assert ours.written_out  # it is proved: losses and gradients within 1e-5
        for name, values in expected.items():
            torch.testing.assert_close(logged[name], values, atol=1e-4, rtol=1e-3, equal_nan=True)


VARIANTS = [{}, RECIPE, {**RECIPE, "batch_by": "interaction"}]
CASES = [("mgda", method, more) for method in METHODS for more in VARIANTS]
CASES += [("fixed", "fixed", more) for more in [*VARIANTS[1:], dict(sparse=True)]]
CASES += [("famo", "uw", dict(sparse=True))]
for name in multitask.LOSSES:
    CASES += [("fixed", "fixed", dict(shared_dims=dims, loss=name)) for dims in SHARING]


@pytest.mark.parametrize("neighbour, method, options", CASES)
def test_a_run_in_a_stack_is_the_run_alone(neighbour, method, options):
    options = {**options, "log_gradients": method == "fixed"}  # other methods measure unasked
    stack = weighted([neighbour, method, neighbour], **options)
    alone = weighted([method], first=1, **options)
    for epoch in range(2):
        together, its = stack.run_epoch(epoch), alone.run_epoch(epoch)
    atol = 2e-5 if neighbour == "fixed" else 1e-4
    for ours, theirs in zip(stack.net.parameters(), alone.net.parameters(), strict=True):
        torch.testing.assert_close(ours[1:2], theirs, atol=atol, rtol=0)
    close = {"atol": 10 * atol, "rtol": 10 * atol, "equal_nan": True}
    for name in its.keys() & together.keys():
        torch.testing.assert_close(together[name][1:2], its[name], **close)
    if "weight_f" in its and not alone.weighting.apart:
        ratio = its["norm_ratio"] * its["weight_f"] / its["weight_r"]
        torch.testing.assert_close(its["weighted_norm_ratio"], ratio)


@pytest.mark.parametrize("written_out", [None, False])
def test_where_nothing_is_shared_every_gradient_method_is_equal_weights(written_out):
    gradient = [name for name, method in METHODS.items() if not method.weights_own]
    for method in gradient:
        stack, equal = (weighted([m], shared_dims=0) for m in (method, "fixed"))
        equal.weighting.shared.fill_(1)
        for each in (stack, equal):
            each.written_out = written_out
            each.run_epoch(0)
        torch.testing.assert_close(stack.memory.values, equal.memory.values, atol=1e-6, rtol=0)


def test_shared_columns_step_by_the_weights_and_own_ones_by_their_task():
    stack = weighted(["mgda", "rating-probe", "fixed"], shared_dims=3)
    stack.prepare()
    batch = next(stack.batches(0))
    tasks = [stack.memory.gradients(loss.sum()) for loss in stack.losses(batch)]
    by_task = [dict(zip(stack.memory.names, stack.memory.views(x), strict=True)) for x in tasks]
    made = stack.fill_gradients(batch)
    assert made.weights[1].tolist() == [1, 0]
    own = torch.tensor([[1.0, 1], [1, 1], [0.2, 0.8]])
    for name, parameter in stack.net.named_parameters():
        f, r = (own[:, task, None, None] * by_task[task][name] for task in (0, 1))
        expected = f + r
        if name in ("users", "items"):
            f, r = (made.weights[:, k, None, None] * by_task[k][name] for k in (0, 1))
            expected[..., 5:8] = (f + r)[..., 5:8]
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1, 1)])
def test_a_heads_parameter_of_any_shape_gets_its_tasks_gradient(shape, monkeypatch):
    class Constant(torch.nn.Module):
        def __init__(self, dim, hidden, seeds):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(shape))

        def forward(self, u, q):
            return self.value.view(2, 1).expand(u.shape[:2])

    monkeypatch.setitem(RATING_HEADS, "constant", Constant)
    stack = weighted(["mgda", "adatask"], rating_head="constant")
    batch, memory = next(stack.batches(0)), stack.memory
    stack.fill_gradients(batch)
    filled = memory.named(memory.grads + memory.rating_grads)["rating_head.value"]
    torch.testing.assert_close(filled.flatten(), -2 * batch.ratings.mean(1))


def test_adatask_is_two_adams_whose_steps_add_up():
    stack = weighted(["adatask"], lr=0.01)
    start = stack.memory.values.clone()
    batch = next(stack.batches(0))
    tasks = [stack.memory.gradients(loss.sum()) for loss in stack.losses(batch)]
    stack.written_out = False
    stack.step(batch)
    steps = torch.zeros_like(start)
    for gradient in tasks:
        parameter = torch.nn.Parameter(torch.zeros_like(start))
        parameter.grad = gradient
        torch.optim.Adam([parameter], lr=0.01).step()
        steps += parameter.data
    torch.testing.assert_close(stack.memory.values - start, steps, atol=1e-6, rtol=1e-4)


def test_famo_sees_the_same_batch_dropped_out_alike_after_the_step(monkeypatch):
    stack, seen = weighted(["famo"], **{**RECIPE, "lr": 1e-12}), []
    monkeypatch.setattr(stack.weighting, "after", seen.append)
    stack.draw_from("dropout")
    stack.written_out = False
    made = stack.step(next(stack.batches(0)))
    torch.testing.assert_close(seen[0], made.losses)


def test_a_method_that_only_asks_for_the_gram_matrix_gets_it(monkeypatch):
    monkeypatch.setitem(METHODS, "half", None)  # to be removed again

    class Half(Weighting, name="half"):
        needs_gram = True

        def weights(self, losses, gram):
            return (gram.diagonal(dim1=1, dim2=2) > 0).double() / 2

    stack = weighted(["half"])
    assert stack.step(next(stack.batches(0))).weights.tolist() == [[0.5, 0.5]]
