import io
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_tfds.errors import UserError
from facenet_jax.weights.files import as_float32, read_checkpoint

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/kernel": np.linspace(-1, 1, 4).astype(np.float16),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
}


def same(read, written):
    assert set(read) == set(written)
    for name, array in written.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def npz_of(raw: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", raw)
    return file.getvalue()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, write):
    arrays = ARRAYS | {"fortran": np.asfortranarray(ARRAYS["a"])}
    write(tmp_path / "a.npz", **arrays)
    same(read_checkpoint(tmp_path / "a.npz"), arrays)


def test_npz_with_bfloat16_as_numpy_stores_it(tmp_path):
    array = np.linspace(-2, 2, 8).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", a=array.view("V2"))
    same(read_checkpoint(tmp_path / "a.npz"), {"a": array})


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(UserError, match="never loaded"):
        read_checkpoint(tmp_path / "a.npz")


def test_an_npy_header_that_claims_more_than_it_has(tmp_path):
    raw = io.BytesIO()
    np.save(raw, np.zeros(4, np.float32))
    lie = raw.getvalue().replace(b"'shape': (4,)", b"'shape': (9,)")
    (tmp_path / "a.npz").write_bytes(npz_of(lie))
    with pytest.raises(UserError, match=r"\(9,\)"):
        read_checkpoint(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**22, np.float32))
    with pytest.raises(UserError, match="100 times"):
        read_checkpoint(tmp_path / "a.npz")


def test_safetensors(tmp_path):
    arrays = ARRAYS | {"half": np.linspace(-2, 2, 8).astype(ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    same(read_checkpoint(tmp_path / "a.safetensors"), arrays)


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz"])
def test_every_truncation_is_one_clear_error(tmp_path, name):
    path = tmp_path / name
    save_file(ARRAYS, path) if name.endswith("safetensors") else np.savez(path, **ARRAYS)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError) as error:
            read_checkpoint(path)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(UserError, match=r"a\.safetensors"):
        read_checkpoint(path)


def test_missing_foreign_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match="cannot be opened"):
        read_checkpoint(tmp_path)
    pointer = tmp_path / "pointer.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="begins with b'version h'"):
        read_checkpoint(pointer)
    pointer.write_bytes(b"")
    with pytest.raises(UserError, match="begins with b''"):
        read_checkpoint(pointer)


def test_urls_go_through_their_file_system(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with fsspec.open("memory://weights/a.npz", "wb") as file:
        file.write((tmp_path / "a.npz").read_bytes())
    same(read_checkpoint("memory://weights/a.npz"), ARRAYS)
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint("memory://weights/b.npz")
    with pytest.raises(UserError, match="cannot be opened"):
        read_checkpoint("nosuch://weights/b.npz")


def test_an_absent_file_system_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="gcsfs"):
        read_checkpoint("gs://vit_models/augreg/B_16.npz")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([1, np.nan], np.float16), "NaN or values beyond float32"),
        (np.array([1e300]), "NaN or values beyond float32"),
        (np.array([-np.inf], ml_dtypes.bfloat16), "NaN or values beyond float32"),
        (np.ones(2, np.complex64), "type complex64"),
        (np.ones(2, np.int8), "type int8"),
        (np.ones(2, bool), "type bool"),
        (np.array(["1"]), "type <U1"),
        (np.ones(2, "datetime64[s]"), "type datetime64"),
        (np.ones(2, [("x", np.float32)]), "type .*<f4"),
    ],
)
def test_what_can_be_no_weights_is_named(array, reason):
    with pytest.raises(UserError, match=rf"a\.npz has arrays.*: bad \S+ {reason}") as e:
        as_float32({"good": np.ones(2), "bad": array}, "a.npz")
    assert "good" not in str(e.value)


def test_floating_types_become_float32():
    types = (np.float64, np.float32, np.float16, ">f4", ml_dtypes.bfloat16)
    arrays = {str(kind): np.linspace(-1, 1, 3).astype(kind) for kind in types}
    for array in as_float32(arrays, "a").values():
        np.testing.assert_array_equal(array, np.float32([-1, 0, 1]), strict=True)


def test_messages_are_short_whatever_a_file_is_called_and_holds():
    arrays = {f"\x1b[31m{i:03}" + "x" * 10**6: np.ones(1, np.int8) for i in range(60)}
    with pytest.raises(UserError, match="and 10 more") as error:
        as_float32(arrays, "a.npz")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 10_000
