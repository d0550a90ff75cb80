"""`ict report`."""

from __future__ import annotations

from pathlib import Path

import click

from ict_backends.errors import UsageError
from ict_cli.options import backend_option, check_output, debug_option, device_option, open_backend

_SHOWN = 8


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page's file.  [default: RUN/report.html]")
@backend_option
@device_option
@debug_option
def report_command(run: Path, out: Path | None, backend: str, device: str) -> None:
    """Write an HTML page about a run: samples over time, losses, evaluations, settings, nearest training images.

    The page is one file, which needs no other file and no network.
    """
    import numpy as np

    from ict_backends.data.dataset import load_data_of
    from ict_backends.errors import UserError
    from ict_backends.files import write_atomically
    from ict_backends.reports.page import build_report
    from ict_backends.runs.folder import RunDir
    from ict_backends.sampling.batches import preview

    config = RunDir(run).load_config()
    out = out or run / "report.html"
    if out.suffix != ".html":
        raise UsageError(f"--out {out} must end in .html")
    check_output(out, (".html",), create=False)
    model = open_backend(backend, device).load_model(run, device=device)
    images: np.ndarray | None
    try:
        images = load_data_of(config.data).images
    except UserError as error:
        click.echo(f"Warning: without nearest training images: {error}", err=True)
        images = None
    page = build_report(RunDir(run), images, preview(model, _SHOWN))
    write_atomically(out, page.encode())
    click.echo(f"report: {out}")
