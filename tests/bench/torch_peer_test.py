"""The PyTorch peer of the benchmark is our network: same outputs, losses, gradients and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_tfds.errors import UserError
from facenet_jax import objective, optim
from facenet_jax.inputs.augment import augment, draws
from facenet_jax.inputs.sampler import pk_samples
from tests.support import tiny_run as tiny

torch = pytest.importorskip("torch", reason="PyTorch, the extra `bench`, is not installed")

from facenet_jax.bench import torch_peer, torch_training  # noqa: E402

RELEASE = {
    "model__mfmp__heads": 3,
    "model__mfmp__split": "windows",
    "model__mfmp__norms": 2,
    "model__mfmp__norm_epsilon": 1e-5,
    "model__fce__keep": "near_infrared",
    "model__fce__gate": "batch",
    "model__neck_feature": "after",
    "losses__mask_kl__reduction": "batch",
    "losses__mc__reduction": "batch",
}
CASES = {
    "paper": {},
    "release": RELEASE | {"model__fce__mask": "straight_through"},
    "shared": {
        "model__shared_trunk": True,
        "model__stride": 6,
        "model__mfmp__heads": 2,
        "model__mfmp__head_width": 5,
        "model__remat": "full",
        "losses__triplet__margin": 0.3,
        "losses__id__label_smoothing": 0.1,
        "losses__flare__weight": 0.5,
        "losses__flare__label_smoothing": 0.2,
    },
    "baseline": {"model": "three_stream", "model__depth": 3},
    "FACENet without its parts": {
        "model__mfmp__enabled": False,
        "model__fce__enabled": False,
        "model__flare_heads": False,
        "losses__mask_kl__weight": 0.0,
    },
    "masks without MFMP": {"model__mfmp__enabled": False, "model__fce__mask": "hard"},
}


def relative(got, expected):
    """The size of the difference over the size of what is expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def both(case):
    """(config, our model, our variables, the peer with the same) without drop path."""
    c = tiny.config(model__drop_path=0.0, **CASES[case])
    model = tiny.build(c)
    variables = tiny.variables(model)
    peer = torch_peer.FACENet(c.model, tiny.SIZE, tiny.IDENTITIES)
    torch_peer.load(peer, variables)
    return c, model, variables, peer


def as_torch(*arrays):
    return [torch.from_numpy(np.array(x)) for x in arrays]


@pytest.mark.parametrize("case", CASES)
def test_evaluation(case):
    _, model, variables, peer = both(case)
    batch = tiny.batch()
    ours, _ = jax.jit(lambda v: model.apply(v, batch, train=False))(variables)
    with torch.inference_mode():
        theirs = peer.eval()(*as_torch(batch.images, batch.labels["flare"][:2].T))
    assert relative(theirs.embedding, ours.embedding) < 1e-5
    for modality, got in zip(tiny.MODALITIES, theirs.features, strict=True):
        assert relative(got, ours.features[modality]) < 1e-5, modality


@pytest.mark.parametrize("case", CASES)
def test_training(case):
    c, model, variables, peer = both(case)
    batch, terms = tiny.batch(8), objective.terms(c)

    @jax.jit
    def ours(params):
        variables_ = {**variables, "params": params}
        outputs, changed = model.apply(variables_, batch, train=True, key=jax.random.key(0))
        total, weighed = objective.total(terms, outputs, batch, jnp.float32(0))
        return total, (weighed, changed)

    (total, (weighed, changed)), gradients = jax.value_and_grad(ours, has_aux=True)(
        variables["params"]
    )
    images, flare, identity = as_torch(batch.images, batch.labels["flare"][:2].T, batch.identity)
    outputs = peer.train()(images, flare)
    sections = [c.losses[label] for label in terms]
    weights = torch.tensor([float(weight) for weight, _ in terms.values()])
    their_terms = weights * torch_training.loss_terms(outputs, identity.long(), flare, sections)
    their_total = their_terms.sum()
    their_total.backward()

    for label, got in zip(terms, their_terms, strict=True):
        assert relative(got.detach(), weighed[label]) < 1e-5, label
    assert relative(their_total.detach(), total) < 1e-5
    tree = {"params": gradients, **changed}
    all_gradients = float(optax.global_norm(gradients))
    for name, tensor in peer.named_parameters():
        if tensor.requires_grad:
            expected = torch_peer.ours(tree, name, tensor.shape)
            error = np.linalg.norm(tensor.grad.numpy() - expected)
            # What a BatchNorm undoes has next to no gradient of its own, and that drowns in noise.
            undone = name.startswith(("last", "flare_head")) and ".norm." in name
            size = 0.1 * all_gradients if undone else np.linalg.norm(expected)
            assert error < 1e-5 * size, name
    for name, tensor in peer.named_buffers():
        if not name.endswith("num_batches_tracked"):
            assert relative(tensor, torch_peer.ours(tree, name, tensor.shape)) < 1e-5, name


