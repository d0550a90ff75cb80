"""The contract of a backend: a package with the members of `Backend`, like `ict_backends.torch` and `ict_backends.jax`.

Only NumPy crosses this border: images [b, c, h, w] float32 in [-1, 1], labels [b] integers, and lists and dicts of
arrays. docs/architecture.md says how to write a third backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from ict_core import Config

if TYPE_CHECKING:  # types of what other packages hand to a backend; their code is not needed here
    from ict_backends.data.dataset import Dataset
    from ict_backends.networks.cost import Convolution
    from ict_backends.runs.folder import RunDir

# The arrays of a network, by their names in checkpoints.
Arrays = dict[str, np.ndarray]
# A function that does something a given number of times, and returns when it is done.
Repeat = Callable[[int], None]
# A function that is called with each record of the log, by the names in RUN/metrics.jsonl.
OnRecord = Callable[[dict[str, Any]], object]


def ignore(record: dict[str, Any]) -> None:
    """The `OnRecord` that does nothing."""


class Model(Protocol):
    """A trained model. The labels of a conditional one may be `ict_core.NO_CLASS` for images without a class."""

    @property
    def config(self) -> Config:
        """The settings of the run that the model is from."""
        ...

    def network(self, x_in: np.ndarray, c_noise: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Evaluate the free network F.

        Args:
            x_in: [b, c, h, w] noisy images, scaled to the network's input.
            c_noise: [b] log(sigma) / 4.
            labels: [b] classes for a conditional model.

        Returns:
            [b, c, h, w] float32.
        """
        ...

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
        ...

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
        ...


class Processes(Protocol):
    """The processes that train together, and the place of this one among them. `Backend.joined` yields it."""

    @property
    def rank(self) -> int:
        """The number of this process, in 0..world-1."""
        ...

    @property
    def world(self) -> int:
        """The number of processes, >= 1."""
        ...

    def check_split(self, config: Config) -> int:
        """The number of micro-batches in which each device computes its share of a batch of these settings.

        Raises UsageError where the batch cannot be split into equal parts.
        """
        ...

    def agree(self, flag: bool) -> bool:
        """True in all processes alike once one of them has passed True; must be called by every process.

        The answer may be the one to the call before, so that no process waits for a device that has work to do.
        """
        ...

    def exchange(self, text: str) -> list[str]:
        """The texts of all processes, in the order of their numbers; must be called by every process."""
        ...

    def wait(self) -> None:
        """Return when every process has called this."""
        ...

    def part(self) -> None:
        """Return when every process has called this, after which each may end without harm to the others."""
        ...


class Trainer(Protocol):
    """A training state that is advanced repeatedly, for measuring. `Backend.make_trainer` returns it."""

    @property
    def stride(self) -> int:
        """The number of steps of one dispatch, >= 1; `advance` takes only multiples of it."""
        ...

    @property
    def replicas(self) -> int:
        """The number of devices that share a step."""
        ...

    @property
    def devices(self) -> int:
        """The number of replicas with a speed limit of their own: the cores of one CPU share theirs."""
        ...

    def advance(self, steps: int) -> np.ndarray:
        """Do `steps` more steps, a multiple of `stride`, wait for them, and return the losses, [steps, b]."""
        ...


class FeatureNetwork(Protocol):
    """A network by whose features images are compared. `ict_backends.load_features` returns it.

    Attributes:
        name: the name of its file.
        digest: the sha256 of its file.
        has_probabilities: True if `probabilities` can be called.
    """

    name: str
    digest: str
    has_probabilities: bool

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features, [b, d] float32, of images, [b, c, h, w] uint8."""
        ...

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probabilities of k classes, [b, k] float32, for images, [b, c, h, w] uint8."""
        ...


AnyProcesses = TypeVar("AnyProcesses", bound=Processes)
AnyModel = TypeVar("AnyModel", bound=Model)


