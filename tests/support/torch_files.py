"""PyTorch checkpoints written opcode by opcode, so that tests can also write wrong ones."""

import dataclasses
import io
import pathlib
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Global:
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple


@dataclasses.dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


@dataclasses.dataclass(frozen=True)
class Reference:
    """A persistent id."""

    fields: tuple


@dataclasses.dataclass(frozen=True)
class Lying:
    """A tensor over `base`, said to have these bounds."""

    base: np.ndarray
    offset: Any
    shape: tuple
    strides: tuple
    count: int | None = None  # elements that the storage is said to have


def encode(value: Any) -> bytes:
    """Opcodes that push `value`."""
    match value:
        case None:
            return b"N"
        case Raw():
            return value.opcodes
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case str():
            raw = value.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            items = b"".join(encode(k) + encode(v) for k, v in value.items())
            return b"}(" + items + b"u"
        case Global():
            module, _, name = value.name.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case Call():
            return encode(Global(value.function)) + encode(value.arguments) + b"R"
        case Reference():
            return encode(value.fields) + b"Q"
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


class _Plan:
    """Replaces arrays in a nested value by opcodes and collects their storages."""

    def __init__(self, legacy: bool):
        self.legacy = legacy
        self.storages: dict[str, np.ndarray] = {}
        self.keys: dict[int, str] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self(inner) for key, inner in value.items()}
        if isinstance(value, np.ndarray):
            base = value
            while isinstance(base.base, np.ndarray):
                base = base.base
            offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            width = value.itemsize
            steps = tuple(step // width for step in value.strides)
            value = Lying(base, offset // width, value.shape, steps)
        if not isinstance(value, Lying):
            return value
        key = self.keys.setdefault(id(value.base), str(len(self.keys)))
        self.storages[key] = value.base
        count = value.base.size if value.count is None else value.count
        kind = Global("torch." + STORAGES[value.base.dtype])
        fields = ("storage", kind, key, "cpu", count) + ((None,) if self.legacy else ())
        hooks = Call("collections.OrderedDict", ())
        arguments = (Reference(fields), value.offset, value.shape, value.strides, False, hooks)
        return Call("torch._utils._rebuild_tensor_v2", arguments)


def zip_bytes(value: Any, order: str = "little", compression: int = zipfile.ZIP_STORED) -> bytes:
    """The file that `torch.save(value)` writes today."""
    plan = _Plan(legacy=False)
    body = pickled(plan(value))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", order)
        for key, base in plan.storages.items():
            raw = base if order == "little" else base.byteswap()
            archive.writestr(f"archive/data/{key}", raw.tobytes())
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def script_bytes(modules: dict) -> bytes:
    """The archive of `torch.jit.save`: nested dictionaries as modules, and code, compressed."""
    plan = _Plan(legacy=False)

    def module(value: Any, name: str) -> Any:
        if not isinstance(value, dict):
            return plan(value)
        attributes = {key: module(inner, key) for key, inner in value.items()}
        begin = encode(Global(f"__torch__.network.___torch_mangle_7.{name.title()}")) + b")\x81"
        return Raw(begin + encode(attributes) + b"b")

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("network/data.pkl", pickled(module(modules, "network")))
        code = "def forward(self, x):\n  return x\n" * 9999
        archive.writestr("network/code/__torch__/network.py", code, zipfile.ZIP_DEFLATED)
        archive.writestr("network/constants.pkl", pickled(()))
        for key, base in plan.storages.items():
            archive.writestr(f"network/data/{key}", base.tobytes())
        archive.writestr("network/version", "3\n")
    return file.getvalue()


def raw_zip(opcodes: bytes, protocol: int = 2) -> bytes:
    """A checkpoint whose pickle has these opcodes and no storage."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bytes([0x80, protocol]) + opcodes)
    return file.getvalue()


def legacy_bytes(value: Any) -> bytes:
    """The file that PyTorch before 1.6 wrote."""
    plan = _Plan(legacy=True)
    body = plan(value)
    file = pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled({"little_endian": True})
    file += pickled(body) + pickled(list(plan.storages))
    for base in plan.storages.values():
        file += struct.pack("<q", base.size) + base.tobytes()
    return file


def save(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path
