"""The supported architectures, and everything in which they differ.

To add an architecture, add a subclass of `Architecture` and name it in `_SUPPORTED`; no other source file changes.

TensorFlow is imported inside the methods, so that the facts can be read without it.
"""

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig


class Architecture:
    """The facts about an architecture, and how its model computes hidden states and logits.

    `masked_lm.model_class` mixes it into transformers' TensorFlow class, so that `self` of the methods is the model.

    Attributes:
        model_type: Hugging Face's name of the architecture, in `config.json`.
        stock_class_name: transformers' TensorFlow class.
        mask_token: mask token of the tokenizers published with the architecture.
        intermediate_size_setting: the config's name of the width inside the feed-forward layers.
        embedding_size_setting: the config's name of the width of the word embeddings.
        last_layer_is_masked_only: the queries of the last layer are the masked positions alone, not all positions.
        shared_weights: names in PyTorch's files of weights that PyTorch stores under two names, to the name of the
            TensorFlow variable that is trained.
    """

    model_type: ClassVar[str]
    stock_class_name: ClassVar[str]
    mask_token: ClassVar[str] = "[MASK]"
    intermediate_size_setting: ClassVar[str] = "intermediate_size"
    embedding_size_setting: ClassVar[str] = "hidden_size"
    last_layer_is_masked_only: ClassVar[bool] = True
    shared_weights: ClassVar[dict[str, str]] = {}

    @staticmethod
    def max_sequence_length(config: "PretrainedConfig") -> int:
        """The largest number of tokens in a sequence."""
        return int(config.max_position_embeddings)

    def encode_positions(
        self, input_ids: Any, attention_mask: Any, positions: Any, training: bool, position_ids: Any = None
    ) -> Any:
        """Hidden states of the encoder at some positions.

        Args:
            input_ids: int32 [batch, length].
            attention_mask: int32 [batch, length], 1 for a token, 0 for padding.
            positions: int32 [batch, slots].
            position_ids: int32 [batch, length], the position of each token in its document, from 0 and in order. Tokens
                attend only to those of their own document. None for one document per row.

        Returns:
            [batch, slots, dim] in the compute dtype.
        """
        raise NotImplementedError

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        """Logits [batch, slots, vocabulary] of hidden states [batch, slots, dim], in the compute dtype."""
        raise NotImplementedError


class DistilBert(Architecture):
    model_type = "distilbert"
    stock_class_name = "TFDistilBertForMaskedLM"
    intermediate_size_setting = "hidden_dim"

    distilbert: Any
    act: Any
    vocab_transform: Any
    vocab_layer_norm: Any
    vocab_projector: Any

    def encode_positions(
        self, input_ids: Any, attention_mask: Any, positions: Any, training: bool, position_ids: Any = None
    ) -> Any:
        import tensorflow as tf

        keys = _visible_keys(attention_mask, position_ids)
        hidden_states = self.distilbert.embeddings(input_ids, position_ids=position_ids, training=training)
        *layers, last = self.distilbert.transformer.layer
        for layer in layers:
            hidden_states = _run_distilbert_layer(layer, hidden_states, hidden_states, keys, training)
        queries = tf.gather(hidden_states, positions, batch_dims=1)
        return _run_distilbert_layer(last, queries, hidden_states, _of_queries(keys, positions), training)

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        hidden_states = self.vocab_layer_norm(self.act(self.vocab_transform(hidden_states)))
        return self.vocab_projector(hidden_states)


class Bert(Architecture):
    model_type = "bert"
    stock_class_name = "TFBertForMaskedLM"

    base_model_prefix: str
    mlm: Any

    def encode_positions(
        self, input_ids: Any, attention_mask: Any, positions: Any, training: bool, position_ids: Any = None
    ) -> Any:
        import tensorflow as tf

        encoder = getattr(self, self.base_model_prefix)
        keys = _visible_keys(attention_mask, position_ids)
        hidden_states = encoder.embeddings(input_ids=input_ids, position_ids=position_ids, training=training)
        mask = _added_mask(keys, hidden_states.dtype)
        *layers, last = encoder.encoder.layer
        for layer in layers:
            hidden_states = layer(hidden_states, mask, None, None, None, None, False, training=training)[0]
        # Cross-attention to the same encoder's states: its queries can be fewer than its keys.
        attended = last.attention(
            tf.gather(hidden_states, positions, batch_dims=1),
            attention_mask=None,
            head_mask=None,
            encoder_hidden_states=hidden_states,
            encoder_attention_mask=_added_mask(_of_queries(keys, positions), hidden_states.dtype),
            past_key_value=None,
            output_attentions=False,
            training=training,
        )[0]
        return last.bert_output(last.intermediate(attended), attended, training=training)

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        return self.mlm(hidden_states, training=training)


class Roberta(Bert):
    """BERT's encoder with another head, and positions that count from the id of the padding token + 1."""

    model_type = "roberta"
    stock_class_name = "TFRobertaForMaskedLM"
    mask_token = "<mask>"

    lm_head: Any

    @staticmethod
    def max_sequence_length(config: "PretrainedConfig") -> int:
        return int(config.max_position_embeddings) - ((config.pad_token_id or 0) + 1)

    def encode_positions(
        self, input_ids: Any, attention_mask: Any, positions: Any, training: bool, position_ids: Any = None
    ) -> Any:
        if position_ids is not None:
            position_ids = position_ids + getattr(self, self.base_model_prefix).embeddings.padding_idx + 1
        return super().encode_positions(input_ids, attention_mask, positions, training, position_ids)

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        return self.lm_head(hidden_states)


