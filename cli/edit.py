"""`ict edit`, and a subcommand for each kind of edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from ict_backends.errors import DataError, UsageError
from ict_cli.options import (
    PATH,
    backend_option,
    check_output,
    check_replaceable,
    debug_option,
    device_option,
    examples,
    guidance_option,
    open_backend,
    seed_option,
    weights_option,
)
from ict_core import Config

if TYPE_CHECKING:
    from ict_backends.runs.folder import RunDir
    from ict_backends.sampling.editing import Editor


@click.group(
    "edit",
    epilog=examples(
        "ict edit inpaint runs/mine --image photo.png --mask mask.png",
        "ict edit interpolate runs/mine --from 3 --to 7",
    ),
)
def edit_command() -> None:
    """Change images with a trained model, without further training.

    Each command writes its result, and a second picture that shows side by side the input, what the model saw of it,
    and the result; interpolate writes only the result.
    """


class EditRequest(NamedTuple):
    """The values of the argument and the options that all edits of given images share, named as their parameters."""

    run: Path
    images: tuple[Path, ...]
    out: Path
    resize: bool
    seed: int
    labels: str | None
    guidance: float
    backend: str
    weights: str
    device: str


_Command = Callable[..., None]


def _shared_options(default_out: str) -> Callable[[_Command], _Command]:
    """A decorator that adds the parameters of an `EditRequest`, and --debug."""
    decorators = [
        click.argument("run", type=PATH),
        click.option(
            "--image",
            "images",
            type=PATH,
            multiple=True,
            required=True,
            help="Image to change; repeatable.",
        ),
        click.option(
            "--out",
            type=PATH,
            default=Path(default_out),
            show_default=True,
            help="Where to write the result: x.png. The comparison is x-side-by-side.png.",
        ),
        click.option(
            "--resize",
            is_flag=True,
            help="Crop, resample and convert images that differ from the model's in size or colours.",
        ),
        seed_option,
        click.option("--labels", help="Classes of the images, in turn, if the model is conditional."),
        guidance_option,
        backend_option,
        weights_option,
        device_option,
        debug_option,
    ]

    def decorate(command: _Command) -> _Command:
        for option in reversed(decorators):  # so that the help lists the options in the order above
            command = option(command)
        return command

    return decorate


_steps_option = click.option(
    "--steps", type=click.IntRange(min=1), default=40, show_default=True, help="Evaluations of the model."
)
_sigmas_option = click.option("--sigmas", help="Falling noise levels, one per step, instead of --steps.")


@edit_command.command(
    "inpaint",
    epilog=examples(
        "ict edit inpaint runs/mine --image photo.png --mask mask.png",
        "ict edit inpaint runs/mine --image a.png --image b.png --mask mask.png --resize",
    ),
)
@_shared_options("inpaint.png")
@click.option(
    "--mask",
    type=PATH,
    required=True,
    help="Picture of what to change: white is filled in, black stays.",
)
@_steps_option
@_sigmas_option
def inpaint_command(mask: Path, steps: int, sigmas: str | None, **shared: Any) -> None:
    """Fill in the masked part of images."""
    request = EditRequest(**shared)
    config = _config(request)
    images = _images(request, config)
    known = np.broadcast_to(_read_mask(mask, config, request.resize), images.shape)
    edit = _editor(request, config, _levels(config, steps, sigmas))
    _write(request, images, np.where(known, images, np.float32(0)), edit.inpaint(images, known))


@edit_command.command(
    "colorize",
    epilog=examples(
        "ict edit colorize runs/mine --image grey.png",
        "ict edit colorize runs/mine --image grey.png --steps 10 --out colours.png",
    ),
)
@_shared_options("colorize.png")
@_steps_option
@_sigmas_option
def colorize_command(steps: int, sigmas: str | None, **shared: Any) -> None:
    """Give images new colours, but keep their luma."""
    from ict_backends.sampling.choices import check_colours
    from ict_core import to_grey

    request = EditRequest(**shared)
    config = _config(request)
    images = _images(request, config, grey_will_do=True)
    check_colours(config)
    edit = _editor(request, config, _levels(config, steps, sigmas))
    _write(request, images, to_grey(images), edit.colorize(images))


@edit_command.command(
    "super-resolve",
    epilog=examples(
        "ict edit super-resolve runs/mine --image small.png",
        "ict edit super-resolve runs/mine --image photo.png --factor 4",
    ),
)
@_shared_options("super-resolve.png")
@click.option(
    "--factor",
    type=click.IntRange(min=2),
    help="How many times larger the result is.  [default: the model's size divided by the image's]",
)
@_steps_option
@_sigmas_option
def super_resolve_command(factor: int | None, steps: int, sigmas: str | None, **shared: Any) -> None:
    """Enlarge images.

    Each pixel becomes a patch of the result that has the pixel as its mean. Images of the model's own size are first
    reduced by --factor.
    """
    from ict_backends.sampling.editing import enlarge

    request = EditRequest(**shared)
    config = _config(request)
    images, small = _load_small(request, config, factor)
    edit = _editor(request, config, _levels(config, steps, sigmas))
    _write(request, images, enlarge(small, config.data.shape[1] // small.shape[2]), edit.super_resolve(small))


@edit_command.command(
    "denoise",
    epilog=examples(
        "ict edit denoise runs/mine --image noisy.png --sigma 0.2",
        "ict edit denoise runs/mine --image photo.png --sigma 0.5 --add-noise",
    ),
)
@_shared_options("denoise.png")
@click.option(
    "--sigma", type=float, required=True, help="Standard deviation of the noise, where pixels range from -1 to 1."
)
@click.option("--add-noise", is_flag=True, help="Add this noise first, because the images are clean.")
def denoise_command(sigma: float, add_noise: bool, **shared: Any) -> None:
    """Remove noise of a known level from images.

    The model is evaluated once.
    """
    from ict_backends.sampling.choices import check_level

    request = EditRequest(**shared)
    config = _config(request)
    images = _images(request, config)
    check_level(config, sigma)
    edit = _editor(request, config, [config.noise.sigma_max])
    noisy = edit.add_noise(images, sigma) if add_noise else images
    _write(request, images, noisy, edit.denoise(noisy, sigma))


@edit_command.command(
    "stroke",
    epilog=examples(
        "ict edit stroke runs/mine --image drawing.png",
        "ict edit stroke runs/mine --image drawing.png --sigma 10 --seed 1",
    ),
)
@_shared_options("stroke.png")
@click.option(
    "--sigma",
    type=float,
    default=5.0,
    show_default=True,
    help="First noise level; a larger one keeps less of the drawing.",
)
@_steps_option
def stroke_command(sigma: float, steps: int, **shared: Any) -> None:
    """Turn coarse drawings into images."""
    from ict_backends.sampling.choices import check_level
    from ict_backends.sampling.editing import edit_levels

    request = EditRequest(**shared)
    config = _config(request)
    images = _images(request, config)
    check_level(config, sigma)
    edit = _editor(request, config, edit_levels(config, steps, below=sigma))
    _write(request, images, edit.add_noise(images, sigma), edit.stroke(images))


@edit_command.command(
    "interpolate",
    epilog=examples(
        "ict edit interpolate runs/mine --from 3 --to 7",
        "ict edit interpolate runs/mine --num 16 --out row.png",
    ),
)
@click.argument("run", type=PATH)
@click.option(
    "--from", "first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the first image."
)
@click.option(
    "--to", "last", type=click.IntRange(min=0), default=1, show_default=True, help="Number of the last image."
)
@click.option(
    "--num", type=click.IntRange(min=2), default=8, show_default=True, help="Images to draw, both ends included."
)
@click.option(
    "--out",
    type=PATH,
    default=Path("interpolate.png"),
    show_default=True,
    help="Where to write the result: x.png.",
)
@click.option("--sigmas", help="Falling noise levels, one per step.  [default: one step]")
@click.option("--labels", help="Classes of the images, in turn, if the model is conditional.  [default: 0]")
@guidance_option
@seed_option
@backend_option
@weights_option
@device_option
@debug_option
def interpolate_command(
    run: Path,
    first: int,
    last: int,
    num: int,
    out: Path,
    sigmas: str | None,
    labels: str | None,
    guidance: float,
    seed: int,
    backend: str,
    weights: str,
    device: str,
) -> None:
    """Draw images that lead from one sample to another.

    The ends are the images that `ict sample` draws with the same --seed as number --from and number --to. A conditional
    model draws all images in one class, or in the classes of --labels in turn.
    """
    from ict_backends.images import save_grid, to_uint8
    from ict_backends.runs.folder import open_run
    from ict_backends.sampling.choices import check_guidance, resolve_sigmas, warn_of_edits
    from ict_backends.sampling.editing import interpolate

    place = open_run(run)
    config = place.load_config()
    if first == last:
        raise UsageError(f"--from {first} and --to {last} are the same image")
    classes = _classes(place, config, "0" if labels is None and config.network.num_classes else labels, num)
    levels = resolve_sigmas(config, None, sigmas)
    check_guidance(config, guidance)
    warn_of_edits(config)
    check_output(out, (".png",), create=True)
    model = open_backend(backend, device).load_model(run, weights=weights, device=device)
    images = interpolate(model, first, last, num, sigmas=levels, seed=seed, labels=classes, guidance=guidance)
    save_grid(out, to_uint8(images), columns=num)
    click.echo(f"{num} images: {out}")


def _config(request: EditRequest) -> Config:
    """The run's settings. Raises UsageError if --out or --guidance does not fit."""
    from ict_backends.runs.folder import open_run
    from ict_backends.sampling.choices import check_guidance, warn_of_edits

    config = open_run(request.run).load_config()
    check_guidance(config, request.guidance)
    warn_of_edits(config)
    if request.out.suffix.lower() != ".png":
        raise UsageError(f"--out {request.out} must end in .png")
    check_output(request.out, (".png",), create=False)
    check_replaceable("--out", _beside(request.out))
    return config


