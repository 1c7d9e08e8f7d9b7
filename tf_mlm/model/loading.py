"""Tokenizer and model: from the Hub, from a folder, or new. And back to a folder that every library reads."""

import re
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tf_keras as keras
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.modeling_tf_pytorch_utils import TransposeType, convert_tf_weight_name_to_pt_weight_name

from tf_mlm import hub
from tf_mlm.config import ModelConfig
from tf_mlm.errors import Refused, as_os_error
from tf_mlm.model.masked_lm import MODEL_CLASSES
from tf_mlm.model.pretrained_files import check_tokenizer_files, find_weights

_NEW_MODEL_POSITIONS = 512
_MAX_CHARACTERS = 1000  # of a new vocabulary, the trainer's own default


def load_tokenizer(config: ModelConfig, documents: Iterable[str]) -> Any:
    """The fast tokenizer of `config.name`; for a new model a WordPiece one, trained on `documents`.

    Raises:
        Refused: there is none, it lacks a mask or padding token, or it is made of files from elsewhere.
    """
    if not config.name:
        return build_tokenizer(documents, config.vocab_size)
    check_tokenizer_files(config)
    tokenizer = _from_pretrained(transformers.AutoTokenizer, config, use_fast=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise Refused(f"model.name = {config.name!r}: has no fast tokenizer (tokenizer.json); convert it first")
    for kind in ("mask", "pad"):
        if getattr(tokenizer, f"{kind}_token") is None:
            raise Refused(f"model.name = {config.name!r}: its tokenizer has no {kind} token, which masking needs")
    return tokenizer


def build_tokenizer(documents: Iterable[str], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A lower-case WordPiece tokenizer in the manner of BERT's, its vocabulary trained on `documents`.

    The same documents give the same vocabulary. They are gone through twice.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers characters in the order of a hash map, another one in every process, breaks ties between
    # merges by those numbers, and ties between rare characters at random. Those that it is given keep their order.
    counts: Counter[str] = Counter()
    inside_words: set[str] = set()
    for document in documents:
        text = normalizer.normalize_str(document or "")  # a Hub dataset may hold nulls
        counts.update(text)
        inside_words.update(re.findall(r"(?<=\S)\S", text))
    characters = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:_MAX_CHARACTERS]
    inside = [f"##{c}" for c in sorted(inside_words.intersection(characters) - set(string.punctuation))]
    learner.train_from_iterator(
        (document or "" for document in documents),
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=special + inside,
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            show_progress=False,
        ),
    )
    backend = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    backend.add_special_tokens(special)
    backend.normalizer = normalizer
    backend.pre_tokenizer = learner.pre_tokenizer
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    return transformers.DistilBertTokenizerFast(tokenizer_object=backend, model_max_length=_NEW_MODEL_POSITIONS)


def load_model(config: ModelConfig, tokenizer: Any, sequence_length: int) -> tuple[Any, list[str]]:
    """The model to train, and the names of its weights that start fresh because the checkpoint has none for them.

    Raises:
        Refused: no such model, another architecture, encoder weights missing, a vocabulary that does not fit, or
            sequences longer than its positions.
    """
    if not config.name:
        model_config: transformers.PretrainedConfig = transformers.DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=config.dim,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            hidden_dim=config.hidden_dim,
            dropout=config.dropout,
            attention_dropout=config.dropout,
            # As BERT's 0.02 at width 768: a narrow model started with it hardly learns to attend.
            initializer_range=0.02 * (768 / config.dim) ** 0.5,
            max_position_embeddings=max(_NEW_MODEL_POSITIONS, sequence_length),
            pad_token_id=tokenizer.pad_token_id,
        )
    else:
        model_config = load_model_config(config)
    where = f"model.name = {config.name!r}"
    if len(tokenizer) > model_config.vocab_size:
        raise Refused(
            f"{where}: the tokenizer has {len(tokenizer):,} tokens, the model {model_config.vocab_size:,}; "
            "they do not belong together"
        )
    positions = max_sequence_length(model_config)
    if sequence_length > positions:
        raise Refused(
            f"data.sequence_length = {sequence_length}: {config.name or 'the model'} has {positions} positions"
        )
    model_class = MODEL_CLASSES[model_config.model_type]
    if not config.name or config.from_config:
        model = model_class(model_config)
        model.build_in_name_scope()
        if not config.name:
            _start_positions_as_sinusoids(model)
        return model, []
    folder = find_weights(config)
    model, info = _from_pretrained(model_class, config, folder, config=model_config, output_loading_info=True)
    encoder = [name for name in info["missing_keys"] if model.base_model_prefix in name]
    if encoder:
        raise Refused(
            f"{where}: {len(encoder)} of the encoder's weights are missing, {encoder[0]} among them; "
            "name a complete checkpoint, or set model.from_config = true for random weights"
        )
    return model, sorted(info["missing_keys"])


