"""The work that `ict bench` times, in JAX."""

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
    """A training state that can be advanced without end, over images that are on the devices.

    Attributes:
        images: [n, h, w, c] uint8.
        labels: [n] int32, or None.
        parts: number of micro-batches of a step.
        stride: number of steps of one dispatch.
        mesh: the devices that share a step.
        done: number of steps done.
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
        """Number of devices that share a step."""
        return self.mesh.size

    @property
    def devices(self) -> int:
        """Number of replicas with a speed limit of their own: those of the CPU share its cores and count as one."""
        return 1 if on_cpu(self.mesh) else self.mesh.size

    def advance(self, steps: int) -> np.ndarray:
        """Do `steps` more steps, a multiple of the stride, wait for them, and return the losses, [steps, b] float32."""
        step = steps_for(self.mesh, self.parts)
        losses_of_dispatches = []
        for _ in range(steps // self.stride):
            numbers = [(self.done + i) % self.config.train.total_steps for i in range(self.stride)]
            plans = [plan_step(self.config, number, len(self.images)) for number in numbers]
            draws = to_device(plans, self.mesh, self.parts)
            self.state, result = step(self.state, self.config, draws, self.images, self.labels, self.mesh)
            self.done += self.stride
            losses_of_dispatches.append(result.losses)
        jax.block_until_ready(self.state)
        return np.concatenate(losses_of_dispatches)


def make_trainer(config: Config, images: np.ndarray, labels: np.ndarray | None, device: str) -> TimedTrainer:
    """A trainer before its first step, with images and labels on the devices.

    Args:
        images: [n, c, h, w] uint8.
        labels: [n] integers, or None.
        device: name of the devices, as for `check_device`.
    """
    mesh = worthwhile(check_device(device), config)
    state = init_state(config, mesh)
    parts = check_split(config.train.batch_size, config.train.micro_batch, mesh.size, "devices")
    held = put(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), replicated(mesh))
    classes = None if labels is None else put(labels.astype(np.int32), replicated(mesh))
    return TimedTrainer(config, state, held, classes, parts, steps_per_dispatch(config, mesh), mesh)


def make_model(config: Config, arrays: dict[str, np.ndarray], device: str) -> LoadedModel:
    """The model with these weights, by name and in the layouts of checkpoints ([out, in, h, w])."""
    mesh = worthwhile(check_device(device), config)
    params, constants = load_arrays(abstract_network(config)[1:], arrays, mesh, "weights")
    return LoadedModel(config, params, constants, mesh)


def make_forward(model: LoadedModel, batch: int, labels: np.ndarray | None) -> Callable[[int], None]:
    """A function that evaluates the consistency function `times` times and waits for the result.

    Its input is noise [batch, h, w, c] float32 of sigma_max, which is on the devices.

    Args:
        batch: number of images.
        labels: [batch] integers, or None for an unconditional model.
    """
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
    """Side of a square matrix product that saturates the device."""
    return 2048 if on_cpu(check_device(device)) else 8192


def make_product(size: int, precision: str, device: str) -> Callable[[int], None]:
    """A function that multiplies two [size, size] matrices `times` times and waits for the result.

    Args:
        size: side of the matrices.
        precision: a value of `train.precision`.
        device: name of the device, as for `check_device`.
    """
    a, b = _random([(size, size), (size, size)], precision, device)

    @jax.jit
    def product(a: Array, b: Array) -> Array:
        with float32_as(precision):
            return a @ b

    return _repeated(lambda: product(a, b))


def make_convolution(shape: Convolution, batch: int, precision: str, device: str) -> Callable[[int], None]:
    """A function that does a convolution of the network `times` times, forward only, and waits for the result.

    Args:
        shape: kernel size, channels and image size of the convolution, which has stride 1 and is NHWC.
        batch: number of images.
        precision: a value of `train.precision`.
        device: name of the device, as for `check_device`.
    """
    kernel = (shape.kernel, shape.kernel, shape.in_channels, shape.out_channels)
    size = (batch, *shape.size, shape.in_channels)
    x, weight = _random([size, kernel], precision, device)
    layouts = ("NHWC", "HWIO", "NHWC")

    @jax.jit
    def convolve(x: Array, weight: Array) -> Array:
        with float32_as(precision):
            return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=layouts)

    return _repeated(lambda: convolve(x, weight))


def copy_size(device: str) -> int:
    """Size in bytes of an array that is several times larger than any cache of the device."""
    return 2**28 if on_cpu(check_device(device)) else 2**31


def make_copy(size: int, device: str) -> Callable[[int], None]:
    """A function that copies an array of `size` bytes to another one `times` times, and waits for the copies."""
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
    """The most bytes held at once on a device, and in words by what; None on the CPU, and where JAX does not know."""
    stats = _memory_stats(device)
    return (stats["peak_bytes_in_use"], "of JAX's allocator on one device") if stats else None


def memory_in_use(device: str) -> int | None:
    """Number of bytes that arrays hold now on a device; None on the CPU, and where JAX does not know."""
    stats = _memory_stats(device)
    return stats["bytes_in_use"] if stats else None


def device_name(device: str) -> str:
    """Name of the accelerators, with their number if there are several, such as "8 x TPU v4"; "cpu" for the CPU."""
    mesh = check_device(device)
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind}" if mesh.size > 1 and not on_cpu(mesh) else kind


def _memory_stats(device: str) -> dict[str, int] | None:
    mesh = check_device(device)
    return None if on_cpu(mesh) else mesh.devices.flat[0].memory_stats()


def _random(shapes: list[tuple[int, ...]], precision: str, device: str) -> list[Array]:
    """An array of normal numbers for each shape, on the first of the devices."""
    first, dtype = check_device(device).devices.flat[0], PRECISIONS[precision] or jnp.float32
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(shapes))
    return [jax.device_put(jax.random.normal(k, s, dtype), first) for k, s in zip(keys, shapes, strict=True)]


def _repeated(function: Callable[[], Array]) -> Callable[[int], None]:
    """A function that makes `times` calls, and waits for each only after starting the next: the device never idles."""

    def run(times: int) -> None:
        before = function()
        for _ in range(times - 1):
            after = function()
            before.block_until_ready()
            before = after
        before.block_until_ready()

    return run
