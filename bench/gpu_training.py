"""The trainings of bench/gpu.py: `cifar10-small` on CIFAR-10's images, from scratch and as a tuned diffusion model."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gpu import AFTER_TRAINING, BEFORE_TRAINING, CARRIED, ROOT, Report, engine_of, records
from gpu_speed import seconds_a_step
from PIL import Image

from ict_backends.data.dataset import Dataset, load_data
from ict_backends.exchange.edm import TRAINED_BY
from ict_backends.exchange.importing import start_from
from ict_backends.images import to_float, to_uint8
from ict_backends.measuring.distances import frechet_distance, moments
from ict_backends.reports.benchmark import random_images
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.sampling.batches import sample_images, usual_solver
from ict_backends.sampling.choices import resolve_sigmas
from ict_backends.training.recipes import TUNING
from ict_core import Config, load_preset
from ict_core.settings import replace

if TYPE_CHECKING:
    from ict_backends.protocols import Arrays, Backend

ARCHIVES = (CARRIED / "cifar10-train-jpeg.tar.xz", ROOT.parent / "shared" / "data" / "cifar10-train-jpeg.tar.xz")


def data_of(report: Report, config: Config) -> Dataset:
    """CIFAR-10's images; random images for a rehearsal, or if the archive is missing."""
    found = [path for path in ARCHIVES if path.is_file()]
    if report.rehearse or not found:
        report.add("data", source="random images: CIFAR-10's did not come along")
        return Dataset(random_images(config), None)
    return load_data(str(found[0]))


def fastest(report: Report) -> tuple[str, bool]:
    """The backend that was fastest with `cifar10-small` in bf16, by the results, and whether torch compiled for it."""
    names = {"torch-speed": "torch", "jax-speed": "jax"}
    speeds = {
        (names[record["part"]], record["values"].get("compile", False)): record["values"]["images_per_second"]
        for record in records(report.out)
        if record["part"] in names and record["name"] in ("cifar10-small, bf16", "cifar10-small, bf16, compiled")
        if "images_per_second" in record["values"]
    }
    return max(speeds, key=speeds.__getitem__, default=("jax", False))


class Training(NamedTuple):
    """What the trainings of a part have in common: the fastest backend, the preset's settings, and the images."""

    backend: str
    engine: Backend[Any, Any]
    config: Config
    dataset: Dataset


def prepare(report: Report) -> Training:
    """Load the backend that was fastest, the settings of `cifar10-small` in bf16, and the images."""
    backend, compiles = fastest(report)
    config = replace(load_preset("cifar10-small"), train={"precision": "bf16", "compile": compiles})
    if report.rehearse:
        tiny = {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()}
        config = replace(config, network=tiny, data={"shape": (3, 8, 8)}, train={"batch_size": 8})
    return Training(backend, engine_of(report, backend), config, data_of(report, config))


def train(report: Report) -> None:
    """Train for as many steps as fit into the time; report pictures, losses by band and Frechet distances of pixels."""
    training = prepare(report)
    with tempfile.TemporaryDirectory() as folder:
        run = run_for(report, training, Path(folder) / "run", "training", time_to_train(report, 1))
        measure(report, training, run, "distance", moments_of(report, training))


def tune(report: Report) -> None:
    """Train a diffusion model for half of the time that `train` has, tune it for the other half, and report both."""
    training, half = prepare(report), time_to_train(report, 2) / 2
    with tempfile.TemporaryDirectory() as folder:
        first = training._replace(config=replace(training.config, **TRAINED_BY, train={"optimizer": "adam"}))
        source = run_for(report, first, Path(folder) / "diffusion", "diffusion", half)
        expected = moments_of(report, training)
        measure(report, first, source, "distance of the diffusion model", expected)
        second = training._replace(config=replace(training.config, curriculum=TUNING))
        weights = load_checkpoint(source.latest_checkpoint()).ema
        run = run_for(report, second, Path(folder) / "tuned", "tuning", half, weights)
        measure(report, second, run, "distance", expected)


def time_to_train(report: Report, trainings: int) -> float:
    """The seconds of `--train`, of a part with this number of trainings, each with a time before and after it."""
    return report.seconds - trainings * (BEFORE_TRAINING + AFTER_TRAINING)


