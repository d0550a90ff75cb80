"""What is said of an option or a command that does not exist: the one that may be meant, if that is clear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

# Options, and the names that other programs have for them, as in `ict_core.suggestions`.
_OPTIONS = {
    "--backend": "framework library",
    "--batch-size": "batch bs maxbatchsize samplebatchsize",
    "--data": "dataset datadir datapath ref reference traindatadir",
    "--device": "cuda gpu gpus",
    "--features": "detector inception",
    "--guidance": "cfg cfgscale guidancescale",
    "--init": "finetune fromrun initfrom pretrained transfer",
    "--labels": "class classes classidx classlabels",
    "--lr": "learningrate",
    "--num": "count n nimages nsamples numimages numsamples",
    "--out": "o output outdir outputdir savedir",
    "--size": "imagesize imgsize resolution",
    "--steps": "iterations iters maxsteps maxtrainsteps nfe numinferencesteps numsteps totalsteps",
    "--weights": "ema useema",
}
# Commands, and what others call them.
_COMMANDS = {
    "bench": "benchmark speed",
    "data": "dataset inspect",
    "edit": "colorize denoise inpaint interpolate super-resolve",
    "eval": "evaluate fid measure metrics",
    "report": "summary",
    "runs": "list ls status",
    "sample": "draw generate",
    "show": "config info presets settings",
    "train": "finetune fit resume",
}


def describe_option(name: str, command: click.Command | None) -> str:
    """What is said of an option, such as "--batchsize", that a command does not have."""
    from ict_core.settings import suggest
    from ict_core.suggestions import nearest

    options = _options(command)
    near = nearest(name, options) or _elsewhere(name.lstrip("-"), _OPTIONS, options)
    if near:
        return f"no such option {name}; did you mean {near}?"
    meant = suggest(name.lstrip("-")) if "--set" in options else None
    if meant:
        note = f" ({meant.note})" if meant.note else ""
        option = _option_of(meant.name, command) or f"--set {meant.name}=VALUE"
        return f"no such option {name}; did you mean {option}{note}?"
    return f"no such option {name}; --help lists them"


def _options(command: click.Command | None) -> list[str]:
    parameters = command.params if command else []
    return [opt for p in parameters if isinstance(p, click.Option) for opt in p.opts if opt.startswith("--")] + [
        "--help"
    ]


def _option_of(setting: str, command: click.Command | None) -> str | None:
    """The option of a command that sets a setting: its help names the setting in brackets."""
    parameters = command.params if command else []
    return next(
        (p.opts[0] for p in parameters if isinstance(p, click.Option) and f"({setting})" in (p.help or "")), None
    )


def describe_command(name: str, known: Sequence[str]) -> str:
    """What is said of a command that does not exist."""
    from ict_core.suggestions import nearest

    near = nearest(name, known) or _elsewhere(name, _COMMANDS, known)
    return f"no such command {name!r}; {f'did you mean {near}?' if near else '`ict --help` lists them'}"


def _elsewhere(name: str, table: dict[str, str], known: Iterable[str]) -> str | None:
    """The known name that stands in the table for another one."""
    from ict_core.suggestions import plain

    word, there = plain(name), set(known)
    return next((ours for ours, words in table.items() if ours in there and word in map(plain, words.split())), None)
