"""Scores a trained network where modalities are missing.

facenet modalities --workdir DIR [--config.data.name=... --config.data.root=...]

Every subset of the modalities against every other one, and ever more samples without some of them,
at random (CCNet's Fig. 10), as tables and in WORKDIR/modalities.json. The network sees nothing of a
modality that is left out. `--config.evaluate.export=best` takes the best checkpoint.
"""

from typing import Any

import jax
import ml_collections
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place
from facenet_jax import evaluate
from facenet_jax.embed import EvalSet, embed, test_set
from facenet_jax.retrieval import missing
from facenet_jax.retrieval.missing import MATCHINGS
from facenet_jax.run import Run, saved_state
from facenet_jax.runtime.writers import write_json
from facenet_jax.step import State


def tables(run: Run, state: State, of: EvalSet) -> dict[str, Any]:
    """What modalities.json holds: `protocol`, `step`, and by matching the tables and curves.

    Where the embedding has no part for each modality they are by shared parts alone. Raises
    UserError for a data set that has no samples of two modalities on both sides.
    """
    names, protocol = of.query.split.modalities, of.protocol
    if of.query.data is not of.gallery.data or len(names) < 2:
        raise UserError(
            f"The protocol {protocol.name} compares {', '.join(of.query.split.modalities)} with "
            f"{', '.join(of.gallery.split.modalities)}; this command needs samples of two or more "
            "modalities on both sides."
        )
    query, gallery = {}, {}
    for subset in missing.subsets(names):
        query[subset], gallery[subset] = embed(run, state, of, subset)
    parts = tuple(query[tuple(names)].parts)
    sides, centre, matchings = (query, gallery, protocol), run.config.evaluate.centre, MATCHINGS
    if parts != tuple(names):
        matchings = MATCHINGS[:1]
        logging.info(
            "The embedding of %s has the parts %s, not one for each of %s, so the tables by the "
            "mean of the parts are left out.",
            *(run.config.model.name, ", ".join(parts), ", ".join(names)),
        )
    return {
        "protocol": protocol.name,
        "step": int(state.step),
        "centred": centre,
        "subsets": {m: missing.each_against_each(*sides, m, centre) for m in matchings},
        "at_random": {m: missing.at_random(*sides, m, centre=centre) for m in matchings},
    }


def of_workdir(config: ml_collections.ConfigDict, workdir: Place) -> None:
    """`--mode modalities`: the tables of a workdir's checkpoint, printed and written."""
    run, checkpoints, folder, _ = evaluate.open_trained(config, workdir, "modalities")
    best = config.evaluate.export == "best"
    step = evaluate.best_step(checkpoints) if best else checkpoints.latest()
    found = tables(run, saved_state(run, checkpoints, step), test_set(run))
    if jax.process_index() == 0:
        write_json(folder / "modalities.json", found)
    logging.info(
        "%s, step %d\n%s",
        found["protocol"],
        found["step"],
        missing.text(found["subsets"], found["at_random"]),
    )
    for name, used in (
        ("flare_weight", config.evaluate.flare_weight < 1),
        ("complete", config.evaluate.complete),
    ):
        if used:
            logging.info("config.evaluate.%s is not used in these tables.", name)
    checkpoints.close()
