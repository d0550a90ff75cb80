"""Training in Python: `ict train` on arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ict_backends import load_backend
from ict_backends.console import say
from ict_backends.data.dataset import Dataset, load_data_of
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
from ict_backends.training.recipes import chosen_recipe, notes_on, recipe_for, starting_settings
from ict_backends.training.resolve import averaged_weights, check_data, resolve_new, warn_of_average
from ict_core import Config, DataConfig, NCSNppConfig
from ict_core.settings import Tree


@in_python_words
def train(
    settings: str | Config | None,
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
            `ict_core.settings.replace`. Their `data.shape` becomes the images'. None chooses as `ict train` does:
            a preset that fits the images and the device or, with `init`, that of fine-tuning.
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
        data, dataset = _read(settings, images, labels, run)
        base = _settings(settings, first, data.source, dataset, gpu=engine.device_name(device) != "cpu")
        config = _fitted(base, data, dataset, labelled=labels is not None)
        check_data(config, dataset)
        weights, replaced = (None, "") if first is None else averaged_weights(first, config, dataset)
        for note in filter(None, [*notes_on(config, first), replaced]):
            say(note)

        def prepare(run: RunDir) -> None:
            if not isinstance(images, (str, Path)):
                save_dataset(run.images_file, *dataset)
            if weights is not None:
                start_from(run, config, weights)

        create_run(run.path, config, dataset, prepare=prepare)
        engine.train(config, dataset, run, device=device, resume=weights is not None, on_record=on_step)
    if weights is None:
        warn_of_average(config)
    return load(run.path, backend=backend, device=device)


def _read(
    settings: str | Config | None,
    images: np.ndarray | str | Path,
    labels: np.ndarray | Sequence[int] | Sequence[str] | None,
    run: RunDir,
) -> tuple[DataConfig, Dataset]:
    """The section `data` of the run, whose source for an array is the file that the run will keep it in; and the data.

    A source is resampled and cropped as given settings say.
    """
    if not isinstance(images, (str, Path)):
        kept = DataConfig(source=str(run.images_file.absolute()))
        return kept, _labelled(to_nchw("images", np.asarray(images)), labels)
    if labels is not None:
        raise UsageError(f"labels are for arrays of images; {images} has its own")
    data = settings.data if isinstance(settings, Config) else DataConfig()
    named = dataclasses.replace(data, source=str(images))
    return named, load_data_of(named)


def _settings(settings: str | Config | None, init: RunDir | None, source: str, dataset: Dataset, *, gpu: bool) -> Tree:
    """The settings to start from."""
    if isinstance(settings, Config):
        base = dataclasses.asdict(settings)
        if settings.network == NCSNppConfig():  # as of "finetune", which says nothing of the network
            del base["network"]
        return base if init is None else starting_settings(base, init)
    recipe = chosen_recipe(settings, init, source) or recipe_for(dataset, source, gpu=gpu)
    for note in recipe.notes():
        say(note)
    return recipe.settings


def _fitted(base: Tree, data: DataConfig, dataset: Dataset, *, labelled: bool) -> Config:
    """The configuration for the data: with labels, a conditional one, of their number of classes unless one is set."""
    asked: dict[str, dict[str, Any]] = {"data": {"source": data.source, "size": data.size, "crop": data.crop}}
    return resolve_new(base, asked, dataset, conditional=labelled and not base.get("network", {}).get("num_classes"))


def _labelled(pixels: np.ndarray, labels: np.ndarray | Sequence[int] | Sequence[str] | None) -> Dataset:
    if labels is None:
        return Dataset(pixels, None)
    numbered = check_labels("labels", np.asarray(labels), len(pixels))
    if numbered.numbers is None:
        raise DataError(f"labels cannot be used: {numbered.note}")
    return Dataset(pixels, numbered.numbers, numbered.classes)
