"""A model saved as Hugging Face files that PyTorch and TensorFlow users can load."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.numpy
from transformers import modeling_tf_pytorch_utils

from tf_mlm.errors import as_os_error
from tf_mlm.model.architectures import architecture_of
from tf_mlm.model.protocol import MaskedLanguageModel

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast


def save_model(model: MaskedLanguageModel, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write config, tokenizer and `model.safetensors`, with the names and the layout of PyTorch, to `folder`.

    The names of transformers' own TensorFlow writer cannot be read by PyTorch users. Tied weights are written once, as
    PyTorch does.

    Raises:
        OSError: a file cannot be written.
        safetensors.SafetensorError: the weights cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for variable in model.weights:
        name, is_transposed = pytorch_name(variable)
        array = variable.numpy()
        arrays[name] = array.T.copy() if is_transposed else array
    for name, trained in architecture_of(model.config.model_type).shared_weights.items():
        if trained in arrays:  # a classification model has no such head
            arrays[name] = arrays[trained]
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors makes it readable for the owner alone
    save_config_and_tokenizer(model, tokenizer, folder)


def pytorch_name(variable: Any) -> tuple[str, bool]:
    """The name of a variable in PyTorch's files, and whether PyTorch stores its transpose."""
    convert: Any = modeling_tf_pytorch_utils.convert_tf_weight_name_to_pt_weight_name
    name, transpose = convert(variable.name, tf_weight_shape=variable.shape, name_scope=None)
    return name, transpose is modeling_tf_pytorch_utils.TransposeType.SIMPLE


def save_config_and_tokenizer(model: MaskedLanguageModel, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write `config.json` and the tokenizer's files to `folder`.

    Raises:
        OSError: a file cannot be written.
    """
    model_config: Any = type(model.config).from_dict(model.config.to_dict())
    model_config.architectures = [type(model).__name__]
    model_config.save_pretrained(folder)
    with as_os_error(Exception):  # the tokenizers package raises plain exceptions
        tokenizer.save_pretrained(folder)
