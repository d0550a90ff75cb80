"""The training of bench/gpu.py: `cifar10-small` on CIFAR-10's images for the time that is left."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu import CARRIED, ROOT, Report
from ict_backends import load_backend
from ict_backends.benchmark import random_images
from ict_backends.data import Dataset, load_data
from ict_backends.images import to_float, to_uint8
from ict_backends.metrics import frechet_distance, moments
from ict_backends.rundir import create_run
from ict_backends.sampling import sample_images
from PIL import Image

from ict_core import Config, load_preset
from ict_core.config import replace

ARCHIVES = (CARRIED / "cifar10-train-jpeg.tar.xz", ROOT.parent / "shared" / "data" / "cifar10-train-jpeg.tar.xz")


def data_of(report: Report, config: Config) -> Dataset:
    """CIFAR-10's images; rehearsed, or where they did not come along, random ones."""
    found = [path for path in ARCHIVES if path.is_file()]
    if report.rehearse or not found:
        report.add("data", source="random images: CIFAR-10's did not come along")
        return Dataset(random_images(config), None)
    return load_data(str(found[0]))


def train(report: Report) -> None:
    """As many steps as fit, measured first; pictures, losses by band and the Frechet distance in pixel space."""
    config = replace(load_preset("cifar10-small"), train={"precision": "bf16"})
    if report.rehearse:
        tiny = {"channels": 8, "channel_mult": (1, 2), "blocks": 1}
        config = replace(config, network=tiny, train={"batch_size": 8})
    dataset = data_of(report, config)
    steps = 8 if report.rehearse else steps_that_fit(report, config)
    quarter = max(1, steps // 4)
    config = replace(
        config,
        train={
            "total_steps": 4 * quarter,
            "log_every": max(1, quarter // 10),
            "sample_every": quarter,
            "checkpoint_every": 0,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config, dataset)
        start = time.monotonic()
        load_backend("torch").train(config, dataset, run, device=report.device)
        seconds = time.monotonic() - start
        lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
        shutil.copy(run.metrics_file, report.out / "training.jsonl")
        pictures = [Image.open(run.samples_file(quarter * (i + 1))) for i in range(4)]
        side_by_side(pictures).save(report.out / "training.png")
        images = config.train.total_steps * config.train.batch_size
        report.add(
            "training",
            steps=config.train.total_steps,
            seconds=seconds,
            images_per_second=images / seconds,
            losses=[line["loss"] for line in lines[9::10]],
            bands=lines[-1]["loss_bands"],
        )
        model = load_backend("torch").load_model(run.path, device=report.device)
        expected = None if report.rehearse else pixel_moments(to_float(dataset.images))
        for levels in ([80.0], [80.0, 0.821]):
            report.attempt(f"distance in {len(levels)} steps", lambda levels=levels: distance(model, levels, expected))


def steps_that_fit(report: Report, config: Config) -> int:
    """By the time of some steps, which also compile what the training then uses."""
    images = random_images(config)
    trainer = load_backend("torch").make_trainer(config, images, None, report.device)
    trainer.advance(5)
    start = time.perf_counter()
    trainer.advance(20)
    each = (time.perf_counter() - start) / 20
    report.add("a step", ms=1000 * each)
    # The rest is for compiling once more, sampling and measuring.
    return max(40, int((report.left - 40) / each / 1.05))


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """One picture of several of one height."""
    whole = Image.new("RGB", (sum(p.width + 8 for p in pictures), pictures[0].height), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + 8
    return whole


def distance(model: Any, levels: list[float], expected: Any) -> dict[str, Any]:
    """The Frechet distance in pixel space of samples from the data; rehearsed, their mean."""
    num, batch = (32, 16) if expected is None else (5000, 1000)
    images = sample_images(model, num, sigmas=levels, seed=0, labels=None, batch=batch)
    if expected is None:
        return {"num": num, "mean": float(images.mean())}
    return {"num": num, "pixel_fd": float(frechet_distance(pixel_moments(to_float(to_uint8(images))), expected))}


def pixel_moments(images: np.ndarray) -> Any:
    """Mean and covariance of [n, c, h, w] images as vectors."""
    return moments(images.reshape(len(images), -1).astype(np.float64))
