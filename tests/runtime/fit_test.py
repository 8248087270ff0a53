import jax
import jax.numpy as jnp
import pytest

from facenet_jax import run as runs
from facenet_jax.runtime import fit, memory
from facenet_jax.runtime.mesh import make_mesh
from tests.support import tiny_run as tiny


class Step:
    """Stands for a traced, lowered and compiled step that needs so many bytes of temporaries."""

    def __init__(self, need, keeps=0):
        def loop(x):
            return jax.lax.scan(lambda carry, _: (carry, carry), x, length=1)[1]

        self.jaxpr = jax.make_jaxpr(loop)(jax.ShapeDtypeStruct((keeps,), jnp.uint8))
        self.temp_size_in_bytes = need

    def lower(self):
        return self

    def compile(self):
        if self.temp_size_in_bytes is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM")
        return self

    def memory_analysis(self):
        return self


def chosen(limit, **steps):
    """The mode that is taken beside 100 bytes of state, and those that were compiled before it."""
    tried = []

    def trace(mode):
        tried.append(mode)
        return steps[mode]

    return fit.compiled(trace, 100, 0, 1, limit)[0], tried[:-1]


def test_the_first_that_fits_is_taken():
    steps = {"dots": Step(500, 400), "full": Step(200, 100)}
    assert chosen(600, **steps) == ("dots", [])
    assert chosen(599, **steps) == ("full", ["dots"])
    assert chosen(1, **steps)[0] == "full"  # what does not fit at all is refused by memory.check


def test_what_the_compiler_refuses_is_not_taken(log_lines):
    assert chosen(1000, dots=Step(None), full=Step(10)) == ("full", ["dots"])
    assert "config.model.remat=dots is refused by the compiler" in log_lines[0]
    with pytest.raises(jax.errors.JaxRuntimeError):
        chosen(1000, dots=Step(None), full=Step(None))


def test_what_keeps_too_much_is_not_compiled(log_lines):
    """`dots` would keep 901 bytes beside 100; its compiler is never asked."""
    assert chosen(1000, dots=Step(None, 901), full=Step(10)) == ("full", ["dots"])
    assert "would keep 0.9 kB beside 0.1 kB, of 1.0 kB" in log_lines[0]


def test_what_layers_leave_behind_is_seen_in_the_traced_step():
    """The stacked outputs of loops, each once, also inside jit; their carries do not count."""

    def two(x):
        for _ in range(2):
            x, kept = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c * 2, c), x, length=5))(x)
        return x, kept

    assert fit.stacked(jax.make_jaxpr(two)(jnp.zeros(3)).jaxpr) == 2 * 5 * 3 * 4


@pytest.mark.slow  # three compilations
def test_auto_takes_dots_where_there_is_room_and_says_so(monkeypatch):
    """And trains as `dots` does, bit by bit; with less room, on less memory."""
    auto, dots = (
        tiny.Trainer(tiny.config(model__remat=remat, model__depth=6)) for remat in ("auto", "dots")
    )
    assert (auto.program.remat, dots.program.remat) == ("dots", "")
    need = auto.program.budget(runs.state_shapes(auto.run_), [])
    assert str(need).endswith("available; config.model.remat=auto took dots")
    results = [trainer.run(3)[1]["loss"] for trainer in (auto, dots)]
    assert (results[0] == results[1]).all()
    assert need.fits
    monkeypatch.setattr(memory, "of_device", lambda mesh: need.total - 1)
    less = runs.compile_step(auto.run_, auto.data)
    assert less.remat == "full"
    assert less.budget(runs.state_shapes(auto.run_), []).activations < need.activations


def test_auto_takes_dots_where_the_memory_of_a_device_is_not_known():
    run = runs.assemble(tiny.config(model__remat="auto"), tiny.dataset(), mesh=make_mesh())
    data = runs.training_images(run)
    remat, _ = runs.fitted_step(run, runs.state_shapes(run), data, run.schedule, limit=None)
    assert remat == "dots"
