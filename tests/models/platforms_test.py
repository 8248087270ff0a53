import jax
import jax.numpy as jnp
import pytest

from facenet_jax.models.platforms import by_platform, traced_for
from facenet_jax.models.product import product


def choose(x):
    return by_platform(x, cpu=jax.lax.sin, default=jax.lax.cos)


@pytest.mark.parametrize(("platform", "operation"), [("cpu", "sine"), ("tpu", "cosine")])
def test_a_program_has_the_form_of_what_it_is_lowered_for(platform, operation):
    lowered = jax.jit(choose).trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()
    found = {name for name in ("sine", "cosine") if f"stablehlo.{name} " in lowered}
    assert found == {operation}


@pytest.mark.parametrize(("platform", "operation"), [("cpu", "sin"), ("onnx", "cos")])
def test_what_is_traced_for_a_platform_holds_no_choice(platform, operation):
    """As ONNX needs it; afterwards the choice is there again."""
    with traced_for(platform):
        (equation,) = jax.make_jaxpr(lambda x: choose(x))(jnp.ones(3)).eqns
        inside = jax.make_jaxpr(lambda x, k: product("btc,chd->bhtd", x, k))
        assert "platform_index" not in str(inside(jnp.ones((1, 2, 3)), jnp.ones((3, 4, 5))))
    assert equation.primitive.name == operation
    assert "platform_index" in str(jax.make_jaxpr(lambda x: choose(x))(jnp.ones(3)))
