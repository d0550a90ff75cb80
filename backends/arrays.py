"""Named arrays in safetensors files, read and written with errors of one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ict_backends.errors import CheckpointError
from ict_backends.files import check_no_pointer
from ict_backends.protocols import Arrays

# The types of numbers that are read, by the format's names; bfloat16, which NumPy does not have, becomes float32.
_READ = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


def read_safetensors(path: Path) -> Arrays:
    """Read the arrays of a safetensors file, by name.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds numbers of another type, which the error names.
    """
    check_no_pointer(path)
    try:
        # The library checks that the header tells the truth about the file, before any memory is asked for.
        with safe_open(path, framework="np") as file:
            types = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
            other = next((name for name, kind in types.items() if kind not in _READ), None)
            if other is not None:
                raise CheckpointError(
                    f"{path}: {other} is stored as {types[other]}, which is not read; "
                    "store float32, float16 or bfloat16 (F32, F16, BF16)"
                )
            arrays = {name: file.get_tensor(name) for name, kind in types.items() if kind != "BF16"}
        wide = [name for name, kind in types.items() if kind == "BF16"]
        return arrays | (_read_bfloat16(path, wide) if wide else {})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def stream_safetensors(path: Path, prefix: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays of a safetensors file whose names begin with `prefix`, with their names, one at a time in memory.

    Raises CheckpointError as `read_safetensors` does; numbers of bfloat16 are not read.
    """
    check_no_pointer(path)
    try:
        with safe_open(path, framework="np") as file:
            for name in sorted(file.keys()):
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _read_bfloat16(path: Path, names: list[str]) -> Arrays:
    """Arrays of bfloat16 as float32, whose upper halves they are; the file's header has been checked."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        arrays = {}
        for name in names:
            start, stop = header[name]["data_offsets"]
            file.seek(8 + length + start)
            halves = np.frombuffer(file.read(stop - start), "<u2").astype(np.uint32)
            arrays[name] = (halves << 16).view(np.float32).reshape(header[name]["shape"])
    return arrays


def write_safetensors(path: Path, arrays: Arrays, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays into a new file, with the permissions of any other new file.

    Raises:
        CheckpointError, OSError: the file cannot be written, as on a full disk.
    """
    path.touch()
    mode = path.stat().st_mode  # the library's own files can be read by their owner only
    try:
        # The library stores the memory of an array, whatever its strides.
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(contiguous, path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:  # the library raises it in place of an OSError
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    os.chmod(path, mode & 0o777)
