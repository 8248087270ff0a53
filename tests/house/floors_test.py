"""The floors of the house: imports run down, rooms form no circle, and who may import what.

Reads every import in the text of the modules, also those inside functions; those under
`if TYPE_CHECKING` do not count. docs/architecture.md draws what is held here.
"""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRODUCT = ("facenet_jax", "data_tfds", "configs", "scripts", "main")

FLOORS = (
    ("data_tfds",),
    ("types", "options", "precision", "runtime"),
    ("losses", "weights", "retrieval", "inputs"),
    ("models",),
    ("config", "objective", "optim"),
    ("step", "stored"),
    ("run",),
    ("embed",),
    ("evaluate",),
    ("train", "api"),
    ("bench", "parity", "lab", "report", "export", "search"),
    ("configs",),
    ("commands",),
    ("scripts", "main", "tests"),
)
"""From the ground up: a room imports only itself and what is on the lines above its own."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

LAZY = {
    ("facenet_jax", "api"): "facenet_jax.load is found when it is asked for",
    ("scripts", "tests"): "scripts/chaos.py spoils the small files and runs of the tests",
}
"""Arrows that are not held: {(from, to): reason}."""

OWNERS = {
    "flax": ("facenet_jax/models/",),
    "orbax": ("facenet_jax/runtime/checkpoint.py",),
    "wandb": ("facenet_jax/runtime/wandb_run.py",),
    "lancedb": ("facenet_jax/search/engine.py",),
    "torch": ("facenet_jax/bench/",),
    "tensorflow": (),
    "tensorflow_datasets": ("data_tfds/",),
}
"""{package: the only places that may import it}."""

READS_ENVIRONMENT = {
    "facenet_jax/runtime/workdir.py": "writes the XLA and JAX variables of a run down for later",
    "facenet_jax/bench/slices.py": "libtpu reads there that it need not ask what machine this is",
    "scripts/benchmark_torch.py": "two frameworks share a GPU, so JAX must not take all memory",
}
"""The only modules that look at os.environ: what a run does is decided by its config alone."""

LARGEST_FILE, LARGEST_FUNCTION = 330, 65
LONG = {
    "facenet_jax/train.py:train": "the loop, to be read from top to bottom",
    "facenet_jax/models/three_stream.py:streams": "closures that are one Model",
}
"""What may have more lines: {path, or path:function: reason}."""


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """{dotted name: file} of the product."""
    found = {}
    for top in PRODUCT:
        files = [ROOT / "main.py"] if top == "main" else (ROOT / top).rglob("*.py")
        for file in files:
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@functools.cache
def tree(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text())


def checks_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST):
    """`node` and all nodes below it, but for what stands under `if TYPE_CHECKING`."""
    yield node
    for child in node.orelse if checks_types(node) else ast.iter_child_nodes(node):
        yield from statements(child)


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The dotted names that a module imports; of `from a import b`, a.b where that is a module."""
    found = set()
    for node in statements(tree(modules()[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import; give the whole path"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in modules() else node.module for each in below}
    return frozenset(found)


def room(name: str) -> str:
    """The room of a module: a package or module of facenet_jax, or one of the other folders."""
    first, *rest = name.split(".")
    return rest[0] if first == "facenet_jax" and rest else first


def arrows(names) -> dict[tuple[str, str], str]:
    """{(room, other room): "module -> module"} for imports between rooms of the product."""
    found = {}
    for name in names:
        for other in imports(name):
            ours = other.split(".")[0] in (*PRODUCT, "tests")
            pair = (room(name), room(other))
            if ours and pair[0] != pair[1] and pair not in LAZY:
                found.setdefault(pair, f"{name} -> {other}")
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Nodes that can reach themselves."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), list(graph.get(start, ()))
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph.get(node, ())
        return seen

    return sorted(node for node in graph if node in reached(node))


def plan() -> str:
    """What a reader sees: the rooms at the root of facenet_jax, and the arrows between them."""
    inside = [name for name in modules() if name.startswith("facenet_jax.")]
    rooms = sorted({room(name) for name in inside}, key=lambda each: FLOOR.get(each, -1))
    between = [pair for pair in arrows(inside) if pair[1] != "data_tfds"]
    possible = len(rooms) * (len(rooms) - 1) // 2
    lines = [f"facenet_jax has {len(rooms)} rooms at its root and {len(between)} arrows between"]
    lines[0] += f" them (of {possible} possible without a circle):"
    for each in rooms:
        below = sorted(to for start, to in between if start == each)
        lines.append(f"  {each:10} -> {', '.join(below) or '-'}")
    return "\n".join(lines)


def test_imports_run_down_only():
    print(plan())
    found = arrows(modules())
    unknown = sorted({each for pair in found for each in pair} - set(FLOOR) - {"facenet_jax"})
    assert not unknown, f"give these rooms a floor in FLOORS: {unknown}\n{plan()}"
    up = [f"{pair[0]} may not import {pair[1]}: {how}" for pair, how in found.items()
          if FLOOR[pair[0]] <= FLOOR[pair[1]]]  # fmt: skip
    assert not up, "\n".join([*up, plan()])


def test_rooms_form_no_circle():
    graph = {}
    for start, to in arrows(modules()):
        graph.setdefault(start, set()).add(to)
    assert not circles(graph), f"a circle: {circles(graph)}\n{plan()}"


def test_data_tfds_knows_nothing_above_it_and_has_no_circle():
    graph = {
        name: {other for other in imports(name) if other.split(".")[0] in (*PRODUCT, "tests")}
        for name in modules()
        if room(name) == "data_tfds"
    }
    above = {
        name: sorted(other for other in others if room(other) != "data_tfds")
        for name, others in graph.items()
    }
    assert not {name: others for name, others in above.items() if others}
    assert not circles(graph)


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_is_known_in_its_place_only(package):
    outside = [
        name
        for name, file in modules().items()
        if any(other.split(".")[0] == package for other in imports(name))
        if not str(file.relative_to(ROOT)).startswith(OWNERS[package] or ("nowhere",))
    ]
    assert not outside, f"only {OWNERS[package]} may import {package}, not {outside}"


def test_the_environment_decides_nothing():
    found = {
        str(file.relative_to(ROOT))
        for file in modules().values()
        for node in ast.walk(tree(file))
        if getattr(node, "attr", getattr(node, "name", "")) in ("environ", "getenv")
    }
    assert found <= set(READS_ENVIRONMENT), sorted(found - set(READS_ENVIRONMENT))


def test_files_and_functions_are_short():
    found = {}
    for file in modules().values():
        path = str(file.relative_to(ROOT))
        if (lines := len(file.read_text().splitlines())) > LARGEST_FILE:
            found[path] = lines
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LARGEST_FUNCTION:
                    found[f"{path}:{node.name}"] = lines
    too_long = {name: lines for name, lines in found.items() if name not in LONG}
    assert not too_long, f"more than {LARGEST_FILE} or {LARGEST_FUNCTION} lines: {too_long}"
    assert set(LONG) <= set(found), f"no longer long: {sorted(set(LONG) - set(found))}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n    import facenet_jax.step\n", {"facenet_jax.step"}),
        ("from facenet_jax import step, nothing\n", {"facenet_jax.step", "facenet_jax"}),
        ("if TYPE_CHECKING:\n    import flax\nelse:\n    import jax\n", {"jax"}),
    ],
)
def test_imports_are_seen_wherever_they_stand(tmp_path, monkeypatch, text, expected):
    """The test of the test."""
    (tmp_path / "some.py").write_text(text)
    names = {**modules(), "some": tmp_path / "some.py"}
    monkeypatch.setattr(f"{__name__}.modules", lambda: names)
    assert imports.__wrapped__("some") == expected


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []
