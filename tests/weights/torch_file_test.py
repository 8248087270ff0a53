import hashlib
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.weights.files import read_checkpoint
from tests.support import torch_files
from tests.support.torch_files import Call, Global, Lying, legacy_bytes, save, zip_bytes

FORMATS = pytest.mark.parametrize("write", [zip_bytes, legacy_bytes])
BASE = np.arange(24, dtype=np.float32)


@FORMATS
@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_]
)
def test_types_come_back_bit_by_bit(tmp_path, write, dtype):
    array = np.linspace(-3, 3, 6).reshape(2, 3).astype(dtype)
    read = read_checkpoint(save(tmp_path / "a.pth", write({"a": array})))
    assert read["a"].dtype == array.dtype
    assert read["a"].tobytes() == array.tobytes()


@FORMATS
def test_views_strides_and_shared_storages(tmp_path, write):
    state = {
        "whole": BASE,
        "part": BASE[5:11].reshape(2, 3),
        "transposed": BASE.reshape(4, 6).T,
        "every_third": BASE[::3],
        "expanded": np.broadcast_to(BASE[:3], (4, 3)),
        "scalar": BASE[7:8].reshape(()),
        "empty": BASE[:0].reshape(0, 5),
    }
    read = read_checkpoint(save(tmp_path / "a.pth", write(state)))
    assert list(read) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_wrappers_are_opened_and_their_neighbours_left(tmp_path, wrapper):
    content = {"epoch": 3, wrapper: {"a": BASE}, "optimizer": {"state": {"b": BASE}}}
    read = read_checkpoint(save(tmp_path / "a.pth", zip_bytes(content)))
    assert list(read) == ["a"]


def test_the_teacher_is_taken_before_the_student(tmp_path):
    content = {"student": {"a": BASE[:1]}, "teacher": {"a": BASE[1:2]}}
    content["args"] = Call("argparse.Namespace", ())
    read = read_checkpoint(save(tmp_path / "a.pth", zip_bytes(content)))
    np.testing.assert_array_equal(read["a"], BASE[1:2])


def test_parameters_and_big_endian_storages(tmp_path):
    plan = torch_files._Plan(legacy=False)
    parameter = Call("torch._utils._rebuild_parameter", (plan(BASE), True, None))
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", torch_files.pickled({"a": parameter}))
        archive.writestr("x/byteorder", "big")
        archive.writestr("x/data/0", BASE.byteswap().tobytes())
    np.testing.assert_array_equal(read_checkpoint(path)["a"], BASE)


def test_the_tensors_of_a_torchscript_archive_have_the_names_of_its_state_dict(tmp_path):
    sizes = Call("torch.jit._pickle.build_intlist", ([7, 7],))
    module = {"training": False, "sizes": sizes, "weight": BASE.reshape(4, 6).astype(np.float16)}
    network = {"visual": {"conv1": module, "proj": BASE}, "input_resolution": BASE[:1], "x": None}
    read = read_checkpoint(save(tmp_path / "a.pt", torch_files.script_bytes(network)))
    assert set(read) == {"visual.conv1.weight", "visual.proj", "input_resolution"}
    np.testing.assert_array_equal(read["visual.conv1.weight"], module["weight"], strict=True)


def test_torchscript_modules_without_an_end_are_a_sentence(tmp_path):
    begin = torch_files.encode(Global("__torch__.A")) + b")\x81q\x00"
    endless = begin + b"}(X\x01\0\0\0ah\x00X\x01\0\0\0bh\x00ub."  # holds itself twice
    with pytest.raises(UserError, match="hold each other without an end"):
        read_checkpoint(save(tmp_path / "a.pt", torch_files.raw_zip(endless)))


@FORMATS
@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.load", "numpy.core.multiarray._reconstruct"]
)
def test_a_foreign_global_is_refused_by_name_and_does_not_run(tmp_path, write, name):
    trap = tmp_path / "trap"
    content = {"a": BASE, "b": Call(name, (f"touch {trap}",))}
    with pytest.raises(UserError, match=name.replace(".", r"\.") + ".*nothing of it was run"):
        read_checkpoint(save(tmp_path / "a.pth", write(content)))
    assert not trap.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",  # OBJ
        b"(X\x04\x00\x00\x00trueios\nsystem\n.",  # INST
        b"\x82\x01.",  # EXT1
        b"X\x04\x00\x00\x00trueX\x00\x00\x00\x00\x85R.",  # a call of something that is no global
    ],
)
def test_other_ways_to_call_are_refused(tmp_path, opcodes):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x04" + opcodes)
    with pytest.raises(UserError):
        read_checkpoint(path)


