"""`ict sample`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from ict_backends.errors import UsageError
from ict_cli.options import (
    PATH,
    backend_option,
    batch_option,
    check_output,
    debug_option,
    device_option,
    examples,
    guidance_option,
    open_backend,
    released_options,
    seed_option,
    solver_option,
    steps_options,
    weights_option,
)

if TYPE_CHECKING:
    from tqdm import tqdm

    from ict_backends.protocols import Model


@click.command(
    "sample",
    epilog=examples(
        "ict sample runs/mine --out samples.png",
        "ict sample runs/mine --out samples.npz --num 50000 --steps 2",
    ),
)
@click.argument("run", type=PATH)
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="Where to write: x.png (a grid), x.npz, or a new folder.",
)
@backend_option
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="Images to draw.")
@click.option(
    "--scale",
    type=click.IntRange(1, 64),
    help="Draw each pixel of an image as so many by so many (x.png only).  [default: small images up to 32 pixels]",
)
@steps_options
@seed_option
@click.option(
    "--labels",
    help="Classes to draw in turn, such as 3 or 0,1,2; balanced: all in turn; data: in the proportions of the training "
    "data; or random.  [default: balanced]",
)
@solver_option
@guidance_option
@released_options
@click.option("--trajectory", is_flag=True, help="Show the input and output of each step instead (x.png only).")
@weights_option
@batch_option
@device_option
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and stop.")
@debug_option
def sample_command(
    run: Path,
    out: Path,
    backend: str,
    num: int,
    scale: int | None,
    steps: int | None,
    sigmas: str | None,
    seed: int,
    labels: str | None,
    solver: str | None,
    guidance: float,
    clip_steps: bool,
    truncate: bool,
    trajectory: bool,
    weights: str,
    batch_size: int,
    device: str,
    dry_run: bool,
) -> None:
    """Draw images from a trained model.

    RUN is a run's folder, or RUN@STEP for one of the checkpoints that it has kept; so it is for the other commands.

    Image number i depends only on --seed and i: the same seed gives the same pictures at any batch size. The same
    command, given again after an interruption, draws only what is missing in the folder or .npz file. Under torchrun,
    or wherever RANK and WORLD_SIZE are set, processes share the work.

    In the grid of a conditional model, each class has a row, with its name.
    """
    from ict_backends.environment import share_of_work
    from ict_backends.runs.folder import class_counts, class_names, open_run
    from ict_backends.sampling.choices import check_guidance, resolve_labels, resolve_sigmas, resolve_solver

    place = open_run(run)
    config = place.load_config()
    solver = resolve_solver(config, solver, clip_steps=clip_steps)
    levels = resolve_sigmas(config, steps, sigmas, run=place, solver=solver)
    check_guidance(config, guidance)
    counts, names = class_counts(place, config), class_names(place, config)
    classes = resolve_labels(config, labels, num, seed=seed, counts=counts, names=names)
    how = (guidance, solver, clip_steps, truncate)
    drawing = _Drawing(out, num, levels, seed, classes, *how, batch_size, *share_of_work())
    # Read once: a run that is training has another newest checkpoint a moment later.
    checkpoint = place.checkpoint_of(weights)
    recipe = _recipe(checkpoint, weights, drawing, labels)
    if trajectory and solver == "heun":
        raise UsageError("--trajectory shows the steps of --solver multistep")
    _check_output(out, recipe, trajectory, scale, create=not dry_run)
    model = open_backend(backend, device).load_model(checkpoint, weights=weights, device=device)
    if dry_run:
        by = " by Heun's method" if solver == "heun" else ""
        click.echo(f"would draw {num} images{by} at sigmas {', '.join(f'{s:g}' for s in levels)} into {out}")
        return
    if out.suffix.lower() != ".png":
        _write_many(model, drawing, recipe)
    elif drawing.rank == 0 and trajectory:
        _write_trajectory(model, drawing, names, scale)
    elif drawing.rank == 0:
        _write_grid(model, drawing, names, scale)
    if drawing.rank == 0:
        click.echo(f"{num} images: {out}")


class _Drawing(NamedTuple):
    """The samples to draw, and the share of this process in drawing them.

    Attributes:
        out: the .png or .npz file, or the folder, that the samples go to.
        num: the number of samples.
        sigmas: falling noise levels, one per step.
        labels: the classes, [num] int64, or None for an unconditional model.
        guidance: the scale of classifier-free guidance; 1 is none.
        solver: "multistep" or "heun".
        clip_steps: clip after each step, and not only at the end.
        truncate: cut values off to 8 bits instead of rounding them.
        batch: images computed at a time.
        rank: the number of this process, from 0.
        world: the number of processes.
    """

    out: Path
    num: int
    sigmas: list[float]
    seed: int
    labels: np.ndarray | None
    guidance: float
    solver: str
    clip_steps: bool
    truncate: bool
    batch: int
    rank: int
    world: int


def _recipe(checkpoint: Path, weights: str, drawing: _Drawing, labels: str | None) -> dict[str, object]:
    """The settings that determine the samples: equal ones give equal samples.

    Args:
        checkpoint: the folder of the checkpoint that the samples are drawn from.
        labels: the value of --labels.
    """
    from ict_backends.runs.checkpoint import read_digest

    return {
        "weights": weights,
        "sha256": read_digest(checkpoint),
        "num": drawing.num,
        "sigmas": drawing.sigmas,
        "seed": drawing.seed,
        "labels": labels,
        "clip_steps": drawing.clip_steps,
        "truncate": drawing.truncate,
        "guidance": drawing.guidance,
        "solver": drawing.solver,
    }


def _check_output(out: Path, recipe: dict[str, object], trajectory: bool, scale: int | None, *, create: bool) -> None:
    """Raise UsageError unless the samples can be written to `out`."""
    from ict_backends.sampling.files import check_sink

    if trajectory and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} must end in .png for --trajectory")
    if scale is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} must end in .png for --scale {scale}")
    if out.suffix:
        check_output(out, (".png", ".npz"), create=create)
    elif out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not an empty folder; choose another one")
    if out.suffix.lower() != ".png":
        check_sink(out, recipe)


def _write_grid(model: Model, drawing: _Drawing, names: Sequence[str] | None, scale: int | None) -> None:
    """Write a grid, with a class a row if the model is conditional: `names` are those of the classes, by number."""
    from ict_backends.files import write_atomically
    from ict_backends.images import encode_picture, tile, to_uint8
    from ict_backends.sampling.batches import sample_images
    from ict_backends.sampling.class_grid import class_grid

    with _bar(drawing.num) as bar:
        images = sample_images(
            model,
            drawing.num,
            sigmas=drawing.sigmas,
            seed=drawing.seed,
            labels=drawing.labels,
            batch=drawing.batch,
            clip_steps=drawing.clip_steps,
            guidance=drawing.guidance,
            solver=drawing.solver,
            on_batch=bar.update,
        )
    pixels = to_uint8(images, truncate=drawing.truncate)
    labels = drawing.labels
    picture = tile(pixels, scale=scale) if labels is None else class_grid(pixels, labels, names, scale=scale)
    write_atomically(drawing.out, encode_picture(picture))


def _write_trajectory(model: Model, drawing: _Drawing, names: Sequence[str] | None, scale: int | None) -> None:
    """Write a grid with a row per image: for each step its input, scaled to a visible range, and its output."""
    from einops import rearrange

    from ict_backends.files import write_atomically
    from ict_backends.images import encode_picture, tile, to_uint8
    from ict_backends.sampling.batches import trajectory
    from ict_backends.sampling.class_grid import caption, with_captions

    sigmas = drawing.sigmas
    pictures = trajectory(
        model,
        drawing.num,
        sigmas=sigmas,
        seed=drawing.seed,
        labels=drawing.labels,
        batch=drawing.batch,
        clip_steps=drawing.clip_steps,
        guidance=drawing.guidance,
    )
    for i, sigma in enumerate(sigmas):
        # Images in [-1, 1] with noise of standard deviation sigma are scaled back to about that range.
        pictures[2 * i] /= np.sqrt(sigma**2 + 1)
    rows = to_uint8(rearrange(pictures, "k n c h w -> (n k) c h w"), truncate=drawing.truncate)
    picture = tile(rows, columns=2 * len(sigmas), scale=scale)
    if drawing.labels is not None:
        picture = with_captions(picture, [caption(int(label), names) for label in drawing.labels])
    write_atomically(drawing.out, encode_picture(picture))


def _write_many(model: Model, drawing: _Drawing, recipe: dict[str, object]) -> None:
    from ict_backends.images import to_uint8
    from ict_backends.sampling.batches import sample_batches
    from ict_backends.sampling.files import draw_into, open_sink, share

    labels, batch, rank, world = drawing.labels, drawing.batch, drawing.rank, drawing.world
    sink = open_sink(drawing.out, drawing.num, recipe, rank=rank)
    if sink is None:
        return

    def draw(indices: Sequence[int]) -> Iterator[np.ndarray]:
        batches = sample_batches(
            model,
            indices,
            sigmas=drawing.sigmas,
            seed=drawing.seed,
            labels=labels,
            batch=batch,
            clip_steps=drawing.clip_steps,
            guidance=drawing.guidance,
            solver=drawing.solver,
        )
        for images in batches:
            yield to_uint8(images, truncate=drawing.truncate)

    with _bar(len(share(sink.missing(), batch, rank, world))) as bar:
        draw_into(sink, draw, labels, batch=batch, rank=rank, world=world, on_batch=bar.update)


def _bar(total: int) -> tqdm[Any]:
    from ict_backends.console import progress_bar

    return progress_bar(total, unit="image", leave=False)
