"""The tokenizer: loaded with a pretrained model, or trained on a corpus for a new one."""

import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tf_mlm.config import ModelConfig
from tf_mlm.errors import Refused
from tf_mlm.model.pretrained_files import PretrainedModel, check_tokenizer_files

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

NEW_MODEL_POSITIONS = 512
"""Smallest number of positions of a new model, and the longest sequence of its tokenizer."""

_MAX_CHARACTERS = 1000  # in a new vocabulary; the trainer's default
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")  # of the supported architectures
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def load_tokenizer(
    config: ModelConfig, documents: Iterable[str], *, for_words: bool = False
) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of `config.name`, or for a new model a WordPiece tokenizer trained on `documents`.

    Args:
        for_words: the texts are lists of words. A byte-level tokenizer then adds a space before each word.

    Raises:
        Refused: see `load_pretrained_tokenizer`.
    """
    if config.name:
        return load_pretrained_tokenizer(PretrainedModel.of(config), for_words=for_words)
    return build_tokenizer(documents, config.vocab_size)


def load_pretrained_tokenizer(model: PretrainedModel, *, for_words: bool = False) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a pretrained model.

    Args:
        for_words: see `load_tokenizer`.

    Raises:
        Refused: it cannot be loaded, lacks a mask or padding token, or refers to files outside the model's directory.
    """
    check_tokenizer_files(model)
    try:
        tokenizer: Any = model.load(transformers.AutoTokenizer, use_fast=True, trust_remote_code=False)
        if for_words and getattr(tokenizer, "add_prefix_space", None) is False:
            tokenizer = model.load(
                transformers.AutoTokenizer, use_fast=True, trust_remote_code=False, add_prefix_space=True
            )
    except Refused:
        if model.source.path and not any(map(model.find_file, _VOCABULARY_FILES)):
            raise model.refusal("has no tokenizer (tokenizer.json); save one with save_pretrained") from None
        raise
    if not tokenizer.is_fast:
        raise model.refusal("has no fast tokenizer (tokenizer.json); convert its tokenizer to a fast one")
    for kind in ("mask", "pad"):
        if getattr(tokenizer, f"{kind}_token") is None:
            raise model.refusal(f"its tokenizer has no {kind} token, which masking needs; add one")
    return tokenizer


def build_tokenizer(documents: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A lower-case WordPiece tokenizer like BERT's, with a vocabulary trained on `documents`.

    The same documents give the same vocabulary.

    Args:
        documents: iterated twice; None counts as empty.
        vocab_size: largest number of entries of the vocabulary.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers characters in the order of a hash map, which differs between processes, breaks ties between
    # merges by these numbers, and drops rare characters of equal count at random. It keeps the order of an alphabet
    # that it is given.
    counts: Counter[str] = Counter()
    inside_words: set[str] = set()
    for document in documents:
        text = normalizer.normalize_str(document or "")  # a Hub dataset may contain nulls
        counts.update(text)
        inside_words.update(re.findall(r"(?<=\S)\S", text))
    characters = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:_MAX_CHARACTERS]
    inside = [f"##{c}" for c in sorted(inside_words.intersection(characters) - set(string.punctuation))]
    learner.train_from_iterator(
        (document or "" for document in documents),
        trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=_SPECIAL_TOKENS + inside,
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            show_progress=False,
        ),
    )
    # A second tokenizer, because the trainer marks `inside` as special tokens.
    backend = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    backend.add_special_tokens(_SPECIAL_TOKENS)
    backend.normalizer = normalizer
    backend.pre_tokenizer = learner.pre_tokenizer
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, _SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer_class: Any = transformers.DistilBertTokenizerFast
    return tokenizer_class(tokenizer_object=backend, model_max_length=NEW_MODEL_POSITIONS)
