"""What a backend is: a package with the members of `Backend`, mirrored by `ict_backends.torch` and `ict_backends.jax`.

What crosses this border is NumPy: images [b, c, h, w] float32 in [-1, 1], labels [b] integers, and lists and dicts of
arrays. How a third backend would be written is said in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ict_core import Config

if TYPE_CHECKING:  # the contract names what the rooms hand to a backend, and runs none of their code
    from ict_backends.data.dataset import Dataset
    from ict_backends.networks.cost import Convolution
    from ict_backends.runs.folder import RunDir

# Named arrays: those of a network, as checkpoints have them.
Arrays = dict[str, np.ndarray]
# Does something so many times, and waits until it is done.
Repeat = Callable[[int], None]


class Model(Protocol):
    """A trained model."""

    @property
    def config(self) -> Config:
        """The settings of the run that it is from."""
        ...

    def network(self, x_in: np.ndarray, c_noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The free network F: [b, c, h, w] scaled images and [b] log(sigma) / 4 -> [b, c, h, w]."""
        ...

    def consistency(self, x: np.ndarray, sigma: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """The consistency function f: [b, c, h, w] noisy images and their [b] levels -> [b, c, h, w] clean ones."""
        ...

    def sample(self, noises: np.ndarray, sigmas: Sequence[float], labels: np.ndarray | None = None) -> np.ndarray:
        """Multi-step sampling from given noise: [steps, b, c, h, w] -> [b, c, h, w] in [-1, 1].

        Raises OutOfMemoryError where the device cannot hold so many images.
        """
        ...


class Processes(Protocol):
    """The processes that train together, and which of them this is. `Backend.joined` gives it."""

    @property
    def rank(self) -> int:
        """The number of this process, in 0..world-1."""
        ...

    @property
    def world(self) -> int:
        """How many processes there are, >= 1."""
        ...

    def agree(self, flag: bool) -> bool:
        """True in all processes alike once one of them has passed True; must be called by every process.

        The answer may be that to the call before, so that no device is waited for that has work to do.
        """
        ...

    def wait(self) -> None:
        """Return when every process has called this."""
        ...


class Trainer(Protocol):
    """A training state that is advanced again and again, for measuring. `Backend.make_trainer` gives it."""

    @property
    def stride(self) -> int:
        """Steps of one dispatch, >= 1; only multiples of it can be done."""
        ...

    @property
    def replicas(self) -> int:
        """Devices that share a step."""
        ...

    @property
    def devices(self) -> int:
        """Those of the replicas that have a speed limit of their own: the cores of one CPU share theirs."""
        ...

    def advance(self, steps: int) -> np.ndarray:
        """Do `steps` more steps, a multiple of `stride`, and wait for them: [steps, b] losses."""
        ...


class FeatureNetwork(Protocol):
    """A network whose features images are compared by. `ict_backends.load_features` gives it.

    Attributes:
        name: of its file.
        digest: sha256 of its file.
        has_probabilities: whether `probabilities` can be called.
    """

    name: str
    digest: str
    has_probabilities: bool

    def features(self, images: np.ndarray) -> np.ndarray:
        """[b, c, h, w] uint8 images to [b, d] float32 features."""
        ...

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """[b, c, h, w] uint8 images to the probabilities of [b, k] classes, float32."""
        ...


AnyProcesses = TypeVar("AnyProcesses", bound=Processes)
AnyModel = TypeVar("AnyModel", bound=Model)


class Backend(Protocol[AnyProcesses, AnyModel]):
    """The members of a backend's package. `load_backend` gives it.

    Names of devices are "auto" (accelerators if there are some, else the CPU) or what the framework calls them, such as
    "cpu" and "cuda:1". A name that is not available raises UsageError wherever it is passed.
    """

    # --- training and sampling

    def train(
        self,
        config: Config,
        dataset: Dataset,
        run: RunDir,
        *,
        processes: AnyProcesses | None = None,
        device: str = "auto",
        resume: bool = False,
    ) -> None:
        """Train to `config.train.total_steps`, leaving metrics, sample pictures and checkpoints in the run's folder.

        Args:
            dataset: images [n, c, h, w] uint8 of `config.data.shape`, and labels where the network is conditional.
            processes: those that `joined` gave; by default they are joined here, on `device`.
            resume: continue from the newest checkpoint, to the state that an uninterrupted run reaches.

        Raises:
            StoppedError: a signal came, and the state is kept.
            UsageError, CheckpointError, NonFiniteError: in one line, with the last good checkpoint kept.
        """
        ...

    def load_model(self, path: str | Path, *, weights: str = "ema", device: str = "auto") -> AnyModel:
        """The model of a run's folder: `weights` are "ema" or "raw" of the newest checkpoint, or "best".

        Raises CheckpointError, in one line, where something is missing, damaged or does not fit.
        """
        ...

    def make_model(self, config: Config, arrays: Arrays, device: str) -> AnyModel:
        """The model of these weights. Raises CheckpointError where they do not fit the configuration."""
        ...

    def read_arrays(self, path: Path) -> Mapping[str, Any]:
        """The arrays of a file in the framework's own format, by name or as a tree; code in it is never executed.

        Raises CheckpointError, in one line, where it cannot be read or holds anything else.
        """
        ...

    # --- the process and its devices

    def tune_process(self, device: str) -> None:
        """Set up this process for speed on a device: allocator, compile cache, number of devices.

        Commands call it before anything else of the backend; nothing calls it at import.
        """
        ...

    def joined(self, name: str) -> AbstractContextManager[AnyProcesses]:
        """The context in which this process trains together with those that RANK, WORLD_SIZE, ... tell of.

        Raises:
            UsageError: the variables are incomplete.
            UserError: the processes do not find each other.
            LostProcessError: one of them ends before its time.
        """
        ...

    def check_device(self, name: str) -> object:
        """The framework's device or devices of a name. Raises UsageError where they are not available."""
        ...

    def describe_device(self, name: str) -> str:
        """The framework, its version and the device in words: "torch 2.13.0 on cpu"."""
        ...

    def device_name(self, device: str) -> str:
        """The name of the accelerators, such as "NVIDIA H100 80GB HBM3"; "cpu" for the CPU."""
        ...

    def out_of_memory(self, message: str) -> AbstractContextManager[None]:
        """A context that turns the framework's error into OutOfMemoryError with this message."""
        ...

    # --- measuring speed and memory

    def make_trainer(self, config: Config, images: np.ndarray, labels: np.ndarray | None, device: str) -> Trainer:
        """The state before the first step, with images [n, c, h, w] uint8 and labels [n] on the devices."""
        ...

    def make_forward(self, model: AnyModel, batch: int, labels: np.ndarray | None) -> Repeat:
        """A function that evaluates the consistency function `n` times, on [batch, ...] noise on the device."""
        ...

    def product_size(self, device: str) -> int:
        """The side of a square matrix product that saturates the device."""
        ...

    def make_product(self, size: int, precision: str, device: str) -> Repeat:
        """A function that multiplies two [size, size] matrices `n` times; `precision` is a `train.precision`."""
        ...

    def make_convolution(self, shape: Convolution, batch: int, precision: str, device: str) -> Repeat:
        """A function that does a convolution of the network, of stride 1 and forward only, `n` times."""
        ...

    def copy_size(self, device: str) -> int:
        """Bytes of an array that is several times larger than any cache of the device."""
        ...

    def make_copy(self, size: int, device: str) -> Repeat:
        """A function that copies an array of `size` bytes to another one `n` times."""
        ...

    def peak_memory(self, device: str) -> tuple[int, str] | None:
        """The most bytes held on the device since `make_trainer`, and what they are; None where it is not known."""
        ...

    def memory_in_use(self, device: str) -> int | None:
        """Bytes that arrays hold on the device now; None where it is not known."""
        ...
