"""The modules of the network as a tree, each with the worst SNR of the tensors below it.

It does not know how it is drawn: `tree.js` makes the elements of a branch when it is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fsdtrain.comparison.record import Errors, TensorComparison
from fsdtrain.report.compare_words import tensor_title

# The least SNR of each colour, from the heat scale: dark is low.
SNR_STEPS_DB = (0.0, 10.0, 20.0, 40.0, 80.0)
STEP_NAMES = ("below 10 dB", "10 to 20 dB", "20 to 40 dB", "40 to 80 dB", "80 dB or bitwise equal")
NO_LAYER = "(no layer)"


@dataclass
class _Node:
    """One module; `worst` is (SNR, text, what) of each side."""

    name: str
    children: dict[str, "_Node"] = field(default_factory=dict)
    worst: dict[str, tuple[float, str, str]] = field(default_factory=dict)
    num_tensors: int = 0
    num_outside: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerTree:
    """For the script: [name, tensors, outside, {side: [step, text, what]}, children]."""

    payload: list[Any]  # a tree has no plain type
    steps: tuple[str, ...] = STEP_NAMES


def make_layer_tree(tensors: Sequence[TensorComparison]) -> LayerTree:
    """The tree over the teacher-forced rows and the parameters, for these are a layer's own."""
    root = _Node(name="")
    for row in tensors:
        is_own = row.mode == "teacher_forced" or row.kind in ("gradient", "update")
        if not is_own:
            continue
        path = [part for part in (row.layer or NO_LAYER).split(".") if part]
        nodes = [root]
        for part in path:
            nodes.append(nodes[-1].children.setdefault(part, _Node(name=part)))
        for node in nodes:
            _add(node, row)
    return LayerTree(payload=[_pack(_join(child)) for child in root.children.values()])


def _add(node: _Node, row: TensorComparison) -> None:
    node.num_tensors += 1
    node.num_outside += bool(row.outside)
    for side, errors in (("a", row.a), ("b", row.b)):
        value, text = _rank(errors)
        if side not in node.worst or value < node.worst[side][0]:
            node.worst[side] = (value, text, tensor_title(row))


def _rank(errors: Errors) -> tuple[float, str]:
    """What it is sorted by, and in words: not finite is the worst, bitwise equal the best."""
    if errors.nan_share > 0:
        return float("-inf"), "not finite"
    if errors.is_bitwise_equal:
        return float("inf"), "bitwise"
    if errors.snr_db is None:
        return float("inf"), "no signal"
    return errors.snr_db, f"{errors.snr_db:.1f} dB"


def _join(node: _Node) -> _Node:
    """A module with a single child is one line with it: "network.backbone"."""
    while len(node.children) == 1:
        (child,) = node.children.values()
        if child.num_tensors != node.num_tensors:
            break
        child.name = f"{node.name}.{child.name}"
        node = child
    return node


def _pack(node: _Node) -> list[Any]:
    sides = {side: [_step(value), text, what] for side, (value, text, what) in node.worst.items()}
    children = [_pack(_join(child)) for child in node.children.values()]
    return [node.name, node.num_tensors, node.num_outside, sides, children]


def _step(value: float) -> int:
    return max(0, sum(value >= least for least in SNR_STEPS_DB) - 1)
