"""Parquet files, and the parts that all readers of tables with a column of encoded images share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ict_backends.data.labels import Labels, number_labels, printable
from ict_backends.data.limits import FREE_BYTES, check_ratio
from ict_backends.data.source import Content, Source, source_of
from ict_backends.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "category", "target")
# Rows that are read at a time.
ROWS = 64


class Columns(NamedTuple):
    """The columns of a table.

    Attributes:
        image: the name of the column of images.
        label: the name of the column of labels, or None.
        note: which columns are not read, where that may surprise; or "".
    """

    image: str
    label: str | None
    note: str


def image_columns(where: object, schema: pyarrow.Schema) -> Columns:
    """Find the columns of images and of labels.

    A column of images is binary, or a struct with binary `bytes`. It is called `image` or `img`, or is the only such
    column. A column of labels holds integers, booleans, names or categories.

    Raises:
        DataError: no column of images, or several of them.
    """
    types = {field.name: field.type for field in schema}
    able = [name for name, kind in types.items() if _holds_images(kind)]
    image = next((name for name in _IMAGE_COLUMNS if name in able), able[0] if len(able) == 1 else None)
    if image is None:
        what = f"several columns that may hold images ({', '.join(able)}), none called" if able else "no column of"
        wanted = " or ".join(f"`{name}`" for name in _IMAGE_COLUMNS) if able else "encoded images"
        raise DataError(f"data {where} has {what} {wanted}; its columns are {', '.join(types) or 'none'}")
    label = next((name for name in _LABEL_COLUMNS if name in types and _holds_labels(types[name])), None)
    others = [f"{name} ({kind})" for name, kind in types.items() if name != image]
    note = f"it has no classes: none of {', '.join(others)} is a column of labels" if others and label is None else ""
    return Columns(image, label, note)


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as kinds

    def binary(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    if kinds.is_struct(kind):
        return any(kind.field(i).name == "bytes" and binary(kind.field(i).type) for i in range(kind.num_fields))
    return binary(kind)


def _holds_labels(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_dictionary(kind):
        kind = kind.value_type
    return kinds.is_integer(kind) or kinds.is_boolean(kind) or kinds.is_string(kind) or kinds.is_large_string(kind)


def class_names(schema: pyarrow.Schema, label: str | None) -> tuple[str, ...]:
    """The names of classes that Hugging Face writes beside the schema, by label; empty where there are none."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return ()


def column_contents(
    where: object, column: Any, first: int, follow: Callable[[str], Content] | None = None
) -> Iterator[tuple[int, Content]]:
    """Yield (row, content) for each row of a column of images.

    Args:
        where: names the table in errors.
        column: the rows.
        first: the number of the first row.
        follow: reads the file that a row names by its path instead of holding it; without it, that is an error.
    """
    import pyarrow.types as kinds

    for i, value in enumerate(column, start=first):
        row = value.as_py()
        content, path = (row and row["bytes"], row and row.get("path")) if kinds.is_struct(column.type) else (row, None)
        if content is not None:
            yield i, content
        elif path and follow:
            yield i, follow(str(path))
        else:
            named = f", but names the file {path}" if path else ""
            yield i, DataError(f"image {where}/row {i} cannot be read: the table does not hold it{named}")


def column_labels(where: Path | str, column: Any, classes: tuple[str, ...]) -> Labels:
    """Number the labels in a column of integers, booleans, names or categories, [n].

    Args:
        where: names the table in errors.
        column: the labels, a chunked array of Arrow.
        classes: names of the labels, by number, or (); dropped unless there is one for every label.

    Raises:
        DataError: a label is none.
    """
    import pyarrow.types as kinds

    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    plain = column.to_numpy() if kinds.is_integer(column.type) and not column.null_count else column.to_pylist()
    labels = number_labels(f"data {where}: labels", plain)
    return labels if labels.classes else labels._replace(classes=tuple(map(printable, classes)))


