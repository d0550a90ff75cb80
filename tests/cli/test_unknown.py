"""Options and commands that do not exist: what is offered instead, and the options that others know."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends.runs.folder import RunDir
from ict_cli import unknown
from ict_cli.main import ict as ict_group

COMMANDS = ict_group.list_commands(click.Context(ict_group))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --batchsize 3", "--batchsize; did you mean --batch-size"),
        ("train --learning-rate 3", "--learning-rate; did you mean --lr"),
        ("train --bs=3", "--bs; did you mean --batch-size"),
        ("train --ema-decay 0.9", "--ema-decay; did you mean --set train.ema_decay=VALUE"),
        ("train --epochs 3", r"--epochs; did you mean --steps \(in steps and not in epochs\)\?"),
        ("train --xflip", r"--xflip; did you mean --set data.flip=VALUE\?"),
        ("train --image-size 3", r"--image-size; did you mean --size\?"),
        ("train --num-classes 3", r"--num-classes; did you mean --conditional\?"),
        ("ablate five-changes --ema 3", r"--ema; did you mean --set train.ema_decay=VALUE\?"),
        ("train --momentum 3", "--momentum; --help lists them$"),
        ("train --num-workers 3", "--num-workers; --help lists them$"),
        ("sample RUN --n 3", "--n; did you mean --num"),
        ("sample RUN --outdir x", "--outdir; did you mean --out"),
        ("sample RUN --ema", "--ema; did you mean --weights"),
        ("sample RUN --lr 3", "--lr; --help lists them$"),
        ("eval RUN --ref x", "--ref; did you mean --data"),
        ("import jcm x --outdir y", "--outdir; did you mean --out"),
        ("--verson", "--verson; did you mean --version"),
        ("--fast", "--fast; --help lists them$"),
    ],
)
def test_an_option_that_is_not_there(refused: Refused, line: str, says: str) -> None:
    refused(2, f"no such option {says}", *line.split())


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("generate", r"did you mean sample\?"),
        ("evaluate", r"did you mean eval\?"),
        ("finetune", r"did you mean train\?"),
        ("presets", r"did you mean show\?"),
        ("tune", "`ict --help` lists them"),
        ("convert", "`ict --help` lists them"),  # from, or to?
    ],
)
def test_a_command_of_another_name(refused: Refused, word: str, says: str) -> None:
    refused(2, f"no such command '{word}'; {says}$", word)


def test_what_is_offered_exists() -> None:
    commands = [ict_group.get_command(click.Context(ict_group), name) for name in COMMANDS]
    options = {o for command in commands if command for p in command.params for o in p.opts}
    assert set(unknown._OPTIONS) - options <= {"--guidance"}
    assert set(unknown._COMMANDS) - set(COMMANDS) <= {"runs"}


def test_the_learning_rate_and_the_batch_have_options(ict: Ict, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert ict("train", "--out", out, *TINY, "--lr=3e-3", "--batch-size=6", "--set=train.batch_size=5").code == 0
    config = RunDir(out).load_config()
    assert (config.train.learning_rate, config.train.batch_size) == (3e-3, 6)
    refused(2, "train.learning_rate must be > 0, not -1.0", "train", "--lr=-1", *TINY)
    refused(2, "train.batch_size must be >= 1 and <= 1000000, not 0", "train", "--batch-size=0", *TINY)
    refused(2, "'--lr': 'fast' is not a valid float", "train", "--lr=fast")


def test_the_help_of_train_groups_its_options(ict: Ict) -> None:
    text = ict("train", "--help").out.partition("  Examples:")[0]
    titles = re.findall(r"^(\S.*):$", text, re.M)
    assert titles == ["What to train on", "Settings", "The run", "Other options"]
    command = ict_group.get_command(click.Context(ict_group), "train")
    assert command is not None
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.M)
    assert sorted(shown) == sorted([*(p.opts[0] for p in command.params), "--help"])
