"""The pickle inside a PyTorch checkpoint, interpreted without running anything of it.

A machine for the opcodes that `torch.save` writes: it builds plain values and `Tensor` records and
knows no way to import or call anything else, so a hostile file can only be refused.
"""

import contextlib
import dataclasses
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from data_tfds.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
"""The typed storages of `torch` by name, and the types of their elements."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor by reference: which storage, and how it lies there, in elements."""

    storage: "Storage"
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Storage:
    """A typed run of `count` elements; `start` is where a legacy view of it begins."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class _Global:
    """A Python object that the pickle names. It is never imported."""

    name: str


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns whatever a damaged file provokes inside the block into one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name}: the file is truncated, corrupt or no checkpoint ({what}); "
            "fetch it again and compare its size"
        ) from error


def interpret(file: BinaryIO, name: str, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the pickle at the position of `file`, which is left just behind it."""
    machine = _Machine(name, {} if storages is None else storages)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.step(opcode.name, argument)
    raise ValueError("a pickle without an end")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "argparse.Namespace": dict,  # the options that training scripts leave beside the weights
}
_ALLOWED = {*_CALLS, *(f"torch.{name}" for name in STORAGES)}


def _storage(reference: tuple, known: dict[str, Storage]) -> Storage:
    """The storage of a persistent id (zip: 5 fields; legacy: a sixth names a view of it)."""
    tag, kind, key, _, count, *view = reference
    kind_name = kind.name.removeprefix("torch.") if isinstance(kind, _Global) else ""
    if tag != "storage" or kind_name not in STORAGES or type(key) is not str:
        raise ValueError(f"unknown reference {reference!r}")
    if type(count) is not int or count < 0:
        raise ValueError(f"a storage of {count!r} elements")
    whole = known.setdefault(key, Storage(key, STORAGES[kind_name], count))
    if whole.dtype != STORAGES[kind_name]:
        raise ValueError(f"storage {key} is named with two types")
    if not view or view[0] is None:
        return Storage(key, whole.dtype, count)
    _, start, size = view[0]
    if not all(type(n) is int and n >= 0 for n in (start, size)) or start + size > count:
        raise ValueError(f"a view of storage {key} leaves it: {view[0]!r}")
    return Storage(key, whole.dtype, size, start)


_SKIP = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Stack and memo of one pickle; `step` knows every opcode that is understood."""

    def __init__(self, name: str, storages: dict[str, Storage]):
        self.name, self.storages = name, storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _SKIP:
            return
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _LITERALS:
            stack.append(argument)
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(stack[-_TUPLES[code] :])]
        elif code == "MARK":
            self.marks.append(len(stack))
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if code == "GLOBAL" else (stack.pop(-2), stack.pop())
            stack.append(self._global(".".join(parts)))
        else:
            self._build(code)

    def _build(self, code: str) -> None:
        """Opcodes that fill a container or put one together."""
        stack = self.stack
        if code in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            start = self.marks.pop()
            items = stack[start:]
            del stack[start:]
            pairs = list(zip(items[::2], items[1::2], strict=False))
            if code == "APPENDS":
                stack[-1].extend(items)
            elif code == "SETITEMS":
                stack[-1].update(pairs)
            else:
                stack.append({"TUPLE": tuple(items), "LIST": items, "DICT": dict(pairs)}[code])
        elif code == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif code == "SETITEM":
            key, value = stack.pop(-2), stack.pop()
            stack[-1].update({key: value})
        elif code in ("REDUCE", "NEWOBJ"):
            function, arguments = stack.pop(-2), stack.pop()
            if not isinstance(function, _Global) or function.name not in _CALLS:
                raise ValueError(f"it calls {function!r}")
            stack.append(_CALLS[function.name](*arguments))
        elif code == "BUILD":  # attributes of a dictionary or of options: none is a weight
            stack.pop()
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop(), self.storages))
        else:
            raise ValueError(f"pickle opcode {code}, which torch.save never writes")

    def _global(self, name: str) -> _Global:
        if name not in _ALLOWED:
            raise UserError(
                f"{self.name}: refused, because the file asks for the Python object {name}, which "
                "weights do not need; nothing of it was run; save only the state_dict with PyTorch"
            )
        return _Global(name)
