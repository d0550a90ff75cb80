"""`ict edit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from ict_backends.errors import DataError, UsageError
from ict_cli.options import (
    backend_option,
    check_output,
    debug_option,
    device_option,
    open_backend,
    resolve_labels,
    resolve_sigmas,
    seed_option,
    weights_option,
)
from ict_core import Config

if TYPE_CHECKING:
    from ict_backends.sampling.batches import Model
    from ict_backends.sampling.editing import Editor


@click.group("edit")
def edit_command() -> None:
    """Change images with a trained model, without training for it.

    Each writes the result, and beside it a picture of input, what the model saw of it, and result.
    """


class Request(NamedTuple):
    """What every edit is asked for; see the options of the same names."""

    run: Path
    images: tuple[Path, ...]
    out: Path
    resize: bool
    seed: int
    labels: str | None
    backend: str
    weights: str
    device: str


def _edit_options(command: Callable[..., None]) -> Callable[..., None]:
    """The argument RUN and the options of a `Request`, which the command takes as its first argument."""
    name = command.__name__.removesuffix("_command").replace("_", "-")

    def gather(**options: Any) -> None:
        own = {key: value for key, value in options.items() if key not in Request._fields}
        shared = {key: value for key, value in options.items() if key in Request._fields}
        command(Request(**shared), **own)

    gather.__doc__, gather.__name__ = command.__doc__, command.__name__
    gather.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    decorators = [
        click.argument("run", type=click.Path(path_type=Path)),
        click.option(
            "--image", "images", type=click.Path(path_type=Path), multiple=True, required=True, help="Repeatable."
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path(f"{name}.png"),
            show_default=True,
            help="The result: x.png. Beside it comes x-side-by-side.png.",
        ),
        click.option("--resize", is_flag=True, help="Cut and resample images of another size or kind to the model's."),
        seed_option,
        click.option("--labels", help="Classes of the images, in turn, for a conditional model."),
        backend_option,
        weights_option,
        device_option,
        debug_option,
    ]
    for decorate in reversed(decorators):
        gather = decorate(gather)
    return gather


def _path_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --steps and --sigmas of an edit."""
    command = click.option("--sigmas", help="Falling noise levels, one a step, instead of --steps.")(command)
    steps = click.IntRange(min=1)
    return click.option("--steps", type=steps, default=40, show_default=True, help="Evaluations of the model.")(command)


@edit_command.command("inpaint")
@_edit_options
@click.option(
    "--mask", type=click.Path(path_type=Path), required=True, help="A picture: white is filled in, black stays."
)
@_path_options
def inpaint_command(request: Request, mask: Path, steps: int, sigmas: str | None) -> None:
    """Fill in a part of images."""
    config, images = _load(request)
    known = np.broadcast_to(_read_mask(mask, config, request.resize), images.shape)
    edit = _editor(request, config, _levels(config, steps, sigmas))
    _write(request, images, np.where(known, images, np.float32(0)), edit.inpaint(images, known))


@edit_command.command("colorize")
@_edit_options
@_path_options
def colorize_command(request: Request, steps: int, sigmas: str | None) -> None:
    """Give colours to images, whose luma stays."""
    from ict_core import to_grey

    config, images = _load(request, grey_will_do=True)
    if config.data.shape[0] != 3:
        raise UsageError("colorize needs a model of RGB images; this one's are grey")
    edit = _editor(request, config, _levels(config, steps, sigmas))
    _write(request, images, to_grey(images), edit.colorize(images))


