"""The model: pretrained weights from the Hub or a directory, or a new model."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tf_keras as keras
import transformers
from transformers.configuration_utils import PretrainedConfig

from tf_mlm.config import ModelConfig
from tf_mlm.errors import Refused
from tf_mlm.model.architectures import ARCHITECTURES, max_sequence_length
from tf_mlm.model.label_model import HEADS, label_model_class
from tf_mlm.model.masked_lm import model_class
from tf_mlm.model.pretrained_files import PretrainedModel, find_weights
from tf_mlm.model.protocol import MaskedLanguageModel
from tf_mlm.model.tokenizer import NEW_MODEL_POSITIONS, load_pretrained_tokenizer

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast


def load_model(
    config: ModelConfig, tokenizer: "PreTrainedTokenizerFast", sequence_length: int
) -> tuple[MaskedLanguageModel, list[str]]:
    """The model to train: pretrained, newly initialized from the config of a pretrained one, or new.

    Returns:
        The model, and the names of its newly initialized weights, which are missing from the checkpoint. The list is
        empty if the settings request newly initialized weights for the whole model.

    Raises:
        Refused: the model cannot be loaded, its architecture is not supported, encoder weights are missing, the
            tokenizer has more tokens than the model, or `sequence_length` is larger than the number of its positions.
    """
    if not config.name:
        return _build_new_model(config, tokenizer, sequence_length), []
    pretrained = PretrainedModel.of(config)
    model_config = _load_config(pretrained)
    _check_fits(pretrained, model_config, tokenizer, sequence_length)
    if config.from_config:
        model = model_class(model_config.model_type)(model_config)
        model.build_in_name_scope()
        return model, []
    return _load_weights(pretrained, model_config, model_class(model_config.model_type))


def load_label_model(
    config: ModelConfig,
    tokenizer: "PreTrainedTokenizerFast",
    sequence_length: int,
    objective: str,
    label_names: Sequence[str],
) -> tuple[Any, list[str]]:
    """The classification model to fine-tune: pretrained, or newly initialized from the config of a pretrained one.

    Args:
        objective: a value of `objective.name` other than `masked`.
        label_names: names of the labels, recorded in the model's config.

    Returns:
        As `load_model`.

    Raises:
        Refused: as `load_model`.
    """
    pretrained = PretrainedModel.of(config)
    model_config = _load_config(pretrained)
    _check_fits(pretrained, model_config, tokenizer, sequence_length)
    is_other_head = objective_of(model_config) is not None and model_config.id2label != dict(enumerate(label_names))
    model_config.id2label = dict(enumerate(label_names))  # also sets num_labels
    model_config.label2id = {name: index for index, name in enumerate(label_names)}
    new_class = label_model_class(model_config.model_type, objective)
    if config.from_config:
        model = new_class(model_config)
        model.build_in_name_scope()
        return model, []
    model, missing = _load_weights(pretrained, model_config, new_class, ignore_mismatched_sizes=is_other_head)
    return model, _initialize_head(model) if is_other_head else missing


def _initialize_head(model: Any) -> list[str]:
    """Initialize all weights outside the encoder, which were trained for other labels. Returns their names."""
    initial = type(model)(model.config)
    initial.build_in_name_scope()
    in_encoder = {id(weight) for weight in getattr(model, model.base_model_prefix).weights}
    names = []
    for weight, value in zip(model.weights, initial.weights, strict=True):
        if id(weight) not in in_encoder:
            weight.assign(value)
            names.append(weight.name)
    return sorted(names)


def load_encoder(
    config: ModelConfig, sequence_length: int, *, policy: str = "float32"
) -> tuple[Any, "PreTrainedTokenizerFast"]:
    """A model whose head may be newly initialized, and its tokenizer.

    Args:
        sequence_length: minimum number of tokens that the model must accept.
        policy: name of the Keras precision policy of its layers; the global policy does not change.

    Raises:
        Refused: as `load_model`.
    """
    pretrained = PretrainedModel.of(config)
    model_config = _load_config(pretrained)
    tokenizer = load_pretrained_tokenizer(pretrained)
    _check_fits(pretrained, model_config, tokenizer, sequence_length)
    with _precision_policy(policy):
        model, _ = _load_weights(pretrained, model_config, model_class(model_config.model_type))
    return model, tokenizer


def load_trained_label_model(name: str, *, policy: str = "float32") -> tuple[Any, "PreTrainedTokenizerFast"]:
    """A fine-tuned classification model and its tokenizer.

    Args:
        name: a model directory or a Hub name.
        policy: name of the Keras precision policy of its layers; the global policy does not change.

    Raises:
        Refused: the model cannot be loaded, or it is not a classification model.
    """
    pretrained = PretrainedModel.named(name)
    model_config = _load_config(pretrained)
    objective = objective_of(model_config)
    if objective is None:
        raise pretrained.refusal("is not a classification model; train one with tf-mlm finetune")
    tokenizer = load_pretrained_tokenizer(pretrained)
    with _precision_policy(policy):
        model, missing = _load_weights(pretrained, model_config, label_model_class(model_config.model_type, objective))
    if missing:
        raise pretrained.refusal(f"weights of the classification head are missing: {', '.join(missing)}")
    return model, tokenizer


def objective_of(model_config: PretrainedConfig, class_name: str = "") -> str | None:
    """The value of `objective.name` that trains a classification model; None for another model.

    Args:
        class_name: name of the model's class, if the config does not record it.
    """
    name = class_name or (model_config.architectures or [""])[0]
    return next((objective for objective, head in HEADS.items() if name.endswith(head)), None)


@contextlib.contextmanager
def _precision_policy(name: str) -> Iterator[None]:
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def load_model_config(config: ModelConfig) -> PretrainedConfig:
    """The config of the pretrained model `config.name`.

    Raises:
        Refused: it cannot be loaded, or its architecture is not supported.
    """
    return _load_config(PretrainedModel.of(config))


def load_trained(
    name: str, *, revision: str = "", sequence_length: int = 1, policy: str = "float32"
) -> tuple[MaskedLanguageModel, "PreTrainedTokenizerFast"]:
    """A trained model and its tokenizer, for the commands that use one.

    Args:
        name: a model directory or a Hub name.
        revision: branch, tag or commit on the Hub; "" is the default branch.
        sequence_length: minimum number of tokens that the model must accept.
        policy: name of the Keras precision policy of its layers; the global policy does not change.

    Raises:
        Refused: as `load_model`, or weights of the head are missing.
    """
    pretrained = PretrainedModel.named(name, revision)
    model_config = _load_config(pretrained)
    if objective_of(model_config):
        raise pretrained.refusal(
            "is a classification model and has no masked language modeling head; use it with tf-mlm predict"
        )
    tokenizer = load_pretrained_tokenizer(pretrained)
    _check_fits(pretrained, model_config, tokenizer, sequence_length)
    with _precision_policy(policy):
        model, missing = _load_weights(pretrained, model_config, model_class(model_config.model_type))
    if missing:
        raise pretrained.refusal(
            f"{len(missing)} weights of the masked language modeling head are missing ({', '.join(missing)}); train it "
            "first with train.py --model"
        )
    return model, tokenizer


def _build_new_model(
    config: ModelConfig, tokenizer: "PreTrainedTokenizerFast", sequence_length: int
) -> MaskedLanguageModel:
    """A newly initialized DistilBERT with the sizes of `config`."""
    config_class: Any = transformers.DistilBertConfig
    model_config = config_class(
        vocab_size=len(tokenizer),
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        attention_dropout=config.dropout,
        # BERT's 0.02 at width 768, scaled: a narrow model initialized with 0.02 hardly learns to attend.
        initializer_range=0.02 * (768 / config.dim) ** 0.5,
        max_position_embeddings=max(NEW_MODEL_POSITIONS, sequence_length),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model_class(model_config.model_type)(model_config)
    model.build_in_name_scope()
    _initialize_positions(model)
    return model


def _initialize_positions(model: Any) -> None:
    """Set the position embeddings to sinusoids (Vaswani et al. 2017, section 3.5), scaled like the word embeddings.

    From random position embeddings a small model needs thousands of updates to learn which tokens are adjacent.
    """
    embeddings = model.distilbert.embeddings
    angles = np.arange(model.config.max_position_embeddings)[:, None] / 10_000 ** (
        np.arange(0, model.config.dim, 2) / model.config.dim
    )
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, : model.config.dim]
    embeddings.position_embeddings.assign(waves * model.config.initializer_range * 2**0.5)


def _load_config(pretrained: PretrainedModel) -> PretrainedConfig:
    folder, supported = pretrained.source.path, ", ".join(ARCHITECTURES)
    if folder and not (folder / "config.json").is_file():
        wanted = "a directory written by save_pretrained" if pretrained.setting else "a run or model directory"
        raise pretrained.refusal(f"has no config.json; pass {wanted}")
    # Checked before transformers' AutoConfig, which guesses a missing model_type from the path, or fails with a list of
    # all types.
    try:
        name = str(folder or pretrained.source.name)
        settings, _ = PretrainedConfig.get_config_dict(name, revision=pretrained.revision or "main")
        model_type = settings.get("model_type")
    except Exception as error:  # see `PretrainedModel.load`
        raise pretrained.loading_error(error) from None
    if model_type is None:
        raise pretrained.refusal(f"config.json has no model_type; pass a model of a supported type: {supported}")
    if model_type not in tuple(ARCHITECTURES):
        raise pretrained.refusal(
            f"the architecture {textwrap.shorten(repr(model_type), 60)} is not supported; pass one of {supported}"
        )
    # Explicit, because transformers asks on the terminal if a config names custom code.
    return pretrained.load(transformers.AutoConfig, trust_remote_code=False)


def _check_fits(
    pretrained: PretrainedModel, model_config: PretrainedConfig, tokenizer: "PreTrainedTokenizerFast", length: int
) -> None:
    if len(tokenizer) > model_config.vocab_size:
        raise pretrained.refusal(
            f"the tokenizer has {len(tokenizer):,} tokens, the model {model_config.vocab_size:,}; pass a model with "
            "its own tokenizer"
        )
    if length > (positions := max_sequence_length(model_config)):
        raise Refused(f"data.sequence_length = {length}: {pretrained.source.name} has {positions} positions; lower it")


def _load_weights(
    pretrained: PretrainedModel, model_config: PretrainedConfig, new_class: Any, **options: Any
) -> tuple[Any, list[str]]:
    """A model of `new_class` with its pretrained weights, and the names of the weights of its head that are missing."""
    folder = find_weights(pretrained)
    model, info = pretrained.load(new_class, folder, config=model_config, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    # BERT's pooler is part of the encoder in transformers, but masked language models are saved without it.
    if encoder := [name for name in missing if model.base_model_prefix in name and "/pooler/" not in name]:
        more = f" and {len(encoder) - 1} more" if len(encoder) > 1 else ""
        raise pretrained.refusal_without_weights(
            f"encoder weights are missing: {encoder[0]}{more}", "pass a complete checkpoint"
        )
    return model, missing
