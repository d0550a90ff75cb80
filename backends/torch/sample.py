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

from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_backends.sampling.batches import compiled_size, padded
from ict_backends.torch.device import check_device, float32_as, other_devices, out_of_memory
from ict_backends.torch.networks import UNet, make_network
from ict_backends.torch.step import consistency_function
from ict_backends.torch.weights import load_arrays
from ict_core import Config, multistep_sample


@dataclass(frozen=True)
class LoadedModel:
    """A trained model. Arrays are NumPy, NCHW, float32; labels are [b] integers, None for an unconditional model.

    Attributes:
        module: the network.
        replicas: copies of it on other devices, which take their parts of each batch.
    """

    config: Config
    module: UNet
    replicas: tuple[UNet, ...] = ()

    def network(self, x_in: np.ndarray, c_noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The free network F: [b, c, h, w] scaled images and [b] log(sigma) / 4 -> [b, c, h, w]."""
        return self._run(lambda module, x, c, y: module(x, c, y), x_in, c_noise, labels)

    def consistency(self, x: np.ndarray, sigma: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The consistency function f: [b, c, h, w] noisy images and their [b] levels -> [b, c, h, w] clean ones."""

        def clean(module: UNet, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            return consistency_function(module, self.config, labels)(x, sigma)

        return self._run(clean, x, sigma, labels)

    def sample(self, noises: np.ndarray, sigmas: Sequence[float], labels: np.ndarray | None = None) -> np.ndarray:
        """Multi-step sampling from given noise: [steps, b, c, h, w] -> [b, c, h, w] in [-1, 1].

        Raises OutOfMemoryError where the device cannot hold so many.
        """

        def draw(module: UNet, noises: Tensor, labels: Tensor | None) -> Tensor:
            f = consistency_function(module, self.config, labels)
            return multistep_sample(f, noises.movedim(1, 0), sigmas, sigma_min=self.config.noise.sigma_min, xp=xp)

        return self._run(draw, np.moveaxis(np.asarray(noises), 0, 1), labels)

    def _run(self, function: Callable[..., Tensor], *arrays: np.ndarray | None) -> np.ndarray:
        """`function` of a network and [b, ...] arrays, the last one labels or None; each device takes a part of b."""
        floats = [np.asarray(a, dtype=np.float32) for a in arrays[:-1]]
        labels = None if arrays[-1] is None else np.asarray(arrays[-1], dtype=np.int64)
        batch = len(floats[0])
        if self.config.train.compile:
            size = compiled_size(batch)
            floats, labels = [padded(a, size) for a in floats], padded(labels, size)
        modules = (self.module, *self.replicas)[:batch]
        rows = np.array_split(np.arange(len(floats[0])), len(modules))
        # Nothing waits for a device until all have their work.
        shortage = f"{batch} images at a time are more than fit into memory"
        with out_of_memory(shortage), torch.inference_mode(), float32_as(self.config.train.precision):
            parts = [
                function(module, *(_to_device(a, part, module) for a in floats), _to_device(labels, part, module))
                for module, part in zip(modules, rows, strict=True)
            ]
            return torch.cat([part.cpu() for part in parts]).numpy()[:batch]


def _to_device(array: np.ndarray | None, rows: np.ndarray, module: UNet) -> Tensor | None:
    """Rows of an array on a network's device."""
    return None if array is None else torch.tensor(array[rows], device=module.conv_in.weight.device)


def load_model(path: str | Path, *, weights: str = "ema", device: str = "auto") -> LoadedModel:
    """The model of a run's newest checkpoint.

    Args:
        path: the run's folder.
        weights: "ema", "raw", or "best": the averaged ones of the best evaluation during training.
        device: "auto" for all GPUs, or the CPU; or a torch device such as "cpu" or "cuda:1".

    Raises:
        CheckpointError, UsageError: in one line, what is missing, damaged or does not fit.
    """
    run = RunDir(Path(path))
    config, where = run.load_config(), check_device(device)
    folder = run.checkpoint_of(weights)
    checkpoint = load_checkpoint(folder)
    module = make_network(config)
    load_arrays(module, checkpoint.params if weights == "raw" else checkpoint.ema, f"checkpoint {folder}")
    modules = [module.to(where), *(copy.deepcopy(module).to(other) for other in other_devices(device))]
    if config.train.compile:
        for each in modules:
            each.compile(dynamic=False)
    return LoadedModel(config, modules[0], tuple(modules[1:]))
