"""`ict show`."""

from __future__ import annotations

from pathlib import Path

import click

from ict_backends.errors import UsageError
from ict_cli.options import (
    PATH,
    SOURCE,
    check_replaceable,
    debug_option,
    device_option,
    examples,
)
from ict_core import Config, load_preset, preset_names

_MOST_STAGES = 16


@click.command(
    "show",
    epilog=examples(
        "ict show cifar10 --plot method.png",
        "ict show runs/mine --backend torch",
    ),
)
@click.argument("what", metavar="[PRESET|RUN]", type=SOURCE, required=False)
@click.option(
    "--plot",
    type=PATH,
    help="Draw noise levels, noise law, loss weights and curriculum into this PNG.",
)
@click.option("--backend", help="Also print the device that this backend would use.")
@device_option
@debug_option
def show_command(what: str | None, plot: Path | None, backend: str | None, device: str) -> None:
    """Print the settings, size and stages of a preset or a run; without an argument, list the presets."""
    if backend is None and device != "auto":
        raise UsageError(f"--device {device} needs --backend")
    if what is None:
        click.echo("presets: " + ", ".join(preset_names()))
        return
    config, computes = _find(what), ""
    if backend is not None:
        from ict_backends import load_backend

        computes = f"computes with: {load_backend(backend).describe_device(device)}\n"
    if plot is not None:
        from ict_backends.reports.figures import plot_method

        if plot.suffix.lower() != ".png":
            raise UsageError(f"--plot {plot} must end in .png")
        check_replaceable("--plot", plot)
        plot_method(config, plot)
    click.echo(config.to_toml())
    click.echo(f"{_describe_cost(what, config)}\n{computes}\n{_stage_table(config)}")
    if plot is not None:
        click.echo(f"plot: {plot}")


def _find(what: str) -> Config:
    if what in preset_names():
        return load_preset(what)
    if not Path(what).exists():
        load_preset(what)  # raises, suggesting the nearest name
    from ict_backends.runs.folder import open_run

    return open_run(what).load_config()


def _describe_cost(what: str, config: Config) -> str:
    """Lines about parameters, operations and memory; with the authors' parameters for presets of their networks."""
    from ict_backends.networks.cost import (
        OFFICIAL_PARAMETERS,
        forward_flops,
        forward_passes,
        mask_memory,
        step_flops,
        training_memory,
        update_memory,
    )
    from ict_backends.networks.families import count_parameters

    official = OFFICIAL_PARAMETERS.get(what)
    beside = f"; the authors' network of these sizes: {official:,}" if official else ""
    memory, images = training_memory(config), config.train.micro_batch or config.train.batch_size
    parts = (f"{name} {_mebibytes(size)}" for name, size in zip(_MEMORY, memory, strict=True))
    return "\n".join(
        [
            f"parameters: {count_parameters(config):,}{beside}",
            f"one forward pass: {_amount(forward_flops(config))}FLOP an image, two a multiplication and addition",
            f"one training step: {_amount(step_flops(config))}FLOP, {config.train.batch_size} images of "
            f"{forward_passes(config)} forward passes each",
            f"memory: {', '.join(parts)}; in all {_mebibytes(sum(memory))}, beside activations and images",
            f"        torch's update: for a moment {_mebibytes(update_memory(config))} more, without activations",
            f"        dropout masks: {_mebibytes(mask_memory(config, images))} for {images} images at a time",
        ]
    )


# The names of the sizes that `training_memory` returns.
_MEMORY = ("weights", "gradients", "optimiser", "averaged weights")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _amount(number: float) -> str:
    """A number with three digits and the prefix of a unit, such as "12.3 G"."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} P"


def _stage_table(config: Config) -> str:
    from ict_backends.training.step_plan import some_stages, stages_of

    every = stages_of(config)
    shown = some_stages(config, _MOST_STAGES)
    left_out = len(every) - len(shown)
    rows = ["stage       N    steps" + f"    ({left_out} stages between these are left out)" * (left_out > 0)]
    rows += [f"{every.index(stage):5d} {stage.n:7d}    {stage.first}..{stage.last}" for stage in shown]
    return "\n".join(rows)
