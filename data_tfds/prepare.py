"""Prepared data sets on disk: one folder per source, whole or absent, found by fingerprint."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import io
import json
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds
from absl import logging

from data_tfds.accept import some
from data_tfds.builder import SampleBuilder
from data_tfds.errors import UserError
from data_tfds.limits import Limits
from data_tfds.paths import fetch, is_remote, local_path
from data_tfds.samples import Protocol
from data_tfds.sets import lookup
from data_tfds.source import Source, fingerprint

DAMAGED = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile)
"""What NumPy, json and ArrayRecord raise for files that are cut, changed or gone."""

INCOMPLETE = ".incomplete-"
"""Prefix of what is being written; leftovers of killed processes are removed under the lock."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that lies prepared in `folder`; `builder.as_data_source(split)` reads it.

    Where configs share their prepared files, the builder may be that of another config than the one
    that was asked for, whose `protocol` this is.
    """

    builder: SampleBuilder
    folder: pathlib.Path
    protocol: Protocol


def prepare(
    name: str,
    root: str,
    prepared: str,
    incomplete: str = "error",
    limits: Limits | None = None,
) -> Prepared:
    """The data set `name` whose files lie at `root`, prepared below the folder `prepared`.

    What is already there for exactly these files is used; a change of path, size or time of any
    file, of the builder's version or of `incomplete` makes a folder of its own. A folder appears
    only when it is whole. `limits` say how large files may be. A .zip on a bucket (gs://) is copied
    to `prepared`/downloads before. Raises UserError for everything a user can mend.
    """
    cls, config = lookup(name)
    (asked,) = (each for each in cls.BUILDER_CONFIGS if each.name == config)
    config = asked.prepared_as or config
    if is_remote(prepared):
        raise UserError(f"data.prepared is {prepared} and must be a folder on a disk.")
    parent, given = local_path(prepared, "data.prepared"), root
    if is_remote(root) and root.endswith(".zip"):
        root = str(_download(root, parent))

    def builder(folder: pathlib.Path, source: Source | None) -> SampleBuilder:
        with quiet():
            return cls(
                data_dir=folder,
                config=config,
                root=root,
                incomplete=incomplete,
                source=source,
                limits=limits,
            )

    unused = builder(parent / "unused", None)
    source = unused.source
    protocol = unused.find_protocol(asked, source)
    builder = functools.partial(builder, source=source)
    version = str(cls.VERSION)
    key = fingerprint(source, cls.name, config, version, incomplete)
    folder = parent / f"{cls.name}-{config}-{key}"
    if folder.is_dir():
        return _opened(builder, folder, protocol)
    with writing(parent):
        if not folder.is_dir():  # another process may have made it meanwhile
            start = time.time()
            draft = parent / f"{INCOMPLETE}{folder.name}"
            draft.mkdir()
            facts = {"dataset": cls.name, "config": config, "version": version, "root": given}
            facts["incomplete"] = incomplete
            (draft / "source.json").write_text(json.dumps(facts, indent=1) + "\n")
            writer = builder(draft)
            _write(writer, draft, root)
            draft.rename(folder)
            if writer.cut_off:
                logging.warning(
                    "%s: %d images are cut off, and grey from there on; doctor names all: %s",
                    name,
                    len(writer.cut_off),
                    some(writer.cut_off),
                )
            logging.info("Prepared %s in %s (%.1f s).", name, folder, time.time() - start)
    return _opened(builder, folder, protocol)


def _opened(
    builder: Callable[[pathlib.Path], SampleBuilder], folder: pathlib.Path, protocol: Protocol
) -> Prepared:
    facts = folder / builder(folder / "unused").data_path.relative_to(folder / "unused")
    with reading(folder):
        # Without this file TFDS takes the folder for a data set without splits.
        json.loads((facts / "dataset_info.json").read_text())
        return Prepared(builder(folder), folder, protocol)


@contextlib.contextmanager
def reading(folder: pathlib.Path) -> Iterator[None]:
    """Turns what damaged prepared files make their readers raise into a UserError."""
    try:
        yield
    except DAMAGED as error:
        raise UserError(
            f"The prepared data in {folder} is damaged ({' '.join(str(error).split())}); delete "
            "that folder, and the next start prepares it anew."
        ) from error


def _download(url: str, parent: pathlib.Path) -> pathlib.Path:
    """Where the archive at `url` lies on disk, the same in size as it is there."""
    path = parent / "downloads" / url.partition("://")[2]
    with writing(parent):
        fetch(url, path, draft=parent / f"{INCOMPLETE}download")
    return path


@contextlib.contextmanager
def writing(parent: pathlib.Path) -> Iterator[None]:
    """The sole right to write below `parent`, cleared of what killed processes left unfinished.

    Turns an unwritable folder and a full disk into UserErrors.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with (parent / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.info("Waiting for another process that prepares data in %s.", parent)
                fcntl.flock(lock, fcntl.LOCK_EX)
            _clear(parent)
            try:
                yield
            finally:
                _clear(parent)
    except OSError as error:
        raise UserError(
            f"Prepared data cannot be written below {parent}: {error.strerror or error}; make room "
            "there, or set --config.data.prepared=DIR to another folder."
        ) from error


def _clear(parent: pathlib.Path) -> None:
    for debris in (*parent.glob(f"{INCOMPLETE}*"), *parent.glob(f"*/*/{INCOMPLETE}*")):
        if debris.is_dir():
            shutil.rmtree(debris)
        else:
            debris.unlink()


def _write(builder: SampleBuilder, draft: pathlib.Path, root: str) -> None:
    config = tfds.download.DownloadConfig(manual_dir=root, try_download_gcs=False)
    try:
        with quiet():
            builder.download_and_prepare(download_config=config, download_dir=draft)
    except RuntimeError as error:
        if "write() failed" in str(error):  # how ArrayRecord tells of a full disk
            raise OSError(errno.EIO, str(error).split(";")[0]) from error
        raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what TFDS says to its developers; our own lines are warnings or come outside."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
