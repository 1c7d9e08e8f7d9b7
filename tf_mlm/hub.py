"""Resolves names to local paths or Hub names, and checks the connection to the Hub.

Call `connect` before importing a Hugging Face library: those read `HF_HUB_OFFLINE` on import and otherwise retry for
minutes. Without a connection, the check takes less than 15 s, and cached files are still found.
"""

import contextlib
import errno
import os
import re
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path

from tf_mlm.errors import HubOutOfReach, Refused

_FILE_ENDINGS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".gz")  # reviews.txt is a path
_CONNECT_SECONDS = 12  # process start included, the user waits at most 15 s

_OPTIONS = "connect once, pass a local directory, or run the sample: python train.py --config configs/sample.toml"

# Errors that the Hugging Face libraries raise for files that are neither reachable nor cached.
_UNAVAILABLE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "DatasetNotFoundError")
_MACHINE_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.EDQUOT)


@dataclass(frozen=True)
class Source:
    """The origin of a model or a dataset, resolved once: a local path or a name on the Hub.

    Attributes:
        name: as the user gave it.
        path: the local path, which may not exist; None if `name` is a name on the Hub.
    """

    name: str
    path: Path | None

    @classmethod
    def of(cls, name: str) -> "Source":
        """`name` is a path if it exists or is written like one; `owner/name` and `name` are names on the Hub."""
        return cls(name, Path(name).expanduser() if is_local(name) else None)

    @property
    def short_name(self) -> str:
        """A Hub name unchanged, or the last part of a local path, for files that are read on other machines."""
        return self.name if self.path is None else re.split(r"[/\\]", self.name.rstrip("/\\"))[-1]

    @property
    def absolute_path(self) -> str:
        """The absolute path; "" for a name on the Hub and for ""."""
        return os.path.abspath(self.path) if self.name and self.path is not None else ""


def is_local(name: str) -> bool:
    """Whether `name` is a path: it exists or is written like one; `owner/name` and `name` are names on the Hub."""
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith((".", "~"))
    return os.path.exists(name) or not is_hub_name or name.lower().endswith(_FILE_ENDINGS)


def label(setting: str, name: str) -> str:
    """How a message names `name`: with the setting that gave it, or alone if `setting` is ""."""
    if setting:
        return f"{setting} = {name!r}"
    return name if name.isprintable() else repr(name)


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def is_offline() -> bool:
    # As huggingface_hub parses them.
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def connect() -> None:
    """Set `HF_HUB_OFFLINE` for this process if the Hub does not answer; an error status counts as an answer."""
    if is_offline():
        return
    answered = threading.Event()

    def ask() -> None:
        import requests

        # Any exception means no answer; an invalid endpoint raises exceptions of urllib3.
        with contextlib.suppress(Exception):
            requests.head(endpoint(), timeout=_CONNECT_SECONDS, allow_redirects=False)
            answered.set()

    # A thread, because DNS resolution has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if not answered.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"


def refusal(setting: str, name: str, error: Exception) -> Refused:
    """The error to raise after a Hugging Face library failed to load `name`: unreachable, or an error of the Hub.

    Raises:
        OSError: the cause is this machine, such as a full disk.
    """
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in _MACHINE_ERRORS:
            raise cause  # a full disk, for example, is not an error of the Hub
    reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
    named = label(setting, name)
    if is_offline():
        if not any(type(cause).__name__ in _UNAVAILABLE for cause in causes):
            return Refused(f"{named}: cannot be loaded from the cache: {reason}")
        tried = f"no connection to {endpoint()} and not in the cache"
        return HubOutOfReach(f"{named}: {tried}; {_OPTIONS}")
    return Refused(f"{named}: cannot be loaded from the Hub ({endpoint()}): {reason}")


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and the chain of its causes."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
