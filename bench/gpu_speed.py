"""The speed measurements of bench/gpu.py: training steps of the paper's network in every variant, and sampling."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu import ROOT, Report, engine_of
from step_profile import by_kind

from ict_backends.networks.cost import forward_flops, heaviest_convolutions, model_flops
from ict_backends.reports.benchmark import (
    alternate,
    check_images,
    check_losses,
    labels_of,
    random_arrays,
    random_images,
    write_samples,
)
from ict_backends.timing import timed
from ict_core import Config, load_preset
from ict_core.settings import replace

# What the paper's network keeps in bf16 for the gradient of an image, with room to spare: torch was seen to need 0.11.
GIB_AN_IMAGE = 0.13
# Images that it may compute at a time, the most that fit: torch's, and XLA's, whose needs nobody has seen yet.
MICRO_BATCHES = {"torch": (512, 256, 128, 64), "jax": (128, 64)}
_TINY = {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()}


def config_of(report: Report, preset: str, **train: Any) -> Config:
    """The settings of a preset in bf16, with changes of `train`; for a rehearsal, with tiny network and batch."""
    config = replace(load_preset(preset), train={"precision": "bf16", **train})
    if not report.rehearse:
        return config
    tiny = {"batch_size": 8, "micro_batch": min(config.train.micro_batch, 4)}
    return replace(config, network=_TINY, data={"shape": (3, 8, 8)}, train=tiny)


def micro_batch(report: Report, backend: str) -> int:
    """The most images that fit into the GPU's memory when a backend trains the paper's network."""
    if report.rehearse:
        return 4
    import torch

    room = torch.cuda.mem_get_info()[0] / 2**30
    return next((n for n in MICRO_BATCHES[backend] if n * GIB_AN_IMAGE < room), MICRO_BATCHES[backend][-1])


def seconds_a_step(trainer: Any, steps: int, repeats: int) -> list[float]:
    """Seconds per step of each of `repeats` stretches of training, which include the wait for their last step."""
    count = -(-steps // trainer.stride) * trainer.stride
    stretch = {"training": lambda: check_losses(trainer.advance(count), "training")}
    return [seconds / count for seconds in alternate(stretch, repeats)["training"]]


def measure_steps(report: Report, backend: str, config: Config, steps: int = 2, repeats: int = 2) -> dict[str, Any]:
    """Figures of training steps: first call, which includes compilation, time, speed and memory."""
    engine, images = engine_of(report, backend), random_images(config)
    trainer = engine.make_trainer(config, images, labels_of(config, len(images)), report.device)
    return timed_steps(report, engine, config, trainer, steps, repeats)


def timed_steps(
    report: Report, engine: Any, config: Config, trainer: Any, steps: int = 2, repeats: int = 2
) -> dict[str, Any]:
    """Figures of a trainer's steps, as from `measure_steps`."""
    _, first = timed(lambda: trainer.advance(trainer.stride))
    seconds = seconds_a_step(trainer, 1 if report.rehearse else steps, 1 if report.rehearse else repeats)
    middle = statistics.median(seconds)
    memory = engine.peak_memory(report.device)
    return {
        "batch": config.train.batch_size,
        "micro_batch": config.train.micro_batch,
        "precision": config.train.precision,
        "compile": config.train.compile,
        "ms": 1000 * middle,
        "ms_range": [1000 * min(seconds), 1000 * max(seconds)],
        "images_per_second": config.train.batch_size / middle,
        "tflops": model_flops(config) / middle / 1e12,
        "days_of_the_run": config.train.total_steps * middle / 86_400,
        "first_call": first,
        "peak_gib": memory[0] / 2**30 if memory else None,
    }