class Albert(Architecture):
    model_type = "albert"
    stock_class_name = "TFAlbertForMaskedLM"
    embedding_size_setting = "embedding_size"
    last_layer_is_masked_only = False  # transformers' ALBERT attention takes its queries and keys from one tensor
    shared_weights = {"predictions.bias": "predictions.decoder.bias"}

    config: Any
    albert: Any
    predictions: Any

    def encode_positions(
        self, input_ids: Any, attention_mask: Any, positions: Any, training: bool, position_ids: Any = None
    ) -> Any:
        import tensorflow as tf

        hidden_states = self.albert.embeddings(input_ids=input_ids, position_ids=position_ids, training=training)
        hidden_states = self.albert.encoder(
            hidden_states,
            attention_mask=_added_mask(_visible_keys(attention_mask, position_ids), hidden_states.dtype),
            head_mask=[None] * self.config.num_hidden_layers,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=False,
            training=training,
        )[0]
        return tf.gather(hidden_states, positions, batch_dims=1)

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        return self.predictions(hidden_states, training=training)


def _visible_keys(attention_mask: Any, position_ids: Any) -> Any:
    """1 where a query attends to a key, else 0: int32 [batch, queries, length].

    The axis of the queries has size 1 if `position_ids` is None, because all queries attend to the same keys.
    """
    import tensorflow as tf

    if position_ids is None:
        return attention_mask[:, None]
    # For each token, the column of the first token of its document, minus a constant. It is equal only for tokens of
    # the same document.
    documents = tf.range(position_ids.shape[1]) - position_ids
    is_same = documents[:, :, None] == documents[:, None]
    return attention_mask[:, None] * tf.cast(is_same, attention_mask.dtype)


def _of_queries(keys: Any, positions: Any) -> Any:
    """The `_visible_keys` of the queries at `positions`, int32 [batch, slots]."""
    import tensorflow as tf

    return keys if keys.shape[1] == 1 else tf.gather(keys, positions, batch_dims=1)


def _added_mask(keys: Any, dtype: Any) -> Any:
    """The mask that BERT adds to the attention scores: [batch, 1, queries, length], 0 at visible keys."""
    import tensorflow as tf

    return -10000.0 * (1 - tf.cast(keys[:, None], dtype))


def _run_distilbert_layer(layer: Any, queries: Any, hidden_states: Any, keys: Any, training: bool) -> Any:
    """A layer of DistilBERT whose queries, [batch, queries, dim], can be fewer than its `hidden_states`."""
    import tensorflow as tf

    mask = tf.cast(keys, tf.float32)
    if keys.shape[1] == 1:
        attended = layer.attention(queries, hidden_states, hidden_states, mask, None, False, training=training)[0]
    else:  # the stock attention accepts only one mask for all queries
        attended = _attend(layer.attention, queries, hidden_states, mask, training)
    attended = layer.sa_layer_norm(attended + queries)
    return layer.output_layer_norm(layer.ffn(attended, training=training) + attended)


def _attend(attention: Any, queries: Any, hidden_states: Any, mask: Any, training: bool) -> Any:
    """DistilBERT's attention with the stock layers and precision, but with a mask per query.

    Args:
        attention: the stock layer.
        mask: float32 [batch, queries, length], 1 where a query attends to a key.
    """
    import tensorflow as tf
    from transformers.tf_utils import stable_softmax

    size = attention.dim // attention.n_heads

    def split_heads(states: Any) -> Any:
        return tf.transpose(tf.reshape(states, [-1, states.shape[1], attention.n_heads, size]), [0, 2, 1, 3])

    query = tf.cast(split_heads(attention.q_lin(queries)), tf.float32) * tf.math.rsqrt(float(size))
    key = tf.cast(split_heads(attention.k_lin(hidden_states)), tf.float32)
    scores = tf.matmul(query, key, transpose_b=True) - 1e30 * (1 - mask[:, None])
    weights = attention.dropout(stable_softmax(scores), training=training)
    context = tf.transpose(tf.matmul(weights, split_heads(attention.v_lin(hidden_states))), [0, 2, 1, 3])
    return attention.out_lin(tf.reshape(context, [-1, queries.shape[1], attention.dim]))


_SUPPORTED: tuple[type[Architecture], ...] = (DistilBert, Bert, Roberta, Albert)

ARCHITECTURES: dict[str, type[Architecture]] = {architecture.model_type: architecture for architecture in _SUPPORTED}
"""The supported architectures by `model_type`."""


def architecture_of(model_type: str) -> type[Architecture]:
    """The architecture of a `model_type`.

    Raises:
        KeyError: it is not supported.
    """
    return ARCHITECTURES[model_type]


def max_sequence_length(config: "PretrainedConfig") -> int:
    """The largest number of tokens in a sequence of a model with this config."""
    return architecture_of(config.model_type).max_sequence_length(config)
