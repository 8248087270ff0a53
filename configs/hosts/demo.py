"""The hosts of FACENet's Table 7 on the rendered set, from scratch, on two CPU cores.

--config configs/hosts/demo.py:NAME with the names of wmveid863.py: hamnet, pfnet, ieee, topreid,
editor or ccnet, alone or with _mc behind it. The schedules are those of the demos of CCNet and
FACENet.
"""

import ml_collections

from configs import common, demo
from configs.ccnet import demo as ccnet
from configs.hosts.wmveid863 import VITS, chosen


def get_config(name: str = "hamnet") -> ml_collections.ConfigDict:
    """A host, or a host and MC, small."""
    return chosen(name, {"ccnet": lambda _: ccnet.get_config(), **dict.fromkeys(VITS, vit)}, resnet)


def resnet(host: str) -> ml_collections.ConfigDict:
    """A host on three small ResNets."""
    c, ours = common.get_config(host), ccnet.get_config()
    for section in ("data", "augment", "train", "optim"):
        c[section].update(ours[section])
    c.model.variant, c.model.pretrained = "mini", "none"
    c.model.stem_relu = host != "hamnet"
    for width in ("reduced_width", "part_width"):
        if width in c.model:
            c.model[width] //= 4
    if "triplet" in c.losses:  # from the first step it only draws all features together
        c.losses.triplet.weight = ((0.0, 0.0), (0.4, 0.0), (0.6, 1.0), (1.0, 1.0))
    return c


def vit(host: str) -> ml_collections.ConfigDict:
    """TOP-ReID on three small ViTs, EDITOR on one."""
    c = demo.get_config(host)
    if host == "editor":
        c.model.kept_bright = 4  # of 32 patches
    return c
