"""The independent oracle: judges a step that was watched, op by op.

It knows nothing of the captured graph, its sites or our rounding, and states the rules once more in
its own words: what the matrix unit reads is in the format of its role; what the vector unit reads
in the vector format, but for inputs, immediates, statistics, coordinates and the loss inside.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.backends.dojo.witness import Event, Read, Recorder, Value, formats_of

# Positions of what the matrix unit reads.
MATRIX = {
    "convolution": (0, 1), "convolution_backward": (0, 1, 2), "mm": (0, 1), "bmm": (0, 1),
    "addmm": (1, 2), "baddbmm": (1, 2),
}  # fmt: skip
# Layers that are no matrix ops, and the results that are statistics of their own.
LAYERS = {
    "native_layer_norm": (1, 2), "native_group_norm": (1, 2),
    "_native_batch_norm_legit_functional": (1, 2, 3, 4), "_native_batch_norm_legit": (1, 2),
    "native_layer_norm_backward": (),
    "native_group_norm_backward": (), "native_batch_norm_backward": (), "grid_sampler_2d": (),
    "grid_sampler_2d_backward": (), "upsample_bilinear2d": (), "upsample_bilinear2d_backward": (),
    "avg_pool2d": (), "_adaptive_avg_pool2d": (), "avg_pool2d_backward": (),
    "_adaptive_avg_pool2d_backward": (), "embedding_dense_backward": (),
}  # fmt: skip
STATISTICS = {
    **LAYERS,
    "nll_loss_forward": (1,),
    "nll_loss2d_forward": (1,),
    "native_dropout": (1,),
}
COORDINATES = {"grid_sampler_2d": (1,), "grid_sampler_2d_backward": (2,)}
MOVES = set(
    "view _unsafe_view reshape permute transpose t slice select expand squeeze unsqueeze cat stack "
    "split split_with_sizes unsafe_split unbind clone detach alias as_strided index _unsafe_index "
    "index_select embedding constant_pad_nd slice_backward select_backward _to_copy copy gather "
    "repeat flip lift_fresh unfold _reshape_alias select_scatter slice_scatter".split()
)
CONSTANTS = set(
    "full full_like zeros zeros_like ones ones_like empty empty_like new_zeros new_ones new_full "
    "arange linspace scalar_tensor fill zero empty_strided new_empty new_empty_strided eye".split()
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A float operand that is in no format the recipe allows there."""

    op: str
    position: int
    shape: tuple[int, ...]
    wanted: str


