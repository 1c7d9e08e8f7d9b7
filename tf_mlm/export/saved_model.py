"""Exports a SavedModel that takes strings and returns filled words."""

import re
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_mlm.errors import as_os_error
from tf_mlm.export.graph_tokenizer import GraphTokenizer, why_not_in_graph
from tf_mlm.model.architectures import max_sequence_length

ANSWERED, NO_MASK, TOO_LONG, INVALID_UTF8 = range(4)
"""The values of `status`."""

_TOKENS_AT_ONCE = 2048
"""Maximum number of tokens in one pass through the encoder; a longer text has a separate pass."""

_IDS = tf.TensorSpec([None, None], tf.int32, "input_ids")
_ATTENTION_MASK = tf.TensorSpec([None, None], tf.int32, "attention_mask")
_TEXT = tf.TensorSpec([None], tf.string, "text")
_K = tf.TensorSpec([], tf.int32, "k")
_DEFAULT_K = tf.constant(5)  # a SavedModel records a default only if it is a tensor


def export_saved_model(model: Any, tokenizer: Any, folder: Path) -> str:
    """Write a masked language model to `folder` as a SavedModel that TensorFlow alone can load.

    Returns:
        Why there is no fill_mask, as a sentence; "" if there is one.

    Raises:
        OSError: the files cannot be written.
    """
    module, signatures = build_signatures(model, tokenizer)
    with as_os_error(tf.errors.OpError):
        tf.saved_model.save(module, str(folder), signatures=signatures)
    obstacle = why_not_in_graph(tokenizer)
    return obstacle and (
        f"The SavedModel takes ids, not strings, because {obstacle}. "
        "Use the tokenizer in the model's directory; the signatures are logits and encode."
    )


