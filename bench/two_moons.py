"""What matters for data that are not images: a table of variants on two moons, over several seeds.

    python bench/two_moons.py --backend jax --seeds 5
    python bench/two_moons.py --backend torch --seeds 5 --only "the recipe of images" --only "all four"

The networks, the loop and its settings are those of docs/other-fields.md. A sample is off the data if it is farther
from both arcs than four standard deviations of the data's noise, which one point of the data in 16,000 is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_core import (
    Levels,
    NoiseConfig,
    consistency_loss,
    huber_constant,
    stages,
    teacher_of,
    update_average,
)

SPREAD = 0.035  # of the points about the arcs; the whole data have a standard deviation of about 0.5
SAMPLES = 10_000


class Variant(NamedTuple):
    """What may matter; the defaults are those of docs/other-fields.md."""

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    decay: bool = True
    c_factor: float = 0.003
    width: int = 128
    s1: int = 160
    steps: int = 8000
    batch: int = 256
    rate: float = 5e-3


IMAGES = {"sigma_min": 0.002, "sigma_max": 80.0, "decay": False, "c_factor": 0.00054}
VARIANTS = {
    "all four": Variant(),
    "the recipe of images": Variant(**IMAGES),
    "levels of images, 0.002 to 80": Variant(sigma_min=0.002, sigma_max=80.0),
    "constant rate": Variant(decay=False),
    "constant rate of 1e-3": Variant(decay=False, rate=1e-3),
    "c of images, 0.00054 sqrt(D)": Variant(c_factor=0.00054),
    "c ten times as large, 0.03 sqrt(D)": Variant(c_factor=0.03),
    "c = 0.3 sqrt(D)": Variant(c_factor=0.3),
    "half the width": Variant(width=64),
    "twice the width": Variant(width=256),
    "images, but levels 0.01 to 10": Variant(**{**IMAGES, "sigma_min": 0.01, "sigma_max": 10.0}),
    "images, but a decaying rate": Variant(**{**IMAGES, "decay": True}),
    "images, but c = 0.003 sqrt(D)": Variant(**{**IMAGES, "c_factor": 0.003}),
    "images, but twice the width": Variant(**IMAGES, width=256),
}


def moons(rng: np.random.Generator, num: int) -> np.ndarray:
    """[num, 2] float32 points of two interleaved half circles, about centred."""
    angle, second = np.pi * rng.random(num), rng.random(num) < 0.5
    x = np.where(second, 1 - np.cos(angle), np.cos(angle)) - 0.5
    y = np.where(second, 0.5 - np.sin(angle), np.sin(angle)) - 0.25
    return (0.7 * np.stack([x, y], axis=1) + SPREAD * rng.standard_normal((num, 2))).astype(np.float32)


def share_off(points: np.ndarray) -> float:
    """The share of [num, 2] points that are farther from both arcs than four standard deviations of the data."""
    angles = np.linspace(0, np.pi, 400)
    first = np.stack([np.cos(angles) - 0.5, np.sin(angles) - 0.25], axis=1)
    second = np.stack([0.5 - np.cos(angles), 0.25 - np.sin(angles)], axis=1)
    arcs = 0.7 * np.concatenate([first, second])
    nearest = [np.sqrt(((part[:, None] - arcs) ** 2).sum(axis=2).min(axis=1)) for part in np.array_split(points, 50)]
    return float(np.mean(np.concatenate(nearest) > 4 * SPREAD))


def noise_of(variant: Variant) -> NoiseConfig:
    """The noise levels of a variant."""
    return NoiseConfig(sigma_min=variant.sigma_min, sigma_max=variant.sigma_max)


def rate_at(variant: Variant, step: int) -> float:
    """The learning rate of a step: falling to 0 in a straight line, or constant."""
    return variant.rate * (1 - step / variant.steps if variant.decay else 1.0)


def draws(variant: Variant, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, Levels]]:
    """Data, noise and levels of each step, NumPy."""
    rng, noise = np.random.default_rng(seed), noise_of(variant)
    for stage in stages(variant.steps, s1=variant.s1):
        grid = noise.grid(stage.n)
        for _ in range(stage.first, stage.last + 1):
            x = moons(rng, variant.batch)
            yield x, rng.standard_normal(x.shape, dtype=np.float32), grid.draw(rng, variant.batch, like=x)


def train_torch(variant: Variant, seed: int) -> np.ndarray:
    """One-step samples, [SAMPLES, 2], of the averaged weights of a network that torch trains."""
    import torch

    torch.manual_seed(seed)
    noise, width = noise_of(variant), variant.width
    layers: list[torch.nn.Module] = [torch.nn.Linear(2 + 12, width), torch.nn.SiLU()]
    for _ in range(3):
        layers += [torch.nn.Linear(width, width), torch.nn.SiLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def denoiser(x_in: torch.Tensor, c_noise: torch.Tensor, condition: object) -> torch.Tensor:
        angles = c_noise[:, None] * 2.0 ** torch.arange(6)
        return network(torch.cat([x_in, angles.sin(), angles.cos()], dim=1))

    f = noise.consistency_function(denoiser)
    optimizer = torch.optim.RAdam(network.parameters(), lr=variant.rate)
    for step, (x, z, levels) in enumerate(draws(variant, seed)):
        optimizer.param_groups[0]["lr"] = rate_at(variant, step)
        inputs = map(torch.tensor, (x, z, *levels))
        loss = consistency_loss(f, teacher_of(f), *inputs, c=huber_constant(2, factor=variant.c_factor))
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
        average = update_average(average, network.state_dict(), 0.998)
    network.load_state_dict(average)
    with torch.no_grad():
        noises = torch.randn((1, SAMPLES, 2), generator=torch.Generator().manual_seed(seed))
        return noise.sample(f, noises).numpy()


def train_jax(variant: Variant, seeds: int) -> np.ndarray:
    """One-step samples, [seeds, SAMPLES, 2], of networks that JAX trains side by side."""
    import jax
    import jax.numpy as jnp
    import optax

    noise, width = noise_of(variant), variant.width
    sizes = [2 + 12, width, width, width, width, 2]
    optimizer = optax.inject_hyperparams(optax.radam)(learning_rate=variant.rate)

    def init(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [(jax.random.uniform(k, (n, m), minval=-1, maxval=1) / n**0.5, jnp.zeros(m)) for k, n, m in shapes]

    def f_of(params: list[tuple[jax.Array, jax.Array]]):  # noqa: ANN202
        def denoiser(x_in: jax.Array, c_noise: jax.Array, condition: object) -> jax.Array:
            angles = c_noise[:, None] * 2.0 ** jnp.arange(6)
            h = jnp.concatenate([x_in, jnp.sin(angles), jnp.cos(angles)], axis=1)
            for w, b in params[:-1]:
                h = jax.nn.silu(h @ w + b)
            return h @ params[-1][0] + params[-1][1]

        return noise.consistency_function(denoiser)

    def loss(params: list[tuple[jax.Array, jax.Array]], *inputs: jax.Array) -> jax.Array:
        f = f_of(params)
        return consistency_loss(f, teacher_of(f), *inputs, c=huber_constant(2, factor=variant.c_factor)).mean

    def step(carry, inputs):  # noqa: ANN001, ANN202
        params, average, state = carry
        rate, *arrays = inputs
        state.hyperparams["learning_rate"] = rate
        updates, state = optimizer.update(jax.grad(loss)(params, *arrays), state)
        params = optax.apply_updates(params, updates)
        return (params, update_average(average, params, 0.998), state), None

    @jax.jit
    def run(carry, inputs):  # noqa: ANN001, ANN202
        one = lambda carry, *arrays: jax.lax.scan(step, carry, (inputs[0], *arrays))[0]  # noqa: E731
        return jax.vmap(one, in_axes=(0, *[1] * (len(inputs) - 1)))(carry, *inputs[1:])

    params = jax.vmap(init)(jax.random.split(jax.random.key(0), seeds))
    carry = (params, params, jax.vmap(optimizer.init)(params))
    sources = [draws(variant, seed) for seed in range(seeds)]
    part = variant.steps // 8
    for first in range(0, variant.steps, part):
        rows = [[next(source) for source in sources] for _ in range(part)]
        flat = [[(x, z, *levels) for x, z, levels in row] for row in rows]
        arrays = [np.array([[one[i] for one in row] for row in flat]) for i in range(5)]
        rates = np.array([rate_at(variant, first + i) for i in range(part)], dtype=np.float32)
        carry = run(carry, (rates, *arrays))
    noises = jax.random.normal(jax.random.key(1), (seeds, 1, SAMPLES, 2))
    return np.asarray(jax.vmap(lambda params, z: noise.sample(f_of(params), z))(carry[1], noises))


def main() -> None:
    """Print a line for each variant, and write the values to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "jax"), default="jax")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(VARIANTS), default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = {}
    for name in options.only or VARIANTS:
        began = time.perf_counter()
        if options.backend == "jax":
            samples = train_jax(VARIANTS[name], options.seeds)
        else:
            samples = np.stack([train_torch(VARIANTS[name], seed) for seed in range(options.seeds)])
        off = table[name] = [share_off(points) for points in samples]
        seconds = time.perf_counter() - began
        shares = " ".join(f"{value:.1%}" for value in off)
        print(f"{name}: {np.mean(off):.1%} off the data ({shares}), {seconds:.0f} s", flush=True)
    if options.out:
        options.out.write_text(json.dumps({options.backend: table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
