"""`ict ema`."""

from __future__ import annotations

from pathlib import Path

import click

from ict_backends.errors import UsageError
from ict_cli.options import PATH, debug_option, examples


@click.command(
    "ema",
    epilog=examples(
        "ict ema runs/mine --sigma-rel 0.07",
        "ict ema runs/mine@20000 --sigma-rel 0.12 --out runs/longer",
    ),
)
@click.argument("run", type=PATH)
@click.option(
    "--sigma-rel",
    type=float,
    required=True,
    help="Length of the average: the standard deviation of its weights over the steps, as a share of all steps so far.",
)
@click.option("--out", type=PATH, help="New folder to write.  [default: RUN-ema-LENGTH, beside RUN]")
@debug_option
def ema_command(run: Path, sigma_rel: float, out: Path | None) -> None:
    """Make an average of the weights of another length than a run has kept.

    It is made of the averages of train.ema_sigma_rel in all checkpoints of RUN up to the newest, or up to RUN@STEP; the
    more of these are kept (train.keep_every), the better it fits. The result is a run of its own, for all commands.
    """
    from ict_backends.exchange.averages import find_mixture, make_average
    from ict_backends.runs.folder import check_new_run, open_run
    from ict_core.ema import LENGTHS, is_length

    if not is_length(sigma_rel):
        raise UsageError(f"--sigma-rel must be {LENGTHS}, not {sigma_rel:g}")
    place = open_run(run)
    config = place.load_config()
    new = out or _beside(place.path, f"-ema-{sigma_rel:g}")
    check_new_run(new)
    mixture = find_mixture(place, config, sigma_rel)
    make_average(place, config, mixture, new)
    number = len(mixture.parts) * len(config.train.ema_sigma_rel)
    click.echo(
        f"{new}: the average of length {sigma_rel:g} after {mixture.step:,} steps, of {number} averages in "
        f"{len(mixture.parts)} checkpoints; misfit {mixture.misfit:.2g} (0 is exact)"
    )
    click.echo(f"More: ict eval {new}, ict sample {new} --out samples.png")


def _beside(run: Path, ending: str) -> Path:
    """The folder beside a run with its name and an ending, written as the run's is, if that shows where it lies."""
    whole = run.resolve()
    return (whole if run.name in ("", "..") else run).parent / f"{whole.name}{ending}"
