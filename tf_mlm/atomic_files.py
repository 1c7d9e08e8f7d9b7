"""Atomic writes: a file or a directory appears under its name only when it is complete."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tf_mlm.errors import Refused

TEMPORARY, _REPLACED = ".tmp", ".replaced"
"""Suffixes of temporary names, and of an old directory while it is replaced."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a temporary file in the directory of `path` and rename it to `path`.

    Raises:
        OSError: the file cannot be written; `path` keeps its old content.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def require_writable(path: Path, flag: str) -> None:
    """Check that the file of a flag can be written, before a long computation.

    Raises:
        Refused: it cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(0, "it is read-only")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise Refused(f"{flag} {path}: cannot be written: {error.strerror}; choose another file") from None


@contextlib.contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """A temporary directory that replaces `folder` at the end of the block, and is removed if the block raises.

    Replacing a directory takes two renames; after a kill between them, `recover` restores the old directory.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=TEMPORARY, dir=folder.parent))
    replaced = folder.parent / f".{folder.name}{_REPLACED}"
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        recover_folder(folder)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        recover_folder(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Restore `folder` if it was renamed and not yet replaced."""
    replaced = folder.parent / f".{folder.name}{_REPLACED}"
    if replaced.exists() and not folder.exists():
        os.replace(replaced, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(parent: Path) -> None:
    """Restore the directories in `parent` that a kill left renamed, and remove temporary files and directories."""
    for replaced in parent.glob(f".*{_REPLACED}"):
        recover_folder(parent / replaced.name.removesuffix(_REPLACED)[1:])
    remove(parent.glob(f".*{TEMPORARY}"))


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
