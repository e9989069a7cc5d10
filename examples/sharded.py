"""Tables over several processes: MultiTaskNet's losses on rows that TorchRec looks up.

    pip install --no-deps torchrec==1.9.2 fbgemm-gpu-cpu==1.8.0     # beside torch 2.13.0 (CPU)

The tables, a bias in the last column, are sharded by rows over the processes of torch.distributed;
each step looks up its batch's rows, and in the backward pass every process steps on those it holds.
The rows looked up stand in the place of a small MultiTaskNet's tables, and `Stack.losses` is what
trains. Plain descent on the tables, the one tried.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from models import MultiTaskNet
from multitask import Batch, Options, Stack


class ShardedNet(nn.Module):
    """A run's weighted losses on a batch. Its tables are empty until their shards are filled."""

    def __init__(self, n_users: int, n_items: int, weights: Tensor, lr: float, **structure):
        super().__init__()
        self.net, self.weights = MultiTaskNet(1, 1, **structure), weights
        for name in ("users", "items", "user_bias", "item_bias"):
            getattr(self.net, name).requires_grad_(False)  # their place is what is used of them
        tables = []
        for side, n in {"user": n_users, "item": n_items}.items():
            size = dict(embedding_dim=self.net.width + 1, num_embeddings=n)
            tables.append(EmbeddingConfig(name=f"{side}_rows", feature_names=[side], **size))
        self.tables = EmbeddingCollection(tables=tables)
        apply_optimizer_in_backward(torch.optim.SGD, self.tables.parameters(), {"lr": lr})

    def forward(self, users: Tensor, items: Tensor, negatives: Tensor, ratings: Tensor) -> Tensor:
        """(B,) each -> w_F · L_F + w_R · L_R."""
        n, own = len(users), torch.arange(len(users))[None]
        lengths = torch.tensor([1, 2]).repeat_interleave(n)  # of items the negative beside its own
        ids = torch.cat([users, torch.stack([items, negatives], 1).flatten()])
        found = self.tables(KeyedJaggedTensor(["user", "item"], ids, lengths=lengths))
        user, item = (found[x].values()[None] for x in ("user", "item"))
        rows = {"users": user[..., :-1], "user_bias": user[..., -1:]}
        rows |= {"items": item[..., :-1], "item_bias": item[..., -1:]}
        batch = Batch(own, 2 * own, ratings[None], 2 * own + 1)
        losses = functional_call(
            Losses(self.net), {f"net.{k}": x for k, x in rows.items()}, (batch,)
        )
        return (self.weights * torch.cat(losses)).sum()


class Losses(nn.Module):
    def __init__(self, net: MultiTaskNet):
        super().__init__()
        self.net = net

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        stack = Stack.__new__(Stack)  # what its losses read, without data
        stack.net, stack.options = self.net, Options()
        return stack.losses(batch)


def shard(net: ShardedNet) -> DistributedModelParallel:
    """The net with its tables spread over the processes; its head's gradients are averaged."""
    sharders = [EmbeddingCollectionSharder()]
    topology = Topology(world_size=dist.get_world_size(), compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology=topology)
    plan = plan.collective_plan(net, sharders, dist.group.WORLD)
    return DistributedModelParallel(net, device=torch.device("cpu"), plan=plan, sharders=sharders)


def held(model: DistributedModelParallel) -> dict[str, tuple[int, Tensor]]:
    """Of "user" and "item" the first row that this process holds, and its rows, to read or fill."""
    found = {}
    for name, table in model.state_dict().items():
        if name.endswith("_rows.weight"):
            for part in table.local_shards():
                side = name.split(".")[-2].removesuffix("_rows")
                found[side] = part.metadata.shard_offsets[0], part.tensor
    return found