@FORMATS
@pytest.mark.parametrize(
    "lie",
    [
        Lying(BASE, 1, (24,), (1,)),
        Lying(BASE, 25, (), ()),
        Lying(BASE, -1, (2,), (1,)),
        Lying(BASE, 0, (5, 6), (6, 1)),
        Lying(BASE, 0, (4, 6), (7, 1)),
        Lying(BASE, 23, (2,), (-1,)),
        Lying(BASE, 0, (-1,), (1,)),
        Lying(BASE, 0, (4, 6), (1,)),
        Lying(BASE, 0, ("4",), (1,)),
        Lying(BASE, 0, (2,), (1,), count=25),
        Lying(BASE, 0, (2,), (1,), count=-1),
        Lying(BASE, 0, (2,), (1,), count=2**62),
        Lying(BASE, 0, (2**20, 2**20), (0, 0)),
        Lying(BASE, 0, (1,) * 40, (0,) * 40),
    ],
    ids=str,
)
def test_bounds_that_leave_the_storage_are_refused(tmp_path, write, lie):
    with pytest.raises(UserError, match="truncated, corrupt or no checkpoint"):
        read_checkpoint(save(tmp_path / "a.pth", write({"a": lie})))


@FORMATS
def test_every_truncation_is_one_clear_error(tmp_path, write):
    data = write({"a": BASE, "b": BASE[3:9].reshape(2, 3)})
    for length in range(len(data) - 1):
        with pytest.raises(UserError) as error:
            read_checkpoint(save(tmp_path / "a.pth", data[:length]))
        assert "a.pth" in str(error.value)
        assert "\n" not in str(error.value)


@FORMATS
def test_damaged_bytes_give_an_error_or_the_tensors_never_a_crash(tmp_path, write):
    data = write({"a": BASE, "b": {"c": BASE}})
    for at in range(len(data)):
        value = (0x00, 0xFF, data[at] ^ 0x10)[at % 3]
        damaged = data[:at] + bytes([value]) + data[at + 1 :]
        try:
            read_checkpoint(save(tmp_path / "a.pth", damaged))
        except UserError as error:
            assert "a.pth" in str(error)  # noqa: PT017 an unharmed read is fine too


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    bomb = zip_bytes({"a": np.zeros(2**22, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(save(tmp_path / "a.pth", bomb))


def test_a_whole_module_or_a_bare_tensor_has_no_names(tmp_path):
    with pytest.raises(UserError, match=r"models\.FACENet"):
        read_checkpoint(save(tmp_path / "a.pth", zip_bytes(Global("models.FACENet"))))
    for content in ({"epoch": 3}, [1, 2], {"model": {"model": {}}}):
        with pytest.raises(UserError, match="truncated, corrupt or no checkpoint"):
            read_checkpoint(save(tmp_path / "a.pth", zip_bytes(content)))


def test_many_names_of_one_expanded_tensor_are_bounded_together(tmp_path):
    value = np.ones(1, np.float16)
    wide = Lying(value, 0, (2**24,), (0,))  # 32 MiB each, of a file of a few kB
    with pytest.raises(UserError, match="bytes and more"):
        read_checkpoint(save(tmp_path / "a.pth", zip_bytes({f"n{i}": wide for i in range(9)})))
    read = read_checkpoint(save(tmp_path / "a.pth", zip_bytes({"a": wide, "b": wide})))
    assert read["b"].shape == (2**24,)


def test_tensors_of_one_big_endian_storage_share_its_memory(tmp_path):
    state = {f"n{i}": BASE[i : i + 1] for i in range(9)}
    read = read_checkpoint(save(tmp_path / "a.pth", zip_bytes(state, order="big")))
    assert np.concatenate(list(read.values())).tolist() == list(range(9))
    address = [array.__array_interface__["data"][0] for array in read.values()]
    assert np.diff(address).tolist() == [4] * 8


def test_keys_that_are_no_texts_name_no_weights(tmp_path):
    read = read_checkpoint(save(tmp_path / "a.pth", zip_bytes({5: BASE, "a": BASE, None: BASE})))
    assert list(read) == ["a"]
    with pytest.raises(UserError, match="no tensors by name"):
        read_checkpoint(save(tmp_path / "a.pth", zip_bytes({5: BASE})))


DIGESTS = {
    "tests/golden/tiny/facenet_official_small.pth": (261, "16eea32310f5caa9"),
    "shared/golden/facenet_official_small.pth": (297, "843f336c34a289d3"),
    "shared/golden/vit_timm_small.pth": (44, "dbae5ad9d2484c7c"),
    "shared/weights/vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth": (152, "2e987f889c8a9052"),
}
"""Tensors, and SHA-256 of their names, types, shapes and bytes, of files that torch wrote."""


@pytest.mark.parametrize("file", DIGESTS)
def test_real_files_are_read_bit_by_bit(file, request):
    root = pathlib.Path(__file__).parents[2]
    if file.startswith("shared/"):
        root = request.getfixturevalue("shared").parent
    read = read_checkpoint(root / file)
    digest = hashlib.sha256()
    for name in sorted(read):
        digest.update(f"{name} {read[name].dtype} {read[name].shape}".encode())
        digest.update(read[name].tobytes())
    assert (len(read), digest.hexdigest()[:16]) == DIGESTS[file]


def test_files_that_torch_itself_wrote(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32)
    state = {"a": base.reshape(4, 6).T, "b": base[3:9].bfloat16(), "c": torch.nn.Parameter(base)}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save({"model": state}, path, _use_new_zipfile_serialization=not legacy)
        read = read_checkpoint(path)
        for name, tensor in state.items():
            expected = tensor.detach().float().numpy()
            np.testing.assert_array_equal(read[name].astype(np.float32), expected)
