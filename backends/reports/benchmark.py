"""Speed measurements for any backend: the stretches of work that are timed in turn, their figures, table and record.

The fraction of the limit is the rate of a training step, in operations a second, divided by the highest rate that a
large matrix product or one of the network's own three heaviest convolutions reaches in the same run, precision and
batch. The operations of a step are those of four forward passes: the teacher's, the student's, and the gradient, which
costs as much as two. Operations that activation checkpointing repeats do not count.

The fraction of the roofline is the least time of a step (`ict_backends.networks.roofline`) divided by the time that it
takes. The least time assumes arithmetic at the limit, and memory at the rate of a large copy in the same run.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ict_backends.environment import process_memory
from ict_backends.errors import UserError
from ict_backends.images import to_uint8
from ict_backends.networks.cost import forward_flops, heaviest_convolutions, model_flops
from ict_backends.networks.families import network_layers
from ict_backends.networks.layers import Kind
from ict_backends.networks.roofline import least_seconds, operations, shares
from ict_backends.protocols import Backend, Model, Repeat, Trainer
from ict_backends.reports.host import describe_commit, describe_machine, describe_versions
from ict_backends.reports.plain_version import PlainVersion
from ict_backends.sampling.batches import sample_batches
from ict_backends.sampling.files import draw_into, open_sink
from ict_backends.timing import timed, times_of_stretch
from ict_backends.training.split import describe_shortage
from ict_core import Config
from ict_core.settings import replace

_DATA_IMAGES = 512
# The least difference, of 255, between the darkest and the brightest pixel of samples from random weights.
_CONTRAST = 8


class BenchRequest(NamedTuple):
    """The measurements to make.

    Attributes:
        config: the settings whose training and sampling is measured.
        steps: training steps in a stretch; rounded up to a multiple of the trainer's stride.
        repeats: how often each stretch is timed.
        images: images drawn in a stretch of sampling.
        sample_batch: images sampled at a time.
        product: side of the square matrices that are multiplied; None for 2048 on the CPU and 8192 on a GPU.
        copy_bytes: size of the array that is copied; None for 256 MiB on the CPU and 2 GiB on a GPU.
        device: a device's name as `check_device` takes it.
    """

    config: Config
    steps: int
    repeats: int
    images: int
    sample_batch: int
    product: int | None = None
    copy_bytes: int | None = None
    device: str = "auto"


class Spread(NamedTuple):
    """Median, smallest and largest of repeated measurements."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """The median, smallest and largest of some values."""
    return Spread(statistics.median(values), min(values), max(values))


def alternate(
    stretches: Mapping[str, Callable[[], object]], repeats: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time stretches of work in turn, so that all see the same machine.

    Args:
        stretches: functions by name; each returns only when the work that it starts is done.
        repeats: how often to go through all of them.
        clock: returns the time in seconds.

    Returns:
        For each name, the seconds of each repeat.
    """
    seconds: dict[str, list[float]] = {name: [] for name in stretches}
    for _ in range(repeats):
        for name, stretch in stretches.items():
            start = clock()
            stretch()
            seconds[name].append(clock() - start)
    return seconds