class Backend(Protocol[AnyProcesses, AnyModel]):
    """The members of a backend's package. `load_backend` returns it.

    The name of a device is "auto" (accelerators if there are some, else the CPU) or the framework's name for it, such
    as "cpu" or "cuda:1". The name of a device that is not available raises UsageError wherever it is passed.
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
        on_record: OnRecord = ignore,
    ) -> None:
        """Train to `config.train.total_steps`, leaving metrics, sample pictures and checkpoints in the run's folder.

        Args:
            dataset: images [n, c, h, w] uint8 with [c, h, w] = `config.data.shape`, and labels [n] where the network is
                conditional.
            run: the run's folder.
            processes: the processes that `joined` yielded; by default they are joined here, on `device`.
            device: the name of the device.
            resume: continue from the newest checkpoint, to the same state that an uninterrupted run reaches.
            on_record: called with each record of the log, in the process that writes; what it raises ends the training.

        Raises:
            StoppedError: a signal arrived; the state is saved.
            UsageError, CheckpointError, NonFiniteError: with a message of one line; the last good checkpoint is kept.
        """
        ...

    def load_model(self, path: str | Path, *, weights: str = "ema", device: str = "auto") -> AnyModel:
        """Load the model of a run's folder.

        Args:
            path: the run's folder.
            weights: "ema" or "raw" for those of the newest checkpoint, "best", or the name of an average of
                `train.ema_sigma_rel`, such as "0.05".
            device: the name of the device.

        Raises:
            CheckpointError: something is missing, damaged or does not fit.
        """
        ...

    def make_model(self, config: Config, arrays: Arrays, device: str) -> AnyModel:
        """Make a model of the weights `arrays`. Raises CheckpointError where they do not fit the configuration."""
        ...

    def read_arrays(self, path: Path) -> Mapping[str, Any]:
        """Read the arrays of a file in the framework's own format, by name or as a tree of names.

        Code in the file is never executed. Raises CheckpointError where the file cannot be read or holds anything else.
        """
        ...

    # --- the process and its devices

    def tune_process(self, device: str) -> None:
        """Set up this process for speed on a device: allocator, compile cache, number of devices.

        Commands call it before anything else of the backend; importing a backend does not call it.
        """
        ...

    def joined(self, name: str) -> AbstractContextManager[AnyProcesses]:
        """A context in which this process trains together with the others, as RANK, WORLD_SIZE, ... describe them.

        Raises:
            UsageError: the variables are incomplete.
            UserError: the processes do not find each other.
            LostProcessError: a process ends before its time.
        """
        ...

    def check_device(self, name: str) -> object:
        """The framework's device or devices with this name. Raises UsageError where they are not available."""
        ...

    def describe_device(self, name: str) -> str:
        """The framework, its version and the device in words, such as "torch 2.13.0 on cpu"."""
        ...

    def device_name(self, device: str) -> str:
        """The name of the accelerators, such as "NVIDIA H100 80GB HBM3"; "cpu" for the CPU."""
        ...

    def out_of_memory(self, message: str) -> AbstractContextManager[None]:
        """A context that turns the framework's error into OutOfMemoryError with this message."""
        ...

    # --- measuring speed and memory

    def make_trainer(self, config: Config, images: np.ndarray, labels: np.ndarray | None, device: str) -> Trainer:
        """A trainer before the first step, with images [n, c, h, w] uint8 and labels [n] on its devices."""
        ...

    def make_forward(self, model: AnyModel, batch: int, labels: np.ndarray | None) -> Repeat:
        """A function that evaluates the consistency function `n` times, on noise [batch, c, h, w] on the device."""
        ...

    def product_size(self, device: str) -> int:
        """The side of square matrices whose product saturates the device."""
        ...

    def make_product(self, size: int, precision: str, device: str) -> Repeat:
        """A function that multiplies two [size, size] matrices `n` times; `precision` is a `train.precision`."""
        ...

    def make_convolution(self, shape: Convolution, batch: int, precision: str, device: str) -> Repeat:
        """A function that does one of the network's convolutions, with stride 1 and forward only, `n` times."""
        ...

    def copy_size(self, device: str) -> int:
        """The size in bytes of an array that is several times larger than any cache of the device."""
        ...

    def make_copy(self, size: int, device: str) -> Repeat:
        """A function that copies an array of `size` bytes to another one `n` times."""
        ...

    def peak_memory(self, device: str) -> tuple[int, str] | None:
        """The most bytes held on the device since `make_trainer`, and who holds them, in words; None where unknown."""
        ...

    def memory_in_use(self, device: str) -> int | None:
        """The number of bytes that arrays hold on the device now; None where unknown."""
        ...
