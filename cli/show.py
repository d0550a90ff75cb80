"""`ict show`."""

from __future__ import annotations

from pathlib import Path

import click
from ict_backends.errors import UsageError
from ict_cli.options import debug_option, device_option

from ict_core import Config, load_preset, preset_names, stages


@click.command("show")
@click.argument("what", metavar="[PRESET|RUN]", required=False)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw levels, noise law, weights and curriculum into a PNG."
)
@click.option("--backend", help="Say too what this backend would compute on.")
@device_option
@debug_option
def show_command(what: str | None, plot: Path | None, backend: str | None, device: str) -> None:
    """Print the settings, size and stages of a preset or a run; without an argument, the presets there are."""
    if backend is None and device != "auto":
        raise UsageError(f"--device {device} needs --backend")
    if what is None:
        click.echo("presets: " + ", ".join(preset_names()))
        return
    from ict_backends.networks import count_parameters

    config = _find(what)
    click.echo(config.to_toml())
    click.echo(f"parameters: {count_parameters(config):,}")
    if backend is not None:
        from ict_backends import load_backend

        click.echo(f"computes with: {load_backend(backend).describe_device(device)}")
    click.echo()
    click.echo(_stage_table(config))
    if plot is not None:
        from ict_cli.plot import plot_method

        if plot.suffix != ".png":
            raise UsageError(f"--plot {plot} must end in .png")
        plot_method(config, plot)
        click.echo(f"plot: {plot}")


def _find(what: str) -> Config:
    from ict_backends.rundir import RunDir

    if what in preset_names():
        return load_preset(what)
    if not Path(what).exists():
        load_preset(what)  # raises, suggesting the nearest name
    return RunDir(Path(what)).load_config()


def _stage_table(config: Config) -> str:
    curriculum = config.curriculum
    rows = ["stage       N    steps"]
    for i, stage in enumerate(stages(config.train.total_steps, s0=curriculum.s0, s1=curriculum.s1)):
        rows.append(f"{i:5d} {stage.n:7d}    {stage.first}..{stage.last}")
    return "\n".join(rows)
