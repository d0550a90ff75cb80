"""The training loop, in JAX."""

from __future__ import annotations

import math
from functools import partial

import jax
import numpy as np
from ict_backends.checkpoint import load_checkpoint, save_checkpoint
from ict_backends.data import Dataset
from ict_backends.evaluator import Evaluator
from ict_backends.images import save_grid
from ict_backends.jax.device import check_batch_size, check_device, replicated
from ict_backends.jax.sample import Model
from ict_backends.jax.step import TrainState, init_state, to_device, train_steps
from ict_backends.jax.weights import from_checkpoint, to_checkpoint
from ict_backends.plan import is_due, plan_step
from ict_backends.progress import Progress
from ict_backends.rundir import RunDir
from ict_backends.sampling import preview
from jax.sharding import Mesh

from ict_core import Config

# More steps in one dispatch would delay the log and gain nothing measurable. On the CPU, where a dispatch costs a
# thousandth of a step, XLA runs the convolutions inside a loop about nine times slower than outside of one.
_MOST_STEPS, _MOST_STEPS_ON_CPU = 8, 1


def train(config: Config, dataset: Dataset, run: RunDir, *, device: str = "auto", resume: bool = False) -> None:
    """Train to `config.train.total_steps`, leaving metrics, sample pictures and checkpoints in the run's folder.

    Args:
        dataset: images of `config.data.shape`; labels where the network is conditional.
        resume: continue from the newest checkpoint, to the state that an uninterrupted run reaches (bit-equal on
            the CPU).

    Raises:
        UsageError, CheckpointError, NonFiniteError: in one line, with the last good checkpoint kept.
    """
    mesh = check_device(device)
    check_batch_size(mesh, config.train.batch_size)
    state = _restore(config, run, mesh) if resume else init_state(config, mesh)
    images = jax.device_put(np.ascontiguousarray(dataset.images.transpose(0, 2, 3, 1)), replicated(mesh))
    labels = jax.device_put(dataset.labels.astype(np.int32), replicated(mesh)) if config.network.num_classes else None
    done = int(state.step)
    stride = steps_per_dispatch(config, mesh, done)

    evaluator = Evaluator(run, config, dataset.images, first=done)

    with Progress(run, config, first=done, to_host=np.asarray) as progress:
        while done < config.train.total_steps:
            plans = [plan_step(config, step, len(images)) for step in range(done, done + stride)]
            state, losses = train_steps(state, config, to_device(plans, mesh), images, labels)
            for plan, row in zip(plans, losses, strict=True):
                progress.add(done, plan, row)
                done += 1
            if is_due(done, config.train.checkpoint_every, config.train.total_steps):
                progress.flush()
                save_checkpoint(run, to_checkpoint(state), keep=config.train.keep_checkpoints)
            if is_due(done, config.train.sample_every, config.train.total_steps):
                save_grid(run.samples_file(done), preview(Model(config, state.ema, state.constants, mesh)))
            evaluator.after(
                done, partial(Model, config, state.ema, state.constants, mesh), partial(to_checkpoint, state)
            )


def steps_per_dispatch(config: Config, mesh: Mesh, first: int = 0) -> int:
    """The largest number of steps, up to 8 or on the CPU 1, that divides all intervals, the whole and `first`."""
    train = config.train
    most = _MOST_STEPS_ON_CPU if mesh.devices.flat[0].platform == "cpu" else _MOST_STEPS
    common = math.gcd(
        first, train.total_steps, train.log_every, train.checkpoint_every, train.sample_every, config.eval.every
    )
    return max(n for n in range(1, most + 1) if common % n == 0)


def _restore(config: Config, run: RunDir, mesh: Mesh) -> TrainState:
    folder = run.latest_checkpoint()
    return from_checkpoint(config, load_checkpoint(folder), mesh, f"checkpoint {folder}")
