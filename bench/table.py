"""The README's table of measurements, from bench/results: python bench/table.py [--check]."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ict_core import load_preset

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench table -->", "<!-- end of bench table -->"
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


def rows(folder: Path) -> list[tuple[str, ...]]:
    """A row a file, in the order of machine, preset, batch, backend and precision."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
            row(records[-1])
        except (ValueError, KeyError, TypeError) as error:
            raise click.ClickException(f"{path} is no record of `ict bench`: {error!r}") from error
    keys = ("preset", "batch_size", "backend", "precision")
    return [row(r) for r in sorted(records, key=lambda r: (machine(r), *(r[key] for key in keys)))]


def machine(record: Mapping[str, Any]) -> str:
    """The accelerator, or the CPU and how many of its cores were used."""
    found = record["machine"]
    if found["device"] != "cpu":
        return found["device"]
    devices = record.get("replicas", 1)
    return f"{found['cpu']}, {found['cores']} cores" + (f" as {devices} devices" if devices > 1 else "")


def changes(record: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the preset's and have no column."""
    shown = {"train.batch_size", "train.micro_batch", "train.precision"}
    preset = json.loads(json.dumps(load_preset(record["preset"]).flat()))
    return [f"`{k}={v}`" for k, v in record["settings"].items() if k not in shown and v != preset.get(k)]


def row(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a record: medians."""
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
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(folder: Path) -> str:
    """Of all records in a folder, in Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows(folder)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_table(text: str, found: str) -> str:
    """A text with the table between its markers. Raises where they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise click.ClickException(f"the file needs the markers {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{found}\n{END}{after}"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where the table differs.")
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "bench" / "results")
@click.option("--readme", type=click.Path(path_type=Path), default=ROOT / "README.md")
def main(check: bool, results: Path, readme: Path) -> None:
    """Put the table of the measurements into the README."""
    text = readme.read_text(encoding="utf-8")
    new = with_table(text, table(results))
    if not check:
        readme.write_text(new, encoding="utf-8")
    elif new != text:
        raise click.ClickException(f"{readme} is not in step with {results}: python bench/table.py")


if __name__ == "__main__":
    main()
