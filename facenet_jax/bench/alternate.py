"""Worker processes whose calls are timed in alternation, for comparing two implementations.

Each implementation has a process of its own, so that the memory pools, threads and caches of one do
not disturb the other. A worker that is not asked waits for a message and uses no CPU time.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from data_tfds.errors import UserError


def serve(connection: Connection, make: Callable[..., Any], *arguments: Any) -> None:
    """Run in the child process: build an object, then call its methods on request and time them."""
    try:
        target = make(*arguments)
        connection.send((0.0, 0.0, None))
        while request := connection.recv():
            name, *values = request
            start, busy = time.perf_counter(), time.process_time()
            result = getattr(target, name)(*values)
            seconds, busy = time.perf_counter() - start, time.process_time() - busy
            connection.send((seconds, busy, result))
    except UserError as error:
        connection.send(error)


class Worker:
    """The object `make(*arguments)` in a process of its own.

    `make` is a class or function of a module, since it is pickled. Raises the UserError that it
    raises, and one if the process ends.
    """

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.connection, child = context.Pipe()
        self.process = context.Process(
            target=serve, args=(child, make, *arguments), daemon=True, name=name
        )
        self.process.start()
        child.close()
        self.receive()

    def receive(self) -> tuple[float, float, Any]:
        """The answer to the last request: (seconds, seconds of CPU time, result)."""
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"The process of {self.name} ended with exit code {self.process.exitcode}; if "
                "no message is above, memory ran out: choose a smaller config."
            ) from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def ask(self, *request: Any) -> tuple[float, float, Any]:
        """Call a method: its name and arguments to (seconds, seconds of CPU time, result)."""
        self.connection.send(request)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()
