"""The training part of bench/gpu.py: `cifar10-small` on CIFAR-10's images, for the time that is left."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu import AFTER_TRAINING, CARRIED, ROOT, Report, engine_of, records
from gpu_speed import seconds_a_step
from PIL import Image

from ict_backends.data.dataset import Dataset, load_data
from ict_backends.images import to_float, to_uint8
from ict_backends.measuring.distances import frechet_distance, moments
from ict_backends.reports.benchmark import random_images
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.sampling.batches import sample_images
from ict_core import Config, load_preset
from ict_core.settings import replace

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


def train(report: Report) -> None:
    """Train for as many steps as fit into the time; report pictures, losses by band and Frechet distances of pixels."""
    backend, compiles = fastest(report)
    engine = engine_of(report, backend)
    config = replace(load_preset("cifar10-small"), train={"precision": "bf16", "compile": compiles})
    if report.rehearse:
        tiny = {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()}
        config = replace(config, network=tiny, data={"shape": (3, 8, 8)}, train={"batch_size": 8})
    dataset = data_of(report, config)
    config = planned(config, 8 if report.rehearse else steps_that_fit(report, engine, config, dataset))
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config, dataset)
        start = time.monotonic()
        engine.train(config, dataset, run, device=report.device)
        seconds = time.monotonic() - start
        describe_training(report, backend, config, run, seconds)
        model = engine.load_model(run.path, device=report.device)
        expected = None if report.rehearse else pixel_moments(to_float(dataset.images))
        for levels in ([80.0], [80.0, 0.821]):
            report.attempt(f"distance in {len(levels)} steps", lambda levels=levels: distance(model, levels, expected))


def planned(config: Config, steps: int) -> Config:
    """The settings for about this many steps, a multiple of forty or else eight, with a picture at each quarter.

    The log leaves JAX as many steps per dispatch as the preset does, so that nothing is compiled again.
    """
    quarter = max(2, steps // 40 * 10)
    every = {"log_every": min(5, quarter // 2), "sample_every": quarter, "checkpoint_every": 0}
    return replace(config, train={"total_steps": 4 * quarter, **every})


def describe_training(report: Report, backend: str, config: Config, run: RunDir, seconds: float) -> None:
    """Write the results of the training: the log, the pictures of the quarters side by side, the losses."""
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    shutil.copy(run.metrics_file, report.out / "training.jsonl")
    total, images = config.train.total_steps, config.train.total_steps * config.train.batch_size
    pictures = [Image.open(run.samples_file(total * (i + 1) // 4)) for i in range(4)]
    side_by_side(pictures).save(report.out / "training.png")
    report.add(
        "training",
        backend=backend,
        compile=config.train.compile,
        steps=total,
        seconds=seconds,
        images_per_second=images / seconds,
        losses=[line["loss"] for line in lines],
        bands=lines[-1]["loss_bands"],
    )


def steps_that_fit(report: Report, engine: Any, config: Config, dataset: Dataset) -> int:
    """The number of training steps that fit, at least 40, from the measured time of 20.

    They use all images of the training, because XLA compiles for their number.
    """
    trainer = engine.make_trainer(config, dataset.images, None, report.device)
    trainer.advance(trainer.stride)
    (each,) = seconds_a_step(trainer, 20, 1)
    report.add("a step", ms=1000 * each)
    return max(40, int((report.left - AFTER_TRAINING) / each / 1.05))


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Put pictures of one height side by side."""
    whole = Image.new("RGB", (sum(p.width + 8 for p in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + 8
    return whole


def distance(model: Any, levels: list[float], expected: Any) -> dict[str, Any]:
    """The Frechet distance in pixel space between samples and the data; in a rehearsal, the mean of the samples.

    Args:
        expected: the moments of the data, or None for a rehearsal.
    """
    num, batch = (32, 16) if expected is None else (5000, 1000)
    images = sample_images(model, num, sigmas=levels, seed=0, labels=None, batch=batch)
    if expected is None:
        return {"num": num, "mean": float(images.mean())}
    return {"num": num, "pixel_fd": float(frechet_distance(pixel_moments(to_float(to_uint8(images))), expected))}


def pixel_moments(images: np.ndarray) -> Any:
    """Mean and covariance of images, [n, c, h, w], as vectors of c h w values."""
    return moments(images.reshape(len(images), -1).astype(np.float64))
