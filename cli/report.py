"""`ict report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    weights_option,
)

if TYPE_CHECKING:
    from ict_backends.protocols import Backend
    from ict_backends.reports.page import Reported
    from ict_backends.runs.folder import RunDir

_SHOWN = 8


@click.command(
    "report",
    epilog=examples(
        "ict report runs/mine",
        "ict report runs/mine runs/other --out both.html",
    ),
)
@click.argument("runs", metavar="RUN [RUN2]", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, help="HTML file to write; needed for two runs.  [default: RUN/report.html]")
@weights_option
@backend_option
@device_option
@debug_option
def report_command(runs: tuple[Path, ...], out: Path | None, weights: str, backend: str, device: str) -> None:
    """Write a page about a run, or about two side by side.

    It shows the data, the command and the versions of the libraries, samples over time, losses, evaluations, settings,
    and nearest training images; of two runs also the settings that differ. The page is one HTML file that needs no
    network and no other files.
    """
    from ict_backends.files import write_atomically
    from ict_backends.reports.page import build_report
    from ict_backends.runs.folder import open_run

    if len(runs) > 2:
        raise UsageError(f"ict report takes one run, or two to lay side by side, not {len(runs)}")
    if len(runs) == 2 and out is None:
        raise UsageError("--out FILE.html is needed for two runs")
    places = [open_run(run) for run in runs]
    for place in places:
        place.load_config()
    out = out or places[0].path / "report.html"
    if out.suffix.lower() != ".html":
        raise UsageError(f"--out {out} must end in .html")
    check_output(out, (".html",), create=False)
    engine = open_backend(backend, device)
    shown = [_collect(engine, run, place, weights, device) for run, place in zip(runs, places, strict=True)]
    write_atomically(out, build_report(shown).encode())
    click.echo(f"report: {out}")


def _collect(engine: Backend[Any, Any], run: Path, place: RunDir, weights: str, device: str) -> Reported:
    """What the page says of a run; a warning where its data are not available."""
    from ict_backends.data.dataset import load_data_of
    from ict_backends.errors import UserError
    from ict_backends.reports.page import Reported
    from ict_backends.runs.folder import check_training_data
    from ict_backends.sampling.batches import preview

    config, images = place.load_config(), None
    model = engine.load_model(run, weights=weights, device=device)
    try:
        dataset = load_data_of(config.data)
        check_training_data(place, config, dataset)
        images = dataset.images
    except UserError as error:
        click.echo(f"Warning: without nearest training images: {error}", err=True)
    return Reported(place, images, preview(model, _SHOWN))
