"""The training loop, in torch."""

from __future__ import annotations

import numpy as np
import torch
from ict_backends.checkpoint import load_checkpoint, save_checkpoint
from ict_backends.data import Dataset
from ict_backends.evaluator import Evaluator
from ict_backends.images import save_grid
from ict_backends.plan import is_due, plan_step
from ict_backends.progress import Progress
from ict_backends.rundir import RunDir
from ict_backends.sampling import preview
from ict_backends.torch.device import check_device
from ict_backends.torch.sample import Model
from ict_backends.torch.step import TrainState, init_state, make_batch, train_step
from ict_backends.torch.weights import from_checkpoint, to_checkpoint

from ict_core import Config


def train(config: Config, dataset: Dataset, run: RunDir, *, device: str = "auto", resume: bool = False) -> None:
    """Train to `config.train.total_steps`, leaving metrics, sample pictures and checkpoints in the run's folder.

    Args:
        dataset: images of `config.data.shape`; labels where the network is conditional.
        resume: continue from the newest checkpoint, to the state that an uninterrupted run reaches (bit-equal on
            the CPU, with as many threads).

    Raises:
        UsageError, CheckpointError, NonFiniteError: in one line, with the last good checkpoint kept.
    """
    where = check_device(device)
    state = _restore(config, run, where) if resume else init_state(config, where)
    # Of a large set they are a read-only map of a file, which torch does not take.
    images = torch.from_numpy(np.require(dataset.images, requirements="W")).to(where)
    labels = torch.from_numpy(dataset.labels).to(where) if config.network.num_classes else None

    evaluator = Evaluator(run, config, dataset.images, first=state.step)

    with Progress(run, config, first=state.step, to_host=lambda losses: losses.cpu().numpy()) as progress:
        while state.step < config.train.total_steps:
            plan = plan_step(config, state.step, len(images))
            indices = torch.from_numpy(plan.indices).to(where)
            chosen = images[indices], None if labels is None else labels[indices]
            losses = train_step(state, config, make_batch(config, plan, *chosen))
            progress.add(state.step - 1, plan, losses)
            if is_due(state.step, config.train.checkpoint_every, config.train.total_steps):
                progress.flush()
                save_checkpoint(run, to_checkpoint(state), keep=config.train.keep_checkpoints)
            if is_due(state.step, config.train.sample_every, config.train.total_steps):
                save_grid(run.samples_file(state.step), preview(Model(config, state.ema)))
            evaluator.after(state.step, lambda: Model(config, state.ema), lambda: to_checkpoint(state))


def _restore(config: Config, run: RunDir, device: torch.device) -> TrainState:
    folder = run.latest_checkpoint()
    return from_checkpoint(config, load_checkpoint(folder), device, f"checkpoint {folder}")