def limit(report: Report, backend: str, config: Config) -> dict[str, Any]:
    """TFLOP/s of a large matrix product and of the network's heaviest convolutions, and GB/s of a large copy."""
    engine, precision = engine_of(report, backend), config.train.precision
    size = 256 if report.rehearse else engine.product_size(report.device)
    batch = config.train.micro_batch or config.train.batch_size
    runs = {f"product {size}": (engine.make_product(size, precision, report.device), 2.0 * size**3)}
    for shape in heaviest_convolutions(config, 3):
        run = engine.make_convolution(shape, batch, precision, report.device)
        runs[str(shape)] = (run, float(batch * shape.flops))
    rates = {name: operations / _median_seconds(run, report) / 1e12 for name, (run, operations) in runs.items()}
    size = 2**20 if report.rehearse else engine.copy_size(report.device)
    copy = engine.make_copy(size, report.device)
    return {"tflops": rates, "copy_gb_per_second": 2 * size / _median_seconds(copy, report) / 1e9}


def _median_seconds(run: Callable[[int], object], report: Report) -> float:
    times = 1 if report.rehearse else 10
    run(times)
    return statistics.median(alternate({"run": lambda: run(times)}, 3)["run"]) / times


def jax_compile(report: Report) -> None:
    """Have XLA compile the step of the paper's network, for the parts that follow, without running it."""
    config = config_of(report, "cifar10", micro_batch=micro_batch(report, "jax"))
    report.attempt("cifar10, compiled", lambda: {"gib": compile_jax(report, config)})


def compile_jax(report: Report, config: Config) -> float:
    """Compile a training step in JAX, and return the GiB of its intermediate results."""
    from ict_backends.jax.batch import to_device
    from ict_backends.jax.dispatch import train_steps
    from ict_backends.training.step_plan import plan_step

    images = random_images(config)
    trainer = engine_of(report, "jax").make_trainer(config, images, None, report.device)
    draws = to_device([plan_step(config, i, len(images)) for i in range(trainer.stride)], trainer.mesh, trainer.parts)
    compiled = train_steps.lower(trainer.state, config, draws, trainer.images, None, trainer.mesh).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def torch_speed(report: Report) -> None:
    """Measure torch: the limit, a residual block, the variants by their importance, and the plain version."""
    import torch

    settings = {
        "cifar10": config_of(report, "cifar10", micro_batch=micro_batch(report, "torch")),
        "cifar10-small": config_of(report, "cifar10-small"),
    }
    report.attempt("limit", lambda: limit(report, "torch", settings["cifar10"]))
    for name, compiled in (("a block", False), ("a block, compiled", True)):
        report.attempt(name, lambda compiled=compiled: block(report, compiled=compiled))
    for preset, variant in ORDER:
        changes, change = VARIANTS[variant]
        title, config = f"{preset}, {variant}", replace(settings[preset], train=changes)
        steps = 1 if report.rehearse or preset == "cifar10" else 10
        report.attempt(title, lambda c=config, t=title, f=change, s=steps: profiled(report, c, t, f, s))
        if report.device == "cuda":
            torch.cuda.empty_cache()
        if (preset, variant) == ("cifar10-small", "float32"):
            report.attempt("plain, float32", lambda: plain(report, "torch"))


