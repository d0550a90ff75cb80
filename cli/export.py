"""`ict export`."""

from __future__ import annotations

from pathlib import Path

import click

from ict_cli.options import (
    PATH,
    check_new_folder,
    debug_option,
    examples,
    weights_option,
)


@click.group(
    "export",
    epilog=examples(
        "ict export diffusers runs/mine --out a-pipeline",
        "ict export diffusers runs/mine@20000 --out a-pipeline --weights raw",
    ),
)
def export_command() -> None:
    """Write a run's model in the format of another library."""


@export_command.command(
    "diffusers",
    epilog=examples(
        "ict export diffusers runs/mine --out a-pipeline",
        "ict export diffusers runs/mine@20000 --out a-pipeline --weights raw",
    ),
)
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, help="New folder to write.")
@weights_option
@debug_option
def diffusers_command(run: Path, out: Path, weights: str) -> None:
    """Write a folder for the diffusers library.

    ConsistencyModelPipeline.from_pretrained loads it. The network must be of the family "adm": diffusers has no
    counterpart of NCSN++.
    """
    from ict_backends.console import warn
    from ict_backends.exchange.diffusers_folder import write_diffusers
    from ict_backends.exchange.diffusers_names import check_exportable, nearest_timestep
    from ict_backends.networks.families import parameter_shapes
    from ict_backends.runs.checkpoint import check_arrays, load_checkpoint
    from ict_backends.runs.folder import open_run

    place = open_run(run)
    config = place.load_config()
    check_exportable(config)
    check_new_folder(out)
    folder = place.checkpoint_of(weights)
    checkpoint = load_checkpoint(folder)
    arrays = checkpoint.weights(weights, f"checkpoint {folder}")
    check_arrays(f"checkpoint {folder}", parameter_shapes(config), arrays)
    write_diffusers(arrays, config, out)
    if not config.curriculum.has_teacher:
        warn(
            "the model is a diffusion model: in one step or two, as ConsistencyModelPipeline draws, it gives blurred "
            "means of images"
        )
    second = nearest_timestep(config, config.sample.second_sigma)
    click.echo(f'{out}: pipe = diffusers.ConsistencyModelPipeline.from_pretrained("{out}")')
    _, height, width = config.data.shape
    if height != width:
        click.echo(f"the pipeline draws squares only; pipe.unet is of images of {height}x{width}")
        return
    click.echo(f"one step: pipe(); two steps: pipe(num_inference_steps=None, timesteps=[{second}, 0])")
