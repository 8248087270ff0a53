"""The network of every demo can be traced for any number of samples, as an export needs it."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from facenet_jax import models
from facenet_jax.types import Batch, DataSpec
from tests.support import tiny_run as tiny

OTHERS = [
    *("transreid.demo:transreid", "agw.demo", "ffdml.demo"),
    *(f"hosts.demo:{name}" for name in ("hamnet", "pfnet", "ieee", "topreid")),
    *(f"backbones.demo:{name}" for name in ("facenet_resnet", "dinov2_reg", "dinov3", "clip")),
]
DEMOS = [
    *("ccnet.demo:ccnet", "mun.demo:mun", "joined.demo:both", "hosts.demo:editor"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
]


@pytest.mark.parametrize("demo", DEMOS)
def test_any_number_of_samples(demo):
    module, _, argument = demo.partition(":")
    recipe = importlib.import_module(f"configs.{module}")
    config = recipe.get_config(argument) if argument else recipe.get_config()
    pairs = "infrared" in config.data.name
    names = tiny.MODALITIES[:2] if pairs else tiny.MODALITIES
    size = tuple(config.data.image_size)
    spec = DataSpec(names, size, 5, {"camera": 2, "view": 2})
    model = models.build(config.model, spec)
    given = names[:1] if pairs else names  # one modality of a pair is one side of a search
    variables = jax.eval_shape(model.init, jax.random.key(0))

    def embed(variables, images):
        count = images.shape[1]
        zeros = jnp.zeros((len(given), count), jnp.int32)
        labels = {"camera": zeros, "view": zeros, "flare": zeros > 0}
        batch = Batch(images, jnp.zeros(count, jnp.int32), labels)
        return model.apply(variables, batch, train=False, modalities=given)[0].embedding

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((len(given), count, *size, 3), jnp.float32)
    exported = jax.export.export(jax.jit(embed))(variables, images)
    (out,) = exported.out_avals
    assert str(out.shape[0]) == "n"
