"""Values that wait outside the nodes' memory: transfers that reach them there, and their bytes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from fsdtrain.backend import BackendError
from fsdtrain_dojo.lowering.kernel import Value
from fsdtrain_dojo.lowering.mapping import Layout, Storage
from fsdtrain_dojo.lowering.program import Pattern, Step, Transfer
from fsdtrain_dojo.timing.costs import Costs

OUTSIDE = Layout(storage=Storage.HBM)
_STAYS = (Pattern.REDUCE, Pattern.REDUCE_SCATTER, Pattern.ALL_REDUCE, Pattern.HBM_STORE)


@dataclass(kw_only=True)
class Away:
    """A time during which a value is outside: steps from `first` to before `end`."""

    first: int
    end: int | None = None

    def has(self, number: int) -> bool:
        return self.first <= number and (self.end is None or number < self.end)


def with_outside(step: Step, is_outside: Callable[[str], bool]) -> Step:
    """The step with the transfers of values that lie outside."""

    def load(index: int, each: Transfer) -> Transfer:
        if index in step.inside or not is_outside(each.value):
            return each
        return replace(each, pattern=Pattern.HBM_LOAD, source=OUTSIDE)

    def store(each: Transfer) -> Transfer:
        if not is_outside(each.value):
            return each
        pattern = each.pattern if each.pattern in _STAYS else Pattern.HBM_STORE
        return replace(each, pattern=pattern, target=OUTSIDE)

    return replace(
        step,
        loads=tuple(load(index, each) for index, each in enumerate(step.loads)),
        stores=tuple(store(each) for each in step.stores),
    )


def check_outside(
    costs: Costs,
    values: Mapping[str, Value],
    lasting: Sequence[str],
    away: Mapping[str, Sequence[Away]],
    last_use: Mapping[str, int],
    num_steps: int,
) -> None:
    """Whether the memory outside holds what is there at the same time.

    Args:
        costs: of the machine.
        values: by name.
        lasting: values that lie outside all the time.
        away: the others, with their times.
        last_use: number of the last step that needs a value, if it does not outlive the step.
        num_steps: of the program.

    Raises:
        BackendError: it does not, or there is none.
    """
    changes = [0] * (num_steps + 1)
    for name, times in away.items():
        for each in times:
            end = each.end if each.end is not None else last_use.get(name, num_steps - 1) + 1
            changes[each.first] += values[name].num_bytes
            changes[max(end, each.first)] -= values[name].num_bytes
    needed = sum(values[name].num_bytes for name in lasting) + max(accumulate(changes))
    memory = costs.fabric.memory
    capacity = 0.0 if memory is None else memory.capacity_bytes
    if needed > capacity:
        largest = max((values[name] for name in (*lasting, *away)), key=lambda each: each.num_bytes)
        raise BackendError(
            f"the step does not fit on machine {costs.machine.name}: "
            f"{needed / 1e9:.4g} GB do not fit into the nodes' memory at some time, and the "
            f"memory outside holds {capacity / 1e9:.4g} GB; the largest of it is "
            f"{largest.name} with {largest.num_bytes / 1e9:.4g} GB: take a smaller batch "
            "(data.batch_size), a narrower recipe (backend/recipe=cfp8), activation "
            "checkpointing, or a larger machine (backend/machine=d1_tray)"
        )
