"""An accelerated training step: autograd's numbers, written out, and captured on a GPU.

At these sizes autograd's bookkeeping costs more than the arithmetic (results/bench.jsonl has the
share). What trains is `Stack.losses` and MultiTaskNet: this is a copy of both, for one case, and
steps in their place only while it is proved equal to them, at the start and once an epoch. So it
need not be known to change them: a copy that doesn't fit them is put aside for the rest of the run,
in one line on stderr.

Shapes: R runs, B batch, W row width, D_F and D_R the widths of the two windows (see models.py).
"""

import copy
import sys
from collections.abc import Iterator
from itertools import compress, islice

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from distributed import Whole
from models import MLP, MultiTaskNet
from optimizers import Flat

TOLERANCE = 1e-8  # of each table's largest gradient
FLOOR = 1e-12  # of a gradient per unit of weight: 1 − σ of a large margin is a rounded number
LEAST = 256  # interactions compared: of so many some margins are small


def covers(stack) -> bool:
    """Whether the step below is written for such a stack."""
    options, structure = stack.options, stack.net.structure
    return (
        options.loss in ("sigmoid", "bpr")
        and options.pairwise
        and isinstance(stack.net.rating_head, MLP)
        and options.batch_by == "interaction"
        and not (structure.user_history or structure.item_history)
        and not (options.compile or options.sparse)
        and not (options.ranking_dropout or options.rating_dropout)
        and (not stack.weighting.split or splits_plainly(stack.weighting))
        and not (stack.weighting.apart and type(stack.part) is not Whole)  # of whole gradients
    )


def splits_plainly(weighting) -> bool:
    """Whether all runs have moments per task, at weights that are 1."""
    all_split = weighting.per_task_moments.all() and (weighting.own == 1).all()
    return bool(all_split) and not weighting.groups


