"""Random numbers as a function of a key and a counter: the same in every array library, whatever is drawn beside them.

Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key of two 32-bit words and a
counter of two into two random words, by additions, rotations and exclusive ors. Each image of a batch has a key of its
own, so that its noise and its dropout masks do not depend on the images beside it. All are drawn by the same few
operations, of which a compiler makes one kernel.

Words are int32, whose arithmetic wraps around in every library; torch has no unsigned operations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ict_core._arrays import Array, Namespace, check_count, namespace

# Of each four rounds, in turn (Salmon et al., table 2); and the constant of the key schedule (Skein 1.3, sec. 3.3.2).
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# 20 rounds are what the authors recommend; 13 are the fewest that pass all tests of TestU01's BigCrush (their table 2),
# enough for dropout masks, of which there are a hundred times as many as of noise.
_SAFE_ROUNDS, _FEWEST_ROUNDS = 20, 13
# The second word of the counter, so that no number serves two purposes.
_NOISE, _MASKS = 0, 1


def key_words(seeds: Any) -> np.ndarray[Any, Any]:
    """The keys of 64-bit seeds, as `threefry` takes them, on the host.

    Args:
        seeds: [b] integers in [0, 2^64).

    Returns:
        [b, 2] int32: the lower and the upper half of each.
    """
    wide = np.asarray(seeds, dtype="<u8")
    return wide.reshape(-1, 1).view("<i4").astype(np.int32)


def threefry(
    keys: Array, count: int, /, *, stream: int = 0, rounds: int = _SAFE_ROUNDS, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Two random words for each of the counters (0, stream), ..., (count - 1, stream), by each key.

    Args:
        keys: [b, 2] int32.
        count: >= 0.
        stream: in [0, 2^31): numbers of different streams are independent.
        rounds: >= 1; more than 20 gain nothing that is known of.
        xp: array namespace; inferred from `keys` when omitted.

    Returns:
        The first and the second words, [b, count] int32 each.
    """
    xp = namespace("keys", keys, xp)
    _check_keys(keys, xp)
    check_count("count", count)
    check_count("stream", stream)
    check_count("rounds", rounds, at_least=1)
    k0, k1 = keys[:, :1], keys[:, 1:]
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    a = xp.arange(count, dtype=xp.int32, device=getattr(keys, "device", None))[None, :] + k0
    b = xp.zeros_like(a)
    b += k1 + stream
    # What was made here is changed in place: on the CPU, new memory for each operation takes twice the time.
    for i in range(rounds):
        rotation = _ROTATIONS[i // 4 % 2][i % 4]
        a += b
        wrapped = b >> (32 - rotation)
        wrapped &= (1 << rotation) - 1  # int32 fills up with the sign
        b <<= rotation
        b |= wrapped
        b ^= a
        if i % 4 == 3:
            turn = i // 4 + 1
            a += schedule[turn % 3]
            b += schedule[(turn + 1) % 3] + turn
    return a, b


def normal_noise(keys: Array, count: int, /, *, xp: Namespace | None = None) -> Array:
    """Standard normal numbers, by Box and Muller's transform of 24 random bits each.

    Args:
        keys: [b, 2] int32; row i of the result is a function of row i of the keys.
        count: >= 0.
        xp: array namespace; inferred from `keys` when omitted.

    Returns:
        [b, count] float32, of magnitude 5.77 at most; equal in all libraries but for the rounding of log and cos.
    """
    xp = namespace("keys", keys, xp)
    check_count("count", count)
    a, b = threefry(keys, -(-count // 2), stream=_NOISE, xp=xp)
    uniform = (_fraction(a, xp) + 1.0) * 2.0**-24  # in (0, 1], which has a logarithm
    angle = _fraction(b, xp) * (2.0 * math.pi * 2.0**-24)
    radius = xp.sqrt(-2.0 * xp.log(uniform))
    return xp.concat([radius * xp.cos(angle), radius * xp.sin(angle)], axis=1)[:, :count]


def dropout_bytes(keys: Array, count: int, /, *, dropped: int, xp: Namespace | None = None) -> Array:
    """Dropout masks, four elements in a word: each byte is 1 where its element is kept and 0 where it is dropped.

    NumPy and torch view the words as bool; the first element is the lowest byte.

    Args:
        keys: [b, 2] int32; row i of the result is a function of row i of the keys.
        count: elements of a row, >= 0.
        dropped: how many of 2^16 equally likely numbers drop an element, in 0..2^16.
        xp: array namespace; inferred from `keys` when omitted.

    Returns:
        [b, ceil(count / 4)] int32.
    """
    xp = namespace("keys", keys, xp)
    check_count("count", count)
    check_count("dropped", dropped)
    if dropped > 2**16:
        raise ValueError(f"dropped must be <= 2^16, not {dropped}")
    a, b = threefry(keys, -(-count // 4), stream=_MASKS, rounds=_FEWEST_ROUNDS, xp=xp)
    kept = _keep_halves(b, 2**16 - dropped)
    kept <<= 8
    kept |= _keep_halves(a, 2**16 - dropped)
    return kept


def _check_keys(keys: Array, xp: Namespace) -> None:
    if keys.dtype != xp.int32:
        raise TypeError(f"keys must be int32, not {keys.dtype}")
    if keys.ndim != 2 or keys.shape[1] != 2:
        raise ValueError(f"keys must be [b, 2], not {tuple(keys.shape)}")


def _fraction(words: Array, xp: Namespace) -> Array:
    """The upper 24 bits of each word, as float32 in [0, 2^24)."""
    return xp.astype((words >> 8) & 0xFFFFFF, xp.float32)


def _keep_halves(words: Array, kept: int) -> Array:
    """1 in the lowest byte of each word whose lower 16 bits are one of the upper `kept` of 2^16 numbers, and in the
    third byte for its upper 16 bits. The words are overwritten."""
    upper = words >> 16
    upper &= 0xFFFF
    upper += kept
    upper &= 0x10000
    words &= 0xFFFF
    words += kept
    words >>= 16
    words |= upper
    return words
