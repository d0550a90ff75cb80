"""Memory saved and time spent by `network.checkpoint`: python bench/activation_memory.py [--preset P] [--batch-size N].

For each backend, a training step is measured without and with it: the bytes that the loss keeps for its gradient, the
peak memory of the step, and the median time of alternating steps. In torch the peak is the growth during a step of the
memory of a process of its own, or of a GPU's allocator; in JAX it is the size of the compiled step's intermediate
results.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import click

from ict_backends.training.step_plan import plan_step
from ict_core import Config
from ict_core.settings import build_config, merge, preset_tree

MIB = 2**20
IMAGES = 512


def make_config(preset: str, batch_size: int, checkpoint: bool) -> Config:
    """The settings of a preset at another batch size, with or without activation checkpointing."""
    changes = {"train": {"batch_size": batch_size}, "network": {"checkpoint": checkpoint}}
    return build_config(merge([preset_tree(preset), changes]))


def torch_step(config: Config) -> Callable[[], None]:
    """A function that does one training step on the default device and waits for it."""
    import torch

    from ict_backends.torch.batch import make_batch, to_device
    from ict_backends.torch.device import check_device, tune_process
    from ict_backends.torch.parallel import Processes
    from ict_backends.torch.state import init_state
    from ict_backends.torch.step import train_step

    tune_process("auto")
    device = check_device("auto")
    state = init_state(config, Processes(device))
    images = torch.randint(0, 256, (IMAGES, *config.data.shape), dtype=torch.uint8, device=device)

    def step() -> None:
        plan = plan_step(config, state.step, IMAGES)
        float(train_step(state, config, [make_batch(config, to_device(plan, device), images, None)]).losses.sum())

    return step


def torch_kept(config: Config) -> int:
    """Bytes that the loss keeps for its gradient."""
    import torch

    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch_step(config)()
    return sum(kept.values())


def torch_peak(config: Config) -> int:
    """The most bytes that a step needs beyond those held before; only right in a process of its own."""
    import resource

    import torch

    step = torch_step(config)
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def jax_measures(config: Config) -> tuple[int, int, Callable[[], None]]:
    """Bytes kept for the gradient, bytes of the compiled step's temporary results, and a function that does a step."""
    import jax
    import jax.numpy as jnp

    from ict_backends.jax import batch as jax_batch
    from ict_backends.jax import dispatch as jax_dispatch
    from ict_backends.jax import state as jax_state
    from ict_backends.jax import step as jax_step
    from ict_backends.jax.device import check_device, tune_process

    tune_process("auto")
    mesh = check_device("auto")
    state = jax_state.init_state(config, mesh)
    channels, height, width = config.data.shape
    images = jnp.zeros((IMAGES, height, width, channels), jnp.uint8)
    draws = jax_batch.to_device([plan_step(config, 0, IMAGES)], mesh)
    compiled = jax_dispatch.train_steps.lower(state, config, draws, images, None, mesh).compile()
    batch = jax_batch.make_batch(config, jax.tree.map(lambda a: a[0, 0], draws), images, None)

    def pullback(params: object) -> object:
        network = jax_state.merge_network
        return jax.vjp(lambda p: jax_step.batch_loss(network(config, p, state.constants), config, batch).mean, params)[
            1
        ]

    kept = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(pullback, state.params)))

    def step() -> None:
        nonlocal state
        state, result = compiled(state, draws, images, None)
        result.losses.block_until_ready()

    return kept, compiled.memory_analysis().temp_size_in_bytes, step


def alternate(steps: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each function, timed in turn so that all see the same machine."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 1):
        for step, seconds in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if repeat:  # the first warms up
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def report(backend: str, kept: list[int], peak: list[int], seconds: list[float]) -> None:
    """Print a line per measure: its values without and with checkpointing, and their ratio."""
    rows = (("kept for the gradient, MiB", [k / MIB for k in kept]), ("peak of a step, MiB", [p / MIB for p in peak]))
    for name, (plain, checkpointed) in (*rows, ("step, ms", [1000 * s for s in seconds])):
        click.echo(f"{backend:6s} {name:28s} {plain:10.1f} {checkpointed:10.1f} {checkpointed / plain:8.2f}")


@click.command()
@click.option("--preset", default="cifar10-tiny", show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--repeats", default=5, show_default=True, help="Timed steps of each.")
@click.option("--peak", type=click.Choice(["plain", "checkpointed"]), hidden=True)
def main(preset: str, batch_size: int, repeats: int, peak: str | None) -> None:
    """Print the memory that network.checkpoint saves and the time that it costs, in both backends."""
    if peak is not None:
        click.echo(torch_peak(make_config(preset, batch_size, peak == "checkpointed")))
        return
    configs = [make_config(preset, batch_size, checkpoint) for checkpoint in (False, True)]
    click.echo(f"{preset}, {batch_size} images{'':24s} plain checkpointed    ratio")
    command = [sys.executable, __file__, "--preset", preset, "--batch-size", str(batch_size), "--peak"]
    peaks = [int(subprocess.check_output([*command, name])) for name in ("plain", "checkpointed")]
    report("torch", [torch_kept(c) for c in configs], peaks, alternate([torch_step(c) for c in configs], repeats))
    kept, temporary, steps = zip(*map(jax_measures, configs), strict=True)
    report("jax", list(kept), list(temporary), alternate(list(steps), repeats))


if __name__ == "__main__":
    main()
