"""Says whether one run is better than another on the same queries, and how sure that is.

facenet compare A B [--json FILE]

A and B are workdirs with embeddings of the same queries, each matched as its config says
(evaluate.centre, complete, flare_weight). Differences have intervals of 95 % over
query identities: the same identities are drawn of both. They say nothing of other seeds. facenet
report A B draws each query as a point.
"""

import json
import sys
from typing import NamedTuple

from data_tfds.errors import UserError
from data_tfds.paths import Place, open_path, write_bytes
from facenet_jax import stored
from facenet_jax.retrieval import Embeddings, compare, protocols
from facenet_jax.retrieval.scoring import configured
from facenet_jax.runtime import form
from facenet_jax.runtime.arguments import Parser
from facenet_jax.runtime.workdir import read_json


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = Parser("compare", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    parser.add_argument("first", metavar="A", help="workdir of a run")
    parser.add_argument("second", metavar="B", help="workdir of another")
    parser.add_argument("--protocol", help="as of facenet score; by default the one of result.json")
    parser.add_argument("--centre", action="store_true", help="also where the config says no")
    parser.add_argument("--draws", type=int, default=2000, help="of identities, for an interval")
    parser.add_argument("--json", help="file for the differences, and the AP of each query in both")
    options = parser.parse_args(arguments)
    try:
        if options.draws < 1:
            parser.error(f"--draws is {options.draws}; it must be 1 or more")
        folders = [open_path(each) for each in (options.first, options.second)]
        names = [options.protocol or protocol_of(folder) for folder in folders]
        sides = [read(folder) for folder in folders]
        rules = [rule(folder, options.centre) for folder in folders]
        if rules[0] != rules[1]:
            print(f"A is matched with {rules[0].words}, B with {rules[1].words}.")
        rankings = [
            configured(*both, protocols.by_name(name), of)
            for both, name, of in zip(sides, names, rules, strict=True)
        ]
        both = compare.pair(*rankings, sides[0][0], sides[1][0])
        found = compare.differences(both, draws=options.draws)
        print(compare.table(found, options.first, options.second, len(both.name)))
        if options.json:
            queries = {
                "name": both.name.tolist(),
                "identity": both.identity.tolist(),
                "first": both.first["mAP"].tolist(),
                "second": both.second["mAP"].tolist(),
            }
            text = json.dumps({"scores": found, "queries": queries}, indent=1)
            write_bytes(open_path(options.json), text.encode())
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


class Rule(NamedTuple):
    """How a run is matched: options of the section `evaluate`."""

    centre: bool
    flare_weight: float
    complete: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """For a person."""
        first = f"evaluate.centre={self.centre}, evaluate.flare_weight={self.flare_weight:g}"
        return f"{first}, evaluate.complete={tuple(self.complete)}"


def rule(folder: Place, centre: bool) -> Rule:
    """What the config of a workdir says, if it has one; centred too where `centre` is True."""
    if not (folder / "config.json").exists():
        return Rule(centre, 1.0)
    options = stored.read_config(folder).evaluate
    return Rule(centre or options.centre, options.flare_weight, tuple(options.complete))


def protocol_of(folder: Place) -> str:
    """The name of the protocol that a workdir was scored by."""
    return read_json(folder / "result.json", folder, form.RESULT)["protocol"]


def read(folder: Place) -> list[Embeddings]:
    """Query and gallery of a workdir."""
    names = ("query", "gallery")
    return Embeddings.read_all(*(folder / "embeddings" / f"{name}.npz" for name in names))