def test_every_parameter_of_ours_has_a_place():
    for case in CASES:
        _, _, variables, peer = both(case)
        ours = sum(x.size for x in jax.tree.leaves(variables))
        theirs = [x for name, x in peer.state_dict().items() if not name.endswith("_tracked")]
        assert sum(x.numel() for x in theirs) == ours, case


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer(name):
    c, _, variables, peer = both("paper")
    c.optim.name, c.optim.weight_decay, c.optim.clip = name, 0.1, 3.0
    ours, theirs = optim.optimizer(c.optim), torch_training.make_optimizer(peer, c.optim)
    params = variables["params"]
    state, rates = ours.init(params), np.array([[0.1, 0.2], [0.05, 0.3]], np.float32)
    groups = optim.parameter_groups({}, 2.0)

    @jax.jit
    @jax.numpy_dtype_promotion("standard")
    def step(params, state, gradients, rates):
        directions, state = ours.update(gradients, state, params)
        return optim.descend(params, directions, rates, groups), state

    for seed, rate in enumerate(rates):
        gradients = tiny.draw(params, seed=seed)
        params, state = step(params, state, gradients, jnp.asarray(rate))
        for key, tensor in peer.named_parameters():
            if tensor.requires_grad:
                array = torch_peer.ours({"params": gradients}, key, tensor.shape)
                tensor.grad = torch.from_numpy(np.array(array, order="C"))
        torch_training.descend(theirs, rate.tolist(), c.optim)
    for key, tensor in peer.named_parameters():
        if tensor.requires_grad:
            expected = torch_peer.ours({"params": params}, key, tensor.shape)
            assert relative(tensor.detach(), expected) < 1e-5, key


@pytest.mark.parametrize("per_modality", [False, True])
def test_crops_are_those_of_our_augmentation(per_modality):
    c = tiny.config(augment__per_modality=per_modality, augment__pad=5).augment
    images, _ = tiny.pictures(4, 2)
    rows, key = np.array([3, 0, 5, 6]), jax.random.key(0)
    ours = augment(jnp.asarray(images[:, rows]), key, c)
    *keys, shape = draws(key, (3, len(rows)), not per_modality)
    flip = jax.random.bernoulli(keys[0], c.flip, shape)
    top, left = (jax.random.randint(k, shape, 0, 2 * c.pad + 1) for k in keys[1:3])
    drawn = [as_torch(np.broadcast_to(x, (3, len(rows))))[0] for x in (flip, top, left)]
    assert flip.any()
    assert not flip.all()
    for modality, *how in zip(range(3), *drawn, strict=True):
        got = torch_training.crop(*as_torch(images[modality], rows), *how, c.pad)
        np.testing.assert_array_equal(got, np.round((np.asarray(ours[modality]) + 1) * 127.5))
        np.testing.assert_allclose(torch_training.normalise(got), ours[modality], atol=2e-7)


def peer_on_data(c):
    images, flare = tiny.pictures(tiny.IDENTITIES, tiny.SAMPLES)
    identity = np.repeat(np.arange(tiny.IDENTITIES, dtype=np.int32), tiny.SAMPLES)
    samples, _ = pk_samples(identity, seed=0, p=4, k=2, epochs=0, steps=30)
    arrays = {
        "identities": tiny.IDENTITIES,
        "images": images,
        "identity": identity,
        "flare": flare,
        "rows": np.repeat(samples[:, None], 3, 1),
        "rates": np.full((30, 2), 3e-3, np.float32),
        "weights": np.ones((30, 2), np.float32),
    }
    peer = torch_training.Peer(c, arrays, ("id", "mc"), compiled=False)
    peer.load(tiny.variables(tiny.build(tiny.config())))
    return peer


def test_the_peer_learns_and_embeds():
    peer = peer_on_data(tiny.config(model__dtype="bfloat16", optim__name="adamw"))
    first = peer.train(1)
    assert peer.train(29) < 0.7 * first
    embeddings = peer.embeddings(np.arange(8).reshape(2, 4))
    assert embeddings.shape == (4, 3 * 16)
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"losses__hc__weight": 1.0}, "losses.hc.term = hc"),
        ({"losses__mc__of": "features"}, "losses.mc.of = features"),
        ({"losses__id__on": ("visible",)}, "losses.id.on"),
        ({"augment__erase": 0.5}, "augment.erase"),
    ],
)
def test_what_the_peer_does_not_have_is_said(changes, text):
    c = tiny.config(**changes)
    with pytest.raises(UserError, match=text):
        torch_training.Peer(c, {}, list(objective.terms(c)), compiled=False)


def test_another_backbone_is_refused():
    c = tiny.config("three_stream").model
    c.backbone = "my.backbone"
    with pytest.raises(UserError, match=r"three_stream on my\.backbone"):
        torch_peer.FACENet(c, tiny.SIZE, tiny.IDENTITIES)
