"""Hugging Face's masked language models, trained and evaluated with the head over masked positions alone.

Only the positions that carry a label, 15 % of them, go through the vocabulary projection: on a fixed number of slots a
sequence, so that every shape is static. In the last layer, too, they alone are queries: the others serve as keys and
values, and what the layer would make of them nobody reads. Weights, their names, `from_pretrained` and a call without
labels are stock.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras
from transformers import (
    TFAlbertForMaskedLM,
    TFBertForMaskedLM,
    TFDistilBertForMaskedLM,
    TFRobertaForMaskedLM,
)

from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.dropout import use_step_dropout
from tf_mlm.model.metrics import LOSS, MaskedLMMetrics


class MaskedPositionsHead(keras.Model):
    """Mixin of a TF...ForMaskedLM: what `fit` and `evaluate` compute. Subclasses know the encoder and the head."""

    def encode_positions(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor, positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Hidden states [batch, slots, dim] of the encoder at `positions`, int32 [batch, slots]."""
        raise NotImplementedError

    def predict_tokens(self, hidden_states: tf.Tensor, training: bool) -> tf.Tensor:
        """Logits [..., vocabulary] of hidden states [..., dim]."""
        raise NotImplementedError

    def compile(  # type: ignore[override]
        self,
        optimizer: keras.optimizers.Optimizer,
        *,
        max_masked_per_sequence: int,
        accumulate_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        jit_compile: bool = False,
    ) -> None:
        """Configure training.

        Args:
            max_masked_per_sequence: slots of the head; no sequence may carry more labels.
            accumulate_steps: equal parts in which a batch is worked.
            clip_norm: largest global norm of the gradient; 0 leaves it as it is.
            seed: of dropout.
        """
        keras.Model.compile(self, optimizer=optimizer, jit_compile=jit_compile)
        self._max_masked = max_masked_per_sequence
        self._accumulate_steps = accumulate_steps
        self._clip_norm = clip_norm
        self._masked_lm_metrics = MaskedLMMetrics()
        self._first_position: tuple[int, int] | None = None
        self._forward_pass = use_step_dropout(self, seed, optimizer.iterations)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return self._masked_lm_metrics.all if hasattr(self, "_masked_lm_metrics") else []

    def create_optimizer_weights(self) -> None:
        """Make what the first update would make, which Keras would then trace a second time."""
        with self.distribute_strategy.scope():
            optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            optimizer._create_all_weights(self.trainable_variables)

    def resume_at(self, step: int, steps_per_epoch: int) -> None:
        """Let the next `fit` begin after update `step`, in the middle of an epoch if need be; its `x` begins there."""
        self._first_position = divmod(step, steps_per_epoch)

    def fit(self, *arguments: Any, **options: Any) -> keras.callbacks.History:
        self.create_optimizer_weights()
        try:
            return super().fit(*arguments, **options)
        finally:
            self._first_position = None

    def _maybe_load_initial_counters_from_ckpt(self, steps_per_epoch: int, initial_epoch: int) -> tuple[int, int]:
        # Where Keras asks its own BackupAndRestore for the first epoch and the first step inside it.
        return self._first_position or (initial_epoch, 0)

    def masked_lm_outputs(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Losses [batch, slots], logits [batch, slots, vocabulary], labels and weights [batch, slots].

        Losses and logits are float32 whatever the precision; a slot without a label has label 0, loss 0 and weight 0.
        """
        labelled = tf.cast(labels != IGNORE_INDEX, tf.int32)
        positions = tf.math.top_k(labelled, self._max_masked, sorted=True).indices
        slot_labels = tf.gather(labels, positions, batch_dims=1)
        weights = tf.cast(slot_labels != IGNORE_INDEX, tf.float32)
        slot_labels = tf.maximum(slot_labels, 0)
        hidden_states = self.encode_positions(**features, positions=positions, training=training)
        logits = self.predict_tokens(hidden_states, training)
        logits = tf.cast(logits, tf.float32)
        losses = weights * tf.nn.sparse_softmax_cross_entropy_with_logits(slot_labels, logits)
        return losses, logits, slot_labels, weights

    def train_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update, or none where the loss or the gradient is not finite: then weights, optimizer slots and metrics
        stay as they are, and `bad_step` is above 0 in what is returned.

        `optimizer.iterations` counts the step all the same, as Keras' LossScaleOptimizer does, so that the schedule,
        dropout and the data remain functions of the step. With float16 a step that is not finite is bad only when the
        scale of the loss is down to 1: before, the scale was too large.
        """
        features, labels = data
        replica = tf.distribute.get_replica_context()
        # The loss of a batch is its summed cross-entropy over its number of labels, on all replicas and in all parts;
        # without any label it is 0, not 0 / 0.
        num_labels = tf.reduce_sum(tf.cast(labels != IGNORE_INDEX, tf.float32))
        num_labels = tf.maximum(replica.all_reduce(tf.distribute.ReduceOp.SUM, num_labels), 1.0)
        gradients, sums = self._accumulate_gradients(features, labels, num_labels)
        gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(gradients)
        # A loss that is not finite can have a finite gradient. Each replica has a loss of its own.
        loss = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums[LOSS.name])
        norm = tf.where(tf.math.is_finite(loss), norm, float("nan"))
        is_finite = tf.math.is_finite(norm)
        if self._clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        is_bad = tf.logical_not(is_finite)
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            is_bad &= self.optimizer.loss_scale <= 1.0
        self._apply_gradients(gradients, is_finite)
        self._masked_lm_metrics.add(
            {name: tf.where(is_finite, value, tf.zeros_like(value)) for name, value in sums.items()}
        )
        return {metric.name: metric.result() for metric in self.metrics} | {"bad_step": tf.cast(is_bad, tf.float32)}

    def _apply_gradients(self, gradients: list[tf.Tensor], is_finite: tf.Tensor) -> None:
        """Hand the gradients, summed over the replicas, to the optimizer if `is_finite`."""
        optimizer = self.optimizer

        def apply(gradients: list[tf.Tensor]) -> None:
            pairs = zip(gradients, self.trainable_variables, strict=True)
            optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

        def skip() -> None:
            optimizer.iterations.assign_add(1, read_value=False)

        def across_replicas(strategy: Any, gradients: list[tf.Tensor], is_finite: tf.Tensor) -> None:
            # Here and not in each replica, because the optimizer leaves the replica's context, which no branch may do.
            is_finite = strategy.experimental_local_results(is_finite)[0]
            tf.cond(is_finite, lambda: strategy.extended.call_for_each_replica(apply, args=(gradients,)), skip)

        if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
            # It skips the step by itself, and lowers its scale.
            apply([tf.where(is_finite, gradients[0], float("nan")), *gradients[1:]])
        elif tf.__internal__.distribute.strategy_supports_no_merge_call():
            tf.cond(is_finite, lambda: apply(gradients), skip)
        else:
            tf.distribute.get_replica_context().merge_call(across_replicas, args=(gradients, is_finite))

    def test_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        features, labels = data
        self._masked_lm_metrics.add(
            self._masked_lm_metrics.sums(*self.masked_lm_outputs(features, labels, training=False))
        )
        return {metric.name: metric.result() for metric in self.metrics}

    def _accumulate_gradients(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, num_labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Gradients of the batch's loss, and the sums for the metrics.

        Both are worked in `accumulate_steps` parts, one after the other to save memory.
        """
        if self._accumulate_steps == 1:
            self._forward_pass.begin(0)
            return self._gradients(features, labels, num_labels)
        # Else rows would be left out of the gradient, though their labels are counted.
        assert labels.shape[0] and labels.shape[0] % self._accumulate_steps == 0, (labels.shape, self._accumulate_steps)
        size = labels.shape[0] // self._accumulate_steps

        def add_part(part: tf.Tensor, *totals: tf.Tensor) -> list[tf.Tensor]:
            def rows(value: tf.Tensor) -> tf.Tensor:
                # Not a slice: XLA would compile it anew for every `part`, and run each for the first time uncompiled,
                # with other float bits than later (so that a resumed run would differ).
                return tf.gather(tf.reshape(value, [-1, size, value.shape[1]]), part)

            self._forward_pass.begin(part)
            gradients, of_metrics = self._gradients(tf.nest.map_structure(rows, features), rows(labels), num_labels)
            addends = [*gradients, *of_metrics.values()]
            return [part + 1, *(total + addend for total, addend in zip(totals, addends, strict=True))]

        names = self._masked_lm_metrics.names()
        zeros = [tf.zeros_like(variable) for variable in self.trainable_variables]
        zeros += [tf.zeros([], tf.float64) for _ in names]
        _, *totals = tf.while_loop(
            lambda part, *_: part < self._accumulate_steps, add_part, [tf.constant(0), *zeros], parallel_iterations=1
        )
        self._forward_pass.begin(0)  # `part` lives in the loop alone
        num_gradients = len(self.trainable_variables)
        return totals[:num_gradients], dict(zip(names, totals[num_gradients:], strict=True))

    def _gradients(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, num_labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        scales_loss = isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer)
        with tf.GradientTape() as tape:
            losses, logits, slot_labels, weights = self.masked_lm_outputs(features, labels, training=True)
            loss = tf.reduce_sum(losses) / num_labels
            if scales_loss:
                loss = self.optimizer.get_scaled_loss(loss)
        # Zeros for what the loss does not depend on: TFAlbertForMaskedLM has a bias that it never adds.
        gradients = tape.gradient(loss, self.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        if scales_loss:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        sums = self._masked_lm_metrics.sums(losses, logits, slot_labels, weights)
        return [tf.convert_to_tensor(gradient) for gradient in gradients], sums


class DistilBertForMaskedLM(MaskedPositionsHead, TFDistilBertForMaskedLM):  # type: ignore[misc]
    def encode_positions(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor, positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        mask = tf.cast(attention_mask, tf.float32)
        hidden_states = self.distilbert.embeddings(input_ids, training=training)
        *layers, last = self.distilbert.transformer.layer
        for layer in layers:
            hidden_states = layer(hidden_states, mask, None, False, training=training)[0]
        queries = tf.gather(hidden_states, positions, batch_dims=1)
        attended = last.attention(queries, hidden_states, hidden_states, mask, None, False, training=training)[0]
        attended = last.sa_layer_norm(attended + queries)
        return last.output_layer_norm(last.ffn(attended, training=training) + attended)

    def predict_tokens(self, hidden_states: tf.Tensor, training: bool) -> tf.Tensor:
        hidden_states = self.vocab_layer_norm(self.act(self.vocab_transform(hidden_states)))
        return self.vocab_projector(hidden_states)


class BertEncoder:
    """Mixin: the encoder of BERT and RoBERTa."""

    base_model_prefix: str

    def encode_positions(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor, positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        encoder = getattr(self, self.base_model_prefix)
        hidden_states = encoder.embeddings(input_ids=input_ids, training=training)
        mask = -10000.0 * (1 - tf.cast(attention_mask[:, None, None, :], hidden_states.dtype))
        *layers, last = encoder.encoder.layer
        for layer in layers:
            hidden_states = layer(hidden_states, mask, None, None, None, None, False, training=training)[0]
        # The attention to another encoder's states, with this one's own.
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


class BertForMaskedLM(BertEncoder, MaskedPositionsHead, TFBertForMaskedLM):  # type: ignore[misc]
    def predict_tokens(self, hidden_states: tf.Tensor, training: bool) -> tf.Tensor:
        return self.mlm(hidden_states, training=training)


class RobertaForMaskedLM(BertEncoder, MaskedPositionsHead, TFRobertaForMaskedLM):  # type: ignore[misc]
    def predict_tokens(self, hidden_states: tf.Tensor, training: bool) -> tf.Tensor:
        return self.lm_head(hidden_states)


class AlbertForMaskedLM(MaskedPositionsHead, TFAlbertForMaskedLM):  # type: ignore[misc]
    def encode_positions(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor, positions: tf.Tensor, training: bool
    ) -> tf.Tensor:
        # Its attention knows no queries apart from keys.
        hidden_states = self.albert(input_ids, attention_mask, training=training)[0]
        return tf.gather(hidden_states, positions, batch_dims=1)

    def predict_tokens(self, hidden_states: tf.Tensor, training: bool) -> tf.Tensor:
        return self.predictions(hidden_states, training=training)


MODEL_CLASSES = {
    "distilbert": DistilBertForMaskedLM,
    "bert": BertForMaskedLM,
    "roberta": RobertaForMaskedLM,
    "albert": AlbertForMaskedLM,
}
"""The architectures that can be trained, by the `model_type` of their config."""
