"""Whether a name means the Hub, and whether the Hub is in reach; asked before any Hugging Face library is imported.

Those libraries read `HF_HUB_OFFLINE` when they are imported and otherwise retry for minutes; asking first keeps the
wait under 15 s and lets everything cached be found.
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

_FILE_ENDINGS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".gz")  # reviews.txt is no Hub name
_CONNECT_SECONDS = 12  # with the start of the process, an answer comes within 15 s in all

WAYS_ON = "connect once, name a local folder, or run the sample: python train.py --config configs/sample.toml"


# Names of the errors by which the Hugging Face libraries say that something is neither in reach nor in the cache.
_NOT_TO_BE_HAD = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "DatasetNotFoundError")
_MACHINE_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.EDQUOT)


@dataclass(frozen=True)
class Source:
    """Where a model or a dataset comes from, decided once: a local path or a name on the Hub.

    Attributes:
        name: as the user gave it.
        path: the local path, which may not exist; None where `name` is a name on the Hub.
    """

    name: str
    path: Path | None

    @classmethod
    def of(cls, name: str) -> "Source":
        """`name` is a path if it exists or is written like one; `owner/name` and `name` are names on the Hub."""
        return cls(name, Path(name).expanduser() if is_local(name) else None)


def absolute_path(name: str) -> str:
    """The absolute path of a local name; "" for a name on the Hub."""
    path = Source.of(name).path
    return os.path.abspath(path) if name and path is not None else ""


def is_local(name: str) -> bool:
    """Whether `name` means a path: it exists, or is written like one; `owner/name` and `name` mean the Hub."""
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith((".", "~"))
    return os.path.exists(name) or not is_hub_name or name.lower().endswith(_FILE_ENDINGS)


def label(setting: str, name: str) -> str:
    """How a message names `name`: with the setting that gave it, or alone if `setting` is ""."""
    if setting:
        return f"{setting} = {name!r}"
    return name if name.isprintable() else repr(name)


def check_local(name: str, setting: str) -> Path:
    """The path of a local folder or file.

    Raises:
        Refused: there is nothing there.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise Refused(f"{setting} = {name!r}: no such file or folder; a Hub name is written owner/name")
    return path


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def is_offline() -> bool:
    # As huggingface_hub reads them.
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def connect() -> None:
    """Set `HF_HUB_OFFLINE` for this process if the Hub gives no answer; any answer, an error too, is one."""
    if is_offline():
        return
    answered = threading.Event()

    def ask() -> None:
        import requests

        # Any exception means no answer: an endpoint that is no URL raises urllib3's own.
        with contextlib.suppress(Exception):
            requests.head(endpoint(), timeout=_CONNECT_SECONDS, allow_redirects=False)
            answered.set()

    # A thread, because resolving a name knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if not answered.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"


def refusal(setting: str, name: str, error: Exception) -> Refused:
    """What to raise when a Hugging Face library could not load `name`: out of reach, or an error the Hub gave."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in _MACHINE_ERRORS:
            raise cause  # a full disk here is no fault of the Hub's
    reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
    named = label(setting, name)
    if is_offline():
        if not any(type(cause).__name__ in _NOT_TO_BE_HAD for cause in causes):
            return Refused(f"{named}: what the cache holds of it cannot be loaded: {reason}")
        tried = f"no connection to {endpoint()} and not in the cache"
        return HubOutOfReach(f"{named}: {tried}; {WAYS_ON}")
    return Refused(f"{named}: the Hub ({endpoint()}) does not give it: {reason}")


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from, or in the course of."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
