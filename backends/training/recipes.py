"""The preset for images of one's own, and what a new run takes over from another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from ict_backends.console import warn
from ict_backends.data.dataset import Dataset
from ict_backends.errors import UsageError
from ict_backends.runs.folder import RunDir, step_of
from ict_backends.training.step_plan import levels_at, share_at
from ict_core import Config, load_preset
from ict_core.config import literal, require
from ict_core.settings import Tree, build_sections, merge, preset_tree

# How a diffusion model is tuned where nobody says how: at the gap of 1/32 from the first step on (docs/tuning.md).
TUNING: dict[str, Any] = {"schedule": "gap", "gap_q": 32.0, "gap_stages": 1}
# The sizes of the presets for own images, and the largest images that each is taken for.
_SIZES = {16: 24, 32: 48, 64: 96}
# A run on fewer images than this, long enough to see each of them hundreds of times, takes the paper's dropout.
_FEW, _DROPOUT = 5_000, 0.3
# The preset for runs that start from the weights of another one.
FINETUNE = "finetune"


class Recipe(NamedTuple):
    """What to train with.

    Attributes:
        preset: the name of the preset.
        settings: the preset's settings, with those that these images change.
        reason: why, in words; "" if the user has asked for the preset.
    """

    preset: str
    settings: Tree
    reason: str = ""

    def notes(self) -> list[str]:
        """A line about the preset and the reason for it; none where the user has chosen it."""
        return [f"preset {self.preset}, {self.reason}"] if self.reason else []


def recipe_for(dataset: Dataset, source: str, *, gpu: bool) -> Recipe:
    """Choose the preset for images of one's own by their larger side, their number, and the device.

    Args:
        dataset: the images.
        source: where they are from, for errors.
        gpu: True if a run computes on an accelerator.

    Raises:
        UsageError: no preset is for images of this size.
    """
    channels, height, width = dataset.shape
    what = f"data {source} has images of {height}x{width}"
    size = next((size for size, most in _SIZES.items() if max(height, width) <= most), None)
    if size is None:
        ways = "16, 32 or 64" if height == width else _proportional(height, width, 64, 8)
        raise UsageError(f"{what}, which no preset is for: --size {ways} resamples them")
    preset = f"images{size}" if gpu else f"images{size}-cpu"
    config = load_preset(preset)
    multiple = 2 ** (len(config.network.channel_mult) - 1)
    if height % multiple or width % multiple:
        way = size if height == width else _proportional(height, width, size, multiple)
        raise UsageError(f"{what}, and the preset {preset} is for multiples of {multiple}: --size {way} resamples them")
    network: dict[str, object] = {
        "attention_resolutions": [height * level // size for level in config.network.attention_resolutions]
    }
    few = gpu and len(dataset.images) < _FEW
    if few:
        network["dropout"] = _DROPOUT
    count = f"{len(dataset.images):,} images of {channels}x{height}x{width}"
    reason = f"chosen for {count} on a {'GPU' if gpu else 'CPU'}"
    reason += f"; network.dropout is {_DROPOUT}, since there are fewer than {_FEW:,} images" * few
    return Recipe(preset, merge([preset_tree(preset), {"network": network}]), reason)


def _proportional(height: int, width: int, largest: int, multiple: int) -> str:
    """The options that bring images to about their proportions, with sides that are multiples, the larger `largest`."""
    sides = (max(1, round(side * largest / max(height, width) / multiple)) * multiple for side in (height, width))
    return "x".join(map(str, sides)) + " --crop center"


def chosen_recipe(preset: str | None, init: RunDir | None, source: str | None) -> Recipe | None:
    """The settings that a new run starts from; None where its images are still to choose them, by `recipe_for`.

    Args:
        preset: the preset that the user has asked for, or None.
        init: the run that the first weights are from, or None.
        source: the data that the user has asked for; None for the preset's.

    Raises:
        ConfigError, UsageError: there is no such preset, or it needs a run to start from.
    """
    if init is not None:
        return recipe_from(init, preset)
    if preset == FINETUNE:
        raise UsageError(f"--preset {FINETUNE} needs --init RUN, the run to start from")
    own = source not in (None, "digits")
    if preset is None and own:
        return None
    if own and str(preset).startswith("digits"):
        warn(f"--preset {preset} is tuned for 1,797 digits of 8x8; without it, a preset is chosen that fits the images")
    return Recipe(preset or "digits", preset_tree(preset or "digits"))


def starting_settings(base: Tree, run: RunDir) -> Tree:
    """The settings of a new run that starts from another one's weights: given ones, except those of the model.

    Where the given ones have a section of the network, what it says of training stays: dropout, for instance.
    """
    model = settings_of_model(run)
    return merge([{**base, "network": {}}, model, {"network": _of_training(base, model["network"])}])


# What a network's weights and samples do not depend on.
_OF_TRAINING = ("dropout", "dropout_resolution", "checkpoint")


def _of_training(base: Tree, model: dict[str, object]) -> dict[str, object]:
    """What given settings say of a network in training, for a model with a network of these ones."""
    if "network" not in base:
        return {}
    given = dataclasses.asdict(build_sections({"network": base["network"]})["network"])
    return {name: given[name] for name in _OF_TRAINING if name in given and name in model}


def settings_of_model(run: RunDir) -> dict[str, dict[str, object]]:
    """The settings that make a run's weights the function that they are, for a new run that starts from them.

    They are those of the network, of the scalings and of the noise levels, the second one of sampling included.
    """
    config = run.load_config()
    noise = {name: getattr(config.noise, name) for name in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    return {"network": dataclasses.asdict(config.network), "noise": noise, "sample": dataclasses.asdict(config.sample)}


def recipe_from(run: RunDir, preset: str | None) -> Recipe:
    """The settings of a new run that starts from the weights of another one.

    Args:
        run: the other run.
        preset: the preset that the user has asked for; None for that of fine-tuning, with the number of levels of the
            run's last stage.
    """
    config, settings = run.load_config(), starting_settings(preset_tree(preset or FINETUNE), run)
    if preset not in (None, FINETUNE):
        return Recipe(preset, settings)
    reached, reason = _where_it_ended(config, _steps_done(run))
    return Recipe(FINETUNE, merge([settings, {"curriculum": reached}]), f"for the weights of {run.path}, {reason}")


def notes_on(config: Config, init: RunDir | None) -> list[str]:
    """What there is to say of the settings of a new run, and the run that its first weights are from, if any."""
    if config.curriculum.schedule != "gap" or init is not None:
        return []
    return ["the gap rule is for tuning a diffusion model (--init RUN); this run starts from scratch"]


def check_family(run: RunDir, asked: Tree) -> None:
    """Raise ConfigError if the user asks for a network of another family than that of the run to start from."""
    family = run.load_config().network.family
    given = asked.get("network", {}).get("family", family)
    require(given == family, "network.family", given, f"{literal(family)}, the architecture of --init {run.path}")


def _steps_done(run: RunDir) -> int:
    """The steps that a run's weights were trained for: those of its newest or chosen checkpoint."""
    return run.steps_done() if run.chosen is None else step_of(run.chosen)


