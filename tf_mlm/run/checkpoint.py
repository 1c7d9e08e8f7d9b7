"""Checkpoints: everything a run needs to go on as if it had never stopped.

The order of the data, the masks and dropout are functions of the seed and the step, so the step is all there is to
keep of them; what was best so far is in metrics.jsonl. What remains is weights, optimizer, the epoch's metric sums, and
what has been skipped. A checkpoint holds finite numbers only.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash

from tf_mlm.atomic_files import atomic_directory
from tf_mlm.errors import NonFiniteLoss, Refused

_ARRAYS, _STATE, _BEST_MODEL = "arrays.safetensors", "state.json", "model"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: updates done.
        logged_sums: summed loss and number of labels at the last step event, as the epoch under way counts them.
        metrics_bytes: length of metrics.jsonl, whose rows beyond it the resumed run writes again.
        seconds: time spent in training so far.
        fingerprint: of config, data and model; only the run that wrote a checkpoint may go on from it.
        epoch_seconds: time spent in the epoch under way.
        skipped_steps: steps without an update, because their loss or gradient was not finite.
        bad_steps: how many of those there were in a row until now.
        rolled_back: from which step to which, after too many of those in a row; None if never.
    """

    step: int
    logged_sums: tuple[float, float]
    metrics_bytes: int
    seconds: float
    fingerprint: str
    epoch_seconds: float = 0.0
    skipped_steps: int = 0
    bad_steps: int = 0
    rolled_back: tuple[int, int] | None = None

    @property
    def next_batch(self) -> int:
        """Number of the next step's batch in the order of the data, counted from 0: ahead of the step by what a run
        that went back has left out."""
        return self.step + (self.rolled_back[0] - self.rolled_back[1] if self.rolled_back else 0)


def save_checkpoint(
    folder: Path, progress: Progress, variables: dict[str, Any], keep: int, best_model: Path | None = None
) -> None:
    """Write `folder`/step-N, checksummed and renamed into place, and remove all but the newest `keep`.

    Those of later steps are removed too: the run has gone on from an earlier one, since they are damaged.

    Args:
        best_model: the folder, if there is one yet, that `restore_best_model` shall put back. Kept by links to its
            files, which take neither time nor room until another model is better.

    Raises:
        NonFiniteLoss: a variable holds a number that is not finite; nothing was written.
    """
    arrays = {name: np.asarray(variable.numpy(), order="C") for name, variable in variables.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteLoss(f"a number of the {name.partition('/')[0]} is not finite after step {progress.step}", 1)
    folder.mkdir(exist_ok=True)
    path = _path(folder, progress)
    with atomic_directory(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary / _ARRAYS)
        if best_model is not None and best_model.exists():
            shutil.copytree(best_model, temporary / _BEST_MODEL, copy_function=_link)
        state = json.dumps(asdict(progress) | {"checksum": _checksum(temporary / _ARRAYS)}, sort_keys=True)
        (temporary / _STATE).write_text(
            json.dumps({"state": state, "checksum": xxhash.xxh3_128_hexdigest(state.encode())})
        )
    newest_first = _newest_first(folder)
    this = newest_first.index(path)
    for other in newest_first[:this] + newest_first[this + keep :]:
        shutil.rmtree(other)


def load_checkpoint(
    folder: Path, fingerprint: str, *, before_bad_steps: bool = False
) -> tuple[Progress, dict[str, np.ndarray]] | None:
    """The newest sound checkpoint, or None; one that is damaged is passed over, after a line that says why.

    Args:
        before_bad_steps: pass over those that a signal had written between bad steps as well.

    Raises:
        Refused: it belongs to another config, text, model or precision; or there are only damaged ones.
    """
    for path in _newest_first(folder):
        try:
            wrapped = json.loads((path / _STATE).read_text())
            state = json.loads(wrapped["state"])
            if xxhash.xxh3_128_hexdigest(wrapped["state"].encode()) != wrapped["checksum"]:
                raise ValueError(f"{_STATE} does not match its checksum")
            if _checksum(path / _ARRAYS) != state.pop("checksum"):
                raise ValueError(f"{_ARRAYS} does not match its checksum")
            arrays = safetensors.numpy.load_file(path / _ARRAYS)
            for name in ("logged_sums", "rolled_back"):
                state[name] = state[name] and tuple(state[name])
            progress = Progress(**state)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            print(f"checkpoint {path.name} passed over: {type(error).__name__}: {error}")
            continue
        if progress.fingerprint != fingerprint:
            raise Refused(
                f"--resume {folder.parent}: its checkpoint is of another text, model or precision than are here now"
            )
        if not (before_bad_steps and progress.bad_steps):
            return progress, arrays
    if before_bad_steps:
        return load_checkpoint(folder, fingerprint)
    if _newest_first(folder):
        raise Refused(f"--resume {folder.parent}: none of its checkpoints can be read; start a new run")
    return None


def restore_variables(variables: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Assign `arrays` to the variables of the same names, which must be the same."""
    assert variables.keys() == arrays.keys(), variables.keys() ^ arrays.keys()
    for name, variable in variables.items():
        variable.assign(arrays[name])


def restore_best_model(folder: Path, progress: Progress, best_model: Path) -> None:
    """Make `best_model` what it was when the checkpoint of `progress` was saved, which is nothing before an epoch."""
    kept = _path(folder, progress) / _BEST_MODEL
    if kept.exists():
        with atomic_directory(best_model) as temporary:
            shutil.copytree(kept, temporary, copy_function=_link, dirs_exist_ok=True)
    else:
        shutil.rmtree(best_model, ignore_errors=True)


def model_variables(model: Any, only: str = "") -> dict[str, Any]:
    """Every variable that training changes, or those of the group `only`, by names that outlast the process."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    model.create_optimizer_weights()
    groups = {
        "weight": model.weights,
        "optimizer": inner.variables(),
        "metric": [variable for metric in model.metrics for variable in metric.variables],
    }
    if optimizer is not inner:
        groups["loss_scale"] = [optimizer._loss_scale.current_loss_scale, optimizer._loss_scale.counter]
    return {
        f"{group}/{i}": variable
        for group, variables in groups.items()
        if only in ("", group)
        for i, variable in enumerate(variables)
    }


def _path(folder: Path, progress: Progress) -> Path:
    return folder / f"step-{progress.step:010d}"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
