"""Files that EDM's training writes, read without running anything in them, with NumPy only.

Such a file is a pickle of modules. Each asks for the source text of its class, which comes with it, to be executed;
each tensor is a call of torch's functions on the bytes of a file in torch's older format, five pickles and raw numbers.
Here, nothing is called or executed: a pickle becomes a tree in which what would be called is a record, and those of
tensors and of modules have a meaning.
"""

from __future__ import annotations

import io
import os
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.files import check_no_pointer
from ict_backends.protocols import Arrays

# What torch's older format begins with.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "BFloat16Storage": "<u2"}
_NUMBERS = {"f2", "f4", "f8", "i4", "i8", "u1", "b1"}
# Several times what a file of the largest network needs: steps of a pickle, modules, bytes of a line, dimensions.
_MOST_STEPS, _MOST_MODULES, _LONGEST_LINE, _MOST_DIMENSIONS = 500_000, 20_000, 2**16, 8
# The most keys of dicts that are neither text nor None. EDM's have none, and numbers can be chosen so that each
# takes as long as all before it: text has hashes that nobody knows beforehand.
_MOST_NUMBER_KEYS = 1_000
# The opcodes that put a value of their own on the stack.
_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {op.name for op in pickletools.opcodes if op.arg and not op.stack_before and op.stack_after}
_VALUES -= {"GET", "BINGET", "LONG_BINGET", "EXT1", "EXT2", "EXT4", "GLOBAL", "PERSID"}


class UnreadableError(Exception):
    """What a file holds instead of what it should, in words."""


@dataclass(eq=False, slots=True)
class Global:
    """The name of a class or a function, which is never imported."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Call:
    """What the genuine reader would get by calling `function`, then giving the result a state and items."""

    function: Any
    args: Any
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)

    def is_of(self, module: str, name: str) -> bool:
        """True if this would call the class or function of this name."""
        function = self.function
        return isinstance(function, Global) and (function.module, function.name) == (module, name)


@dataclass(eq=False, slots=True)
class PersistentId:
    """A reference out of the pickle."""

    value: Any


class Module(NamedTuple):
    """A module of the file.

    Attributes:
        kind: the name of its class.
        settings: the keyword arguments that it was made with, as far as they are plain values.
        values: its other attributes that are plain values.
    """

    kind: str
    settings: dict[str, Any]
    values: dict[str, Any]


class EDMFile(NamedTuple):
    """What a file holds.

    Attributes:
        arrays: parameters and buffers, float32, by their names in the state dict of `whole`.
        whole: the preconditioned network.
        network: the network in it, F.
    """

    arrays: Arrays
    whole: Module
    network: Module


def read_edm(path: Path) -> EDMFile:
    """Read the average of the weights (`ema`) of a file that EDM's training has written.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is the pickle of something else.
    """
    check_no_pointer(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(2) == b"PK":
                raise UnreadableError("it is a zip archive, as torch writes them (.pt), and no pickle")
            file.seek(0)
            return _edm_file(read_pickle(Stream(file, size)), size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnreadableError as error:
        raise CheckpointError(f"{path} is no whole file of EDM's: {error}") from error
    except Exception as error:  # each kind of damage has an exception of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path} is no whole file of EDM's: {reason}") from error


class Stream:
    """A file that is never asked for more than it has, whatever the lengths in it claim."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def tell(self) -> int:
        """The position in the file, in bytes."""
        return self._file.tell()

    def read(self, count: int) -> bytes:
        """The next `count` bytes; all that are left, if these are fewer. Raises UnreadableError at a larger claim."""
        left = self._size - self.tell()
        if count > max(left, 1):
            raise UnreadableError(f"it ends before {count:,} bytes that it claims to have, {left:,} of which are there")
        return self._file.read(count)

    def readline(self) -> bytes:
        """The next line. It has no end where it would be longer than any that is needed."""
        return self._file.readline(_LONGEST_LINE)