def _start_positions_as_sinusoids(model: Any) -> None:
    """Vaswani et al. 2017, section 3.5, as long as a row of the word embeddings.

    From random positions a small model needs thousands of updates to find out what it means to be next to a token.
    """
    embeddings = model.distilbert.embeddings
    angles = np.arange(model.config.max_position_embeddings)[:, None] / 10_000 ** (
        np.arange(0, model.config.dim, 2) / model.config.dim
    )
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, : model.config.dim]
    embeddings.position_embeddings.assign(waves * model.config.initializer_range * 2**0.5)


def load_trained(name: str) -> tuple[Any, Any]:
    """A trained model in float32, whatever the precision in force, and its tokenizer.

    Raises:
        Refused: there is none, or it cannot be used as a masked language model.
    """
    config = ModelConfig(name=name)
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        tokenizer = load_tokenizer(config, ())
        model, new_weights = load_model(config, tokenizer, sequence_length=1)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    check_is_trained(name, new_weights)
    return model, tokenizer


def check_is_trained(name: str, new_weights: list[str]) -> None:
    """Raises Refused where a model has no masked language modelling head but a fresh one."""
    if new_weights:
        raise Refused(
            f"{name}: lacks {len(new_weights)} weights of the head that predicts words ({', '.join(new_weights)}); "
            "train it first, with train.py --model"
        )


def load_model_config(config: ModelConfig) -> transformers.PretrainedConfig:
    """The config of `config.name`.

    Raises:
        Refused: there is none, or its architecture is not one that can be trained here.
    """
    if hub.is_local(config.name):
        folder = hub.check_local(config.name, "model.name")
        if not (folder / "config.json").is_file():
            raise Refused(
                f"model.name = {config.name!r}: holds no config.json; name a folder written by save_pretrained"
            )
    # Said, because unsaid a config that names code of its own makes the library ask on the terminal.
    model_config = _from_pretrained(transformers.AutoConfig, config, trust_remote_code=False)
    if model_config.model_type not in MODEL_CLASSES:
        raise Refused(
            f"model.name = {config.name!r}: its architecture is {model_config.model_type!r}; "
            f"those that can be trained are {', '.join(MODEL_CLASSES)}"
        )
    return model_config


def max_sequence_length(model_config: transformers.PretrainedConfig) -> int:
    """Positions that a sequence can take; RoBERTa counts them from the padding id + 1."""
    offset = (model_config.pad_token_id or 0) + 1 if model_config.model_type == "roberta" else 0
    return model_config.max_position_embeddings - offset


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write config, tokenizer and `model.safetensors` in PyTorch's names and layout, which TensorFlow reads as well.

    transformers' own TF writer uses names that no other library reads. Tied weights are written once, as PyTorch does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for variable in model.weights:
        name, transpose = convert_tf_weight_name_to_pt_weight_name(
            variable.name, tf_weight_shape=variable.shape, name_scope=None
        )
        array = variable.numpy()
        arrays[name] = array.T.copy() if transpose is TransposeType.SIMPLE else array
    if "predictions.decoder.bias" in arrays:
        # ALBERT: one bias under two names in PyTorch, two variables in TensorFlow, of which this one alone is trained.
        arrays["predictions.bias"] = arrays["predictions.decoder.bias"]
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    path.chmod(folder.stat().st_mode & 0o666)  # safetensors writes for the owner alone
    save_config_and_tokenizer(model, tokenizer, folder)


def save_config_and_tokenizer(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raises OSError where they cannot be written."""
    model_config = type(model.config).from_dict(model.config.to_dict())
    model_config.architectures = [f"{type(model).__name__}"]
    model_config.save_pretrained(folder)
    with as_os_error(Exception):  # of no other kind are the errors of the tokenizers' own writer
        tokenizer.save_pretrained(folder)


def _from_pretrained(loader: Any, source: ModelConfig, folder: Path | None = None, **options: Any) -> Any:
    is_local = hub.is_local(source.name)
    name = str(folder or (hub.check_local(source.name, "model.name") if is_local else source.name))
    try:
        return loader.from_pretrained(name, revision=source.revision or "main", **options)
    except Exception as error:  # the library lets through whatever its readers, parsers and transports raise
        if is_local:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise Refused(f"model.name = {source.name!r}: cannot be loaded: {reason}") from None
        raise hub.refusal("model.name", source.name, error) from None
