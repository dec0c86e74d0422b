"""Delta debugging: the smallest part of a list that still has a property.

A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28 (2002).
It does not know what is tested.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Minimised(Generic[Item]):
    """What is left of the list.

    Args:
        items: in their order; they have the property.
        is_minimal: without any one of them they have not.
        is_large: more than `max_size` parts of the list could not be done without, so that no
            small set can be expected.
    """

    items: tuple[Item, ...]
    is_minimal: bool
    is_large: bool


def minimise(
    items: Sequence[Item],
    has_property: Callable[[tuple[Item, ...]], bool],
    *,
    may_go_on: Callable[[], bool],
    max_size: int,
) -> Minimised[Item]:
    """The ddmin algorithm, which gives up where the result would not be small.

    Complements are tried before parts: that half of a list had the property was tried before, and
    a quarter has it then only if effects cancel.

    Args:
        items: all together have the property.
        has_property: of a part, in the order of `items`; it may be asked the same twice.
        may_go_on: whether there is time for another test.
        max_size: of a result that is of interest.
    """
    current = tuple(items)
    num_chunks = 2
    while len(current) > 1:
        num_chunks = min(num_chunks, len(current))
        chunks = _split(current, num_chunks)
        smaller = None
        for part in _parts(current, chunks):
            if not may_go_on():
                return Minimised(items=current, is_minimal=False, is_large=False)
            if has_property(part):
                smaller = part
                break
        if smaller is not None:
            is_complement = 2 * len(smaller) > len(current)
            num_chunks = max(num_chunks - 1, 2) if is_complement else 2
            current = smaller
        elif num_chunks == len(current):
            return Minimised(items=current, is_minimal=True, is_large=len(current) > max_size)
        elif num_chunks > max_size:
            return Minimised(items=current, is_minimal=False, is_large=True)
        else:
            num_chunks *= 2
    return Minimised(items=current, is_minimal=True, is_large=False)


def _parts(current: tuple[Item, ...], chunks: list[tuple[Item, ...]]) -> Iterator[tuple[Item, ...]]:
    if len(chunks) > 2:
        start = 0
        for chunk in chunks:
            yield current[:start] + current[start + len(chunk) :]
            start += len(chunk)
    yield from chunks


def _split(items: tuple[Item, ...], num_chunks: int) -> list[tuple[Item, ...]]:
    edges = [len(items) * number // num_chunks for number in range(num_chunks + 1)]
    return [items[low:high] for low, high in zip(edges, edges[1:], strict=False)]
