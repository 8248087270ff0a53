"""PyTorch files made to hang, to fill the memory or to change the reader. None may do so.

All are read in one process of its own with a limit on its memory, so that a file which hangs it
fails the tests instead of stopping them.
"""

import json
import os
import re
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.support.torch_files import (
    Call,
    Global,
    Raw,
    Reference,
    encode,
    pickled,
    raw_zip,
    zip_bytes,
)

SECONDS = 20  # for one file, on a busy machine
BASE = np.arange(6, dtype=np.float32)

TWICE = Raw(b")" + b"q\x00h\x00\x86" * 60)  # a tuple of 2^60 tuples, in 240 bytes
DEEP = Raw(b")" + b"\x85" * 450_000)  # a tuple in a tuple, and so on
ENDLESS = Raw(b"]q\x01h\x01a")  # a list that holds itself
ORDERED, SIZE, NAMESPACE = (
    encode(Global(name)) for name in ("collections.OrderedDict", "torch.Size", "argparse.Namespace")
)
REBUILD, PARAMETER = (
    encode(Global(f"torch._utils._rebuild_{name}")) for name in ("tensor_v2", "parameter")
)
FLOAT = Global("torch.FloatStorage")
STORAGE = Reference(("storage", FLOAT, "0", "cpu", 6))


def tensor(storage=STORAGE, offset=0, shape=(6,), strides=(1,)):
    return Call("torch._utils._rebuild_tensor_v2", (storage, offset, shape, strides, False, None))


def storage(tag="storage", kind=FLOAT, key="0", device="cpu", count=6, **view):
    return tensor(Reference((tag, kind, key, device, count, *view.values())))


def legacy(magic=0x1950A86A20F9469CFC6C, protocol=1001, content=None, keys=()):
    return b"".join(map(pickled, (magic, protocol, {}, content or {"a": tensor()}, list(keys))))


def inside(value):
    return raw_zip(encode({"a": value}) + b".")


def keyed(key: bytes) -> bytes:
    return raw_zip(b"}" + key + b"K\x01s.")


def with_state(value, state) -> bytes:
    """BUILD of an object that the reader hands out."""
    return raw_zip(b"}" + encode("a") + encode(value) + encode(state) + b"bs.")


def called(function: bytes, times: int, argument: bytes, call: bytes) -> bytes:
    """`function` called again and again with one long argument."""
    return raw_zip(function + b"q\x00" + argument + b"q\x01" + (b"h\x00" + call) * times + b".")


def built(attributes):
    return (None, attributes)


LONG_LIST = encode(["k", 1]) + b"q\x02" + b"](" + b"h\x02" * 150_000 + b"e"
LONG_TUPLE = b"(" + b"N" * 150_000 + b"t"
PAIRS = encode([(TWICE, 1)])

