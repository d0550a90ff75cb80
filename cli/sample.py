"""`ict sample`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from ict_backends.errors import UsageError
from ict_cli.options import (
    backend_option,
    batch_option,
    check_output,
    debug_option,
    device_option,
    open_backend,
    resolve_labels,
    resolve_sigmas,
    seed_option,
    steps_options,
    weights_option,
)

if TYPE_CHECKING:
    from tqdm import tqdm

    from ict_backends.protocols import Model


@click.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The output: x.png (a grid), x.npz, or a new folder."
)
@backend_option
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="Number of images.")
@steps_options
@seed_option
@click.option(
    "--labels",
    help="Classes of the images, for a conditional model: 3 or 0,1,2 (in turn), balanced (all in turn), or random.  "
    "[default: balanced]",
)
@click.option("--trajectory", is_flag=True, help="Show the input and the output of every step of each image instead.")
@weights_option
@batch_option
@device_option
@click.option("--dry-run", is_flag=True, help="Check everything, print what would be done, and stop.")
@debug_option
def sample_command(
    run: Path,
    out: Path,
    backend: str,
    num: int,
    steps: int | None,
    sigmas: str | None,
    seed: int,
    labels: str | None,
    trajectory: bool,
    weights: str,
    batch_size: int,
    device: str,
    dry_run: bool,
) -> None:
    """Draw images from a trained model.

    The noise of image number i depends only on --seed and i: the same seed gives the same images at any batch size.

    An interrupted command can be repeated: it then draws only what is missing in the folder or the .npz file. Under
    torchrun, or wherever RANK and WORLD_SIZE are set, processes share the work.
    """
    from ict_backends.environment import share_of_work
    from ict_backends.runs.folder import RunDir

    config = RunDir(run).load_config()
    levels = resolve_sigmas(config, steps, sigmas, run=run)
    classes = resolve_labels(config, labels, num, seed=seed)
    drawing = _Drawing(out, num, levels, seed, classes, batch_size, *share_of_work())
    recipe = _recipe(run, weights, drawing, labels)
    _check_output(out, recipe, trajectory, create=not dry_run)
    model = open_backend(backend, device).load_model(run, weights=weights, device=device)
    if dry_run:
        click.echo(f"would draw {num} images at sigmas {', '.join(f'{s:g}' for s in levels)} into {out}")
        return
    if out.suffix != ".png":
        _write_many(model, drawing, recipe)
    elif drawing.rank == 0 and trajectory:
        _write_trajectory(model, drawing)
    elif drawing.rank == 0:
        _write_grid(model, drawing)
    if drawing.rank == 0:
        click.echo(f"{num} images: {out}")


class _Drawing(NamedTuple):
    """The samples to draw, their destination, and the place of this process among those that draw them.

    Attributes:
        out: the file or folder.
        num: number of images.
        sigmas: falling noise levels, one for each step.
        seed: seed of the noise.
        labels: [num] classes, or None.
        batch: number of images computed at a time.
        rank, world: the number of this process, and the number of processes.
    """

    out: Path
    num: int
    sigmas: list[float]
    seed: int
    labels: np.ndarray | None
    batch: int
    rank: int
    world: int


def _recipe(run: Path, weights: str, drawing: _Drawing, labels: str | None) -> dict[str, object]:
    """The settings that determine the samples: equal settings give equal samples.

    Args:
        labels: the value of --labels.
    """
    from ict_backends.runs.checkpoint import read_digest
    from ict_backends.runs.folder import RunDir

    return {
        "weights": weights,
        "sha256": read_digest(RunDir(run).checkpoint_of(weights)),
        "num": drawing.num,
        "sigmas": drawing.sigmas,
        "seed": drawing.seed,
        "labels": labels,
    }


def _check_output(out: Path, recipe: dict[str, object], trajectory: bool, *, create: bool) -> None:
    """Raise UsageError unless the samples can be written to `out`."""
    from ict_backends.sampling.files import check_sink

    if trajectory and out.suffix != ".png":
        raise UsageError(f"--out {out} must end in .png for --trajectory")
    if out.suffix:
        check_output(out, (".png", ".npz"), create=create)
    elif out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not an empty folder; choose another one")
    if out.suffix != ".png":
        check_sink(out, recipe)


def _write_grid(model: Model, drawing: _Drawing) -> None:
    from ict_backends.images import save_grid, to_uint8
    from ict_backends.sampling.batches import sample_images

    with _bar(drawing.num) as bar:
        images = sample_images(
            model,
            drawing.num,
            sigmas=drawing.sigmas,
            seed=drawing.seed,
            labels=drawing.labels,
            batch=drawing.batch,
            on_batch=bar.update,
        )
    save_grid(drawing.out, to_uint8(images))


def _write_trajectory(model: Model, drawing: _Drawing) -> None:
    """Draw one row for each image: for every step its input, scaled to be visible, and its output."""
    from einops import rearrange

    from ict_backends.images import save_grid, to_uint8
    from ict_backends.sampling.batches import trajectory

    sigmas = drawing.sigmas
    pictures = trajectory(
        model, drawing.num, sigmas=sigmas, seed=drawing.seed, labels=drawing.labels, batch=drawing.batch
    )
    for i, sigma in enumerate(sigmas):
        # With this scale, images in [-1, 1] plus noise of standard deviation s stay in about that range.
        pictures[2 * i] /= np.sqrt(sigma**2 + 1)
    save_grid(drawing.out, to_uint8(rearrange(pictures, "k n c h w -> (n k) c h w")), columns=2 * len(sigmas))


def _write_many(model: Model, drawing: _Drawing, recipe: dict[str, object]) -> None:
    from ict_backends.images import to_uint8
    from ict_backends.sampling.batches import sample_batches
    from ict_backends.sampling.files import draw_into, open_sink, share

    sigmas, seed, labels = drawing.sigmas, drawing.seed, drawing.labels
    batch, rank, world = drawing.batch, drawing.rank, drawing.world
    sink = open_sink(drawing.out, drawing.num, recipe, rank=rank)
    if sink is None:
        return

    def draw(indices: Sequence[int]) -> Iterator[np.ndarray]:
        for images in sample_batches(model, indices, sigmas=sigmas, seed=seed, labels=labels, batch=batch):
            yield to_uint8(images)

    with _bar(len(share(sink.missing(), batch, rank, world))) as bar:
        draw_into(sink, draw, labels, batch=batch, rank=rank, world=world, on_batch=bar.update)


def _bar(total: int) -> tqdm[Any]:
    from ict_backends.console import progress_bar

    return progress_bar(total, unit="image", leave=False)
