"""Where files lie: on a disk, or on a bucket as gs://bucket/path, where whole objects are written.

A bucket knows no folders, no appending and no locks; an object is there whole or not at all.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

import fsspec
from absl import logging
from etils import epath

from data_tfds.errors import UserError

Place = pathlib.Path | epath.Path
"""A pathlib.Path on a disk; on a bucket an epath.Path, which reads and writes like one."""

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of an OSError that mean a full disk."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL such as gs://bucket/name."""
    return "://" in os.fspath(path)


def open_path(path: str | os.PathLike[str]) -> Place:
    """The folder or file at `path`, to be read and written.

    Raises UserError for a URL other than gs://, and for gs:// where gcsfs is not installed.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    url = os.fspath(path)
    if not url.startswith("gs://"):
        raise UserError(f"{url} is on no file system that is known here; give a path or gs://...")
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(
            f"{url} needs the package gcsfs, which is not installed; pip install gcsfs (the extra "
            "'.[tpu]' has it), or give a path on a disk."
        ) from error
    return epath.Path(url)


def local_path(path: str, option: str) -> pathlib.Path:
    """The absolute path on this machine; UserError, which names the `option`, for what is none."""
    try:
        found = pathlib.Path(path).expanduser().absolute()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~nobody, with a zero byte
        text = getattr(error, "strerror", None) or str(error)
        shown = path if len(path) < 80 else f"{path[:80]}..."
        raise UserError(f"{option} is {shown!r}, which is no path here ({text}).") from error
    return found


@contextlib.contextmanager
def as_os_error(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes an OSError of whatever a bucket raises, so that callers know it as a disk's."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # network, permissions, credentials: each with a type of its own
        if not is_remote(path):
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", os.fspath(path)) from error


def write_bytes(path: Place, content: bytes) -> None:
    """Write a file as a whole or not at all, its folder too where there is none.

    Raises UserError where a bucket does not take it; a disk's OSError comes through.
    """
    if is_remote(path):
        try:
            with as_os_error(path):
                path.write_bytes(content)
        except OSError as error:
            raise UserError(
                f"{path} could not be written ({error.strerror or error}); what is already there "
                "is untouched. Start again to go on from the last checkpoint."
            ) from error
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def fetch(url: str, path: pathlib.Path, draft: pathlib.Path) -> None:
    """Have the object at `url` at `path`, copied through `draft` unless its size is there already.

    Raises UserError where the object cannot be read; an OSError of a full disk comes through.
    """
    remote = open_path(url)
    try:
        with as_os_error(url):
            size = remote.stat().length
        if path.exists() and path.stat().st_size == size:
            return
        logging.info("Fetching %s (%.1f MB) to %s.", url, size / 1e6, path)
        with as_os_error(url):
            fsspec.filesystem("gcs").get_file(url, str(draft))
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise
        raise UserError(
            f"{url} cannot be read ({error.strerror or error}); check its name and the rights of "
            "this machine, or copy it to a disk and give that path."
        ) from error
    if draft.stat().st_size != size:
        raise UserError(f"{url} has {size} bytes and {draft.stat().st_size} came; start again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(path)
