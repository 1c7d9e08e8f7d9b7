"""Freezes the layers that `model.train` does not select: they get no gradient and no optimizer state."""

from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from tf_mlm.errors import Refused
from tf_mlm.model.saving import pytorch_name

ALL, HEAD = "all", "head"


def freeze(model: Any, train: str | Sequence[str], newly_initialized: Sequence[str]) -> None:
    """Make only the layers that `train` selects trainable. Weights that two layers share belong to the encoder.

    Args:
        model: a built transformers model.
        train: `all`; `head`, the layers outside the encoder and the newly initialized ones; or a list of names. A name
            is `head` or a part of the name of weights in `model.safetensors`, such as `layer.5` or `embeddings`.
        newly_initialized: names of the variables that are missing from the checkpoint.

    Raises:
        Refused: a name selects no layer.
    """
    names = [train] if isinstance(train, str) else list(train)
    if ALL in names:
        return
    encoder = getattr(model, model.base_model_prefix)
    in_encoder = {id(weight) for weight in encoder.weights if weight.name not in newly_initialized}
    owners = [layer for layer in model.submodules if isinstance(layer, keras.layers.Layer) and layer._trainable_weights]
    unused = set(names)
    for layer in owners:
        found = {
            name for name in names for weight in layer._trainable_weights if _is_selected(weight, name, in_encoder)
        }
        unused -= found
        layer._trainable = bool(found)  # the property would also set the layers inside this one
    if unused:
        kinds = sorted({_group(pytorch_name(weight)[0]) for weight in model.weights})
        raise Refused(
            f"model.train: {min(unused)!r} is not part of the name of a layer of this model; choose all, head, or from "
            f"{', '.join(kinds)}"
        )


def _is_selected(weight: Any, name: str, in_encoder: set[int]) -> bool:
    if name == HEAD:
        return id(weight) not in in_encoder
    return f".{name.strip('.')}." in f".{pytorch_name(weight)[0]}."


def _group(name: str) -> str:
    """The part of the name of a weight up to the number of its layer, or else without its last component."""
    components = name.split(".")
    number = next((place for place, component in enumerate(components) if component.isdigit()), None)
    return ".".join(components[: number + 1] if number is not None else components[:-1])
