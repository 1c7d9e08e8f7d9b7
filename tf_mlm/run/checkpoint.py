"""Checkpoints: the state from which a run is resumed exactly.

Data order, masks and dropout are functions of the seed and the step, so a checkpoint has only the step, the weights,
the optimizer, the metric sums of the epoch and the counts of skipped steps. All its numbers are finite.
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
    """The progress of a run.

    Attributes:
        step: number of updates made.
        logged_sums: summed loss and number of labels of the current epoch at the last step event.
        metrics_bytes: length of metrics.jsonl; the resumed run writes later events again.
        seconds: time spent in training and validation.
        fingerprint: hash of config, data and model; a checkpoint is only loaded into the run that wrote it.
        epoch_seconds: time spent in the training steps of the current epoch.
        skipped_steps: number of steps without an update, because their loss or gradient was not finite.
        bad_steps: number of consecutive skipped steps up to `step`.
        rolled_back: the steps from which and to which the run rolled back; None if it never did.
        stream: position of the next batch in the stream of documents; None if the data is not streamed.
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
    stream: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        """The progress whose fields, by name, were written as JSON, which has no tuples."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state.items()
        }
        return cls(**fields)

    @property
    def next_batch(self) -> int:
        """Number of the next batch in the order of the data, counted from 0; a rollback skips batches."""
        return self.step + (self.rolled_back[0] - self.rolled_back[1] if self.rolled_back else 0)


def save_checkpoint(
    folder: Path, progress: Progress, variables: dict[str, Any], keep: int, best_model: Path | None = None
) -> None:
    """Write the directory `folder`/step-N atomically, with checksums, and remove all but the newest `keep`.

    Checkpoints of later steps are removed too: they are damaged, since the run continued from an earlier one.

    Args:
        best_model: directory of the best model, if there is one, for `restore_best_model`. Its files are hard-linked,
            which takes no time and no space until a better model replaces them.

    Raises:
        NonFiniteLoss: a variable has a value that is not finite; nothing was written.
    """
    arrays = {name: np.asarray(variable.numpy(), order="C") for name, variable in variables.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteLoss(
                f"a value of the {name.partition('/')[0]} is not finite after step {progress.step}",
                1,
                on_all_workers=False,  # only the chief saves checkpoints
            )
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
    """The newest intact checkpoint, or None. A damaged one is skipped with a line that says why.

    Args:
        before_bad_steps: also skip checkpoints that a signal wrote between bad steps.

    Raises:
        Refused: the checkpoint belongs to other settings, text, model or precision; or all checkpoints are damaged.
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
            progress = Progress.from_json(state)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            print(f"checkpoint {path.name} is damaged and skipped: {type(error).__name__}: {error}")
            continue
        if progress.fingerprint != fingerprint:
            raise Refused(
                f"--resume {folder.parent}: its checkpoint belongs to another text, model or precision; restore those, "
                "or start a new run"
            )
        if not (before_bad_steps and progress.bad_steps):
            return progress, arrays
    if before_bad_steps:
        return load_checkpoint(folder, fingerprint)
    if _newest_first(folder):
        raise Refused(f"--resume {folder.parent}: none of its checkpoints can be read; start a new run")
    return None


def restore_variables(variables: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Assign `arrays` to the variables of the same names."""
    assert variables.keys() == arrays.keys(), variables.keys() ^ arrays.keys()
    for name, variable in variables.items():
        variable.assign(arrays[name])


def restore_best_model(folder: Path, progress: Progress, best_model: Path) -> None:
    """Restore the directory `best_model` as it was when the checkpoint of `progress` was saved."""
    kept = _path(folder, progress) / _BEST_MODEL
    if kept.exists():
        with atomic_directory(best_model) as temporary:
            shutil.copytree(kept, temporary, copy_function=_link, dirs_exist_ok=True)
    else:
        shutil.rmtree(best_model, ignore_errors=True)


def model_variables(model: Any, only: str = "") -> dict[str, Any]:
    """Every variable that training changes, or those of the group `only`, by names that are the same in any process."""
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
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