def block(report: Report, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds of a residual block of the paper's network in bf16, forward and backward, and of its first call."""
    import torch

    from ict_backends.networks.layers import BlockSpec, ImageSize
    from ict_backends.torch.layers import ResidualBlock

    b, c, h = (2, 16, 8) if report.rehearse else (128, 256, 32)
    module = ResidualBlock(BlockSpec(c, c, ImageSize(h, h)), 512, taps=(1, 3, 3, 1), dropout=0.3, skip_rescale=True)
    module.to(device=report.device, memory_format=torch.channels_last)
    if compiled:
        module.compile(dynamic=False)
    x = torch.randn(b, h, h, c, device=report.device, dtype=torch.bfloat16).permute(0, 3, 1, 2).requires_grad_()
    embedding = torch.randn(b, 512, device=report.device)
    mask = (torch.rand(b, h, h, c, device=report.device) > 0.3).permute(0, 3, 1, 2)

    def run(times: int) -> None:
        for _ in range(times):
            module(x, embedding, mask).backward(x.detach())
        if report.device == "cuda":
            torch.cuda.synchronize()

    _, first = timed(lambda: run(1))
    return {"ms": 1000 * _median_seconds(run, report), "first_call": first}


def with_graphs(trainer: Any) -> None:
    """Compile a trainer's network for CUDA graphs."""
    trainer.state.params.network.compile(dynamic=False, mode="reduce-overhead")


def as_it_is(trainer: Any) -> None:
    """Leave a trainer unchanged."""


# The settings of a variant, and what is done to its trainer.
VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Any], None]]] = {
    "bf16": ({}, as_it_is),
    "tf32": ({"precision": "tf32"}, as_it_is),
    "float32": ({"precision": "float32"}, as_it_is),
    "bf16, compiled": ({"compile": True}, as_it_is),
    "bf16, CUDA graphs": ({}, with_graphs),
}
ORDER = (
    ("cifar10", "bf16"),
    ("cifar10-small", "bf16"),
    ("cifar10-small", "tf32"),
    ("cifar10-small", "float32"),
    ("cifar10-small", "bf16, compiled"),
    ("cifar10-small", "bf16, CUDA graphs"),
    ("cifar10", "bf16, compiled"),
    ("cifar10", "bf16, CUDA graphs"),
)


def profiled(report: Report, config: Config, name: str, change: Callable[[Any], None], steps: int) -> dict[str, Any]:
    """Measure a variant, report the profile of its steps as a further result, and return its figures."""
    engine, images = engine_of(report, "torch"), random_images(config)
    trainer = engine.make_trainer(config, images, labels_of(config, len(images)), report.device)
    change(trainer)
    values = timed_steps(report, engine, config, trainer, steps)
    report.add(f"{name}: profile", **profile(report, trainer, steps))
    return values


