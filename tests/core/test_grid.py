from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import Library, assert_same, log_uniform, rhos, seeds, sigma_ranges, to_numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import chdtrc

from ict_core import Grid, Levels, discretization_steps, interval_probabilities, karras_sigmas, loss_weight, make_grid
from ict_core.noise_law import interval_cdf, interval_index

BELOW_ONE = float(np.nextafter(1.0, 0.0))


class FixedUniforms:
    """In place of a generator: hands out these uniforms, once."""

    def __init__(self, *uniforms: float) -> None:
        self.uniforms = np.array(uniforms)

    def random(self, size: int) -> np.ndarray:
        assert size == len(self.uniforms)
        return self.uniforms


@st.composite
def grids(draw: st.DrawFn, n: st.SearchStrategy[int] = st.integers(2, 200)) -> Grid:  # noqa: B008
    low, high = draw(sigma_ranges)
    p_mean, p_std = draw(st.floats(-2.0, 1.0)), draw(st.floats(1.0, 4.0))
    return make_grid(draw(n), sigma_min=low, sigma_max=high, rho=draw(rhos), p_mean=p_mean, p_std=p_std)


@given(n=st.integers(2, 300), ends=sigma_ranges, rho=rhos, p_mean=st.floats(-2.0, 1.0), p_std=st.floats(1.0, 4.0))
def test_is_made_of_the_public_parts(
    n: int, ends: tuple[float, float], rho: float, p_mean: float, p_std: float
) -> None:
    grid = make_grid(n, sigma_min=ends[0], sigma_max=ends[1], rho=rho, p_mean=p_mean, p_std=p_std)
    sigmas = karras_sigmas(n, sigma_min=ends[0], sigma_max=ends[1], rho=rho)
    assert_same(grid.sigmas, sigmas)
    assert_same(grid.probabilities, interval_probabilities(sigmas, p_mean=p_mean, p_std=p_std))
    assert_same(grid.weights, loss_weight(sigmas[:-1], sigmas[1:]))
    assert_same(grid.cdf, np.cumsum(grid.probabilities), rtol=1e-12)


def test_another_law_and_other_weights_are_those_of_the_parts() -> None:
    sigmas = karras_sigmas(41)
    grid = make_grid(41, law="uniform", weighting="edm", sigma_data=0.7)
    assert_same(grid.probabilities, interval_probabilities(sigmas, law="uniform"))
    assert_same(grid.weights, loss_weight(sigmas[:-1], sigmas[1:], weighting="edm", sigma_data=0.7))
    drawn = grid.draw(np.random.default_rng(0), 100)
    assert_same(drawn.weight, loss_weight(drawn.sigma_lo, drawn.sigma_hi, weighting="edm", sigma_data=0.7))
    assert chi_square_p_value(draw_counts(grid, 0), np.full(40, 1 / 40)) > 1e-4


def test_defaults_are_those_of_the_parts() -> None:
    grid = make_grid(41)
    assert_same(grid.sigmas, karras_sigmas(41))
    assert_same(grid.probabilities, interval_probabilities(karras_sigmas(41)))


@given(grid=grids(), seed=seeds, batch=st.integers(1, 300))
def test_draws_neighbouring_levels_with_the_inverse_gap(grid: Grid, seed: int, batch: int) -> None:
    drawn = grid.draw(np.random.default_rng(seed), batch)
    i = np.searchsorted(grid.sigmas, drawn.sigma_lo)
    assert_same(drawn.sigma_lo, grid.sigmas[i])
    assert_same(drawn.sigma_hi, grid.sigmas[i + 1])
    assert_same(drawn.weight, 1.0 / (grid.sigmas[i + 1] - grid.sigmas[i]))
    assert [array.shape for array in drawn] == [(batch,)] * 3
    assert [array.dtype for array in drawn] == [np.float64] * 3


@pytest.mark.parametrize("step", [0, 60_000, 399_999])
def test_n_levels_make_n_minus_1_intervals_each_of_which_can_be_drawn(step: int) -> None:
    """No level of the stage is left out: the teacher sees all but the last one, the student all but the first."""
    n = discretization_steps(step, 400_000)
    grid = make_grid(n)
    assert grid.sigmas.shape == (n,)
    assert grid.probabilities.shape == grid.cdf.shape == grid.weights.shape == (n - 1,)
    middles = grid.cdf - 0.5 * grid.probabilities
    drawn = grid.draw(FixedUniforms(*middles), n - 1)
    assert_same(drawn.sigma_lo, grid.sigmas[:-1])
    assert_same(drawn.sigma_hi, grid.sigmas[1:])


@given(grid=grids())
def test_the_ends_are_drawn(grid: Grid) -> None:
    """The teacher reaches sigma_min, where f(x) = x is all the supervision there is; the student reaches sigma_max."""
    sigmas, mass = grid.sigmas, grid.probabilities
    drawn = grid.draw(FixedUniforms(0.0, BELOW_ONE), 2)
    assert drawn.sigma_lo[0] == sigmas[np.flatnonzero(mass)[0]]
    if mass[0] > 0:
        assert drawn.sigma_lo[0] == sigmas[0]
    if mass[-1] > 1e-12:  # less is lost beside the rest of a float64 sum
        assert drawn.sigma_hi[1] == sigmas[-1]


