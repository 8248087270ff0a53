"""A trained network as files that run without this package: StableHLO for JAX, and ONNX.

`write` makes a file for each subset of modalities that is asked for: images uint8 in, embedding
out, any number of samples. A file is only written if it gives what the network gives.
"""

import importlib.util
import json
from collections.abc import Sequence

from data_tfds.errors import UserError
from data_tfds.paths import Place, write_bytes
from facenet_jax.api import Network
from facenet_jax.export import card, program
from facenet_jax.export.formats import FORMATS


def refuse_missing(name: str) -> None:
    """Raises UserError where a package of the format is missing, with how to install it."""
    packages = FORMATS[name].packages
    lacks = [each for each in packages if importlib.util.find_spec(each) is None]
    if lacks:
        raise UserError(
            f"An export to {name} needs {', '.join(lacks)}, which is not installed; install it "
            "with pip install 'facenet_jax[export]' (in a checkout: pip install -e '.[export]')."
        )


def write(
    network: Network, out: Place, name: str = "stablehlo", subsets: Sequence[Sequence[str]] = ()
) -> list[card.Written]:
    """Write the network in the format `name` for each of the `subsets`, by default all modalities.

    Into the folder `out`: MODALITIES.stablehlo or .onnx, a card README.md, model.json, and where
    they are small the weights. UserError for an unknown subset, a package that is missing, what the
    format cannot express, and a file whose embeddings differ by more than program.TOLERANCE.
    """
    refuse_missing(name)
    network = program.in_float32(network)
    known = network.model.spec.modalities
    written = []
    for subset in subsets or (known,):
        modalities = tuple(modality for modality in known if modality in subset)
        if set(subset) - set(known) or not subset:
            raise UserError(
                f"The network has no modalities {', '.join(subset) or '(none)'}; it takes any of "
                f"{', '.join(known)}."
            )
        one = program.Program.of(network, modalities)
        references = program.references(network, one)
        data = FORMATS[name].make(one)
        difference = program.check(one, FORMATS[name].opened(data), references)
        file = f"{'+'.join(modalities)}.{name}"
        write_bytes(out / file, data)
        written.append(card.Written(file, card.digest(data), len(data), one, difference))
    weights = card.weights(network)
    if weights is not None:
        write_bytes(out / "weights.safetensors", weights)
    text, facts = card.text(network, name, written, weights), card.facts(network, written, weights)
    write_bytes(out / "README.md", text.encode())
    write_bytes(out / "model.json", (json.dumps(facts, indent=1) + "\n").encode())
    return written
