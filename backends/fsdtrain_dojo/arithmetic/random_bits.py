"""The random bits of stochastic rounding: a counter-based generator without a state.

Every 32 bits are a function of the run's seed, the step, the site (one rounded tensor of a step)
and the element, so they depend neither on threads nor on the order in which tensors are rounded,
and a resumed run continues with the same ones. This file is the specification; the kernels for
CPU and GPU compute the same.

    key     two words from seed, step and site: splitmix64 after each of the three
    high    upper word of the element's index; unless zero it is hashed into the key
    h       = lower word of the index + key[0]
            h ^= h >> 17;  h *= 0xed5ad4bb
            h ^= key[1]
            h ^= h >> 11;  h *= 0xac4c1b51
            h ^= h >> 15;  h *= 0x31848bab
            h ^= h >> 14

Sources: multipliers and shifts are triple32 of hash-prospector (C. Wellons, public domain,
github.com/skeeto/hash-prospector); its mixers of two rounds are not enough here, elements 4,096
apart get visibly dependent bits. splitmix64 is by G. Steele, D. Lea and C. Flood (OOPSLA 2014).
All additions and products are modulo 2^32 or 2^64.
"""

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int]

HIGH_WORD = 1 << 32
MULTIPLIERS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB)
_GOLDEN_64 = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1
_MASK_32 = (1 << 32) - 1


def stream_key(seed: int, step: int, site: int) -> Key:
    """The key of one tensor's random bits: two words of 32 bits."""
    state = _splitmix64(seed)
    state = _splitmix64(state ^ step)
    state = _splitmix64(state ^ site)
    return state & _MASK_32, state >> 32


def key_of_high_word(key: Key, high: int) -> Key:
    """The key for elements whose index has this upper word; `key` itself for zero."""
    if high == 0:
        return key
    mixed = _splitmix64((key[0] | key[1] << 32) ^ high)
    return mixed & _MASK_32, mixed >> 32


def split_elements(
    first_element: int, num_elements: int, num_pieces: int = 1
) -> list[tuple[int, int]]:
    """Nearly equal ranges, from zero on, cut also where the upper word of the index changes."""
    cuts = {num_elements * piece // num_pieces for piece in range(num_pieces + 1)}
    cuts.update(range(-first_element % HIGH_WORD, num_elements, HIGH_WORD))
    ordered = sorted(cuts)
    return list(zip(ordered[:-1], ordered[1:], strict=True))


def random_bits(key: Key, element: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """32 random bits for each index of an element: numpy, slow, the specification."""
    high = (element >> np.uint64(32)).astype(np.uint32)
    bits = np.empty(element.shape, np.uint32)
    for word in np.unique(high):
        chosen = high == word
        low = (element[chosen] & np.uint64(_MASK_32)).astype(np.uint32)
        bits[chosen] = _mix(low, key_of_high_word(key, int(word)))
    return bits


def _mix(low: NDArray[np.uint32], key: Key) -> NDArray[np.uint32]:
    hashed = low + np.uint32(key[0])
    hashed ^= hashed >> np.uint32(17)
    hashed *= np.uint32(MULTIPLIERS[0])
    hashed ^= np.uint32(key[1])
    hashed ^= hashed >> np.uint32(11)
    hashed *= np.uint32(MULTIPLIERS[1])
    hashed ^= hashed >> np.uint32(15)
    hashed *= np.uint32(MULTIPLIERS[2])
    hashed ^= hashed >> np.uint32(14)
    return hashed


def _splitmix64(state: int) -> int:
    """The next output of splitmix64 at this state."""
    mixed = (state + _GOLDEN_64) & _MASK_64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return mixed ^ (mixed >> 31)
