"""The tables of measurements in docs/performance.md: python bench/table.py [--check].

The records of `ict bench` are bench/results/*.json, the results of bench/gpu.py are bench/results/gpu/*.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ict_backends.networks.roofline import least_seconds, operations
from ict_core import load_preset
from ict_core.settings import current_name, replace

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench table -->", "<!-- end of bench table -->"
GPU_BEGIN, GPU_END = "<!-- gpu table -->", "<!-- end of gpu table -->"
COLUMNS = (
    "machine",
    "backend",
    "preset, batch, precision",
    "ms/step",
    "images/s",
    "fraction of the limit",
    "fraction of the roofline",
    "times plain",
    "sampling, images/s",
)


GPU_COLUMNS = (
    "run",
    "backend",
    "preset, batch, variant",
    "ms/step",
    "TFLOP/s",
    "fraction of the limit",
    "kernels a step",
    "host, ms a step",
    "peak memory, GiB",
    "first call, s",
)


class GpuRow(NamedTuple):
    """A measurement of training steps by bench/gpu.py.

    Attributes:
        run: the file's name, without its ending.
        machine: the name of the GPU.
        backend: "torch" or "jax".
        what: preset, batch and variant, in words.
        values: the figures of the measurement.
        limit: TFLOP/s of the fastest product or convolution of the same part.
        least: the least time of a step by the roofline, in ms; None if the rate of a copy was not measured.
        profile: the figures of the steps' profile; empty if there is none.
        sampling: images/s of the run's sampling; only in the first row of the paper's network in torch.
    """

    run: str
    machine: str
    backend: str
    what: str
    values: Mapping[str, Any]
    limit: float
    least: float | None
    profile: Mapping[str, Any]
    sampling: float | None


def gpu_rows(folder: Path) -> list[GpuRow]:
    """The measurements of training steps in the results of bench/gpu.py, in the order of files and lines."""
    found = []
    for path in sorted((folder / "gpu").glob("*.jsonl")):
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found += _rows_of_run(path.stem, records)
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(f"{path} is no result of bench/gpu.py: {error!r}") from error
    return found


def _rows_of_run(run: str, records: Sequence[Mapping[str, Any]]) -> list[GpuRow]:
    values = {(r["part"], r["name"]): r["values"] for r in records}
    machine = next((v["name"] for (_, name), v in values.items() if name == "device"), "a GPU")
    sampled = values.get(("sampling", "50,000 images"), {}).get("images_per_second")
    rows = []
    for (part, name), found in values.items():
        if not part.endswith("-speed") or "ms_range" not in found:
            continue
        backend, limit = part.removesuffix("-speed"), values[part, "limit"]
        preset, _, variant = name.partition(", ")
        batch = f"{found['batch']}" + (f" in parts of {found['micro_batch']}" if found["micro_batch"] else "")
        best = max(limit["tflops"].values())
        copy = limit.get("copy_gb_per_second")  # the first runs did not measure it
        least = _least_ms(preset, found, 1e12 * best, 1e9 * copy) if copy else None
        profile = values.get((part, f"{name}: profile"), {})
        rate = sampled if (backend, preset) == ("torch", "cifar10") else None
        what = ", ".join(filter(None, (f"`{preset}`", batch, _variant(variant, found["precision"]))))
        rows.append(GpuRow(run, machine, backend, what, found, best, least, profile, rate))
        sampled = None if rate else sampled
    return rows


def _variant(variant: str, precision: str) -> str:
    """The name of a variant, with the precision in front unless the name begins with it."""
    return variant if variant.startswith(precision) else ", ".join(filter(None, (precision, variant)))


def _least_ms(preset: str, found: Mapping[str, Any], product: float, memory: float) -> float:
    train = {"batch_size": found["batch"], "micro_batch": found["micro_batch"], "precision": found["precision"]}
    return 1000 * least_seconds(operations(replace(load_preset(preset), train=train)), product, memory)


def gpu_cells(row: GpuRow) -> tuple[str, ...]:
    """The cells of a GPU's measurement in the table of all measurements."""
    values = row.values
    fraction = f"{values['tflops'] / row.limit:.2f}"
    roofline = f"{row.least / values['ms']:.2f}" if row.least else ""
    numbers = (number(values["ms"]), number(values["images_per_second"]), fraction, roofline)
    return (row.machine, row.backend, row.what, *numbers, "", number(row.sampling) if row.sampling else "")


