"""A page about a run, as one HTML file that needs no other files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ict_backends.images import encode_png, tile, to_float
from ict_backends.networks.families import count_parameters
from ict_backends.reports.charts import Mark, Series, line_chart
from ict_backends.runs.folder import RunDir
from ict_backends.runs.lines import is_log, read_lines
from ict_backends.training.evaluator import read_evaluations
from ict_backends.training.metrics_log import band_edges
from ict_backends.training.step_plan import some_stages
from ict_core import Config

_NEIGHBOURS = 4
_MOST_MARKS = 10
# PAGE_MARK tells pages by the beginning of their style, which must therefore stay.
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg polyline { fill: none; stroke-width: 1.8; } svg .grid { stroke: var(--line); stroke-width: .5; }
svg line.mark { stroke: currentColor; stroke-dasharray: 3 3; opacity: .5; }
svg text.mark { font-size: 11px; opacity: .8; }
@media (max-width: 40rem) { svg text, svg text.mark { font-size: 21px; } svg polyline { stroke-width: 3; } }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .9rem; height: .25rem; margin-right: .35rem; vertical-align: middle; }
img { image-rendering: pixelated; max-width: 100%; } img.wide { width: min(100%, 36rem); }
input[type=range] { width: min(100%, 36rem); display: block; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; } td { padding: .1rem .75rem .1rem 0; overflow-wrap: anywhere; }
td:first-child { font-family: ui-monospace, monospace; } summary { cursor: pointer; }
.facts { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; }
"""
_SLIDER = """
const strip = document.getElementById("strip"), slider = document.getElementById("slider");
if (slider) slider.addEventListener("input", () => {
  const frame = frames[slider.value];
  strip.src = frame[1];
  document.getElementById("step").textContent = frame[0];
});
"""


