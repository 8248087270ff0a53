"""Noticing SIGTERM, which machines about to be taken away send, in time to save."""

import signal
import threading
from types import TracebackType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """While entered, SIGTERM no longer kills the process; `requested` tells that it came.

    With several processes `jax.distributed` listens, and all agree on the step to stop at.
    """

    def __enter__(self) -> "Preemption":
        self.came = False
        self.calls = 0
        self.alone = jax.process_count() == 1
        # Only the main thread may set handlers; elsewhere (a notebook's worker) SIGTERM kills.
        self.listens = self.alone and threading.current_thread() is threading.main_thread()
        if self.listens:
            self.before = signal.signal(signal.SIGTERM, self.notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.listens:
            signal.signal(signal.SIGTERM, self.before)

    def notice(self, *_: object) -> None:
        """Remember the signal."""
        self.came = True

    def requested(self) -> bool:
        """Whether to save and leave now; the same answer in all processes, which all must ask."""
        if self.alone:
            return self.came
        # They agree to stop at one number, and one that is passed over would never come: so calls
        # are counted, not steps.
        self.calls += 1
        return multihost_utils.reached_preemption_sync_point(self.calls)