def gpu_table(folder: Path) -> str:
    """The table of the results of bench/gpu.py, in Markdown, for docs/performance.md."""
    lines = [GPU_COLUMNS, tuple("---" for _ in GPU_COLUMNS)]
    for row in gpu_rows(folder):
        values, profile = row.values, row.profile
        optional = (profile.get("kernels"), profile.get("host_ms"), values["peak_gib"], values["first_call"])
        numbers = (number(values["ms"]), number(values["tflops"]), f"{values['tflops'] / row.limit:.2f}")
        lines.append((row.run, row.backend, row.what, *numbers, *("" if v is None else number(v) for v in optional)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rows(folder: Path) -> list[tuple[str, ...]]:
    """The table's rows: records of `ict bench` by machine, preset, batch, backend and precision; then the GPUs'."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
            row(records[-1])
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(f"{path} is no record of `ict bench`: {error!r}") from error
    keys = ("preset", "batch_size", "backend", "precision")
    found = [row(r) for r in sorted(records, key=lambda r: (machine(r), *(r[key] for key in keys)))]
    return found + [gpu_cells(r) for r in gpu_rows(folder)]


def machine(record: Mapping[str, Any]) -> str:
    """The accelerator, or the CPU, its family and model, and how many of its cores were used."""
    found = record["machine"]
    if found["device"] != "cpu":
        return found["device"]
    devices = record.get("replicas", 1)
    kind = f" {found['cpu_family']}/{found['cpu_model']}" if "cpu_family" in found else ""  # older records have none
    return f"{found['cpu']}{kind}, {found['cores']} cores" + (f" as {devices} devices" if devices > 1 else "")


def changes(record: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the preset's and have no column."""
    shown = {"train.batch_size", "train.micro_batch", "train.precision"}
    preset = json.loads(json.dumps(load_preset(record["preset"]).flat()))
    settings = {current_name(k): v for k, v in record["settings"].items()}
    return [f"`{k}={v}`" for k, v in settings.items() if k not in shown and v != preset.get(k)]


def row(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a record of `ict bench`, with medians."""
    plain, roofline = record["plain"], record.get("fraction_of_roofline")  # older records have none
    batch = str(record["batch_size"])
    if record["micro_batch"]:
        batch += f" in parts of {record['micro_batch']}"
    return (
        machine(record),
        record["backend"],
        ", ".join([f"`{record['preset']}`", batch, record["precision"], *changes(record)]),
        number(record["ms_per_step"]["median"]),
        number(record["images_per_second"]["median"]),
        f"{record['fraction_of_limit']['median']:.2f}",
        f"{roofline['median']:.2f}" if roofline else "",
        f"{plain['ratio']['median']:.2f}" if plain else "",
        number(record["sampling_images_per_second"]["median"]),
    )


def number(value: float) -> str:
    """A number with three digits, or all digits before the decimal point if those are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(folder: Path) -> str:
    """The table of all measurements in a folder, in Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows(folder)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_table(text: str, found: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with a table put between its markers. Raises ClickException if the markers are missing."""
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise click.ClickException(f"the file needs the markers {begin} and {end}, in this order")
    return f"{before}{begin}\n{found}\n{end}{after}"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a table differs.")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "bench" / "results")
@click.option("--page", type=click.Path(path_type=Path), default=ROOT / "docs" / "performance.md")
def main(check: bool, results: Path, page: Path) -> None:
    """Write the tables of measurements into docs/performance.md."""
    text = page.read_text(encoding="utf-8")
    new = with_table(text, table(results), BEGIN, END)
    new = with_table(new, gpu_table(results), GPU_BEGIN, GPU_END)
    if not check:
        page.write_text(new, encoding="utf-8")
    elif new != text:
        raise click.ClickException(f"{page} is not in step with {results}: python bench/table.py")


if __name__ == "__main__":
    main()
