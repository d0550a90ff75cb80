"""Data sets of the Hugging Face hub, and folders that the datasets library wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ict_backends.data.parquet import ROWS, column_contents, column_labels, image_columns, table_source
from ict_backends.data.source import Content, Located, Source
from ict_backends.errors import DataError, UsageError

HUB = "hf:"


def is_saved_dataset(folder: Path) -> bool:
    """True if a folder was written by `save_to_disk` of the datasets library."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def locate_hub(source: str) -> Located:
    """Load a data set with the datasets library, which downloads it where needed, and locate its files.

    Args:
        source: "hf:NAME" or "hf:NAME:SPLIT"; without a split, "train".

    Raises:
        UsageError: `source` has no name, or the datasets library is not installed.
        DataError: the library cannot load the data set.
    """
    name, _, split = source.removeprefix(HUB).partition(":")
    if not name:
        raise UsageError(f"data {source} must be hf:NAME or hf:NAME:SPLIT, such as hf:mnist:train")
    library = _library(source)
    table = _library_says(source, lambda: library.load_dataset(name, split=split or "train"))
    files = [(f"{i}", Path(file["filename"])) for i, file in enumerate(table.cache_files)]
    return Located(files, f"{source} {table._fingerprint}", lambda: _open_table(source, table))


def open_saved(folder: Path) -> Source:
    """Open the images of a folder that `save_to_disk` wrote; where there are several splits, those of "train".

    Raises:
        UsageError: the datasets library is not installed.
        DataError: the folder cannot be read, or has no images.
    """
    library = _library(folder)
    table = _library_says(folder, lambda: library.load_from_disk(str(folder)))
    if isinstance(table, library.DatasetDict):
        if "train" not in table:
            raise DataError(f"data {folder} has no split `train`; give the folder of one of {', '.join(table)}")
        table = table["train"]
    return _open_table(folder, table)


def _library(where: object) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"data {where} needs datasets: pip install 'ict[huggingface]'") from error
    return datasets


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without the libraries' messages about each attempt: one line reports the outcome."""
    import datasets
    import huggingface_hub

    loggers = (datasets.logging, huggingface_hub.logging)
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.set_verbosity(level)


def _library_says(where: object, action: Callable[[], Any]) -> Any:
    try:
        with _quiet():
            return action()
    except Exception as error:  # about the network, files or names: what the library raises is not documented
        raise DataError(f"data {where} cannot be had: {str(error) or type(error).__name__}") from error


def _open_table(where: Path | str, table: Any) -> Source:
    """The images of a table of the datasets library, still encoded, so that they are decoded as all others are."""
    image, label = image_columns(where, table.features.arrow_schema)
    feature = table.features[label] if label else None
    plain = table.with_format("arrow")
    if not len(plain):
        raise DataError(f"data {where} holds no images: its table has no rows")

    def part(start: int) -> Any:
        rows = plain[start : start + ROWS]
        rows.validate(full=True)  # the file is mapped unchecked; damaged offsets in it must not be followed
        return rows

    labels = None
    if label is not None:
        only = _library_says(where, lambda: plain.select_columns([label])[:])
        labels = column_labels(where, only.column(0), len(plain))

    def read() -> Iterator[tuple[int, Content]]:
        for start in range(0, len(plain), ROWS):
            rows = _library_says(where, partial(part, start))
            yield from column_contents(where, rows.column(image).combine_chunks(), start)

    classes = tuple(getattr(feature, "names", None) or ())
    return table_source(where, [f"row {i}" for i in range(len(plain))], labels, classes, read)
