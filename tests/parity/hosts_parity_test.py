"""The hosts of FACENet's Table 7 against numbers of their authors' code."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from facenet_jax.parity import topreid
from facenet_jax.parity.rows import Golden, compared
from scripts import check_parity

SMALL = pathlib.Path(__file__).parents[1] / "golden" / "topreid"


def test_top_reid_with_every_modality_and_with_some():
    """The small copy of the directory in ../shared, in evaluation."""
    golden = Golden(SMALL)
    reference = golden.needed("arrays.npz")
    values = topreid.evaluated(topreid.Twin(golden), missing=("n",))
    assert len(values) == 6
    for name, value in values.items():
        assert compared(name, value, reference[name], 2e-5).status == "ok"
        assert compared(name, np.asarray(value) * 1.001, reference[name], 2e-5).status == "FAIL"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topreid", "hamnet", "pfnet", "ieee"])
def test_every_number_of_the_release_is_met(name, shared):
    with jax.numpy_dtype_promotion("standard"):
        rows = check_parity.check(shared / "golden" / "siblings" / name)
    assert len(rows) > 250
    assert [dataclasses.astuple(row) for row in rows if row.status != "ok"] == []
