"""The run directory: its files, its lock and its names."""

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from tf_mlm.atomic_files import TEMPORARY, recover, remove, write_atomically
from tf_mlm.config import Config, dump_config
from tf_mlm.errors import Refused
from tf_mlm.json_text import dump_json
from tf_mlm.model.metrics import metrics_of
from tf_mlm.run.events import Event, Events, append_event, read_events

if TYPE_CHECKING:
    import numpy as np


LOCKS = Path("/proc/locks")
_QUIET_SECONDS = 600


class RunDirectory:
    """The directory of one run. Its lock is held until `release` or the end of the process."""

    def __init__(self, path: Path):
        self.path = path
        self._made_here = False
        self._lock = filelock.FileLock(path / ".lock", timeout=0)

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Create the directory and take its lock.

        Raises:
            Refused: the directory is not empty, cannot be written, or is locked by another process.
        """
        if path.exists() and not path.is_dir():
            raise Refused(f"--output-dir {path}: is a file; pass a directory")
        run = cls(path)
        try:
            run._made_here = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            run._take_lock("--output-dir")
        except OSError as error:
            raise Refused(
                f"--output-dir {path}: cannot be written: {error.strerror}; choose another directory"
            ) from None
        try:
            if run.metrics_path.exists() or run.config_path.exists():
                if run.is_finished():
                    raise Refused(f"--output-dir {path}: contains a finished run; choose a new directory")
                raise Refused(
                    f"--output-dir {path}: contains an unfinished run; continue it with --resume, or choose a new "
                    "directory"
                )
            names = {entry.name for entry in path.iterdir()} - {".lock"}
            if others := sorted(name for name in names if not (name.startswith(".") and name.endswith(TEMPORARY))):
                raise Refused(f"--output-dir {path}: is not empty (it contains {others[0]}); choose a new directory")
        except Refused:
            (path / ".lock").unlink(missing_ok=True)  # leave no lock file in a directory that is not a run
            run.release()
            raise
        recover(path)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Take the lock of an existing run.

        Raises:
            Refused: there is no run, or it is locked by another process.
        """
        run = cls(path)
        if not run.config_path.exists():
            raise Refused(f"--resume {path}: is not a run directory (it has no config.toml); pass a run directory")
        try:
            run._take_lock("--resume")
        except OSError as error:
            raise Refused(f"--resume {path}: cannot be written: {error.strerror}; change its permissions") from None
        recover(path)
        recover(run.checkpoints_path)
        try:
            curve = run.choose_curve()
        except Refused:
            run.release()
            raise
        remove(curve.parent.glob(f".{glob.escape(curve.name)}.*{TEMPORARY}"))
        return run

    def _take_lock(self, flag: str) -> None:
        try:
            # The operating system frees the lock of a process that dies; the file may remain.
            self._lock.acquire()
        except filelock.Timeout:
            raise Refused(
                f"{flag} {self.path}: another process is training in this directory; wait for it or stop it"
            ) from None

    def is_locked(self) -> bool:
        """Whether another process holds the lock."""
        try:
            with self._lock.acquire():
                return False
        except filelock.Timeout:
            return True

    def is_training(self) -> bool:
        """Whether a process is training in this directory. Does not take the lock: a run that starts now would fail.

        On Linux, from the list of held locks; on other systems, whether metrics.jsonl changed in the last 10 minutes.
        """
        try:
            if LOCKS.exists():
                inode = os.stat(self.path / ".lock").st_ino
                held = (line.split() for line in LOCKS.read_text().splitlines())
                return any(fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode) for fields in held)
            return time.time() - self.metrics_path.stat().st_mtime < _QUIET_SECONDS
        except FileNotFoundError:
            return False

    def release(self) -> None:
        self._lock.release()

    def discard(self) -> None:
        """Remove the files of a refused run, and its directory if `create` made it."""
        for path in (self.config_path, self.environment_path, self.train_hashes_path, self.path / ".lock"):
            path.unlink(missing_ok=True)
        self.release()
        if self._made_here:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @contextlib.contextmanager
    def discarded_if_refused(self) -> Iterator[None]:
        """Release the lock at the end of the block; `discard` the run if it is refused before it began to train."""
        try:
            yield
        except Refused:
            if not self.metrics_path.exists():
                self.discard()
            raise
        finally:
            self.release()

    def check_disk(self, needed: int) -> None:
        """Raise Refused if the disk is too small for a run of `needed` bytes, some of which may be written already."""
        present = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        free = free_bytes(self.path)
        if needed - present > free:
            raise Refused(
                f"--output-dir {self.path}: the run needs {describe_bytes(needed - present)} more, and "
                f"{describe_bytes(free)} are available; free disk space, choose a directory on another disk, or set "
                "checkpoint.keep = 1"
            )

    def locate(self, config: Config) -> Config:
        """`config` with the absolute paths of the model and the dataset that the run has recorded.

        A relative path in config.toml is valid only in the directory where the run was started.
        """
        recorded = self._read_environment().get("paths", {})

        def locate(typed: str, path: str) -> str:
            return path if path and (glob.has_magic(path) or os.path.exists(path)) else typed

        shares = config.data.mixture_shares
        paths = recorded.get("data.mixture", [""] * len(shares))
        mixture = tuple(f"{share} {locate(name, path)}" for (share, name), path in zip(shares, paths, strict=True))
        dataset, second = (
            locate(getattr(config.data, name), recorded.get(f"data.{name}", ""))
            for name in ("dataset", "second_validation_dataset")
        )
        return replace(
            config,
            model=replace(config.model, name=locate(config.model.name, recorded.get("model.name", ""))),
            data=replace(config.data, dataset=dataset, mixture=mixture, second_validation_dataset=second),
        )

    def load_train_hashes(self) -> "np.ndarray | None":
        """uint64, a hash of each training document; None if the run has recorded none."""
        import numpy as np  # not needed to print help

        path = self.train_hashes_path
        return np.load(path, allow_pickle=False) if path.exists() else None

    def write_train_hashes(self, hashes: "np.ndarray") -> None:
        import numpy as np

        content = io.BytesIO()
        np.save(content, hashes, allow_pickle=False)
        write_atomically(self.train_hashes_path, content.getvalue())

    config_path = property(lambda self: self.path / "config.toml")
    train_hashes_path = property(lambda self: self.path / "train_hashes.npy")
    environment_path = property(lambda self: self.path / "environment.json")
    metrics_path = property(lambda self: self.path / "metrics.jsonl")
    model_path = property(lambda self: self.path / "model")
    checkpoints_path = property(lambda self: self.path / "checkpoints")
    saved_model_path = property(lambda self: self.path / "saved_model")
    tensorboard_path = property(lambda self: self.path / "tensorboard")

    @property
    def name(self) -> str:
        """The name for display. In a locale that is not UTF-8, the name of the directory may not be valid text."""
        return _as_text(self.path.resolve().name)

    def write_config(self, config: Config) -> None:
        write_atomically(self.config_path, dump_config(config))

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Record `environment`, with the curve of the run and the directory that the curve belongs to."""
        run = {"curve": _as_text(self.choose_curve()), "directory": _as_text(self.path.resolve())}
        write_atomically(self.environment_path, dump_json(environment | run, indent=2) + "\n")

    @property
    def validation_fingerprint(self) -> str:
        """The hash of the validation documents; "" if the run has recorded none."""
        data = self._read_environment().get("data", {})
        parts = str(data.get("fingerprint", "")).split("-")  # training, validation, and the datasets of a mixture
        return parts[1] if len(parts) > 1 else ""

    def _read_environment(self) -> dict[str, Any]:
        if not self.environment_path.exists():
            return {}
        try:
            environment = json.loads(self.environment_path.read_text(encoding="utf-8"))
            if not isinstance(environment, dict):
                raise ValueError("not an object")
            return environment
        except (ValueError, RecursionError) as error:
            raise Refused(f"{self.environment_path}: is damaged: {error}; remove it") from None

    def append_event(self, event: Event) -> None:
        append_event(self.metrics_path, event)

    def read_events(self) -> Events:
        return read_events(self.metrics_path)

    def cut_events(self, num_bytes: int) -> None:
        """Cut metrics.jsonl to its length at a checkpoint: the resumed run writes the later events again."""
        if self.metrics_path.exists():
            kept = self.metrics_path.read_bytes()[:num_bytes]  # may be shorter after a crash of the system
            os.truncate(self.metrics_path, kept.rfind(b"\n") + 1)

    def choose_curve(self) -> Path:
        """The file of the curve in plots/. The curve of another run is never overwritten.

        A copied run directory gets its own file; a moved one keeps its file.
        """
        environment = self._read_environment()
        here = _as_text(self.path.resolve())
        curve, recorded = environment.get("curve"), environment.get("directory", here)
        if self.environment_path.exists():
            if not isinstance(curve, str) or not isinstance(recorded, str) or not Path(curve).name.endswith(".png"):
                raise Refused(f"{self.environment_path}: is damaged: curve = {curve!r}; remove it")
            if recorded == here or not os.path.exists(_as_path(recorded)):
                return Path("plots") / _as_path(curve).name  # an untrusted run may contain any path
        name = self.path.resolve().name
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(path for name in names if not (path := Path("plots") / f"{name}.png").exists())

    def is_finished(self) -> bool:
        return self.read_events().end is not None

    def write_history(self) -> None:
        """history.csv, one row per epoch, derived from metrics.jsonl."""
        table = io.StringIO(newline="")
        events = self.read_events()
        validation = (events.start and events.start.validation) or [metric.name for metric in metrics_of("masked")]
        metrics = [f"val_{name}" for name in validation]
        if events.start and events.start.second_validation:
            metrics += [f"second_val_{name}" for name in events.start.second_validation]
        columns = ("epoch", "step", "loss", *metrics, "learning_rate", "tokens_per_second", "seconds")
        writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(event.as_dict() for event in events.epochs)
        write_atomically(self.path / "history.csv", table.getvalue())


def _as_text(path: str | Path) -> str:
    """The path as valid text: in a locale that is not UTF-8, Python reads its bytes as unpaired surrogates."""
    return os.fsencode(path).decode(errors="replace")


def _as_path(text: str) -> Path:
    return Path(os.fsdecode(text.encode(errors="replace")))


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, or of its nearest existing parent."""
    return shutil.disk_usage(
        next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    ).free


def describe_bytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def new_run_path(config_name: str) -> Path:
    """runs/<config name>-<time>, with a number appended if that exists."""
    name = f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 1000))
    return next(path for path in candidates if not path.exists())


def newest_unfinished_run(root: Path) -> Path | None:
    """The resumable run in `root` that was started or resumed last.

    Finished, diverged and running runs are skipped. A diverged run would diverge again.
    """
    runs = [RunDirectory(path.parent) for path in root.glob("*/config.toml")]
    return max(
        (run.path for run in runs if _is_resumable(run)),
        key=lambda path: (path / "config.toml").stat().st_mtime,
        default=None,
    )


def _is_resumable(run: RunDirectory) -> bool:
    try:
        events = run.read_events()
        return events.end is None and not events.has_diverged and not run.is_locked()
    except (Refused, OSError):  # damaged or not writable: reported when it is passed by name
        return False
