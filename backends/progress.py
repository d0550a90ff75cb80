"""What training shows and records while it goes: the bar, metrics.jsonl, and the watch over the losses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from ict_backends.errors import NonFiniteError
from ict_backends.files import write_atomically
from ict_backends.plan import StepPlan
from ict_backends.rundir import RunDir
from tqdm import tqdm

from ict_core import Config

# One sees a consistency model fail at some levels before it fails at all of them.
BANDS = 8


def band_edges(config: Config) -> list[float]:
    """[9] noise levels from sigma_min to sigma_max, by equal factors: the bands that losses are logged in."""
    return [float(s) for s in np.geomspace(config.noise.sigma_min, config.noise.sigma_max, BANDS + 1)]


class Progress:
    """A context around the training loop.

    Losses stay on the device until `flush`, which is the only thing here that waits for it.

    Args:
        run: where metrics.jsonl is written; lines of later steps, left by a run that was cut off, are dropped.
        config: the run's settings.
        first: the step that training starts from.
        to_host: from the backend's array of losses to NumPy.
    """

    def __init__(self, run: RunDir, config: Config, *, first: int, to_host: Callable[[Any], np.ndarray]) -> None:
        self._run, self._config, self._to_host = run, config, to_host
        self._pending: list[tuple[int, StepPlan, Any]] = []
        self._drop_later_metrics(first)
        self._metrics = open(run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._bar = tqdm(
            total=config.train.total_steps, initial=first, unit="step", file=sys.stderr, dynamic_ncols=True
        )
        self._since = time.perf_counter()
        self._edges = band_edges(config)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        self._metrics.close()

    def add(self, step: int, plan: StepPlan, losses: Any) -> None:
        """Note a step that was done, counted from 0, and its [b] losses on the device; log every now and then."""
        self._pending.append((step, plan, losses))
        if (step + 1) % self._config.train.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Log the steps since the last time. Raises NonFiniteError where a loss was NaN or infinite."""
        if not self._pending:
            return
        losses = np.stack([self._to_host(values) for _, _, values in self._pending])
        if not np.isfinite(losses).all():
            raise NonFiniteError(self._describe_nonfinite(losses))
        now, (step, plan, _) = time.perf_counter(), self._pending[-1]
        speed = losses.size / (now - self._since)
        record = {"step": step + 1, "n": plan.n, "loss": float(losses.mean()), "images_per_second": round(speed, 1)}
        record["loss_bands"] = self._by_level(losses)
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        self._bar.set_postfix_str(f"N={plan.n} loss={record['loss']:.4g} {speed:.0f} images/s", refresh=False)
        self._bar.update(len(self._pending))
        self._pending.clear()
        self._since = now

    def _by_level(self, losses: np.ndarray) -> list[float | None]:
        """The mean loss in each band of the student's level; None where no image was in it."""
        levels = np.stack([plan.levels.sigma_hi for _, plan, _ in self._pending])
        bands = np.clip(np.searchsorted(self._edges, levels, side="left") - 1, 0, BANDS - 1)
        return [float(losses[bands == i].mean()) if (bands == i).any() else None for i in range(BANDS)]

    def _describe_nonfinite(self, losses: np.ndarray) -> str:
        row, column = np.argwhere(~np.isfinite(losses))[0]
        step, plan, _ = self._pending[row]
        lo, hi = plan.levels.sigma_lo[column], plan.levels.sigma_hi[column]
        where = f"N = {plan.n}, sigma {lo:.4g} -> {hi:.4g}, seed {self._config.train.seed}"
        last = self._run.checkpoints()[-1:] or ["none"]
        return f"loss is {losses[row, column]} at step {step + 1} ({where}); last good checkpoint: {last[0]}"

    def _drop_later_metrics(self, first: int) -> None:
        if not self._run.metrics_file.exists():
            return
        lines = self._run.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first]
        write_atomically(self._run.metrics_file, "".join(kept).encode())
