"""The settings, the data and the first weights of a new or resumed run, each checked before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ict_backends.console import warn
from ict_backends.data.dataset import Dataset, load_data_of
from ict_backends.environment import leave
from ict_backends.errors import CheckpointError, DataError, UsageError
from ict_backends.measuring.evaluation import images_needed
from ict_backends.measuring.metrics import METRICS
from ict_backends.networks.families import check_memory, parameter_shapes
from ict_backends.protocols import Arrays, Processes
from ict_backends.runs.checkpoint import check_arrays, load_checkpoint, load_newest
from ict_backends.runs.folder import FREE_ON_RESUME, RunDir, check_same_data, class_names, data_digest
from ict_backends.runs.lines import check_lines, is_evaluation, is_log, read_lines
from ict_backends.training.evaluator import evaluation_size
from ict_backends.training.recipes import moved_attention
from ict_backends.training.step_plan import check_levels
from ict_backends.training.tensorboard import check_tensorboard
from ict_backends.training.wandb import check_wandb
from ict_core import Config, NCSNppConfig
from ict_core.config import DataConfig
from ict_core.settings import Tree, build_sections, merge, replace

# A larger share of initial weights in the average shows in samples.
_MOST_INITIAL = 0.05


def given_settings(
    *, data: str | None, size: int | tuple[int, ...] | None, crop: str | None, steps: int | None, **train: Any
) -> Tree:
    """The settings that the command line sets by their own options; None stands for an option that is not given.

    Args:
        data, size, crop: `data.source`, `data.size` and `data.crop`.
        steps: `train.total_steps`.
        train: other settings of the section `train`.
    """
    given = {"data": {"source": data, "size": size, "crop": crop}, "train": {"total_steps": steps, **train}}
    return {section: {k: v for k, v in values.items() if v is not None} for section, values in given.items()}


def read_data(tree: Tree) -> Dataset:
    """The data that the settings of a new run name, in `data`. Raises the errors of `load_data`, and ConfigError."""
    return load_data_of(build_sections(tree).get("data", DataConfig()))


def resolve_new(base: Tree, asked: Tree, dataset: Dataset, *, conditional: bool = False) -> Config:
    """The configuration of a new run.

    Args:
        base: the settings to start from, such as a preset.
        asked: the user's settings, which win.
        dataset: the data; `data.shape` becomes theirs.
        conditional: train on the classes of the data.

    Raises:
        ConfigError, UsageError: the settings are not allowed.
        DataError: the data have another shape than the user has asked for, or other classes.
    """
    tree = merge([base, asked])
    if conditional:
        tree = merge([tree, {"network": {"num_classes": _classes_to_train_on(tree, asked, dataset)}}])
    config = fit_to_data(tree, asked, dataset.shape)
    _check_classes(config, dataset)
    return _with_a_metric(config, len(dataset.images))


def _classes_to_train_on(tree: Tree, asked: Tree, dataset: Dataset) -> int:
    """The number of the data's classes. Raises UsageError or DataError where that is not what --conditional means."""
    if "num_classes" in asked.get("network", {}):
        raise UsageError("--conditional and network.num_classes exclude each other")
    if dataset.num_classes < 2:
        source = tree.get("data", {}).get("source", DataConfig().source)
        raise DataError(f"--conditional: data {source} has {'one class' if dataset.num_classes else 'no classes'}")
    return dataset.num_classes


def _check_classes(config: Config, dataset: Dataset) -> None:
    """Raise DataError unless the network of a new run has as many classes as the data, or one of them has none."""
    classes, source = config.network.num_classes, config.data.source
    if classes and dataset.labels is not None and classes != dataset.num_classes:
        raise DataError(
            f"network.num_classes = {classes} is not the number of classes of data {source}, {dataset.num_classes}"
        )


