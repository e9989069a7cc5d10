"""The losses of a pairwise step and their gradients, written out.

At these sizes autograd's bookkeeping costs more than the arithmetic: the same numbers as
``multitask.Stack.losses`` followed by ``backward()``, in about half the time (results/bench.jsonl).
A test holds every gradient here against autograd's.

Shapes: R runs, B batch, W row width, D_F and D_R the widths of the two windows (see models.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models import MultiTaskNet

WRITTEN_OUT = ("sigmoid", "bpr")


@torch.no_grad()
def pairwise_step(
    net: MultiTaskNet,
    loss: str,
    users: Tensor,
    items: Tensor,
    negatives: Tensor,
    ratings: Tensor,
    lambda_f: Tensor,
    lambda_r: Tensor,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of λ_F·L_F + λ_R·L_R to every parameter's ``.grad``.

    Args:
        loss: "sigmoid", 1 − σ(d), or "bpr", −log σ(d), of the margin d = p⁺ − p⁻.
        users, items, negatives, ratings: (R, B) each.
        lambda_f, lambda_r: (R,).

    Returns:
        L_F and L_R, (R,) each.
    """
    runs, batch = users.shape
    d_f, d_r = net.ranking_dim, net.rating_dim
    user_ids = (users + net.run * net.n_users).flatten()
    item_ids = (torch.cat([items, negatives], 1) + net.run * net.n_items).flatten()
    u = F.embedding(user_ids, net.users.flatten(0, 1)).view(runs, batch, -1)
    q = F.embedding(item_ids, net.items.flatten(0, 1)).view(runs, 2 * batch, -1)
    positive, negative = q[:, :batch], q[:, batch:]

    # Ranking: d = u·(q⁺ − q⁻) + b⁺ − b⁻. The user bias cancels, so its gradient is zero.
    u_f = u[..., :d_f]
    difference = positive[..., :d_f] - negative[..., :d_f]
    bias = net.item_bias.flatten()[item_ids].view(runs, 2 * batch)
    margin = (u_f * difference).sum(-1).add_(bias[:, :batch]).sub_(bias[:, batch:])
    ordered = margin.sigmoid()
    if loss == "sigmoid":
        factorization = 1 - ordered.mean(1)
        slope = ordered * (ordered - 1)
    elif loss == "bpr":
        factorization = -F.logsigmoid(margin).mean(1)
        slope = ordered - 1
    else:
        raise ValueError(f"loss {loss!r} is not written out here: it is one of {WRITTEN_OUT}")
    slope = slope * (lambda_f / batch)[:, None]  # ∂L/∂d, (R, B)

    # Rating: X = [u, q, u∘q], h = relu(X W₁ + c₁), r̂ = h W₂ + c₂.
    u_r, q_r = u[..., -d_r:], positive[..., -d_r:]
    features = u.new_empty(runs, batch, 3 * d_r)
    features[..., :d_r], features[..., d_r : 2 * d_r] = u_r, q_r
    torch.mul(u_r, q_r, out=features[..., 2 * d_r :])
    hidden = torch.baddbmm(net.hidden_bias, features, net.hidden_weight).relu_()
    predicted = torch.baddbmm(net.output_bias, hidden, net.output_weight).squeeze(-1)
    if net.rating_biases:
        predicted += net.bias_sum(net.rating_bias_tables(), users, items) + net.mean_rating
    error = predicted - ratings
    regression = error.square().mean(1)
    error = error * (2 / batch * lambda_r)[:, None]  # ∂L/∂r̂, (R, B)

    to_hidden = error[..., None] * net.output_weight.transpose(1, 2)
    to_hidden = torch.ops.aten.threshold_backward(to_hidden, hidden, 0)
    net.output_weight.grad.view(runs, 1, -1).baddbmm_(error[:, None], hidden)
    net.output_bias.grad.view(-1).add_(error.sum(1))
    net.hidden_weight.grad.baddbmm_(features.transpose(1, 2), to_hidden)
    net.hidden_bias.grad.add_(to_hidden.sum(1, keepdim=True))
    to_features = torch.bmm(to_hidden, net.hidden_weight.transpose(1, 2))
    to_u, to_q, to_product = to_features.split(d_r, -1)

    # Rows: the rating window first, then the ranking window, added to it in the common columns.
    own = net.width - d_r  # ranking's own columns come first
    slopes = slope[..., None]
    to_users, to_items = torch.empty_like(u), torch.empty_like(q)
    to_positive, to_negative = to_items[:, :batch], to_items[:, batch:]
    for to_rows, to_window, other, ranked in (
        (to_users, to_u, q_r, difference),
        (to_positive, to_q, u_r, u_f),
    ):
        torch.addcmul(to_window, to_product, other, out=to_rows[..., own:])
        torch.mul(slopes, ranked[..., :own], out=to_rows[..., :own])
        to_rows[..., own:d_f].addcmul_(slopes, ranked[..., own:])
    torch.mul(-slopes, u_f, out=to_negative[..., :d_f])
    to_negative[..., d_f:] = 0
    net.users.grad.flatten(0, 1).index_add_(0, user_ids, to_users.flatten(0, 1))
    net.items.grad.flatten(0, 1).index_add_(0, item_ids, to_items.flatten(0, 1))
    net.item_bias.grad.flatten().index_add_(0, item_ids, torch.cat([slope, -slope], 1).flatten())
    if net.rating_biases:
        rated_ids = (items + net.run * net.n_items).flatten()
        user_bias, item_bias = net.rating_bias_tables()
        user_bias.grad.flatten().index_add_(0, user_ids, error.flatten())
        item_bias.grad.flatten().index_add_(0, rated_ids, error.flatten())
    return factorization, regression
