"""Inference in JAX behind an interface of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from ict_backends.jax.device import check_device, float32_as, out_of_memory, split, worthwhile
from ict_backends.jax.networks import UNet
from ict_backends.jax.state import abstract_network, merge_network
from ict_backends.jax.step import consistency_function
from ict_backends.jax.weights import load_arrays
from ict_backends.networks.families import parameter_shapes
from ict_backends.runs.checkpoint import check_arrays, load_checkpoint
from ict_backends.runs.folder import open_run
from ict_backends.sampling.batches import compiled_size, padded
from ict_core import NO_CLASS, Config, guided, heun_sample, multistep_sample
from ict_core.loss import ConsistencyFunction


@dataclass(frozen=True)
class LoadedModel:
    """A trained model. Arrays are NumPy, NCHW, float32; labels are [b] integers, None for an unconditional model.

    Attributes:
        config: the settings of the run that the model is from.
        params, constants: the network's weights, and the arrays that are stored with them and not trained.
        mesh: the devices, each of which computes a part of every batch.
    """

    config: Config
    params: nnx.State
    constants: nnx.State
    mesh: Mesh

    def network(self, x_in: np.ndarray, c_noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Evaluate the free network F.

        Args:
            x_in: [b, c, h, w] noisy images, scaled to the network's input.
            c_noise: [b] log(sigma) / 4 of their levels.
            labels: [b] classes for a conditional model.

        Returns:
            [b, c, h, w] float32.
        """
        return self._run(_network, len(x_in), _nhwc(x_in), _float(c_noise), labels)

    def consistency(
        self, x: np.ndarray, sigma: np.ndarray, labels: np.ndarray | None = None, *, guidance: float = 1.0
    ) -> np.ndarray:
        """Evaluate the consistency function f, which turns noisy images into clean ones.

        Args:
            x: [b, c, h, w] noisy images.
            sigma: [b] their noise levels.
            labels: [b] classes for a conditional model.
            guidance: the scale of classifier-free guidance (`ict_core.guided`); 1 is none.

        Returns:
            [b, c, h, w] float32.
        """
        function = partial(_consistency, guidance=float(guidance))
        return self._run(function, len(x), _nhwc(x), _float(sigma), labels)

    def sample(
        self,
        noises: np.ndarray,
        sigmas: Sequence[float],
        labels: np.ndarray | None = None,
        *,
        clip_steps: bool = False,
        guidance: float = 1.0,
        solver: str = "multistep",
    ) -> np.ndarray:
        """Sample images from given noise, in one step or several.

        Args:
            noises: [steps, b, c, h, w] standard normal noise; [1, b, c, h, w] for "heun".
            sigmas: [steps] falling noise levels.
            labels: [b] classes for a conditional model.
            clip_steps: clip to [-1, 1] after each step, and not only at the end.
            guidance: the scale of classifier-free guidance (`ict_core.guided`); 1 is none.
            solver: "multistep" for `ict_core.multistep_sample`; "heun" for `ict_core.heun_sample`.

        Returns:
            [b, c, h, w] float32 in [-1, 1].

        Raises:
            OutOfMemoryError: the devices cannot hold so many images.
        """
        levels = tuple(float(s) for s in sigmas)
        function = partial(_sample, sigmas=levels, clip_steps=clip_steps, guidance=float(guidance))
        if solver == "heun":
            function = partial(_solve, sigmas=levels, guidance=float(guidance))
        batch_first = np.moveaxis(_nhwc(noises), 0, 1)
        return self._run(function, len(batch_first), batch_first, labels)

    def _run(self, function: Callable[..., Array], batch: int, *arrays: np.ndarray | None) -> np.ndarray:
        """Call `function` with arrays [b, ...], each device with a part of the b rows.

        The arrays are padded to one of a few sizes, which the number of devices divides, so that few are compiled.
        """
        size = -(-compiled_size(batch) // self.mesh.size) * self.mesh.size
        placed = [None if a is None else jax.device_put(padded(a, size), split(self.mesh)) for a in arrays]
        with out_of_memory(f"{batch} images at a time are more than fit into memory"):
            images = np.asarray(function(self.config, self.params, self.constants, *placed))
        return np.ascontiguousarray(images[:batch].transpose(0, 3, 1, 2))


@partial(jax.jit, static_argnames="config")
def _network(
    config: Config, params: nnx.State, constants: nnx.State, x_in: Array, c_noise: Array, labels: Array | None
) -> Array:
    with float32_as(config.train.precision):
        return merge_network(config, params, constants)(x_in, c_noise, labels)


@partial(jax.jit, static_argnames=("config", "guidance"))
def _consistency(
    config: Config,
    params: nnx.State,
    constants: nnx.State,
    x: Array,
    sigma: Array,
    labels: Array | None,
    *,
    guidance: float,
) -> Array:
    return _guided_function(merge_network(config, params, constants), config, labels, guidance)(x, sigma)


@partial(jax.jit, static_argnames=("config", "sigmas", "clip_steps", "guidance"))
def _sample(
    config: Config,
    params: nnx.State,
    constants: nnx.State,
    noises: Array,
    labels: Array | None,
    *,
    sigmas: tuple[float, ...],
    clip_steps: bool,
    guidance: float,
) -> Array:
    f = _guided_function(merge_network(config, params, constants), config, labels, guidance)
    noises, sigma_min = jnp.moveaxis(noises, 1, 0), config.noise.sigma_min
    return multistep_sample(f, noises, sigmas, sigma_min=sigma_min, clip=True, clip_steps=clip_steps, xp=jnp)


def _solve(
    config: Config,
    params: nnx.State,
    constants: nnx.State,
    noises: Array,
    labels: Array | None,
    *,
    sigmas: tuple[float, ...],
    guidance: float,
) -> Array:
    """Heun's method, of a function that is compiled once and not once an evaluation."""

    def f(x: Array, sigma: Array, /) -> Array:
        return _consistency(config, params, constants, x, sigma, labels, guidance=guidance)

    return heun_sample(f, noises[:, 0], sigmas, sigma_end=config.noise.sigma_min, clip=True, xp=jnp)


def _guided_function(network: UNet, config: Config, labels: Array | None, guidance: float) -> ConsistencyFunction:
    """The consistency function of a network for labels, [b] or None, with guidance."""
    no_class = None if labels is None else jnp.full_like(labels, NO_CLASS)
    f, f_null = (consistency_function(network, config, each) for each in (labels, no_class))
    return guided(f, f_null, guidance)


def _float(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float32)


def _nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(_float(array), -3, -1)


def load_model(path: str | Path, *, weights: str = "ema", device: str = "auto") -> LoadedModel:
    """Load the model of a run.

    Args:
        path: the run's folder.
        weights: "ema" or "raw", for the averaged or the last weights of the newest checkpoint; "best", for the
            averaged weights of the best evaluation during training; or the name of an average of
            `train.ema_sigma_rel`, such as "0.05".
        device: "auto", or a platform such as "cpu" or "cuda", or one of its devices such as "cuda:1".

    Raises:
        CheckpointError, UsageError: something is missing, damaged or does not fit.
    """
    run = open_run(path)
    config = run.load_config()
    mesh = worthwhile(check_device(device), config)
    folder = run.checkpoint_of(weights)
    checkpoint = load_checkpoint(folder)
    arrays = checkpoint.weights(weights, f"checkpoint {folder}")
    check_arrays(f"checkpoint {folder}", parameter_shapes(config), arrays)  # before there is a network of any size
    params, constants = load_arrays(abstract_network(config)[1:], arrays, mesh, f"checkpoint {folder}")
    return LoadedModel(config, params, constants, mesh)
