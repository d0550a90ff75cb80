"""Power-function averages of weights: their profiles, and other lengths made of them afterwards.

Such an average grows with the run: its length is a share of all steps so far, sigma_rel. It counts from the first step
of the run, in which it takes the new weights as they are, so that the initial ones have no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ict_core._arrays import check_count, check_number

# That of a uniform profile is 0.289, and nothing is longer; EDM2 takes 0.01 to 0.25.
_WIDEST = 0.28
# Shorter ones are hardly averages, and exponents near 1e300 no numbers.
_SHORTEST = 0.001
LENGTHS = f">= {_SHORTEST} and < {_WIDEST}"


def is_length(sigma_rel: float) -> bool:
    """True if a setting or an option may be this length: `LENGTHS`, in words."""
    return _SHORTEST <= sigma_rel < _WIDEST


def power_exponent(sigma_rel: float) -> float:
    """gamma of the average whose profile has a standard deviation of sigma_rel of the run.

    The largest real root of g^3 + 7 g^2 + (16 - s^-2) g + (12 - s^-2) = 0.          EDM2 eq. 126

    Args:
        sigma_rel: s, in (0, 0.28).

    >>> [round(power_exponent(s), 2) for s in (0.01, 0.05, 0.10)]
    [96.99, 16.97, 6.94]
    """
    sigma_rel = check_number("sigma_rel", sigma_rel, above=0.0)
    if not sigma_rel < _WIDEST:
        raise ValueError(f"sigma_rel must be < {_WIDEST}, not {sigma_rel}")
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)]))


def power_decay(step: int, gamma: float) -> float:
    """The decay of a power-function average after step number `step` of a run: (1 - 1/n)^(gamma + 1).

    EDM2 eq. 127

    Args:
        step: n >= 1, the number of steps that are done; 0 is returned for the first.
        gamma: >= 0, from `power_exponent`.
    """
    check_count("step", step, at_least=1)
    gamma = check_number("gamma", gamma, at_least=0.0)
    return float((1.0 - 1.0 / step) ** (gamma + 1.0))


def power_profile(steps: int, gamma: float) -> np.ndarray[Any, Any]:
    """The share of the weights of each step in the average after `steps` steps: (j^(g+1) - (j-1)^(g+1)) / n^(g+1).

    This is what the decays of `power_decay` come to, exactly.

    Args:
        steps: n >= 1.
        gamma: >= 0.

    Returns:
        [steps] float64 of the steps j = 1..n, rising, with the sum 1.
    """
    check_count("steps", steps, at_least=1)
    edges = (np.arange(steps + 1) / steps) ** (check_number("gamma", gamma, at_least=0.0) + 1.0)
    profile: np.ndarray[Any, Any] = np.diff(edges)
    return profile


def mixing_weights(
    snapshots: Sequence[tuple[int, float]], steps: int, gamma: float
) -> tuple[np.ndarray[Any, Any], float]:
    """The factors with which stored averages make up another one: least squares over the profiles.

    EDM2 sec. 3.2. The averages may be of several lengths and of several steps of a run; none is from a later step.

    Args:
        snapshots: (step, gamma) of each stored average; at least one.
        steps: the step of the average that is wanted, >= each step of `snapshots`.
        gamma: its exponent.

    Returns:
        [len(snapshots)] float64 factors, with the sum 1 up to the misfit; and the misfit, the norm of the difference
        of the profiles relative to the one that is wanted: 0 is exact.
    """
    if not snapshots:
        raise ValueError("snapshots must hold at least one average")
    wanted, profiles = power_profile(steps, gamma), np.zeros((steps, len(snapshots)))
    for i, (step, exponent) in enumerate(snapshots):
        if step > steps:
            raise ValueError(f"snapshots must be of steps up to {steps}, not {step}")
        profiles[:step, i] = power_profile(step, exponent)
    scale = np.linalg.norm(wanted)
    factors, *_ = np.linalg.lstsq(profiles / scale, wanted / scale, rcond=1e-13)
    return factors, float(np.linalg.norm(profiles @ factors - wanted) / scale)
