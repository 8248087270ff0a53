"""Data sets whose samples lack modalities (data.incomplete=keep), or that have fewer of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_tfds.errors import UserError
from facenet_jax import config as configs
from facenet_jax import embed, evaluate, stored
from facenet_jax import run as runs
from facenet_jax.inputs.augment import normalise
from facenet_jax.inputs.device import gather
from facenet_jax.inputs.stream import open_reader
from facenet_jax.losses import divergence, identity
from facenet_jax.runtime.mesh import replicate
from facenet_jax.step import State
from tests.support import tiny_run as tiny

PLAIN = {"augment__flip": 0.0, "augment__pad": 0, "model__drop_path": 0.0}
"""A step on the pictures as they are."""


def lacking(split):
    """The split without every third visible, every fourth near-infrared and some thermal images."""
    rows, sample = split.rows.copy(), np.arange(len(split))
    rows[0, sample % 3 == 0] = -1
    rows[1, sample % 4 == 1] = -1
    rows[2, sample % 6 == 2] = -1
    return dataclasses.replace(split, rows=rows)


def data():
    gallery = lacking(tiny.training_split(4, seed=5))
    return tiny.dataset(train=lacking(tiny.training_split()), gallery=gallery)


def config(model="three_stream", **changes):
    """With the loss mc, which compares neighbouring modalities."""
    c = tiny.config(model, **PLAIN, **changes)
    if model == "three_stream":
        with c.losses.unlocked():
            c.losses.mc = configs.loss(model, "mc")
    return c


@functools.cache
def trainer(model="three_stream", resident="always"):
    changes = {"losses__flare__weight": 0.5} if model == "facenet" else {}
    return tiny.Trainer(config(model, data__resident=resident, **changes), 2, data=data())


def trained(t, steps=5):
    """(state, scalars) of a trainer whose images may stream."""
    state, logs, length = t.start(), [], t.config.train.steps_per_dispatch
    with open_reader(t.data, np.asarray(t.schedule.rows), length, t.mesh) as read:
        for count in (length, steps - length):
            state, scalars = t.chunk(state, read(count), count)
            logs.append({name: np.asarray(x)[:count] for name, x in scalars.items()})
    return state, {name: np.concatenate([log[name] for log in logs]) for name in logs[0]}


def first_outputs(t):
    """(what the model says of the first batch, the batch)."""

    def outputs(state, data, rows):
        images, batch = gather(data, rows, jnp.int32(0), t.mesh)
        batch = dataclasses.replace(batch, images=normalise(images))
        key = jax.random.key(0)
        return t.model.apply(state.variables, batch, train=True, key=key)[0], batch

    return jax.jit(outputs)(t.start(), t.data, t.schedule.rows[0])


@pytest.mark.slow  # tests/losses has the terms one by one
@pytest.mark.parametrize("model", ["three_stream", "facenet"])
def test_losses_are_those_of_the_images_that_are_there(model):
    """Against each loss on the present rows alone."""
    t = trainer(model)
    _, scalars = trained(t)
    out, batch = first_outputs(t)
    present = np.asarray(batch.present)
    assert (~present).any(axis=1).all()  # of each modality some are missing
    assert present.any(axis=0).all()
    names, label = tiny.MODALITIES, batch.identity

    def there(values, *modalities):
        """Those of the rows that have all of these modalities."""
        return values[present[list(modalities)].all(axis=0)]

    def kl(a, b, first, second):
        return divergence.min_kl(there(a, first, second), there(b, first, second))

    rows = list(enumerate(names))
    expected = {
        "id": sum(
            identity.cross_entropy(there(out.logits[name], m), there(label, m)) for m, name in rows
        ),
        "triplet": sum(
            identity.batch_hard_triplet(there(out.features[name], m), there(label, m))
            for m, name in rows
        ),
        "mc": sum(kl(out.logits[names[m]], out.logits[names[m + 1]], m, m + 1) for m in range(2)),
    }
    if model == "facenet":
        heads, flare = out.extras["flare_logits"], batch.labels["flare"].astype(jnp.int32)
        expected["mask_kl"] = kl(*heads, 0, 1)
        expected["flare"] = 0.5 * sum(
            identity.cross_entropy(there(heads[m], 0, 1), there(flare[m], 0, 1)) for m in range(2)
        )
    for name, value in expected.items():
        np.testing.assert_allclose(scalars[f"loss_{name}"][0], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(scalars["loss"][0], sum(expected.values()), rtol=1e-4)
    assert all(np.isfinite(values).all() for values in scalars.values())


@pytest.mark.slow
def test_a_stream_with_missing_images_gives_the_bits_of_the_resident_run():
    resident, streamed = (trained(trainer(resident=where)) for where in ("always", "never"))
    jax.tree.map(np.testing.assert_array_equal, streamed, resident)


@pytest.mark.slow  # two compilations for two devices
def test_a_dropped_modality_is_one_that_the_data_lack():
    """Dropped in every sample, it leaves the first step of data without it."""
    split = tiny.training_split()
    rows = split.rows.copy()
    rows[0] = -1
    without = tiny.dataset(train=dataclasses.replace(split, rows=rows))
    c = config(augment__modality_dropout=(1.0, 0.0, 0.0))
    _, dropped = trained(tiny.Trainer(c, 2, data=tiny.dataset(train=split)))
    _, lacking = trained(tiny.Trainer(config(), 2, data=without))
    for name, values in lacking.items():
        np.testing.assert_allclose(dropped[name][0], values[0], rtol=1e-5, err_msg=name)


def test_losses_over_centres_of_modalities_need_all_images():
    c = config()
    with c.losses.unlocked():
        c.losses.mmm = configs.loss("three_stream", "mmm")
    with pytest.raises(
        UserError, match=r"mmm works with centres .* \(config.data.incomplete = 'skip'"
    ):
        tiny.Trainer(c, 2, data=data())


def state(run):
    collections = tiny.variables(run.model)
    params = collections.pop("params")
    return replicate(State(jnp.int32(5), params, collections, run.optimizer.init(params)), run.mesh)


def embeddings(model="three_stream", dataset=None, **changes):
    c = tiny.config(model, **changes)
    run = runs.assemble(c, dataset or data(), mesh=tiny.make_mesh(2))
    return run, embed.embed(run, state(run), embed.test_set(run))[1]


def test_an_embedding_is_zero_where_the_image_is_missing():
    """Elsewhere it is that of the complete sample."""
    run, found = embeddings()
    complete = {"gallery": tiny.training_split(4, seed=5)}
    _, whole = embeddings(dataset=tiny.dataset(**complete))
    split = run.dataset.splits["gallery"]
    np.testing.assert_array_equal(found.labels["present"], split.rows.T >= 0)
    for column, (start, stop) in enumerate(found.parts.values()):
        there = found.labels["present"][:, column]
        part = found.embedding[:, start:stop]
        assert not part[~there].any()
        np.testing.assert_allclose(part[there], whole.embedding[there, start:stop], atol=1e-5)
    assert "present" not in whole.labels


def test_embeddings_with_missing_images_stream_to_the_same_bits():
    resident, streamed = (embeddings(data__resident=where)[1] for where in ("always", "never"))
    for ours, theirs in zip(resident.by_name.values(), streamed.by_name.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(resident.embedding, streamed.embedding)


def test_facenet_enhances_no_sample_that_lacks_an_image():
    """Its visible part is then that of the visible branch alone."""
    run, found = embeddings("facenet", model__depth=1)
    of = embed.test_set(run)
    alone = embed.embed(run, state(run), of, ("visible",))[1]
    split = run.dataset.splits["gallery"]
    visible, others = split.rows[0] >= 0, (split.rows[1:] >= 0).all(axis=0)
    flared = split.labels["flare"][:, 0] & visible
    same = np.isclose(found.embedding[:, :16], alone.embedding, atol=1e-4).all(axis=1)
    lacking = visible & ~others
    assert (lacking & flared).any()
    assert same[lacking].all()
    assert same[visible & ~flared].all()


@pytest.mark.slow  # seven programs, one for each subset of the modalities
def test_scores_by_modality_are_finite_where_images_are_missing():
    """A query whose only image is missing has an embedding of zeros, and still a rank."""
    run, _ = embeddings()
    table = evaluate.per_modality(run, state(run), embed.test_set(run))
    values = [value for row in table.values() for value in row.values() if value is not None]
    assert len(values) >= 5
    assert np.isfinite(values).all()
    assert list(evaluate.baselines(run, embed.test_set(run))) == [
        *("untrained", "raw_pixels", "colour_histogram"),
    ]


@pytest.fixture
def files(tmp_path):
    """(a config, the number of training and of test samples that lack an image) of real files."""
    root = tiny.tree(tmp_path / "tree")
    counts = []
    for split, every in (("train", 3), ("test", 4)):
        paths = sorted((root / split).rglob("vis/*.jpg"))[::every]
        counts.append(len(paths))
        for path in paths:
            path.unlink()
    c = tiny.config("three_stream", data__root=str(root), data__prepared=str(tmp_path / "prepared"))
    return c, *counts


def test_a_run_keeps_what_lacks_an_image(files, tmp_path):
    """Trained, scored, exported, and embedded again, with all samples."""
    c, train, test = files
    with pytest.raises(UserError, match=r"config.data.incomplete"):
        tiny.train(c, tmp_path / "refused")
    c.data.incomplete, c.train.steps = "keep", 6
    folder = tmp_path / "run"
    result = tiny.train(c, folder)
    assert (result["last"]["queries"], result["last"]["gallery"]) == (4, 12)
    lines = [line for line in tiny.metrics(folder) if "train/loss" in line]
    assert np.isfinite([line["train/loss"] for line in lines]).all()
    path = folder / "embeddings" / "gallery.npz"
    with np.load(path) as file:
        before = dict(file)
    assert (~before["present"]).sum() == test
    assert not before["embedding"][~before["present"][:, 0], :16].any()
    path.unlink()
    with tiny.on(1):
        evaluate.export_only(stored.read_config(folder), folder)
    with np.load(path) as file:
        for name, values in before.items():
            np.testing.assert_array_equal(file[name], values)
    assert train > 0


def two_modalities(root):
    """Visible and thermal PNG files of eight identities, four of which are tested."""
    images, _ = tiny.pictures(12, 2)
    for row in range(24):
        split, identity = ("train", row // 2) if row < 16 else ("gallery", row // 2)
        for modality, name in ((0, "vis"), (2, "th")):
            path = root / split / f"car {identity}" / name / f"shot_c{row % 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[modality, row]).save(path)
    return root


@pytest.mark.slow
def test_a_set_of_two_modalities_trains_the_baseline_and_not_facenet(tmp_path):
    root, prepared = two_modalities(tmp_path / "two"), str(tmp_path / "prepared")
    changes = {"data__name": "folder/camera", "data__root": str(root), "data__prepared": prepared}
    folder = tmp_path / "run"
    result = tiny.train(tiny.config("three_stream", train__steps=6, **changes), folder)
    assert (result["last"]["queries"], result["last"]["gallery"]) == (8, 8)
    assert stored.read_spec(folder).modalities == ("visible", "thermal")
    with np.load(folder / "embeddings" / "gallery.npz") as file:
        assert file["embedding"].shape == (8, 32)
        assert file["modalities"].tolist() == ["visible", "thermal"]
    sentence = "modalities visible, thermal, but FACENet needs visible, near_infrared, thermal"
    with pytest.raises(UserError, match=sentence):
        tiny.train(tiny.config(**changes), tmp_path / "refused")
    assert not (tmp_path / "refused" / "config.json").exists()
