import pathlib

import pytest

from facenet_jax.bench import hlo
from facenet_jax.bench.collectives import Collective

TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/facenet_jax/facenet_jax/models/layers.py"
2 "/venv/lib/python3.11/site-packages/flax/core.py"

FunctionNames
1 "Block.__call__.<locals>.heads"
2 "apply"

FileLocations
1 {file_name_id=1 function_name_id=1 line=42 end_line=42 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%moving (p.1: f32[4,8]) -> f32[8,4] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  ROOT %t = f32[8,4]{0,1} transpose(%p.1), dimensions={1,0}
}

%converting (p.2: f32[4,8]) -> bf16[4,8] {
  %p.2 = f32[4,8]{1,0} parameter(0)
  ROOT %c = bf16[4,8]{0,1} copy(%p.2)
}

%computing (p.3: f32[4,8]) -> f32[4,8] {
  %p.3 = f32[4,8]{1,0} parameter(0)
  ROOT %e = f32[4,8]{1,0} exponential(%p.3)
}

%body (x: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %g = f32[4,8]{1,0} get-tuple-element(%x), index=1
  %f.1 = f32[4,8]{1,0:T(8,128)S(1)} fusion(%g), kind=kLoop, calls=%computing, \
metadata={op_name="jit(f)/while/exp" stack_frame_id=2}, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %r = f32[4,8]{1,0} all-reduce(%f.1), channel_id=1, to_apply=%add
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%g, %r)
}

%divided (p.5: f32[4,8]) -> f32[2,8] {
  %p.5 = f32[4,8]{1,0} parameter(0)
  %sum = f32[4,8]{1,0:T(8,128)} all-reduce(%p.5), channel_id=2, to_apply=%add
  ROOT %mine = f32[2,8]{1,0} dynamic-slice(%sum, %here), dynamic_slice_sizes={2,8}
}

%condition (y: (s32[], f32[4,8])) -> pred[] {
  %y = (s32[], f32[4,8]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(11)
  %i = s32[] get-tuple-element(%y), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%unknown (z: (s32[], f32[4,8])) -> pred[] {
  %z = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %go = pred[] get-tuple-element(%z), index=0
}

%cheap (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %k.1 = f32[4,8]{1,0} negate(%a), backend_config={"estimated_cycles":"1"}
}

%dear (b: f32[4,8]) -> f32[4,8] {
  %b = f32[4,8]{1,0} parameter(0)
  ROOT %k.2 = f32[4,8]{1,0} sine(%b), backend_config={"estimated_cycles":"9"}
}

ENTRY %main (q: f32[4,8]) -> f32[4,8] {
  %q = f32[4,8]{1,0} parameter(0)
  %m = f32[8,4]{0,1} fusion(%q), kind=kLoop, calls=%moving, backend_config={"estimated_cycles":"7"}
  %v = bf16[4,8]{0,1} fusion(%q), kind=kLoop, calls=%converting, \
backend_config={"estimated_cycles":"5"}
  %start = (s32[], f32[4,8]{1,0}) tuple(%m, %q)
  %c = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%q)
  %s = ((s8[128]{0}), s8[96]{0:S(1)}, s32[]{:S(2)}) slice-start(%q), slice={[0:96]}
  %layers = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body
  %steps = (s32[], f32[4,8]{1,0}) while(%layers), condition=%unknown, body=%body
  %part = f32[2,8]{1,0:T(8,128)} fusion(%q), kind=kCustom, calls=%divided
  %one = f32[4,8]{1,0} conditional(%q, %q, %q), branch_computations={%cheap, %dear}
  ROOT %end = f32[4,8]{1,0} copy(%one), backend_config={"estimated_cycles":"3"}
}
""".replace("\\\n", "")


@pytest.fixture(scope="module")
def costs():
    return hlo.Program(TEXT, steps=20).costs


def test_a_loop_costs_its_runs_and_a_branch_its_dearest(costs):
    found = [(cost.instruction.name, cost.cycles) for cost in costs if cost.cycles]
    body = [("f.1", 11 * 100), ("f.1", 20 * 100)]
    assert found == [("m", 7), ("v", 5), *body, ("k.2", 9), ("end", 3)]


def test_copies_and_changes_of_layout_compute_nothing(costs):
    """A copy that changes the type is a conversion, which something has to do."""
    assert {cost.instruction.name for cost in costs if cost.moves} == {"m", "end"}


def test_an_instruction_comes_from_the_innermost_line_of_ours(costs):
    """Frame 2 is Flax's, its caller frame 1 ours."""
    (cost, _) = (cost for cost in costs if cost.instruction.name == "f.1")
    assert cost.source == "facenet_jax/models/layers.py:42 Block.__call__.heads"
    assert cost.instruction.operation == "jit(f)/while/exp"
    assert all(not other.source for other in costs if other.instruction.name == "m")


def test_collectives_count_as_often_as_they_run():
    one = Collective("all-reduce", "f32", (4, 8))
    part = Collective("reduce-scatter", "f32", (2, 8))
    assert hlo.Program(TEXT, steps=20).collectives() == [(one, 11), (one, 20), (part, 1)]


def test_a_collective_in_parts_counts_once():
    """Its start, a step within other work and its end name one channel; others have their own."""
    text = TEXT
    for part, name in enumerate(
        ("async-collective-start.1", "fusion.9", "async-collective-done.1")
    ):
        text = text.replace(
            "%condition (y:",
            f"%part{part} (p.6: f32[2,8]) -> f32[4,8] {{\n"
            f"  %p.6 = f32[2,8]{{1,0}} parameter(0)\n"
            f"  ROOT %g.{part} = f32[4,8]{{1,0}} all-gather(%p.6), channel_id=3, dimensions={{0}}\n"
            f"}}\n\n%condition (y:",
        ).replace(
            "  %one =",
            f"  %{name} = f32[4,8]{{1,0}} fusion(%part), kind=kCustom, calls=%part{part}\n  %one =",
        )
    before, found = (hlo.Program(x, steps=20).collectives() for x in (TEXT, text))
    assert found == [*before, (Collective("all-gather", "f32", (4, 8)), 1)]


def test_copies_in_the_background_count_their_bytes():
    assert hlo.Program(TEXT, steps=20).background() == 4 * 8 * 4 + 96


def test_a_known_number_of_runs_is_taken():
    text = TEXT.replace(
        "condition=%unknown,", 'condition=%unknown, x={"known_trip_count":{"n":"4"}},'
    )
    assert [run for _, run in hlo.Program(text, steps=20).collectives()] == [11, 4, 1]


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("f32[3]{0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop", "fusion"),
        ("((f32[2]{0}), f32[1]{0:T(8,128)}, s32[]{:S(2)}) slice-start(%a), slice=x", "slice-start"),
        ("no operation", ""),
    ],
)
def test_the_operation_stands_behind_the_type(text, operation):
    assert hlo.opcode(text) == operation


def test_paths_begin_at_the_package():
    assert hlo.short(str(pathlib.Path(hlo.__file__))) == "facenet_jax/bench/hlo.py"
    assert hlo.short("/tmp/mine.py") == "mine.py"
