"""The pickle inside a PyTorch checkpoint, read without importing or running anything it names.

`pickle.Unpickler` gets stand-ins for the few objects that a state dict needs, and makes `Tensor`
records. A look at the opcodes comes first and refuses what it would do without a bound.
"""

import dataclasses
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from data_tfds.errors import UserError
from facenet_jax.weights.messages import shown

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

SCRIPT = "__torch__."
"""How the names of the classes of a TorchScript archive begin."""

_MOST_AXES = 32
_LARGEST_PICKLE = 2**24  # bytes; a state dict of 10,000 tensors has 3 MB
_MOST_OPCODES = 500_000  # 20,000 tensors
_MOST_ATTRIBUTES = 100_000  # of all modules of a TorchScript archive

_SCALARS = {
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"),
    *("BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
}
_TYPED = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_TYPED += ("restore_type_tag",)
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "BINPERSID"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "REDUCE", "NEWOBJ", "BUILD"),
    *(_SCALARS | _PUTS | _GETS),
}
"""What `torch.save` writes, of Python 2 too. All others are refused before anything is built."""


class _Sealed:
    """What a pickle gets to hold but may not change: pickle's BUILD sets attributes otherwise."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it changes an object that is no dictionary")


@dataclasses.dataclass(frozen=True, eq=False)
class Storage(_Sealed):
    """A typed run of `count` elements; `start` is where a legacy view of it begins."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor(_Sealed):
    """A tensor by reference: its storage, and its place and strides there, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Kind(_Sealed):
    """The class of a storage. It cannot be called."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class _Function(_Sealed):
    """A function of ours that stands for one that the pickle calls."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Dict(dict):
    """An OrderedDict; its attributes (`_metadata` of a state dict) are no weights."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Options:
    """An argparse.Namespace, which training scripts leave beside the weights; its content goes."""

    def __setstate__(self, state: Any) -> None:
        pass


class Script:
    """A module of a TorchScript archive: its attributes by name, and none of its code."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(type(name) is str for name in state):
            raise ValueError("a TorchScript module whose attributes have no names")
        self.attributes = dict(state)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors and those of the modules inside it, by dotted name as in a state dict."""
        found: dict[str, Tensor] = {}
        left, seen = [("", self)], 0
        while left:
            prefix, module = left.pop()
            for name, value in getattr(module, "attributes", {}).items():
                seen += 1
                if seen > _MOST_ATTRIBUTES or len(prefix) > 1000:
                    raise ValueError("TorchScript modules that hold each other without an end")
                if isinstance(value, Script):
                    left.append((f"{prefix}{name}.", value))
                elif isinstance(value, Tensor):
                    found[prefix + name] = value
        return found


def _first(value: Any = None, *rest: Any) -> Any:
    """TorchScript wraps lists and dictionaries in calls that say their type."""
    del rest
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any = None, hooks: Any = None
) -> Tensor:
    """The arguments of `torch._utils._rebuild_tensor_v2` as a record; their numbers are checked."""
    del grad, hooks
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("a tensor whose shape or strides are no tuple")
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    if not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError("a tensor whose offset, shape or strides are no integers from 0")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, grad: Any = None, hooks: Any = None) -> Tensor:
    del grad, hooks
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter without a tensor")
    return tensor


def _size(sizes: Any = ()) -> Any:
    return sizes  # a tuple; `_tensor` looks into it