def _with_a_metric(config: Config, images: int) -> Config:
    """The settings with an evaluation that so many images suffice for: kernel distances need no covariance."""
    metric = config.eval.metric
    needed = images_needed(metric, None, config.data.dim)
    if not config.eval.every or not METRICS[metric].of_covariance or images >= needed:
        return config
    warn(f"eval.metric is kid and not {metric}, which needs {needed:,} images at least; the data have {images:,}")
    return replace(config, eval={"metric": "kid"})


def fit_to_data(tree: Tree, asked: Tree, shape: tuple[int, ...]) -> Config:
    """The configuration of a tree of settings, with `data.shape` set to that of the data, and with an absolute path.

    Args:
        tree: all settings.
        asked: those of them that the user has set.
        shape: [channels, height, width] of the data's images.

    Raises:
        DataError: the user has asked for another shape.
        UsageError: attention is asked for at a height that no level of the network has.
    """
    sections = build_sections(tree)
    data = sections.get("data", DataConfig())
    if "shape" in asked.get("data", {}) and data.shape != shape:
        raise DataError(f"data {data.source} has images of {list(shape)}, but data.shape is set to {list(data.shape)}")
    config = Config(**sections | {"data": dataclasses.replace(data, shape=shape, source=absolute_source(data.source))})
    _check_attention(config)
    return config


def _check_attention(config: Config) -> None:
    """Raise UsageError unless every height with attention is one of a level. Runs of earlier versions may differ."""
    network = config.network
    heights = [config.data.shape[1] >> level for level in range(len(network.channel_mult))]
    if any(height not in heights for height in network.attention_resolutions):
        raise UsageError(
            f"network.attention_resolutions = {list(network.attention_resolutions)}: the levels of the network have "
            f"the heights {', '.join(map(str, heights))}, for images of {config.data.shape[1]}x{config.data.shape[2]}"
        )


def absolute_source(source: str) -> str:
    """The source of a data set so that it means the same from every folder: paths become absolute."""
    return source if source == "digits" or not Path(source).exists() else str(Path(source).absolute())


def resolve_resumed(run: RunDir, asked: Tree) -> tuple[Config, Dataset]:
    """The configuration and the data of a run to continue, after a check that they are those it was started with.

    Args:
        run: the run's folder.
        asked: the user's settings, which may differ from the run's only in `FREE_ON_RESUME`.

    Raises:
        UsageError: a setting that was asked for contradicts the run.
        CheckpointError: the run's log or all its checkpoints are damaged, or the checkpoints are gone. A run that was
            killed before its first one has none yet.
        DataError: the data are not the same.
    """
    config, done = _resumed_config(run, asked), run.steps_done()
    if not run.checkpoints() and _has_had_checkpoints(run):
        run.latest_checkpoint()  # raises
    if config.train.total_steps < done:
        raise UsageError(f"--steps {config.train.total_steps}: the run in {run.path} has done {done} steps already")
    if run.checkpoints():
        folder, checkpoint = load_newest(run, warn=lambda text: None, writes=False)  # which is told when it is used
        check_arrays(f"checkpoint {folder}: params", parameter_shapes(config), checkpoint.params)
    check_lines(run.metrics_file, is_log)
    check_lines(run.evals_file, is_evaluation)
    dataset = load_data_of(config.data)
    check_same_data(run, dataset)
    if dataset.shape != config.data.shape:
        have, needed = list(dataset.shape), list(config.data.shape)
        raise DataError(f"data {config.data.source} has images of {have}, but the run in {run.path} is of {needed}")
    return config, dataset


def _has_had_checkpoints(run: RunDir) -> bool:
    """True if the log has steps before which a checkpoint must have been written."""
    logged = max((record["step"] for record in read_lines(run.metrics_file)), default=0)
    # One is written and another waits while training goes on to the next.
    return 0 < 3 * run.load_config().train.checkpoint_every < logged


