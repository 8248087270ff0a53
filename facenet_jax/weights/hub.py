"""Workdirs that lie on the Hugging Face hub, as hf://OWNER/NAME or hf://OWNER/NAME/FOLDER."""

import pathlib

from data_tfds.errors import UserError

START = "hf://"


def is_hub(path: str) -> bool:
    """Whether a path names a repository of the hub."""
    return path.startswith(START)


def fetched(url: str) -> pathlib.Path:
    """The folder on this machine that holds what `url` names; fetched once, and kept by the hub.

    Nothing of it is run; it is read as a workdir of one's own is. Raises UserError for a name that
    is no OWNER/NAME, where the package huggingface_hub is missing, and where the hub does not give
    the files.
    """
    owner, _, rest = url.removeprefix(START).partition("/")
    name, _, inside = rest.partition("/")
    if not owner or not name:
        raise UserError(
            f"{url} names no repository; write hf://OWNER/NAME or hf://OWNER/NAME/FOLDER."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{url} needs the package huggingface_hub, which is not installed; install it with pip "
            "install 'facenet_jax[hub]' (in a checkout: pip install -e '.[hub]'), or fetch the "
            "folder and give its path."
        ) from error
    wanted = [f"{inside}/*"] if inside else None
    try:
        root = huggingface_hub.snapshot_download(f"{owner}/{name}", allow_patterns=wanted)
    except Exception as error:  # network, rights, a name that is not there: each of its own type
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{url} could not be fetched: {said}") from error
    return pathlib.Path(root) / inside
