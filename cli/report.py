"""`ict report`."""

from __future__ import annotations

from pathlib import Path

import click

from ict_backends.errors import UsageError
from ict_cli.options import (
    PATH,
    backend_option,
    check_output,
    debug_option,
    device_option,
    examples,
    open_backend,
)

_SHOWN = 8


@click.command(
    "report",
    epilog=examples(
        "ict report runs/mine",
        "ict report runs/mine --out report.html",
    ),
)
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, help="HTML file to write.  [default: RUN/report.html]")
@backend_option
@device_option
@debug_option
def report_command(run: Path, out: Path | None, backend: str, device: str) -> None:
    """Write a page about a run: samples over time, losses, evaluations, settings, nearest training images.

    The page is one HTML file that needs no network and no other files.
    """
    import numpy as np

    from ict_backends.data.dataset import load_data_of
    from ict_backends.errors import UserError
    from ict_backends.files import write_atomically
    from ict_backends.reports.page import build_report
    from ict_backends.runs.folder import check_training_data, open_run
    from ict_backends.sampling.batches import preview

    place = open_run(run)
    config = place.load_config()
    out = out or place.path / "report.html"
    if out.suffix.lower() != ".html":
        raise UsageError(f"--out {out} must end in .html")
    check_output(out, (".html",), create=False)
    model = open_backend(backend, device).load_model(run, device=device)
    images: np.ndarray | None
    try:
        dataset = load_data_of(config.data)
        check_training_data(place, config, dataset)
        images = dataset.images
    except UserError as error:
        click.echo(f"Warning: without nearest training images: {error}", err=True)
        images = None
    page = build_report(place, images, preview(model, _SHOWN))
    write_atomically(out, page.encode())
    click.echo(f"report: {out}")
