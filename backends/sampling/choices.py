"""What a user chooses about samples: noise levels and classes, checked once for the command line and for Python."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from ict_backends.console import warn
from ict_backends.data.decode import describe_shape
from ict_backends.errors import DataError, UsageError
from ict_backends.randomness import image_labels
from ict_backends.runs.folder import RunDir
from ict_backends.sampling.batches import proportional_labels, usual_solver
from ict_backends.sampling.editing import edit_levels
from ict_backends.sampling.search_sigmas import load_sigmas
from ict_core import Config, heun_sigmas
from ict_core.sampling import check_falling_sigmas

# The value of --labels: a word or classes with commas between them; or, in Python, classes by number or name.
Labels = str | int | Sequence[int | str]

# How noise becomes an image: by the consistency function, in a few steps; or by the ODE of a diffusion model.
SOLVERS = ("multistep", "heun")
_HEUN_STEPS = 18  # EDM, for CIFAR-10
# More steps are a slip of the finger.
_MOST_STEPS = 10_000
# Warn of a first level below this share of sigma_max.
_NEAR_FIRST = 0.5
# More than anyone takes, and too little for an overflow.
_MOST_GUIDANCE = 1000
# An error lists so many names of classes, and shows so much of what was given.
_NAMES, _SHOWN = 10, 60


def resolve_solver(config: Config, solver: str | None, *, clip_steps: bool = False) -> str:
    """How samples are drawn: the value of --solver, or by default "heun" for diffusion models and else "multistep".

    A solver for which the model was not trained leads to a warning.

    Raises:
        UsageError: there is no such solver, or --clip-steps does not fit it.
    """
    usual, _ = usual_solver(config)
    chosen = solver or usual
    if chosen not in SOLVERS:
        raise UsageError(f"--solver {chosen} must be {' or '.join(SOLVERS)}")
    if clip_steps and chosen == "heun":
        raise UsageError("--clip-steps is for --solver multistep")
    if chosen != usual == "heun":
        warn("the model is a diffusion model: in one step or a few it gives blurred means of images; --solver heun")
    elif chosen != usual:
        warn(f'--solver heun is for diffusion models; curriculum.schedule = "{config.curriculum.schedule}" trains none')
    return chosen


def resolve_sigmas(
    config: Config,
    steps: int | None,
    sigmas: str | Sequence[float] | None,
    *,
    run: RunDir | None = None,
    solver: str = "multistep",
) -> list[float]:
    """The falling noise levels to sample at, one per step: those of --sigmas, or the first --steps known levels.

    The known levels are those that `ict search-sigmas` found for `run`, or else the two of the settings. A first level
    of --sigmas that is far below sigma_max leads to a warning.

    Args:
        config: the settings of the model's run.
        steps: the number of steps, >= 1; None for 1, or for as many as `sigmas` has.
        sigmas: the levels, as numbers or as text with commas between them.
        run: the run whose levels may have been searched.
        solver: from `resolve_solver`; "heun" takes any number of steps, 18 by default.

    Raises:
        UsageError: the options exclude each other, or their values are not allowed; the message says what is.
        CheckpointError: the levels of the run cannot be read.
    """
    first, second = config.noise.sigma_max, config.sample.second_sigma
    if sigmas is None and solver == "heun":
        return _heun_levels(config, _HEUN_STEPS if steps is None else steps)
    if sigmas is None:
        known = (load_sigmas(run) if run else []) or [first, second]
        check_at_least("steps", 1 if steps is None else steps, 1)
        if (steps or 1) > len(known):
            raise UsageError(
                f"--steps {steps} needs its levels: --sigmas {first:g},... with {steps} falling values, or "
                f"`ict search-sigmas RUN --steps {steps}` first"
            )
        return known[: steps or 1]
    if steps is not None:
        raise UsageError("--steps and --sigmas exclude each other")
    texts = sigmas.split(",") if isinstance(sigmas, str) else [f"{sigma}" for sigma in sigmas]
    shown = _shorten(",".join(texts))
    try:
        levels = [float(text) for text in texts]
        check_falling_sigmas(levels, sigma_min=config.noise.sigma_min, sigma_max=first)
        if solver == "heun" and levels[-1] == config.noise.sigma_min:
            raise ValueError(f"the last level must be > {levels[-1]:g} (noise.sigma_min) for --solver heun")
    except ValueError as error:
        raise UsageError(f"--sigmas {shown}: {error}") from error
    if solver == "heun":
        _warn_of_one(levels)
    if levels[0] < _NEAR_FIRST * first:
        warn(
            f"--sigmas {shown}: the first level is far below {first:g} (noise.sigma_max), where the first images are "
            "nothing but noise: they will have too little contrast"
        )
    return levels


def _heun_levels(config: Config, steps: int) -> list[float]:
    """The levels of so many steps of Heun's method. Raises UsageError if there are no such, or too many."""
    check_at_least("steps", steps, 1)
    if steps > _MOST_STEPS:
        raise UsageError(f"--steps {steps} must be at most {_MOST_STEPS:,} for --solver heun")
    noise = config.noise
    levels = heun_sigmas(steps, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, rho=noise.rho)
    _warn_of_one(levels)
    return levels


