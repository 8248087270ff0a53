"""Where every recipe starts: all options at their defaults.

Each option stands once, with its unit and its legal values: the common ones in
facenet_jax/config.py, those of a model in its file, the parameters of a loss in its function. On
the command line: --config.section.option=value.
"""

import ml_collections

from facenet_jax.config import default_config


def get_config(model: str = "facenet", **choices: str) -> ml_collections.ConfigDict:
    """The options of a model, with the schedule for WMVeID863.

    `choices` are options of the model that bring further options along, such as
    backbone="my_package.my_backbone".
    """
    return default_config(model, **choices)
