import pytest

from facenet_jax.bench.collectives import Collective, collectives

TEXT = """
  %a = f32[3,32,768]{2,1,0} all-gather(f32[3,4,768]{2,1,0} %p), dimensions={1}
  %b = (f32[768]{0}, bf16[3,768,603]{2,1,0}) all-reduce(f32[768]{0} %q, bf16[3,768,603]{2,1,0} %r)
  %c = f32[10]{0} all-reduce-start(f32[10]{0} %q), to_apply=%sum
  %d = f32[10]{0} all-reduce-done(f32[10]{0} %c)
  %e = s32[]{} reduce-scatter(s32[8]{0} %q), dimensions={0}
  %f = f32[4]{0} add(f32[4]{0} %all-gather, f32[4]{0} %x)
"""


def test_every_array_that_travels_is_found():
    assert collectives(TEXT) == [
        Collective("all-gather", "f32", (3, 32, 768)),
        Collective("all-reduce", "f32", (768,)),
        Collective("all-reduce", "bf16", (3, 768, 603)),
        Collective("all-reduce", "f32", (10,)),
        Collective("reduce-scatter", "s32", ()),
    ]


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 300), ("all-reduce", 600), ("reduce-scatter", 1200), ("all-to-all", 300)],
)
def test_bytes_sent_in_a_ring(kind, sent):
    """By hand, for 400 bytes as they come out on each of 4 devices."""
    assert Collective(kind, "f32", (10, 10)).sent(4) == sent
    assert Collective(kind, "bf16", (10, 10)).sent(4) == sent / 2
