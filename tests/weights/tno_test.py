"""Real pixels: 25 triplets of 19 places as the user's own table, and a frozen ViT on them."""

import csv
import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from data_tfds.doctor import examine
from data_tfds.samples import BANDS
from data_tfds.sets.folder import COLUMNS
from facenet_jax import models
from facenet_jax.inputs import dataset as data
from facenet_jax.inputs.augment import normalise
from facenet_jax.types import Batch
from facenet_jax.weights import merge as pretrained
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
evaluate_embeddings = importlib.import_module("evaluate_embeddings")

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
            f"{triplet['place']:04d}",
            triplet["capture"],
            "",
            *(
                next(folder.glob(f"{triplet['place']:04d}/{band}/*_{triplet['scene']}.png"))
                for band in trees.BANDS
            ),
        ]
        for triplet in json.loads((folder / "meta.json").read_text())["triplets"]
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
    assert {split: numbers["triplets"] for split, numbers in report.splits.items()} == {
        "train": 13,
        "query": 12,
        "gallery": 25,
    }
    assert sorted(finding.what for finding in report.findings) == [
        "13 identities are in train and in test",
        "13 triplets of the same name are in train and in test",
        "39 images are in train and in test, byte for byte",
        "75 images are grey",
    ]


@pytest.fixture(scope="module")
def files(shared, table, tmp_path_factory):
    """query.npz and gallery.npz of a ViT-Ti in each branch, nothing of it trained here."""
    folder = tmp_path_factory.mktemp("embeddings")
    dataset = data.load(trees.section("folder/camera", table, folder / "prepared", image_size=SIZE))
    config = tiny.config(
        model__variant="Ti", model__patch=16, model__fce__enabled=False, losses__mask_kl=0.0
    )
    model = models.build(config.model, SIZE, 19)
    variables = tiny.variables(model)
    variables["params"], report = pretrained.load_pretrained(
        shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.pth",
        variables["params"],
        model.patch_grid,
    )
    assert {path.split("/")[0] for path in report.loaded} >= {"trunk", "last"}

    @jax.jit
    def embed(variables, pixels):
        nothing = np.zeros(pixels.shape[1], np.int32)
        flare = np.zeros((pixels.shape[1], 2), bool)
        batch = Batch(normalise(pixels), nothing, nothing, nothing, flare)
        return model.apply(variables, batch, train=False, bands=BANDS)[0].embedding

    options = []
    for name in ("query", "gallery"):
        split = getattr(dataset, name)
        np.savez(
            folder / f"{name}.npz",
            embedding=embed(variables, np.asarray(split.images)),
            parts=np.array([(0, 192), (192, 384), (384, 576)]),
            modalities=np.array(BANDS),
            identity=split.identity,
            camera=split.camera,
            scene=split.scene,
            flare=np.zeros((len(split), 2), bool),
            name=split.name,
        )
        options += [f"--{name}", str(folder / f"{name}.npz")]
    return options


@pytest.mark.parametrize("bands", RECORDED)
def test_a_frozen_vit_finds_places_again_as_well_as_recorded(files, tmp_path, bands):
    """Half of the last recorded decimal is all that is allowed."""
    scores = tmp_path / "scores.json"
    options = [*files, "--protocol", "camera", "--bands", bands, "--json", str(scores)]
    assert evaluate_embeddings.main(options) == 0
    result = json.loads(scores.read_text())
    assert (result["queries"], result["valid_queries"], result["gallery"]) == (12, 12, 25)
    assert result["mAP"] == pytest.approx(RECORDED[bands], abs=5e-4)
