"""One process of test_ranks.py: python one_rank.py <rank> <store file> <result file>."""

import sys

import torch
from fsdtrain_dojo.arithmetic.rounding import Rounding
from fsdtrain_dojo.formats import BF16, CFLOAT8_1_5_2
from fsdtrain_dojo.optimizer import OptimizerCompiler
from fsdtrain_dojo.recipe import Recipe, Role, Rule
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import SiteTable
from torch import Tensor, distributed, nn

WORLD_SIZE = 2
NUM_STEPS = 4
NOISY_UPDATES = Recipe(
    rules={
        role: Rule(format=BF16, rounding=Rounding.STOCHASTIC)
        for role in (Role.WEIGHT_GRADIENT, Role.MASTER_WEIGHT, Role.FIRST_MOMENT)
    }
)


def random_values(seed: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))


def batch(step: int) -> Tensor:
    """[4, 5] of growing magnitude; the largest values lie in the last row."""
    return random_values(step) * torch.tensor([1.0, 1.0, 1.0, 50.0])[:, None] * 4.0**step


def site(role: Role) -> Site:
    """Delayed scaling and stochastic rounding: all that could depend on the rank."""
    rule = Rule(format=CFLOAT8_1_5_2, rounding=Rounding.STOCHASTIC)
    is_rank_share = role is Role.ACTIVATION
    return Site(name=role.value, layer="", op="", role=role, rule=rule, is_rank_share=is_rank_share)


def train(rank: int, world_size: int) -> dict[str, Tensor]:
    """Round a share of every batch and a weight that all ranks have, and update another weight."""
    table = SiteTable(
        Recipe(amax_history=2), seed=0, device=torch.device("cpu"), read_every_steps=0
    )
    share = table.add(site(Role.ACTIVATION), is_training=True)
    shared = table.add(site(Role.WEIGHT), is_training=True)
    trained = nn.Linear(5, 4, bias=False)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    updates = OptimizerCompiler(NOISY_UPDATES, table, {trained.weight: "weight"})
    nn.init.ones_(trained.weight)
    shares, weights = [], []
    for step in range(NUM_STEPS):
        table.begin_step()
        mine = batch(step).chunk(world_size)[rank].clone()
        share(mine)
        weight = random_values(100 + step)
        shared(weight)
        shares.append(mine)
        weights.append(weight)
        trained.weight.grad = random_values(
            200 + step
        )  # the mean over the ranks, which all of them have
        updates.step(optimizer)
    history: Tensor = table.state_dict()["amax_history"]
    return {
        "shares": torch.stack(shares),
        "weights": torch.stack(weights),
        "history": history[:2],
        "trained": trained.weight.detach(),
    }


def main() -> None:
    rank, store, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE
    )
    torch.save(train(rank, WORLD_SIZE), result)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
