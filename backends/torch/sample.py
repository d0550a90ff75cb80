"""Inference in torch behind an interface of NumPy arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor

from ict_backends.networks.families import parameter_shapes
from ict_backends.runs.checkpoint import check_arrays, load_checkpoint
from ict_backends.runs.folder import open_run
from ict_backends.sampling.batches import compiled_size, padded
from ict_backends.torch.device import check_device, float32_as, other_devices, out_of_memory
from ict_backends.torch.networks import UNet, make_network
from ict_backends.torch.step import consistency_function
from ict_backends.torch.weights import load_arrays
from ict_core import NO_CLASS, Config, guided, heun_sample, multistep_sample
from ict_core.loss import ConsistencyFunction


@dataclass(frozen=True)
class LoadedModel:
    """A trained model. Arrays are NumPy, NCHW, float32; labels are [b] integers, None for an unconditional model.

    Attributes:
        config: the settings of the run that the model is from.
        module: the network.
        replicas: copies of the network on other devices, each of which computes a part of every batch.
    """

    config: Config
    module: UNet
    replicas: tuple[UNet, ...] = ()

    def network(self, x_in: np.ndarray, c_noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Evaluate the free network F.

        Args:
            x_in: [b, c, h, w] noisy images, scaled to the network's input.
            c_noise: [b] log(sigma) / 4 of their levels.
            labels: [b] classes for a conditional model.

        Returns:
            [b, c, h, w] float32.
        """
        return self._run(lambda module, x, c, y: module(x, c, y), x_in, c_noise, labels)

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

        def clean(module: UNet, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            return _guided_function(module, self.config, labels, guidance)(x, sigma)

        return self._run(clean, x, sigma, labels)

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
            OutOfMemoryError: the device cannot hold so many images.
        """

        def draw(module: UNet, noises: Tensor, labels: Tensor | None) -> Tensor:
            f = _guided_function(module, self.config, labels, guidance)
            noises, sigma_min = noises.movedim(1, 0), self.config.noise.sigma_min
            if solver == "heun":
                return heun_sample(f, noises[0], sigmas, sigma_end=sigma_min, clip=True, xp=xp)
            return multistep_sample(f, noises, sigmas, sigma_min=sigma_min, clip=True, clip_steps=clip_steps, xp=xp)

        return self._run(draw, np.moveaxis(np.asarray(noises), 0, 1), labels)

    def _run(self, function: Callable[..., Tensor], *arrays: np.ndarray | None) -> np.ndarray:
        """Call `function` with a network and arrays [b, ...], the last one labels or None.

        Each device computes a part of the b rows; the results are joined.
        """
        floats = [np.asarray(a, dtype=np.float32) for a in arrays[:-1]]
        labels = None if arrays[-1] is None else np.asarray(arrays[-1], dtype=np.int64)
        batch = len(floats[0])
        if self.config.train.compile:
            size = compiled_size(batch)
            floats, labels = [padded(a, size) for a in floats], padded(labels, size)
        modules = (self.module, *self.replicas)[:batch]
        rows = np.array_split(np.arange(len(floats[0])), len(modules))
        # The host waits for a device only after all devices have their work.
        shortage = f"{batch} images at a time are more than fit into memory"
        with out_of_memory(shortage), torch.inference_mode(), float32_as(self.config.train.precision):
            parts = [
                function(module, *(_to_device(a, part, module) for a in floats), _to_device(labels, part, module))
                for module, part in zip(modules, rows, strict=True)
            ]
            return torch.cat([part.cpu() for part in parts]).numpy()[:batch]


def _guided_function(module: UNet, config: Config, labels: Tensor | None, guidance: float) -> ConsistencyFunction:
    """The consistency function of a network for labels, [b] or None, with guidance."""
    no_class = None if labels is None else torch.full_like(labels, NO_CLASS)
    f, f_null = (consistency_function(module, config, each) for each in (labels, no_class))
    return guided(f, f_null, guidance)


def _to_device(array: np.ndarray | None, rows: np.ndarray, module: UNet) -> Tensor | None:
    """Some rows of an array [b, ...], on a network's device."""
    return None if array is None else torch.tensor(array[rows], device=module.conv_in.weight.device)


def load_model(path: str | Path, *, weights: str = "ema", device: str = "auto") -> LoadedModel:
    """Load the model of a run.

    Args:
        path: the run's folder.
        weights: "ema" or "raw", for the averaged or the last weights of the newest checkpoint; "best", for the
            averaged weights of the best evaluation during training; or the name of an average of
            `train.ema_sigma_rel`, such as "0.05".
        device: "auto" for all GPUs, or the CPU if there are none; or a torch device such as "cpu" or "cuda:1".

    Raises:
        CheckpointError, UsageError: something is missing, damaged or does not fit.
    """
    run = open_run(path)
    config, where = run.load_config(), check_device(device)
    folder = run.checkpoint_of(weights)
    checkpoint = load_checkpoint(folder)
    what = f"checkpoint {folder}"
    arrays = checkpoint.weights(weights, what)
    check_arrays(what, parameter_shapes(config), arrays)  # before there is a network, which may be of any size
    module = make_network(config)
    load_arrays(module, arrays, what)
    modules = [module.to(where), *(copy.deepcopy(module).to(other) for other in other_devices(device))]
    if config.train.compile:
        for each in modules:
            each.compile(dynamic=False)
    return LoadedModel(config, modules[0], tuple(modules[1:]))