def build_signatures(model: Any, tokenizer: Any) -> tuple[tf.Module, dict[str, Any]]:
    """The functions of the SavedModel by name, and the object that owns their variables.

    input_ids and attention_mask are int32 [batch, length], all outputs are float32:
        fill_mask: see `_build_fill_mask`; only for models with BERT's WordPiece tokenizer.
        encode: input_ids and attention_mask to last_hidden_state [batch, length, dim] and mean_pooled [batch, dim],
            the mean over the tokens of attention_mask.
        logits: input_ids and attention_mask to logits [batch, length, vocabulary].
        serving_default: fill_mask, or logits if there is no fill_mask.
    """
    encoder = getattr(model, model.base_model_prefix)

    @tf.function(input_signature=[_IDS, _ATTENTION_MASK], autograph=False)
    def encode(input_ids: tf.Tensor, attention_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        hidden_states = encoder(input_ids=input_ids, attention_mask=attention_mask, training=False)[0]
        weights = tf.cast(attention_mask, tf.float32)[:, :, tf.newaxis]
        pooled = tf.math.divide_no_nan(tf.reduce_sum(weights * hidden_states, axis=1), tf.reduce_sum(weights, axis=1))
        return {"last_hidden_state": hidden_states, "mean_pooled": pooled}

    @tf.function(input_signature=[_IDS, _ATTENTION_MASK], autograph=False)
    def logits(input_ids: tf.Tensor, attention_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(input_ids=input_ids, attention_mask=attention_mask, training=False).logits}

    module = tf.Module()
    module.weights = model.weights  # saved once for all signatures
    signatures = {"serving_default": logits, "logits": logits, "encode": encode}
    if not why_not_in_graph(tokenizer):
        module.tokenizer = GraphTokenizer(tokenizer)
        fill_mask = _build_fill_mask(model, tokenizer, module.tokenizer)
        signatures |= {"serving_default": fill_mask, "fill_mask": fill_mask}
    return module, signatures


def _build_fill_mask(model: Any, tokenizer: Any, graph_tokenizer: GraphTokenizer) -> Any:
    """The signature that fills masks: text, string [batch], and k, int32 [], at least 1, candidates for each mask.

    Its outputs; the first three are [batch, largest num_masks, k or the vocabulary if that is less], best first:
        tokens: string, as in the vocabulary, padded with "".
        token_ids: int32, padded with -1.
        probabilities: float32, over the whole vocabulary, each mask for itself, padded with 0.
        num_masks: int32 [batch], number of filled masks.
        status: int32 [batch], 0 answered, 1 no mask, 2 more tokens than positions, 3 not valid UTF-8.
        filled: string [batch], the text with each mask replaced by its best candidate. A candidate that continues a
            word (`##ing`) also replaces the white space before the mask. Empty if the text is not valid UTF-8.
    """
    vocabulary = [""] * model.config.vocab_size
    for token, token_id in tokenizer.get_vocab().items():
        vocabulary[token_id] = token
    prefix = tokenizer.backend_tokenizer.model.continuing_subword_prefix
    mask_id, num_positions = tokenizer.mask_token_id, max_sequence_length(model.config)

    @tf.function(input_signature=[_TEXT, _K], autograph=False)
    def fill_mask(text: tf.Tensor, k: tf.Tensor = _DEFAULT_K) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_positive(k, "k: must be at least 1")]):
            k = tf.minimum(k, len(vocabulary))
        ids, is_valid = graph_tokenizer(text)
        num_masks = tf.reduce_sum(tf.cast(ids == mask_id, tf.int32), axis=1)
        status = tf.where(num_masks > 0, ANSWERED, NO_MASK)
        status = tf.where(ids.row_lengths() > num_positions, TOO_LONG, status)
        status = tf.where(is_valid, status, INVALID_UTF8)
        num_masks = tf.where(status == ANSWERED, num_masks, 0)

        answered = tf.where(status == ANSWERED)
        rows = tf.gather_nd(ids, answered)
        by_length = tf.argsort(rows.row_lengths(), direction="DESCENDING")
        rows = tf.gather(rows, by_length)
        lengths = rows.row_lengths()

        def encode_next(first: tf.Tensor, at_masks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = tf.minimum(first + tf.maximum(_TOKENS_AT_ONCE // lengths[first], 1), rows.nrows())
            input_ids = rows[first:end].to_tensor(tokenizer.pad_token_id)
            attention_mask = tf.sequence_mask(lengths[first:end], dtype=tf.int32)
            places = tf.where(input_ids == mask_id)
            positions = tf.RaggedTensor.from_value_rowids(places[:, 1], places[:, 0], end - first, validate=False)
            hidden_states = model.encode_positions(input_ids, attention_mask, positions.to_tensor(), training=False)
            is_mask = tf.sequence_mask(positions.row_lengths())
            return end, tf.concat([at_masks, tf.boolean_mask(hidden_states, is_mask)], axis=0)

        # Texts of similar length are encoded together, which saves padding and memory.
        _, at_masks = tf.while_loop(
            lambda first, _: first < rows.nrows(),
            encode_next,
            [tf.constant(0, tf.int64), tf.zeros([0, model.config.hidden_size])],
            shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, model.config.hidden_size])],
        )
        masks_by_length = tf.gather(tf.gather_nd(num_masks, answered), by_length)
        at_masks = tf.RaggedTensor.from_row_lengths(at_masks, masks_by_length, validate=False)
        at_masks = tf.gather(at_masks, tf.math.invert_permutation(by_length)).values
        # Only the masks are queries of the last layer and reach the vocabulary. Some heads require three dimensions.
        logits = model.predict_tokens(at_masks[tf.newaxis], training=False)[0]
        best = tf.math.top_k(logits, k)
        tokens = tf.gather(vocabulary, best.indices)
        probabilities = tf.exp(best.values - tf.reduce_logsumexp(logits, axis=1, keepdims=True))

        def by_text(values: tf.Tensor, padding: Any) -> tf.Tensor:
            return tf.RaggedTensor.from_row_lengths(values, num_masks, validate=False).to_tensor(padding)

        replacements = tf.RaggedTensor.from_row_lengths(tokens[:, 0], tf.gather_nd(num_masks, answered), validate=False)
        filled = _fill(tf.gather_nd(text, answered), tokenizer.mask_token, replacements, prefix)
        return {
            "tokens": by_text(tokens, ""),
            "token_ids": by_text(best.indices, -1),
            "probabilities": by_text(probabilities, 0.0),
            "num_masks": num_masks,
            "status": status,
            "filled": tf.tensor_scatter_nd_update(tf.where(is_valid, text, ""), answered, filled),
        }

    return fill_mask


def _fill(texts: tf.Tensor, mask_token: str, replacements: tf.RaggedTensor, prefix: str) -> tf.Tensor:
    """`texts`, string [batch], each mask replaced; `replacements` are string [batch, (masks)]."""
    parts = tf.strings.split(texts, sep=mask_token)
    # Each part is followed by a replacement, the last one by nothing.
    following = tf.concat([replacements, tf.fill([parts.nrows(), 1], "")], axis=1).values
    continues_word = tf.strings.regex_full_match(following, f"{re.escape(prefix)}.*")
    following = tf.strings.regex_replace(following, f"^{re.escape(prefix)}", "")
    before = tf.where(continues_word, tf.strings.regex_replace(parts.values, r"[\s\pZ]+$", ""), parts.values)
    return tf.strings.unsorted_segment_join(before + following, parts.value_rowids(), parts.nrows())
