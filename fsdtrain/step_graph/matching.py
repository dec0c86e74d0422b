"""Finds the counterparts of ops in two captures by what they read, and by what reads them.

A fused op of one side stands where the other has twenty, some of which look like those around it:
so nothing is matched through an op that one side alone has, but from both ends of the step towards
it. It does not know moves' contents, formats or numbers.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from fsdtrain.step_graph.graph import GraphOp, StepGraph

# Ops that libraries have under another name, with results in the same order.
_SAME = {
    "aten.cudnn_batch_norm": "aten._native_batch_norm_legit_functional",
    "aten.miopen_batch_norm": "aten._native_batch_norm_legit_functional",
    "aten.native_batch_norm": "aten._native_batch_norm_legit_functional",
    "aten.cudnn_batch_norm_backward": "aten.native_batch_norm_backward",
    "aten.miopen_batch_norm_backward": "aten.native_batch_norm_backward",
}
# Of what two ops read and are read by: the least share that says they are the same.
_MIN_SHARE = 0.25

Key = tuple[str, str, str, tuple[int, ...] | None]
# What is next to an op: another op's number, the name of a given value, a result of the step.
Token = Hashable
_ALONE = ("alone",)  # an op that one side alone has


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is next to each op, seen through moves.

    Args:
        ops: of the step.
        counted: numbers of the ops that may have a counterpart.
        read: by number of the op, what it reads.
        readers: by number of the op, what reads it.
    """

    ops: Sequence[GraphOp]
    counted: Sequence[int]
    read: Mapping[int, frozenset[Token]]
    readers: Mapping[int, frozenset[Token]]


def key(op: GraphOp) -> Key:
    """What two counterparts have in common in any case."""
    return op.phase, op.layer, _SAME.get(op.op, op.op), shape_of(op, 0)


def shape_of(op: GraphOp, place: int) -> tuple[int, ...] | None:
    """Of a result; None where not known."""
    return op.shapes[place] if place < len(op.shapes) else None


def find_surroundings(
    graph: StepGraph, *, counted: Collection[int], shared: Collection[str]
) -> Surroundings:
    """Look around each op.

    Args:
        graph: the step.
        counted: numbers of the ops that may have a counterpart.
        shared: names of given values that both steps have.
    """
    origins: dict[str, frozenset[Token]] = {
        name: frozenset([("given", name)] if name in shared else []) for name in graph.tensors
    }
    forward = {op.name: op for op in graph.ops if op.phase == "forward"}
    read = {}
    for number, op in enumerate(graph.ops):
        read[number] = frozenset[Token]().union(*(origins[each] for each in op.inputs))
        first = _first_time(op, forward)
        for place, name in enumerate(op.outputs):
            if name is None:
                continue
            again = None if first is None else first.outputs[place]
            own: Token = ("op", number, place) if number in counted else _ALONE
            if not op.inputs:
                own = ("constant", op.op, shape_of(op, place))
            origins[name] = read[number] if op.is_move and op.inputs else frozenset([own])
            if again is not None:
                origins[name] = origins[again]
    return Surroundings(
        ops=graph.ops, counted=sorted(counted), read=read, readers=_find_readers(graph, counted)
    )


def _find_readers(graph: StepGraph, counted: Collection[int]) -> dict[int, frozenset[Token]]:
    readers: dict[str, set[Token]] = {}
    results = [(graph.loss, "loss"), *((name, weight) for weight, name in graph.gradients.items())]
    for name, meaning in results:
        readers.setdefault(name, set()).add(("result", meaning))
    found = {}
    for number in reversed(range(len(graph.ops))):
        op = graph.ops[number]
        behind = [readers.get(name, set()) for name in op.outputs if name is not None]
        found[number] = frozenset[Token]().union(*behind)
        own: Token = ("op", number) if number in counted else _ALONE
        for name in op.inputs:
            readers.setdefault(name, set()).update(found[number] if op.is_move else [own])
    return found


def _first_time(op: GraphOp, forward: Mapping[str, GraphOp]) -> GraphOp | None:
    """The op of the forward pass that checkpointing computes once more in `op`, if it does.

    How much is computed again may differ between sides; it is the same number.
    """
    name, _, number = op.name.rpartition(".")
    first = forward.get(name)
    is_again = (
        op.phase == "backward"
        and number.isdecimal()
        and first is not None
        and (first.op, first.layer, first.shapes) == (op.op, op.layer, op.shapes)
    )
    return first if is_again else None


def match_ops(mine: Surroundings, theirs: Surroundings) -> dict[int, int]:
    """Numbers of ops -> those of their counterparts.

    First those that read the very same or are read by the very same; then, one at a time, the pair
    that agrees most; last, where nothing is known of any of a kind, in order.
    """
    matching = _Matching(mine, theirs)
    while matching.match_exactly() or matching.match_best() or matching.match_in_order():
        pass
    return matching.found


