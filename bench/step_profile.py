"""The time of a training step by kind of operation: python bench/step_profile.py [--backend B] [--preset P].

The kinds follow from the names of operations, as torch's profiler or XLA gives them. Everything runs on one thread,
where the times of operations add up. Further settings are given by --set A.B=VALUE.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ict_backends import load_backend
from ict_backends.reports.benchmark import labels_of, random_images
from ict_core import Config
from ict_core.settings import build_config, merge, parse_assignment, preset_tree

# Kind of operation -> what names of it contain, the first that fits.
TORCH = {
    "convolutions, forward": ("mkldnn_convolution", "aten::_convolution", "cudnn_convolution"),
    "convolutions, gradient": ("convolution_backward",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "attention"),
    "group norm": ("group_norm",),
    "silu": ("silu",),
    "optimiser and average": ("Optimizer", "lerp", "addcmul", "addcdiv", "linalg_vector_norm"),
    "noise and masks": ("normal_", "uniform", "random", "aten::ge"),
    "sums, products, copies": ("aten::",),
}
JAX = {
    "convolutions, gradient": ("transpose(jvp())/conv_general_dilated",),
    "convolutions, forward": ("conv_general_dilated",),
    "matrix products": ("dot_general",),
    "group norm": ("group_normalize", "rsqrt", "reduce_sum"),
    "silu": ("silu", "logistic"),
    "noise and masks": ("threefry", "random", "shift_right", "erf_inv"),
    "sums, products, copies": ("jit(train_steps)", "copy", "transpose"),
}


def by_kind(times: Iterable[tuple[str, float]], kinds: dict[str, tuple[str, ...]]) -> Counter[str]:
    """Sum up the milliseconds of operations, given with their names, by kind.

    Args:
        times: name and milliseconds of each operation.
        kinds: for each kind, parts of names; an operation is of the first kind that has a part of its name.
    """
    found: Counter[str] = Counter()
    for name, milliseconds in times:
        found[next((k for k, parts in kinds.items() if any(p in name for p in parts)), "all else")] += milliseconds
    return found


def torch_times(trainer: Any, steps: int) -> list[tuple[str, float]]:
    """Name and milliseconds, on the CPU, of each operation of `steps` steps, without the operations that it calls."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.advance(steps)
    return [(event.key, event.self_cpu_time_total / 1000) for event in profiler.key_averages()]


def jax_times(trainer: Any, steps: int) -> list[tuple[str, float]]:
    """Name and milliseconds of each run of an XLA kernel; the name is that of the kernel's last operation."""
    import jax

    from ict_backends.jax.batch import to_device
    from ict_backends.jax.dispatch import train_steps
    from ict_backends.training.step_plan import plan_step

    config, images = trainer.config, trainer.images
    draws = to_device([plan_step(config, 0, len(images))], trainer.mesh)
    compiled = train_steps.lower(trainer.state, config, draws, images, trainer.labels, trainer.mesh).compile()
    named = dict(re.findall(r'%(\S+) = .*metadata=\{op_name="([^"]*)"', compiled.as_text()))
    kernels = set(re.findall(r"%(\S+) = ", compiled.as_text()))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            trainer.advance(steps)
        (trace,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    return [(named.get(e["name"], e["name"]), e["dur"] / 1000) for e in events if e.get("name") in kernels]


def make_config(preset: str, assignments: tuple[str, ...]) -> Config:
    """The settings of a preset, with changes such as "train.batch_size=8"."""
    return build_config(merge([preset_tree(preset), *map(parse_assignment, assignments)]))


@click.command()
@click.option("--backend", default="torch", show_default=True)
@click.option("--preset", default="cifar10-tiny", show_default=True)
@click.option("--set", "assignments", multiple=True, metavar="A.B=VALUE")
@click.option("--steps", default=3, show_default=True)
def main(backend: str, preset: str, assignments: tuple[str, ...], steps: int) -> None:
    """Print the time of each kind of operation, and its share."""
    config = make_config(preset, assignments)
    images = random_images(config)
    device = {"torch": "cpu", "jax": "cpu:0"}[backend]  # one of the cores, which are devices of JAX
    engine = load_backend(backend)
    engine.tune_process(device)
    trainer = engine.make_trainer(config, images, labels_of(config, len(images)), device)
    trainer.advance(2)
    times, kinds = {"torch": (torch_times, TORCH), "jax": (jax_times, JAX)}[backend]
    found = by_kind(times(trainer, steps), kinds)
    total = sum(found.values())
    for kind, milliseconds in found.most_common():
        click.echo(f"{kind:26s} {milliseconds / steps:8.1f} ms a step {milliseconds / total:6.1%}")
    click.echo(f"{'in all':26s} {total / steps:8.1f} ms a step")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
