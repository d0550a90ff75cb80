"""Parquet files, and the parts that all readers of tables with a column of encoded images share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ict_backends.data.npz import check_labels
from ict_backends.data.source import Content, Source
from ict_backends.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
# Rows that are read at a time.
ROWS = 64


def image_columns(where: object, schema: pyarrow.Schema) -> tuple[str, str | None]:
    """Find the columns of images and of labels, and return their names; None where there are no labels.

    A column of images is binary, or a struct with binary `bytes`. It is called `image` or `img`, or is the only such
    column. A column of labels holds integers.

    Raises:
        DataError: no column of images, or several of them.
    """
    import pyarrow.types as kinds

    def binary(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    def holds_images(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return any(kind.field(i).name == "bytes" and binary(kind.field(i).type) for i in range(kind.num_fields))
        return binary(kind)

    types = {field.name: field.type for field in schema}
    able = [name for name, kind in types.items() if holds_images(kind)]
    image = next((name for name in _IMAGE_COLUMNS if name in able), able[0] if len(able) == 1 else None)
    if image is None:
        what = f"several columns that may hold images ({', '.join(able)}), none called" if able else "no column of"
        wanted = " or ".join(f"`{name}`" for name in _IMAGE_COLUMNS) if able else "encoded images"
        raise DataError(f"data {where} has {what} {wanted}; its columns are {', '.join(types) or 'none'}")
    return image, next((n for n in _LABEL_COLUMNS if n in types and kinds.is_integer(types[n])), None)


def class_names(schema: pyarrow.Schema, label: str | None) -> tuple[str, ...]:
    """The names of classes that Hugging Face writes beside the schema, by label; empty where there are none."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def column_contents(where: object, column: Any, first: int) -> Iterator[tuple[int, Content]]:
    """Yield (row, content) for each row of a column of images, counted from `first`."""
    import pyarrow.types as kinds

    if kinds.is_struct(column.type):
        column = column.field("bytes")
    for i, value in enumerate(column, start=first):
        content = value.as_py()
        yield i, _missing(where, i) if content is None else content


def _missing(where: object, row: int) -> DataError:
    return DataError(f"image {where}/row {row} cannot be read: the table does not hold it")


def column_labels(where: Path | str, column: Any, count: int) -> np.ndarray:
    """The labels in a column of integers, [count] int64. Raises DataError where one is missing or < 0."""
    if column.null_count:
        raise DataError(f"data {where} has {column.null_count} rows without a label")
    return check_labels(Path(where), column.to_numpy(), count)


def table_source(
    where: Path | str,
    names: list[str],
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    read: Callable[[], Iterator[tuple[int, Content]]],
) -> Source:
    """A source of a table's images; the names of classes are dropped unless there is one for every label.

    Args:
        where: the user's name for the table.
        names: [n] names of the rows.
        labels: [n] int64, or None.
        classes: names of classes, by label, or ().
        read: yields each (row, content).
    """
    return Source(
        str(where), names, labels, classes if labels is not None and len(classes) > labels.max() else (), read
    )


def open_parquet(where: Path, paths: Sequence[Path]) -> Source:
    """Open the images of Parquet files, one after the other, `ROWS` rows in memory at a time.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: a file is damaged or holds no images, or only some files have labels.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - fail here if it is missing, not in the middle of the work
    except ImportError as error:
        raise UsageError(f"data {where} needs pyarrow: pip install 'ict[parquet]'") from error
    heads = [_guarded(path, partial(_head, path)) for path in paths]
    prefixes = [f"{path.name}/" if len(paths) > 1 else "" for path in paths]
    names = [f"{prefix}row {i}" for prefix, head in zip(prefixes, heads, strict=True) for i in range(head[0])]
    if not names:
        raise DataError(f"data {where} holds no images: its tables have no rows")
    labels = [head[3] for head in heads]
    if any(known is None for known in labels) and not all(known is None for known in labels):
        raise DataError(f"data {where}: some of its files have labels and some have none")

    def read() -> Iterator[tuple[int, Content]]:
        first = 0
        for path, (count, image, *_) in zip(paths, heads, strict=True):
            yield from _read_parquet(path, image, first)
            first += count

    return table_source(where, names, None if labels[0] is None else np.concatenate(labels), heads[0][4], read)


def _open_file(path: Path) -> Any:
    import pyarrow.parquet

    # The file may hold checksums of its pages, which are checked only on request.
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def _head(path: Path) -> tuple[int, str, str | None, np.ndarray | None, tuple[str, ...]]:
    """The head of a file: (number of rows, column of images, column of labels, labels [rows], names of classes)."""
    with _open_file(path) as file:
        image, label = image_columns(path, file.schema_arrow)
        count = file.metadata.num_rows
        labels = None if label is None else column_labels(path, file.read([label]).column(0), count)
        return count, image, label, labels, class_names(file.schema_arrow, label)


def _read_parquet(path: Path, image: str, first: int) -> Iterator[tuple[int, Content]]:
    file = _guarded(path, lambda: _open_file(path))
    with file:
        batches = file.iter_batches(ROWS, columns=[image])
        while (batch := _guarded(path, lambda: next(batches, None))) is not None:
            yield from column_contents(path, batch.column(0), first)
            first += len(batch)


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Return the result of an action that reads from a Parquet file. Raises DataError where the action fails."""
    import pyarrow

    try:
        return action()
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, RuntimeError) as error:
        raise DataError(f"data {path} is not a readable Parquet file: {error}") from error
