"""Which data a workdir was trained and scored on: the digest of each split, in data.json."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from data_tfds.errors import UserError
from data_tfds.paths import Place, as_os_error
from facenet_jax.runtime.workdir import read_json
from facenet_jax.runtime.writers import write_json

FILE = "data.json"


def read(folder: Place) -> dict[str, Any]:
    """The content of data.json; no digests where there is none, as in older workdirs.

    Raises UserError for a file that cannot be read.
    """
    path = folder / FILE
    with as_os_error(path):
        if not path.exists():
            return {"root": "", "digests": {}, "earlier": []}
    found = read_json(path, folder)
    digests = found.get("digests") if isinstance(found, dict) else None
    whole = isinstance(digests, dict) and all(isinstance(x, str) for x in digests.values())
    if not (whole and isinstance(found.get("earlier"), list) and "root" in found):
        raise UserError(
            f"{path} is damaged, so that nobody knows on which data {folder} was trained; remove "
            "the file to go on with the data that there are now."
        )
    return found


def differing(folder: Place, digests: Mapping[str, str]) -> list[str]:
    """The splits of `digests` of which the folder knows another digest."""
    known = read(folder)["digests"]
    return [name for name in digests if known.get(name, digests[name]) != digests[name]]


def refuse_other_data(
    folder: Place, config: ml_collections.ConfigDict, digests: Mapping[str, str]
) -> bool:
    """Whether the data differ from those that the folder was trained or scored on.

    Raises UserError, with both digests, where they differ and config.data.changed is "error". The
    same files at another place are the same data.
    """
    other, before = differing(folder, digests), read(folder)
    if not other:
        return False
    pairs = [f"{name} was {before['digests'][name]} and is {digests[name]}" for name in other]
    places = f"(from {before['root'] or config.data.name}; now {config.data.root or 'a function'})"
    text = f"{'; '.join(pairs)} {places}"
    if config.data.changed != "accept":
        raise UserError(
            f"The data set is not the one that {folder} was trained and scored on, by the digests "
            f"of its images and labels: {text}. Give the old files, choose another --workdir, or "
            "set --config.data.changed=accept to go on with other data."
        )
    logging.warning("%s goes on with other data: %s.", folder, text)
    return True


def write(
    folder: Place,
    config: ml_collections.ConfigDict,
    digests: Mapping[str, str],
    afresh: bool = False,
) -> None:
    """Note the digests of the splits that are read now; those that they replace are kept too.

    `afresh`: nothing was trained in this folder before, so nothing of it is kept.
    """
    now = {"root": config.data.root, "digests": dict(digests), "earlier": []}
    if not afresh:
        before = read(folder)
        now["digests"] = {**before["digests"], **digests}
        now["earlier"] = before["earlier"]
        if differing(folder, digests):
            now["earlier"] = [
                *before["earlier"],
                {"root": before["root"], "digests": before["digests"]},
            ]
        if now == before:
            return
    write_json(folder / FILE, now)