def _resumed_config(run: RunDir, asked: Tree) -> Config:
    config = run.load_config()
    known, sections = config.flat(), build_sections(asked)
    changed = {f"{s}.{key}": getattr(sections[s], key) for s, values in asked.items() for key in values}
    refused = [
        f"{name} is {known[name]} and not {value}"
        for name, value in changed.items()
        if value != known[name] and name not in FREE_ON_RESUME
    ]
    if refused:
        free = ", ".join(sorted(FREE_ON_RESUME))
        raise UsageError(
            f"--resume: the run in {run.path} has other settings: {'; '.join(refused)} (what may be changed: {free})"
        )
    allowed: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for name in changed.keys() & FREE_ON_RESUME:
        section, _, key = name.partition(".")
        allowed[section][key] = absolute_source(changed[name]) if name == "data.source" else changed[name]
    changed_config = replace(config, **allowed)
    if changed_config.train.total_steps == config.train.total_steps or config.curriculum.steps:
        return changed_config
    # The levels are those that the run would have had; all further steps have the last number of them.
    return replace(changed_config, curriculum={"steps": config.train.total_steps})


def averaged_weights(run: RunDir, config: Config, dataset: Dataset) -> tuple[Arrays, str]:
    """The averaged weights of a run's newest or chosen checkpoint, for a new run of this configuration.

    Where the classes are others, the table of the old ones is replaced (`change_classes`).

    Returns:
        The arrays by name, and what was replaced, in words; "" if nothing was.

    Raises:
        CheckpointError: they do not fit, with the reason in words, or else with both shapes of each array.
    """
    folder, old = run.checkpoint_of("ema"), run.load_config()
    what = f"--init {run.path}"
    if reason := moved_attention(old, config):
        raise CheckpointError(f"{what} does not fit: {reason}")
    known = class_names(run, old) or []
    same = old.network.num_classes == config.network.num_classes and (not known or known == list(dataset.classes))
    weights, said = load_checkpoint(folder).ema, ""
    if not same:
        weights, said = change_classes(weights, config.network.num_classes, early=_early(config))
        if config.network.num_classes and config.curriculum.schedule == "fixed":
            said += "; a whole curriculum, as that of another --preset, teaches them sooner"
    check_arrays(f"{what}: {folder.name}", parameter_shapes(config), weights)
    return {name: weights[name] for name in parameter_shapes(config)}, said


def _early(config: Config) -> bool:
    """True if labels enter a configuration's network before the dense layers of its embedding."""
    return isinstance(config.network, NCSNppConfig) and config.network.labels_at == "features"


# The arrays of both families that classes enter by: a row a class, which is added to the other layer's result.
_CLASSES, _OF_ALL = "embedding.labels.weight", "embedding.dense_1.bias"
# Where they enter early, a column a class and a bias, which are added to what this layer is given.
_CLASSES_BIAS, _FIRST, _FIRST_BIAS = "embedding.labels.bias", "embedding.dense_0.weight", "embedding.dense_0.bias"
_MERGED = "its classes are merged into one, the mean of their rows"


def change_classes(weights: Arrays, classes: int, *, early: bool = False) -> tuple[Arrays, str]:
    """The weights of a network for other classes, and what was done, in words.

    Each new class begins as the mean of the old ones or, where there were none, as the model that there is. A network
    without classes gets that mean, too. `early`: labels enter before the dense layers of the embedding.
    """
    table = weights.get(_CLASSES)
    if table is None and _OF_ALL not in weights:
        return weights, ""  # a checkpoint of something else, which the check of its arrays refuses
    count = "" if table is None else len(table.T if early else table)
    begins = "as the model that there is" if table is None else f"as the mean of the {count} old ones"
    said = f"each of the {classes} classes begins {begins}" if classes else _MERGED
    return (_change_columns if early else _change_rows)(weights, classes), said


