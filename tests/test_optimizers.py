"""The optimizers apart from gradients: decay, frozen parameters, state that isn't finite.

Their steps along gradients are held elsewhere: Adam's by torch's own in test_multitask.py, plain
descent's in closed form by the extensions in test_train.py.
"""

import pytest
import torch
from small import make_stack, randomise

from models import MultiTaskNet

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
