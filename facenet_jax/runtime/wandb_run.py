"""The scalars and images of a run on Weights & Biases: the only module that knows wandb.

What wandb itself can be told, such as WANDB_MODE=offline or WANDB_ENTITY, stays with its own
environment variables; a run started again goes on under the same id, which `wandb.json` keeps.
"""

import importlib
import json
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from data_tfds.errors import UserError
from data_tfds.paths import Place, write_bytes

FILE = "wandb.json"
MISSING = (
    "config.train.writers names wandb, which is not installed; install it with pip install "
    "'facenet_jax[wandb]' (in a checkout: pip install -e '.[wandb]')."
)


def package() -> Any:
    """The package. Raises UserError where it is not installed, with how to install it."""
    try:
        found = importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(MISSING) from error
    if not hasattr(found, "init"):  # a folder ./wandb of earlier runs counts as a package, too
        raise UserError(MISSING)
    return found


def known_id(path: Place) -> str:
    """The id that `wandb.json` keeps; "" where it keeps none, or is damaged."""
    try:
        found = json.loads(path.read_text())["id"] if path.exists() else ""
    except (ValueError, KeyError, TypeError):
        return ""
    return found if isinstance(found, str) else ""


class WandbRun:
    """A run on wandb.

    Args:
        workdir: the folder of the run, which keeps its id and gives it its name.
        local: a folder on a disk, for wandb's own files.
        config: the resolved config, shown beside the run.
        resumed: whether steps were done before; a run from its first step gets a new id, because
            wandb takes no step twice.
    """

    def __init__(
        self, workdir: Place, local: pathlib.Path, config: Mapping[str, Any], resumed: bool
    ):
        wandb, path = package(), workdir / FILE
        name = (known_id(path) if resumed else "") or uuid.uuid4().hex[:12]
        try:
            self.run = wandb.init(
                project=config["train"]["wandb_project"],
                id=name,
                name=workdir.name,
                resume="allow",
                config=dict(config),
                dir=str(local),
            )
        except Exception as error:  # no account, no network: wandb has types of its own for each
            words = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"wandb could not start ({words}); log in with wandb login, or set "
                "WANDB_MODE=offline."
            ) from error
        write_bytes(path, (json.dumps({"id": name}) + "\n").encode())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the scalars of a step."""
        self.run.log(dict(values), step=step)

    def images(self, images: Mapping[str, tuple[Any, str]]) -> None:
        """Send images, each with its caption, with the step that wandb is at.

        In a run that was complete before that is a later one: wandb takes no step twice.
        """
        wandb = package()
        shown = {name: wandb.Image(image, caption=said) for name, (image, said) in images.items()}
        self.run.log(shown)

    def summary(self, values: Mapping[str, Any]) -> None:
        """What stands beside the run when it has ended, such as its scores."""
        self.run.summary.update(dict(values))

    def close(self, failed: bool = False) -> None:
        """End the run; wandb shows one that `failed` as such."""
        self.run.finish(exit_code=int(failed))
