"""What is kept out of the terminal, in one file: tracebacks, and what other packages say.

A run that ends with an error writes `WORKDIR/details.log`; without a workdir the file is in the
folder for temporary files.
"""

import collections
import logging as python_logging
import pathlib
import sys
import tempfile
import threading
import time
import traceback

FILE = "details.log"

_MOST_LINES = 2000


class Details(python_logging.Handler):
    """The last log lines of all packages, and the errors that no code takes."""

    def __init__(self):
        super().__init__()
        self.setFormatter(python_logging.Formatter("%(asctime)s %(pathname)s: %(message)s"))
        self.lines: collections.deque[str] = collections.deque(maxlen=_MOST_LINES)
        self.folder: pathlib.Path | None = None  # the workdir, once it is locked

    def emit(self, record: python_logging.LogRecord) -> None:
        """Keep a log line, with the traceback that belongs to it."""
        self.lines.append(self.format(record))

    def install(self) -> None:
        """Take the log lines, and what Python would print of errors in threads."""
        python_logging.getLogger().addHandler(self)
        threading.excepthook = lambda found: self.add("an error in a thread", found.exc_value)
        sys.unraisablehook = lambda found: self.add("an error at the end", found.exc_value)

    def add(self, title: str, error: BaseException | None) -> None:
        """Keep an error with its traceback and those of its causes."""
        text = "".join(traceback.format_exception(error)) if error else ""
        self.lines.append(f"{time.strftime('%F %T')} {title}\n{text}".rstrip())

    def write(self, title: str, error: BaseException) -> pathlib.Path | None:
        """Append all of it and `error` to the file; its place, or None where no place takes it."""
        self.add(title, error)
        text = "\n".join(self.lines) + "\n"
        self.lines.clear()
        for folder in filter(None, (self.folder, pathlib.Path(tempfile.gettempdir()))):
            name = FILE if folder == self.folder else "facenet_jax-details.log"
            try:
                with (folder / name).open("a", errors="backslashreplace") as file:
                    file.write(text)
            except OSError:
                continue
            return folder / name
        return None


DETAILS = Details()
"""Those of this process."""


def sentence(error: Exception) -> str:
    """An error that nobody expected, in words: its type, the start of its text, and where."""
    text = " ".join(str(error).split())
    text = f" ({text[:200]}{'...' * (len(text) > 200)})" if text else ""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{text}{where}"