FILES = {
    # Tuples whose text, hash or sum would take years, wherever something is looked at.
    "tag": (inside(storage(tag=TWICE)), "no storage"),
    "kind": (inside(storage(kind=TWICE)), "no storage"),
    "key": (inside(storage(key=TWICE)), "key is no text"),
    "count": (inside(storage(count=TWICE)), "size is no integer"),
    "view": (inside(storage(view=TWICE)), "fields"),
    "view start": (inside(storage(view=("0", TWICE, 1))), "leaves it"),
    "reference": (inside(tensor(Reference(TWICE))), "fields of a storage"),
    "offset": (inside(tensor(offset=TWICE)), "no integers"),
    "shape": (inside(tensor(shape=TWICE)), "axes|integers"),
    "axis": (inside(tensor(shape=(TWICE,))), "no integers"),
    "strides": (inside(tensor(strides=(TWICE,))), "no integers"),
    "endless shape": (inside(tensor(shape=ENDLESS)), "no tuple"),
    "called": (raw_zip(encode(TWICE) + b")R."), "not callable"),
    "parameter": (inside(Call("torch._utils._rebuild_parameter", (TWICE,))), "without a tensor"),
    "dictionary key": (keyed(encode(TWICE)), "dictionary key"),
    "deep key": (keyed(encode(DEEP)), "dictionary key"),
    "dictionary keys": (raw_zip(b"}(" + encode(TWICE) + b"K\x01u."), "dictionary key"),
    "second key": (raw_zip(b"}(K\x01K\x02" + encode(TWICE) + b"K\x01u."), "dictionary key"),
    "key of DICT": (raw_zip(b"(" + encode(TWICE) + b"K\x01d."), "dictionary key"),
    "key by SIZE": (keyed(SIZE + encode(TWICE) + b"\x85R"), "dictionary key"),
    "key by BUILD": (keyed(encode(TWICE) + b"Nb"), "dictionary key"),
    "key by memo": (keyed(encode(TWICE) + b"Nbq\x01h\x01"), "dictionary key"),
    "ordered key": (raw_zip(ORDERED + PAIRS + b"\x85R."), "no pair"),
    "ordered pairs": (raw_zip(ORDERED + encode(TWICE) + b"\x85R."), "no pair"),
    "set": (raw_zip(b"\x8f(" + encode(TWICE) + b"\x90.", 4), "EMPTY_SET"),
    "frozen set": (raw_zip(b"(" + encode(TWICE) + b"\x91.", 4), "FROZENSET"),
    "global": (raw_zip(encode(TWICE) + encode("a") + b"\x93.", 4), "STACK_GLOBAL"),
    "legacy magic": (legacy(magic=TWICE), "does not begin"),
    "legacy protocol": (legacy(protocol=TWICE), "does not begin"),
    "legacy key": (legacy(keys=[TWICE]), "listed by their keys"),
    "legacy keys": (legacy()[: -len(pickled([]))] + pickled(TWICE), "listed by their keys"),
    "endless wrapper": (raw_zip(b"}q\x01" + encode("model") + b"h\x01s."), "no tensors"),
    # Lengths and numbers that ask for memory.
    "memo number": (raw_zip(b"Nr\xff\xff\xff\x7f."), "memo number"),
    "memo text": (raw_zip(b"Np99999999999\n."), "memo number"),
    "negative memo": (raw_zip(b"Np-1\n."), "memo number"),
    "no memo": (raw_zip(b"h\x09."), "memo number"),
    "text": (raw_zip(b"X\xff\xff\xff\xff."), "truncated"),
    "text 8": (raw_zip(b"\x8d" + struct.pack("<Q", 2**62) + b".", 4), "truncated"),
    "bytes": (raw_zip(b"B\xff\xff\xff\xff.", 3), "truncated"),
    "bytes 8": (raw_zip(b"\x8e" + struct.pack("<Q", 2**40) + b".", 4), "truncated"),
    "bytearray": (raw_zip(b"\x96" + struct.pack("<Q", 2**40) + b".", 5), "truncated"),
    "long": (raw_zip(b"\x8b\xff\xff\xff\x7f."), "truncated"),
    "frame": (raw_zip(b"\x95" + struct.pack("<Q", 2**62) + b"N.", 4), "truncated"),
    "digits": (raw_zip(b"I" + b"9" * 10**6 + b"\n."), "truncated"),
    "long digits": (raw_zip(b"L" + b"9" * 10**6 + b"L\n."), "truncated"),
    "opcodes": (raw_zip(b"N" * 10**7 + b"."), "opcodes"),
    "marks": (raw_zip(b"(" * 10**6 + b"."), "opcodes"),
    "large pickle": (raw_zip(encode("x" * 2**25) + b"."), "truncated"),
    "large number": (inside(tensor(shape=(2**1500,), strides=(2**1500,))), "no integers"),
    "equal hashes": (
        raw_zip(b"}(" + b"".join(encode(k * (2**61 - 1)) + b"N" for k in range(60_000)) + b"u."),
        "dictionary key",
    ),
    # Calls of what is allowed, with more than it takes.
    "ordered again": (called(ORDERED, 80_000, LONG_LIST, b"h\x01\x85R"), "more items"),
    "ordered wide": (called(ORDERED, 100_000, LONG_TUPLE, b"h\x01R"), "positional"),
    "size wide": (called(SIZE, 100_000, LONG_TUPLE, b"h\x01R"), "positional"),
    "tensor wide": (called(REBUILD, 100_000, LONG_TUPLE, b"h\x01R"), "positional"),
    "parameter wide": (called(PARAMETER, 100_000, LONG_TUPLE, b"h\x01R"), "positional"),
    "options wide": (called(NAMESPACE, 100_000, LONG_TUPLE, b"h\x01R"), "arguments"),
    "options new": (called(NAMESPACE, 100_000, LONG_TUPLE, b"h\x01\x81"), "arguments"),
    "storage called": (raw_zip(encode(FLOAT) + b")R."), "not callable"),
    "storage new": (raw_zip(encode(FLOAT) + b")\x81."), "truncated"),
    "function new": (raw_zip(REBUILD + b")\x81."), "truncated"),
    "storage by OBJ": (raw_zip(b"(" + encode(FLOAT) + b"o."), "opcode OBJ"),
    "options by OBJ": (raw_zip(b"(" + NAMESPACE + b"o."), "opcode OBJ"),
    "storage by INST": (raw_zip(b"(itorch\nFloatStorage\n."), "opcode INST"),
    "NEWOBJ_EX": (raw_zip(NAMESPACE + b")}\x92.", 4), "opcode NEWOBJ_EX"),
    "EXT1": (raw_zip(b"\x82\x01."), "opcode EXT1"),
    "EXT2": (raw_zip(b"\x83\x01\x00."), "opcode EXT2"),
    "EXT4": (raw_zip(b"\x84\x01\x00\x00\x00."), "opcode EXT4"),
    "PERSID": (raw_zip(b"Pstorage\n."), "opcode PERSID"),
    "NEXT_BUFFER": (raw_zip(b"\x97.", 5), "opcode NEXT_BUFFER"),
    # States for objects that the reader hands out.
    "state of a tensor": (with_state(tensor(), {"offset": -8}), "changes an object"),
    "slots of a tensor": (with_state(tensor(), built({"shape": (99,)})), "changes an object"),
    "state of a storage": (with_state(STORAGE, {"count": 2**40}), "changes an object"),
    "state of a kind": (with_state(FLOAT, {"dtype": "O"}), "changes an object"),
    "state of a function": (
        with_state(Raw(REBUILD), built({"function": Global("torch.Size")})),
        "changes an object",
    ),
    "state of a class": (with_state(Raw(NAMESPACE), built({"__setstate__": 1})), "truncated"),
    "state of a dictionary": (with_state({}, {"a": 1}), "truncated"),
    "state of a text": (with_state("b", built({"a": 1})), "truncated"),
    "items of a function": (raw_zip(REBUILD + b"K\x01K\x01s."), "truncated"),
    "more for a function": (raw_zip(REBUILD + b"K\x01a."), "truncated"),
    # Texts that a message must not show as they are.
    "long name": (raw_zip(b"c" + b"a" * 10**7 + b"\nb\n."), "nothing of it was run"),
    "coloured name": (raw_zip(b"ca\x1b[31m\nb\x07\n."), r"a\?\[31m\.b\?, which"),
    "long key": (
        inside(
            [storage(key="k" * 10**6), storage(key="k" * 10**6, kind=Global("torch.IntStorage"))]
        ),
        "k+... is named with two types",
    ),
    "missing storage": (inside(storage(key="\x1b]0;x\x07" * 10**5)), "truncated"),
    "opcode named by a file": (raw_zip(b"\xff."), "truncated"),
    # Python that weights do not need.
    "operator": (raw_zip(b"coperator\nmul\n."), r"operator\.mul"),
    "reconstructor": (raw_zip(b"ccopyreg\n_reconstructor\n."), r"copyreg\._reconstructor"),
    "nested pickle": (raw_zip(b"ctorch.storage\n_load_from_bytes\n."), "_load_from_bytes"),
    "attribute": (raw_zip(b"ccollections\nOrderedDict.fromkeys\n."), "fromkeys"),
    "private": (raw_zip(b"cfacenet_jax.weights.files\nread_checkpoint\n."), "read_checkpoint"),
}
READ = {
    "laughs as a value": zip_bytes({"args": TWICE, "a": BASE, "b": DEEP, "c": ENDLESS}),
    "a dictionary in itself": zip_bytes({"a": BASE, "other": Raw(b"}q\x01K\x01h\x01s")}),
    "state with metadata": zip_bytes(
        {"a": BASE, "b": Raw(ORDERED + b")R" + encode({"_metadata": {"": 1}}) + b"b")}
    ),
    "options with values": zip_bytes(
        {"args": Raw(NAMESPACE + b")\x81" + encode({"lr": 0, "betas": (1, 2)}) + b"b"), "a": BASE}
    ),
    "python 2": zip_bytes({"a": Call("collections.OrderedDict", ([["x", (1, 2)]],)), "b": BASE}),
    "zz good": zip_bytes({"a": BASE}),  # the last: nothing before it has changed the reader
}

