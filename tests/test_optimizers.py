"""The optimizers apart from gradients: decay, frozen parameters, state that isn't finite.

Their steps along gradients are held elsewhere: Adam's by torch's own in test_multitask.py, plain
descent's in closed form by the extensions in test_train.py.
"""

import numpy as np
import pytest
import torch
from small import make_stack, randomise

import multitask
from models import MultiTaskNet
from multitask import Stack

COLUMNS = [1.0] * 5 + [2.0] * 3 + [4.0] * 5  # of ranking's own | common | rating's own


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    "decay, of_tables, of_others", [([2.0], 2.0, 2.0), ([1.0, 2.0, 4.0], COLUMNS, 0.0)]
)
def test_weight_decay_shrinks_all_parameters_or_each_window_of_the_tables_at_its_own_rate(
    optimizer, decay, of_tables, of_others
):
    settings = dict(shared_dims=3, user_history=True, optimizer=optimizer, lr=0.01)
    stack = make_stack(1, weight_decay=decay, **settings)
    randomise(stack.net)
    before = {name: table.detach().clone() for name, table in stack.net.named_parameters()}
    stack.memory.grads.zero_()
    stack.optimizer.step()
    for name, parameter in stack.net.named_parameters():
        rate = of_tables if name in ("users", "items", "history_items") else of_others
        expected = before[name] * (1 - 0.01 * torch.tensor(rate))
        torch.testing.assert_close(parameter.detach(), expected)


class Frozen(MultiTaskNet):
    def __init__(self, *sizes, **named):
        super().__init__(*sizes, **named)
        self.users.requires_grad_(False)


@pytest.mark.parametrize("weighting", ["fixed", "mgda"])
def test_a_frozen_parameter_stays_as_it_is_and_has_no_gradient_to_measure(weighting):
    stack = make_stack(1, net=Frozen, weighting=[weighting], log_gradients=True)
    before = {name: value.detach().clone() for name, value in stack.net.named_parameters()}
    logged = stack.run_epoch(0)
    assert logged["users_cosine"].isnan().all() and logged["items_cosine"].isfinite().all()
    still = [name for name, value in stack.net.named_parameters() if value.equal(before[name])]
    assert still == ["users", "user_bias"]


def test_weight_decay_of_a_frozen_parameter_is_refused():
    with pytest.raises(ValueError, match="users is frozen"):
        make_stack(1, net=Frozen, weight_decay=[0.1])


def test_a_run_whose_adam_overflows_stops_alone(command):
    """Its parameters stay finite: with an infinite square they stand still for ever."""
    words = "--lambda-f 0.5 1e25 1e36 --lambda-r 0.5 1e25 1e36 --epochs 3 --out s"
    code, (healthy, *broken), err = command(words)
    assert code == 2 and healthy["epochs"] == 3 and err.count("train.py: error") == 2
    for result in broken:
        assert result["epoch"] == 0 and result["table"] == "adam's square of users"
        assert f"epoch 0, in {result['table']}" in result["error"] and result["error"] in err
    _, alone, _ = command("--lambda-f 0.5 --lambda-r 0.5 --epochs 3")
    assert healthy["mse"] == pytest.approx(alone["mse"], rel=1e-5)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_single_value_that_is_not_finite_is_named(value):
    stack = make_stack(2)
    memory, square = stack.memory, stack.optimizer.state["square"]
    for flat, name in ((square, "adam's square of item_bias"), (memory.values, "item_bias")):
        assert stack.broken_tables()[0] is None
        memory.named(flat)["item_bias"][1, 3] = value
        assert stack.broken_tables() == [None, name]


@pytest.mark.parametrize("options", [{}, dict(rating_biases=True, shared_dims=3)])
def test_a_sparse_step_is_lazy_adam_on_the_touched_rows_and_leaves_all_others(options):
    """Gradients by autograd through the dense lookups, the algorithm in NumPy."""
    options = dict(weighting=["fixed", "gls"], batch_size=8, **options)
    stack, dense = make_stack(2, sparse=True, **options), make_stack(2, **options)
    parameters = dict(stack.net.named_parameters())
    own = {name: x.detach().double().numpy().copy() for name, x in parameters.items()}
    mean, square = ({name: np.zeros_like(x) for name, x in own.items()} for _ in range(2))
    for step, batch in zip(range(1, 7), stack.batches(0), strict=False):
        dense.memory.values.copy_(stack.memory.values)
        losses = torch.stack(dense.losses(batch), 1)
        weights, _ = dense.weighting.by_losses(losses.detach())
        dense.memory.clear()
        (weights * losses).sum().backward()
        items = torch.cat([batch.items, batch.negatives], 1)
        before = {name: x.copy() for name, x in own.items()}
        stack.step(batch)
        for name, parameter in dense.net.named_parameters():
            gradient = parameter.grad.double().numpy()
            touched = np.ones(gradient.shape[:2], dtype=bool)
            if "rating_head" not in name:
                ids = batch.users if "user" in name else items
                ids = batch.items if name == "rating_item_bias" else ids
                touched = np.stack([np.isin(np.arange(gradient.shape[1]), x) for x in ids])
                assert not touched.all() and not gradient[~touched].any()
            m, v, g = mean[name], square[name], gradient[touched]
            m[touched], v[touched] = 0.9 * m[touched] + 0.1 * g, 0.999 * v[touched] + 0.001 * g**2
            slope = m[touched] / (1 - 0.9**step)
            own[name][touched] -= 0.01 * slope / (np.sqrt(v[touched] / (1 - 0.999**step)) + 1e-8)
            found = parameters[name].detach().numpy()
            assert (found[~touched] == before[name].astype(np.float32)[~touched]).all()
            np.testing.assert_allclose(found, own[name], atol=1e-5)
            own[name] = found.astype(np.float64)  # exact from here on


@pytest.mark.parametrize("loss", multitask.LOSSES)
def test_sparse_plain_descent_is_plain_descent(loss):
    options = dict(optimizer="sgd", loss=loss, log_gradients=True)
    sparse, dense = make_stack(2, sparse=True, **options), make_stack(2, **options)
    for epoch in range(2):
        ours, theirs = sparse.run_epoch(epoch), dense.run_epoch(epoch)
        for name, values in theirs.items():
            torch.testing.assert_close(ours[name], values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sparse.memory.values, dense.memory.values, atol=1e-6, rtol=0)


def test_a_table_that_a_model_uses_as_a_whole_steps_as_a_whole():
    class Shrunk(Stack):
        def losses(self, batch):
            factorization, regression = super().losses(batch)
            return factorization, regression + self.net.users.square().mean((1, 2))

    stack = make_stack(1, kind=Shrunk, sparse=True, batch_size=4)
    before = stack.net.users.detach().clone()
    stack.step(next(stack.batches(0)))
    assert (stack.net.users != before).any(2).all()
    assert stack.net.items.grad.is_sparse and not stack.net.users.grad.is_sparse
