"""Flat memory and the optimizers on it, against torch's own and by hand."""

import pytest
import torch
from small import make_stack

from optimizers import Adam, Flat


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
    batch, before = next(stack.batches(0)), stack.memory.values.clone()
    stack.fill_gradients(batch)
    gradient = stack.memory.grads.clone()
    stack.step(batch)
    torch.testing.assert_close(stack.memory.values, before * 0.95 - 0.5 * gradient)


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
