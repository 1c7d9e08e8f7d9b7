"""What can end a run early; `cli` turns each into one line on stderr and its exit code."""

import contextlib
from collections.abc import Iterator


class Refused(ValueError):
    """The user's request cannot be met. The message is one line: what, where, the rule, the value, what to do."""

    exit_code = 2


class HubOutOfReach(Refused):
    """No connection to the Hub, and what was asked for is not in the cache."""


class NonFiniteLoss(ArithmeticError):
    """The loss is no longer a finite number."""

    exit_code = 3


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a resumable checkpoint has been written."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def writing_failed(*kinds: type[Exception]) -> Iterator[None]:
    """Raise OSError in place of `kinds`, the errors of a library that writes its files without Python's help."""
    try:
        yield
    except kinds as error:
        raise OSError(str(error)) from error
