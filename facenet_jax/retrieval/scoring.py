"""The score of a query side against a gallery side under a protocol, over all its trials."""

import dataclasses
from typing import Any

import numpy as np

from data_tfds.errors import UserError
from data_tfds.samples import Protocol
from facenet_jax.retrieval import completion, expansion, protocols, reliability
from facenet_jax.retrieval.completion import Completion
from facenet_jax.retrieval.distances import Euclidean, given_rows
from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.metrics import PerQuery, rank
from facenet_jax.runtime.progress import shown


@dataclasses.dataclass(frozen=True)
class Result:
    """The rankings of a protocol's trials, one PerQuery each."""

    protocol: Protocol
    trials: list[PerQuery]
    centred: bool = False  # whether the gallery's mean was subtracted first

    def metrics(self, keep: np.ndarray | None = None) -> dict:
        """`PerQuery.metrics` of the queries where `keep` [Q] is true, as means over the trials.

        With more than one trial the dict also has `trials`, their number, and `deviation`, the
        standard deviation (of these trials, not an estimate from them) of `mAP`, `mINP` and `cmc`.
        `valid_queries` and `gallery` are means too, integers where they are whole.
        `centred` is there, and true, where it is. UserError if a trial has no valid query.
        """
        each = [trial.metrics(keep) for trial in self.trials]
        said = {"centred": True} if self.centred else {}
        if len(each) == 1:
            return each[0] | said
        return _over_trials(each, np.mean) | {
            "queries": each[0]["queries"],
            "valid_queries": _mean_count(each, "valid_queries"),
            "gallery": _mean_count(each, "gallery"),
            "trials": len(each),
            "deviation": _over_trials(each, np.std),
            **said,
        }

    def subset(self, keep: np.ndarray) -> dict | None:
        """`metrics(keep)`, or None where none of these queries is valid in some trial."""
        if all(keep[trial.query].any() for trial in self.trials):
            return self.metrics(keep)
        return None


def evaluate(
    query: Embeddings,
    gallery: Embeddings,
    protocol: Protocol,
    *,
    rerank: tuple[int, int, float] | None = None,
    centre: bool = False,
    expand: tuple[int, float] | None = None,
    augment_gallery: tuple[int, float] | None = None,
    complete: Completion | None = None,
    reliabilities: tuple[np.ndarray, np.ndarray] | None = None,
) -> Result:
    """The ranking of every query in every trial of the protocol.

    Distances are Euclidean between L2-normalised embeddings; with `rerank` (k1, k2, lambda) they
    are re-ranked within each trial; with `centre`, of embeddings less the mean of the gallery, see
    `centred`; with `complete`, of embeddings whose blinded parts come from rows of the trial's
    gallery, see `completion`; with `augment_gallery` and `expand` (neighbours, alpha), of first the
    gallery's and then the queries' means with their neighbours, see `expansion`. With
    `reliabilities` of the parts of query [Q, P] and gallery [G, P] the distances are those of
    `retrieval.reliability` instead. The sides are taken as they are: which split and modalities
    they come from is the caller's part of the protocol.
    UserError for labels that the protocol needs and a side lacks or does not know, for trials that
    are no gallery rows, and for embeddings of different widths or with values that are not finite.
    """
    query, gallery = aligned(query, gallery)
    protocols.check(protocol, query, gallery)
    if query.origin and gallery.origin:
        protocols.refuse_own_rows(protocol, query, gallery)
    if centre:
        query, gallery = centred(query, gallery)
    if reliabilities is not None and (rerank or expand or augment_gallery or complete):
        raise UserError(
            "Re-ranking, query expansion, augmentation of the gallery and completion know no "
            "reliabilities of parts (config.evaluate.flare_weight below 1); take one of them."
        )
    labels = gallery.by_name
    rankings = []
    for rows in protocols.trials(protocol, labels, len(gallery)):
        embedding, chosen = gallery.embedding, labels
        of_gallery = None if reliabilities is None else reliabilities[1]
        if rows is not None:
            embedding = embedding[rows]
            chosen = {name: values[rows] for name, values in labels.items()}
            of_gallery = None if of_gallery is None else of_gallery[rows]
        if of_gallery is not None:
            part = gallery if rows is None else _of_rows(gallery, rows)
            found = reliability.blocks(query, part, reliabilities[0], of_gallery)
            rankings.append(_given(query, found, chosen, protocol))
            continue
        how = complete
        if complete and rows is not None:
            how = complete._replace(of_gallery=complete.of_gallery[rows])
        side, embedding = _with_neighbours(query, embedding, how, augment_gallery, expand)
        if rerank is not None:
            rankings.append(_reranked(side, embedding, chosen, protocol, rerank))
            continue
        distances = Euclidean(side.embedding, embedding)
        relevance = protocols.relevance(
            protocol, query.by_name, chosen, len(query), distances.order
        )
        found = shown(distances.rows(relevance.valid), "ranking", len(relevance.valid), "queries")
        rankings.append(rank(iter(found), relevance, protocol.collapse))
    return Result(protocol, rankings, centre)