class _Matching:
    """Ops of two steps while their counterparts are found."""

    def __init__(self, mine: Surroundings, theirs: Surroundings) -> None:
        self.mine, self.theirs = mine, theirs
        self.left = list(mine.counted)
        self.candidates: dict[Key, list[int]] = {}
        for number in theirs.counted:
            self.candidates.setdefault(key(theirs.ops[number]), []).append(number)
        self.found: dict[int, int] = {}
        self.back: dict[int, int] = {}  # of the other side's, the counterpart here

    def match_exactly(self) -> bool:
        """Whether there was any pair that reads the same, or is read by the same."""
        was_left = len(self.left)
        for number in [*self.left, *reversed(self.left)]:
            if number in self.found:
                continue
            fitting = self._reading_the_same(number) or self._only_one_read_by_the_same(number)
            if fitting:
                self._take(number, max(fitting, key=lambda each: self._likeness(number, each)))
        return len(self.left) < was_left

    def _reading_the_same(self, number: int) -> list[int]:
        read = self._there(self.mine.read[number])
        return [
            each
            for each in self.candidates.get(key(self.mine.ops[number]), ())
            if read and self.theirs.read[each] == read
        ]

    def _only_one_read_by_the_same(self, number: int) -> list[int]:
        """None, where two of a kind go the same way: the two coordinates of a grid."""
        of_kind = key(self.mine.ops[number])
        readers = self._there(self.mine.readers[number])
        found = [
            each
            for each in self.candidates.get(of_kind, ())
            if readers and self.theirs.readers[each] == readers
        ]
        twins = [
            each
            for each in self.left
            if key(self.mine.ops[each]) == of_kind
            and self.mine.readers[each] == self.mine.readers[number]
        ]
        return found if len(found) == len(twins) == 1 else []

    def match_best(self) -> bool:
        """Whether there was a pair that shares enough; the first of those that share most."""
        best: tuple[float, tuple[bool, bool, bool, int], int, int] | None = None
        for number in self.left:
            for candidate in self.candidates.get(key(self.mine.ops[number]), ()):
                share = self._share(number, candidate)
                if share < _MIN_SHARE or (best is not None and share < best[0]):
                    continue
                likeness = self._likeness(number, candidate)
                if best is None or (share, likeness) > best[:2]:
                    best = share, likeness, number, candidate
        if best is not None:
            self._take(*best[2:])
        return best is not None

    def match_in_order(self) -> bool:
        """Whether there was an op of a kind that both sides have left as many of."""
        for number in self.left:
            alike = [n for n in self.left if key(self.mine.ops[n]) == key(self.mine.ops[number])]
            candidates = self.candidates.get(key(self.mine.ops[number]), [])
            if len(alike) == len(candidates) and not self._is_known(number, candidates[0]):
                self._take(number, candidates[0])
                return True
        return False

    def _there(self, tokens: Collection[Token]) -> frozenset[Token] | None:
        """The other side's tokens; None: not all are known."""
        found = frozenset(map(self._counterpart, tokens))
        return None if _ALONE in found else found

    def _counterpart(self, token: Token) -> Token:
        if not isinstance(token, tuple) or token[0] != "op":
            return token
        number = self.found.get(token[1])
        return _ALONE if number is None else ("op", number, *token[2:])

    def _share(self, number: int, candidate: int) -> float:
        """Of all that is next to either op, how much is next to both."""
        num_shared = num_all = 0
        for here, there in (
            (self.mine.read[number], self.theirs.read[candidate]),
            (self.mine.readers[number], self.theirs.readers[candidate]),
        ):
            mapped = {self._counterpart(each) for each in here} - {_ALONE}
            known = {each for each in there if self._is_counterpart(each)}
            num_unknown = max(len(here) - len(mapped), len(there) - len(known))
            num_shared += len(mapped & known)
            num_all += len(mapped | known) + num_unknown
        return num_shared / num_all if num_all else 0.0

    def _is_known(self, number: int, candidate: int) -> bool:
        here = self.mine.read[number] | self.mine.readers[number]
        there = self.theirs.read[candidate] | self.theirs.readers[candidate]
        return any(self._counterpart(each) != _ALONE for each in here) or any(
            map(self._is_counterpart, there)
        )

    def _is_counterpart(self, token: Token) -> bool:
        """Whether the other side's token is one of this side's, too."""
        if token == _ALONE:
            return False
        return not isinstance(token, tuple) or token[0] != "op" or token[1] in self.back

    def _likeness(self, number: int, candidate: int) -> tuple[bool, bool, bool, int]:
        """To choose between candidates that read the same."""
        mine, theirs = self.mine.ops[number], self.theirs.ops[candidate]
        constants = (
            mine.call is not None
            and theirs.call is not None
            and (str(mine.call.arguments) == str(theirs.call.arguments))
        )
        readers = self._there(self.mine.readers[number])
        is_read_alike = readers is not None and readers == self.theirs.readers[candidate]
        return is_read_alike, constants, mine.name == theirs.name, -candidate

    def _take(self, number: int, candidate: int) -> None:
        self.found[number] = candidate
        self.back[candidate] = number
        self.left.remove(number)
        self.candidates[key(self.mine.ops[number])].remove(candidate)
