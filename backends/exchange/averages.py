"""Averages of other lengths than those that a run has kept, made of those in its checkpoints."""

from __future__ import annotations

import math
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.exchange.importing import start_from
from ict_backends.files import write_atomically
from ict_backends.networks.families import parameter_shapes, trained_shapes
from ict_backends.protocols import Arrays
from ict_backends.runs.checkpoint import check_finite, stream_averages
from ict_backends.runs.folder import RunDir, check_new_run, create_run, step_of
from ict_core import Config, mixing_weights, power_exponent

# A mixture whose profile is off by more is refused. Of 1% at most, the weights of digits were off by less than 0.1%.
MOST_MISFIT = 0.02
# Profiles are compared at so many points at least, if the run has as many steps.
_POINTS = 5000


class Mixture(NamedTuple):
    """How an average is made of others.

    Attributes:
        step: the number of steps after which the average is.
        parts: the folder of each checkpoint, oldest first, and the factor of each average in it by its name. All
            factors together have the sum 1.
        misfit: how far the profile of the mixture is from that of the average: relative, 0 is exact.
    """

    step: int
    parts: list[tuple[Path, dict[str, float]]]
    misfit: float


def find_mixture(run: RunDir, config: Config, sigma_rel: float) -> Mixture:
    """How to make the average of length `sigma_rel` of those in a run's checkpoints up to the newest or chosen one.

    No arrays are read.

    Raises:
        CheckpointError: the run has no averages of `train.ema_sigma_rel`, or those of too few checkpoints.
    """
    exponents = config.train.average_exponents
    if not exponents:
        raise CheckpointError(
            f"run {run.path} has no averages that others can be made of; train with two, as by --set "
            "train.ema_sigma_rel=[0.05,0.1]"
        )
    last = run.checkpoint_of("ema")
    folders = {step_of(folder): folder for folder in [*run.checkpoints(), last]}
    steps = sorted(step for step in folders if 0 < step <= step_of(last))
    if not steps:
        raise CheckpointError(f"run {run.path} has no averages yet: no step of it is done")
    # Sums over so many steps each, which divides all of `steps`, have profiles of the same form.
    stride = _coarsest(reduce(math.gcd, steps), steps[-1] // _POINTS)
    stored = [(step // stride, gamma) for step in steps for gamma in exponents.values()]
    factors, misfit = mixing_weights(stored, steps[-1] // stride, power_exponent(sigma_rel))
    if misfit > MOST_MISFIT:
        raise CheckpointError(
            f"run {run.path} has too few averages to make one of the length {sigma_rel:g}: {len(exponents)} in each of "
            f"{len(steps)} checkpoints, which leave a misfit of {misfit:.2g}; it must be <= {MOST_MISFIT:g}. Keep more "
            "checkpoints (train.keep_every), or lengths nearer to it (train.ema_sigma_rel)"
        )
    # Weights that hardly change over the steps must stay what they are, whatever the misfit.
    rows = (factors / factors.sum()).reshape(len(steps), -1).tolist()
    parts = [(folders[step], dict(zip(exponents, row, strict=True))) for step, row in zip(steps, rows, strict=True)]
    return Mixture(steps[-1], parts, misfit)


def _coarsest(common: int, most: int) -> int:
    """The largest divisor of `common` that is at most `most`, and 1 if there is none."""
    return max((n for n in range(1, min(common, most) + 1) if common % n == 0), default=1)


def mix(config: Config, mixture: Mixture) -> Arrays:
    """The arrays of the average that a mixture makes, [..] float64.

    In memory are these, and one array of a checkpoint at a time. What is not trained is that of the newest checkpoint.

    Raises:
        CheckpointError: a checkpoint is damaged, or has other averages than its run says.
    """
    shapes, trained = parameter_shapes(config), trained_shapes(config)
    mixed: Arrays = {}
    for folder, factors in mixture.parts:
        for average, name, array in stream_averages(folder, factors, shapes):
            if name not in trained:
                mixed[name] = array
            elif name in mixed:
                mixed[name] += np.multiply(array, factors[average], dtype=np.float64)
            else:
                mixed[name] = np.multiply(array, factors[average], dtype=np.float64)
    return mixed


def make_average(run: RunDir, config: Config, mixture: Mixture, out: Path) -> RunDir:
    """Make a run, in the folder `out`, of the average that a mixture makes.

    It has the settings of `run`, and what `run` says about its data.

    Raises:
        CheckpointError: as for `mix`.
        NonFiniteError, UsageError: a weight is not finite; `out` is in use.
    """
    check_new_run(out)
    arrays = mix(config, mixture)
    check_finite(f"run {run.path}", arrays)
    return create_run(out, config, None, prepare=partial(_start, source=run, config=config, arrays=arrays))


def _start(made: RunDir, *, source: RunDir, config: Config, arrays: Arrays) -> None:
    """Write what is in a new run before its settings: its weights, and what another run says about its data."""
    start_from(made, config, arrays)
    if source.data_file.is_file():
        write_atomically(made.data_file, source.data_file.read_bytes())
