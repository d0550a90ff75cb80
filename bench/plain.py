"""The method as a competent user would first write it, to compare ours with: `ict bench --plain bench/plain.py`.

In torch it is plain, eager and float32 (plain_torch.py); in JAX it has NHWC modules and one compiled step
(plain_jax.py). Nothing is made slow on purpose, and nothing is tuned. It shares no mathematics with ict_core;
tests/parity/test_plain.py compares the results of the two. This file has the part that is drawn on the host.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ict_core import Config, ConfigError

# What the plain version knows one value of.
_RECIPE = (
    "curriculum.schedule",
    "loss.distance",
    "loss.weighting",
    "noise.law",
    "teacher.decay",
    "teacher.share_dropout",
)


class Draw(NamedTuple):
    """The random choices that the host makes for a step.

    Attributes:
        indices: [b] int64, the numbers of the images.
        flips: [b] bool, True for images that are mirrored.
        lo, hi: [b] float32, the lower and the higher noise level of each image.
        weight: [b] float32, the weight of the loss of each image.
        seed: the seed of the noise and the dropout on the device.
    """

    indices: np.ndarray
    flips: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    weight: np.ndarray
    seed: int


def check(config: Config) -> None:
    """Raise ConfigError if the network or another setting is not part of the plain version."""
    if config.network.family != "ncsnpp":
        raise ConfigError(f"the plain version has NCSN++ alone, not network.family = {config.network.family}")
    asked, recipe = config.flat(), Config().flat()
    other = [name for name in _RECIPE if asked[name] != recipe[name]]
    if other:
        raise ConfigError(f"the plain version has the recipe alone, not {other[0]} = {asked[other[0]]}")


def make_step(backend: str, config: Config, images: np.ndarray, device: str = "auto") -> Callable[[], float]:
    """A function that does one further training step, and returns its mean loss.

    Args:
        backend: "torch" or "jax".
        config: the settings; the only network is NCSN++.
        images: [n, c, h, w] uint8; a conditional network is given random labels.
        device: "auto", or a device's name in the framework.

    Raises:
        ConfigError: the settings are not part of the plain version.
    """
    check(config)
    rng = np.random.default_rng(config.train.seed)
    classes = config.network.num_classes
    labels = rng.integers(classes, size=len(images)) if classes else None

    def draw(step: int) -> Draw:
        return draw_step(config, rng, step, len(images))

    return sibling(f"plain_{backend}").make_step(config, images, labels, draw, device)


def sibling(name: str) -> ModuleType:
    """Load another file of this folder as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_step(config: Config, rng: np.random.Generator, step: int, count: int) -> Draw:
    """Draw the images, flips, levels and weights of a step; `count` is the number of images in the data."""
    batch = config.train.batch_size
    n = number_of_levels(config, step % config.train.total_steps)
    sigmas = noise_levels(config, n)
    i = rng.choice(n - 1, size=batch, p=level_probabilities(config, sigmas))
    lo, hi = sigmas[i], sigmas[i + 1]
    flips = rng.random(batch) < 0.5 if config.data.flip else np.zeros(batch, bool)
    arrays = (a.astype(np.float32) for a in (lo, hi, 1.0 / (hi - lo)))
    return Draw(rng.integers(count, size=batch), flips, *arrays, seed=int(rng.integers(2**31)))


def number_of_levels(config: Config, step: int) -> int:
    """The number of levels at a step: N(k) = min(s0 2^floor(k / K'), s1) + 1."""
    s0, s1 = config.curriculum.s0, config.curriculum.s1
    length = max(1, math.floor(config.train.total_steps / (math.log2(s1 // s0) + 1)))
    return min(s0 * 2 ** (step // length), s1) + 1


def noise_levels(config: Config, n: int) -> np.ndarray:
    """The n rising noise levels, [n] float64, evenly spaced in sigma^(1 / rho)."""
    noise = config.noise
    lo, hi = noise.sigma_min ** (1 / noise.rho), noise.sigma_max ** (1 / noise.rho)
    return np.linspace(lo, hi, n) ** noise.rho


def level_probabilities(config: Config, sigmas: np.ndarray) -> np.ndarray:
    """The probabilities of the intervals between n levels, [n - 1]: differences of erf of log sigma."""
    z = (np.log(sigmas) - config.noise.p_mean) / (math.sqrt(2) * config.noise.p_std)
    p = np.diff([math.erf(v) for v in z])
    return p / p.sum()
