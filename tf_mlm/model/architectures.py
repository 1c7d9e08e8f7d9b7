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

    def encode_positions(self, input_ids: Any, attention_mask: Any, positions: Any, training: bool) -> Any:
        """Hidden states of the encoder at some positions.

        Args:
            input_ids: int32 [batch, length].
            attention_mask: int32 [batch, length], 1 for a token, 0 for padding.
            positions: int32 [batch, slots].

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

    def encode_positions(self, input_ids: Any, attention_mask: Any, positions: Any, training: bool) -> Any:
        import tensorflow as tf

        mask = tf.cast(attention_mask, tf.float32)
        hidden_states = self.distilbert.embeddings(input_ids, training=training)
        *layers, last = self.distilbert.transformer.layer
        for layer in layers:
            hidden_states = layer(hidden_states, mask, None, False, training=training)[0]
        queries = tf.gather(hidden_states, positions, batch_dims=1)
        attended = last.attention(queries, hidden_states, hidden_states, mask, None, False, training=training)[0]
        attended = last.sa_layer_norm(attended + queries)
        return last.output_layer_norm(last.ffn(attended, training=training) + attended)

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        hidden_states = self.vocab_layer_norm(self.act(self.vocab_transform(hidden_states)))
        return self.vocab_projector(hidden_states)


class Bert(Architecture):
    model_type = "bert"
    stock_class_name = "TFBertForMaskedLM"

    base_model_prefix: str
    mlm: Any

    def encode_positions(self, input_ids: Any, attention_mask: Any, positions: Any, training: bool) -> Any:
        import tensorflow as tf

        encoder = getattr(self, self.base_model_prefix)
        hidden_states = encoder.embeddings(input_ids=input_ids, training=training)
        mask = -10000.0 * (1 - tf.cast(attention_mask[:, None, None, :], hidden_states.dtype))
        *layers, last = encoder.encoder.layer
        for layer in layers:
            hidden_states = layer(hidden_states, mask, None, None, None, None, False, training=training)[0]
        # Cross-attention to the same encoder's states: its queries can be fewer than its keys.
        attended = last.attention(
            tf.gather(hidden_states, positions, batch_dims=1),
            attention_mask=None,
            head_mask=None,
            encoder_hidden_states=hidden_states,
            encoder_attention_mask=mask,
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

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        return self.lm_head(hidden_states)


class Albert(Architecture):
    model_type = "albert"
    stock_class_name = "TFAlbertForMaskedLM"
    embedding_size_setting = "embedding_size"
    last_layer_is_masked_only = False  # transformers' ALBERT attention takes its queries and keys from one tensor
    shared_weights = {"predictions.bias": "predictions.decoder.bias"}

    albert: Any
    predictions: Any

    def encode_positions(self, input_ids: Any, attention_mask: Any, positions: Any, training: bool) -> Any:
        import tensorflow as tf

        hidden_states = self.albert(input_ids, attention_mask, training=training)[0]
        return tf.gather(hidden_states, positions, batch_dims=1)

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        return self.predictions(hidden_states, training=training)


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
