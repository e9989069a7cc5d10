"""Several processes of one command, started by torchrun: who trains what, and what they exchange.

    torchrun --nproc-per-node 2 train.py --shared --seeds 0-15        # each trains half of the runs
    torchrun --nproc-per-node 2 train.py --data big.csv --batch-size 65536   # half of each batch

The runs of a stack are shared out and exchange nothing in training. A single run has a `Part` of
its batches in each process, and their gradients are summed at each step. Each process writes the
folders of its own runs, the first, of rank 0, those of the command. Without torchrun, or with one
process, there is no group, and what stands here does nothing.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group() -> Iterator[None]:
    """Within it the processes that torchrun started are a group, if they are several."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    # Nothing is late: a process that ends breaks its connections.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, own, several = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart: of the group before it holds addresses that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, named = dist.PrefixStore(f"attempt {attempt}", store), dict(rank=own, world_size=several)
    dist.init_process_group(backend, store=store, timeout=timedelta(days=30), **named)
    try:
        yield
    finally:
        dist.destroy_process_group()


def launcher() -> str | None:
    """What tells the torchrun that started this process from others, over its restarts."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{job} {os.getppid()}" if job == "none" else job


def restarted() -> bool:
    """Whether torchrun started this process again, after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


# ---- what they tell each other -------------------------------------------------------------


def _call(collective, *args, **named) -> None:
    try:
        collective(*args, **named)
    except RuntimeError as error:
        lines = str(error).splitlines() or [""]
        raise ConnectionError(f"another process of the group has ended ({lines[0]})") from None


def largest(value: int) -> int:
    """The largest of the processes' values, in all of them."""
    if size() > 1:
        held = torch.tensor(value, dtype=torch.int64)
        _call(dist.all_reduce, held, dist.ReduceOp.MAX)
        value = held.item()
    return value


def gathered(value: object) -> list:
    """The processes' values in the order of their ranks, in the first; in others nothing.

    They are of what torch.load reads: tensors, numbers, texts, lists and dictionaries of them.
    """
    if size() == 1:
        return [value]
    buffer, parts = io.BytesIO(), [None] * size() if rank() == 0 else None
    torch.save(value, buffer)
    _call(dist.gather_object, buffer.getvalue(), parts)
    return [torch.load(io.BytesIO(part), "cpu", weights_only=True) for part in parts or []]


def of_first(value: object) -> object:
    """The first process's value, in all of them; what `gathered` takes."""
    if size() > 1:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        box = [buffer.getvalue()]
        _call(dist.broadcast_object_list, box)
        value = torch.load(io.BytesIO(box[0]), "cpu", weights_only=True)
    return value


@contextmanager
def agreed() -> Iterator[None]:
    """Within it nothing is exchanged; where one process raises, all do, others ConnectionError."""
    raised, told = None, [None] * size()
    try:
        yield
    except BaseException as error:
        raised = error
    if size() > 1:
        _call(dist.all_gather_object, told, None if raised is None else str(raised))
    if raised:
        raise raised
    for k, text in enumerate(told):
        if text is not None:
            raise ConnectionError(f"process {k}: {text}")


# ---- the runs of a command -----------------------------------------------------------------