def profile(report: Report, trainer: Any, steps: int) -> dict[str, Any]:
    """Profile steps: milliseconds by kind of kernel, kernels per step, and the host's milliseconds to issue a step."""
    import torch
    from torch.profiler import ProfilerActivity

    start = time.perf_counter()
    result = trainer._step()
    issued = time.perf_counter() - start
    float(result.sum())
    whole = time.perf_counter() - start  # before the profiler, whose hooks slow down whatever follows
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (report.device == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        trainer.advance(steps)
    kernels = [e for e in profiler.events() if str(e.device_type).endswith("CUDA")]
    times = [(e.name, e.time_range.elapsed_us() / 1000 / steps) for e in kernels]
    kinds = by_kind(((name.lower(), milliseconds) for name, milliseconds in times), KINDS)
    heaviest: Counter[str] = Counter()
    for name, milliseconds in times:
        heaviest[name[:90]] += milliseconds
    return {
        "kernels": len(kernels) / steps,
        "host_ms": 1000 * issued,
        "step_ms": 1000 * whole,
        "kinds": {k: round(v, 2) for k, v in kinds.most_common()},
        "heaviest": {k: round(v, 2) for k, v in heaviest.most_common(14)},
    }


# Kind of kernel -> what names of it contain, in small letters, the first that fits.
KINDS = {
    "convolutions, gradient of weights": ("wgrad",),
    "convolutions, gradient of inputs": ("dgrad", "conv2d_grad"),
    "convolutions": ("fprop", "conv", "implicit", "xmma", "sm90_xmma"),
    "attention": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas"),
    "layouts": ("nchwtonhwc", "nhwctonchw", "transpose", "tensortransform"),
    "norms": ("norm", "rowwisemoments", "var_mean"),
    "copies": ("memcpy", "copy", "memset"),
    "optimiser and average": ("foreach", "multi_tensor", "lerp"),
    "pointwise": ("",),
}


def plain(report: Report, backend: str) -> dict[str, Any]:
    """Measure the plain version, bench/plain.py, with a batch that fits into memory in float32."""
    from ict_backends.reports.plain_version import PlainVersion

    config = config_of(report, "cifar10", batch_size=8 if report.rehearse else 128)
    version = PlainVersion(ROOT / "bench" / "plain.py", backend)
    advance = version.make_advance(config, random_images(config), report.device)
    advance(1)
    stretch = {"plain": lambda: check_losses(advance(1), "the plain version")}
    seconds = alternate(stretch, 1 if report.rehearse else 3)["plain"]
    batch = config.train.batch_size
    return {"batch": batch, "images_per_second": batch / statistics.median(seconds)}


def jax_speed(report: Report) -> None:
    """Measure JAX: the limit, both networks, attention by ours and cuDNN's, and training by one step per dispatch."""
    small = config_of(report, "cifar10-small")
    config = config_of(report, "cifar10", micro_batch=micro_batch(report, "jax"))
    report.attempt("limit", lambda: limit(report, "jax", config))
    report.attempt("cifar10-small, bf16", lambda: measure_steps(report, "jax", small, steps=5))
    report.attempt("attention", lambda: attention(report))
    report.attempt("cifar10, bf16", lambda: measure_steps(report, "jax", config, repeats=1))
    one = replace(small, train={"log_every": 1})
    report.attempt("cifar10-small, bf16, 1 step a dispatch", lambda: measure_steps(report, "jax", one, steps=5))


def attention(report: Report) -> dict[str, Any]:
    """Milliseconds of attention with its gradient, by ours and by cuDNN's, at the shapes of two presets."""
    import jax
    import jax.numpy as jnp

    from ict_backends.jax.layers import dot_product_attention

    def cudnn(q: Any, k: Any, v: Any) -> Any:
        heads_last = [a.transpose(0, 2, 1, 3) for a in (q, k, v)]
        return jax.nn.dot_product_attention(*heads_last, implementation="cudnn").transpose(0, 2, 1, 3)

    batch = 2 if report.rehearse else 128
    shapes = {"cifar10": (batch, 1, 256, 256), "imagenet64 at 32": (batch // 2, 6, 1024, 64)}
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        q = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
        for label, function in (("ours", dot_product_attention), ("cudnn", cudnn)):
            step = jax.jit(jax.grad(lambda q, k, v, f=function: f(q, k, v).astype(jnp.float32).sum(), (0, 1, 2)))

            def run(times: int, step: Any = step, q: Any = q) -> None:
                for _ in range(times):
                    last = step(q, q, q)
                jax.block_until_ready(last)

            try:
                found[f"{name}, {label}"] = 1000 * _median_seconds(run, report)
            except Exception as error:
                found[f"{name}, {label}"] = " ".join(str(error).split())[:160]
    return found


def sampling(report: Report) -> None:
    """Measure one-step sampling of 50,000 images from the paper's network into a file."""
    num = 16 if report.rehearse else 50_000
    config, engine = config_of(report, "cifar10"), engine_of(report, "torch")
    model = engine.make_model(config, random_arrays(config), report.device)
    report.attempt("50,000 images", lambda: sample(report, model, num))


def sample(report: Report, model: Any, num: int) -> dict[str, Any]:
    """Sample `num` images into a file, after a batch that compiles, and return seconds and rates."""
    batch = 8 if report.rehearse else 1000
    with tempfile.TemporaryDirectory() as folder:
        write_samples(model, Path(folder) / "warm.npz", batch, batch, None)
        images, seconds = timed(lambda: write_samples(model, Path(folder) / "x.npz", num, batch, None))
    check_images(images)
    rate = num / seconds
    return {
        "num": num,
        "seconds": seconds,
        "images_per_second": rate,
        "tflops": rate * forward_flops(model.config) / 1e12,
    }
