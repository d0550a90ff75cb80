"""The training loop, in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from ict_backends.checkpoint import load_newest
from ict_backends.data import Dataset
from ict_backends.interruption import Interruption, StoppedError
from ict_backends.plan import StepPlan, plan_step
from ict_backends.processes import check_split
from ict_backends.progress import warn
from ict_backends.recorder import Recorder
from ict_backends.rundir import RunDir
from ict_backends.torch.device import out_of_memory
from ict_backends.torch.parallel import Processes, joined
from ict_backends.torch.sample import Model
from ict_backends.torch.step import Batch, StepResult, TrainState, init_state, make_batch, train_step
from ict_backends.torch.weights import averaged_network, from_checkpoint, to_checkpoint

from ict_core import Config


def train(config: Config, dataset: Dataset, run: RunDir, *, device: str = "auto", resume: bool = False) -> None:
    """Train to `config.train.total_steps`, leaving metrics, sample pictures and checkpoints in the run's folder.

    Args:
        dataset: images of `config.data.shape`; labels where the network is conditional.
        resume: continue from the newest checkpoint, to the state that an uninterrupted run reaches (bit-equal on
            the CPU, with as many threads).

    Raises:
        StoppedError: Ctrl-C or SIGTERM came, and the state is kept.
        UsageError, CheckpointError, NonFiniteError: in one line, with the last good checkpoint kept.
    """
    with joined(device) as processes, out_of_memory(config), Interruption() as interruption:
        parts = check_split(config.train.batch_size, config.train.micro_batch, processes.world, "processes")
        state = _restore(config, run, processes) if resume else init_state(config, processes)
        load = _loader(config, dataset, processes.device)
        to_host = _to_host(processes)
        stopping = False
        with Recorder(
            run, config, dataset.images, first=state.step, to_host=to_host, writes=processes.rank == 0
        ) as recorder:
            while state.step < config.train.total_steps and not stopping:
                plan = plan_step(config, state.step, len(dataset.images))
                mine = plan.parts(processes.world)[processes.rank]
                result = train_step(state, config, map(load, mine.parts(parts)), parts=parts)
                stopping = processes.any(interruption.number is not None)
                recorder.after(
                    [(state.step - 1, plan, result)],
                    lambda: Model(config, averaged_network(config, state)),
                    lambda: to_checkpoint(state),
                    stopping=stopping,
                )
    if stopping and state.step < config.train.total_steps:
        raise StoppedError.after(state.step, run.path, interruption.number)


def _restore(config: Config, run: RunDir, processes: Processes) -> TrainState:
    folder, checkpoint = load_newest(run, warn=warn)
    return from_checkpoint(config, checkpoint, processes, f"checkpoint {folder}")


def _loader(config: Config, dataset: Dataset, device: torch.device) -> Callable[[StepPlan], Batch]:
    """From the plan of a batch to the batch; the images are held on the device."""
    images = torch.from_numpy(dataset.images).to(device)
    labels = torch.from_numpy(dataset.labels).to(device) if config.network.num_classes else None

    def load(plan: StepPlan) -> Batch:
        indices = torch.from_numpy(plan.indices).to(device)
        return make_batch(config, plan, images[indices], None if labels is None else labels[indices])

    return load


def _to_host(processes: Processes) -> Callable[[Sequence[StepResult]], tuple[np.ndarray, np.ndarray]]:
    def to_host(results: Sequence[StepResult]) -> tuple[np.ndarray, np.ndarray]:
        losses = processes.gather(torch.stack([result.losses for result in results]))
        return losses, torch.stack([result.grad_norm for result in results]).cpu().numpy()

    return to_host