def read_pickle(stream: Stream) -> Any:
    """The value of the next pickle of a stream, without calling anything.

    Returns:
        Dicts, lists (for sets, too), tuples, numbers, text and bytes, and the records above for all else.

    Raises:
        Exception: of any kind, where the pickle is damaged or larger than any of EDM's.
    """
    machine = _Machine()
    for count, (op, arg, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        if count > _MOST_STEPS:
            raise UnreadableError(f"it has more than {_MOST_STEPS:,} steps")
        machine.step(op.name, arg)
    return machine.stack.pop()


class _Machine:
    """The stack machine that a pickle is a program of, without those of its operations that call something."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[str, Any] = {}  # by numbers as text, for the same reason as keys
        self.number_keys = 0

    def step(self, name: str, arg: Any) -> None:
        """Do one operation. Raises an exception of any kind where it is not possible or not known."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[str(arg)] = stack[-1]
            case "MEMOIZE":
                self.memo[str(len(self.memo))] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[str(arg)])
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _ if name in _VALUES:
                stack.append(arg)
            case _:
                self._container(name) or self._record(name, arg) or _refuse(name)

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.outer.pop()
        return values

    def _container(self, name: str) -> bool:
        """Do one of the operations on lists, tuples and dicts; False if it is none."""
        match name:
            case "EMPTY_LIST" | "EMPTY_SET":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "LIST" | "FROZENSET":
                values = self._since_mark()
                self.stack.append(values)
            case "DICT":
                values = self._since_mark()
                self.stack.append({})
                self._set_items(values)
            case "TUPLE":
                values = self._since_mark()
                self.stack.append(tuple(values))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._popped(int(name[-1]))))
            case "APPEND":
                self._append(self._popped(1))
            case "APPENDS" | "ADDITEMS":
                self._append(self._since_mark())
            case "SETITEM":
                self._set_items(self._popped(2))
            case "SETITEMS":
                self._set_items(self._since_mark())
            case _:
                return False
        return True

    def _popped(self, count: int) -> list[Any]:
        """Take the last values off the stack, in their order."""
        if len(self.stack) < count:
            raise UnreadableError("a value is missing")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _append(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _set_items(self, values: list[Any]) -> None:
        """Set keys and values, in turn, of the last dict on the stack, or of what would be one."""
        last = self.stack[-1]
        items = last.items if isinstance(last, Call) else last
        if not isinstance(items, dict) or len(values) % 2:
            raise UnreadableError("it sets items of what has none")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._check_key(key)
            items[key] = value

    def _check_key(self, key: Any) -> None:
        if isinstance(key, str | None):
            return
        if not isinstance(key, bytes | int | float):  # a deep tuple cannot even be hashed
            raise UnreadableError(f"a key is a {type(key).__name__}")
        self.number_keys += 1
        if self.number_keys > _MOST_NUMBER_KEYS:
            raise UnreadableError(f"it has more than {_MOST_NUMBER_KEYS:,} keys that are no text")

    def _record(self, name: str, arg: Any) -> bool:
        """Do one of the operations that would import or call something, which becomes a record; False if it is none."""
        match name:
            case "GLOBAL":
                self.stack.append(Global(*str(arg).split(" ", 1)))
            case "STACK_GLOBAL":
                self.stack.append(Global(*map(_text, self._popped(2))))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(Call(*self._popped(2)))
            case "NEWOBJ_EX":
                self.stack.append(Call(*self._popped(3)[:2]))
            case "INST":
                values = self._since_mark()
                self.stack.append(Call(Global(*str(arg).split(" ", 1)), tuple(values)))
            case "OBJ":
                values = self._since_mark()
                self.stack.append(Call(values[0], tuple(values[1:])))
            case "BUILD":
                (state,) = self._popped(1)
                if isinstance(self.stack[-1], Call):
                    self.stack[-1].state = state
            case "BINPERSID":
                self.stack.append(PersistentId(*self._popped(1)))
            case _:
                return False
        return True


def _refuse(name: str) -> bool:
    raise UnreadableError(f"it has the operation {name}, which none of EDM's has")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableError(f"a name is a {type(value).__name__}")
    return value


def _edm_file(tree: Any, size: int) -> EDMFile:
    """The networks and arrays in what a file of `size` bytes holds."""
    members = _items(tree)
    if members is None or "ema" not in members:
        raise UnreadableError(f"it has no member `ema`, but is {_described(tree)}")
    whole = members["ema"]
    kind, state = _module(whole, "ema")
    inner = (_items(state.get("_modules")) or {}).get("model")
    if inner is None:
        raise UnreadableError(f"its ema is a {kind} without a member `model`")
    network = _record_of(*_module(inner, "ema.model"))
    return EDMFile(_arrays(whole, size), _record_of(kind, state), network)


def _described(tree: Any) -> str:
    """What a pickle holds, in words: its members, with the classes of modules."""
    members = _items(tree)
    if members is None:
        return f"a {type(tree).__name__}" if not isinstance(tree, Call) else f"a {_name_of(tree)}"
    names = [
        f"{key!s:.40} ({_name_of(value):.40})" if isinstance(value, Call) else f"{key!s:.40}"
        for key, value in members.items()
    ]
    return f"a dict of {', '.join(names[:8])}" if names else "an empty dict"


def _name_of(call: Call) -> str:
    meta = _meta(call)
    if meta is not None and isinstance(meta.get("class_name"), str):
        return str(meta["class_name"])
    return call.function.name if isinstance(call.function, Global) else "record"


def _items(value: Any) -> dict[Any, Any] | None:
    """The items of a dict, or of what is made like one (OrderedDict, EasyDict); None of all else."""
    if isinstance(value, Call):
        return value.items
    return value if isinstance(value, dict) else None


def _meta(value: Any) -> dict[Any, Any] | None:
    """What describes a module that carries the source of its class; None for all else."""
    if not isinstance(value, Call) or not value.is_of("torch_utils.persistence", "_reconstruct_persistent_obj"):
        return None
    return _items(value.args[0]) if isinstance(value.args, tuple) and value.args else None


def _module(value: Any, where: str) -> tuple[str, dict[Any, Any]]:
    """The name of a module's class, and its attributes; those of torch's own (ModuleDict) stand in its state."""
    meta = _meta(value)
    state = _items(value.state if meta is None and isinstance(value, Call) else (meta or {}).get("state"))
    if not isinstance(value, Call) or state is None:
        raise UnreadableError(f"{where} is no module")
    return _name_of(value), state


def _record_of(kind: str, state: dict[Any, Any]) -> Module:
    settings = _items(state.get("_init_kwargs")) or {}
    if state.get("_init_args"):
        raise UnreadableError(f"its {kind} was made with arguments that have no names")
    return Module(kind, _plain_values(settings), _plain_values(state))


def _plain_values(items: dict[Any, Any]) -> dict[str, Any]:
    """Those of the items that are numbers, words, or lists of them."""
    plain = {}
    for name, value in items.items():
        if isinstance(value, list | tuple):
            value = [_plain(v) for v in value] if len(value) < 100 else None
        else:
            value = _plain(value)
        if value is not None:
            plain[str(name)] = value
    return plain


def _plain(value: Any) -> Any:
    """A number or word, NumPy's numbers included; None for all else."""
    if isinstance(value, Call) and value.function.__class__ is Global and value.function.name == "scalar":
        return _numpy_scalar(value)
    return value if isinstance(value, int | float | str) else None


def _numpy_scalar(value: Call) -> Any:
    match value.args:
        case (Call(args=(str(code), *_)), content) if code in _NUMBERS:
            raw = _bytes(content)
            return np.frombuffer(raw, np.dtype(code).newbyteorder("<")).item() if raw is not None else None
    return None


def _bytes(value: Any) -> bytes | None:
    """Bytes, which older pickles hold as text and a call that encodes it; None of all else."""
    match value:
        case Call(args=(str(text), "latin1")) if value.is_of("_codecs", "encode"):
            return text.encode("latin1")
    return value if isinstance(value, bytes) else None


def _arrays(whole: Any, size: int) -> Arrays:
    """All parameters and buffers of a module and of those in it, float32, by their dotted names.

    What the tensors refer to is counted: a tensor, or its bytes, may be referred to many times by few bytes.
    """
    arrays: Arrays = {}
    left = 2 * size
    for name, value in _tensors(whole):
        shape, strides, offset, content = _parts(name, value)
        left -= len(content)
        if left < 0 or len(arrays) > _MOST_MODULES:
            raise UnreadableError("its arrays would be larger than the file, or more than any of EDM's has")
        arrays[name] = _array(name, shape, strides, offset, _storage(name, content))
    return arrays


def _tensors(whole: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, record) for each tensor of a module and of those in it."""
    left, count = [("", whole)], 0
    while left:
        prefix, module = left.pop()
        count += 1
        if count > _MOST_MODULES or len(prefix) > 1000:
            raise UnreadableError(f"it has more than {_MOST_MODULES:,} modules, or deeper ones than any of EDM's")
        _, state = _module(module, prefix.rstrip(".") or "ema")
        for group in ("_parameters", "_buffers"):
            tensors = _items(state.get(group)) or {}
            yield from ((f"{prefix}{name}", value) for name, value in tensors.items() if value is not None)
        inner = _items(state.get("_modules")) or {}
        left += [(f"{prefix}{name}.", value) for name, value in inner.items() if value is not None]


def _parts(name: str, value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...], int, bytes]:
    """A tensor's shape, strides and offset in its storage, unchecked, and the bytes of the storage."""
    if isinstance(value, Call) and value.is_of("torch._utils", "_rebuild_parameter") and isinstance(value.args, tuple):
        value = value.args[0]
    known = ("_rebuild_tensor", "_rebuild_tensor_v2")
    if not isinstance(value, Call) or not any(value.is_of("torch._utils", function) for function in known):
        what = _name_of(value) if isinstance(value, Call) else type(value).__name__
        raise UnreadableError(f"{name} is no plain tensor, but a {what}")
    match value.args:
        case (Call(args=(held,)) as storage, int(offset), tuple(shape), tuple(strides), *_):
            content = _bytes(held) if storage.is_of("torch.storage", "_load_from_bytes") else None
            if content is None:
                raise UnreadableError(f"{name} has its numbers in another place than EDM's files")
            return shape, strides, offset, content
    raise UnreadableError(f"{name} is no plain tensor")


def _array(name: str, shape: tuple[Any, ...], strides: tuple[Any, ...], offset: int, numbers: np.ndarray) -> np.ndarray:
    """An array, float32, of the numbers of its storage. Its place in them is checked before it is looked at."""
    _check_place(name, offset, shape, strides, len(numbers))
    steps = tuple(stride * numbers.itemsize for stride in strides)
    array = np.array(np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps), order="C")
    if array.dtype == np.uint16:  # bfloat16, the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _check_place(name: str, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...], count: int) -> None:
    """Raise UnreadableError unless an array lies within the `count` numbers of its storage, each of it once."""
    whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) and len(shape) == len(strides)
    if not whole or len(shape) > _MOST_DIMENSIONS or 0 in shape:
        raise UnreadableError(f"{name} has a shape or strides that no array has")
    extent = 1
    for stride, length in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < extent:
            raise UnreadableError(f"{name} has strides by which numbers of it would lie on one another")
        extent += stride * (length - 1)
    if offset + extent > count:
        raise UnreadableError(f"{name} has a shape, strides or an offset beyond the {count:,} numbers that are there")


def _storage(name: str, content: bytes) -> np.ndarray:
    """The numbers of a storage, [n], from the bytes of torch's older format, which are not copied.

    bfloat16, which NumPy does not have, comes as uint16.
    """
    file = io.BytesIO(content)
    stream = Stream(file, len(content))
    magic, protocol, system, storage, keys = (read_pickle(stream) for _ in range(5))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not isinstance(system, dict) or not system.get("little_endian"):
        raise UnreadableError(f"{name} is not in the older format of torch, with little-endian numbers")
    match storage:
        case PersistentId(value=("storage", Global(module="torch", name=kind), str(key), str(), int(count), None)):
            pass
        case _:
            raise UnreadableError(f"{name} is no plain storage")
    if kind not in _STORAGES:
        raise UnreadableError(f"{name} holds no real numbers that are read, but a {kind}")
    dtype, claimed, start = np.dtype(_STORAGES[kind]), file.read(8), file.tell()
    if keys != [key] or int.from_bytes(claimed, "little") != count or len(content) != start + count * dtype.itemsize:
        raise UnreadableError(f"{name} claims {count:,} numbers, and has another count of bytes")
    return np.frombuffer(content, dtype, offset=start)
