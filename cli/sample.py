"""`ict sample`."""

from __future__ import annotations

from pathlib import Path

import click
from ict_cli.options import (
    backend_option,
    batch_option,
    check_output,
    debug_option,
    device_option,
    resolve_labels,
    resolve_sigmas,
    seed_option,
    steps_options,
    weights_option,
)


@click.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="x.png (a grid), x.npz, or a new folder.")
@backend_option
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="How many images.")
@steps_options
@seed_option
@click.option("--labels", help="Classes, in turn: 3 or 0,1,2.  [default: all in turn]")
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
    steps: int | None,
    sigmas: str | None,
    seed: int,
    labels: str | None,
    weights: str,
    batch_size: int,
    device: str,
    dry_run: bool,
) -> None:
    """Draw images from a trained model.

    Image number i depends on --seed and i alone: the same seed gives the same pictures at any batch size.
    """
    from ict_backends import load_backend
    from ict_backends.images import save_folder, save_grid, save_npz, to_uint8
    from ict_backends.rundir import RunDir
    from ict_backends.sampling import sample_images
    from tqdm import tqdm

    config = RunDir(run).load_config()
    levels = resolve_sigmas(config, steps, sigmas)
    classes = resolve_labels(config, labels, num)
    model = load_backend(backend).load_model(run, weights=weights, device=device)
    check_output(out, (".png", ".npz"), create=not dry_run)
    if dry_run:
        click.echo(f"would draw {num} images at sigmas {', '.join(f'{s:g}' for s in levels)} into {out}")
        return
    with tqdm(total=num, unit="image", dynamic_ncols=True, leave=False) as bar:
        images = to_uint8(
            sample_images(model, num, sigmas=levels, seed=seed, labels=classes, batch=batch_size, on_batch=bar.update)
        )
    if out.suffix == ".png":
        save_grid(out, images)
    elif out.suffix == ".npz":
        save_npz(out, images, classes)
    else:
        save_folder(out, images)
    click.echo(f"{num} images: {out}")