READER = textwrap.dedent("""
    import json, pathlib, resource, sys, time
    from data_tfds.errors import UserError
    from facenet_jax.weights.files import read_checkpoint
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))  # bytes
    for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        start = time.monotonic()
        try:
            result = {k: v.tolist() for k, v in read_checkpoint(path).items()}
        except UserError as error:
            result = str(error)
        seconds = time.monotonic() - start
        print(json.dumps([path.name, result, seconds]), flush=True)
""")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{file: (error or tensors, seconds)}."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    for name, data in READ.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", READER, str(folder)]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # its buffers count as memory
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=one_thread)
        output = done.stdout
        assert done.returncode == 0, done.stderr[-2000:]
    except subprocess.TimeoutExpired as stopped:
        output = (stopped.stdout or b"").decode()
    return {name: rest for name, *rest in map(json.loads, output.splitlines())}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_time_and_in_few_words(results, name):
    assert name in results, "it hangs, or one before it does"
    message, seconds = results[name]
    assert isinstance(message, str), "it was read"
    assert re.search(FILES[name][1], message)
    assert seconds < SECONDS
    assert len(message) < 1000
    assert message.isprintable()


@pytest.mark.parametrize("name", READ)
def test_what_only_looks_odd_is_read(results, name):
    tensors, seconds = results[name]
    assert tensors == {"b" if name == "python 2" else "a": BASE.tolist()}
    assert seconds < SECONDS
