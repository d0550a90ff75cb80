"""What `ict bench` times, in JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from ict_backends.jax.batch import to_device
from ict_backends.jax.device import check_device, float32_as, on_cpu, put, replicated, split, worthwhile
from ict_backends.jax.dispatch import steps_for, steps_per_dispatch
from ict_backends.jax.networks import PRECISIONS
from ict_backends.jax.sample import LoadedModel
from ict_backends.jax.state import TrainState, abstract_network, init_state, merge_network
from ict_backends.jax.step import consistency_function
from ict_backends.jax.weights import load_arrays
from ict_backends.networks.cost import Convolution
from ict_backends.training.split import check_split
from ict_backends.training.step_plan import plan_step
from ict_core import Config


@dataclass
class TimedTrainer:
    """A training state that goes on and on, over images that are on the devices.

    Attributes:
        images: [n, h, w, c] uint8.
        labels: [n] int32, or None.
        parts: micro-batches of a step.
        stride: steps of one dispatch.
        mesh: the devices that share a step.
    """

    config: Config
    state: TrainState
    images: Array
    labels: Array | None
    parts: int
    stride: int
    mesh: Mesh
    done: int = 0

    @property
    def replicas(self) -> int:
        """Devices that share a step."""
        return self.mesh.size

    @property
    def devices(self) -> int:
        """Those of them with a limit of their own: all of the CPU have the same cores."""
        return 1 if on_cpu(self.mesh) else self.mesh.size

    def advance(self, steps: int) -> np.ndarray:
        """Do so many more steps, a multiple of the stride, and wait for them: [steps, b] losses."""
        step = steps_for(self.mesh, self.parts)
        found = []
        for _ in range(steps // self.stride):
            numbers = [(self.done + i) % self.config.train.total_steps for i in range(self.stride)]
            plans = [plan_step(self.config, number, len(self.images)) for number in numbers]
            draws = to_device(plans, self.mesh, self.parts)
            self.state, result = step(self.state, self.config, draws, self.images, self.labels, self.mesh)
            self.done += self.stride
            found.append(result.losses)
        jax.block_until_ready(self.state)
        return np.concatenate(found)


def make_trainer(config: Config, images: np.ndarray, labels: np.ndarray | None, device: str) -> TimedTrainer:
    """The state before the first step, and images and labels on the devices."""
    mesh = worthwhile(check_device(device), config)
    state = init_state(config, mesh)
    parts = check_split(config.train.batch_size, config.train.micro_batch, mesh.size, "devices")
    held = put(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), replicated(mesh))
    classes = None if labels is None else put(labels.astype(np.int32), replicated(mesh))
    return TimedTrainer(config, state, held, classes, parts, steps_per_dispatch(config, mesh), mesh)


def make_model(config: Config, arrays: dict[str, np.ndarray], device: str) -> LoadedModel:
    """The model of these weights."""
    mesh = worthwhile(check_device(device), config)
    params, constants = load_arrays(abstract_network(config)[1:], arrays, mesh, "weights")
    return LoadedModel(config, params, constants, mesh)


def make_forward(model: LoadedModel, batch: int, labels: np.ndarray | None) -> Callable[[int], None]:
    """A function that evaluates the consistency function so many times, on noise that is on the devices."""
    config, mesh = model.config, model.mesh
    channels, height, width = config.data.shape
    where = split(mesh) if batch % mesh.size == 0 else replicated(mesh)
    noise = np.random.default_rng(0).standard_normal((batch, height, width, channels), dtype=np.float32)
    x = put(np.float32(config.noise.sigma_max) * noise, where)
    sigma = put(np.full(batch, config.noise.sigma_max, np.float32), where)
    classes = None if labels is None else put(labels, where)

    @jax.jit
    def f(params: nnx.State, constants: nnx.State, x: Array, sigma: Array, labels: Array | None) -> Array:
        return consistency_function(merge_network(config, params, constants), config, labels)(x, sigma)

    return _repeated(lambda: f(model.params, model.constants, x, sigma, classes))


def product_size(device: str) -> int:
    """Of a matrix product that the device does as fast as it can."""
    return 2048 if on_cpu(check_device(device)) else 8192


def make_product(size: int, precision: str, device: str) -> Callable[[int], None]:
    """A function that multiplies two matrices, [size, size], so many times."""
    a, b = _random([(size, size), (size, size)], precision, device)

    @jax.jit
    def product(a: Array, b: Array) -> Array:
        with float32_as(precision):
            return a @ b

    return _repeated(lambda: product(a, b))


def make_convolution(shape: Convolution, batch: int, precision: str, device: str) -> Callable[[int], None]:
    """A function that does a convolution of the network, NHWC, of stride 1, so many times, forward only."""
    kernel = (shape.kernel, shape.kernel, shape.in_channels, shape.out_channels)
    size = (batch, shape.height, shape.height, shape.in_channels)
    x, weight = _random([size, kernel], precision, device)
    layouts = ("NHWC", "HWIO", "NHWC")

    @jax.jit
    def convolve(x: Array, weight: Array) -> Array:
        with float32_as(precision):
            return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=layouts)

    return _repeated(lambda: convolve(x, weight))


def copy_size(device: str) -> int:
    """Bytes of an array that is several times larger than any cache of the device."""
    return 2**28 if on_cpu(check_device(device)) else 2**31


def make_copy(size: int, device: str) -> Callable[[int], None]:
    """A function that copies an array of so many bytes to another one, so many times."""
    source, target = _random([(-(-size // 4),)] * 2, "float32", device)
    # The other sign makes XLA use all cores. A fresh array would cost the CPU several copies, for the system's pages.
    copy = jax.jit(lambda source, target: -source, donate_argnames="target", keep_unused=True)

    def run(times: int) -> None:
        nonlocal target
        for _ in range(times):
            target = copy(source, target)
        target.block_until_ready()

    return run


def peak_memory(device: str) -> tuple[int, str] | None:
    """Bytes held at most on a device, and what that is; None for the CPU, and where JAX does not know."""
    stats = _memory_stats(device)
    return (stats["peak_bytes_in_use"], "of JAX's allocator on one device") if stats else None


def memory_in_use(device: str) -> int | None:
    """Bytes that arrays hold now on a device; None for the CPU, and where JAX does not know."""
    stats = _memory_stats(device)
    return stats["bytes_in_use"] if stats else None


def device_name(device: str) -> str:
    """Of the accelerators; "cpu" for the CPU."""
    mesh = check_device(device)
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind}" if mesh.size > 1 and not on_cpu(mesh) else kind


def _memory_stats(device: str) -> dict[str, int] | None:
    mesh = check_device(device)
    return None if on_cpu(mesh) else mesh.devices.flat[0].memory_stats()


def _random(shapes: list[tuple[int, ...]], precision: str, device: str) -> list[Array]:
    """Normal numbers on the first of the devices."""
    first, dtype = check_device(device).devices.flat[0], PRECISIONS[precision] or jnp.float32
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.device_put(jax.random.normal(k, s, dtype), first) for k, s in zip(keys, shapes, strict=True)]


def _repeated(function: Callable[[], Array]) -> Callable[[int], None]:
    """Calls so many times, and waits for all, one call behind: the device has work meanwhile."""

    def run(times: int) -> None:
        before = function()
        for _ in range(times - 1):
            after = function()
            before.block_until_ready()
            before = after
        before.block_until_ready()

    return run