def _change_rows(weights: Arrays, classes: int) -> Arrays:
    table = weights.get(_CLASSES)
    mean = np.zeros_like(weights[_OF_ALL]) if table is None else table.mean(axis=0)
    others = {name: array for name, array in weights.items() if name != _CLASSES}
    if not classes:
        return others | {_OF_ALL: weights[_OF_ALL] + mean}
    return others | {_CLASSES: np.tile(mean, (classes, 1))}


def _change_columns(weights: Arrays, classes: int) -> Arrays:
    """As `_change_rows`, where n classes have n columns, which the network multiplies by sqrt n."""
    table, first = weights.get(_CLASSES), weights[_FIRST]
    mean = np.zeros_like(first[0]) if table is None else table.mean(axis=1) * np.float32(table.shape[1] ** 0.5)
    bias = weights.get(_CLASSES_BIAS, np.zeros_like(mean))
    others = {name: array for name, array in weights.items() if name not in (_CLASSES, _CLASSES_BIAS)}
    if not classes:
        return others | {_FIRST_BIAS: weights[_FIRST_BIAS] + first @ (mean + bias)}
    column = mean / np.float32(classes**0.5)
    return others | {_CLASSES: np.tile(column[:, None], (1, classes)), _CLASSES_BIAS: bias}


def check_data(config: Config, dataset: Dataset) -> None:
    """Raise unless a run with these settings can be trained on the data.

    Raises:
        DataError: the network needs labels and the data have none or too large ones, or there are too few images for
            the evaluations.
        UsageError: TensorBoard or Weights & Biases is asked for and not installed, or labels are to be dropped where
            there are no classes.
        OutOfMemoryError: the weights are more than the memory of this machine.
        ConfigError: there are no such noise levels.
    """
    check_memory(config)
    check_levels(config)
    if config.train.tensorboard:
        check_tensorboard()
    if config.train.wandb:
        check_wandb()
    if config.eval.every:
        evaluation_size(config, len(dataset.images))
    classes, labels = config.network.num_classes, dataset.labels
    if not classes:
        if config.train.label_dropout:
            raise UsageError(
                f"train.label_dropout = {config.train.label_dropout:g} must be 0 for a network without classes "
                "(network.num_classes = 0; --conditional trains on those of the data)"
            )
        return
    if labels is None:
        raise DataError(f"data {config.data.source} has no labels, which network.num_classes = {classes} needs")
    if labels.max() >= classes:
        raise DataError(
            f"data {config.data.source}: label {labels.max()} is not in 0..{classes - 1} (network.num_classes)"
        )


def check_alike(processes: Processes, config: Config, dataset: Dataset, **options: object) -> None:
    """Raise UsageError in every process, in the same words, unless all train the same; every process must call this.

    Else they would train a mixture, and nothing would show it. Only the paths of the data may differ.

    Args:
        options: what else must be the same, by name.
    """
    if processes.world == 1:
        return
    mine = {name: value for name, value in config.flat().items() if name != "data.source"} | options
    texts = processes.exchange(json.dumps(mine | {"data (sha256)": data_digest(dataset)}))
    first, *others = [json.loads(text) for text in texts]
    for rank, other in enumerate(others, start=1):
        differ = [
            f"{k} is {other.get(k)} and not {first.get(k)}" for k in first | other if other.get(k) != first.get(k)
        ]
        if differ:
            leave(processes.part)
            raise UsageError(f"process {rank} of {processes.world} differs from process 0: {'; '.join(differ)}")


def warn_of_average(config: Config) -> None:
    """Warn if samples of the averaged weights will still show the initial ones, which are drawn at random: as grey."""
    decay, steps = config.train.ema_decay, config.train.total_steps
    left = decay**steps
    if left > _MOST_INITIAL:
        fits = 1 - 10 / steps
        less = f"train.ema_decay={fits:.3g} would fit" if fits > 0 else "--weights raw samples the others"
        warn(
            f"after {steps} steps, {left:.0%} of the averaged weights are still the initial ones, so that samples are "
            f"grey: train.ema_decay is {decay:g}; {less}"
        )
