"""Real pixels: 25 samples of 19 places as the user's own table, and a frozen ViT on them."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_tfds.doctor import examine
from data_tfds.samples import MODALITIES
from data_tfds.sets.folder import COLUMNS
from facenet_jax.commands import score as evaluate_embeddings
from facenet_jax.inputs import dataset as data
from facenet_jax.retrieval import Embeddings
from facenet_jax.step import outputs
from facenet_jax.types import Batch, DataSpec
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny

RECORDED = {
    "visible": 0.861,
    "near_infrared": 0.790,
    "thermal": 0.825,
    "visible,near_infrared,thermal": 0.869,
}
"""The mAP that tno_triplets/README.md records of a frozen ViT-Ti, to three decimals."""
SIZE = (128, 256)


@pytest.fixture(scope="module")
def table(shared, tmp_path_factory):
    """Places captured twice query, all are the gallery, those captured once would train.

    The capture stands in the column camera, so that a query's only junk is the query itself.
    """
    folder = shared / "tno_triplets"
    found = [
        [
            f"{sample['place']:04d}",
            sample["capture"],
            "",
            *(
                next(folder.glob(f"{sample['place']:04d}/{modality}/*_{sample['scene']}.png"))
                for modality in trees.FOLDERS
            ),
        ]
        for sample in json.loads((folder / "meta.json").read_text())["triplets"]
    ]
    twice = {row[0] for row in found if row[1] == 1}
    rows = [
        *(["train", *row] for row in found if row[0] not in twice),
        *(["query", *row] for row in found if row[0] in twice),
        *(["gallery", *row] for row in found),
    ]
    path = tmp_path_factory.mktemp("tno") / "tno.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def test_the_doctor_passes(table):
    report = examine("folder/camera", str(table))
    assert report.exit_code == 0
    assert {split: numbers["samples"] for split, numbers in report.splits.items()} == {
        "train": 13,
        "query": 12,
        "gallery": 25,
    }
    assert sorted(finding.what for finding in report.findings) == [
        "13 identities are in train and in test",
        "13 samples of the same name are in train and in test",
        "25 visible images are grey",
        "39 images are in train and in test, byte for byte",
    ]


@pytest.fixture(scope="module")
def files(shared, table, tmp_path_factory):
    """query.npz and gallery.npz of a ViT-Ti in each branch, nothing of it trained here."""
    folder = tmp_path_factory.mktemp("embeddings")
    dataset = data.load(trees.section("folder/camera", table, folder / "prepared", image_size=SIZE))
    config = tiny.config("three_stream", model__variant="Ti", model__patch=16)
    model = tiny.build(config, DataSpec(MODALITIES[:3], SIZE, 19))
    variables = tiny.variables(model)
    file = shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth"
    variables, report = model.load(variables, str(file))
    assert {path.split("/")[0] for path in report.loaded} >= {"trunk", "last"}
    assert dataset.modalities == model.spec.modalities

    @jax.jit
    def embed(variables, pixels):
        batch = Batch(None, jnp.zeros(pixels.shape[1], jnp.int32), {})
        return outputs(model, variables, pixels, batch, dataset.modalities)

    options = []
    for name in ("query", "gallery"):
        split = dataset.split(name)
        rows = zip(split.images.values(), split.rows, strict=True)
        found = embed(variables, np.stack([images[row] for images, row in rows]))
        camera = {"camera": split.labels["camera"]}
        side = Embeddings(
            np.asarray(found.embedding), found.parts, split.identity, split.name, camera
        )
        side.write(folder / f"{name}.npz")
        options += [f"--{name}", str(folder / f"{name}.npz")]
    return options


@pytest.mark.slow
@pytest.mark.parametrize("modalities", RECORDED)
def test_a_frozen_vit_finds_places_again_as_well_as_recorded(files, tmp_path, modalities):
    """Half of the last recorded decimal is all that is allowed."""
    scores = tmp_path / "scores.json"
    options = [*files, "--protocol", "camera", "--modalities", modalities, "--json", str(scores)]
    assert evaluate_embeddings.main(options) == 0
    result = json.loads(scores.read_text())
    assert (result["queries"], result["valid_queries"], result["gallery"]) == (12, 12, 25)
    assert result["mAP"] == pytest.approx(RECORDED[modalities], abs=5e-4)
