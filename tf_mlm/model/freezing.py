"""Freezes the weights that `model.train` does not select: they get no gradient and no optimizer state."""

from collections.abc import Sequence
from typing import Any

from tf_mlm.errors import Refused
from tf_mlm.model.saving import pytorch_name

ALL, HEAD = "all", "head"


def freeze(model: Any, train: str | Sequence[str], newly_initialized: Sequence[str]) -> None:
    """Make only the weights that `train` selects trainable.

    Weights that the head and the encoder share belong to the encoder.

    Args:
        model: a built `TrainingStep`.
        train: `all`; `head`, the weights outside the encoder and the newly initialized ones; or a list of names. A name
            is `head` or a part of the name of weights in `model.safetensors`, such as `layer.5` or `LayerNorm`.
        newly_initialized: names of the variables that are missing from the checkpoint.

    Raises:
        Refused: a name selects no weight.
    """
    names = [train] if isinstance(train, str) else list(train)
    if ALL in names:
        return
    encoder = getattr(model, model.base_model_prefix)
    in_encoder = {weight.name for weight in encoder.weights} - set(newly_initialized)
    trained: set[str] = set()
    for name in names:
        selected = {weight.name for weight in model.trainable_weights if _is_selected(weight, name, in_encoder)}
        if not selected:
            parts = dict.fromkeys(_group(pytorch_name(weight)[0]) for weight in model.trainable_weights)
            raise Refused(
                f"model.train: {name!r} is not a part of the name of a weight of this model; choose all, head, or from "
                f"{', '.join(parts)}"
            )
        trained |= selected
    model.trained_names = frozenset(trained)


def _is_selected(weight: Any, name: str, in_encoder: set[str]) -> bool:
    if name == HEAD:
        return weight.name not in in_encoder
    return f".{name.strip('.')}." in f".{pytorch_name(weight)[0]}."


def _group(name: str) -> str:
    """The part of the name of a weight up to the number of its layer, or else without its last component."""
    components = name.split(".")
    number = next((place for place, component in enumerate(components) if component.isdigit()), None)
    return ".".join(components[: number + 1] if number is not None else components[:-1])
