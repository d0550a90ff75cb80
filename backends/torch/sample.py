"""Inference in torch behind an interface of NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from array_api_compat import torch as xp
from ict_backends.checkpoint import load_checkpoint
from ict_backends.rundir import RunDir
from ict_backends.torch.device import check_device
from ict_backends.torch.networks import Network, make_network
from ict_backends.torch.step import consistency_function
from ict_backends.torch.weights import load_arrays

from ict_core import Config, multistep_sample


@dataclass(frozen=True)
class Model:
    """A trained model. Arrays are NumPy, NCHW, float32; labels are [b] integers, None for an unconditional model."""

    config: Config
    module: Network

    def network(self, x_in: np.ndarray, c_noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The free network F: [b, c, h, w] scaled images and [b] log(sigma) / 4 -> [b, c, h, w]."""
        with torch.inference_mode():
            return self.module(self._tensor(x_in), self._tensor(c_noise), self._labels(labels)).cpu().numpy()

    def consistency(self, x: np.ndarray, sigma: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The consistency function f: [b, c, h, w] noisy images and their [b] levels -> [b, c, h, w] clean ones."""
        with torch.inference_mode():
            f = consistency_function(self.module, self.config, self._labels(labels))
            return f(self._tensor(x), self._tensor(sigma)).cpu().numpy()

    def sample(self, noises: np.ndarray, sigmas: Sequence[float], labels: np.ndarray | None = None) -> np.ndarray:
        """Multi-step sampling from given noise: [steps, b, c, h, w] -> [b, c, h, w] in [-1, 1]."""
        with torch.inference_mode():
            f = consistency_function(self.module, self.config, self._labels(labels))
            sigma_min = self.config.noise.sigma_min
            return multistep_sample(f, self._tensor(noises), sigmas, sigma_min=sigma_min, xp=xp).cpu().numpy()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(array, dtype=np.float32), device=self._device)

    def _labels(self, labels: np.ndarray | None) -> torch.Tensor | None:
        return None if labels is None else torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.module.conv_in.weight.device


def load_model(path: str | Path, *, weights: str = "ema", device: str = "auto") -> Model:
    """The model of a run's newest checkpoint.

    Args:
        path: the run's folder.
        weights: "ema" or "raw".
        device: "auto", or a torch device such as "cpu" or "cuda:1".

    Raises:
        CheckpointError, UsageError: in one line, what is missing, damaged or does not fit.
    """
    run = RunDir(Path(path))
    config, where = run.load_config(), check_device(device)
    folder = run.latest_checkpoint()
    checkpoint = load_checkpoint(folder)
    module = make_network(config)
    load_arrays(module, checkpoint.ema if weights == "ema" else checkpoint.params, f"checkpoint {folder}")
    return Model(config, module.to(where))
