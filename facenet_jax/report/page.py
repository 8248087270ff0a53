"""The page as HTML, by page.html.j2 beside this file."""

import importlib.metadata
import pathlib
from collections.abc import Sequence

import jinja2

from facenet_jax.report.blocks import Section
from facenet_jax.report.finished import Finished


def render(runs: Sequence[Finished], sections: Sequence[Section]) -> str:
    """The whole page, with everything it needs inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        runs=runs, sections=sections, version=importlib.metadata.version("facenet_jax")
    )
