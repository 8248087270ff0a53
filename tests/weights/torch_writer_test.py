import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from data_tfds.errors import UserError
from facenet_jax.weights.files import read_checkpoint
from facenet_jax.weights.torch_writer import write_state_dict

STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(24, dtype=np.float64).reshape(2, 3, 4).T,
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.linspace(-2, 2, 5).astype(ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


def test_what_is_written_is_read_back(tmp_path):
    write_state_dict(tmp_path / "a.pth", STATE)
    read = read_checkpoint(tmp_path / "a.pth")
    assert list(read) == list(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_storages_are_aligned_and_the_file_is_reproducible(tmp_path):
    write_state_dict(tmp_path / "a.pth", STATE)
    data = (tmp_path / "a.pth").read_bytes()
    for entry in zipfile.ZipFile(tmp_path / "a.pth").infolist():
        at = entry.header_offset
        name, extra = struct.unpack("<HH", data[at + 26 : at + 30])
        assert (at + 30 + name + extra) % 64 == 0
    write_state_dict(tmp_path / "a.pth", STATE)
    assert (tmp_path / "a.pth").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_what_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"complex64.*a\.pth"):
        write_state_dict(tmp_path / "a.pth", {"x": np.ones(2, np.complex64)})
    with pytest.raises(UserError, match=">f4"):
        write_state_dict(tmp_path / "a.pth", {"x": np.arange(3, dtype=">f4")})
    with pytest.raises(UserError, match="cannot be written"):
        write_state_dict(tmp_path / "none" / "a.pth", STATE)


def test_torch_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    write_state_dict(tmp_path / "a.pth", STATE)
    for mmap in (False, True):
        read = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
        assert list(read) == list(STATE)
        for name, array in STATE.items():
            assert read[name].is_contiguous()
            np.testing.assert_array_equal(read[name].double().numpy(), array.astype(np.float64))
