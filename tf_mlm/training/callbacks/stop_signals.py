"""Stops a run on SIGINT or SIGTERM, after a checkpoint."""

import signal
import threading
from typing import Any

from tf_mlm.errors import Interrupted


class StopSignals:
    """Records SIGINT and SIGTERM from the call of `handle` until the context ends. A second SIGINT ends the process.

    Python delivers signals to the main thread only. In another thread, signals are not handled.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if not is_main_thread():
            print("signals    not handled: training does not run in the main thread", flush=True)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def handle(self) -> None:
        """Replace the current signal handlers."""
        if self._previous or not is_main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C does not wait for Python to run a handler

    def raise_if_received(self, step: int, run: object) -> None:
        """Raise Interrupted if a signal was received."""
        if self.received:
            name = signal.Signals(self.received).name
            raise Interrupted(
                f"{name} at step {step}: stopped after a checkpoint; continue with --resume {run}", self.received
            )


def is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
