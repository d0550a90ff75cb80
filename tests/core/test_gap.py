"""The gap rule of consistency tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Library, assert_same, log_uniform, seeds, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from ict_core import Gap, NoiseConfig, gap_share, gap_stages, loss_weight, teacher_level
from ict_core.settings import load_preset

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "tuning_open.npz"
ratios = st.floats(1.1, 300.0)
sigma_mins = log_uniform(1e-4, 0.5)


@pytest.fixture(scope="module")
def official() -> Mapping[str, np.ndarray]:
    if not FIXTURE.is_file():
        pytest.skip(f"no {FIXTURE}")
    return np.load(FIXTURE)


def test_official_levels(official: Mapping[str, np.ndarray]) -> None:
    """r(t) of the released code, which has no floor but 0, for each of its stages and ratios."""
    names = [name for name in official if name.startswith("ect_gap/") and name.endswith("/r")]
    assert len(names) == 9
    for name in names:
        q, k, b, stage = map(float, re.fullmatch(r"ect_gap/q(\d+)_k(\d+)_b(\d+)/stage(\d+)/r", name).groups())
        share = gap_share(int(stage), q=q, limit=1 - 1e-15)
        found = teacher_level(official["ect_gap/t"], share, k=k, b=b, sigma_min=1e-300)
        np.testing.assert_allclose(found, official[name], rtol=1e-12, atol=1e-15)


def test_official_gap_at_the_limit(official: Mapping[str, np.ndarray]) -> None:
    t, gap = official["tcm_gap/ratio0.999/t"], official["tcm_gap/ratio0.999/delta"]
    found = t - teacher_level(t, gap_share(99, limit=0.999), sigma_min=1e-6)
    np.testing.assert_allclose(found, gap, rtol=1e-12)


@given(share=st.floats(1e-4, 1.0), low=sigma_mins, k=st.floats(0, 20), b=st.floats(0.1, 5), seed=seeds)
def test_the_teacher_is_below_the_student_and_not_below_the_floor(
    lib: Library, share: float, low: float, k: float, b: float, seed: int
) -> None:
    t = low * (1 + 1e-6 + np.exp(10 * np.random.default_rng(seed).standard_normal(50)))
    found = teacher_level(lib.asarray(t, "float64"), share, k=k, b=b, sigma_min=low)
    r = to_numpy(found)
    assert np.all((r < t) & (r >= low))
    widened = 1 + k / (1 + np.exp(np.minimum(b * t, 700)))
    assert_same(found, lib.asarray(np.maximum(t * (1 - share * widened), low), "float64"), rtol=1e-10)


@given(stage=st.integers(0, 12), q=ratios, t=log_uniform(0.01, 1000))
def test_from_stage_to_stage_the_gap_falls_by_q_and_the_teacher_rises(stage: int, q: float, t: float) -> None:
    sigma, free = np.array([t]), {"sigma_min": 1e-12}
    shares = [gap_share(a, q=q, limit=1 - 1e-13) for a in (stage, stage + 1)]
    before, after = (float(teacher_level(sigma, share, **free)[0]) for share in shares)
    assert after >= before
    if before > 1e-12 and shares[1] > 1e-12:
        assert t - before == pytest.approx(q * (t - after), rel=1e-6, abs=1e-12 * t)


def test_the_shares_begin_at_one_over_q_and_stop_at_the_limit() -> None:
    """Stages count from 0 with 1 - 1/q; the stage before has r = sigma_min everywhere: diffusion training."""
    assert [gap_share(a, q=4.0) for a in (-1, 0, 1)] == [1.0, 0.25, 0.0625]
    assert gap_share(50, q=2.0, limit=0.9) == pytest.approx(0.1)
    t = np.exp(np.linspace(-4, 7, 100))
    np.testing.assert_array_equal(teacher_level(t, gap_share(-1), sigma_min=0.01), np.full(100, 0.01))


@given(share=st.floats(1e-3, 1.0), low=sigma_mins, seed=seeds, weighting=st.sampled_from(["inverse_gap", "edm"]))
def test_levels_are_lognormal_and_weighted(lib: Library, share: float, low: float, seed: int, weighting: str) -> None:
    noise = NoiseConfig(sigma_min=low, sigma_max=80.0, p_mean=0.3, p_std=1.5)
    gap = noise.gap(share, k=3.0, b=2.0, weighting=weighting)
    normals = np.random.default_rng(seed).standard_normal(30)
    found = gap.levels(lib.asarray(normals, "float64"))
    t = np.maximum(np.exp(0.3 + 1.5 * normals), 1.01 * low)
    assert_same(found.sigma_hi, lib.asarray(t, "float64"), rtol=1e-13)
    r = teacher_level(t, share, k=3.0, b=2.0, sigma_min=low)
    assert_same(found.sigma_lo, lib.asarray(r, "float64"), rtol=1e-10)
    weight = loss_weight(r, t, weighting=weighting)
    assert_same(found.weight, lib.asarray(weight, "float64"), rtol=1e-9)


def test_the_law_is_not_cut_off_above() -> None:
    drawn = Gap(share=0.5).draw(np.random.default_rng(0), 400_000).sigma_hi
    assert 300 < drawn.max() < 1e5
    assert np.mean(drawn > 80) == pytest.approx(0.00307, rel=0.15)  # 1 - Phi((log 80 + 1.1) / 2)
    assert np.mean(np.log(drawn)) == pytest.approx(-1.1, abs=0.02)


@given(seed=seeds, batch=st.integers(1, 20))
def test_draws_as_a_grid_does(lib: Library, dtype: str, seed: int, batch: int) -> None:
    gap, rng = Gap(share=0.25), np.random.default_rng(seed)
    drawn = gap.draw(rng, batch)
    assert [array.dtype for array in drawn] == [np.float64] * 3
    cast = gap.draw(np.random.default_rng(seed), batch, like=lib.asarray(np.zeros(1), dtype))
    for found, expected in zip(cast, drawn, strict=True):
        assert_same(found, lib.asarray(expected, dtype))
    other = np.random.default_rng(seed)
    other.standard_normal(batch)
    assert rng.random() == other.random()


def test_jax_traces_levels() -> None:
    normals = np.random.default_rng(0).standard_normal(10).astype(np.float32)
    found = jax.jit(Gap(share=0.125).levels)(jnp.asarray(normals))
    for values, expected in zip(found, Gap(share=0.125).levels(normals.astype(np.float64)), strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32"])
def test_nothing_overflows_far_out(lib: Library, dtype: str) -> None:
    far = lib.asarray([1e30, 1e4, 0.01], dtype)
    found = teacher_level(far, 0.001)
    assert_same(found, lib.asarray(np.array([0.999, 0.999, 0.995]) * [1e30, 1e4, 0.01], dtype), rtol=0.02)


@given(total=st.integers(1, 500), count=st.integers(1, 40))
def test_stages_cover_all_steps(total: int, count: int) -> None:
    parts = gap_stages(total, count)
    assert len(parts) == min(count, total)
    assert [first for first, _ in parts] == [0, *(last + 1 for _, last in parts[:-1])]
    assert parts[-1][1] == total - 1
    assert len({last - first for first, last in parts[:-1]}) <= 1


def test_the_presets_have_the_stages_of_the_released_code() -> None:
    curriculum = load_preset("cifar10-ect").curriculum
    assert gap_stages(200_000, curriculum.gap_stages)[:2] == [(0, 24_999), (25_000, 49_999)]
    hour = load_preset("cifar10-ect-hour")
    assert (hour.curriculum.gap_q, hour.curriculum.gap_stages, hour.train.total_steps) == (256.0, 1, 8000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gap_share(0, q=1.0), "q must be > 1, not 1.0"),
        (lambda: gap_share(0, limit=1.0), "limit must be < 1, not 1.0"),
        (lambda: gap_share(-2), "stage must be >= -1, not -2"),
        (lambda: gap_stages(10, 0), "count must be >= 1, not 0"),
        (lambda: teacher_level(np.ones(1), 1.5), "share must be <= 1, not 1.5"),
        (lambda: teacher_level(np.ones(1), 0.5, k=-1.0), "k must be >= 0, not -1.0"),
        (lambda: Gap(share=0.5).draw(np.random.default_rng(0), 0), "batch must be >= 1, not 0"),
        (lambda: Gap(share=0.5, p_std=-1.0).draw(np.random.default_rng(0), 1), "p_std must be > 0, not -1.0"),
        (lambda: Gap(share=0.5, p_mean=np.nan).draw(np.random.default_rng(0), 1), "p_mean must be finite, not nan"),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()
