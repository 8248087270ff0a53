"""A network in Python and `facenet embed FOLDER`: what a user gives, and what comes back."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import facenet_jax
from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax import api, commands, evaluate, models, stored
from facenet_jax.retrieval import Embeddings
from facenet_jax.types import DataSpec
from tests.support import tiny_run as tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """An untrained baseline of small width."""
    c = tiny.config("three_stream")
    model = models.build(c.model, DataSpec(tiny.MODALITIES, tiny.SIZE, tiny.IDENTITIES, {}))
    return api.Network(c, model, tiny.variables(model), 7, tmp_path_factory.mktemp("workdir"))


def embed(network, images):
    return network.embed(batch=4, thermal=images)


def test_every_way_to_give_an_image_is_the_same_image(network, tmp_path):
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    expected = embed(network, PIXELS)
    assert expected.shape == (5, 16)
    for images in (
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        PIXELS / 255,
        np.float32(PIXELS) / np.float32(255),
        [paths[0], PIXELS[1], Image.fromarray(PIXELS[2]), PIXELS[3] / 255, str(paths[4])],
    ):
        np.testing.assert_array_equal(embed(network, images), expected)


def test_one_image_is_one_image(network, tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    expected = embed(network, PIXELS[:1])
    for image in (PIXELS[0], str(tmp_path / "a.png"), tmp_path / "a.png", PIXELS[0] / 255):
        found = embed(network, image)
        assert found.shape == (1, 16)
        np.testing.assert_array_equal(found, expected)
    grey = PIXELS[0, :, :, 0]
    np.testing.assert_array_equal(embed(network, grey), embed(network, [grey]))
    np.testing.assert_array_equal(embed(network, grey), embed(network, np.stack([grey] * 3, -1)))


def test_a_batch_is_no_larger_than_it_must_be(network, monkeypatch):
    sizes = []

    def forward(self, modalities):
        def embedded(variables, pixels, labels):
            sizes.append(pixels.shape[1])
            return np.zeros((pixels.shape[1], 2), np.float32)

        return embedded

    monkeypatch.setattr(api.Network, "forward", forward)
    for count in (1, 2, 3, 5):
        assert embed(network, PIXELS[:count]).shape == (count, 2)
    assert sizes == [1, 2, 4, 4, 1]


def test_what_fills_a_batch_changes_nothing(network):
    for count in (1, 3):
        np.testing.assert_allclose(
            embed(network, PIXELS[:count]), embed(network, PIXELS[:4])[:count], rtol=1e-4, atol=1e-5
        )


DEEP = Image.fromarray(np.arange(3000, 3600, dtype=np.uint16).reshape(20, 30))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            [PIXELS[0], DEEP],
            r"thermal\[1\] has mode I;16 where .* scale its 16 bits",
        ),
        (
            np.asarray(DEEP)[None],
            r"thermal\[0\] is uint16 with values from 3000 to 3599",
        ),
        (PIXELS[0] * 1.0, r"float64 values from 0 to 255; floats must lie in 0..1"),
        (np.full((2, 4, 4, 3), np.nan), "float64 values from nan to nan"),
        (np.zeros((4, 4, 4), bool)[..., :2], r"thermal\[0\] is bool"),
        (
            np.zeros((3, 4, 4, 4), np.uint8),
            r"\[0\] has the shape \[4, 4, 4\], not \[H, W, 3\]",
        ),
        (np.zeros((0, 4, 4, 3), np.uint8), "as many images of every modality"),
        (["no/such.png"], r"no/such.png \(thermal\[0\]\) cannot be read: No such file"),
        ([__file__], "is not an image that is read here"),
        (7, "thermal is a int; give an image or a sequence of images"),
        ([[1, 2]], r"thermal\[0\] is a list; give the path of a file, a Pillow image, or an array"),
    ],
)
def test_what_is_no_image_is_one_sentence(network, images, said):
    with pytest.raises(UserError, match=said) as error:
        embed(network, images)
    assert "\n" not in str(error.value)


def test_a_16_bit_file_is_refused_by_the_api_as_by_the_folder_loader(network, tmp_path):
    DEEP.save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png has mode I;16 where three channels"):
        embed(network, tmp_path / "deep.png")


@pytest.mark.parametrize("batch", [0, -1, 2.5])
def test_a_batch_is_a_whole_number(network, batch):
    with pytest.raises(UserError, match="it is a whole number of 1 or more"):
        network.embed(batch=batch, thermal=PIXELS)


def test_similarity_is_around_a_mean(network):
    """By hand; without images of the gallery there is no mean, and that is one sentence."""
    with pytest.raises(UserError, match=r"embeddings of step 7 in .*, which has none; write"):
        network.similarity(np.ones((1, 48)), np.ones((1, 48)))
    rng, parts = np.random.default_rng(0), network.parts()
    rows = np.float32(100 + rng.normal(size=(9, 48)))
    names = np.arange(9).astype(str)
    gallery = Embeddings(rows, parts, np.arange(9, dtype=np.int32), names, {})
    evaluate.export(
        network.folder / "embeddings", (gallery, gallery), step=6, protocol=Protocol("none")
    )
    with pytest.raises(UserError, match=r"which has those of step 6; write them"):
        network.similarity(rows, rows)
    evaluate.export(
        network.folder / "embeddings", (gallery, gallery), step=7, protocol=Protocol("none")
    )
    found = network.similarity(rows[:2], rows)
    around = rows - rows.mean(axis=0)
    lengths = np.linalg.norm(around, axis=1)
    np.testing.assert_allclose(
        found, around[:2] @ around.T / np.outer(lengths[:2], lengths), atol=1e-4
    )
    assert found.min() < 0 < found[0, 1:].max() < 0.9
    thermal = slice(*parts["thermal"])
    alone = network.similarity(rows[:2, thermal], rows[:, thermal], ["thermal"])
    assert alone.shape == (2, 9)
    np.testing.assert_allclose(np.diagonal(alone), 1, rtol=1e-5)
    with pytest.raises(UserError, match=r"shape \[2, 16\]; those of visible, near_infrared"):
        network.similarity(rows[:2, thermal], rows)


def test_same_is_above_the_threshold_of_this_checkpoint(network):
    folder = network.folder / "embeddings"
    rng, identity = np.random.default_rng(0), np.arange(12) % 4
    rows = np.float32(9 + rng.normal(size=(4, 48))[identity] + 0.1 * rng.normal(size=(12, 48)))
    side = Embeddings(rows, network.parts(), identity, np.arange(12).astype(str), {})
    network = dataclasses.replace(network)  # without what the test above has found
    evaluate.export(folder, (side, side), 6, Protocol("none"))
    with pytest.raises(UserError, match=r"threshold.json, which has those of step 6; write"):
        network.same(rows, rows)
    evaluate.export(folder, (side, side), 7, Protocol("none"))
    assert np.array_equal(network.same(rows, rows), identity[:, None] == identity)
    assert network.thresholds["pairs"] == "within the gallery"
    with pytest.raises(UserError, match=r"at = '0.001', but 108 pairs of different .* too few"):
        network.same(rows, rows, at="0.001")
    with pytest.raises(UserError, match=r"at = 'best'; it is one of eer, 0.001, 0.0001"):
        network.same(rows, rows, at="best")


def test_a_network_is_one_line(network):
    line = "<Network three_stream: visible, near_infrared, thermal; 32 x 16 pixels; step 7>"
    assert repr(network) == line


@pytest.fixture
def folder(tmp_path, network, monkeypatch):
    """A folder of images, as `facenet embed` takes it; the network is the one above."""
    monkeypatch.setattr(api, "load", lambda folder, which: network)
    for name in ("vis", "th"):
        (tmp_path / "mine" / name / "day").mkdir(parents=True)
        for i, pixels in enumerate(PIXELS[:3]):
            Image.fromarray(pixels).save(tmp_path / "mine" / name / "day" / f"{i}.png")
    return tmp_path / "mine"


def test_a_folder_of_images_without_identities(folder, network, tmp_path, capsys):
    line = ["embed", str(folder), f"--workdir={tmp_path}", "--batch=4"]
    assert commands.main(line) == 0
    found = Embeddings.read(tmp_path / "embeddings" / "images-mine.npz")
    assert found.name.tolist() == ["day/0", "day/1", "day/2"]
    assert found.parts == {"visible": (0, 16), "thermal": (16, 32)}
    assert (found.identity == -1).all()
    images = {"visible": PIXELS[:3], "thermal": PIXELS[:3]}
    np.testing.assert_array_equal(found.embedding, network.embed(batch=4, **images))
    assert "3 samples (visible + thermal)" in capsys.readouterr().out
    # One modality, from its own folder or from the one that has it.
    for given in (folder / "th", folder):
        out = f"--out={tmp_path / 'one.npz'}"
        assert commands.main(["embed", str(given), "--modality=th", *line[2:], out]) == 0
        one = Embeddings.read(tmp_path / "one.npz")
        np.testing.assert_array_equal(one.embedding, embed(network, PIXELS[:3]))


def test_what_a_folder_lacks_is_one_sentence(folder, tmp_path, capsys):
    def said(*options):
        assert commands.main(["embed", *map(str, options)]) > 0
        (line,) = capsys.readouterr().err.splitlines()
        return line

    work = f"--workdir={tmp_path}"
    assert "Name the network" in said(folder)
    assert "There is no folder" in said(folder / "no", work)
    assert "has none of the folders vis, ni, th, ir" in said(folder / "vis", work)
    assert "holds infrared images, but the network" in said(folder, work, "--modality=ir")
    assert "must end in .npz" in said(folder, work, "--out=a.npy")
    (folder / "th" / "day" / "2.png").rename(folder / "th" / "day" / "3.png")
    assert "lacks images of some samples: day/2 (thermal) and 1 more" in said(folder, work)
    (folder / "empty").mkdir()
    assert "holds no image" in said(folder / "empty", work, "--modality=th")


def test_a_value_that_is_not_legal_is_named_when_the_network_is_loaded(tmp_path):
    stored.claim(tmp_path, tiny.config("three_stream"), tiny.SPEC)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": "x"}))
    with pytest.raises(UserError, match=r"config\.seed is 'x'; it must be a whole number"):
        facenet_jax.load(tmp_path)