def _where_it_ended(config: Config, done: int) -> tuple[dict[str, Any], str]:
    """The curriculum of a run that goes on from where another one was, and what that was, in words.

    Args:
        config: the other run's settings.
        done: the steps that it had done; 0 of an imported one, whose weights have all of them behind them.
    """
    curriculum, last = config.curriculum, (done or config.train.total_steps) - 1
    if not curriculum.has_teacher:
        return TUNING, "which are a diffusion model's: tuned with a gap of 1/32 unless settings say otherwise"
    if curriculum.has_grid:
        levels = levels_at(config, last) if done else curriculum.s1 + 1
        reached = {"s0": min(curriculum.s0, levels - 1), "s1": levels - 1}
        return reached, f"which were trained with {levels} levels in the end"
    share = share_at(config, last)
    # A limit next to 0 makes the share 1, which is that of no q: with any q, the limit then does the same again.
    stage: dict[str, Any] = {"gap_q": 1 / share if share < 1 else curriculum.gap_q, "gap_stages": 1}
    shape: dict[str, Any] = {name: getattr(curriculum, name) for name in ("schedule", "gap_k", "gap_b", "gap_limit")}
    return shape | stage, f"which were tuned with a gap of 1/{1 / share:g} in the end"


def moved_attention(old: Config, new: Config) -> str:
    """Why the weights of a network do not fit images of another size, in words; "" if that is no reason.

    Attention is at heights, so at another size the same heights come to other levels of the network.
    """
    had, has = _levels_with_attention(old), _levels_with_attention(new)
    if had == has or old.network.attention_resolutions != new.network.attention_resolutions:
        return ""
    heights = " and ".join(map(str, new.network.attention_resolutions))
    return (
        f"it is of images of {old.data.shape[1]}x{old.data.shape[2]}: at {new.data.shape[1]}x{new.data.shape[2]}, "
        f"attention at {heights} would move from level {_places(had)} to "
        f"{_places(has)} of the network; --size {_option(old)} resamples the data"
    )


def _option(config: Config) -> str:
    _, height, width = config.data.shape
    return str(height) if height == width else f"{height}x{width}"


def _levels_with_attention(config: Config) -> list[int]:
    network, height = config.network, config.data.shape[1]
    return [i for i in range(len(network.channel_mult)) if height >> i in network.attention_resolutions]


def _places(levels: Sequence[int]) -> str:
    return " and ".join(str(i + 1) for i in levels) or "none"
