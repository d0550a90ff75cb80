"""`ict show`."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from ict_backends.runs.folder import RunDir
    from ict_core.reference import Section, Setting

_MOST_STAGES = 16


@click.command(
    "show",
    epilog=examples(
        "ict show",
        "ict show cifar10 --plot method.png",
        "ict show runs/mine --backend torch",
        "ict show --settings train",
    ),
)
@click.argument("what", metavar="[PRESET|RUN|WORD]", type=SOURCE, required=False)
@click.option(
    "--settings",
    is_flag=True,
    help="Print every setting: its default, range, meaning and source; or only those of the section WORD, or with WORD "
    "in their name or description.",
)
@click.option(
    "--plot",
    type=PATH,
    help="Draw noise levels, noise law, loss weights and curriculum into this PNG.",
)
@click.option("--backend", help="Also print the device that this backend would use.")
@device_option
@debug_option
def show_command(what: str | None, settings: bool, plot: Path | None, backend: str | None, device: str) -> None:
    """Print the settings, size and stages of a preset or a run; without an argument, list the presets."""
    if settings and (plot or backend):
        raise UsageError(f"--settings and {'--plot' if plot else '--backend'} exclude each other")
    if backend is None and device != "auto":
        raise UsageError(f"--device {device} needs --backend")
    if settings:
        from ict_core.reference import PAPERS

        click.echo("\n\n".join([*map(_describe_section, _settings_with(what)), PAPERS]))
        return
    if what is None:
        click.echo(_list_presets())
        return
    run = _find_run(what)
    config, computes = run.load_config() if run else load_preset(what), ""
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
    click.echo(f"{_describe_cost(what, config)}\n{_describe_disk(run, config)}\n{computes}\n{_stage_table(config)}")
    if plot is not None:
        click.echo(f"plot: {plot}")


def _list_presets() -> str:
    """The presets, each with a sentence."""
    from ict_core.reference import summarize_preset

    formatter = click.HelpFormatter(width=_width())
    formatter.write_dl([(name, summarize_preset(name)) for name in preset_names()])
    return formatter.getvalue() + "\n`ict show PRESET` prints one, `ict show --settings` what there is to set."


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _settings_with(word: str | None) -> list[Section]:
    """All settings by section; or those of a section, or with a word in their names or descriptions."""
    from ict_core.reference import sections
    from ict_core.settings import suggest

    every = sections()
    if word is None or any(word == section.name for section in every):
        return [section for section in every if word in (None, section.name)]
    meant = suggest(word)
    found = _matching(every, word) or (_matching(every, meant.name) if meant else [])
    if not found:
        names = ", ".join(dict.fromkeys(section.name for section in every))
        raise UsageError(f'--settings "{word}": no setting has that in its name or description; sections are {names}')
    return found


def _matching(every: list[Section], word: str) -> list[Section]:
    """The sections with only the settings that have a word, in any case, in their dotted name or description."""

    def has(section: Section, setting: Setting) -> bool:
        return word.lower() in f"{section.name}.{setting.name} {setting.about}".lower()

    some = [each._replace(settings=[s for s in each.settings if has(each, s)]) for each in every]
    return [section for section in some if section.settings]


def _describe_section(section: Section) -> str:
    blocks = [f"{section.title}: {section.about}"]
    for setting in section.settings:
        kind = setting.kind + (f", {setting.allowed}" if setting.allowed else "")
        blocks.append(f"{section.name}.{setting.name} = {setting.default}")
        blocks += [_indented(f"{kind}; from {setting.source}"), _indented(setting.about)]
    return "\n".join(blocks)


def _indented(text: str) -> str:
    return textwrap.fill(text, _width(), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _find_run(what: str) -> RunDir | None:
    """The run that is named, or None for a preset. Raises ConfigError, with the nearest name, if it is neither."""
    if what in preset_names():
        return None
    if not Path(what).exists():
        load_preset(what)  # raises, suggesting the nearest name
    from ict_backends.runs.folder import open_run

    return open_run(what)


def _describe_disk(run: RunDir | None, config: Config) -> str:
    """Lines about the size of a checkpoint, and of a run's folder: measured where there are some, else estimated."""
    from ict_backends.files import folder_usage
    from ict_backends.networks.cost import checkpoint_parts

    parts = checkpoint_parts(config)
    estimate = ", ".join(f"{name} {_mebibytes(size)}" for name, size in parts.items())
    folders = [run.chosen] if run and run.chosen else run.checkpoints()[-1:] if run else []
    measured = f"; {folders[0].name} has {_mebibytes(folder_usage(folders[0]).size)}" if folders else ""
    lines = [f"a checkpoint: {_mebibytes(sum(parts.values()))} ({estimate}){measured}"]
    if run:
        usage, kept = folder_usage(run.path), len([*run.checkpoints(), *run.best_checkpoints()])
        lines.append(
            f"on disk: {_mebibytes(usage.size)} in {usage.files} files, {kept} checkpoint{'s' * (kept != 1)} among them"
        )
        lines.append(f"weights, by --weights: {', '.join(_kinds_of_weights(run, config))}")
    return "\n".join(lines)


def _kinds_of_weights(run: RunDir, config: Config) -> list[str]:
    best = ["best"] if run.best_checkpoints() else []
    return ["ema", "raw", *best, *(f"{name} (average of this length)" for name in config.train.average_exponents)]


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
