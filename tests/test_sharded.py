"""Tables sharded by TorchRec over two processes: skipped where it isn't installed."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from models import MultiTaskNet
from multitask import Batch, Options, Stack

N_USERS, N_ITEMS, BATCH, LR = 40, 60, 12, 0.5
WEIGHTS, STRUCTURE = torch.tensor([0.9, 0.1]), dict(embedding_dim=7, hidden=6, shared_dims=3)


def batches(steps: int = 3):
    stream = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = [
            torch.randint(n, (2 * BATCH,), generator=stream) for n in (N_USERS, N_ITEMS, N_ITEMS)
        ]
        yield *ids, torch.rand(2 * BATCH, generator=stream)


def process(rank: int, folder: str) -> None:
    """Trains on its half of each batch; leaves its rows and its head."""
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    import sharded

    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    whole, net = MultiTaskNet(N_USERS, N_ITEMS, **STRUCTURE), MultiTaskNet(1, 1, **STRUCTURE)
    model = sharded.shard(sharded.ShardedNet(N_USERS, N_ITEMS, WEIGHTS, LR, **STRUCTURE))
    for side, (first, rows) in sharded.held(model).items():
        table, bias = getattr(whole, f"{side}s"), getattr(whole, f"{side}_bias")
        rows.copy_(torch.cat([table, bias], 2)[0, first : first + len(rows)].detach())
    head = [x for name, x in model.named_parameters() if "rating_head" in name]
    assert all(x.equal(y) for x, y in zip(head, net.rating_head.parameters(), strict=True))
    descent = torch.optim.SGD(head, lr=LR)
    for columns in batches():
        descent.zero_grad()
        model(*(x[rank * BATCH :][:BATCH] for x in columns)).backward()
        descent.step()
    torch.save([sharded.held(model), head], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_with_half_the_tables_each_train_as_one_with_all(tmp_path):
    pytest.importorskip("torchrec")
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    whole = MultiTaskNet(N_USERS, N_ITEMS, **STRUCTURE)
    descent = torch.optim.SGD(whole.parameters(), lr=LR)
    stack = Stack.__new__(Stack)
    stack.net, stack.options = whole, Options()
    for users, items, negatives, ratings in batches():
        descent.zero_grad()
        batch = Batch(users[None], items[None], ratings[None], negatives[None])
        (WEIGHTS * torch.cat(stack.losses(batch))).sum().backward()
        descent.step()
    for rank in range(2):
        found, head = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for side, (first, rows) in found.items():
            table = torch.cat([getattr(whole, f"{side}s"), getattr(whole, f"{side}_bias")], 2)[0]
            assert 0 < len(rows) < len(table)
            torch.testing.assert_close(rows, table[first : first + len(rows)].detach())
        for ours, theirs in zip(head, whole.rating_head.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
