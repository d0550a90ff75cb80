"""Data sets of the Hugging Face hub, and folders that the datasets library wrote."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ict_backends.console import shows_bars
from ict_backends.data.labels import Labels
from ict_backends.data.limits import read_file
from ict_backends.data.parquet import ROWS, column_contents, column_labels, image_columns
from ict_backends.data.source import Content, Located, Source, source_of
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
        source: "hf:NAME", "hf:NAME:SPLIT" or "hf:NAME:CONFIGURATION:SPLIT"; without a split, "train".

    Raises:
        UsageError: `source` has no name, or the datasets library is not installed.
        DataError: the library cannot load the data set.
    """
    parts = source.removeprefix(HUB).split(":")
    if not parts[0] or len(parts) > 3:
        raise UsageError(
            f"data {source} must be hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT, such as hf:mnist:train"
        )
    name, configuration, split = parts[0], parts[1] if len(parts) == 3 else "", parts[-1] if len(parts) > 1 else ""
    library = _library(source)
    try:
        table = _library_says(source, lambda: library.load_dataset(name, configuration or None, split=split or "train"))
    except DataError as error:
        raise _with_configurations(source, name, split, error) from error
    files = [(f"{i}", Path(file["filename"])) for i, file in enumerate(table.cache_files)]
    roots = [Path(name), Path(library.config.HF_DATASETS_CACHE), _hub_cache()]
    return Located(files, f"{source} {table._fingerprint}", lambda: _open_table(source, table, roots))


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def configurations(folder: Path) -> list[str]:
    """The configurations that the card of a folder from the hub (README.md) lists, if there are several."""
    card = folder / "README.md"
    head = card.read_text(encoding="utf-8", errors="replace")[: 10**5] if card.is_file() else ""
    block = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    names = re.findall(r"^\s*-?\s*config_name:\s*['\"]?([^'\"\n]+?)['\"]?\s*$", block[1] if block else "", re.MULTILINE)
    return sorted(set(names)) if len(set(names)) > 1 else []


def _with_configurations(source: str, name: str, split: str, error: DataError) -> DataError:
    """The error of the library or, where it asks for a configuration, one that lists them and says how to give one."""
    known = re.search(r"available configs: \[(.*?)\]", str(error))
    if not known:
        return error
    names = known[1].replace("'", "")
    return DataError(f"data {source} has several configurations: {names}; give hf:{name}:ONE:{split or 'train'}")


def open_saved(folder: Path) -> Source:
    """Open the images of a folder that `save_to_disk` wrote; where there are several splits, those of "train".

    Raises:
        UsageError: the datasets library is not installed.
        DataError: the folder cannot be read, or has no images.
    """
    library = _library(folder)
    table = _library_says(folder, lambda: library.load_from_disk(str(folder)))
    if not isinstance(table, library.DatasetDict):
        return _open_table(folder, table, [folder])
    if "train" not in table:
        raise DataError(f"data {folder} has no split `train`; give the folder of one of {', '.join(table)}")
    others = ", ".join(split for split in table if split != "train")
    note = [f"takes the split train and leaves out {others}"] if others else []
    return _open_table(folder, table["train"], [folder], note)


def _library(where: object) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"data {where} needs datasets: pip install 'ict[huggingface]'") from error
    return datasets


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without the libraries' messages about each attempt, and with their bars only where ours are shown.

    One line reports the outcome.
    """
    import datasets
    import huggingface_hub

    libraries = (datasets, huggingface_hub.utils)
    with_bars = [library for library in libraries if not library.are_progress_bars_disabled() and not shows_bars()]
    loggers = (datasets.logging, huggingface_hub.logging)
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    for library in with_bars:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.set_verbosity(level)
        for library in with_bars:
            library.enable_progress_bars()


def _library_says(where: object, action: Callable[[], Any]) -> Any:
    try:
        with _quiet():
            return action()
    except Exception as error:  # about the network, files or names: what the library raises is not documented
        raise DataError(f"data {where} cannot be had: {str(error) or type(error).__name__}") from error


def _open_table(where: Path | str, table: Any, roots: Sequence[Path], notes: Sequence[str] = ()) -> Source:
    """The images of a table of the datasets library, still encoded, so that they are decoded as all others are.

    Args:
        where: the user's name for the table.
        table: the table.
        roots: the folders that files may lie in which a row names by its path instead of holding them.
        notes: what the set is said to leave out.
    """
    image, label, note = image_columns(where, table.features.arrow_schema)
    plain = table.with_format("arrow")
    if not len(plain):
        raise DataError(f"data {where} holds no images: its table has no rows")

    def part(start: int) -> Any:
        rows = plain[start : start + ROWS]
        rows.validate(full=True)  # the file is mapped unchecked; damaged offsets in it must not be followed
        return rows

    labels = Labels(None, (), note)
    if label is not None:
        only = _library_says(where, lambda: plain.select_columns([label])[:])
        classes = tuple(getattr(table.features[label], "names", None) or ())
        labels = column_labels(where, only.column(0), classes)
    follow = partial(_read_within, where, [root.resolve() for root in roots])

    def read() -> Iterator[tuple[int, Content]]:
        for start in range(0, len(plain), ROWS):
            rows = _library_says(where, partial(part, start))
            yield from column_contents(where, rows.column(image).combine_chunks(), start, follow)

    return source_of(str(where), [f"row {i}" for i in range(len(plain))], labels, read, notes)


def _read_within(where: Path | str, roots: Sequence[Path], name: str) -> Content:
    """Read a file that a table names; a table of others must not reach files that are not of its set."""
    path = Path(name)
    try:
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise OSError("it lies outside of the data set")
        return read_file(path)
    except OSError as error:
        return DataError(f"image {where}: {path} cannot be read: {error.strerror or error}")
