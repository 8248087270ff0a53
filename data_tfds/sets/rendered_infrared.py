"""The rendered vehicles as a visible-infrared set: near-infrared images find visible ones."""

from typing import ClassVar

import tensorflow_datasets as tfds

from data_tfds.builder import Config, Size
from data_tfds.listing import Listing
from data_tfds.samples import NEAR_INFRARED, VISIBLE, Protocol, Side
from data_tfds.sets.rendered import Rendered
from data_tfds.source import Source

INSTRUCTIONS = "This project draws it: facenet render DIR --infrared_follows_paint 1."


class RenderedInfrared(Rendered):
    """A tree of `rendered` without its thermal images.

    In one drawn with --infrared_follows_paint 1 light paint is light in both modalities; without it
    the near-infrared is drawn apart from the paint, so that shapes alone tell who is who.

    The junk rule leaves out the query's identity in the query's scene: the visible image of the
    query's own instant, since no two of a vehicle's samples are of one scene but by chance.
    """

    name = "rendered_infrared"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The images of rendered 1.0.0."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    DESCRIPTION = "Drawn vehicles as visible and near-infrared images, matched between the two."
    MODALITIES = (VISIBLE, NEAR_INFRARED)
    BUILDER_CONFIGS: ClassVar = [
        Config(
            name="infrared_to_visible",
            description="A near-infrared image finds visible ones of other instants.",
            protocol=Protocol(
                "rendered_infrared/infrared_to_visible",
                junk="scene",
                query=Side("query", (NEAR_INFRARED,)),
                gallery=Side("gallery", (VISIBLE,)),
            ),
            instructions=INSTRUCTIONS,
            stored=Size(3520, 176, 300, 800, 50),
        )
    ]

    def read(self, listing: Listing, source: Source) -> None:
        """The splits as stored, and of their images those of the two modalities."""
        super().read(listing, source)
        listing.images = {
            path: modality
            for path, modality in listing.images.items()
            if modality in self.MODALITIES
        }


BUILDER = RenderedInfrared
