"""`ict bench`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from ict_backends.errors import UsageError
from ict_cli.options import (
    PATH,
    backend_option,
    batch_option,
    check_output,
    command_line,
    debug_option,
    device_option,
    examples,
    open_backend,
)
from ict_core.settings import build_config, merge, parse_assignment, preset_tree


@click.command(
    "bench",
    epilog=examples(
        "ict bench",
        "ict bench --backend jax --preset digits --out speed.json",
    ),
)
@backend_option
@click.option("--preset", default="cifar10-tiny", show_default=True, help="Settings to measure; `ict show` lists them.")
@click.option("--set", "assignments", metavar="A.B=VALUE", multiple=True, help="Change one setting; repeatable.")
@device_option
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True, help="How often to measure.")
@click.option("--steps", type=click.IntRange(min=1), default=2, show_default=True, help="Training steps per repeat.")
@click.option(
    "--images", type=click.IntRange(min=2), default=256, show_default=True, help="Images to sample per repeat."
)
@batch_option
@click.option(
    "--plain",
    type=PATH,
    metavar="FILE.py",
    help="Also time the training steps in this file, such as bench/plain.py.",
)
@click.option(
    "--plain-batch",
    type=click.IntRange(min=1),
    help="Images in a step of --plain, if the whole batch does not fit; the ratio is per image.  [default: the batch]",
)
@click.option(
    "--product", type=click.IntRange(min=1), hidden=True, help="Side of the square matrices that are multiplied."
)
@click.option("--copy", type=click.IntRange(min=1), hidden=True, help="Bytes of the array that is copied.")
@click.option("--out", type=PATH, metavar="FILE.json", help="Write all figures into this file.")
@debug_option
def bench_command(
    backend: str,
    preset: str,
    assignments: tuple[str, ...],
    device: str,
    repeats: int,
    steps: int,
    images: int,
    batch_size: int,
    plain: Path | None,
    plain_batch: int | None,
    product: int | None,
    copy: int | None,
    out: Path | None,
) -> None:
    """Measure the speed of training and sampling against this machine's limits.

    The limit is the highest rate among a large matrix product and the network's three heaviest convolutions, in the
    same precision and the same run: all are timed in turn, so that they see the same machine. The operations of a
    training step are those of four forward passes: the teacher's, the student's, and the gradient, which counts as two.
    A diffusion model has no teacher's.

    The roofline is the least time that a step could take. Each operation takes the time of its arithmetic, at that
    limit, or of the bytes that it moves, at the rate of a large copy, whichever is longer. The times are printed as a
    sum and by kind of operation.
    """
    from ict_backends.files import write_atomically
    from ict_backends.reports.benchmark import BenchRequest, describe_figures, describe_run, measure, to_json
    from ict_backends.reports.plain_version import PlainVersion

    config = build_config(merge([preset_tree(preset), *map(parse_assignment, assignments)]))
    if plain is None and plain_batch is not None:
        raise UsageError(f"--plain-batch {plain_batch} needs --plain")
    version = None if plain is None else PlainVersion(plain, backend)
    if version is not None:
        version.check(config)
    engine = open_backend(backend, device)
    if out is not None:
        _check_out(out)
    request = BenchRequest(config, steps, repeats, images, batch_size, product, copy, device)
    names = {"backend": backend, "preset": preset, "plain_file": None if plain is None else str(plain)}
    about = describe_run(request, names, command_line())
    about["machine"]["device"] = engine.device_name(device)
    click.echo(_describe(about, engine.describe_device(device)))
    figures = measure(engine, request, plain=version, plain_batch=plain_batch)
    click.echo(describe_figures(figures))
    if out is not None:
        write_atomically(out, (json.dumps(to_json(about | figures), indent=2) + "\n").encode())
        click.echo(f"figures: {out}")


def _describe(about: dict[str, Any], device: str) -> str:
    machine = about["machine"]
    return (
        f"{about['preset']}, {about['batch_size']} images a step, {about['precision']}: {device}; "
        f"{machine['cpu']}, {machine['cores']} cores\n"
    )


def _check_out(out: Path) -> None:
    """Raise UsageError or OSError, before any work, unless `out` can be written."""
    if out.suffix.lower() != ".json":
        raise UsageError(f"--out {out} must end in .json")
    check_output(out, (".json",), create=True)
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(out))
