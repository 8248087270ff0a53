"""Scores exported embeddings: the same numbers as training reports, from files alone.

facenet score --query Q.npz --gallery G.npz --protocol NAME
    [--modalities visible,thermal] [--centre] [--rerank k1,k2,lambda] [--json FILE] [--tables DIR]

NAME is a label of the files (camera, scene, ...: gallery rows of the query's identity and of its
value of that label are junk), none, a data set's protocol (wmveid863/official), or the import path
of your own (my_package.my_protocol). Training writes such files into WORKDIR/embeddings. Files of
others need `embedding` [N, E], `identity` [N], and what the protocol names: an .npz with arrays of
these names, or E.npy with E.csv, whose columns are identity, camera, ..., a row for each embedding.
facenet_jax/retrieval/embeddings.py says what else may be in them.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Collection, Sequence

from data_tfds.errors import UserError
from data_tfds.paths import open_path
from data_tfds.samples import Protocol
from facenet_jax import retrieval
from facenet_jax.retrieval import (
    Embeddings,
    breakdown,
    completion,
    protocols,
    reliability,
    tables,
)
from facenet_jax.retrieval.completion import Completion
from facenet_jax.retrieval.report import details, table
from facenet_jax.runtime.arguments import Parser


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose text went to stderr."""
    parser = Parser("score", __doc__.splitlines()[0], __doc__.partition("\n\n")[2])
    files = "an .npz, or an .npy with a .csv of the same name beside it"
    parser.add_argument("--query", required=True, help=f"file of the queries: {files}")
    parser.add_argument("--gallery", required=True, help="file of the gallery, as --query")
    parser.add_argument(
        "--protocol",
        required=True,
        help="camera, scene or another label: gallery rows of the query's identity and label are "
        "junk; none: nothing is; or wmveid863/official, my_package.my_protocol",
    )
    parser.add_argument("--modalities", help="those to compare by: visible,thermal; default: all")
    parser.add_argument(
        "--centre",
        action="store_true",
        help="subtract the mean of the gallery from all embeddings first",
    )
    parser.add_argument(
        "--flare_weight",
        type=float,
        default=1.0,
        help="what a flared modality counts, above 0; below 1 each part has unit length",
    )
    parser.add_argument(
        "--complete",
        help="neighbours,alpha: parts of flared modalities come from similar gallery rows; 3,3",
    )
    parser.add_argument("--rerank", help="k1,k2,lambda of k-reciprocal re-ranking, as in 20,6,0.3")
    parser.add_argument("--expand", help="neighbours,alpha of query expansion; alpha 0 is AQE")
    parser.add_argument("--augment_gallery", help="neighbours,alpha of database augmentation")
    parser.add_argument(
        "--details",
        action="store_true",
        help="also intervals over query identities, ROC figures, and scores by label",
    )
    parser.add_argument("--json", help="file to write the scores to")
    parser.add_argument(
        "--tables", help="folder for Parquet files of both sides and of the result of every query"
    )
    options = parser.parse_args(arguments)
    try:
        if options.tables:
            tables.refuse_missing()
        scores = evaluate(options)
        print(table(scores))
        if options.details:
            print(f"\n{details(scores)}")
        if options.json:
            write(pathlib.Path(options.json), scores)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def evaluate(options: argparse.Namespace) -> dict:
    """The scores of all queries, of clean and of flared ones, and how they came about."""
    protocol = protocols.by_name(options.protocol)
    rerank = parse_rerank(options.rerank) if options.rerank is not None else None
    whole = Embeddings.read_all(options.query, options.gallery)
    query, gallery = same_parts(options.modalities, protocol, *whole)
    note = caution(whole, query.parts)
    if note:
        print(note, file=sys.stderr)
    averaged = {
        name: parse_means(name, getattr(options, name))
        for name in ("complete", "expand", "augment_gallery")
        if getattr(options, name) is not None
    }
    weights, filled = None, None
    if options.complete is not None:
        filled = Completion(*averaged["complete"], *completion.blinded(query, gallery))
    if options.flare_weight != 1:
        weights = reliability.of_flare(query, gallery, options.flare_weight)
    result = retrieval.evaluate(
        *(query, gallery, protocol),
        rerank=rerank,
        centre=options.centre,
        reliabilities=weights,
        **averaged | {"complete": filled},
    )
    scores = {
        "protocol": protocol.name,
        "modalities": list(query.parts),
        **({"note": note} if note else {}),
        "rerank": rerank and dict(zip(("k1", "k2", "lambda"), rerank, strict=True)),
        **{
            name: dict(zip(("neighbours", "alpha"), pair, strict=True))
            for name, pair in averaged.items()
        },
        **({"flare_weight": options.flare_weight} if weights else {}),
        **result.metrics(),
    }
    if options.tables:
        tables.write(open_path(options.tables), query, gallery, result)
    if options.details:
        scores |= breakdown.details(query, gallery, protocol, result)
    if query.flared is not None:
        scores["clean"] = result.subset(~query.flared)
        scores["flared"] = result.subset(query.flared)
    return scores


def same_parts(
    text: str | None, protocol: Protocol, query: Embeddings, gallery: Embeddings
) -> tuple[Embeddings, Embeddings]:
    """Both sides with the modalities of `--modalities`, or all; UserError if they do not fit."""
    if text is not None:
        query, gallery = (side.select(text.split(",")) for side in (query, gallery))
    elif list(query.parts) != list(gallery.parts):
        if protocol.query.modalities != protocol.gallery.modalities:
            return query, gallery  # a score across modalities, in one common space
        raise UserError(
            f"{query.origin} has the modalities {', '.join(query.parts)} and {gallery.origin} has "
            f"{', '.join(gallery.parts)}: name those to compare by with --modalities."
        )
    widths = [[stop - start for start, stop in side.parts.values()] for side in (query, gallery)]
    if widths[0] != widths[1]:
        raise UserError(
            f"The modalities {', '.join(query.parts)} are {widths[0]} columns wide in "
            f"{query.origin} and {widths[1]} in {gallery.origin}: both must come from the same "
            "model."
        )
    return query, gallery


def caution(whole: Sequence[Embeddings], chosen: Collection[str]) -> str:
    """What must be known of a score by `chosen` parts of embeddings; "" where there is nothing."""
    mixed = sorted({part for side in whole for part in side.mixed if part in chosen})
    if not mixed or len(chosen) == len(whole[0].parts):
        return ""
    return (
        f"Note: the network saw {', '.join(whole[0].parts)} of every sample, and where one is "
        f"flared its {' and '.join(mixed)} part holds tokens of the others, so this is no score of "
        f"{' + '.join(chosen)} alone; config.evaluate.per_modality gives such scores."
    )


def parse_rerank(text: str) -> tuple[int, int, float]:
    """k1, k2, lambda of `--rerank`."""
    try:
        k1, k2, weight = text.split(",")
        return int(k1), int(k2), float(weight)
    except ValueError:
        raise UserError(f"--rerank {text} must be k1,k2,lambda, as in 20,6,0.3.") from None


def parse_means(name: str, text: str) -> tuple[int, float]:
    """Neighbours and alpha of `--complete`, `--expand` or `--augment_gallery`."""
    try:
        neighbours, alpha = text.split(",")
        return int(neighbours), float(alpha)
    except ValueError:
        raise UserError(f"--{name} {text} must be neighbours,alpha, as in 5,3.") from None


def write(path: pathlib.Path, scores: dict):
    """The scores as JSON."""
    try:
        path.write_text(json.dumps(scores, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}.") from None
