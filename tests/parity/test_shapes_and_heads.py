"""Images that are not square, and normalised queries, keys and values: the backends agree, and so does a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import (
    assert_all_close,
    assert_close,
    jax_batch,
    numpy_batch,
    small_adm_config,
    small_config,
    torch_batch,
    twins,
)

from ict_backends.jax import adm as jax_adm
from ict_backends.jax import step as jax_step
from ict_backends.jax.weights import to_arrays as jax_to_arrays
from ict_backends.networks.families import mask_shapes
from ict_backends.torch import adm as torch_adm
from ict_backends.torch import step as torch_step
from ict_backends.torch.weights import to_arrays as torch_to_arrays
from ict_core import Config
from ict_core.settings import replace

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "adm_qkv_norm_open.npz"
WIDE, HIGH = (3, 8, 16), (1, 16, 8)


def shaped(shape: tuple[int, ...], *, adm: bool) -> Config:
    """A network of two levels, the second with attention, for images of a shape."""
    config = small_adm_config() if adm else small_config(network={"channel_mult": [1, 2]})
    changed: dict[str, Any] = {"channel_mult": (1, 2), "attention_resolutions": (shape[1] // 2,), "dropout": 0.4}
    return replace(config, data={"shape": shape}, network=changed | ({"normalize_qkv": True} if adm else {}))


@pytest.mark.parametrize(("adm", "shape"), [(False, WIDE), (True, HIGH)], ids=["ncsnpp-wide", "adm-high"])
def test_eight_steps_on_images_that_are_not_square_agree(adm: bool, shape: tuple[int, ...]) -> None:
    """Losses, weights and averages, with the same dropout masks; of ADM, with normalised queries, keys and values."""
    config = shaped(shape, adm=adm)
    advance = jax.jit(jax_step.train_step, static_argnums=1)
    with jax.enable_x64(True):
        both = twins(config, "float64", 3)
        ours, theirs, rng = both.torch, both.jax, np.random.default_rng(0)
        for step in range(8):
            batch = numpy_batch(config, step, "float64")
            masks = [rng.random((config.train.batch_size, *s)) >= 0.4 for s in mask_shapes(config)]
            losses = torch_step.train_step(ours, config, [torch_batch(batch, masks)]).losses.numpy()
            theirs, result = advance(theirs, config, jax_batch(batch, masks))
            assert_close(np.asarray(result.losses), losses, 1e-7)
        assert_all_close(jax_to_arrays(theirs.params, theirs.constants), torch_to_arrays(ours.params.network), 1e-9)


def attend(backend: str, qkv: np.ndarray, heads: int, dtype: str, *, normalize: bool = True) -> np.ndarray:
    """Attention of the backend on [b, 3 heads d, n] of a precision: [b, heads d, n]."""
    with jax.enable_x64(dtype == "float64"):
        if backend == "torch":
            x = torch.tensor(qkv).to(getattr(torch, dtype))[..., None]
            return torch_adm.attend(x, heads, normalize=normalize)[..., 0].to(torch.float64).numpy()
        x = jnp.asarray(qkv).astype(dtype).transpose(0, 2, 1)[:, :, None]
        return (
            np.asarray(
                jax_adm.attend(x, heads, normalize=normalize)[:, :, 0].astype(
                    jnp.float32 if dtype != "float64" else dtype
                )
            )
            .transpose(0, 2, 1)
            .astype(np.float64)
        )


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("case", ["h2_d8", "h3_d16"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-6), ("bfloat16", 3e-2), ("float16", 3e-3)]
)
def test_normalised_attention_is_the_references(backend: str, case: str, dtype: str, tolerance: float) -> None:
    if not FIXTURE.is_file():
        pytest.skip(f"reference fixtures are not here: {FIXTURE}")
    with np.load(FIXTURE) as file:
        qkv, heads, *expected = (file[f"qkv_norm/{case}/{k}"] for k in ("qkv", "heads", "out", "out_without_norm"))
    for normalize, out in zip((True, False), expected, strict=True):
        found = attend(backend, qkv, int(heads), dtype, normalize=normalize)
        assert_close(found, out.astype(np.float64), tolerance)
    assert np.linalg.norm(expected[0] - expected[1]) > 0.1 * np.linalg.norm(expected[1])


def test_normalised_attention_is_that_of_the_equation_in_float64() -> None:
    """q, k and v divided by 1e-4 + norm / sqrt(d), and a large common factor of all then changes nothing."""
    qkv = np.random.default_rng(1).standard_normal((2, 48, 6))
    q, k, v = qkv.reshape(2, 3, 2, 8, 6).transpose(1, 0, 2, 4, 3)
    q, k, v = (x / (1e-4 + np.linalg.norm(x, axis=-1, keepdims=True) / 8**0.5) for x in (q, k, v))
    weights = np.exp(np.einsum("bhqd,bhkd->bhqk", q, k) / 8**0.5)
    expected = np.einsum("bhqk,bhkd->bhdq", weights / weights.sum(-1, keepdims=True), v).reshape(2, 16, 6)
    for backend in ("torch", "jax"):
        assert_close(attend(backend, qkv, 2, "float64"), expected, 1e-12)
        large = attend(backend, 1e6 * qkv, 2, "float64")
        assert_close(large, attend(backend, 1e9 * qkv, 2, "float64"), 1e-9)


def test_vectors_of_zeros_have_finite_gradients() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    torch_adm.normalized(x).sum().backward()
    found = jax.grad(lambda x: jax_adm.normalized(x).sum())(jnp.zeros((2, 4)))
    np.testing.assert_allclose(np.asarray(found), x.grad.numpy(), rtol=1e-6)
    assert np.isfinite(np.asarray(found)).all()


def test_checkpointing_changes_nothing_with_normalised_heads() -> None:
    results = []
    for checkpoint in (False, True):
        config = replace(shaped(WIDE, adm=True), network={"checkpoint": checkpoint})
        state = twins(config, "float32", 3).torch
        batch = torch_batch(numpy_batch(config, 0, "float32"))
        loss = torch_step.batch_loss(state.params.network, config, batch)
        results.append(torch.autograd.grad(loss.mean, list(state.params.network.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
