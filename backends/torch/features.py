"""Feature networks for metrics: files of TorchScript or of torch.export, which bring their own preprocessing."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ict_backends.errors import CheckpointError
from ict_backends.files import file_sha256
from ict_backends.torch.device import check_device, float32_as


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without the warnings of TorchScript about its age, and of torch about files that we refuse anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class LoadedFeatures:
    """A feature network, which is given RGB images [b, 3, h, w] uint8; grey images are repeated to three channels.

    Attributes:
        name: the name of its file.
        digest: the sha256 of its file.
        has_probabilities: True if it returns the probabilities of classes that the inception score needs.
    """

    name: str
    digest: str
    has_probabilities: bool
    _module: Callable[..., Tensor]
    _device: torch.device
    _takes_flags: bool

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features, [b, d] float32, of images, [b, c, h, w] uint8, c = 1 or 3.

        Raises CheckpointError if the network returns anything else than [b, d].
        """
        return self._run(images, "return_features")

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probabilities of k classes, [b, k] float32, for images, [b, c, h, w] uint8, c = 1 or 3.

        They are computed without the last layer's bias.
        """
        return self._run(images, "no_output_bias")

    def _run(self, images: np.ndarray, flag: str) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        batch = batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch
        try:
            with torch.inference_mode(), float32_as("float32"), _quiet():
                output = self._module(batch, **{flag: True}) if self._takes_flags else self._module(batch)
        except Exception as error:  # whatever the file's own code raises
            line = next(text for text in reversed(str(error).strip().splitlines() or [type(error).__name__]) if text)
            raise CheckpointError(
                f"--features {self.name} cannot use images of {list(batch.shape)}: {line.strip()}"
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images):
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise CheckpointError(f"--features {self.name} must give [{len(images)}, d] features, not {shape}")
        return output.float().cpu().numpy()


def load_features(path: Path, *, device: str = "auto") -> LoadedFeatures:
    """Load a feature network from its file: of torch.export if its name ends in .pt2, else TorchScript.

    A network with the flags `return_features` and `no_output_bias`, such as the field's Inception network of
    2015-12-05, is called with one of them, for features or for probabilities. Any other is called with only the images.

    Args:
        path: the file.
        device: name of the device, as for `check_device`.

    Raises:
        CheckpointError: the file cannot be read, or is of another kind.
        UsageError: there is no such device.
    """
    where = check_device(device)
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise CheckpointError(f"--features {path} cannot be read: {error.strerror}") from error
    try:
        with _quiet():
            if path.suffix == ".pt2":
                return LoadedFeatures(
                    path.name, digest, False, torch.export.load(path).module().to(where), where, False
                )
            module = torch.jit.load(path, map_location=where).eval()
    except Exception as error:  # each kind of damage has an exception of its own
        raise CheckpointError(f"--features {path} is neither TorchScript nor, as a .pt2, of torch.export") from error
    names = {argument.name for argument in module.forward.schema.arguments}
    flags = {"return_features", "no_output_bias"} <= names
    return LoadedFeatures(path.name, digest, flags, module, where, flags)