def shares(n_runs: int) -> tuple[slice, slice]:
    """Which runs of a command this process trains, and which of them it writes.

    Raises ValueError for fewer runs than processes, unless it is one, of which all train a part.
    """
    if n_runs == 1:
        return slice(0, 1), slice(0, int(rank() == 0))
    if n_runs < size():
        raise ValueError(f"{n_runs} runs are too few for {size()} processes: start {n_runs}, or 1")
    mine = slice(n_runs * rank() // size(), n_runs * (rank() + 1) // size())
    return mine, mine


LISTS = "configs", "histories", "best"  # of a command's state, a value a run


def picked(state: dict, members: int, runs: list[dict]) -> dict:
    """The part of a command's state, of all ``runs``, that this process goes on with."""
    if size() == 1:
        return state
    trained, written = shares(len(runs))
    rows = slice(trained.start * members, trained.stop * members)
    # Of weightings that no run here has there is a state, and a shape in what tells the code.
    others = {run["weighting"] for run in runs} - {run["weighting"] for run in runs[trained]}
    known = {name: state[name].items() for name in ("stack", "code")}
    known = {
        name: {k: x for k, x in items if k.rpartition(" of ")[2] not in others}
        for name, items in known.items()
    }
    known["stack"] = {
        k: x[rows] if torch.is_tensor(x) and x.dim() else x for k, x in known["stack"].items()
    }
    failed = {
        r - written.start: told
        for r, told in state["failed"].items()
        if written.start <= r < written.stop
    }
    own = {name: state[name][written] for name in LISTS}
    return {**state, **own, **known, "losses": state["losses"][rows], "failed": failed}


def merged(state: dict) -> dict | None:
    """The state of a command of all its runs, from those of the processes: in the first."""
    parts, first = gathered(state), 0
    if len(parts) < 2:
        return parts[0] if parts else None
    whole = {**parts[0], "failed": {}}
    whole |= {name: [x for part in parts for x in part[name]] for name in LISTS}
    for part in parts:
        whole["failed"] |= {first + r: x for r, x in part["failed"].items()}
        first += len(part["configs"])
    if parts[1]["configs"]:  # else all train the same run
        whole["losses"] = torch.cat([part["losses"] for part in parts])
        whole["code"] = {name: told for part in parts for name, told in part["code"].items()}
        stacks = [part["stack"] for part in parts]
        for name, some in {name: x for stack in stacks for name, x in stack.items()}.items():
            if torch.is_tensor(some) and some.dim():
                none = [some.new_zeros(len(part["losses"]), *some.shape[1:]) for part in parts]
                each = [stack.get(name, x) for stack, x in zip(stacks, none, strict=True)]
                whole["stack"][name] = torch.cat(each)
    return whole


# ---- the batches of a run ------------------------------------------------------------------


class Whole:
    """A process that trains its runs alone: their batches are its own."""

    def of(self, batch):
        return batch

    def total(self, losses: Tensor) -> Tensor:
        return losses

    def add_up(self, *gradients: Tensor) -> None: ...

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Part(Whole):
    """A process that trains a single run with others: of every batch it takes a part.

    A loss is a mean over the batch, L = Σ_k (n_k / n) L_k over the parts, of n_k interactions each,
    and so is its gradient. Weights of losses are found of the summed losses, those of gradients of
    the summed gradients of the tasks: in all processes the same.

    Where gradients.py steps, and so it is proved what a batch touches, each process takes the
    interactions of users of its own. Their rows' gradients and moments then stay in it: what is
    summed is all else, and the end of an epoch brings the rows together.

    Raises ValueError for a stack that isn't the same in parts.
    """

    def __init__(self, stack):
        self.stack, self.rank, self.size = stack, rank(), size()
        self.bounds: list[int] | None = None  # of each process's users, where they are its own
        options = stack.options
        whole = options.ranking_dropout, options.rating_dropout, options.compile, options.sparse
        if any(whole):
            told = (
                "dropout, --compile and --sparse take batches whole: go without torchrun, or them"
            )
            raise ValueError(f"a single run in {self.size} processes: {told}")
        batch = next(iter(stack.batches(0)))
        with torch.no_grad():
            parts = [self._slice(batch, k) for k in range(self.size)]
            whole = torch.stack(stack.losses(batch), 1)
            total = sum(part.of_whole(torch.stack(stack.losses(part), 1)) for part in parts)
        if not torch.allclose(whole, total, rtol=1e-4):
            told = "it isn't the mean over a batch's parts, go without torchrun"
            raise ValueError(f"--loss {options.loss} in {self.size} processes: {told}")

    def of(self, batch):
        """This process's part of a batch."""
        if self.bounds is None:
            return self._slice(batch, self.rank)
        first, end = self.bounds[self.rank : self.rank + 2]
        mine = ((batch.users >= first) & (batch.users < end))[0].nonzero()[:, 0]
        some = mine if len(mine) else mine.new_zeros(1)  # none: one that counts 0
        return type(batch)(*(x[:, some] for x in batch[:4]), share=len(mine) / batch.size)

    def _slice(self, batch, k: int):
        """The k-th part of a batch, of about as many users' rows each, with their interactions."""
        n = batch.users.shape[1]
        first, end = n * k // self.size, n * (k + 1) // self.size
        rows = slice(first, end) if first < end else slice(0, 1)  # none: one that counts 0
        if batch.place is None:
            columns = [x if x is None else x[:, rows] for x in batch[:4]]
            return type(batch)(*columns, share=(end - first) / n)
        inside = batch.real & (batch.place >= first) & (batch.place < end)
        columns = inside.any(0).nonzero()[:, 0]
        real = inside[:, columns]
        return type(batch)(
            batch.users[:, rows],
            batch.items[:, columns],
            batch.ratings[:, columns],
            place=(batch.place[:, columns] - first).clamp(0, rows.stop - rows.start - 1),
            real=real,
            share=real.sum(1, keepdim=True) / batch.size,
        )

    def total(self, losses: Tensor) -> Tensor:
        """The sum over the processes, in all of them."""
        losses = losses.clone()
        _call(dist.all_reduce, losses)
        return losses

    def add_up(self, *gradients: Tensor) -> None:
        """Sum flat gradients over the processes, in place; users' own are whole already."""
        for flat in gradients:
            _call(dist.all_reduce, flat if self.bounds is None else flat[self.ends[-1] :])

    def begin(self) -> None:
        """Before an epoch: give the processes users of their own, if that serves."""
        net, memory, train = self.stack.net, self.stack.memory, self.stack.train
        self.bounds, memory.stepped = None, [slice(None)]
        if self.stack.written_out and len(train) == 1 and memory.names[0] == "users":
            # As many interactions each.
            known = self.stack.users[train[0].to(net.users.device)]
            upto = torch.bincount(known, minlength=net.n_users).cumsum(0).cpu()
            inner = torch.arange(1, self.size) * len(known) // self.size
            self.bounds = [0, *torch.searchsorted(upto, inner).tolist(), net.n_users]
            self.ends = [bound * net.width for bound in self.bounds]
            memory.stepped = [self._own(self.rank), slice(self.ends[-1], None)]
            memory.grads.zero_()

    def _own(self, k: int) -> slice:
        """Where the rows of the k-th process's users stand in flat memory."""
        return slice(*self.ends[k : k + 2])

    def end(self) -> None:
        """After an epoch: all users' rows, and their moments, in all processes."""
        if self.bounds is None:
            return
        state = [x for x in self.stack.optimizer.state.values() if x.dim()]
        for flat in (self.stack.memory.values, *state):
            for k in range(self.size):
                if self.ends[k] < self.ends[k + 1]:
                    _call(dist.broadcast, flat[self._own(k)], k)
