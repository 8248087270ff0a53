"""One page about a run, or two side by side: scores, curves, ranked lists, what the network saw.

`write` makes one HTML file without scripts or links, which opens offline.
"""

import importlib.util
from collections.abc import Sequence

from data_tfds.errors import UserError
from data_tfds.paths import Place, write_bytes

DOCTOR = ("auto", "always", "never")

PACKAGES = ("jinja2", "matplotlib", "sklearn")


def missing() -> list[str]:
    """The packages that a report needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def refuse_missing(what: str = "A report needs") -> None:
    """Raises UserError where a package is missing, with how to install it."""
    lacks = missing()
    if lacks:
        raise UserError(
            f"{what} {', '.join(lacks)}, which is not installed; install them with "
            "pip install 'facenet_jax[report]' (in a checkout: pip install -e '.[report]')."
        )


def write(folders: Sequence[Place], out: Place, doctor: str = "auto") -> int:
    """Write the page of one workdir or two; its size in bytes.

    `doctor`, one of DOCTOR, says whether the data set is examined; auto: where it is small.
    UserError where a package is missing, or a folder is no workdir with embeddings.
    """
    refuse_missing()
    from facenet_jax.report import finished, page, sections  # they load the packages

    runs = [finished.open_finished(folder) for folder in folders]
    html = page.render(runs, sections.of_all(runs, doctor))
    write_bytes(out, html.encode())
    return len(html.encode())
