"""Training in Python: `ict train` on arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.data.npz import check_labels, to_nchw
from ict_backends.environment import share_of_work
from ict_backends.errors import DataError, UsageError
from ict_backends.exchange.importing import start_from
from ict_backends.images import save_dataset
from ict_backends.protocols import OnRecord, ignore
from ict_backends.python.model import TrainedModel, load
from ict_backends.python.words import in_python_words
from ict_backends.runs.folder import RunDir, check_new_run, create_run, open_run
from ict_backends.runs.lock import in_use
from ict_backends.training.resolve import (
    averaged_weights,
    check_data,
    fit_to_data,
    given_settings,
    resolve_new,
    starting_settings,
    warn_of_average,
)
from ict_core import Config
from ict_core.settings import Tree, merge, preset_tree


@in_python_words
def train(
    settings: str | Config,
    images: np.ndarray | str | Path,
    labels: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    *,
    out: str | Path,
    on_step: OnRecord = ignore,
    backend: str = "torch",
    device: str = "auto",
    init: str | Path | None = None,
) -> TrainedModel:
    """Train a model, as `ict train` does, and return it.

    The run's folder is that of a run of `ict train`: every command takes it. It keeps given arrays in images.npz, so
    that `ict train --out OUT --resume` continues a run that was interrupted.

    Args:
        settings: the name of a preset, or all settings: `ict_core.load_preset(name)`, changed by
            `ict_core.settings.replace`. Their `data.shape` becomes that of the images.
        images: [n, h, w, c] uint8, c = 1 or 3, or [n, h, w] or [n, c, h, w]; or a source as for `ict train --data`.
        labels: [n] the classes of the images of an array, integers >= 0 or names, which make the model conditional.
        out: the run's folder, which must not exist yet or be empty.
        on_step: called with each record of the log: the line that RUN/metrics.jsonl gets every `train.log_every` steps,
            with "step", "loss", "images_per_second" and others. What it raises ends the training.
        backend: the library to compute with, "torch" or "jax".
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        init: a run whose averaged weights to start from, with the settings of its network and its noise levels.

    Raises:
        ConfigError, UsageError: a setting or an argument is not allowed.
        DataError: the images or labels cannot be used.
        CheckpointError: the weights of `init` do not fit.
        StoppedError: the training was interrupted; its state is saved.
    """
    if share_of_work()[1] > 1:
        raise UsageError("train is for one process; for several, there is `torchrun ... -m ict_cli train`")
    engine, run = load_backend(backend), RunDir(Path(out).expanduser())
    engine.check_device(device)
    with in_use(run.path):
        check_new_run(run.path)
        first = None if init is None else open_run(Path(init).expanduser())
        base = starting_settings(_as_tree(settings), first)
        config, dataset, is_array = _with_data(base, images, labels, run)
        check_data(config, dataset)
        weights = None if first is None else averaged_weights(first, config)

        def prepare(run: RunDir) -> None:
            if is_array:
                save_dataset(run.images_file, *dataset)
            if weights is not None:
                start_from(run, config, weights)

        create_run(run.path, config, dataset, prepare=prepare)
        engine.train(config, dataset, run, device=device, resume=weights is not None, on_record=on_step)
    if weights is None:
        warn_of_average(config)
    return load(run.path, backend=backend, device=device)


def _as_tree(settings: str | Config) -> Tree:
    return preset_tree(settings) if isinstance(settings, str) else dataclasses.asdict(settings)


def _with_data(
    base: Tree,
    images: np.ndarray | str | Path,
    labels: np.ndarray | Sequence[int] | Sequence[str] | None,
    run: RunDir,
) -> tuple[Config, Dataset, bool]:
    """The configuration and the data of a new run, and whether the data are an array."""
    if isinstance(images, (str, Path)):
        if labels is not None:
            raise UsageError(f"labels are for arrays of images; {images} has its own")
        config, dataset = resolve_new(base, given_settings(data=str(images), size=None, crop=None, steps=None))
        return config, dataset, False
    pixels = to_nchw("images", np.asarray(images))
    dataset, data = _labelled(pixels, labels), {"source": str(run.images_file.absolute()), "size": 0, "crop": "none"}
    asked: dict[str, dict[str, Any]] = {"data": data}
    if dataset.labels is not None and not base.get("network", {}).get("num_classes"):
        asked["network"] = {"num_classes": int(dataset.labels.max()) + 1}
    return fit_to_data(merge([base, asked]), asked, dataset.shape), dataset, True


def _labelled(pixels: np.ndarray, labels: np.ndarray | Sequence[int] | Sequence[str] | None) -> Dataset:
    if labels is None:
        return Dataset(pixels, None)
    numbered = check_labels("labels", np.asarray(labels), len(pixels))
    if numbered.numbers is None:
        raise DataError(f"labels cannot be used: {numbered.note}")
    return Dataset(pixels, numbered.numbers, numbered.classes)