def open_parquet(where: Path, paths: Sequence[Path], notes: Sequence[str] = ()) -> Source:
    """Open the images of Parquet files, one after the other, `ROWS` rows in memory at a time.

    Args:
        where: the file or folder.
        paths: the files.
        notes: what the set is said to leave out.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: a file is damaged or holds no images, or only some files have labels.
    """
    try:
        import pyarrow
        import pyarrow.parquet  # fail here if it is missing, not in the middle of the work
    except ImportError as error:
        raise UsageError(f"data {where} needs pyarrow: pip install 'ict[parquet]'") from error
    heads = [_guarded(path, partial(_head, path)) for path in paths]
    prefixes = [f"{path.name}/" if len(paths) > 1 else "" for path in paths]
    names = [f"{prefix}row {i}" for prefix, head in zip(prefixes, heads, strict=True) for i in range(head.rows)]
    if not names:
        raise DataError(f"data {where} holds no images: its tables have no rows")
    columns = [head.labels for head in heads]
    if len({column is None or str(column.type) for column in columns}) > 1:
        raise DataError(f"data {where}: some of its files have labels and some have none, or labels of another type")
    labels = Labels(None, (), heads[0].columns.note)
    if columns[0] is not None:
        chunks = [chunk for column in columns for chunk in column.chunks]
        whole = _guarded(where, lambda: pyarrow.chunked_array(chunks, type=columns[0].type))
        labels = column_labels(where, whole, heads[0].classes)

    def read() -> Iterator[tuple[int, Content]]:
        first = 0
        for path, head in zip(paths, heads, strict=True):
            yield from _read_parquet(path, head.columns.image, first)
            first += head.rows

    return source_of(str(where), names, labels, read, notes)


def holds_images(path: Path) -> bool:
    """True if a Parquet file has a column of images; if it cannot be read, reading it later says why."""
    try:
        import pyarrow

        with _open_file(path) as file:
            image_columns(path, file.schema_arrow)
    except DataError:
        return False
    except (ImportError, pyarrow.ArrowException, OSError):
        return True
    return True


class _Head(NamedTuple):
    """The head of a file: its number of rows, its columns, its labels [rows], and the names of its classes."""

    rows: int
    columns: Columns
    labels: Any
    classes: tuple[str, ...]


def _open_file(path: Path) -> Any:
    import pyarrow.parquet

    # The file may hold checksums of its pages, which are checked only on request.
    return pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)


def _head(path: Path) -> _Head:
    with _open_file(path) as file:
        columns = image_columns(path, file.schema_arrow)
        _check_claims(path, file.metadata)
        labels = None if columns.label is None else file.read([columns.label]).column(0)
        return _Head(file.metadata.num_rows, columns, labels, class_names(file.schema_arrow, columns.label))


def _check_claims(path: Path, metadata: Any) -> None:
    """Raise DataError where a file's columns unpack to far more than the file could hold of encoded images."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    claimed = sum(group.column(j).total_uncompressed_size for group in groups for j in range(group.num_columns))
    check_ratio(path, max(claimed, *(group.total_byte_size for group in groups), 0))


def _read_parquet(path: Path, image: str, first: int) -> Iterator[tuple[int, Content]]:
    file = _guarded(path, lambda: _open_file(path))
    unpacked = 0
    with file:
        batches = file.iter_batches(_rows_at_once(file.metadata), columns=[image])
        while (batch := _guarded(path, lambda: next(batches, None))) is not None:
            # Rows can repeat one value, which no size in the file tells.
            unpacked += batch.nbytes
            check_ratio(path, unpacked)
            yield from column_contents(path, batch.column(0), first)
            first += len(batch)


def _rows_at_once(metadata: Any) -> int:
    """The rows to read at a time: fewer where a column shrank, since each row can repeat one enormous value."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(j) for group in groups for j in range(group.num_columns)]
    shrunk = [c.total_uncompressed_size for c in columns if c.total_uncompressed_size > 4 * c.total_compressed_size]
    return max(1, min(ROWS, FREE_BYTES // max([1, *shrunk])))


def _guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Return the result of an action that reads from a Parquet file. Raises DataError where the action fails."""
    import pyarrow

    try:
        return action()
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError, RuntimeError) as error:
        raise DataError(f"data {path} is not a readable Parquet file: {error}") from error
