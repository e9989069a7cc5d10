"""The optimizers' decay, apart from gradients.

Their steps along gradients are held elsewhere: Adam's by torch's own in test_multitask.py, plain
descent's in closed form by the extensions in test_train.py.
"""

import pytest
import torch
from small import make_stack, randomise

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
