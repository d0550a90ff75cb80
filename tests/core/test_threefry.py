"""Random numbers by key and counter: those of the published algorithm, well spread, and independent of each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from helpers import Library, to_numpy
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ict_core import dropout_bytes, key_words, normal_noise, threefry

# Of the authors' list of known answers (Random123, kat_vectors): rounds, counter, key, result; all 32-bit words.
KNOWN = [
    (20, (0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    (20, (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
MASK = 0xFFFFFFFF


def reference(counter: tuple[int, int], key: tuple[int, int], rounds: int) -> tuple[int, int]:
    """The algorithm in Python's integers."""
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + key[0]) & MASK, (counter[1] + key[1]) & MASK
    for i in range(rounds):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x = (x + y) & MASK
        y = ((y << r | y >> (32 - r)) & MASK) ^ x
        if i % 4 == 3:
            turn = i // 4 + 1
            x = (x + schedule[turn % 3]) & MASK
            y = (y + schedule[(turn + 1) % 3] + turn) & MASK
    return x, y


def words(values: object) -> np.ndarray:
    """Of [b, n] int32 of any library, the unsigned NumPy words."""
    return to_numpy(values).astype(np.int64).astype(np.int32).view(np.uint32)


def keys_of(lib: Library, seeds: list[int]) -> object:
    return lib.asarray(key_words(np.array(seeds, dtype=np.uint64)), "int32")


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN)
def test_the_reference_gives_the_published_answers(
    rounds: int, counter: list[int], key: list[int], result: list[int]
) -> None:
    assert reference(counter, key, rounds) == result


@given(
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
    count=st.integers(0, 9),
    stream=st.integers(0, 2**31 - 1),
    rounds=st.integers(1, 24),
)
def test_words_are_those_of_the_algorithm(lib: Library, seeds: list[int], count: int, stream: int, rounds: int) -> None:
    found = [words(a) for a in threefry(keys_of(lib, seeds), count, stream=stream, rounds=rounds)]
    for i, seed in enumerate(seeds):
        for j in range(count):
            expected = reference((j, stream), (seed & MASK, seed >> 32), rounds)
            assert (found[0][i, j], found[1][i, j]) == expected
    assert all(a.shape == (len(seeds), count) for a in found)


def test_noise_is_standard_normal(lib: Library) -> None:
    """By its moments and by a Kolmogorov-Smirnov test, over all and over each half, which are of cosines and sines."""
    z = to_numpy(normal_noise(keys_of(lib, [5, 6]), 100_001))
    assert z.shape == (2, 100_001)
    for part in (z.ravel(), z[:, :50_001].ravel(), z[:, 50_001:].ravel()):
        assert stats.kstest(part, "norm").pvalue > 1e-3
        assert abs(stats.kurtosis(part)) < 5 * math.sqrt(24 / part.size)
    assert np.abs(z).max() < 5.78
    assert abs(np.corrcoef(z[0, :50_000], z[0, 50_001:])[0, 1]) < 5 / math.sqrt(50_000)
    assert abs(np.corrcoef(z[0], z[1])[0, 1]) < 5 / math.sqrt(100_001)


def mask(lib: Library, seed: int, rate: float, count: int) -> np.ndarray:
    found = words(dropout_bytes(keys_of(lib, [seed]), count, dropped=round(rate * 2**16)))
    assert found.shape == (1, -(-count // 4))
    return found.view(np.uint8)[0, :count]


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.5, 0.9])
def test_elements_are_dropped_at_their_rate(lib: Library, rate: float) -> None:
    """All, and those in each place of a random number."""
    kept = mask(lib, 1, rate, 400_003)
    assert set(np.unique(kept)) == {0, 1}
    dropped = kept == 0
    for part in (dropped, *(dropped[i::4] for i in range(4)), *np.array_split(dropped, 2)):
        assert abs(part.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / len(part))


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_elements_know_nothing_of_each_other(lib: Library, rate: float) -> None:
    """Neighbours, those that share a random number, and those of other seeds, one bit apart."""
    kept = mask(lib, 1, rate, 400_000) - (1 - rate)
    for distance in (1, 2, 3, 4, len(kept) // 2):
        products = kept[distance:] * kept[:-distance]
        assert abs(products.mean()) < 5 * rate * (1 - rate) / math.sqrt(len(products))
    for seed in (0, 3, 1 + 2**31, 1 + 2**40):
        products = kept * (mask(lib, seed, rate, 400_000) - (1 - rate))
        assert abs(products.mean()) < 5 * rate * (1 - rate) / math.sqrt(len(products))


def test_masks_at_the_ends_of_the_rate(lib: Library) -> None:
    keys = keys_of(lib, [3, 2**64 - 1])
    assert (words(dropout_bytes(keys, 4000, dropped=0)).view(np.uint8) == 1).all()
    assert (words(dropout_bytes(keys, 4000, dropped=2**16)) == 0).all()
    nearly_all = words(dropout_bytes(keys, 2**19, dropped=2**16 - 1)).view(np.uint8)
    assert 0 < nearly_all.sum() < 60


def test_an_element_is_one_threshold_of_the_16_bits_of_its_place(lib: Library) -> None:
    """Bytes 0 and 2 from the first word's halves, 1 and 3 from the second's."""
    keys = keys_of(lib, [11])
    first, second = (words(a) for a in threefry(keys, 50, stream=1, rounds=13))
    halves = np.stack([first & 0xFFFF, second & 0xFFFF, first >> 16, second >> 16], axis=-1)
    for dropped in (1, 20_000, 65_535):
        found = words(dropout_bytes(keys, 200, dropped=dropped)).view(np.uint8)
        np.testing.assert_array_equal(found.reshape(1, 50, 4), halves >= dropped)


def test_streams_are_apart(lib: Library) -> None:
    keys = keys_of(lib, [7])
    found = {words(threefry(keys, 4, stream=s)[0]).tobytes() for s in range(5)}
    assert len(found) == 5


@pytest.mark.parametrize("function", [threefry, normal_noise, lambda k, n: dropout_bytes(k, n, dropped=1)])
def test_wrong_arguments_are_refused(lib: Library, function: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="keys must be int32"):
        function(lib.asarray([[1.0, 2.0]], "float32"), 3)
    with pytest.raises(ValueError, match=r"keys must be \[b, 2\], not \(2,\)"):
        function(lib.asarray([1, 2], "int32"), 3)
    with pytest.raises(ValueError, match="count must be >= 0"):
        function(keys_of(lib, [1]), -1)


def test_a_rate_above_one_is_refused(lib: Library) -> None:
    with pytest.raises(ValueError, match=r"dropped must be <= 2\^16, not 65537"):
        dropout_bytes(keys_of(lib, [1]), 3, dropped=65_537)
