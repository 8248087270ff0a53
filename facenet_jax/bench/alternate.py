"""Two sides of a comparison, each in a process of its own, so that they can be timed in turns.

Memory pools, threads and caches of one side then do not meet those of the other; the side whose
turn it is not waits for a message and takes no time.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from data_tfds.errors import UserError


def serve(connection: Connection, make: Callable[..., Any], *arguments: Any) -> None:
    """A child process: makes one side, then calls its methods as asked, with the time taken."""
    try:
        side = make(*arguments)
        connection.send((0.0, 0.0, None))
        while request := connection.recv():
            name, *values = request
            start, busy = time.perf_counter(), time.process_time()
            result = getattr(side, name)(*values)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            connection.send((seconds, busy, result))
    except UserError as error:
        connection.send(error)


class Side:
    """A side in a process of its own."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.connection, end = context.Pipe()
        self.process = context.Process(
            target=serve, args=(end, make, *arguments), daemon=True, name=name
        )
        self.process.start()
        end.close()
        self.receive()

    def receive(self) -> tuple[float, float, Any]:
        """(seconds, those that the CPU worked for it, result) of what was asked."""
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"The process of {self.name} ended with exit code {self.process.exitcode}; if "
                "nothing stands above, memory ran out: choose a smaller config."
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def ask(self, *request: Any) -> tuple[float, float, Any]:
        """(seconds, those that the CPU worked for it, result) of a method by name."""
        self.connection.send(request)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()
