"""Data sets of noise in the size of the real ones."""

import pytest

from facenet_jax.bench import synthetic
from tests.support import tiny_run as tiny


@pytest.mark.parametrize(
    ("name", "query", "gallery"),
    [("sysu_mm01/all_single", 3803, 3803), ("msvr310", 591, 1055), ("wmveid863", 1228, 1228)],
)
def test_a_data_set_has_its_size_and_an_unknown_gallery_that_of_the_queries(name, query, gallery):
    data = tiny.config().data
    data.name = name
    dataset = synthetic.load(data, training=False, pixels=False)
    assert len(dataset.split("query")) == query
    assert len(dataset.split("gallery")) == gallery
