"""Errors that end a command; `commands.main` prints each as one line on stderr and returns its exit code."""

import contextlib
from collections.abc import Iterator
from typing import Any


class Refused(ValueError):
    """The request is wrong. The message is one line: setting or file, what is wrong, what to do."""

    exit_code = 2


class HubOutOfReach(Refused):
    """The Hub cannot be reached, and the cache does not have the model or dataset."""


class NonFiniteLoss(ArithmeticError):
    """The loss, its gradient or a weight is not a finite number.

    Attributes:
        num_steps: number of consecutive failing steps up to the last; 0 if the failure is not in a step.
        on_all_workers: whether all workers of multi-worker training raise it in the same step.
        progress: how far the run had come.
    """

    exit_code = 3

    def __init__(self, message: str, num_steps: int = 0, *, on_all_workers: bool = True):
        super().__init__(message)
        self.num_steps = num_steps
        self.on_all_workers = on_all_workers
        self.progress: Any = None


class WorkerFailed(Exception):
    """Another worker failed. `--resume` continues from the last checkpoint."""

    exit_code = 4


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a resumable checkpoint has been written."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def refusing_setting(name: str) -> Iterator[None]:
    """Put the setting `name` into an error about a dataset other than `data.dataset`.

    The default settings apply to such a dataset, so advice to change another setting is replaced.
    """
    try:
        yield
    except Refused as error:
        message = str(error)
        message = message.replace("data.dataset", name, 1) if "data.dataset" in message else f"{name}: {message}"
        if "--data." in message:
            message = f"{message.rpartition('; ')[0]}; pass files that can be read with the default settings"
        raise type(error)(message) from None


@contextlib.contextmanager
def as_os_error(*kinds: type[Exception]) -> Iterator[None]:
    """Raise OSError in place of `kinds`, errors of libraries that write files from native code."""
    try:
        yield
    except OSError:
        raise
    except kinds as error:
        raise OSError(str(error)) from error
