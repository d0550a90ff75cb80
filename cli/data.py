"""`ict data`."""

from __future__ import annotations

from pathlib import Path

import click

from ict_backends.errors import DataError, UsageError
from ict_cli.options import (
    PATH,
    SOURCE,
    crop_option,
    debug_option,
    examples,
    size_option,
)
from ict_core import DataConfig

_SHEET = "contact-sheet"


@click.command(
    "data",
    epilog=examples(
        "ict data my-images/ --size 32 --crop center",
        "ict data my-images/ --size 32 --pack mine.npz",
    ),
)
@click.argument("source", type=SOURCE)
@size_option
@crop_option
@click.option(
    "--sheet",
    type=PATH,
    help=f"Picture of up to a hundred images, a row per class.  [default: {_SHEET}.png, or the next free number]",
)
@click.option("--pack", type=PATH, help="Write the images into this .npz file instead.")
@click.option(
    "--skip-unreadable", is_flag=True, help="With --pack: leave out images that cannot be read, and name them."
)
@debug_option
def data_command(
    source: str,
    size: int | tuple[int, ...] | None,
    crop: str | None,
    sheet: Path | None,
    pack: Path | None,
    skip_unreadable: bool,
) -> None:
    """Describe a data set, or pack it into one .npz file.

    SOURCE is whatever --data of `ict train` takes: a folder, .zip or .tar of image files, .npz, .npy, .parquet,
    hf:NAME, or "digits"; see docs/data.md. --size and --crop change the images as they do for training.
    """
    chosen = DataConfig(source=source, size=size or 0, crop=crop or "none")
    if pack is None:
        if skip_unreadable:
            raise UsageError("--skip-unreadable is of --pack; without it, what cannot be read is only counted")
        _inspect(chosen, _new_sheet(sheet))
    elif sheet is not None:
        raise UsageError("--pack and --sheet exclude each other; inspect first, or the packed file afterwards")
    else:
        _pack(chosen, pack, skip_unreadable)


def _new_sheet(path: Path | None) -> Path:
    """The path of the contact sheet, at which nothing exists yet. Raises UsageError if `path` does not fit."""
    if path is None:
        free = (Path(f"{_SHEET}{number}.png") for number in ["", *(f"-{i}" for i in range(2, 10**6))])
        return next(path for path in free if not path.exists())
    _check_new("--sheet", path, ".png")
    return path


def _check_new(option: str, path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option} {path} must end in {suffix}")
    if path.exists():
        raise UsageError(f"{option} {path} is there already; choose another name")


def _inspect(data: DataConfig, sheet: Path) -> None:
    from ict_backends.data.inspect import inspect
    from ict_backends.files import write_atomically
    from ict_backends.images import encode_picture

    report = inspect(data.source, size=data.size, crop=data.crop)
    click.echo("\n".join([f"data: {data.source}", *report.lines()]))
    assert report.sheet is not None  # every data set that could be read has one
    write_atomically(sheet, encode_picture(report.sheet))
    click.echo(f"contact sheet: {sheet}")


def _pack(data: DataConfig, out: Path, skip_unreadable: bool) -> None:
    from ict_backends.data.dataset import load_data
    from ict_backends.data.decode import describe_shape
    from ict_backends.images import save_dataset

    _check_new("--pack", out, ".npz")
    unreadable: list[str] = []
    dataset = load_data(data.source, size=data.size, crop=data.crop, unreadable=unreadable)
    if unreadable:
        named = ", ".join(unreadable[:10]) + (", ..." if len(unreadable) > 10 else "")
        if not skip_unreadable:
            what = f"{len(unreadable)} images cannot be read ({named})"
            raise DataError(f"data {data.source}: {what}; --skip-unreadable leaves them out")
        click.echo(f"Warning: {len(unreadable)} images cannot be read and are left out: {named}", err=True)
    save_dataset(out, dataset.images, dataset.labels, dataset.classes)
    size = out.stat().st_size / 2**20
    click.echo(f"{out}: {len(dataset.images):,} images, {describe_shape(dataset.shape)}, {size:.1f} MiB")