def _warn_of_one(levels: Sequence[float]) -> None:
    if len(levels) == 1:
        warn(f"in one step, a diffusion model gives blurred means of images; --steps {_HEUN_STEPS} is usual")


def warn_of_edits(config: Config) -> None:
    """Warn if a model whose samples are to be edited, or led from one to another, is a diffusion model."""
    if not config.curriculum.has_teacher:
        warn("the model is a diffusion model: edits take it for a consistency model, and give blurred means of images")


def resolve_labels(
    config: Config,
    labels: Labels | None,
    num: int,
    *,
    seed: int = 0,
    counts: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray | None:
    """The classes of images 0..num-1, [num] int64; None for an unconditional model.

    Args:
        config: the settings of the model's run.
        labels: the value of --labels: classes that take turns, by number or name, such as "3", "0,1,2" or
            "leaves,rock"; "balanced" or None for all classes in turn; "data" for the proportions of the data; or
            "random", where the class of image i depends only on the seed and i. An integer is always a number.
        num: the number of images, >= 1.
        seed: of random classes.
        counts: how many images of each class the data have, [num_classes]; None if that is not known.
        names: the names of the classes, [num_classes]; None if that is not known.

    Raises:
        UsageError: the value is not allowed; the message says what is.
    """
    classes = config.network.num_classes
    if not classes:
        if labels is not None:
            raise UsageError(f"--labels {_as_text(labels)}: the model is unconditional (network.num_classes = 0)")
        return None
    if isinstance(labels, str):
        if labels == "random":
            return image_labels(seed, range(num), classes)
        if labels == "data":
            if counts is None:
                raise UsageError("--labels data: the run does not say how many images of each class its data have")
            return proportional_labels(counts, num)
    if labels is None or (isinstance(labels, str) and labels == "balanced"):
        return np.arange(num, dtype=np.int64) % classes
    asked = _as_list(labels)
    if not asked:
        raise UsageError("--labels must name at least one class")
    what = f"--labels {_as_text(labels)}"
    return np.resize(np.array([_number(what, label, classes, names) for label in asked], dtype=np.int64), num)


def as_labels(labels: Labels | np.ndarray | None) -> Labels | None:
    """The value of --labels where an array is allowed, too, which becomes a list."""
    if not isinstance(labels, (np.ndarray, np.integer)):
        return labels
    values: Labels = labels.tolist()
    return values


def _number(what: str, label: int | str, classes: int, names: Sequence[str] | None) -> int:
    """The number of a class that is given by its number, its number as text, or its name."""
    try:
        number = int(label) if isinstance(label, str) else operator.index(label)
    except (ValueError, TypeError):
        if names is None:
            raise UsageError(f'{what} must be integers such as 3 or 0,1,2, "balanced", "data" or "random"') from None
        if label not in names:
            some = ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
            raise UsageError(
                f"{what}: there is no class {label}; the classes are {some} (0..{classes - 1}); there are also "
                '"balanced", "data" and "random"'
            ) from None
        return names.index(str(label))
    if not 0 <= number < classes:
        raise UsageError(f"{what}: {number} is not in 0..{classes - 1}")
    return number


def _as_list(labels: Labels) -> list[int | str]:
    if isinstance(labels, str):
        return list(labels.split(","))
    return [labels] if isinstance(labels, int) else list(labels)


def _as_text(labels: Labels) -> str:
    return _shorten(",".join(map(str, _as_list(labels))))


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_at_least(option: str, value: int, least: int) -> None:
    """Raise UsageError unless the value of an option, given by its name without dashes, is `least` or more."""
    if value < least:
        raise UsageError(f"--{option} {value} must be at least {least}")


def check_seed(seed: int) -> None:
    """Raise UsageError unless --seed is one that there is."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed} must be in 0..2**63 - 1")


def check_guidance(config: Config, guidance: float) -> None:
    """Check --guidance, the scale of classifier-free guidance, before anything is drawn; 1 is none.

    A model that was trained with its class on every image leads to a warning: what it gives without one was never
    trained.

    Raises:
        UsageError: there is no such scale, or the model has no classes.
    """
    if not 0 <= guidance <= _MOST_GUIDANCE:
        raise UsageError(f"--guidance {guidance:g} must be in [0, {_MOST_GUIDANCE}]; 1 is no guidance")
    if guidance == 1:
        return
    if not config.network.num_classes:
        raise UsageError(f"--guidance {guidance:g}: the model is unconditional (network.num_classes = 0)")
    if not config.train.label_dropout:
        warn(
            f"--guidance {guidance:g}: the model was trained without train.label_dropout, so that it never learnt what "
            "images without a class are: guidance may harm them"
        )


def check_level(config: Config, sigma: float) -> None:
    """Raise UsageError unless --sigma, the noise level of an edit, is one of the model's."""
    low, high = config.noise.sigma_min, config.noise.sigma_max
    if not low < sigma <= high:
        raise UsageError(f"--sigma {sigma:g} must be in ({low:g}, {high:g}]")


def edit_sigmas(config: Config, steps: int, sigmas: str | Sequence[float] | None) -> list[float]:
    """The falling noise levels of an edit: those of --sigmas, or a schedule of --steps. Raises UsageError."""
    check_at_least("steps", steps, 1)
    return edit_levels(config, steps) if sigmas is None else resolve_sigmas(config, None, sigmas)


def check_colours(config: Config) -> None:
    """Raise UsageError unless the model's images have colours."""
    if config.data.shape[0] != 3:
        raise UsageError("colorize needs a model of RGB images; this one's are grey")


def small_factor(config: Config, size: int, factor: int | None) -> int:
    """How many times larger super-resolution makes images.

    Args:
        config: the settings of the model's run.
        size: the height of the small images.
        factor: the value of --factor; by default the model's size divided by `size`.

    Raises:
        UsageError: the factor does not divide the size of the model's images.
    """
    _, height, width = config.data.shape
    chosen = max(1, height // size) if factor is None else factor
    if chosen < 1 or height % chosen or width % chosen:
        sides = height if height == width else f"{height}x{width}"
        raise UsageError(f"--factor {chosen} must divide the size of the model's images, {sides}")
    return chosen


def check_small(config: Config, shape: Sequence[int], factor: int, what: str) -> None:
    """Raise DataError unless an image can be enlarged to the model's size.

    Args:
        config: the settings of the model's run.
        shape: [channels, height, width] of the image.
        factor: how many times larger it becomes, which divides the model's size.
        what: names the image in the error, such as "--image x.png".
    """
    channels, height, width = config.data.shape
    needed = (channels, height // factor, width // factor)
    if tuple(shape) != needed:
        raise DataError(
            f"{what} is {describe_shape(shape)}; to be enlarged by --factor {factor} it must be "
            f"{describe_shape(needed)}; --resize makes it fit"
        )