def _beside(out: Path) -> Path:
    """The path of the comparison."""
    return out.with_name(f"{out.stem}-side-by-side.png")


def _images(request: EditRequest, config: Config, *, grey_will_do: bool = False) -> np.ndarray:
    """The images that --image names, [b, c, h, w] float32 in [-1, 1], of the size of the model's.

    Args:
        grey_will_do: also accept grey images, whose channel is repeated to the channels of the model.
    """
    from ict_backends.data.decode import fit_image, read_image
    from ict_backends.images import to_float

    fitted = []
    for path in request.images:
        image = read_image(path)
        if grey_will_do and len(image) == 1:
            image = image.repeat(config.data.shape[0], axis=0)
        fitted.append(fit_image(image, config.data.shape, resize=request.resize, what=f"--image {path}"))
    return to_float(np.stack(fitted))


def _load_small(request: EditRequest, config: Config, factor: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The images at the model's size, for the comparison, and the small images to enlarge: [b, c, h, w] float32."""
    from ict_backends.data.decode import read_image
    from ict_backends.images import to_float
    from ict_backends.sampling.choices import check_small, small_factor
    from ict_backends.sampling.editing import enlarge, lower

    pixels = {path: read_image(path) for path in request.images}
    first, size = request.images[0], pixels[request.images[0]].shape[1]
    if request.resize or size == config.data.shape[1]:
        if factor is None:
            raise UsageError(f"--image {first} comes to have the model's size: say by --factor how small to make it")
        images = _images(request, config)
        return images, lower(images, factor)
    factor = small_factor(config, size, factor)
    for path, image in pixels.items():
        check_small(config, image.shape, factor, f"--image {path}")
    images = to_float(np.stack(list(pixels.values())))
    return enlarge(images, factor), images


def _read_mask(path: Path, config: Config, resize: bool) -> np.ndarray:
    """The pixels to keep, [1, h, w] bool: those that are darker than middle grey in the mask."""
    from ict_backends.data.decode import fit_image, read_image, to_grey_pixels

    grey = to_grey_pixels(read_image(path))
    mask = fit_image(grey, (1, *config.data.shape[1:]), resize=resize, what=f"--mask {path}") < 128
    if mask.all() or not mask.any():
        raise DataError(f"--mask {path} is all {'black' if mask.all() else 'white'}; white is filled in, black stays")
    return mask


def _levels(config: Config, steps: int, sigmas: str | None) -> list[float]:
    """The noise levels that --sigmas gives, or else those of --steps. Raises UsageError if both are given."""
    from ict_backends.sampling.choices import edit_sigmas

    given = click.get_current_context().get_parameter_source("steps") != click.core.ParameterSource.DEFAULT
    if sigmas is not None and given:
        raise UsageError("--steps and --sigmas exclude each other")
    return edit_sigmas(config, steps, sigmas)


def _editor(request: EditRequest, config: Config, levels: list[float]) -> Editor:
    from ict_backends.runs.folder import open_run
    from ict_backends.sampling.editing import Editor

    labels = _classes(open_run(request.run), config, request.labels, len(request.images))
    engine = open_backend(request.backend, request.device)
    model = engine.load_model(request.run, weights=request.weights, device=request.device)
    return Editor(model, levels, seed=request.seed, labels=labels, guidance=request.guidance)


def _classes(run: RunDir, config: Config, labels: str | None, num: int) -> np.ndarray | None:
    """The classes of `num` images, as `resolve_labels` returns them; what is taken without --labels is said."""
    from ict_backends.runs.folder import class_counts, class_names
    from ict_backends.sampling.choices import resolve_labels

    names = class_names(run, config)
    classes = resolve_labels(config, labels, num, counts=class_counts(run, config), names=names)
    if classes is not None and click.get_current_context().params["labels"] is None:
        taken = [names[label] if names else str(label) for label in dict.fromkeys(classes.tolist())]
        click.echo(f"classes: {', '.join(taken)}, since --labels is not given")
    return classes


def _write(request: EditRequest, images: np.ndarray, seen: np.ndarray, result: np.ndarray) -> None:
    """Write the result, a single image as it is and several as a grid, and the comparison beside it.

    Args:
        images: the input, [b, c, h, w] in [-1, 1].
        seen: what the model saw of the input, of the same shape; values outside [-1, 1] are clipped.
        result: the output of the model, of the same shape; values outside [-1, 1] are clipped.
    """
    from einops import rearrange

    from ict_backends.files import write_atomically
    from ict_backends.images import encode_picture, save_grid, to_uint8
    from ict_backends.sampling.editing import side_by_side

    request.out.parent.mkdir(parents=True, exist_ok=True)
    if len(result) == 1:
        write_atomically(request.out, encode_picture(rearrange(to_uint8(result[0]), "c h w -> h w c")))
    else:
        save_grid(request.out, to_uint8(result))
    beside = _beside(request.out)
    save_grid(beside, side_by_side(images, seen, result), columns=3)
    click.echo(f"{request.out}; input, what the model saw, result: {beside}")