def _with_neighbours(query, embedding, complete, augment_gallery, expand):
    """The query side and the gallery's embeddings [G, E] of a trial, after what neighbours give."""
    found = query.embedding
    if complete:
        found, embedding = completion.complete(found, embedding, query.parts, complete)
    if augment_gallery:
        embedding = expansion.augment(embedding, *augment_gallery)
    if expand:
        found = expansion.expand(found, embedding, *expand)
    return dataclasses.replace(query, embedding=found), embedding


def configured(
    query: Embeddings,
    gallery: Embeddings,
    protocol: Protocol,
    options: Any,
) -> Result:
    """`evaluate`, as `centre`, `complete` and `flare_weight` of a config's section `evaluate` say.

    Features without parts, such as pixels, are compared as a whole. UserError as by `evaluate`,
    `completion` and `reliability.of_flare`.
    """
    return evaluate(
        *(query, gallery, protocol),
        centre=options.centre,
        complete=completed(query, gallery, options),
        reliabilities=(
            reliability.of_flare(query, gallery, options.flare_weight)
            if options.flare_weight < 1 and query.parts
            else None
        ),
    )


def completed(query: Embeddings, gallery: Embeddings, options: Any) -> Completion | None:
    """What `complete` of a config's section `evaluate` says of two sides, see `configured`."""
    if not options.complete or not query.parts:
        return None
    neighbours, alpha = options.complete
    return Completion(int(neighbours), float(alpha), *completion.blinded(query, gallery))


def _of_rows(side, rows):
    """Some rows of a side."""
    labels = {name: values[rows] for name, values in side.labels.items()}
    fields = {name: getattr(side, name)[rows] for name in ("embedding", "identity", "name")}
    return dataclasses.replace(side, **fields, labels=labels)


def _given(query, blocks, labels, protocol):
    """The ranking of one trial by distances that come in blocks, the queries in order."""
    count = len(labels["identity"])
    relevance = protocols.relevance(protocol, query.by_name, labels, len(query), np.arange(count))
    found = given_rows(blocks, len(query), count, relevance.valid)
    return rank(iter(found), relevance, protocol.collapse)


def _reranked(query, embedding, labels, protocol, parameters):
    """The ranking of one trial by re-ranked distances, which do not depend on any order."""
    from facenet_jax.retrieval.rerank import order_by_bits, rerank  # loads scipy

    order = order_by_bits(query.embedding)
    blocks = rerank(query.embedding[order], embedding, *parameters)
    own = {name: values[order] for name, values in query.by_name.items()}
    relevance = protocols.relevance(protocol, own, labels, len(query), np.arange(len(embedding)))
    found = given_rows(blocks, len(query), len(embedding), relevance.valid)
    found = shown(found, "ranking", len(relevance.valid), "queries")
    return rank(iter(found), relevance, protocol.collapse).of_rows(order)


def centred(query: Embeddings, gallery: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Both sides less the mean row of the gallery.

    Features that share an offset all point the same way, so that every cosine is near 1; without it
    they are spread around 0. UserError for parts that are not as wide on both sides.
    """
    query, gallery = aligned(query, gallery)
    wide = [side.embedding.shape[1] for side in (query, gallery)]
    if wide[0] != wide[1]:
        return query, gallery  # the distances say what does not fit
    mean = gallery.embedding.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return tuple(
        dataclasses.replace(side, embedding=side.embedding - mean) for side in (query, gallery)
    )


def aligned(query: Embeddings, gallery: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Both sides with the same columns for the same parts, where both have the same parts.

    UserError for a part that is not as wide on both sides.
    """
    same = query.parts.keys() == gallery.parts.keys()
    if not same or list(query.parts.items()) == list(gallery.parts.items()):
        return query, gallery
    names = list(query.parts)
    query, gallery = query.select(names), gallery.select(names)
    wide = [side.embedding.shape[1] for side in (query, gallery)]
    if wide[0] == wide[1] and dict(query.parts) != dict(gallery.parts):  # else the distances say it
        raise UserError(
            f"The modalities {', '.join(names)} are not as wide in {query.origin or 'the query'} "
            f"as in {gallery.origin or 'the gallery'}: both must come from the same model."
        )
    return query, gallery


def _over_trials(each, statistic):
    """`statistic` over the trials of mAP, mINP and of every rank of the CMC."""
    return {
        name: float(statistic([scores[name] for scores in each])) for name in ("mAP", "mINP")
    } | {
        "cmc": {
            rank: float(statistic([scores["cmc"][rank] for scores in each]))
            for rank in each[0]["cmc"]
        }
    }


def _mean_count(each, name):
    """Mean of a count over the trials, an integer where it is whole."""
    mean = float(np.mean([scores[name] for scores in each]))
    return int(mean) if mean.is_integer() else mean
