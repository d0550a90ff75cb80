"""Pickles of batches of images, read without running any code in them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ict_backends.errors import DataError


class PickledArray:
    """A stand-in for a pickled array: NumPy gets its bytes only after their type and number are checked."""

    state: object = None

    @property
    def shape(self) -> object:
        """The shape that the pickle claims, or None."""
        return self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def bytes_of(self, where: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
        """The array as uint8 of this shape, [n, m]. Raises DataError where the pickled array is another one."""
        match self.state:
            case (int(), tuple(dims), _PickledDtype(code=b"u1" | "u1"), False | 0, bytes(raw)) if (
                dims == shape and len(raw) == shape[0] * shape[1]
            ):
                return np.frombuffer(raw, dtype=np.uint8).reshape(shape)
        raise DataError(f"data {where}: `data` of {name} must be {list(shape)} uint8, one row a label")


class _PickledDtype:
    """A stand-in for a pickled dtype, of which only the code is used."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # the byte order, of which u1 has only one


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Turn text into the bytes that it stands for: Python 3 pickles bytes for Python 2 as Latin-1 text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes are not written so")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode,
}


# The most keys of dicts that are neither text nor bytes. Batches have none, and numbers can be chosen so that each
# takes as long as all before it: text has hashes that nobody knows beforehand.
_MOST_NUMBER_KEYS = 1_000


class _Memo(dict[Any, Any]):
    """The values of a pickle by their numbers, which are kept as text for the same reason."""

    def __setitem__(self, number: int, value: Any) -> None:
        super().__setitem__(str(number), value)

    def __getitem__(self, number: int) -> Any:
        return super().__getitem__(str(number))


# What the standard unpickler does at each opcode.
_PLAIN: dict[int, Any] = dict(pickle._Unpickler.dispatch)


# The unpickler written in Python: the one in C allocates as much memory as a damaged length asks for.
class _Unpickler(pickle._Unpickler):
    """An unpickler that builds dicts, lists, bytes, numbers and the stand-ins above, and refuses all else."""

    stack: list[Any]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.memo: dict[int, Any] = _Memo()
        self._number_keys = 0

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")
        return _ALLOWED[module, name]

    def load_bytearray8(self) -> None:
        """Refuse what makes the unpickler allocate as many bytes as the pickle claims."""
        raise pickle.UnpicklingError("it holds a bytearray, which no batch of images needs")

    def load_set(self) -> None:
        """Refuse what hashes its members: a deep tuple cannot even be hashed, and numbers as slowly as keys."""
        raise pickle.UnpicklingError("it holds a set, which no batch of images needs")

    def load_setitem(self) -> None:
        """Set one item of a dict, after a check of its key."""
        self._check_keys(self.stack[-2:-1])
        _PLAIN[pickle.SETITEM[0]](self)

    def load_setitems(self) -> None:
        """Set the items of a dict that are on the stack since the mark, after a check of their keys."""
        self._check_keys(self.stack[::2])
        _PLAIN[pickle.SETITEMS[0]](self)

    def load_dict(self) -> None:
        """Make a dict of the items on the stack since the mark, after a check of their keys."""
        self._check_keys(self.stack[::2])
        _PLAIN[pickle.DICT[0]](self)

    def load_build(self) -> None:
        """Set the state of a stand-in: that of a function would outlast this file."""
        if not isinstance(self.stack[-2], PickledArray | _PickledDtype):
            raise pickle.UnpicklingError("it sets the state of what has none")
        _PLAIN[pickle.BUILD[0]](self)

    def _check_keys(self, keys: list[Any]) -> None:
        for key in keys:
            if not isinstance(key, str | bytes | int | float | None):
                raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
        self._number_keys += sum(not isinstance(key, str | bytes) for key in keys)
        if self._number_keys > _MOST_NUMBER_KEYS:
            raise pickle.UnpicklingError(f"it has more than {_MOST_NUMBER_KEYS:,} keys that are no text")

    dispatch: ClassVar[dict[int, Any]] = {
        **_PLAIN,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        **dict.fromkeys((pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), load_set),
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }


def unpickle(where: Path, name: str, content: bytes) -> dict[bytes, Any]:
    """The dict of a pickle, with its keys as bytes. Raises DataError where the pickle is anything else."""
    try:
        members = _Unpickler(content).load()
    except Exception as error:  # a pickle can make the reader raise anything
        raise DataError(f"data {where}: {name} cannot be read: {str(error) or type(error).__name__}") from error
    if not isinstance(members, dict):
        raise DataError(f"data {where}: {name} is no batch of images: it is no dict")
    return {key.encode() if isinstance(key, str) else key: value for key, value in members.items()}
