"""The hosts of FACENet's Table 7 on WMVeID863: --config configs/hosts/wmveid863.py:NAME.

NAME is hamnet, pfnet, ieee, topreid, editor or ccnet; NAME_mc adds FACENet's MC loss. `ROWS` has
the scores that the paper publishes. It does not say how they were trained: 120 epochs and 256 x 128
as the other methods on this set, optimiser and losses as the authors' own code has them.
"""

from collections.abc import Callable, Mapping

import ml_collections

from configs import common
from configs.ccnet import wmveid863 as ccnet
from data_tfds.errors import UserError

# name: published mAP, R-1, R-5, R-10, alone and with MC
ROWS = {
    "hamnet": ((45.6, 48.5, 63.1, 68.8), (48.8, 52.1, 67.8, 72.1)),
    "pfnet": ((50.1, 55.9, 68.7, 75.1), (54.0, 58.5, 72.1, 76.9)),
    "ieee": ((45.9, 48.6, 64.3, 67.9), (51.4, 59.3, 72.6, 75.1)),
    "ccnet": ((50.3, 52.7, 69.7, 75.3), (60.6, 68.5, 79.2, 82.4)),
    "editor": ((60.5, 63.8, 80.0, 82.3), (66.0, 74.2, 81.0, 82.9)),
    "topreid": ((67.7, 75.3, 80.8, 83.5), (68.5, 75.6, 81.0, 83.5)),
}
VITS = ("topreid", "editor")


def get_config(name: str = "hamnet") -> ml_collections.ConfigDict:
    """A host, or a host and MC."""
    return chosen(name, {"ccnet": lambda _: ccnet.get_config(), **dict.fromkeys(VITS, vit)}, resnet)


def chosen(
    name: str, recipes: Mapping[str, Callable], other: Callable
) -> ml_collections.ConfigDict:
    """The config of a host by its name, as recipes[host](host) makes it, or `other`(host).

    Raises UserError for another name.
    """
    host = name.removesuffix("_mc")
    if host not in ROWS:
        known = ", ".join([*ROWS, *(f"{each}_mc" for each in ROWS)])
        raise UserError(f"The host is '{name}'; it must be one of {known}.", 2)
    c = recipes.get(host, other)(host)
    c.losses.mc.weight = float(name.endswith("_mc"))
    return c


def resnet(host: str) -> ml_collections.ConfigDict:
    """HAMNet by its port in CCNet's release; PFNet and IEEE by IEEE's, and PK batches of 2 x 4."""
    c = common.get_config(host)
    ours = ccnet.get_config()
    for section in ("data", "augment", "train", "optim"):
        c[section].update(ours[section])
    c.model.dtype = "bfloat16"
    c.seed = ours.seed
    if host == "hamnet":
        return c
    c.model.stem_relu = True  # that code base has the whole stem
    c.augment.erase = 0.0
    c.optim.name = "sgd"
    c.optim.learning_rate = 1e-3
    c.train.identities_per_batch, c.train.samples_per_identity = 2, 4
    return c


def vit(host: str) -> ml_collections.ConfigDict:
    """TOP-ReID and EDITOR: FACENet's schedule at the rates and with the batch of their code."""
    c = common.get_config(host)
    c.model.dtype = "bfloat16"
    c.optim.learning_rate = {"topreid": 9e-3, "editor": 1e-3}[host]
    c.train.identities_per_batch, c.train.samples_per_identity = 8, 16
    return c
