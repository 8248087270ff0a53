"""Experts, proxies, both or neither on small streams and the rendered set, on two CPU cores.

--config configs/joined/demo.py:NAME, NAME plain, experts, proxies or both. The schedule of the demo
(configs/demo.py).
"""

import ml_collections

from configs import common, demo
from configs.joined.wmveid863 import joined

# name: (experts, proxies)
ROWS = {
    "plain": (False, False),
    "experts": (True, False),
    "proxies": (False, True),
    "both": (True, True),
}


def get_config(name: str = "experts") -> ml_collections.ConfigDict:
    """A row. Raises UserError for another name."""
    c = demo.get_config("joined_streams")
    c.model.experts.attention_width = 24
    return joined(c, *common.row_of(ROWS, name, "system"))
