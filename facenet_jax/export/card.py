"""The card of an exported network: what it is, how it is used, how good it is, what it is not."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save

from facenet_jax import models
from facenet_jax.api import Network
from facenet_jax.export.program import TOLERANCE, Program
from facenet_jax.runtime import form
from facenet_jax.runtime.workdir import read_json
from facenet_jax.stored import as_json

MOST_WEIGHTS = 256 * 2**20
"""Bytes up to which the weights are also written by themselves."""


class Written(NamedTuple):
    """A file of one subset of modalities."""

    file: str
    sha256: str
    size: int
    program: Program
    difference: float


def digest(data: bytes) -> str:
    """The SHA-256 sum."""
    return hashlib.sha256(data).hexdigest()


def weights(network: Network) -> bytes | None:
    """All variables as safetensors, named by their paths; None where they are not small."""
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    arrays = {
        "/".join(str(part.key) for part in path): np.ascontiguousarray(leaf)
        for path, leaf in leaves
    }
    if sum(array.nbytes for array in arrays.values()) > MOST_WEIGHTS:
        return None
    return save(arrays)


def facts(network: Network, written: Sequence[Written], stored: bytes | None) -> dict[str, Any]:
    """What model.json holds."""
    return {
        "model": network.config.model.name,
        "step": network.step,
        "licence": models.licence(network.config.model),
        "spec": as_json(network.model.spec),
        "files": {
            each.file: {
                "sha256": each.sha256,
                "inputs": each.program.names,
                "image_size": list(each.program.image_size),
                "parts": {name: list(part) for name, part in each.program.parts.items()},
                "largest_difference": each.difference,
            }
            for each in written
        },
        "weights": stored and {"sha256": digest(stored)},
    }


def text(network: Network, name: str, written: Sequence[Written], stored: bytes | None) -> str:
    """README.md of the folder."""
    first = written[0].program
    height, width = first.image_size
    rows = "\n".join(
        f"| `{each.file}` | {', '.join(each.program.names)} | "
        f"{sum(b - a for a, b in each.program.parts.values())} | {each.difference:.1e} | "
        f"`{each.sha256}` |"
        for each in written
    )
    sums = ""
    if stored:
        sums = f"\n`weights.safetensors` has all variables by path, SHA-256 `{digest(stored)}`.\n"
    data, spec = network.config.data, network.model.spec
    return f"""# {network.config.model.name}, step {network.step}

Embeddings of images of {", ".join(spec.modalities)}, for object
re-identification: those of one identity are near each other by the cosine.
Made by facenet_jax, format {name}.

| file | inputs | columns | difference | SHA-256 |
|---|---|---|---|---|
{rows}

*Difference*: the largest to the network's own embeddings, relative to their
largest value, on random images; a file beyond {TOLERANCE:g} is not written.
{sums}
## Use

Images are uint8 `[n, {height}, {width}, 3]`, RGB, resized to this size by Pillow's
{data.test_resize} filter; a grey image is three times the same channel. Everything
else is inside. The result is float32, not normalised.
{removal_words(network)}{flare_words(network, first)}
```python
{USE[name](written[0])}
```

{NEEDS[name]}

## Scores

{scores(network)}

## Not for

Modalities are compared with themselves: a visible query finds nothing in a
thermal gallery unless the model was trained for it. Samples unlike those of its
training ({data.name}, {spec.identities} identities) were not measured.
Recognising persons or vehicles may be restricted by law where you are.
{licence_words(network)}"""


def licence_words(network: Network) -> str:
    """What the licence of the weights that training started from asks, where it asks for more."""
    words = models.licence(network.config.model)
    return f"\n## Licence of the weights\n\n{words}\n" if words else ""


def removal_words(network: Network) -> str:
    """What to do to images before the resize, where the network was trained on such ones."""
    rule = network.config.data.flare_removal
    if rule == "none":
        return ""
    return f"""
Before the resize, set the saturated pixels (251..255) of visible and near-infrared
images to 0, by the rule {rule} of data_tfds.flare.removed; the network was trained so.
"""


def flare_words(network: Network, program: Program) -> str:
    """How the flare label is measured, where the program takes it."""
    if not program.flare:
        return ""
    data, names = network.config.data, ", ".join(program.modalities)
    rule = "the share of pixels whose grey value is 251..255"
    if data.flare_statistic != "luma":
        rule = "the statistic of the authors' release (data_tfds/flare.py)"
    return f"""
`flare` is bool `[n, {len(program.modalities)}]` in the order {names}:
of the image as it came, before it is resized, whether
{rule} exceeds {data.flare_threshold:g}
(rule {data.flare_rule}); False for thermal. False everywhere: no token is replaced.
"""


def scores(network: Network) -> str:
    """The scores of result.json, where the workdir has one."""
    path = network.folder / "result.json"
    if not path.exists():
        return "The workdir has no result.json."
    found = read_json(path, network.folder, form.RESULT)
    lines = [
        f"Protocol {found['protocol']}, in per cent.",
        "",
        "| | mAP | R1 | step |",
        "|---|---|---|---|",
    ]
    for name, row in found.items():
        if name != "protocol":
            cells = f"{100 * row['mAP']:.1f} | {100 * row['cmc']['1']:.1f} | {row['step']}"
            lines.append(f"| {name.replace('_', ' ')} | {cells} |")
    return "\n".join(lines)


def use_stablehlo(written: Written) -> str:
    """An example that runs in the folder, with JAX alone."""
    return f'''import jax.export
import numpy as np

with open("{written.file}", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
{example(written.program)}
embedding = np.asarray(program.call({", ".join(written.program.names)}))
print(embedding.shape)'''


def use_onnx(written: Written) -> str:
    """An example that runs in the folder, with onnxruntime alone."""
    names = ", ".join(f'"{name}": {name}' for name in written.program.names)
    return f'''import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{written.file}")
{example(written.program)}
(embedding,) = session.run(None, {{{names}}})
print(embedding.shape)'''


def example(program: Program) -> str:
    """Lines that make arguments."""
    height, width = program.image_size
    lines = [
        f"{name} = np.zeros((2, {height}, {width}, 3), np.uint8)" for name in program.modalities
    ]
    if program.flare:
        lines.append(f"flare = np.zeros((2, {len(program.modalities)}), bool)")
    return "\n".join(lines)


USE = {"stablehlo": use_stablehlo, "onnx": use_onnx}

NEEDS = {
    "stablehlo": "It needs `pip install jax flatbuffers`, on a CPU, a CUDA GPU or a TPU; JAX\n"
    "reads such files for at least six months after the version that wrote them.",
    "onnx": "It needs `pip install onnxruntime`.",
}
