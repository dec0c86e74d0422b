"""What is wrong with the chains of a tile program, in words; nothing, if its passes are right.

Each step by itself, and where values are, is checked elsewhere; here it is that the kernels of a
chain can take turns: all of them see the same blocks, and nothing that one needs lies in another.
"""

from collections.abc import Iterator, Sequence
from math import prod

from fsdtrain_dojo.lowering.candidates import largest_share
from fsdtrain_dojo.lowering.chain import Chain
from fsdtrain_dojo.lowering.chain_roles import (
    chains_by_start,
    find_followers,
    find_shared,
    is_sum,
    made_inside,
    most_alive,
)
from fsdtrain_dojo.lowering.kernel import Combine, Kernel, Unit
from fsdtrain_dojo.lowering.mapping import Axis
from fsdtrain_dojo.lowering.program import Step, TileProgram


def find_chain_problems(program: TileProgram) -> Iterator[str]:
    """Problems of every chain."""
    chained = set[int]()
    for first, chain in chains_by_start(program.graph).items():
        steps = program.steps[first : first + len(chain.kernels)]
        chained |= set(range(first, first + len(steps)))
        names = tuple(step.kernel.name for step in steps)
        if names != chain.kernels:
            yield f"the chain from {chain.kernels[0]} on is not in one piece: {names}"
            continue
        problems = [*_turn_problems(steps), *_axis_problems(chain, steps)]
        problems += _passing_problems(program, chain, steps)
        if not problems:  # these go by the axes
            problems += _block_problems(chain, steps)
            problems += _order_problems(chain, [step.kernel for step in steps])
            problems += _memory_problems(program, chain, steps)
        yield from (f"the chain from {names[0]} on: {problem}" for problem in problems)
    for number, step in enumerate(program.steps):
        if step.is_chained != (number in chained):
            yield f"{step.kernel.name}: takes turns with others, and is in no chain, or the reverse"


def _turn_problems(steps: Sequence[Step]) -> Iterator[str]:
    for number, step in enumerate(steps):
        if step.is_continued != (number > 0):
            yield f"{step.kernel.name} has {'no' if step.is_continued else 'a'} start of its own"