@edit_command.command("super-resolve")
@_edit_options
@click.option(
    "--factor",
    type=click.IntRange(min=2),
    help="How much larger the result is.  [default: what leads from the image's size to the model's]",
)
@_path_options
def super_resolve_command(request: Request, factor: int | None, steps: int, sigmas: str | None) -> None:
    """Make images larger: each pixel stays as the mean of a patch.

    Images of the model's own size are made smaller first, by --factor.
    """
    from ict_backends.sampling.editing import enlarge

    config = _config(request)
    images, small = _load_small(request, config, factor)
    edit = _editor(request, config, _levels(config, steps, sigmas))
    _write(request, images, enlarge(small, config.data.shape[1] // small.shape[2]), edit.super_resolve(small))


@edit_command.command("denoise")
@_edit_options
@click.option(
    "--sigma", type=float, required=True, help="Standard deviation of the noise; grey levels go from -1 to 1."
)
@click.option("--add-noise", is_flag=True, help="The images are clean: add the noise first.")
def denoise_command(request: Request, sigma: float, add_noise: bool) -> None:
    """Remove noise of a known level from images, in one evaluation."""
    config, images = _load(request)
    _check_level(config, sigma)
    edit = _editor(request, config, [config.noise.sigma_max])
    noisy = edit.add_noise(images, sigma) if add_noise else images
    _write(request, images, noisy, edit.denoise(noisy, sigma))


@edit_command.command("stroke")
@_edit_options
@click.option("--sigma", type=float, default=5.0, show_default=True, help="The first level: the larger, the freer.")
@click.option("--steps", type=click.IntRange(min=1), default=40, show_default=True, help="Evaluations of the model.")
def stroke_command(request: Request, sigma: float, steps: int) -> None:
    """Make images of coarse drawings."""
    from ict_backends.sampling.editing import edit_levels

    config, images = _load(request)
    _check_level(config, sigma)
    edit = _editor(request, config, edit_levels(config, steps, below=sigma))
    _write(request, images, edit.add_noise(images, sigma), edit.stroke(images))


@edit_command.command("interpolate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--from", "first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of an image.")
@click.option("--to", "last", type=click.IntRange(min=0), default=1, show_default=True, help="Number of another.")
@click.option("--num", type=click.IntRange(min=2), default=8, show_default=True, help="Images, both ends included.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("interpolate.png"), show_default=True)
@click.option("--sigmas", help="Falling noise levels, one a step.  [default: one step]")
@click.option("--label", type=int, help="Class, for a conditional model.")
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
    label: int | None,
    seed: int,
    backend: str,
    weights: str,
    device: str,
) -> None:
    """Draw images between two that `ict sample` draws: number --from and number --to of --seed.

    Of a conditional model, all are of one class: --label, or else 0.
    """
    from ict_backends.images import save_grid, to_uint8
    from ict_backends.runs.folder import RunDir
    from ict_backends.sampling.editing import interpolate

    config = RunDir(run).load_config()
    if first == last:
        raise UsageError(f"--from {first} and --to {last} are the same image")
    chosen = resolve_labels(config, None if label is None else str(label), num)
    if chosen is not None and label is None:
        chosen = np.zeros_like(chosen)
    levels = resolve_sigmas(config, None, sigmas)
    check_output(out, (".png",), create=True)
    model = open_backend(backend, device).load_model(run, weights=weights, device=device)
    only = None if chosen is None else int(chosen[0])
    images = interpolate(model, first, last, num, sigmas=levels, seed=seed, label=only)
    save_grid(out, to_uint8(images), columns=num)
    click.echo(f"{num} images: {out}")


def _config(request: Request) -> Config:
    """The run's settings, once the output is known to be possible."""
    from ict_backends.runs.folder import RunDir

    config = RunDir(request.run).load_config()
    if request.out.suffix != ".png":
        raise UsageError(f"--out {request.out} must end in .png")
    check_output(request.out, (".png",), create=False)
    return config


def _load(request: Request, *, grey_will_do: bool = False) -> tuple[Config, np.ndarray]:
    """The run's settings, and the images that --image names, [b, c, h, w] float32."""
    from ict_backends.data.decode import fit_image, read_image
    from ict_backends.images import to_float

    config = _config(request)
    found = []
    for path in request.images:
        image = read_image(path)
        if grey_will_do and len(image) == 1:
            image = image.repeat(config.data.shape[0], axis=0)
        found.append(fit_image(image, config.data.shape, resize=request.resize, what=f"--image {path}"))
    return config, to_float(np.stack(found))


def _load_small(request: Request, config: Config, factor: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The images at the model's size, to be shown, and their small versions, to be made larger."""
    from ict_backends.data.decode import describe_shape, read_image
    from ict_backends.images import to_float
    from ict_backends.sampling.editing import enlarge, lower

    channels, height, _ = config.data.shape
    found = {path: read_image(path) for path in request.images}
    first, size = request.images[0], found[request.images[0]].shape[1]
    if request.resize or size == height:
        if factor is None:
            raise UsageError(f"--image {first} comes to have the model's size: say by --factor how small to make it")
        images = _load(request)[1]
        return images, lower(images, factor)
    factor = factor or max(1, height // size)
    if height % factor:
        raise UsageError(f"--factor {factor} must divide the size of the model's images, {height}")
    small = (channels, height // factor, height // factor)
    wrong = [path for path, image in found.items() if image.shape != small]
    if wrong:
        raise DataError(
            f"--image {wrong[0]} is {describe_shape(found[wrong[0]].shape)}; to be enlarged "
            f"by --factor {factor} it must be {describe_shape(small)}; --resize makes it fit"
        )
    pixels = to_float(np.stack(list(found.values())))
    return enlarge(pixels, factor), pixels


def _read_mask(path: Path, config: Config, resize: bool) -> np.ndarray:
    """bool [1, h, w]: what stays, the black half of the greys."""
    from ict_backends.data.decode import fit_image, read_image, to_grey_pixels

    image = read_image(path)
    grey = to_grey_pixels(image)
    mask = fit_image(grey, (1, *config.data.shape[1:]), resize=resize, what=f"--mask {path}") < 128
    if mask.all() or not mask.any():
        raise DataError(f"--mask {path} is all {'black' if mask.all() else 'white'}; white is filled in, black stays")
    return mask


def _levels(config: Config, steps: int, sigmas: str | None) -> list[float]:
    from ict_backends.sampling.editing import edit_levels

    given = click.get_current_context().get_parameter_source("steps") != click.core.ParameterSource.DEFAULT
    if sigmas is not None and given:
        raise UsageError("--steps and --sigmas exclude each other")
    return edit_levels(config, steps) if sigmas is None else resolve_sigmas(config, None, sigmas)


def _check_level(config: Config, sigma: float) -> None:
    low, high = config.noise.sigma_min, config.noise.sigma_max
    if not low < sigma <= high:
        raise UsageError(f"--sigma {sigma:g} must be in ({low:g}, {high:g}]")


def _editor(request: Request, config: Config, levels: list[float]) -> Editor:
    from ict_backends.sampling.editing import Editor

    labels = resolve_labels(config, request.labels, len(request.images))
    model: Model = open_backend(request.backend, request.device).load_model(
        request.run, weights=request.weights, device=request.device
    )
    return Editor(model, levels, seed=request.seed, labels=labels)


def _write(request: Request, images: np.ndarray, seen: np.ndarray, result: np.ndarray) -> None:
    """The result, one image as it is and several as a grid, and the picture of input, what was seen, and result."""
    from einops import rearrange

    from ict_backends.files import write_atomically
    from ict_backends.images import encode_png, save_grid, to_uint8
    from ict_backends.sampling.editing import side_by_side

    request.out.parent.mkdir(parents=True, exist_ok=True)
    if len(result) == 1:
        write_atomically(request.out, encode_png(rearrange(to_uint8(result[0]), "c h w -> h w c")))
    else:
        save_grid(request.out, to_uint8(result))
    beside = request.out.with_name(f"{request.out.stem}-side-by-side.png")
    save_grid(beside, side_by_side(images, seen, result), columns=3)
    click.echo(f"{request.out}; input, what the model saw, result: {beside}")