@pytest.mark.parametrize("n", [11, 161, 1281])
def test_the_default_grid_trains_from_sigma_min_to_sigma_max(n: int) -> None:
    drawn = make_grid(n).draw(FixedUniforms(0.0, BELOW_ONE), 2)
    assert drawn.sigma_lo[0] == 0.002
    assert drawn.sigma_hi[1] == 80.0


@pytest.mark.parametrize("bits", [np.random.Philox, np.random.PCG64])
@given(seed=seeds, batch=st.integers(1, 200))
def test_draw_takes_batch_uniforms_and_nothing_else(bits: type, seed: int, batch: int) -> None:
    rng, twin = (np.random.Generator(bits(seed)) for _ in range(2))
    make_grid(11).draw(rng, batch)
    twin.random(batch)
    assert rng.random() == twin.random()


@given(grid=grids(), seed=seeds, batch=st.integers(1, 50))
def test_draw_is_the_inverse_cdf_of_the_uniforms(grid: Grid, seed: int, batch: int) -> None:
    uniforms = np.random.default_rng(seed).random(batch)
    i = [int(np.sum(grid.cdf <= u)) for u in uniforms]
    assert_same(grid.draw(np.random.default_rng(seed), batch).sigma_lo, grid.sigmas[i])


def chi_square_p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Of these counts under this law; intervals with fewer than 5 expected draws are put together."""
    expected = counts.sum() * probabilities
    rare = expected < 5
    counts, expected = (
        np.append(values[~rare], values[rare].sum()) if rare.any() else values for values in (counts, expected)
    )
    statistic = np.sum((counts - expected) ** 2 / expected)
    return float(chdtrc(len(counts) - 1, statistic))


def draw_counts(grid: Grid, seed: int, batch: int = 100_000) -> np.ndarray:
    drawn = grid.draw(np.random.default_rng(seed), batch)
    return np.bincount(np.searchsorted(grid.sigmas, drawn.sigma_lo), minlength=len(grid.sigmas) - 1)


@pytest.mark.parametrize("n", [3, 11, 41, 161, 1281])
@pytest.mark.parametrize("law", [{}, {"p_mean": 0.5, "p_std": 1.0, "rho": 3.0}], ids=["default", "other"])
@pytest.mark.parametrize("seed", range(3))
def test_draws_follow_the_law(n: int, law: dict[str, float], seed: int) -> None:
    grid = make_grid(n, **law)
    sigmas = karras_sigmas(n, rho=law.pop("rho", 7.0))
    probabilities = interval_probabilities(sigmas, **law)
    assert chi_square_p_value(draw_counts(grid, seed), probabilities) > 1e-4


@pytest.mark.parametrize("wrong", [{"p_mean": 1.1}, {"p_mean": -1.05}, {"p_std": 1.95}])
def test_the_test_of_the_law_can_fail(wrong: dict[str, float]) -> None:
    probabilities = interval_probabilities(karras_sigmas(41))
    assert chi_square_p_value(draw_counts(make_grid(41, **wrong), 0), probabilities) < 1e-4


def test_weights_fall_with_the_level() -> None:
    for n in (3, 11, 1281):
        assert np.all(np.diff(make_grid(n).weights) < 0)


# Laws with empty intervals anywhere
laws = arrays(np.float64, st.integers(1, 12), elements=st.just(0.0) | log_uniform(1e-3, 1.0)).filter(np.any)


@given(law=laws)
def test_cdf_rises_from_the_first_probability_to_exactly_1(law: np.ndarray) -> None:
    law = law / law.sum()
    law.flags.writeable = False
    cdf = interval_cdf(law)
    assert_same(cdf, np.cumsum(law), rtol=1e-12)
    assert cdf[-1] == 1.0
    assert np.all(np.diff(cdf) >= 0)


@given(law=laws, uniforms=arrays(np.float64, st.integers(0, 20), elements=st.floats(0.0, BELOW_ONE)))
def test_index_is_the_interval_around_the_uniform(law: np.ndarray, uniforms: np.ndarray) -> None:
    """Also at u = 0, just below 1, and exactly on the cdf; an interval of probability 0 never comes up."""
    law = law / law.sum()
    cdf = interval_cdf(law)
    uniforms = np.concatenate([uniforms, [0.0, BELOW_ONE], cdf[cdf < 1.0]])
    index = interval_index(uniforms, cdf)
    assert index.shape == uniforms.shape
    assert np.issubdtype(index.dtype, np.integer)
    assert np.all((index >= 0) & (index < len(law)))
    assert np.all(uniforms < cdf[index])
    assert np.all(uniforms >= np.concatenate([[0.0], cdf])[index])
    assert np.all(law[index] > 0)


def test_a_uniform_on_the_border_belongs_to_the_upper_interval() -> None:
    cdf = interval_cdf(np.array([0.25, 0.0, 0.25, 0.5, 0.0]))
    uniforms = np.array([0.0, np.nextafter(0.25, 0), 0.25, np.nextafter(0.5, 0), 0.5, BELOW_ONE])
    np.testing.assert_array_equal(interval_index(uniforms, cdf), [0, 0, 2, 2, 3, 3])


def test_no_uniforms_no_indices() -> None:
    assert interval_index(np.zeros(0), interval_cdf(np.array([0.5, 0.5]))).shape == (0,)


@pytest.mark.parametrize("bad", [-1e-300, 1.0, 1.5, np.nan, np.inf])
def test_uniforms_outside_the_unit_interval_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="^uniforms must be"):
        interval_index(np.array([0.5, bad, 0.25]), interval_cdf(np.array([0.5, 0.5])))


@pytest.mark.parametrize(
    ("batch", "error"), [(0, ValueError), (-1, ValueError), (None, TypeError), (2.0, TypeError), (True, TypeError)]
)
def test_bad_batches_are_named(batch: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="^batch must be"):
        make_grid(11).draw(np.random.default_rng(0), batch)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 1), ("sigma_min", 0.0), ("sigma_max", 0.001), ("rho", 0.0), ("p_mean", np.nan), ("p_std", 0.0)],
)
def test_bad_arguments_are_named(name: str, value: float) -> None:
    arguments = {"n": 11, name: value}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        make_grid(**arguments)


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        make_grid(11).sigmas = np.zeros(11)


# --- levels from uniforms, in any library


@given(grid=grids(), seed=seeds, batch=st.integers(0, 50))
def test_uniforms_choose_the_levels_that_are_drawn(lib: Library, grid: Grid, seed: int, batch: int) -> None:
    uniforms = np.random.default_rng(seed).random(batch)
    i = [int(np.sum(grid.cdf <= u)) for u in uniforms]
    found = grid.levels(lib.asarray(uniforms, "float64"))
    for values, expected in zip(found, (grid.sigmas[:-1], grid.sigmas[1:], grid.weights), strict=True):
        assert_same(values, lib.asarray(expected[i], "float64"))


def test_the_last_float32_uniform_is_within_the_grid(lib: Library) -> None:
    last = np.array([np.nextafter(np.float32(1), np.float32(0)), 0.0], dtype=np.float32)
    found = make_grid(1281).levels(lib.asarray(last, "float32"))
    assert_same(found.sigma_hi, lib.asarray(np.float32([80.0, make_grid(1281).sigmas[1]]), "float32"), rtol=1e-2)
    assert float(to_numpy(found.weight)[1]) > 1e4  # of a gap that was taken in float64


def test_levels_are_traced_and_a_grid_is_a_pytree() -> None:
    """A compiled function takes the grid as an argument: it is traced once for all grids of one size."""
    uniforms, traced = jnp.asarray(np.random.default_rng(0).random(20)), []

    @jax.jit
    def levels(grid: Grid, uniforms: jax.Array) -> Levels[jax.Array]:
        traced.append(grid)
        return grid.levels(uniforms)

    for grid in (make_grid(21), make_grid(21, law="uniform")):
        for found, expected in zip(levels(grid, uniforms), grid.levels(uniforms), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        inside = jax.jit(grid.levels)(uniforms)
        np.testing.assert_allclose(inside.sigma_hi, grid.levels(uniforms).sigma_hi, rtol=1e-6)
    assert len(traced) == 1
    doubled = torch.utils._pytree.tree_map(lambda array: 2 * array, make_grid(11))
    assert_same(doubled.sigmas, 2 * make_grid(11).sigmas)


@given(grid=grids(), seed=seeds, batch=st.integers(1, 20))
def test_draws_are_cast_to_an_array_once(lib: Library, dtype: str, grid: Grid, seed: int, batch: int) -> None:
    drawn = grid.draw(np.random.default_rng(seed), batch)
    cast = grid.draw(np.random.default_rng(seed), batch, like=lib.asarray(np.zeros((2, 3)), dtype))
    for found, expected in zip(cast, drawn, strict=True):
        assert_same(found, lib.asarray(expected, dtype))


@pytest.mark.parametrize("bad", [[0.5, 1.0], [-0.1]])
def test_refuses_numbers_that_are_not_uniform(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=re.escape("uniforms must be in [0, 1)")):
        make_grid(11).levels(np.array(bad))


def test_refuses_uniforms_and_models_that_are_no_floating_arrays() -> None:
    with pytest.raises(TypeError, match="^uniforms must be an array of a real floating dtype"):
        make_grid(11).levels(np.arange(3))
    with pytest.raises(TypeError, match="^like must be an array, not list"):
        make_grid(11).draw(np.random.default_rng(0), 3, like=[1.0])
