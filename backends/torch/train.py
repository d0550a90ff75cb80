"""The training loop, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from ict_backends.console import warn
from ict_backends.data.dataset import Dataset
from ict_backends.environment import leave
from ict_backends.protocols import OnRecord, ignore
from ict_backends.runs.checkpoint import Checkpoint, load_newest
from ict_backends.runs.folder import RunDir
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.device import float32_as, free_bytes, out_of_memory, peak_bytes, upload
from ict_backends.torch.parallel import Processes, joined
from ict_backends.torch.sample import LoadedModel
from ict_backends.torch.state import TrainState, init_state
from ict_backends.torch.step import StepResult, train_step
from ict_backends.torch.weights import averaged_network, from_checkpoint, to_checkpoint
from ict_backends.training.interruption import Interruption, StoppedError
from ict_backends.training.metrics_log import ToNumpy
from ict_backends.training.prefetch import fits_on_device, prefetched
from ict_backends.training.recorder import Recorder
from ict_backends.training.split import describe_shortage
from ict_backends.training.step_plan import StepPlan
from ict_core import Batch, Config


def train(
    config: Config,
    dataset: Dataset,
    run: RunDir,
    *,
    processes: Processes | None = None,
    device: str = "auto",
    resume: bool = False,
    on_record: OnRecord = ignore,
) -> None:
    """Train to `config.train.total_steps`, leaving metrics, sample pictures and checkpoints in the run's folder.

    Args:
        dataset: images [n, c, h, w] uint8 with [c, h, w] = `config.data.shape`, and labels [n] if the network is
            conditional.
        run: the run's folder.
        processes: the processes that `joined` yielded; by default they are joined here, on `device`.
        device: name of the device, as for `check_device`.
        resume: continue from the newest checkpoint, to the state that an uninterrupted run reaches (bit-equal on
            the CPU, with as many threads).
        on_record: called with each record of the log, in the process that writes; what it raises ends the training.

    Raises:
        StoppedError: a Ctrl-C or SIGTERM arrived; the state is saved.
        UsageError, CheckpointError, NonFiniteError: with a message of one line; the last good checkpoint is kept.
    """
    if processes is None:
        with joined(device) as those:
            return train(config, dataset, run, processes=those, resume=resume, on_record=on_record)
    shortage = describe_shortage(config.train.batch_size, config.train.micro_batch)
    with out_of_memory(shortage), Interruption() as interruption:
        parts = processes.check_split(config)
        state = _restore(config, run, processes) if resume else init_state(config, processes)
        feed, to_numpy = _feed(config, dataset, state.step, processes, parts), _to_numpy(processes)

        def model() -> LoadedModel:
            return LoadedModel(config, averaged_network(config, state))

        def checkpoint() -> Checkpoint:
            return to_checkpoint(state)

        with Recorder(
            run,
            config,
            dataset.images,
            first=state.step,
            to_numpy=to_numpy,
            peak_memory=partial(peak_bytes, processes.device),
            writes=processes.rank == 0,
            stopping=lambda: processes.world == 1 and interruption.number is not None,
            on_record=on_record,
        ) as recorder:
            interruption.is_writing = recorder.is_writing
            stopping = recorder.catch_up(model, checkpoint)
            for plan, batches in feed:
                if stopping:
                    break
                stage = config.in_stage(plan.n)
                with float32_as(stage.train.precision):
                    result = train_step(
                        state,
                        stage,
                        batches,
                        parts=parts,
                        teacher_decay=plan.teacher_decay,
                        average_decays=plan.average_decays,
                        learning_rate=plan.learning_rate,
                    )
                stopping = processes.agree(interruption.number is not None)
                stopping = recorder.after([(state.step - 1, plan, result)], model, checkpoint, stopping=stopping)
        leave(processes.part)
    if recorder.cut_short or (stopping and state.step < config.train.total_steps):
        raise StoppedError.after(state.step, run.path, interruption.number)


def _restore(config: Config, run: RunDir, processes: Processes) -> TrainState:
    folder, checkpoint = load_newest(run, warn=warn, writes=processes.rank == 0)
    return from_checkpoint(config, checkpoint, processes, f"checkpoint {folder}")


def _feed(
    config: Config, dataset: Dataset, first: int, processes: Processes, parts: int
) -> Iterator[tuple[StepPlan, Iterator[Batch]]]:
    """The plan of each step, and this process's part of the step as batches [b / world / parts, c, h, w]."""
    device = processes.device
    dataset_labels = dataset.labels if config.network.num_classes else None
    held = fits_on_device(config, dataset.images, free_bytes(device))
    # Read-only arrays, such as maps of files, are copied: torch would warn of them.
    images = torch.from_numpy(np.require(dataset.images, requirements="W")).to(device) if held else None
    labels = None if dataset_labels is None or not held else torch.from_numpy(dataset_labels).to(device)

    def mine(plan: StepPlan) -> StepPlan:
        return plan.parts(processes.world)[processes.rank]

    for (plan,), gathered in prefetched(config, dataset.images, first, mine=mine, gather=not held):
        own = mine(plan)
        if images is not None:
            draw, source, classes = to_device(own, device), images, labels
        else:  # the gathered rows are already the batch
            assert gathered is not None
            draw = to_device(own._replace(indices=np.arange(len(gathered))), device)
            source = upload(gathered, device)
            classes = None if dataset_labels is None else upload(dataset_labels[own.indices], device)
        yield plan, (make_batch(config, part, source, classes) for part in draw.parts(parts))


def _to_numpy(processes: Processes) -> ToNumpy:
    def to_numpy(results: Sequence[StepResult]) -> tuple[np.ndarray, np.ndarray]:
        losses = processes.gather(torch.stack([result.losses for result in results]))
        return losses, torch.stack([result.grad_norm for result in results]).cpu().numpy()

    return to_numpy
