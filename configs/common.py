"""Where every recipe starts: all options at their defaults.

Each option stands once, with its unit and its legal values: the common ones in
facenet_jax/config.py, those of a model in its file, the parameters of a loss in its function. On
the command line: --config.section.option=value.
"""

from collections.abc import Mapping

import ml_collections

from data_tfds.errors import UserError
from facenet_jax.config import default_config


def get_config(model: str = "facenet", **choices: str) -> ml_collections.ConfigDict:
    """The options of a model, with the schedule for WMVeID863.

    `choices` are options of the model that bring further options along, such as
    backbone="my_package.my_backbone".
    """
    return default_config(model, **choices)


def with_row(
    c: ml_collections.ConfigDict, rows: Mapping[str, tuple], name: str
) -> ml_collections.ConfigDict:
    """`c` with the changes of a row of a paper's tables.

    `rows` is {name: ({option: value}, the published scores)}. Raises UserError for another name.
    """
    changes, _ = row_of(rows, name, "ablation")
    c.update_from_flattened_dict(changes)
    return c


def row_of(rows: Mapping[str, tuple], name: str, what: str) -> tuple:
    """The entry `name` of `rows`. Raises UserError for another name, saying `what` was asked."""
    if name not in rows:
        raise UserError(f"The {what} is '{name}'; it must be one of {', '.join(rows)}.", 2)
    return rows[name]
