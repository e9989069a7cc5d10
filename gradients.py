"""An accelerated training step: autograd's numbers, written out, and captured on a GPU.

At these sizes autograd's bookkeeping costs more than the arithmetic (results/bench.jsonl has the
share). What trains is `Stack.losses` and MultiTaskNet: this is a copy of both, for one case, and
steps in their place only in a run that has proved it equal to them. So it need not be known to
change them: a copy that no longer fits them is put aside, in one line on stderr.

Shapes: R runs, B batch, W row width, D_F and D_R the widths of the two windows (see models.py).
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from models import MLP, MultiTaskNet

TOLERANCE = 1e-5  # of each table's largest gradient


def covers(stack) -> bool:
    """Whether the step below is written for such a stack."""
    options, structure = stack.options, stack.net.structure
    return (
        options.loss in ("sigmoid", "bpr")
        and isinstance(stack.net.rating_head, MLP)
        and options.batch_by == "interaction"
        and not (structure.user_history or structure.item_history or options.compile)
        and not (options.ranking_dropout or options.rating_dropout)
        and not stack.weighting.split
    )


def proved(stack) -> bool:
    """Whether the step below has the losses and gradients of `Stack.losses`, here and now.

    Compared are a full batch and one of the last one's size, at the initial parameters and at
    random ones: initial biases are zero and margins near zero, where a hinge looks like its linear
    part and a penalty like nothing. Leaves the parameters as they were.
    """
    if not covers(stack):
        return False
    memory, options = stack.memory, stack.options
    initial, first = memory.values.clone(), next(iter(stack.batches(0)))
    if first.place is not None or first.real is not None:
        return False
    short = stack.train.shape[1] % options.batch_size
    batches = [first] + [type(first)(*(x[:, :short] for x in first[:4]))] * bool(short)
    stream = torch.Generator().manual_seed(0)
    problem = None
    try:
        for values in (None, "random"):
            if values:
                for parameter in memory.parameters:  # margins and biases of about 1
                    draw = torch.randn(parameter.shape, generator=stream)
                    parameter.data.copy_(draw / parameter.shape[-1] ** 0.25)
            for batch in batches:
                problem = problem or differs(stack, batch)
    finally:
        memory.values.copy_(initial)
    # What was overridden may be equal now and differ later, say by the epoch.
    if type(stack).losses.__module__ != "multitask" or "losses" in vars(stack):
        problem = problem or "Stack.losses"
    if type(stack.net) is not MultiTaskNet:
        problem = problem or "MultiTaskNet"
    if problem:
        print(
            f"the model or its losses are not those of gradients.py ({problem} differs): "
            "training by autograd, which is slower",
            file=sys.stderr,
        )
    return not problem


def differs(stack, batch) -> str | None:
    """The first loss or table whose values on a batch aren't autograd's, or None."""
    found, weights = [], stack.weighting.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    for stack.written_out in (False, True):
        stack._draw_from("dropout", 0)  # for losses of a subclass that drop out
        try:
            losses, *_ = stack.fill_gradients(batch)
        except Exception as error:
            if not stack.written_out:
                raise  # the model's own
            stack.written_out = None
            return f"raising {type(error).__name__}, the copy"
        gradients = stack.memory.views(stack.memory.grads.clone())
        found.append([*losses.T, *(gradient.flatten(1) for gradient in gradients)])
        stack.weighting.load_state_dict(before)  # nor does a method move by it
    stack.written_out = None
    names = ["the factorization loss", "the regression loss"]
    names += [f"the gradient of {name}" for name, _ in stack.net.named_parameters()]
    for name, expected, ours in zip(names, *found, strict=True):
        expected, ours = expected.view(len(expected), -1), ours.view(len(ours), -1)
        largest = expected.abs().amax(1)
        if not ((ours - expected).abs().amax(1) <= TOLERANCE * largest).all():  # NaN isn't
            return name
    return None


@torch.no_grad()
def pairwise_step(stack, batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the gradients of the weighted losses to every parameter's ``.grad``.

    L_F is of the margin d = p⁺ − p⁻: 1 − σ(d), or −log σ(d); L_R of the MLP's ratings.
    Returns what `Stack.fill_gradients` does.
    """
    net, users, items, negatives = stack.net, batch.users, batch.items, batch.negatives
    layer, output = net.rating_head.hidden, net.rating_head.output
    runs, size = batch.items.shape
    d_f, d_r = net.ranking_dim, net.rating_dim
    user_ids = (users + net.run * net.n_users).flatten()
    item_ids = (torch.cat([items, negatives], 1) + net.run * net.n_items).flatten()
    u = F.embedding(user_ids, net.users.flatten(0, 1)).view(runs, size, -1)
    q = F.embedding(item_ids, net.items.flatten(0, 1)).view(runs, 2 * size, -1)
    positive, negative = q[:, :size], q[:, size:]

    # Ranking: d = u·(q⁺ − q⁻) + b⁺ − b⁻. The user bias cancels, so its gradient is zero.
    u_f = u[..., :d_f]
    difference = positive[..., :d_f] - negative[..., :d_f]
    bias = net.item_bias.flatten()[item_ids].view(runs, 2 * size)
    margin = (u_f * difference).sum(-1).add_(bias[:, :size]).sub_(bias[:, size:])
    ordered = margin.sigmoid()
    if stack.options.loss == "sigmoid":
        factorization = 1 - ordered.mean(1)
        slope = ordered * (ordered - 1)
    else:
        factorization = -F.logsigmoid(margin).mean(1)
        slope = ordered - 1

    # Rating: X = [u, q, u∘q], h = relu(X W₁ + c₁), r̂ = h W₂ + c₂.
    u_r, q_r = u[..., -d_r:], positive[..., -d_r:]
    features = u.new_empty(runs, size, 3 * d_r)
    features[..., :d_r], features[..., d_r : 2 * d_r] = u_r, q_r
    torch.mul(u_r, q_r, out=features[..., 2 * d_r :])
    hidden = torch.baddbmm(layer.bias, features, layer.weight).relu_()
    predicted = torch.baddbmm(output.bias, hidden, output.weight).squeeze(-1)
    if net.structure.rating_biases:
        predicted += net.bias_sum(net.rating_bias_tables(), users, items) + net.mean_rating
    error = predicted - batch.ratings
    losses = torch.stack([factorization, error.square().mean(1)], 1)

    # One weight a task, now; or where the tasks are kept apart, both at the end.
    (shared, own), apart = stack.weighting.by_losses(losses), stack.weighting.apart
    weights = torch.ones_like(shared) if apart else shared
    slope = slope * (weights[:, :1] / size)  # ∂L/∂d, (R, B)
    error = error * (weights[:, 1:] * (2 / size))  # ∂L/∂r̂, (R, B)

    to_hidden = error[..., None] * output.weight.transpose(1, 2)
    to_hidden = torch.ops.aten.threshold_backward(to_hidden, hidden, 0)
    output.weight.grad.view(runs, 1, -1).baddbmm_(error[:, None], hidden)
    output.bias.grad.view(-1).add_(error.sum(1))
    layer.weight.grad.baddbmm_(features.transpose(1, 2), to_hidden)
    layer.bias.grad.add_(to_hidden.sum(1, keepdim=True))
    to_features = torch.bmm(to_hidden, layer.weight.transpose(1, 2))
    to_u, to_q, to_product = to_features.split(d_r, -1)

    # Rows: the rating window first; the ranking window is added to it in the common columns, or
    # where the tasks are kept apart, added to tables of ranking's own.
    own_dims = net.width - d_r  # ranking's own columns come first
    to_users, to_items = torch.empty_like(u), torch.empty_like(q)
    to_positive, to_negative = to_items[:, :size], to_items[:, size:]
    slopes, added = slope[..., None], own_dims if apart else d_f
    for to_rows, to_window, other, factor in (
        (to_users, to_u, q_r, difference),
        (to_positive, to_q, u_r, u_f),
    ):
        torch.addcmul(to_window, to_product, other, out=to_rows[..., own_dims:])
        torch.mul(slopes, factor[..., :own_dims], out=to_rows[..., :own_dims])
        to_rows[..., own_dims:added].addcmul_(slopes, factor[..., own_dims:added])
    if added:
        torch.mul(-slopes, u_f[..., :added], out=to_negative[..., :added])
    if 0 < added < net.width:
        to_negative[..., added:] = 0
    to_item_bias = torch.cat([slope, -slope], 1)
    rated_ids = (items + net.run * net.n_items).flatten()
    add_rows(net.users.grad, user_ids, to_users)
    if added:
        add_rows(net.items.grad, item_ids, to_items)
    else:  # all is shared and apart: a negative's row has no gradient of rating's
        add_rows(net.items.grad, rated_ids, to_positive)
    add_rows(net.item_bias.grad, item_ids, to_item_bias)
    if net.structure.rating_biases:
        user_bias, item_bias = net.rating_bias_tables()
        add_rows(user_bias.grad, user_ids, error)
        add_rows(item_bias.grad, rated_ids, error)
    gram = None
    if apart:
        ranking = [torch.zeros_like(part) for part in stack.memory.shared(stack.memory.grads)]
        if ranking:
            to_positive = slopes * u_f[..., own_dims:]
            add_rows(ranking[0], user_ids, slopes * difference[..., own_dims:])
            add_rows(ranking[1], item_ids, torch.cat([to_positive, -to_positive], 1))
        if len(ranking) > 2:  # the biases too: of ranking's gradients the items' alone isn't zero
            add_rows(net.item_bias.grad, item_ids, -to_item_bias)
            add_rows(ranking[3], item_ids, to_item_bias)
        gram = stack.memory.gram_of(ranking, stack.memory.shared(stack.memory.grads))
        shared = stack.weighting.by_gradients(shared, losses, gram)
        stack.memory.weigh(ranking, shared, own if stack.weighting.weighs_own else None)
    return losses, shared, gram


def add_rows(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Add to the rows of a stack's table, (R, n, C), of ids over the whole stack."""
    table.view(-1, table.shape[-1]).index_add_(0, ids, rows.reshape(len(ids), -1))


class CapturedStep:
    """A stack's step as one launch of a CUDA graph: captured at its first full batch, replayed.

    Batches of another size step one operation at a time. Rate and draws have to be fixed.
    """

    def __init__(self, stack):
        self.stack, self.graph = stack, None

    def __call__(self, batch):
        if batch.size != self.stack.options.batch_size:
            return self.stack.step(batch)
        if self.graph is None:
            self._capture(batch)
        for held, part in zip(self.inputs[:4], batch[:4], strict=True):
            held.copy_(part)
        self.graph.replay()
        return self.outputs

    def _capture(self, batch) -> None:
        self.inputs = type(batch)(*(part.clone() for part in batch[:4]))
        state = [x for x in self.stack.state_dict().values() if isinstance(x, Tensor)]
        saved = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # warm-up: allocates what the capture may not
                self.stack.step(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = self.stack.step(self.inputs)
        # Neither the warm-up nor the capture may leave a trace in the run.
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