class _Unpickler(pickle.Unpickler):
    """The values of one pickle whose opcodes `checked_length` has passed."""

    def __init__(self, data: bytes, name: str, storages: dict[str, Storage]):
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self._name = name
        self._storages = storages
        self._room = len(data)
        self._known = {
            "collections.OrderedDict": _Function(self._ordered_dict),
            "torch._utils._rebuild_tensor": _Function(_tensor),
            "torch._utils._rebuild_tensor_v2": _Function(_tensor),
            "torch._utils._rebuild_parameter": _Function(_parameter),
            "torch.Size": _Function(_size),
            "argparse.Namespace": _Options,
            **{f"torch.jit._pickle.{name}": _Function(_first) for name in _TYPED},
            **{f"torch.{kind}": _Kind(dtype) for kind, dtype in STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for a Python object; `UserError` for one that weights do not need."""
        full = f"{module}.{name}"
        if full.startswith(SCRIPT):
            return Script
        if full not in self._known:
            raise UserError(
                f"{self._name}: refused, because the file asks for the Python object "
                f"{shown(full)}, which weights do not need; nothing of it was run; "
                "save only the state_dict with PyTorch"
            )
        return self._known[full]

    def persistent_load(self, reference: Any) -> Storage:
        """The storage of a reference (zip: 5 fields; legacy: a sixth names a view of it)."""
        if type(reference) is not tuple or len(reference) not in (5, 6):
            raise ValueError("a reference that has not the fields of a storage")
        tag, kind, key, _, count, *view = reference
        if type(tag) is not str or tag != "storage" or not isinstance(kind, _Kind):
            raise ValueError("a reference to something that is no storage")
        if type(key) is not str or not _is_size(count):
            raise ValueError("a storage whose key is no text or whose size is no integer from 0")
        whole = self._storages.setdefault(key, Storage(key, kind.dtype, count))
        if whole.dtype != kind.dtype:
            raise ValueError(f"storage {shown(key)} is named with two types")
        if not view or view[0] is None:
            return Storage(key, kind.dtype, count)
        if type(view[0]) is not tuple or len(view[0]) != 3:
            raise ValueError(f"a view of storage {shown(key)} has not the fields of one")
        _, start, size = view[0]
        if not (_is_size(start) and _is_size(size) and start + size <= count):
            raise ValueError(f"a view of storage {shown(key)} leaves it")
        return Storage(key, kind.dtype, size, start)

    def _ordered_dict(self, items: Any = ()) -> _Dict:
        """A dictionary of (key, value) pairs, which Python 2 gave in the call."""
        if type(items) not in (list, tuple):
            raise ValueError("an OrderedDict of something that is no list")
        self._room -= len(items)  # one long list must not be copied by many calls
        if self._room < 0:
            raise ValueError("its dictionaries have more items than the file has bytes")
        pairs = _Dict()
        for item in items:
            if type(item) not in (list, tuple) or len(item) != 2 or type(item[0]) is not str:
                raise ValueError("an OrderedDict of something that is no pair of a text and more")
            pairs[item[0]] = item[1]
        return pairs


def checked_length(data: bytes) -> int:
    """The number of bytes of the pickle that `data` begin with.

    Raises ValueError for what `pickle.Unpickler` would do without a bound: it takes memory up to
    the largest memo number, and hashes dictionary keys, for which a tuple that holds itself twice,
    forty times over, takes years. So keys must be texts or numbers of 60 bits, and memo numbers
    count up. For this the stack is followed, but of each value only whether it may be a key.
    """
    keys: list[bool] = []  # one for each value on the stack
    marks: list[int] = []
    memo: dict[int, bool] = {}
    for number, (code, argument, at) in enumerate(pickletools.genops(data)):
        name = code.name
        if name not in _OPCODES:
            raise ValueError(f"pickle opcode {name}, which torch.save never writes")
        if number >= _MOST_OPCODES:
            raise ValueError(f"a pickle of more than {_MOST_OPCODES} opcodes")
        if name == "STOP":
            return at + 1
        if name == "MARK":
            marks.append(len(keys))
        elif name in _PUTS:
            index = len(memo) if name == "MEMOIZE" else argument
            if not 0 <= index <= number:
                raise ValueError("a memo number that does not count up")
            memo[index] = keys[-1]
        elif name in _GETS:
            if argument not in memo:
                raise ValueError("a memo number under which nothing lies")
            keys.append(memo[argument])
        elif name in _SCALARS:
            keys.append(type(argument) is not int or abs(argument) < 2**60)
        else:
            before = [kind for kind in code.stack_before if kind is not pickletools.stackslice]
            start = len(keys)
            if pickletools.markobject in before:
                start = marks.pop()
                before.remove(pickletools.markobject)
            items = keys[start - len(before) :]
            del keys[start - len(before) :]
            named = {"SETITEM": items[1:2], "SETITEMS": items[1::2], "DICT": items[::2]}
            if not all(named.get(name, ())):
                raise ValueError("a dictionary key that is neither a text nor a number")
            keys += [False] * len(code.stack_after)
    raise ValueError("a pickle without an end")


def unpickle(file: BinaryIO, name: str, storages: dict[str, Storage] | None = None) -> Any:
    """The value of the pickle at the position of `file`, which is left just behind it.

    Tensors are `Tensor` records; `storages` gets the storages that the pickle names, by key. Raises
    UserError for foreign Python objects and other exceptions for whatever is damaged.
    """
    start = file.tell()
    data = file.read(_LARGEST_PICKLE)
    length = checked_length(data)
    file.seek(start + length)
    return _Unpickler(data[:length], name, {} if storages is None else storages).load()