def _axis_problems(chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    for number, step in enumerate(steps):
        kernel = step.kernel
        for axis in chain.axes:
            loops = axis.loops[number]
            if prod(kernel.sizes[loop] for loop in loops) != axis.size:
                yield f"an axis of {kernel.name} has another length"
        inner = set(chain.inner.loops[number])
        outer = {loop for axis in chain.outer for loop in axis.loops[number]}
        if outer & kernel.reductions:
            yield f"{kernel.name} sums over an axis of the results"
        if inner & kernel.reductions and not inner <= kernel.reductions:
            yield f"{kernel.name} sums over a part of the inner axis"
        divided = {part.loop for part in (*step.mapping.rows, *step.mapping.columns)}
        if not divided <= outer:
            yield f"{kernel.name} divides other loops over nodes than those of the outer axes"
        if not step.mapping.steps.keys() <= inner | outer:
            yield f"{kernel.name} goes through loops in steps that the others do not have"


def _passing_problems(program: TileProgram, chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    kernels = [step.kernel for step in steps]
    names, made = set(chain.kernels), made_inside(kernels)
    for name in sorted(chain.passed):
        value = program.graph.values[name]
        if name not in made:
            yield f"passes on {name}, which it does not make"
        if value.is_output or name in program.graph.renews:
            yield f"passes on {name}, which is wanted when the step has ended"
    for step in program.steps:
        if step.kernel.name not in names:
            for load in step.loads:
                if load.value in chain.passed:
                    yield f"{step.kernel.name} reads {load.value}, which is only passed on"
    shared = find_shared(chain, kernels)
    for number, step in enumerate(steps):
        for index, load in enumerate(step.loads):
            is_there = made.get(load.value, number) < number or (number, index) in shared
            if index in step.inside and not is_there:
                yield f"{step.kernel.name} finds {load.value}, which nobody has left there"
            if index not in step.inside and load.value in made:
                yield f"{step.kernel.name} loads {load.value}, which is in the making"


def _block_problems(chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    """Kernels with other blocks than the first one."""
    forms = [_form(chain, number, step) for number, step in enumerate(steps)]
    for step, form in zip(steps, forms, strict=True):
        if form != forms[0]:
            yield f"{step.kernel.name} is divided into other blocks than {steps[0].kernel.name}"


def _form(chain: Chain, number: int, step: Step) -> object:
    """How a step divides the axes over rows, columns and time; equal for equal blocks."""
    place = {
        loop: (number_of, inner)
        for number_of, axis in enumerate(chain.axes)
        for inner, loop in enumerate(axis.loops[number])
    }
    over = []
    for axis in Axis:
        counts: list[tuple[int, int, int]] = []
        for part in step.mapping.parts(axis):
            own = place[part.loop][0]
            if counts and counts[-1][0] == own and place[part.loop][1]:
                counts[-1] = (own, counts[-1][1] * part.count, part.grain)
            else:
                counts.append((own, part.count, part.grain))
        over.append(tuple(counts))
    steps = tuple(
        prod(step.mapping.steps.get(loop, 1) for loop in axis.loops[number]) for axis in chain.axes
    )
    order = [place[loop] for loop, count in step.mapping.steps.items() if count > 1]
    return tuple(over), steps, order == sorted(order), _is_nested(chain, number, step)


def _is_nested(chain: Chain, number: int, step: Step) -> bool:
    """Whether parts of axes of several loops are ranges: of inner loops, at one outer point."""
    share = largest_share(step.kernel, step.mapping)
    for axis in chain.axes:
        loops = axis.loops[number]
        counts = [part.count for part in (*step.mapping.rows, *step.mapping.columns)
                  if part.loop in loops]  # fmt: skip
        if len(loops) > 1 and prod(counts) > 1 and axis.size % prod(counts):
            return False
        for outer, inner in zip(loops, loops[1:], strict=False):
            divided = step.mapping.steps.get(inner, 1) > 1
            if divided and step.mapping.steps.get(outer, 1) < share[outer]:
                return False
            if share[inner] < step.kernel.sizes[inner] and share[outer] > 1:
                return False
    return True


def _order_problems(chain: Chain, kernels: Sequence[Kernel]) -> Iterator[str]:
    """Sums that are used before they are complete, by who cannot be put right later."""
    followers = find_followers(chain, kernels)
    running = {
        access.value: number
        for number, kernel in enumerate(kernels)
        if is_sum(chain, number, kernel)
        for access in kernel.stored
    }
    made = made_inside(kernels)
    for number, kernel in enumerate(kernels):
        for index, access in enumerate(kernel.loaded):
            if access.value in running and (
                kernel.rescale is None or index not in kernel.rescale.reads or kernel.epilogue
            ):
                yield f"{kernel.name} needs all of {access.value}, which is in the making"
            maker = made.get(access.value)
            if maker is None or access.value in running:
                continue
            if any(each.value in running for each in kernels[maker].loaded):
                is_linear = kernel.unit is Unit.MATRIX and kernel.combine is Combine.SUM
                if number not in followers or not is_linear or index >= len(kernel.reads):
                    yield f"{kernel.name} cannot be put right when {access.value} changes"


def _memory_problems(program: TileProgram, chain: Chain, steps: Sequence[Step]) -> Iterator[str]:
    """Blocks, operands and results that the working bytes have no room for."""
    values = program.graph.values
    blocks: dict[str, float] = {}
    operands = 0
    to_come = 0

    def size_of(name: str, box: Sequence[tuple[int, int]]) -> int:
        return prod(end - first for first, end in box) * values[name].element_bytes

    for step in steps:
        kernel = step.kernel
        share = largest_share(kernel, step.mapping)
        ranges = [
            (0, -(-size // step.mapping.steps.get(loop, 1))) for loop, size in enumerate(share)
        ]
        for index, (access, load) in enumerate(zip(kernel.loaded, step.loads, strict=True)):
            if index not in step.inside and not access.is_gathered:
                shape = values[load.value].shape
                operands += size_of(load.value, kernel.touched(access, ranges, shape))
        for access in kernel.stored:
            box = kernel.touched(access, ranges, values[access.value].shape)
            if access.value in chain.passed:
                blocks[access.value] = size_of(access.value, box)
    needed = operands + most_alive(chain, [step.kernel for step in steps], blocks)
    for step in reversed(steps):
        if step.working_bytes < needed + to_come:
            yield (
                f"{step.kernel.name} has {step.working_bytes} bytes for blocks and operands that "
                f"take {int(needed + to_come)}"
            )
        for store in step.stores:
            boxes = store.target.boxes if store.target is not None else None
            if store.value not in chain.passed and boxes is not None:
                to_come += int(boxes.num_elements.max()) * values[store.value].element_bytes
