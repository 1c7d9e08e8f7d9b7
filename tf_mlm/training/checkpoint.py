"""Checkpoints: everything a run needs to go on as if it had never stopped.

The order of the data, the masks and dropout are functions of the seed and the step, so the step is all there is to
keep of them; what was best so far is in metrics.jsonl. What remains is weights, optimizer and the epoch's metric sums.
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

from tf_mlm.errors import Refused
from tf_mlm.training.run_directory import written_aside

_ARRAYS, _STATE = "arrays.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: updates done.
        logged_sums: summed loss and number of labels at the last step event, as the epoch under way counts them.
        metrics_bytes: length of metrics.jsonl, whose rows beyond it the resumed run writes again.
        seconds: time spent in training so far.
        fingerprint: of config, data and model; only the run that wrote a checkpoint may go on from it.
    """

    step: int
    logged_sums: tuple[float, float]
    metrics_bytes: int
    seconds: float
    fingerprint: str


def save_checkpoint(folder: Path, progress: Progress, variables: dict[str, Any], keep: int) -> None:
    """Write `folder`/step-N, checksummed and renamed into place, and remove all but the newest `keep`."""
    folder.mkdir(exist_ok=True)
    for left_by_a_kill in folder.glob(".step-*"):
        shutil.rmtree(left_by_a_kill)
    with written_aside(folder / f"step-{progress.step:010d}") as aside:
        arrays = {name: np.asarray(variable.numpy(), order="C") for name, variable in variables.items()}
        safetensors.numpy.save_file(arrays, aside / _ARRAYS)
        state = json.dumps(asdict(progress) | {"checksum": _checksum(aside / _ARRAYS)}, sort_keys=True)
        (aside / _STATE).write_text(json.dumps({"state": state, "checksum": xxhash.xxh3_128_hexdigest(state.encode())}))
        for name in (_ARRAYS, _STATE):
            with open(aside / name, "rb") as file:
                os.fsync(file.fileno())
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, fingerprint: str) -> tuple[Progress, dict[str, np.ndarray]] | None:
    """The newest sound checkpoint, or None; one that is damaged is passed over, after a line that says why.

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
            progress = Progress(**state | {"logged_sums": tuple(state["logged_sums"])})
        except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
            print(f"checkpoint {path.name} passed over: {type(error).__name__}: {error}")
            continue
        if progress.fingerprint != fingerprint:
            raise Refused(
                f"--resume {folder.parent}: its checkpoint is of another text, model or precision than are here now"
            )
        return progress, arrays
    if _newest_first(folder):
        raise Refused(f"--resume {folder.parent}: none of its checkpoints can be read; start a new run")
    return None


def restore_variables(variables: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Assign `arrays` to the variables of the same names, which must be the same."""
    assert variables.keys() == arrays.keys(), variables.keys() ^ arrays.keys()
    for name, variable in variables.items():
        variable.assign(arrays[name])


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


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
