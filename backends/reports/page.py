"""A page about a run, as one HTML file that needs no other files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.images import encode_png, tile, to_float
from ict_backends.networks.families import count_parameters
from ict_backends.reports.charts import Mark, Series, line_chart
from ict_backends.runs.folder import RunDir, class_counts, class_names, read_history
from ict_backends.runs.lines import band_losses, is_log, read_lines
from ict_backends.runs.state import read_json
from ict_backends.training.evaluator import read_evaluations
from ict_backends.training.metrics_log import BANDS, band_names
from ict_backends.training.step_plan import some_stages
from ict_core import Config

_NEIGHBOURS = 4
_MOST_MARKS = 10
# Starts after the first one, and classes, that are listed.
_MOST_STARTS, _MOST_CLASSES = 5, 20
# PAGE_MARK tells pages by the beginning of their style, which must therefore stay.
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 60rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
main.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem; }
main > section { min-width: 0; } body:has(main.two) { max-width: 110rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
svg polyline { fill: none; stroke-width: 1.8; } svg .grid { stroke: var(--line); stroke-width: .5; }
svg line.mark { stroke: currentColor; stroke-dasharray: 3 3; opacity: .5; }
svg text.mark { font-size: 11px; opacity: .8; }
main.two svg text, main.two svg text.mark { font-size: 21px; }
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
const here = document.currentScript.parentElement, slider = here.querySelector("input");
if (slider) slider.addEventListener("input", () => {
  const frame = frames[slider.value];
  here.querySelector("img").src = frame[1];
  here.querySelector("b").textContent = frame[0];
});
"""


class Reported(NamedTuple):
    """What a page says of a run.

    Attributes:
        run: the run's folder.
        images: the training images, [n, c, h, w] uint8, or None if they are not available.
        samples: images from the run's model, [k, c, h, w] uint8, to be shown beside their nearest training images.
    """

    run: RunDir
    images: np.ndarray | None
    samples: np.ndarray


def build_report(shown: Sequence[Reported]) -> str:
    """The HTML of the page about a run, or about two side by side, with the settings in which these differ.

    Raises:
        CheckpointError: a run's records are damaged.
    """
    names = " and ".join(each.run.path.name for each in shown)
    differ = _differences(*(each.run for each in shown)) if len(shown) == 2 else []
    sections = "".join(f"<section>{''.join(_section(*each))}</section>" for each in shown)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(names)}: report</title><style>{_STYLE}</style>"
    body = f'{"".join(differ)}<main class="{("one", "two")[len(shown) - 1]}">{sections}</main>'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _differences(first: RunDir, second: RunDir) -> list[str]:
    """The HTML of the settings that two runs have otherwise."""
    a, b = first.load_config().flat(), second.load_config().flat()
    rows = [(name, a.get(name, ""), b.get(name, "")) for name in a | b if a.get(name) != b.get(name)]
    said = "Settings that differ" if rows else "The same settings"
    return [f"<h1>{said}</h1>", _rows([("", first.path, second.path), *rows])] if rows else [f"<h1>{said}</h1>"]


def _section(run: RunDir, images: np.ndarray | None, samples: np.ndarray) -> list[str]:
    config = run.load_config()
    metrics, evals = _read_metrics(run), read_evaluations(run)
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
    return [
        f"<h1>{escape(str(run.path))}</h1>",
        f'<div class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</div>',
        _table(_origin(run, config)),
        *_samples(run),
        *_curves(config, metrics, evals),
        *_nearest(images, samples),
        "<h2>Configuration</h2>",
        f"<details><summary>All settings</summary>{_table(config.flat())}</details>",
    ]


def _origin(run: RunDir, config: Config) -> dict[str, str]:
    """What a run was trained on, when, by which command and with which versions, as far as its records say it."""
    about = {"data": ", ".join([config.data.source, *(f"{n:,} images" for n in _image_count(run))])}
    if config.network.num_classes:
        about["classes"] = _classes(run, config)
    events = read_history(run)
    starts = [event for event in events if "command" in event]
    if starts:
        about["started"] = ", ".join(_at_step(event) for event in starts[:1] + starts[1:][-_MOST_STARTS:])
        about["command"] = starts[0]["command"]
        about["versions"] = ", ".join(f"{name} {number}" for name, number in starts[-1]["versions"].items())
    if events and "command" not in events[-1]:
        about["finished"] = events[-1]["date"]
    return about


def _at_step(event: Mapping[str, Any]) -> str:
    return f"{event['date']} (step {event['step']:,})" if event["step"] else str(event["date"])


def _image_count(run: RunDir) -> list[int]:
    """The number of images that a run was trained on; none where it has seen no data, or does not say."""
    try:
        count = read_json(run.data_file, run.data_file.name)["count"]
    except (CheckpointError, KeyError):
        return []
    return [count] if type(count) is int and count > 0 else []


def _classes(run: RunDir, config: Config) -> str:
    """The number of classes, and the first ones with their names and numbers of images."""
    total, names, counts = config.network.num_classes, class_names(run, config), class_counts(run, config)
    if names is None and counts is None:
        return f"{total:,}"
    first = range(min(total, _MOST_CLASSES))
    words = [names[i] if names else str(i) for i in first]
    if counts is not None:
        words = [f"{word} ({counts[i]:,})" for i, word in zip(first, words, strict=True)]
    return f"{total:,}: {', '.join(words)}{', ...' if total > _MOST_CLASSES else ''}"


def _read_metrics(run: RunDir) -> list[dict[str, Any]]:
    """The records of a run's log, with all bands or none. Raises CheckpointError."""
    return read_lines(run.metrics_file, lambda record: is_log(record) and len(band_losses(record)) in (0, BANDS))


def _samples(run: RunDir) -> list[str]:
    """The HTML of the samples over the course of training, with a slider that starts at the last ones."""
    # A page goes to other people: it holds pictures only, and none that lies outside of the run.
    pictures = [path for path in sorted((run.path / "samples").glob("step_*.png")) if _is_own_picture(path)]
    frames = [(int(m[1]), _data_url(path.read_bytes())) for path in pictures if (m := re.search(r"(\d+)", path.name))]
    if not frames:
        return []
    last = len(frames) - 1
    slider = f'<input type="range" min="0" max="{last}" value="{last}" aria-label="step">' * (last > 0)
    steps = "One step" if run.load_config().curriculum.has_teacher else "Several steps"
    return [
        "<h2>Samples</h2><div>",
        f"<p>{steps} each, from noise that is always the same"
        + (", over the course of training:" if last else ":")
        + f" step <b>{frames[-1][0]}</b></p>",
        slider,
        f'<img class="wide" alt="samples" src="{frames[-1][1]}">',
        f"<script>{{const frames = {json.dumps(frames)};{_SLIDER}}}</script></div>",
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
    lines = []
    for i, name in enumerate(band_names(config)):
        color = f"hsl({240 - 240 * i / (BANDS - 1):.0f} 70% 45%)"
        points = [
            (line["step"], losses[i]) for line in metrics if (losses := band_losses(line)) and losses[i] is not None
        ]
        lines.append(Series(name.replace("_", " "), points, color))
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
    return _rows(list(values.items()))


def _rows(rows: Sequence[tuple[object, ...]]) -> str:
    cells = ("".join(f"<td>{escape(str(value))}</td>" for value in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