def run_for(
    report: Report, training: Training, path: Path, name: str, seconds: float, weights: Arrays | None = None
) -> RunDir:
    """Train in a new folder for this time, or less if compiling took longer than it may, and report it by a name.

    Args:
        weights: those to begin with; random ones by default.
    """
    steps = 8 if report.rehearse else steps_that_fit(report, training, name, seconds)
    config = planned(training.config, steps)
    first = None if weights is None else partial(start_from, config=config, arrays=weights)
    run = create_run(path, config, training.dataset, prepare=first or (lambda run: None))
    start = time.monotonic()
    training.engine.train(config, training.dataset, run, device=report.device, resume=weights is not None)
    describe_training(report, training.backend, config, run, name, time.monotonic() - start)
    return run


def moments_of(report: Report, training: Training) -> Any:
    """The moments of the images, which take seconds; None for a rehearsal."""
    return None if report.rehearse else pixel_moments(to_float(training.dataset.images))


def measure(report: Report, training: Training, run: RunDir, what: str, expected: Any) -> None:
    """Report the Frechet distances of a run's samples: in one step and in two, or in the usual number by Heun."""
    model = training.engine.load_model(run.path, device=report.device)
    solver, usual = usual_solver(model.config)
    more = [resolve_sigmas(model.config, 2, None)] if model.config.curriculum.has_teacher else []
    for levels in [usual, *more]:
        name = f"{what} in {len(levels)} steps"
        report.attempt(name, lambda levels=levels: distance(model, levels, solver, expected))


def planned(config: Config, steps: int) -> Config:
    """The settings for about this many steps, a multiple of forty or else eight, with a picture at each quarter.

    The log leaves JAX as many steps per dispatch as the preset does, so that nothing is compiled again.
    """
    quarter = max(2, steps // 40 * 10)
    every = {"log_every": min(5, quarter // 2), "sample_every": quarter, "checkpoint_every": 0}
    return replace(config, train={"total_steps": 4 * quarter, **every})


def describe_training(report: Report, backend: str, config: Config, run: RunDir, name: str, seconds: float) -> None:
    """Write the results of a training by its name: the log, the pictures of the quarters side by side, the losses."""
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    shutil.copy(run.metrics_file, report.out / f"{name}.jsonl")
    total, images = config.train.total_steps, config.train.total_steps * config.train.batch_size
    pictures = [Image.open(run.samples_file(total * (i + 1) // 4)) for i in range(4)]
    side_by_side(pictures).save(report.out / f"{name}.png")
    report.add(
        name,
        backend=backend,
        compile=config.train.compile,
        steps=total,
        seconds=seconds,
        images_per_second=images / seconds,
        losses=[line["loss"] for line in lines],
        bands=lines[-1]["loss_bands"],
    )


def steps_that_fit(report: Report, training: Training, name: str, seconds: float) -> int:
    """The number of training steps that fit into a time, at least 40, from the measured time of 20.

    They use all images of the training, because XLA compiles for their number.
    """
    trainer = training.engine.make_trainer(training.config, training.dataset.images, None, report.device)
    trainer.advance(trainer.stride)
    (each,) = seconds_a_step(trainer, 20, 1)
    report.add(f"a step of {name}", ms=1000 * each)
    return max(40, int(min(seconds, report.left - AFTER_TRAINING) / each / 1.05))


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Put pictures of one height side by side."""
    whole = Image.new("RGB", (sum(p.width + 8 for p in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + 8
    return whole


def distance(model: Any, levels: list[float], solver: str, expected: Any) -> dict[str, Any]:
    """The Frechet distance in pixel space between samples and the data; in a rehearsal, the mean of the samples.

    Args:
        expected: the moments of the data, or None for a rehearsal.
    """
    num, batch = (32, 16) if expected is None else (5000, 1000)
    images = sample_images(model, num, sigmas=levels, seed=0, labels=None, batch=batch, solver=solver)
    if expected is None:
        return {"num": num, "mean": float(images.mean())}
    return {"num": num, "pixel_fd": float(frechet_distance(pixel_moments(to_float(to_uint8(images))), expected))}


def pixel_moments(images: np.ndarray) -> Any:
    """Mean and covariance of images, [n, c, h, w], as vectors of c h w values."""
    return moments(images.reshape(len(images), -1).astype(np.float64))
