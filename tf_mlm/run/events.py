"""The events of a run, `metrics.jsonl`: typed, written by `append`, read by `read_events`.

history.csv, the plot, TensorBoard's files and the model card are derived from them. A value that JSON cannot hold,
such as an infinite perplexity, is None after reading.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from tf_mlm.errors import Refused
from tf_mlm.json_text import dump_json
from tf_mlm.model.metrics import LOSS, find_metric

Fills = list[list[tuple[str, float]]]
"""For each example sentence, the most likely tokens of its first mask with their probabilities."""

_PREFIXES = {"val_": "validation", "second_val_": "second_validation"}  # of metrics in JSON


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base class of all events.

    Attributes:
        step: number of updates made before the event.
        validation: values of the metrics by name, in events that report a validation; `val_<name>` in JSON.
        second_validation: likewise for `data.second_validation_dataset`; `second_val_<name>` in JSON.
    """

    kind: ClassVar[str]

    step: int = 0
    epoch: int = 0
    validation: Mapping[str, float | None] | None = None
    second_validation: Mapping[str, float | None] | None = None

    @property
    def val_loss(self) -> float | None:
        """The validation loss; None if it is missing or not finite."""
        return finite_or_none((self.validation or {}).get(LOSS.name))

    def as_dict(self) -> dict[str, Any]:
        """The event as a JSON object. A field that is None because it does not apply is omitted."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        found = {"event": self.kind, "epoch": values.pop("epoch"), "step": values.pop("step")}
        if "loss" in values:
            found["loss"] = values.pop("loss")  # None if every step was skipped
        for prefix, key in _PREFIXES.items():
            found |= {f"{prefix}{name}": value for name, value in (values.pop(key) or {}).items()}
        return found | {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build an event from a JSON object. Unknown keys are ignored.

        Raises:
            ValueError: a value has the wrong type.
        """
        known = {each.name for each in fields(cls)} - {*_PREFIXES.values()}
        arguments: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        for prefix, name in _PREFIXES.items():
            found = {
                key.removeprefix(prefix): value
                for key, value in values.items()
                if key.startswith(prefix) and find_metric(key.removeprefix(prefix))
            }
            arguments[name] = found or None
        try:
            return _ADAPTERS[cls].validate_python(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(frozen=True, kw_only=True)
class StartEvent(Event):
    """The model before training.

    Attributes:
        unigram_entropy: unigram entropy of the training text, in nats per token.
        mlm_probability: share of the tokens masked in training.
        validation_mlm_probability: share of the tokens masked in validation.
        second_validation_name: short name of `data.second_validation_dataset`; None if there is none.
        schedule: (step, learning rate) at some steps of the training, counted from 1.
        matmul_peak_tokens_per_second: speed of the matrix products of a step alone; None if not measured.
    """

    kind = "start"

    unigram_entropy: float | None = None
    steps_per_epoch: int = 0
    num_train_steps: int = 0
    num_warmup_steps: int = 0
    mlm_probability: float | None = None
    validation_mlm_probability: float | None = None
    second_validation_name: str | None = None
    schedule: list[tuple[int, float]] | None = None
    matmul_peak_tokens_per_second: float | None = None
    fills: Fills | None = None


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """The steps since the previous step event.

    Attributes:
        loss: mean over the masked tokens of these steps; None if all of them were skipped.
        learning_rate: learning rate of the last of these steps.
        tokens_per_second: real tokens, without padding.
        skipped_steps: number of skipped steps of the run so far.
        mfu: positions per second, relative to the speed of the matrix products alone; None if not measured.
    """

    kind = "step"

    loss: float | None = None
    learning_rate: float | None = None
    skipped_steps: int = 0
    tokens_per_second: float | None = 0.0
    mfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochEvent(Event):
    """An epoch and the validation at its end.

    Attributes:
        loss: token-weighted mean over the training steps of the epoch; None if all of them were skipped.
        seconds: duration of training and validation in this epoch.
    """

    kind = "epoch"

    loss: float | None = None
    learning_rate: float | None = None
    skipped_steps: int = 0
    tokens_per_second: float | None = 0.0
    mfu: float | None = None
    seconds: float | None = 0.0


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """The end of a finished run.

    Attributes:
        best_epoch: 0 if no epoch was better than the model before training.
        seconds: duration of training and validation in the run.
        stopped_early: whether early stopping ended the run.
        rolled_back: the steps from which and to which the run rolled back; None if it never did.
    """

    kind = "end"

    best_epoch: int = 0
    best_val_loss: float | None = None
    seconds: float = 0.0
    skipped_steps: int = 0
    num_tokens: int | None = None
    stopped_early: bool = False
    rolled_back: tuple[int, int] | None = None
    fills: Fills | None = None


@dataclass(frozen=True, kw_only=True)
class NonFiniteEvent(Event):
    """The end of a run whose loss was not finite again after a rollback.

    Attributes:
        sequences: rows of the training data in the failing steps.
    """

    kind = "non_finite"

    sequences: list[int] = field(default_factory=list)


_KINDS: dict[str, type[Event]] = {
    kind.kind: kind for kind in (StartEvent, StepEvent, EpochEvent, EndEvent, NonFiniteEvent)
}
_ADAPTERS: dict[type[Event], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in _KINDS.values()}


class Events(tuple[Event, ...]):
    """The events of a run in order. It may be incomplete or empty."""

    @classmethod
    def from_dicts(cls, objects: list[dict[str, Any]]) -> Self:
        return cls(_parse(each) for each in objects)

    @property
    def start(self) -> StartEvent | None:
        return next((event for event in self if isinstance(event, StartEvent)), None)

    @property
    def steps(self) -> list[StepEvent]:
        return [event for event in self if isinstance(event, StepEvent)]

    @property
    def epochs(self) -> list[EpochEvent]:
        return [event for event in self if isinstance(event, EpochEvent)]

    @property
    def end(self) -> EndEvent | None:
        return next((event for event in self if isinstance(event, EndEvent)), None)

    @property
    def has_diverged(self) -> bool:
        return bool(self) and isinstance(self[-1], NonFiniteEvent)

    @property
    def best(self) -> StartEvent | EpochEvent | None:
        """The event with the lowest finite validation loss, the first one among equals; None if there is none.

        It is the start event if no epoch was better than the model before training.
        """
        candidates = [event for event in self if isinstance(event, StartEvent | EpochEvent)]
        finite = [event for event in candidates if event.val_loss is not None]
        return min(finite, key=lambda event: event.val_loss or 0.0, default=None)

    @property
    def steps_per_epoch(self) -> float | None:
        """Number of updates per epoch; None if no event records it."""
        if self.start and self.start.steps_per_epoch:
            return self.start.steps_per_epoch
        return next((event.step / event.epoch for event in self.epochs), None)

    @property
    def skipped_steps(self) -> int:
        return max((getattr(event, "skipped_steps", 0) for event in self), default=0)

    def has_stopped_early(self, patience: int) -> bool:
        """Whether none of the last `patience` epochs is better than all epochs before them; False if patience is 0."""
        losses = [math.inf if event.val_loss is None else event.val_loss for event in self.epochs]
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def append_event(path: Path, event: Event) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(dump_json(event.as_dict()) + "\n")


def read_events(path: Path) -> Events:
    """The events of `metrics.jsonl`. An incomplete last line, left by a kill, is ignored.

    Raises:
        Refused: a line is damaged.
    """
    if not path.exists():
        return Events()
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines.pop()  # after the last newline: nothing, or an incomplete line
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(_parse(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Refused(f"{path}: line {number} is damaged: {error}; start a new run") from None
    return Events(events)


def _parse(values: Any) -> Event:
    if not isinstance(values, dict) or values.get("event") not in _KINDS:
        raise ValueError('not an object with a known "event"')
    return _KINDS[values["event"]].from_dict(values)