def random_arrays(config: Config) -> dict[str, np.ndarray]:
    """Random float32 weights by name, the same for every backend, with which no branch of the network gives zeros.

    The output of a fresh network is zero, which would hide a fault; and a GPU needs less power for zeros than for
    other numbers.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for layer in network_layers(config):
        for leaf, shape in layer.arrays.items():
            array = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
            if layer.kind is Kind.NORM and leaf == "weight":
                array = np.ones(shape, np.float32)
            elif len(shape) == 1:
                array *= np.float32(0.1)
            arrays[layer.array_name(leaf)] = array
    return arrays


def random_images(config: Config, seed: int = 0) -> np.ndarray:
    """Random images, [n, c, h, w] uint8; n is the training batch, or 512 if that is more."""
    count = max(_DATA_IMAGES, config.train.batch_size)
    return np.random.default_rng(seed).integers(0, 256, (count, *config.data.shape), dtype=np.uint8)


def labels_of(config: Config, count: int) -> np.ndarray | None:
    """All classes in turn, [count] integers; None for an unconditional network."""
    classes = config.network.num_classes
    return np.arange(count) % classes if classes else None


def check_losses(losses: np.ndarray, what: str) -> float:
    """The mean of losses. Raises UserError, beginning with `what`, if one is not finite."""
    if not np.isfinite(losses).all():
        raise UserError(f"{what}: {np.count_nonzero(~np.isfinite(losses))} of {losses.size} losses are not finite")
    return float(np.mean(losses))


def check_images(images: np.ndarray) -> None:
    """Raise UserError if samples, [n, c, h, w] uint8, are a uniform grey or all the same image.

    A network of zeros turns noise into such a grey.
    """
    least, most = int(images.min()), int(images.max())
    if most - least < _CONTRAST:
        raise UserError(f"sampling: all pixels of {len(images)} images are {least}..{most}; the output is lost")
    if len(images) > 1 and (images == images[:1]).all():
        raise UserError(f"sampling: all {len(images)} images are the same; the noise is lost")


class Stretch(NamedTuple):
    """A piece of work that is timed as a whole.

    Attributes:
        run: does the work, and waits until it is done.
        amount: how much of what is counted it does: training steps, operations, bytes or images.
    """

    run: Callable[[], object]
    amount: float


class _Last:
    """Results of the latest stretches, checked when all are done: the mean loss, and samples, [n, c, h, w] uint8."""

    loss: float = math.nan
    samples: np.ndarray = np.empty(0)


class _Started(NamedTuple):
    """Stretches by name, and the seconds that the first calls took, compilation included."""

    stretches: dict[str, Stretch]
    first_seconds: dict[str, float]


def measure(
    engine: Backend[Any, Any],
    request: BenchRequest,
    *,
    plain: PlainVersion | None = None,
    plain_batch: int | None = None,
) -> dict[str, Any]:
    """Measure training, sampling and the limits of the device in turn.

    Args:
        engine: a backend, from `load_backend`.
        plain: another version of the training step to compare with.
        plain_batch: images in a step of the plain version; by default as many as in one of ours.

    Returns:
        All figures by name, in seconds, bytes, images and operations where a name does not say otherwise; each
        `Spread` is over the repeats.

    Raises:
        UserError: a loss is not finite, or the samples are a uniform grey or all the same image.
        OutOfMemoryError: the work does not fit into memory; the message says which setting to change.
    """
    config, last = request.config, _Last()
    images, plain_batch = random_images(config), plain_batch or config.train.batch_size
    with engine.out_of_memory(describe_shortage(config.train.batch_size, config.train.micro_batch)):
        labels = labels_of(config, len(images))
        trainer = engine.make_trainer(config, images, labels, request.device)
        training, first = _start_training(trainer, request, last)
    # The peak memory of training is read now, before the other stretches add to it.
    size, what = engine.peak_memory(request.device) or (process_memory() or 0, "resident set of the process")
    limits, copy = _limits(engine, request, trainer.devices), _copy(engine, request)
    with tempfile.TemporaryDirectory(prefix="ict-bench-") as folder, contextlib.ExitStack() as stack:
        sampling = _start_sampling(engine, request, Path(folder), last)
        others = _Started({}, {})
        if plain is not None:
            others = _start_plain(engine, request, plain, images, plain_batch, int(training.amount), stack)
        stretches = {"training": training, **limits, "copy": copy, **sampling.stretches, **others.stretches}
        with engine.out_of_memory("all stretches together do not fit into memory"):
            seconds = alternate({name: stretch.run for name, stretch in stretches.items()}, request.repeats)
    check_images(last.samples)
    rates = {name: [stretch.amount / s for s in seconds[name]] for name, stretch in stretches.items()}
    return {
        "steps_per_stretch": int(training.amount),
        "replicas": trainer.replicas,
        "devices": trainer.devices,
        "loss": last.loss,
        **_training_figures(config, trainer.devices, {name: rates[name] for name in limits}, rates),
        "sampling_images_per_second": spread(rates["sampling"]),
        "forward_images_per_second": spread(rates["forward"]),
        "plain": None if plain is None else _plain_figures(rates, plain_batch, config.train.batch_size),
        "memory": {"peak_bytes": size, "what": what},
        "first_seconds": first | sampling.first_seconds | others.first_seconds,
        "seconds": seconds,
    }


def _start_training(trainer: Trainer, request: BenchRequest, last: _Last) -> tuple[Stretch, dict[str, float]]:
    """A stretch of training steps, which is run once here, and the seconds of the very first steps, by name."""
    steps = -(-request.steps // trainer.stride) * trainer.stride

    def run() -> None:
        last.loss = check_losses(trainer.advance(steps), "training")

    losses, seconds = timed(lambda: trainer.advance(trainer.stride))
    check_losses(losses, "training")
    run()
    return Stretch(run, steps), {"training": seconds}


def _repeated(run: Repeat, amount: float) -> Stretch:
    """A stretch that repeats an operation for about a quarter of a second; `amount` is that of one repetition."""
    times = times_of_stretch(run)
    return Stretch(lambda: run(times), times * amount)


def _limits(engine: Backend[Any, Any], request: BenchRequest, devices: int) -> dict[str, Stretch]:
    """A stretch, counted in operations, for each candidate for the limit: a matrix product and three convolutions."""
    config, precision = request.config, request.config.train.precision
    size = request.product or engine.product_size(request.device)
    batch = config.train.micro_batch or config.train.batch_size // devices
    product = engine.make_product(size, precision, request.device)
    candidates = {f"matrix product, {size}x{size}": (product, 2.0 * size**3)}
    for shape in heaviest_convolutions(config, 3):
        convolution = engine.make_convolution(shape, batch, precision, request.device)
        candidates[str(shape)] = (convolution, float(batch * shape.flops))
    return {name: _repeated(run, flops) for name, (run, flops) in candidates.items()}


def _copy(engine: Backend[Any, Any], request: BenchRequest) -> Stretch:
    """A stretch of large copies, counted in bytes read and written."""
    size = request.copy_bytes or engine.copy_size(request.device)
    return _repeated(engine.make_copy(size, request.device), 2.0 * size)


def _start_sampling(engine: Backend[Any, Any], request: BenchRequest, folder: Path, last: _Last) -> _Started:
    """Stretches of sampling into a file, and of the network only, on noise that is on the device already."""
    config, labels = request.config, labels_of(request.config, request.images)
    model = engine.make_model(config, random_arrays(config), request.device)
    batch = min(request.images, request.sample_batch)
    forward = engine.make_forward(model, batch, None if labels is None else labels[:batch])

    def sample() -> None:
        last.samples = write_samples(model, folder / "x.npz", request.images, request.sample_batch, labels)

    _, seconds = timed(sample)
    check_images(last.samples)
    stretches = {"sampling": Stretch(sample, request.images), "forward": _repeated(forward, batch)}
    return _Started(stretches, {"sampling": seconds})


def _start_plain(
    engine: Backend[Any, Any],
    request: BenchRequest,
    plain: PlainVersion,
    images: np.ndarray,
    batch: int,
    steps: int,
    stack: contextlib.ExitStack,
) -> _Started:
    """A stretch of training steps of the plain version, on the CPU in a process of its own."""
    config = replace(request.config, train={"batch_size": batch, "micro_batch": 0})
    shortage = f"{batch} images a step of the plain version do not fit into memory: try --plain-batch"
    device = request.device
    with engine.out_of_memory(shortage):
        if engine.device_name(device) == "cpu":
            advance = stack.enter_context(plain.in_own_process(config, images, device))
        else:  # two processes would have to share the GPU's memory
            advance = plain.make_advance(config, images, device)

    def train(steps: int) -> None:
        with engine.out_of_memory(shortage):
            check_losses(advance(steps), "the plain version")

    _, seconds = timed(lambda: train(1))
    train(1)
    return _Started({"plain": Stretch(lambda: train(steps), steps)}, {"plain": seconds})


def _training_figures(
    config: Config, devices: int, limits: Mapping[str, list[float]], rates: Mapping[str, list[float]]
) -> dict[str, Any]:
    """The figures of training and of its fraction of the device's limits.

    Args:
        limits: for each candidate for the limit, operations a second in each repeat.
        rates: for each stretch, amount a second in each repeat.
    """
    batch, step = config.train.batch_size, [1 / rate for rate in rates["training"]]
    achieved = [model_flops(config) / s for s in step]
    best = max(limits, key=lambda name: statistics.median(limits[name]))
    fractions = [a / (devices * b) for a, b in zip(achieved, limits[best], strict=True)]
    return {
        "forward_flops_per_image": forward_flops(config),
        "step_flops": model_flops(config),
        "forward_passes_per_step": 3 + config.curriculum.has_teacher,
        "ms_per_step": spread([1000 * s for s in step]),
        "images_per_second": spread([batch / s for s in step]),
        "flops_per_second": spread(achieved),
        "limit": {"best": best, "flops_per_second": {name: spread(values) for name, values in limits.items()}},
        "fraction_of_limit": spread(fractions),
        **_roofline_figures(config, devices, step, limits[best], rates["copy"]),
    }


def _plain_figures(rates: Mapping[str, list[float]], plain_batch: int, batch: int) -> dict[str, Any]:
    """The figures of the plain version; "ratio" is its time per image divided by ours."""
    plain, step = ([1 / rate for rate in rates[name]] for name in ("plain", "training"))
    faster = [p / plain_batch * batch / s for p, s in zip(plain, step, strict=True)]
    return {
        "batch_size": plain_batch,
        "ms_per_step": spread([1000 * p for p in plain]),
        "images_per_second": spread([plain_batch / p for p in plain]),
        "ratio": spread(faster),
    }


def _roofline_figures(
    config: Config, devices: int, step: Sequence[float], product: Sequence[float], memory: Sequence[float]
) -> dict[str, Any]:
    """The least time of a step, as a whole and by kind of operation, and its fraction of the time taken.

    Args:
        step: seconds of a training step, in each repeat.
        product: operations a second at the limit, in each repeat.
        memory: bytes a second of the copy, in each repeat.
    """
    work = operations(config, devices)
    least = [least_seconds(work, *pair) for pair in zip(product, memory, strict=True)]
    kinds = shares(work, statistics.median(product), statistics.median(memory))
    whole = sum(kind.seconds for kind in kinds)
    rows = [
        {
            "kind": kind.kind,
            "ms": 1000 * kind.seconds,
            "share": kind.seconds / whole,
            "bound_by_memory": kind.of_memory / kind.seconds,
        }
        for kind in kinds
    ]
    roofline = {"bytes_per_second": spread(memory), "ms_per_step": spread([1000 * s for s in least])}
    fractions = [a / b for a, b in zip(least, step, strict=True)]
    return {"roofline": roofline | {"kinds": rows}, "fraction_of_roofline": spread(fractions)}


def write_samples(model: Model, out: Path, num: int, batch: int, labels: np.ndarray | None) -> np.ndarray:
    """Write one-step samples to an .npz as `ict sample` does, from noise made on the host, and return them.

    Returns:
        [num, c, h, w] uint8.
    """
    out.unlink(missing_ok=True)  # it would be recognised as finished
    sink, seen = open_sink(out, num, {"num": num}), list[np.ndarray]()
    assert sink is not None

    def draw(indices: Sequence[int]) -> Any:
        sigmas = [model.config.noise.sigma_max]
        for images in sample_batches(model, indices, sigmas=sigmas, seed=0, labels=labels, batch=batch):
            seen.append(to_uint8(images))
            yield seen[-1]

    draw_into(sink, draw, labels, batch=batch)
    return np.concatenate(seen)


def describe_run(request: BenchRequest, names: Mapping[str, str | None], command: str) -> dict[str, Any]:
    """The facts about a run that are recorded with its figures.

    Args:
        names: the backend, the preset and the plain version's file, by the keys that they have in the record.
        command: the command line that repeats the run.
    """
    config = request.config
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "git": describe_commit(Path(__file__).resolve().parent),
        "machine": describe_machine(),
        "versions": describe_versions(),
        **names,
        "precision": config.train.precision,
        "batch_size": config.train.batch_size,
        "micro_batch": config.train.micro_batch,
        "repeats": request.repeats,
        "sampled_images": request.images,
        "sample_batch_size": request.sample_batch,
        "settings": config.flat(),
    }


def to_json(value: Any) -> Any:
    """Convert figures to values that `json` can write, each `Spread` to an object."""
    if isinstance(value, Spread):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def describe_figures(figures: Mapping[str, Any]) -> str:
    """The figures from `measure` as a text table with median, smallest and largest, and further lines."""
    rows = [["", "median", "min", "max"]]

    def row(name: str, values: Spread, scale: float = 1.0) -> None:
        rows.append([name, *(_number(scale * v) for v in values)])

    row("training, ms a step", figures["ms_per_step"])
    row("training, images/s", figures["images_per_second"])
    row("training, GFLOP/s", figures["flops_per_second"], 1e-9)
    for name, values in figures["limit"]["flops_per_second"].items():
        row(f"{name}, GFLOP/s", values, 1e-9)
    row("fraction of the best of these", figures["fraction_of_limit"])
    row("copy, GB/s read and written", figures["roofline"]["bytes_per_second"], 1e-9)
    row("a step at least, ms", figures["roofline"]["ms_per_step"])
    row("fraction of the roofline", figures["fraction_of_roofline"])
    row("sampling to a file, images/s", figures["sampling_images_per_second"])
    row("the network alone, images/s", figures["forward_images_per_second"])
    if figures["plain"]:
        row(f"plain, ms a step of {figures['plain']['batch_size']}", figures["plain"]["ms_per_step"])
        row("plain's time over ours, an image", figures["plain"]["ratio"])
    width = max(len(name) for name, *_ in rows)
    shared = f", shared by {figures['replicas']} devices" if figures["replicas"] > 1 else ""
    lines = [" ".join([name.ljust(width), *(f"{value:>10s}" for value in values)]) for name, *values in rows]
    memory = figures["memory"]
    first = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures["first_seconds"].items())
    return "\n".join(
        [
            *lines,
            f"a step: {_number(figures['step_flops'] / 1e9)} GFLOP, as {figures['forward_passes_per_step']} forward "
            f"passes an image{shared}",
            f"loss: {figures['loss']:.4g}",
            f"peak memory of training: {memory['peak_bytes'] / 2**20:,.0f} MiB, {memory['what']}",
            f"first calls, compilation included: {first}",
            "",
            *_describe_kinds(figures["roofline"]["kinds"]),
        ]
    )


def _describe_kinds(kinds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table of a step's least time, a row for each kind of operation."""
    rows = [("a step at least, by kind", "ms", "share", "bound by memory")]
    rows += [(k["kind"], _number(k["ms"]), f"{k['share']:.2f}", f"{k['bound_by_memory']:.2f}") for k in kinds]
    width = max(len(name) for name, *_ in rows)
    return [f"{name.ljust(width)} {ms:>10s} {share:>10s} {memory:>16s}" for name, ms, share, memory in rows]


def _number(value: float) -> str:
    """A number with at least three digits, such as "1,234" or "0.567"."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}"
