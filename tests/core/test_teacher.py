"""The student as its own teacher, averages of weights, and the decay that original consistency training has."""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import Library, assert_same, eps, other_float, seeds
from hypothesis import given
from hypothesis import strategies as st

from ict_core import adaptive_decay, consistency_loss, teacher_of, update_average

rates = st.floats(0.01, 0.99)


@given(n=st.integers(2, 2000), mu0=rates, s0=st.integers(1, 50))
def test_decay_matches_the_formula(n: int, mu0: float, s0: int) -> None:
    found = adaptive_decay(n, mu0=mu0, s0=s0)
    assert type(found) is float
    assert found == pytest.approx(mu0 ** (s0 / (n - 1)), rel=1e-12)


@given(mu0=rates, s0=st.integers(1, 50), n=st.integers(2, 2000))
def test_decay_is_mu0_at_s0_intervals_and_rises_with_the_levels(mu0: float, s0: int, n: int) -> None:
    assert adaptive_decay(s0 + 1, mu0=mu0, s0=s0) == pytest.approx(mu0)
    assert adaptive_decay(n, mu0=mu0, s0=s0) < adaptive_decay(n + 1, mu0=mu0, s0=s0) < 1


def test_official_decays(ema_schedule: Mapping[str, np.ndarray]) -> None:
    """Of both released implementations, for the N(k) of each."""
    checked = 0
    for key, decays in ema_schedule.items():
        name = re.fullmatch(r"(ema/mu0_([\d.]+)_s0_(\d+)_s1_\d+_K\d+/(?:cm|jcm))_mu", key)
        if not name:
            continue
        n = ema_schedule[f"{name[1]}_N"]
        actual = [adaptive_decay(int(m), mu0=float(name[2]), s0=int(name[3])) for m in n]
        np.testing.assert_allclose(actual, decays, rtol=0, atol=1e-7, err_msg=key)
        checked += 1
    assert checked > 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("n", value, ValueError) for value in (1, 0, -1)],
        *[("n", value, TypeError) for value in (None, 2.0, True)],
        *[("mu0", value, ValueError) for value in (0.0, -0.5, 1.0, 2.0, math.nan)],
        *[("mu0", value, TypeError) for value in (None, "0.9")],
        ("s0", 0, ValueError),
        ("s0", 2.0, TypeError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        adaptive_decay(**{"n": 11, "mu0": 0.9, "s0": 2, name: value})


# --- the student as its own teacher


def levels(like: Any) -> dict[str, Any]:
    """The arguments of `consistency_loss` for two samples of three values, in the library of `like`."""
    make = jnp.asarray if isinstance(like, jax.Array) else torch.tensor
    values = {
        "x": np.zeros((2, 3)),
        "z": np.ones((2, 3)),
        "sigma_lo": [1.0, 2.0],
        "sigma_hi": [1.5, 4.0],
        "weight": [2, 1],
    }
    return {name: make(np.array(value, dtype=np.float32)) for name, value in values.items()}


def test_in_torch_the_teacher_has_the_students_dropout_and_no_gradient() -> None:
    """Dropout of one half, drawn by torch itself: both see the same mask, in this step and another one in the next."""
    weight, seen = torch.ones(3, requires_grad=True), []

    def f(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        mask = torch.nn.functional.dropout(torch.ones(3))
        seen.append((mask, torch.is_grad_enabled()))
        return weight * mask * x

    torch.manual_seed(0)
    for _ in range(8):
        consistency_loss(f, teacher_of(f), **levels(weight), c=0.1)
    teachers, students = seen[::2], seen[1::2]
    assert all(torch.equal(t, s) and not off and on for (t, off), (s, on) in zip(teachers, students, strict=True))
    assert len({tuple(mask.tolist()) for mask, _ in students}) > 1


def test_the_gradient_is_the_students_in_both_frameworks() -> None:
    """Of w: d((w x_hi), stop(w x_lo)), which differs from that of both factors, and from that of a constant teacher."""

    def gradient(weight: Any, *, stopped: bool) -> Any:
        def f(x: Any, sigma: Any) -> Any:
            return weight * x

        return consistency_loss(f, teacher_of(f) if stopped else f, **levels(weight), c=0.1).mean

    weight = torch.tensor(0.5, requires_grad=True)
    in_torch = [float(torch.autograd.grad(gradient(weight, stopped=s), weight)[0]) for s in (True, False)]
    in_jax = [float(jax.grad(lambda w, s=s: gradient(w, stopped=s))(jnp.asarray(0.5))) for s in (True, False)]
    np.testing.assert_allclose(in_torch, in_jax, rtol=1e-5)
    x_hi, x_lo, w = np.array([1.5, 4.0]), np.array([1.0, 2.0]), np.array([2.0, 1.0])
    gap = math.sqrt(3) * 0.5 * (x_hi - x_lo)
    by_hand = np.mean(w * gap / np.sqrt(gap**2 + 0.01) * math.sqrt(3) * x_hi)
    np.testing.assert_allclose(in_torch[0], by_hand, rtol=1e-5)
    assert in_torch[1] < 0.7 * in_torch[0]


def test_in_jax_the_teacher_has_the_students_key() -> None:
    @jax.jit
    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def f(x: jax.Array, sigma: jax.Array) -> jax.Array:
            return x * jax.random.bernoulli(key, 0.5, x.shape)

        x, sigma = jnp.ones((2, 50)), jnp.ones(2)
        return f(x, sigma), teacher_of(f)(x, sigma)

    student, teacher = both(jax.random.key(0))
    np.testing.assert_array_equal(student, teacher)


def test_arrays_without_gradients_are_passed_on(lib: Library, dtype: str) -> None:
    x, sigma = lib.normal(0, (2, 3), dtype), lib.asarray([1.0, 2.0], dtype)
    assert_same(teacher_of(lambda x, sigma: 2 * x)(x, sigma), 2 * x)


# --- averages


class Pair(NamedTuple):
    a: Any
    b: Any


@given(seed=seeds, decay=st.floats(0.0, 0.99999))
def test_the_average_moves_by_one_minus_the_decay(lib: Library, dtype: str, seed: int, decay: float) -> None:
    average, weights = (lib.normal(seed + i, (2, 3), dtype) for i in range(2))
    tree = {"a": [average, average], "b": Pair(average, (average,))}
    new = {"a": [weights, weights], "b": Pair(weights, (weights,))}
    found = update_average(tree, new, decay)
    assert (type(found["a"]), type(found["b"]), type(found["b"].b)) == (list, Pair, tuple)
    for leaf in (*found["a"], found["b"].a, found["b"].b[0]):
        assert_same(leaf, decay * average + (1 - decay) * weights, rtol=8 * eps(dtype), atol=8 * eps(dtype))


def test_a_module_is_averaged_with_its_counters_and_without_a_graph() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = copy.deepcopy(module.state_dict())
    before = average["0.weight"]
    module(torch.ones(4, 3)).sum().backward()
    with torch.no_grad():
        module[0].weight.add_(1.0)
    found = update_average(average, OrderedDict(module.named_parameters()) | dict(module.named_buffers()), 0.9)
    assert found.keys() == average.keys()
    torch.testing.assert_close(found["0.weight"], before + 0.1)
    assert not found["0.weight"].requires_grad
    assert int(found["1.num_batches_tracked"]) == 1
    module(torch.ones(4, 3))
    assert int(found["1.num_batches_tracked"]) == 1  # a copy


def test_weights_of_bfloat16_have_an_average_that_moves() -> None:
    """In bfloat16 itself, 1e-4 of a difference of 1 would be rounded away in each step."""
    average, weights = torch.ones(1), torch.zeros(1, dtype=torch.bfloat16)
    for _ in range(100):
        average = update_average(average, weights, 0.9999)
    torch.testing.assert_close(average, torch.tensor([0.9999**100]))
    with pytest.raises(TypeError, match=re.escape("average must be float32 or wider, not torch.bfloat16")):
        update_average(weights, weights, 0.9999)


def test_other_trees_go_by_jax() -> None:
    tree = {"w": jnp.ones(2)}
    found = jax.jit(lambda a, w: jax.tree.map(lambda a, w: update_average(a, w, 0.75), a, w))(tree, {"w": jnp.zeros(2)})
    np.testing.assert_array_equal(found["w"], [0.75, 0.75])


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_refuses_a_bad_decay_of_an_average(decay: float) -> None:
    with pytest.raises(ValueError, match="^decay must be"):
        update_average(np.ones(1), np.ones(1), decay)


def test_refuses_trees_that_differ(lib: Library, dtype: str) -> None:
    one = lib.asarray([1.0], dtype)
    for average, weights, message in (
        ({"a": one}, {"b": one}, "weights must have the keys of average"),
        ({"a": {"b": one}}, {"a": one}, "weights must have the keys of average['a']"),
        ([one, one], [one], "weights must be a list of 2, as average is"),
        ({"a": [one]}, {"a": [lib.asarray([1.0, 2.0], dtype)]}, "weights must have the shape of average['a'][0], (1,)"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            update_average(average, weights, 0.5)
    assert_same(update_average(one, lib.asarray([1.0], other_float(dtype)), 0.5), one)
    with pytest.raises(TypeError, match="^average must be an array, not NoneType"):
        update_average(None, one, 0.5)
