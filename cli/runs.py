"""`ict runs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ict_backends.errors import DataError
from ict_cli.options import PATH, check_replaceable, debug_option, examples

if TYPE_CHECKING:
    from ict_backends.reports.run_list import Standing

_DEFAULT = Path("runs")
_TITLES = ("run", "preset or data", "backend", "steps", "loss", "evaluation", "size", "last change (UTC)", "")


@click.command("runs", epilog=examples("ict runs", "ict runs my-runs --json runs.json"))
@click.argument("folder", type=PATH, default=_DEFAULT)
@click.option("--json", "json_file", type=PATH, help="Also write the figures into this file.")
@debug_option
def runs_command(folder: Path, json_file: Path | None) -> None:
    """List the runs in a folder (by default, runs), with how far each has come; the newest change comes first.

    Of each run: the preset, or else the data; the backend; the steps done and to do; the newest loss; the newest value
    of the evaluations, and the best one; the size of its files; their last change; and whether it is being trained, or
    damaged. No checkpoint is read.
    """
    from ict_backends.files import write_atomically
    from ict_backends.reports.run_list import list_runs

    if json_file is not None:
        check_replaceable("--json", json_file)
    if not folder.is_dir() and folder != _DEFAULT:
        raise DataError(f"{folder} {'is no folder' if folder.exists() else 'does not exist'}; give a folder of runs")
    found = list_runs(folder)
    if found:
        click.echo("\n".join(_table([_TITLES, *(_row(run, folder) for run in found)])))
    else:
        click.echo(f"no runs in {folder}; `ict train` makes them")
    if json_file is not None:
        listed = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        record = {"folder": str(folder), "listed": listed, "runs": [run.record() for run in found]}
        write_atomically(json_file, (json.dumps(record, indent=2) + "\n").encode())


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(run: Standing, folder: Path) -> tuple[str, ...]:
    from ict_backends.data.labels import printable

    name = run.path.relative_to(folder) if run.path != folder else run.path
    evaluation = run.evaluation
    cells = (
        str(name),
        run.preset or (run.source and (Path(run.source).name or run.source)) or "-",
        run.backend or "-",
        "-" if run.step is None else f"{run.step:,}/{run.total:,}",
        "-" if run.loss is None else f"{run.loss:.4g}",
        f"{evaluation.metric} {evaluation.last:.4g} (best {evaluation.best:.4g})" if evaluation else "-",
        f"{run.size / 2**20:,.1f} MiB",
        f"{run.changed:%Y-%m-%d %H:%M}",
        ", ".join(filter(None, ["in use" * run.in_use, f"damaged: {run.damaged}" * bool(run.damaged)])),
    )
    return tuple(map(printable, cells))