def ahead(stack, batches: Iterator) -> list:
    """As many batches as the comparison takes, of which one is too small."""
    return [*islice(batches, -(-LEAST // stack.options.batch_size))]


def proved(stack, batches: list | None = None) -> bool:
    """Whether the step below has the losses and gradients of `Stack.losses`: one line if not.

    With batches, the first of an epoch: on them, as the parameters are. Without, before the first
    epoch: at the initial parameters, where biases are zero and margins near it, and at random ones
    with margins up to about 6, 17 and 60, where a hinge is no line and a penalty isn't zero; there
    also on all of the first batch, on one of the last one's size, and on every user and item.

    All in float64, on a copy: rounding is no difference, and nothing of the stack changes.
    """
    if not covers(stack):
        return False
    try:
        first = batches or stack.opening
        some = joined(first, max(LEAST, stack.train.shape[1] // 256))  # about 2% of an epoch
        twin = copy.copy(stack)
        twin.part = Whole()
        twin.net = copy.deepcopy(stack.net).double()
        twin.memory = Flat(twin.net, split=stack.memory.rating_grads is not None)
        problem, stream = differs(twin, some), torch.Generator().manual_seed(0)
        for scale in () if batches else (1, 2, 4):  # margins grow by its square
            for parameter in twin.memory.parameters:
                draw = torch.randn(parameter.shape, generator=stream)
                parameter.data.copy_(draw * (scale / parameter.shape[-1] ** 0.25))
            for batch in [*probes(stack, first[0], some), some] if scale == 1 else [some]:
                problem = problem or differs(twin, batch)
    except Exception as error:  # if it is the model's own, training will meet it too
        problem = f"what it raises, {type(error).__name__},"
    # What was overridden may be equal now and differ later.
    if type(stack).losses.__module__ != "multitask" or "losses" in vars(stack):
        problem = problem or "Stack.losses"
    if type(stack.net) is not MultiTaskNet or type(stack.net.rating_head) is not MLP:
        problem = problem or "MultiTaskNet"
    if problem:
        tqdm.write(
            f"the model or its losses are not those of gradients.py ({problem} differs): "
            "training by autograd, which is slower",
            file=sys.stderr,
        )
    return not problem


def joined(batches: list, size: int):
    """The first interactions of some batches, as one."""
    columns = zip(*batches, strict=True)
    return type(batches[0])(*(x[0] if x[0] is None else torch.cat(x, 1)[:, :size] for x in columns))


def probes(stack, first, some) -> list:
    """The first batch if it is another than `some`, one of the last one's size, and batches with
    every user and every item."""
    net, size = stack.net, stack.options.batch_size
    ids = torch.arange(max(net.n_users, net.n_items), device=stack.device)
    columns = [ids % net.n_users, ids % net.n_items, stack.ratings[ids % len(stack.ratings)]]
    columns.append(columns[1].flip(0))
    parts = max(size, 2048, 2**17 // len(first.items), len(ids) // 4)  # each a pass over tables
    parts = [x.expand(len(first.items), -1).split(parts, 1) for x in columns]
    every = [type(first)(*part) for part in zip(*parts, strict=True)]
    short = stack.train.shape[1] % size
    whole = [first] * (first.size != some.size)
    return [*whole, *[joined([first], short)] * bool(short), *every]


def differs(twin, batch) -> str | None:
    """The first loss or table whose values on a batch aren't autograd's, or None."""
    found, weighting, memory = [], twin.weighting, twin.memory
    for twin.written_out in (False, True):
        twin.weighting = copy.deepcopy(weighting)
        twin.draw_from("dropout")  # for losses of a subclass that drop out
        made = twin.fill_gradients(batch)
        flats = [x.clone() for x in (memory.grads, memory.rating_grads) if x is not None]
        found.append((made.losses, flats))
    twin.weighting = weighting

    def largest(losses, flats):  # (2 + tables, R)
        views = [view for flat in flats for view in memory.views(flat)]
        return torch.stack([*losses.abs().T, *(x.flatten(1).amax(1) for x in views)])

    (losses, grads), (our_losses, ours) = found
    away = [x.sub_(y).abs_() for x, y in zip(ours, grads, strict=True)]
    difference = largest(our_losses - losses, away)
    bound = TOLERANCE * largest(losses, [x.abs_() for x in grads])
    bound[2:] += FLOOR * made.weights.amax(1)
    # A run that is no longer finite can't be told.
    finite = [x.flatten(1).sum(1).isfinite() for x in memory.views(memory.values)]
    wrong = torch.stack(finite).all(0) & ~(difference <= bound)  # NaN is wrong
    names = [f"the gradient of {name}" for name in memory.names] * len(grads)
    names = ["the factorization loss", "the regression loss", *names]
    return next(compress(names, wrong.any(1).tolist()), None)


@torch.no_grad()
def pairwise_step(stack, batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Add the gradients of the weighted losses to every parameter's ``.grad``, or where the
    tasks have moments of their own, rating's to its ``.rating_grad``.

    L_F is of the margin d = p⁺ − p⁻: 1 − σ(d), or −log σ(d); L_R of the MLP's ratings.
    Returns what `Stack.fill_gradients` does.
    """
    net, users, items, negatives = stack.net, batch.users, batch.items, batch.negatives
    layer, output = net.rating_head.hidden, net.rating_head.output
    runs, size = batch.items.shape
    d_f, d_r = net.ranking_dim, net.rating_dim
    user_ids, item_ids = users, torch.cat([items, negatives], 1)
    if runs > 1:  # empty operations, too, cost as much as small ones
        user_ids, item_ids = user_ids + net.run * net.n_users, item_ids + net.run * net.n_items
    user_ids, item_ids = user_ids.flatten(), item_ids.flatten()
    u = F.embedding(user_ids, net.users.flatten(0, 1)).view(runs, size, -1)
    q = F.embedding(item_ids, net.items.flatten(0, 1)).view(runs, 2 * size, -1)
    positive, negative = q[:, :size], q[:, size:]

    # Ranking: d = u·(q⁺ − q⁻) + b⁺ − b⁻. The user bias cancels, so its gradient is zero.
    u_f = u[..., :d_f]
    difference = positive[..., :d_f] - negative[..., :d_f]
    bias = net.item_bias.flatten().gather(0, item_ids).view(runs, 2 * size)
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
    losses = batch.of_whole(torch.stack([factorization, error.square().mean(1)], 1))
    losses = stack.part.total(losses)

    # One weight a task, now; or where the tasks are kept apart, both at the end.
    (shared, own), apart = stack.weighting.by_losses(losses), stack.weighting.apart
    split = stack.memory.rating_grads is not None
    rated = "rating_grad" if split else "grad"
    weights = torch.ones_like(losses) if apart else shared.to(losses)
    weights = batch.of_whole(weights)
    slope = slope * (weights[:, :1] / size)  # ∂L/∂d, (R, B)
    error = error * (weights[:, 1:] * (2 / size))  # ∂L/∂r̂, (R, B)

    to_hidden = error[..., None] * output.weight.transpose(1, 2)
    to_hidden = torch.ops.aten.threshold_backward(to_hidden, hidden, 0)
    getattr(output.weight, rated).view(runs, 1, -1).baddbmm_(error[:, None], hidden)
    getattr(output.bias, rated).view(-1).add_(error.sum(1))
    getattr(layer.weight, rated).baddbmm_(features.transpose(1, 2), to_hidden)
    getattr(layer.bias, rated).add_(to_hidden.sum(1, keepdim=True))
    to_features = torch.bmm(to_hidden, layer.weight.transpose(1, 2))
    to_u, to_q, to_product = to_features.split(d_r, -1)

    # Rows: the rating window first. The ranking window is added to it in the common columns; where
    # the tasks are kept apart, the two are weighed there.
    own_dims = net.width - d_r  # ranking's own columns come first
    to_users, to_items = torch.empty_like(u), torch.empty_like(q)
    to_positive, to_negative = to_items[:, :size], to_items[:, size:]
    slopes, common = slope[..., None], slice(own_dims, d_f)
    for to_rows, to_window, other, factor in (
        (to_users, to_u, q_r, difference),
        (to_positive, to_q, u_r, u_f),
    ):
        torch.addcmul(to_window, to_product, other, out=to_rows[..., own_dims:])
        if own_dims:
            torch.mul(slopes, factor[..., :own_dims], out=to_rows[..., :own_dims])
        if not apart:
            to_rows[..., common].addcmul_(slopes, factor[..., common])
    to_item_bias = torch.cat([slopes, -slopes], 1)
    torch.mul(to_item_bias[:, size:], u_f, out=to_negative[..., :d_f])
    if d_f < net.width:
        to_negative[..., d_f:] = 0
    rows = [(net.users, user_ids, to_users), (net.items, item_ids, to_items)]
    rows.append((net.item_bias, item_ids, to_item_bias))
    tasks, gram = [], None  # where the tasks are kept apart: what each has of rows, in columns
    if apart and own_dims < d_f:
        of_users, of_items = slopes * difference[..., common], slopes * u_f[..., common]
        tasks.append((of_users, to_users[..., common], common))
        of_items = torch.cat([of_items, to_negative[..., common]], 1)
        tasks.append((of_items, to_positive[..., common], common))
    if apart and "user_bias" in stack.memory.columns:  # the rating head's biases too
        rows.append((net.user_bias, user_ids, torch.zeros_like(slopes)))
        tasks.append((to_item_bias, error[..., None], slice(None)))
        tasks.append((rows[-1][-1], error[..., None], slice(None)))
    rated_rows = [torch.zeros_like(to_rows) for *_, to_rows in rows] if split else []
    for to_rows, half in zip((to_users, to_items), rated_rows, strict=False):
        half[..., d_f:] = to_rows[..., d_f:]
        to_rows[..., d_f:] = 0
    if apart:
        shared, gram = weigh_rows(stack, losses, shared, rows, tasks, rated_rows)
    added = [(table.grad, *those) for table, *those in rows]
    for (table, ids, _), half in zip(rows, rated_rows, strict=False):
        added.append((table.rating_grad, ids, half))
    if net.structure.rating_biases and not (apart and "user_bias" in stack.memory.columns):
        user_bias, item_bias = net.rating_bias_tables()
        positives = item_ids.view(runs, -1)[:, :size].flatten()
        added.append((getattr(user_bias, rated), user_ids, error))
        added.append((getattr(item_bias, rated), positives, error))
    for gradients, ids, to_rows in added:
        gradients.view(-1, gradients.shape[-1]).index_add_(0, ids, to_rows.reshape(len(ids), -1))
    if apart and stack.weighting.weighs_own and not split:
        stack.memory.weigh_own(own)
    return losses, shared, gram


def weigh_rows(stack, losses, shared, rows: list, tasks: list, rated: list) -> tuple:
    """Weigh the tasks' gradients in the rows of a batch: the weights, (R, 2), and the Gram matrix.

    Of ``rows``, a table, ids (R · n,) in it and what to add to each, ``tasks`` has ranking's
    gradients, (R, n, K), rating's, perhaps of the first ids alone, and the columns where their
    weighed sum goes; of ``rated``, if there are, rating's part goes there instead. The gradients of
    one id are added up at one of its places, and zero at others: a table no longer than the batch.
    """
    kept, run = [], stack.net.run  # of both tasks: (R, 2, n, K)
    gram = stack.memory.values.new_zeros(len(losses), 2, 2)
    for (table, ids, _), (*both, _) in zip(rows, tasks, strict=False):
        place = ids.new_empty(table[..., 0].numel())
        place[ids] = torch.arange(len(ids), device=ids.device)
        places = place[ids].view(len(losses), -1)
        n, width = places.shape[1], both[0].shape[-1]
        sums = stack.memory.zeros(len(kept), len(losses), 2, n, width)
        for gradients, start in zip(both, (places + run * n, places + (run + 1) * n), strict=True):
            at = start[:, : gradients.shape[1]].flatten()
            sums.view(-1, width).index_add_(0, at, gradients.reshape(len(at), width))
        kept.append(sums)
        flat = sums.flatten(2)
        gram.baddbmm_(flat, flat.transpose(1, 2))
    shared = stack.weighting.by_gradients(shared, losses, gram)
    w = shared[..., None, None]
    for k, (sums, (*_, columns)) in enumerate(zip(kept, tasks, strict=True)):
        (f, r), weighed = sums.unbind(1), rows[k][2][..., columns]
        r.mul_(w[:, 1])
        if rated:
            torch.mul(f, w[:, 0], out=weighed)
            rated[k][..., columns] = r
        else:
            torch.addcmul(r, f, w[:, 0], out=weighed)
    return shared, gram


class CapturedStep:
    """A stack's step as one launch of a CUDA graph: captured at its first full batch, replayed.

    Batches of another size, or at another learning rate than the captured one, step one operation
    at a time. Draws have to be fixed.
    """

    def __init__(self, stack):
        self.stack, self.graph, self.lr = stack, None, stack.optimizer.lr

    def __call__(self, batch):
        if batch.size != self.stack.options.batch_size or self.stack.optimizer.lr != self.lr:
            return self.stack.step(batch)
        if self.graph is None:
            self._capture(batch)
        for held, part in zip(self.inputs[:4], batch[:4], strict=True):
            held.copy_(part)
        self.graph.replay()
        return self.outputs

    def _capture(self, batch) -> None:
        self.inputs = type(batch)(*(part.clone() for part in batch[:4]))
        state = self.stack.state_dict().items()
        saved = {name: x.clone() for name, x in state if isinstance(x, Tensor)}
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
        self.stack.load_state_dict(saved)
