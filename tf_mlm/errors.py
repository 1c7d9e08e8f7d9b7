"""What can end a run early; `cli` turns each into one line on stderr and its exit code."""

import contextlib
from collections.abc import Iterator
from typing import Any


class Refused(ValueError):
    """The user's request cannot be met. The message is one line: what, where, the rule, the value, what to do."""

    exit_code = 2


class HubOutOfReach(Refused):
    """No connection to the Hub, and what was asked for is not in the cache."""


class NonFiniteLoss(ArithmeticError):
    """The loss, its gradient or a weight is not a finite number.

    Attributes:
        num_steps: how many steps in a row, up to the last, show it; 0 where no step does.
        progress: how far the run had come, once `fit` has said so.
    """

    exit_code = 3

    def __init__(self, message: str, num_steps: int = 0):
        super().__init__(message)
        self.num_steps = num_steps
        self.progress: Any = None


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a resumable checkpoint has been written."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def as_os_error(*kinds: type[Exception]) -> Iterator[None]:
    """Raise OSError in place of `kinds`, the errors of a library that writes its files without Python's help."""
    try:
        yield
    except OSError:
        raise
    except kinds as error:
        raise OSError(str(error)) from error
