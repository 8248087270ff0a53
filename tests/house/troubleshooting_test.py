"""docs/troubleshooting.md speaks of sentences that the code still says."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SAID = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def raised() -> list[str]:
    """The text of all string literals of the product, a literal joined over its lines."""
    texts = []
    for top in ("facenet_jax", "data_tfds"):
        for file in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (x.value if isinstance(x, ast.Constant) else "{}" for x in node.values)
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


@pytest.fixture(scope="module")
def texts():
    return raised()


def test_the_page_has_sentences():
    assert len(SAID) > 25
    assert len(set(SAID)) == len(SAID)


@pytest.mark.parametrize("words", SAID)
def test_the_code_says_it(texts, words):
    assert any(words in text for text in texts)
