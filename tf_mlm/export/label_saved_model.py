"""Exports a classification model as a SavedModel that takes strings and returns labels, or tags and positions."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_mlm.errors import as_os_error
from tf_mlm.export.graph_tokenizer import GraphTokenizer, why_not_in_graph
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.loading import objective_of

ANSWERED, TRUNCATED, INVALID_UTF8 = 0, 2, 3
"""The values of `status`; as in the SavedModel of a masked language model."""

_IDS = tf.TensorSpec([None, None], tf.int32, "input_ids")
_ATTENTION_MASK = tf.TensorSpec([None, None], tf.int32, "attention_mask")
_TOKEN_TYPES = tf.TensorSpec([None, None], tf.int32, "token_type_ids")
_TEXT = tf.TensorSpec([None], tf.string, "text")
_TEXT_PAIR = tf.TensorSpec([None], tf.string, "text_pair")


def export_label_saved_model(model: Any, tokenizer: Any, directory: Path) -> str:
    """Write a classification model to `directory` as a SavedModel that TensorFlow alone can load.

    Signatures; ids are int32 [batch, length]:
        classify and classify_pair: see `_build_classify`; or tag: see `_build_tag`. Only for models with BERT's
            WordPiece tokenizer.
        logits: input_ids, attention_mask and, if the tokenizer has them, token_type_ids to logits, float32
            [batch, labels] or [batch, length, labels].
        serving_default: classify or tag, or logits if there is neither.

    Returns:
        Why it takes no strings, as a sentence; "" if it does.

    Raises:
        OSError: the files cannot be written.
    """
    has_types = "token_type_ids" in tokenizer.model_input_names
    specs = [_IDS, _ATTENTION_MASK, *([_TOKEN_TYPES] if has_types else [])]

    @tf.function(input_signature=specs, autograph=False)
    def logits(input_ids: tf.Tensor, attention_mask: tf.Tensor, *token_types: tf.Tensor) -> dict[str, tf.Tensor]:
        types = {"token_type_ids": token_types[0]} if token_types else {}
        outputs = model(input_ids=input_ids, attention_mask=attention_mask, training=False, **types)
        return {"logits": outputs.logits}

    module = tf.Module()
    module.weights = model.weights  # saved once for all signatures
    signatures = {"serving_default": logits, "logits": logits}
    obstacle = why_not_in_graph(tokenizer)
    if not obstacle:
        module.tokenizer = GraphTokenizer(tokenizer)
        module.labels = tf.Variable([model.config.id2label[i] for i in range(model.config.num_labels)], trainable=False)
        is_text = objective_of(model.config, type(model).__name__) == "classification"
        build = _build_classify if is_text else _build_tag
        taking_strings = build(model, tokenizer, module.tokenizer, module.labels)
        signatures |= {"serving_default": next(iter(taking_strings.values())), **taking_strings}
    with as_os_error(tf.errors.OpError):
        tf.saved_model.save(module, str(directory), signatures=signatures)
    return obstacle and (
        f"The SavedModel takes ids, not strings, because {obstacle}. "
        "Use the tokenizer in the model's directory; the signature is logits."
    )


def _build_classify(model: Any, tokenizer: Any, graph_tokenizer: GraphTokenizer, labels: tf.Variable) -> dict[str, Any]:
    """The signatures `classify`, of text, string [batch], and `classify_pair`, of text and text_pair, string [batch].

    A text longer than the model's positions is truncated as the tokenizer does: the longer text of a pair first.

    Their outputs:
        label: string [batch], the most likely label; "" if the text is not valid UTF-8.
        probabilities: float32 [batch, labels], in the order of `labels`.
        labels: string [labels], all labels.
        status: int32 [batch], 0 answered, 2 truncated, 3 not valid UTF-8.
    """
    num_positions = max_sequence_length(model.config)
    second_type = tokenizer.backend_tokenizer.encode("a", "a").type_ids[-1]

    def answer(ids: tf.RaggedTensor, types: tf.RaggedTensor, is_truncated: Any, is_valid: Any) -> dict[str, tf.Tensor]:
        logits = model(**_features(tokenizer, ids, types), training=False).logits
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
        status = tf.where(is_valid, tf.where(is_truncated, TRUNCATED, ANSWERED), INVALID_UTF8)
        return {
            "label": tf.where(is_valid, tf.gather(labels, tf.argmax(probabilities, axis=1)), ""),
            "probabilities": probabilities,
            "labels": tf.identity(labels),
            "status": status,
        }

    @tf.function(input_signature=[_TEXT], autograph=False)
    def classify(text: tf.Tensor) -> dict[str, tf.Tensor]:
        pieces, is_valid = _pieces(graph_tokenizer, text)
        room = num_positions - 2
        ids = graph_tokenizer.with_ends(pieces[:, :room])
        return answer(ids, tf.zeros_like(ids), pieces.row_lengths() > room, is_valid)

    @tf.function(input_signature=[_TEXT, _TEXT_PAIR], autograph=False)
    def classify_pair(text: tf.Tensor, text_pair: tf.Tensor) -> dict[str, tf.Tensor]:
        first, is_first_valid = _pieces(graph_tokenizer, text)
        second, is_second_valid = _pieces(graph_tokenizer, text_pair)
        room = num_positions - 3
        of_first, of_second = truncated_lengths(first.row_lengths(), second.row_lengths(), room)
        ids = graph_tokenizer.with_ends(_first_of_each(first, of_first), _first_of_each(second, of_second))
        is_second = tf.ragged.range(ids.row_lengths()) >= (of_first + 2)[:, tf.newaxis]
        is_truncated = first.row_lengths() + second.row_lengths() > room
        return answer(ids, tf.cast(is_second, tf.int32) * second_type, is_truncated, is_first_valid & is_second_valid)

    return {"classify": classify, "classify_pair": classify_pair}


def _build_tag(model: Any, tokenizer: Any, graph_tokenizer: GraphTokenizer, labels: tf.Variable) -> dict[str, Any]:
    """The signature `tag`, of text, string [batch]: tags its words. The tag of a word is that of its first token.

    Its outputs are [batch, largest number of words]:
        words: string, padded with "".
        starts, ends: int32, the characters of each word in its text, padded with -1.
        tags: string, padded with ""; "" also for the words after the last position of the model.
        probabilities: float32, of each tag, padded with 0.
        status: int32 [batch], 0 answered, 2 the end of the text has no tags, 3 not valid UTF-8.
    """
    num_positions = max_sequence_length(model.config)

    @tf.function(input_signature=[_TEXT], autograph=False)
    def tag(text: tf.Tensor) -> dict[str, tf.Tensor]:
        by_word, starts, ends, is_valid = graph_tokenizer.split_words(text)
        pieces = by_word.merge_dims(1, 2)
        ids = graph_tokenizer.with_ends(pieces[:, : num_positions - 2])
        logits = model(**_features(tokenizer, ids, tf.zeros_like(ids)), training=False).logits
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
        lengths = by_word.with_values(by_word.values.row_lengths())
        # The first position of each word; [CLS] has position 0.
        firsts = tf.cumsum(lengths.to_tensor(), axis=1, exclusive=True) + 1
        is_word = tf.sequence_mask(lengths.row_lengths())
        has_tag = is_word & (firsts < num_positions - 1)
        of_word = tf.gather(probabilities, tf.where(has_tag, firsts, 0), batch_dims=1)
        best = tf.argmax(of_word, axis=2)
        is_truncated = pieces.row_lengths() > num_positions - 2
        starts, ends = starts.to_tensor(-1), ends.to_tensor(-1)
        columns = tf.ones_like(starts)
        words = tf.strings.substr(
            tf.where(is_valid, text, "")[:, tf.newaxis] + tf.fill(tf.shape(columns), ""),
            tf.maximum(starts, 0),
            tf.maximum(ends - starts, 0),
            unit="UTF8_CHAR",
        )
        return {
            "words": words,
            "starts": starts,
            "ends": ends,
            "tags": tf.where(has_tag, tf.gather(labels, best), ""),
            "probabilities": tf.where(has_tag, tf.reduce_max(of_word, axis=2), 0.0),
            "status": tf.where(is_valid, tf.where(is_truncated, TRUNCATED, ANSWERED), INVALID_UTF8),
        }

    return {"tag": tag}


def _features(tokenizer: Any, ids: tf.RaggedTensor, types: tf.RaggedTensor) -> dict[str, tf.Tensor]:
    """The inputs of the model for ids and token types, int32 [batch, (length)]."""
    features = {
        "input_ids": ids.to_tensor(tokenizer.pad_token_id),
        "attention_mask": tf.sequence_mask(ids.row_lengths(), dtype=tf.int32),
    }
    if "token_type_ids" in tokenizer.model_input_names:
        features["token_type_ids"] = types.to_tensor(0)
    return features


def truncated_lengths(first: tf.Tensor, second: tf.Tensor, room: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens kept of each text of a pair, as the tokenizer's `longest_first` does; each int64 [batch].

    Args:
        room: number of tokens for both texts.
    """
    room = tf.constant(room, tf.int64)
    shorter = tf.minimum(first, second)
    longer = tf.maximum(first, second)
    longer = tf.where(shorter > room, shorter, tf.maximum(shorter, room - shorter))
    half = room // 2
    is_both = shorter + longer > room
    shorter, longer = tf.where(is_both, half, shorter), tf.where(is_both, half + room % 2, longer)
    of_first = tf.where(first <= second, shorter, longer)
    of_second = tf.where(first <= second, longer, shorter)
    fits = first + second <= room
    return tf.where(fits, first, of_first), tf.where(fits, second, of_second)


def _pieces(graph_tokenizer: GraphTokenizer, text: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Ids of each text without [CLS] and [SEP], int32 [batch, (length)], and whether it is valid, bool [batch]."""
    ids, is_valid = graph_tokenizer(text)
    return ids[:, 1:-1], is_valid


def _first_of_each(rows: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """The first `lengths`, int64 [batch], elements of each row."""
    is_kept = tf.ragged.range(rows.row_lengths()) < lengths[:, tf.newaxis]
    return tf.ragged.boolean_mask(rows, is_kept)