class Judge:
    """Judges a recorded step.

    Args:
        events: in order.
        seed: the gradient that the backward pass was started with.
        loss: the scalar.
        trained: the weights.
        formats: by role, names.
    """

    def __init__(
        self,
        events: list[Event],
        *,
        seed: Value,
        loss: Value,
        trained: set[Value],
        formats: Mapping[str, str],
    ) -> None:
        self.events, self.seed, self.loss, self.formats = events, seed, loss, formats
        self.producer = {value: (e, i) for e in events for i, value in e.writes}
        self.readers: dict[Value, list[Event]] = defaultdict(list)
        self.seen: dict[Value, list[frozenset[str]]] = defaultdict(list)
        self.gradients, self.learnt = {seed}, set(trained)
        for event in events:
            read = [each.value for each in event.reads]
            for each in event.reads:
                self.readers[each.value].append(event)
                if each.formats is not None:
                    self.seen[each.value].append(each.formats)
            for _, value in event.writes:
                if not self.gradients.isdisjoint(read):
                    self.gradients.add(value)
                if not self.learnt.isdisjoint(read):
                    self.learnt.add(value)
        self.addresses = self._addresses()
        self.exempt = self.addresses | self._inside_of_loss()

    def faults(self) -> list[Fault]:
        """Everything that was read in a format it should not have had."""
        found = []
        for event in self.events:
            for read in event.reads:
                wanted = self._wanted(event, read)
                if wanted is None or read.formats is None or wanted in read.formats:
                    continue
                found.append(
                    Fault(op=event.op, position=read.position, shape=read.shape, wanted=wanted)
                )
        return found

    def _wanted(self, event: Event, read: Read) -> str | None:
        if event.op in MOVES or event.op in CONSTANTS:
            return None
        if event.op in MATRIX and read.position in MATRIX[event.op]:
            if all(value in self.addresses for _, value in event.writes):
                return None
            is_gradient = read.value in self.gradients
            return self.formats["activation_gradient" if is_gradient else "activation"]
        if all(self._is_free(origin) for origin in self._origins(read.value)):
            return None
        return self.formats["vector"]

    def _is_free(self, value: Value) -> bool:
        """Whether nobody promised to round it; or it is rounded, and what moved with it is not."""
        if value not in self.producer or value in self.exempt:
            return True
        event, index = self.producer[value]
        if event.op in CONSTANTS or index in STATISTICS.get(event.op, ()):
            return True
        seen = self.seen[value]
        return bool(seen) and all(self.formats["vector"] in each for each in seen)

    def _origins(self, value: Value) -> set[Value]:
        found, waiting, known = set(), [value], {value}
        while waiting:
            current = waiting.pop()
            event = self.producer[current][0] if current in self.producer else None
            if event is None or event.op not in MOVES or not event.reads:
                found.add(current)
                continue
            fresh = {read.value for read in event.reads} - known
            known |= fresh
            waiting += fresh
        return found

    def _is_layer(self, event: Event) -> bool:
        return event.op in MATRIX or event.op in LAYERS

    def _addresses(self) -> set[Value]:
        ends = [
            read.value
            for event in self.events
            for read in event.reads
            if (event.op == "_to_copy" and event.gives_integers and read.formats is not None)
            or read.position in COORDINATES.get(event.op, ())
        ]
        return self._back(
            ends,
            lambda e: self._is_layer(e) and any(r.value in self.learnt for r in e.reads),
            lambda read: read.formats is not None,
        )

    def _inside_of_loss(self) -> set[Value]:
        forward = self._back([self.loss], self._is_layer)
        backward, waiting = {self.seed}, [self.seed]
        while waiting:
            for event in self.readers[waiting.pop()]:
                if not self._is_layer(event):
                    fresh = {value for _, value in event.writes} - backward
                    backward |= fresh
                    waiting += fresh
        # What has passed a layer on another way is a layer's gradient.
        behind = self._forth(
            value
            for event in self.events
            if self._is_layer(event) and any(r.value in self.gradients for r in event.reads)
            for _, value in event.writes
        )
        inside = forward | (backward - behind)
        return {value for value in inside if self._stays(value, inside)}

    def _stays(self, value: Value, inside: set[Value]) -> bool:
        """Whether only the loss reads it, in its own half of the step."""
        return all(
            any(written in inside for _, written in event.writes)
            for event in self._readers_behind_moves(value)
            # Views write no value of their own.
            if event.writes and event.is_second_half == (value in self.gradients)
        )

    def _readers_behind_moves(self, value: Value) -> list[Event]:
        found, waiting, known = [], [value], {value}
        while waiting:
            for event in self.readers[waiting.pop()]:
                if event.op not in MOVES:
                    found.append(event)
                    continue
                fresh = {written for _, written in event.writes} - known
                known |= fresh
                waiting += fresh
        return found

    def _back(
        self,
        ends: Iterable[Value],
        is_wall: Callable[[Event], bool],
        follows: Callable[[Read], bool] = lambda read: True,
    ) -> set[Value]:
        found: set[Value] = set()
        waiting = list(ends)
        while waiting:
            value = waiting.pop()
            event = self.producer[value][0] if value in self.producer else None
            if value in found or (event is not None and is_wall(event)):
                continue
            found.add(value)
            waiting += [read.value for read in event.reads if follows(read)] if event else []
        return found

    def _forth(self, starts: Iterable[Value]) -> set[Value]:
        found: set[Value] = set()
        waiting = list(starts)
        while waiting:
            value = waiting.pop()
            if value not in found:
                found.add(value)
                waiting += [w for event in self.readers[value] for _, w in event.writes]
        return found


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A step that was watched: its ops, and its verdict."""

    events: list[Event]
    faults: list[Fault]
    num_exempt: int
    num_values: int

    def op_counts(self) -> Counter[str]:
        """How often each op ran that computes with floating-point numbers."""
        return Counter(
            event.op
            for event in self.events
            if event.has_floats and event.op not in MOVES | CONSTANTS
        )


def watch(module: nn.Module, inputs: Any, formats: Mapping[str, str], *, seed: int = 5) -> Trace:
    """Run one step of a module, compiled before or not compiled at all, and judge it.

    One in evaluation mode has no backward pass.

    Args:
        module: forward(inputs) -> scalar loss.
        inputs: its argument.
        formats: names by role: activation, activation_gradient, vector, weight_gradient.
        seed: of dropout.
    """
    torch.manual_seed(seed)
    module.zero_grad()
    start = torch.ones(())
    recorder = Recorder()
    with recorder, torch.set_grad_enabled(module.training):
        loss = module(inputs)
        recorder.is_second_half = True
        if module.training:
            loss.backward(start)
    judge = Judge(
        recorder.events,
        seed=recorder.value(start),
        loss=recorder.value(loss),
        trained={recorder.value(parameter) for parameter in module.parameters()},
        formats=formats,
    )
    wanted = formats["weight_gradient"]
    unrounded = [
        Fault(op="gradient", position=0, shape=tuple(each.shape), wanted=wanted)
        for each in module.parameters()
        if each.grad is not None and wanted not in formats_of(each.grad.numpy())
    ]
    return Trace(
        events=recorder.events,
        faults=judge.faults() + unrounded,
        num_exempt=len(judge.exempt),
        num_values=len(judge.seen),
    )
