"""What is done to the colour channels of visible images, so that they tell less than shapes do.

Each takes one of several pictures, with equal chances:

    rcc            the six orders of R, G, B (one of them the image itself), and grey (FFDML)
    exchange       R, G or B for all three channels (CAJ: Ye et al. 2021, Channel Augmented Joint)
    exchange_grey  R, G or B for all three, or grey
    adapt          R, G or B for all three, or the image itself
    adapt_grey     R, G or B for all three, or, with half a chance each, grey or the image itself

Each is a 3 x 3 matrix from the channels to new ones, so one product serves all.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_tfds.samples import VISIBLE

GREY = {"rcc": (0.299, 0.587, 0.114), "caj": (0.2989, 0.587, 0.114)}
"""The weights of R, G and B in grey: ITU-R 601's, and those of CAJ's release."""

_ONE = [np.eye(3)[[channel] * 3] for channel in range(3)]
_ORDERS = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]
_SAME = np.eye(3)
_GREY = {name: np.tile(weights, (3, 1)) for name, weights in GREY.items()}

PICTURES = {
    "rcc": [*_ORDERS, _GREY["rcc"]],
    "exchange": _ONE,
    "exchange_grey": [*_ONE, _GREY["caj"]],
    "adapt": [*_ONE, _SAME],
    # Eight equal chances: a quarter for each channel, an eighth for grey and for the image.
    "adapt_grey": [*_ONE, *_ONE, _GREY["caj"], _SAME],
}
"""The matrices [new channel, channel] of each kind, drawn with equal chances."""


def of_visible(
    images: jax.Array, key: jax.Array, kind: str, modalities: Sequence[str]
) -> jax.Array:
    """The images [M, B, H, W, 3] with the channels of the visible ones drawn anew, the type kept.

    Whole numbers are rounded, as a grey image of bytes is. `modalities` names the M; where none is
    visible nothing changes.
    """
    for number, modality in enumerate(modalities):
        if modality == VISIBLE:
            own = jax.random.fold_in(key, number)
            images = images.at[number].set(drawn(images[number], own, kind))
    return images


def drawn(images: jax.Array, key: jax.Array, kind: str) -> jax.Array:
    """Images [B, H, W, 3] of which each became one of the pictures of `kind`."""
    matrices = jnp.asarray(np.stack(PICTURES[kind]), jnp.float32)
    chosen = matrices[jax.random.randint(key, (len(images),), 0, len(matrices))]
    mixed = jnp.einsum("bhwc,bdc->bhwd", images.astype(jnp.float32), chosen, precision="highest")
    if jnp.issubdtype(images.dtype, jnp.integer):
        mixed = jnp.round(mixed)
    return mixed.astype(images.dtype)
