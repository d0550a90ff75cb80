"""The output of a training in progress: the progress bar or lines, metrics.jsonl, and the check of the losses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from ict_backends.console import progress_bar, say, warn
from ict_backends.environment import process_memory
from ict_backends.errors import NonFiniteError
from ict_backends.files import write_atomically
from ict_backends.runs.folder import RunDir
from ict_backends.runs.lines import append_line, is_log, read_lines
from ict_backends.training.step_plan import StepPlan
from ict_core import Config

# Losses are logged in bands of noise levels: a consistency model fails at some levels before it fails at all of them.
BANDS = 8
# A step counts as a spike if its loss is more than so many times the median loss of the steps logged together with it.
_SPIKE = 4.0
# What RAdam's first steps, which no second moment shortens, have done to the weights shows before this step.
_EARLY = 10

# Converts the results of k successive steps on the device to NumPy: losses [k, b], and norms of the gradient [k].
ToNumpy = Callable[[Sequence[Any]], tuple[np.ndarray, np.ndarray]]


def band_edges(config: Config) -> list[float]:
    """The 9 noise levels, sigma_min to sigma_max in equal factors, between which losses are logged in 8 bands."""
    return [float(s) for s in np.geomspace(config.noise.sigma_min, config.noise.sigma_max, BANDS + 1)]


def band_names(config: Config) -> list[str]:
    """The names of the 8 bands in the log, by their noise levels, such as "0.002_to_0.00752".

    They have three digits, or as many as tell all levels apart.
    """
    edges = band_edges(config)
    texts = ([f"{edge:.{digits}g}" for edge in edges] for digits in range(3, 18))
    rounded = next((names for names in texts if len(set(names)) == len(edges)), [repr(edge) for edge in edges])
    return [f"{low}_to_{high}" for low, high in pairwise(rounded)]


class Progress:
    """A context around the training loop that shows and logs its progress.

    Losses stay on the device until `flush`, the only method that waits for it.

    Args:
        run: the run's folder. Lines of its metrics.jsonl after step `first`, left by an interrupted run, are dropped.
        config: the run's settings.
        first: the step that training starts from.
        to_numpy: see `ToNumpy`.
        peak_memory: returns the most bytes that arrays have held on the device so far; None for the process's memory.
        writes: True in the process that shows and writes.
        on_record: called with each line of the log.
        last_good: returns the newest checkpoint's folder, or "none", for the message of a run that fails.

    Attributes:
        skipped: number of steps that were skipped because a loss or gradient was not finite.
    """

    def __init__(
        self,
        run: RunDir,
        config: Config,
        *,
        first: int,
        to_numpy: ToNumpy,
        peak_memory: Callable[[], int | None],
        writes: bool = True,
        on_record: Callable[[dict[str, Any]], object] = lambda record: None,
        last_good: Callable[[], str],
    ) -> None:
        self._run, self._config, self._to_numpy, self._last_good = run, config, to_numpy, last_good
        self._writes, self._on_record, self._peak_memory = writes, on_record, peak_memory
        self._scaled = config.train.precision == "fp16"
        self._pending: list[tuple[int, StepPlan, Any]] = []
        self._unwritten: list[str] = []
        if writes:
            self._drop_later_metrics(first)
        self._first, self._began = first, time.perf_counter()
        self._since, self.skipped = self._began, 0
        self._edges, self._bands = band_edges(config), band_names(config)
        # Without a terminal, the bar would fill a file; it is disabled then, and each record of the log is a line.
        self._bar = progress_bar(config.train.total_steps, initial=first, unit="step", disable=not writes)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._unwritten:
            warn(f"{self._run.metrics_file} lacks {len(self._unwritten)} lines, which could not be written")

    def add(self, step: int, plan: StepPlan, result: Any) -> None:
        """Take in a step that was done, and log it with the steps before if a record is due.

        Args:
            step: the step's number, counted from 0.
            plan: the step's plan.
            result: the step's result, on the device.
        """
        self._pending.append((step, plan, result))
        if (step + 1) % self._config.train.log_every == 0:
            self.flush()
        self._bar.update()  # at each step, since a record may be minutes away

    def flush(self) -> None:
        """Log all steps since the last record as one record.

        If the loss is scaled (fp16), gradients overflow now and then: such steps are always skipped, and counted.

        Raises:
            NonFiniteError: with `train.on_nonfinite` = "stop", a loss, or the gradient of a loss that is not scaled,
                was NaN or infinite.
        """
        if not self._pending:
            return
        losses, norms = self._to_numpy([result for _, _, result in self._pending])
        finite = np.isfinite(losses).all(axis=1)
        if self._config.train.on_nonfinite == "stop" and not (finite & (self._scaled | np.isfinite(norms))).all():
            raise NonFiniteError(self._describe_nonfinite(losses, norms))
        if self._writes:
            self._record(losses, norms, finite & np.isfinite(norms))
        self._pending.clear()
        self._since = time.perf_counter()

    def _record(self, losses: np.ndarray, norms: np.ndarray, finite: np.ndarray) -> None:
        step, plan, _ = self._pending[-1]
        speed = losses.size / (time.perf_counter() - self._since)
        record: dict[str, Any] = {"step": step + 1, "n": plan.n, "learning_rate": plan.learning_rate}
        if finite.any():
            means = losses[finite].mean(axis=1, dtype=np.float64)
            record["loss"] = float(means.mean())
            record["loss_max"] = float(means.max())
            record["spikes"] = int((means > _SPIKE * np.median(means)).sum())
            record["grad_norm"] = float(norms[finite].mean(dtype=np.float64))
            record["grad_norm_max"] = float(norms[finite].max())
        if not finite.all():
            self.skipped += int((~finite).sum())
            record["skipped"] = int((~finite).sum())
            expected = self._scaled and np.isfinite(losses).all() and finite.any()
            if not expected:
                warn(f"{record['skipped']} steps up to step {step + 1} are skipped: a loss or gradient is not finite")
        record["images_per_second"] = round(speed, 1)
        memory = self._peak_memory() or process_memory()
        if memory is not None:
            record["peak_memory_bytes"] = memory
        record["loss_bands"] = self._by_level(losses, finite)
        self._write(json.dumps(record) + "\n")
        self._on_record(record)
        self._show(record, speed)

    def _show(self, record: dict[str, Any], speed: float) -> None:
        text = f"N={record['n']} loss={record.get('loss', np.nan):.4g} {speed:.0f} images/s"
        self._bar.set_postfix_str(text, refresh=False)
        if self._bar.disable:
            done, total = record["step"], self._config.train.total_steps
            left = (time.perf_counter() - self._began) / (done - self._first) * (total - done)
            say(f"step {done}/{total}: {text}, {tqdm.format_interval(left)} left")

    def _write(self, line: str) -> None:
        """Append a line to metrics.jsonl, after those that could not be written before."""
        self._unwritten.append(line)
        try:
            append_line(self._run.metrics_file, "".join(self._unwritten))
            self._unwritten.clear()
        except OSError as error:
            warn(f"{self._run.metrics_file} cannot be written: {error.strerror}; trying again at the next line")

    def _by_level(self, losses: np.ndarray, finite: np.ndarray) -> dict[str, float | None]:
        """The mean loss in each of the 8 bands of the student's noise level, by name; None for one without images.

        Args:
            losses: [k, b].
            finite: [k] bool, the steps that count.
        """
        levels = np.stack([plan.levels.sigma_hi for _, plan, _ in self._pending])[finite]
        bands = np.clip(np.searchsorted(self._edges, levels, side="left") - 1, 0, BANDS - 1)
        chosen = losses[finite]
        return {
            name: float(chosen[bands == i].mean()) if (bands == i).any() else None for i, name in enumerate(self._bands)
        }

    def _describe_nonfinite(self, losses: np.ndarray, norms: np.ndarray) -> str:
        if np.isfinite(losses).all():
            row = int(np.flatnonzero(~np.isfinite(norms))[0])
            what, where = f"the gradient's norm is {norms[row]}", ""
        else:
            row, column = np.argwhere(~np.isfinite(losses))[0]
            levels = self._pending[row][1].levels
            what = f"loss is {losses[row, column]}"
            where = f", sigma {levels.sigma_lo[column]:.4g} -> {levels.sigma_hi[column]:.4g}"
        step, plan, _ = self._pending[row]
        where = f"N = {plan.n}{where}, seed {self._config.train.seed}"
        return (
            f"{what} at step {step + 1} ({where}); last good checkpoint: {self._last_good()} (--resume goes "
            "on from it, also with another --seed, train.learning_rate, train.clip_norm or --on-nonfinite)"
            f"{self._hint(step)}"
        )

    def _hint(self, step: int) -> str:
        """What to change where a step so early is not finite, or ""."""
        if self._config.train.optimizer != "radam" or step >= _EARLY:
            return ""
        return "; RAdam's first steps are as long as the gradient: train.warmup_steps or train.optimizer=adam may help"

    def _drop_later_metrics(self, first: int) -> None:
        if not self._run.metrics_file.is_file():
            return
        kept = [record for record in read_lines(self._run.metrics_file, is_log) if record["step"] <= first]
        write_atomically(self._run.metrics_file, "".join(json.dumps(record) + "\n" for record in kept).encode())
