"""Ends a process with the one that started it, however that one ends."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """Watch the parent of this worker process from a thread; does nothing in a main process.

    A worker that reads ahead waits for a place in its queue, for ever where the parent was killed.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
