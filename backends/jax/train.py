"""The training loop, in JAX."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ict_backends.console import say, warn
from ict_backends.data.dataset import Dataset
from ict_backends.environment import leave
from ict_backends.jax.batch import to_device
from ict_backends.jax.device import free_bytes, out_of_memory, peak_bytes, put, replicated
from ict_backends.jax.dispatch import steps_for, steps_per_dispatch
from ict_backends.jax.parallel import Processes, joined
from ict_backends.jax.sample import LoadedModel
from ict_backends.jax.state import TrainState, init_state
from ict_backends.jax.step import StepResult
from ict_backends.jax.weights import averaged_network, from_checkpoint, to_checkpoint
from ict_backends.protocols import OnRecord, ignore
from ict_backends.runs.checkpoint import load_newest
from ict_backends.runs.folder import RunDir
from ict_backends.training.interruption import Interruption, StoppedError
from ict_backends.training.prefetch import fits_on_device, prefetched
from ict_backends.training.recorder import Recorder
from ict_backends.training.split import describe_shortage
from ict_backends.training.step_plan import StepPlan
from ict_core import Config

Advance = Callable[[TrainState, Sequence[StepPlan], np.ndarray | None], tuple[TrainState, StepResult]]


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
            the CPU).
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
        parts, processes = processes.check_split(config), processes.for_run(config)
        mesh = processes.mesh
        state = _restore(config, run, processes) if resume else init_state(config, mesh)
        done = int(state.step)
        stride = steps_per_dispatch(config, mesh, done)
        held = fits_on_device(config, dataset.images, free_bytes(mesh))
        advance = report_first_call(_advance(config, dataset, mesh, parts, held=held), processes)
        feed = prefetched(config, dataset.images, done, stride=stride, gather=not held)
        with Recorder(
            run,
            config,
            dataset.images,
            first=done,
            to_numpy=_to_numpy,
            peak_memory=partial(peak_bytes, mesh),
            writes=processes.rank == 0,
            stopping=lambda: processes.world == 1 and interruption.number is not None,
            on_record=on_record,
        ) as recorder:
            interruption.is_writing = recorder.is_writing
            stopping = recorder.catch_up(
                partial(_model, config, state, processes), partial(to_checkpoint, config, state, mesh)
            )
            for plans, gathered in feed:
                if stopping:
                    break
                state, results = advance(state, plans, gathered)
                done += stride
                stopping = processes.agree(interruption.number is not None)
                stopping = recorder.after(
                    [(done - stride + i, plan, _row(results, i)) for i, plan in enumerate(plans)],
                    partial(_model, config, state, processes),
                    partial(to_checkpoint, config, state, mesh),
                    stopping=stopping,
                )
        leave(processes.part)
    if recorder.cut_short or (stopping and done < config.train.total_steps):
        raise StoppedError.after(done, run.path, interruption.number)


def _restore(config: Config, run: RunDir, processes: Processes) -> TrainState:
    folder, checkpoint = load_newest(run, warn=warn, writes=processes.rank == 0)
    return from_checkpoint(config, checkpoint, processes.mesh, f"checkpoint {folder}")


def _advance(config: Config, dataset: Dataset, mesh: Mesh, parts: int, *, held: bool) -> Advance:
    """A function from a state, the plans of the next steps and their images to the state after these steps.

    Args:
        held: hold the whole set on every device; the function is given no images then.
    """
    steps = steps_for(mesh, parts)
    images = _on_devices(dataset.images, mesh) if held else None
    labels = dataset.labels.astype(np.int32) if config.network.num_classes and dataset.labels is not None else None
    whole = None if labels is None else put(labels, replicated(mesh))

    def advance(
        state: TrainState, plans: Sequence[StepPlan], gathered: np.ndarray | None
    ) -> tuple[TrainState, StepResult]:
        stage = config.in_stage(plans[0].n)  # no dispatch has steps of two precisions
        if images is not None:
            return steps(state, stage, to_device(plans, mesh, parts), images, whole, mesh)
        assert gathered is not None
        chosen = None if labels is None else put(labels[np.concatenate([p.indices for p in plans])], replicated(mesh))
        places = np.split(np.arange(len(gathered)), len(plans))  # of each step's images among the gathered ones
        draws = to_device([p._replace(indices=i) for p, i in zip(plans, places, strict=True)], mesh, parts)
        return steps(state, stage, draws, _on_devices(gathered, mesh), chosen, mesh)

    return advance


def report_first_call(function: Advance, processes: Processes) -> Advance:
    """Wrap a function so that the first call, which compiles, logs how many seconds it took."""
    calls = 0

    def advance(*arguments: Any) -> tuple[TrainState, StepResult]:
        nonlocal calls
        calls, start = calls + 1, time.perf_counter()
        result = function(*arguments)
        if calls == 1 and processes.rank == 0:
            say(f"compiled the step in {time.perf_counter() - start:.1f} s")
        return result

    return advance


def _on_devices(images: np.ndarray, mesh: Mesh) -> jax.Array:
    return put(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), replicated(mesh))


def _model(config: Config, state: TrainState, processes: Processes) -> LoadedModel:
    return LoadedModel(config, *averaged_network(config, state, processes), processes.local_mesh)


def _row(results: StepResult, i: int) -> StepResult:
    return jax.tree.map(lambda array: array[i], results)


def _to_numpy(results: Sequence[StepResult]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([r.losses for r in results]), np.stack([r.grad_norm for r in results])