def build_report(run: RunDir, images: np.ndarray | None, samples: np.ndarray) -> str:
    """The HTML of the page about a run.

    Args:
        images: the training images, [n, c, h, w] uint8, or None if they are not available.
        samples: images from the run's model, [k, c, h, w] uint8, to be shown beside their nearest training images.

    Raises:
        CheckpointError: the run's records are damaged.
    """
    config = run.load_config()
    metrics, evals = _read_metrics(run, config), read_evaluations(run)
    done = metrics[-1]["step"] if metrics else 0
    facts = [
        f"{done:,} of {config.train.total_steps:,} steps",
        f"{count_parameters(config):,} parameters",
        f"{config.network.family}, {'x'.join(map(str, config.data.shape))}",
    ]
    if metrics and "loss" in metrics[-1]:
        facts.append(f"loss {metrics[-1]['loss']:.4g}")
    if skipped := sum(line.get("skipped", 0) for line in metrics):
        facts.append(f"{skipped:,} steps skipped")
    if evals:
        best = min(evals, key=lambda line: line["value"])
        facts.append(f"best {best['metric']} {best['value']:.4g} at step {best['step']:,}")
    body = [
        f"<h1>{escape(str(run.path))}</h1>",
        f'<div class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</div>',
        *_samples(run),
        *_curves(config, metrics, evals),
        *_nearest(images, samples),
        "<h2>Configuration</h2>",
        f"<details><summary>All settings</summary>{_table(config.flat())}</details>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(run.path.name)}: report</title><style>{_STYLE}</style>"
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _read_metrics(run: RunDir, config: Config) -> list[dict[str, Any]]:
    """The records of a run's log, with as many bands as the settings have. Raises CheckpointError."""
    bands = len(band_edges(config)) - 1
    return read_lines(
        run.metrics_file, lambda record: is_log(record) and len(record.get("loss_bands") or []) in (0, bands)
    )


def _samples(run: RunDir) -> list[str]:
    """The HTML of the samples over the course of training, with a slider that starts at the last ones."""
    # A page goes to other people: it holds pictures only, and none that lies outside of the run.
    pictures = [path for path in sorted((run.path / "samples").glob("step_*.png")) if _is_own_picture(path)]
    frames = [(int(m[1]), _data_url(path.read_bytes())) for path in pictures if (m := re.search(r"(\d+)", path.name))]
    if not frames:
        return []
    last = len(frames) - 1
    slider = f'<input type="range" id="slider" min="0" max="{last}" value="{last}" aria-label="step">' * (last > 0)
    return [
        "<h2>Samples</h2>",
        "<p>One step each, from noise that is always the same"
        + (", over the course of training:" if last else ":")
        + f' step <b id="step">{frames[-1][0]}</b></p>',
        slider,
        f'<img class="wide" id="strip" alt="samples" src="{frames[-1][1]}">',
        f"<script>const frames = {json.dumps(frames)};{_SLIDER}</script>",
    ]


def _is_own_picture(path: Path) -> bool:
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _curves(config: Config, metrics: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> list[str]:
    marks = [Mark(stage.first, f"N={stage.n}") for stage in some_stages(config, _MOST_MARKS)]
    # A line about steps that were all skipped has neither loss nor norm; runs of earlier versions have no norms.
    loss, norm = (
        Series(name, [(line["step"], line[key]) for line in metrics if key in line])
        for name, key in (("loss", "loss"), ("norm", "grad_norm"))
    )
    parts = [
        "<h2>Loss</h2><p>Its scale changes with the number of levels, N: compare within a stage.</p>",
        line_chart([loss], x_label="step", y_label="loss", marks=marks, log_y=True),
    ]
    if any("loss_bands" in line for line in metrics):
        parts += ["<h2>Loss by noise level</h2>", _band_chart(config, metrics, marks)]
    if norm.points:
        parts += ["<h2>Gradient norm</h2>", line_chart([norm], x_label="step", y_label="norm", marks=marks, log_y=True)]
    if evals:
        name = evals[-1]["metric"]
        points = [(line["step"], line["value"]) for line in evals if line["metric"] == name]
        parts += ["<h2>Evaluation</h2>", line_chart([Series(name, points)], x_label="step", y_label=name, marks=marks)]
    return parts


def _band_chart(config: Config, metrics: Sequence[Mapping[str, Any]], marks: Sequence[Mark]) -> str:
    edges = band_edges(config)
    lines = []
    for i, (low, high) in enumerate(pairwise(edges)):
        color = f"hsl({240 - 240 * i / (len(edges) - 2):.0f} 70% 45%)"
        points = [
            (line["step"], line["loss_bands"][i])
            for line in metrics
            if len(line.get("loss_bands", [])) > i and line["loss_bands"][i] is not None
        ]
        lines.append(Series(f"{low:.2g} to {high:.2g}", points, color))
    return line_chart(lines, x_label="step", y_label="loss", marks=marks, log_y=True)


def _nearest(images: np.ndarray | None, samples: np.ndarray) -> list[str]:
    """The HTML of samples beside the training images that are nearest to them, in pixels."""
    if images is None:
        return ["<h2>Nearest training images</h2><p>The data are not where they were when the run was trained.</p>"]
    rows = nearest_images(samples, images, min(_NEIGHBOURS, len(images)))
    shown = np.stack([np.concatenate([sample[None], images[row]]) for sample, row in zip(samples, rows, strict=True)])
    picture = tile(shown.reshape(-1, *samples.shape[1:]), columns=shown.shape[1])
    return [
        "<h2>Nearest training images</h2>",
        "<p>First in each row a sample, then the images of the data that are nearest to it, in pixels: a model that "
        "copies shows the same image twice.</p>",
        f'<img class="wide" alt="samples and their nearest training images" src="{_data_url(encode_png(picture))}">',
    ]


def nearest_images(samples: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """Find the images nearest to each sample by Euclidean distance of pixels.

    Args:
        samples: [k, c, h, w] uint8.
        images: [n, c, h, w] uint8.
        count: how many images to find for each sample, at most n.

    Returns:
        [k, count] indices into `images`, nearest first.
    """
    distances = np.empty((len(samples), len(images)), dtype=np.float32)
    flat = to_float(samples).reshape(len(samples), 1, -1)
    for first in range(0, len(images), 1024):
        part = to_float(images[first : first + 1024]).reshape(1, -1, flat.shape[2])
        for row, sample in enumerate(flat):
            distances[row, first : first + part.shape[1]] = np.square(part[0] - sample).sum(axis=1)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
