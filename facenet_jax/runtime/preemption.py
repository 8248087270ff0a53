"""SIGTERM and Ctrl-C as requests to save and stop."""

import signal
import threading
from types import TracebackType

import jax
from absl import logging
from jax.experimental import multihost_utils

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Preemption:
    """While entered, SIGTERM and one Ctrl-C do not kill the process; `requested` is then true.

    A second Ctrl-C interrupts at once. With several processes `jax.distributed` listens for
    SIGTERM, and all agree on the step to stop at.
    """

    def __enter__(self) -> "Preemption":
        self.received: int | None = None  # the signal
        self.calls = 0
        self.alone = jax.process_count() == 1
        self.before = {}
        # Only the main thread may set handlers; elsewhere (a notebook's worker) a signal kills.
        if self.alone and threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.notice) for number in NAMES}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def notice(self, number: int, *_: object) -> None:
        """Remember the signal."""
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        logging.info("%s: stopping after the steps that are running%s.", NAMES[number], again)

    @property
    def name(self) -> str:
        """The signal received, in words."""
        return NAMES.get(self.received, "SIGTERM")

    def requested(self) -> bool:
        """Whether to save and leave now; the same answer in all processes, which all must ask."""
        if self.alone:
            return self.received is not None
        # They agree to stop at one number, and one that is passed over would never come: so calls
        # are counted, not steps.
        self.calls += 1
        return multihost_utils.reached_preemption_sync_point(self.calls)
