"""The training and validation step of every objective, for `model.fit` and `model.evaluate`.

A model maps a batch to losses and logits at its labels (`label_outputs`). The rest is shared: gradient accumulation,
clipping, skipping of non-finite steps, exact averages over all labels, dropout as a function of the step, and resuming
inside an epoch.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.dropout import use_step_dropout
from tf_mlm.model.metrics import LOSS, AveragedMetrics, Metric
from tf_mlm.model.stop_request import STOP_REQUEST, build_stop_request


class TrainingStep(keras.Model):
    """Mixin of a transformers model: the computations of `fit` and `evaluate`.

    Attributes:
        trained_names: names of the variables that training changes; None for all.
        gradient_precision: dtype in which several replicas exchange their gradients.
    """

    trained_names: frozenset[str] | None = None
    gradient_precision: str = "float32"

    @property
    def trainable_weights(self) -> list[tf.Variable]:
        weights = super().trainable_weights
        return weights if self.trained_names is None else [each for each in weights if each.name in self.trained_names]

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        trained = {id(weight) for weight in self.trainable_weights}
        return [weight for weight in self.weights if id(weight) not in trained]

    def compile_step(
        self,
        optimizer: keras.optimizers.Optimizer,
        metrics: tuple[Metric, ...],
        *,
        accumulate_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        jit_compile: bool = False,
        validation_metrics: tuple[keras.metrics.Metric, ...] = (),
    ) -> None:
        """Configure training.

        Args:
            metrics: the table of metrics.
            accumulate_steps: number of equal parts into which a batch is split to save memory.
            clip_norm: largest global norm of the gradient; 0 turns clipping off.
            seed: seed of dropout.
            jit_compile: compile the whole step with XLA.
            validation_metrics: metrics that are not averages, updated in validation alone with the labels, the
                predicted labels and the weights, each [batch, slots]. `result` returns a dict of scalars.
        """
        keras.Model.compile(self, optimizer=optimizer, jit_compile=jit_compile)
        self._accumulate_steps = accumulate_steps
        self._clip_norm = clip_norm
        self._averages = AveragedMetrics(metrics, validation_metrics)
        self._first_position: tuple[int, int] | None = None
        self._forward_pass = use_step_dropout(self, seed, optimizer.iterations)
        self._distribute_reduction_method = "first"  # the results are the same on all replicas
        self.stop_request = build_stop_request()

    def label_outputs(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Losses [batch, slots], logits [batch, slots, classes], labels and weights [batch, slots].

        Losses and logits are float32 in any precision policy. A slot without a label has label 0, loss 0 and weight 0.

        Args:
            labels: int32 [batch, positions], `IGNORE_INDEX` at positions without a label.
        """
        raise NotImplementedError

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*self._averages.all, *self._averages.not_averaged] if hasattr(self, "_averages") else []

    def create_optimizer_weights(self) -> None:
        """Create the optimizer's variables before the first update, so that Keras traces the training step once."""
        with self.distribute_strategy.scope():
            optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
            optimizer._create_all_weights(self.trainable_variables)

    def resume_at(self, step: int, steps_per_epoch: int) -> None:
        """Make the next `fit` start after update `step`, which may lie inside an epoch.

        Args:
            step: number of updates already made; the first batch of the next `x` is that of the following update.
            steps_per_epoch: number of updates in an epoch.
        """
        self._first_position = divmod(step, steps_per_epoch)

    def fit(self, *arguments: Any, **options: Any) -> keras.callbacks.History:
        """Keras' `fit`, from the update that `resume_at` chose or from the first one."""
        self.create_optimizer_weights()
        try:
            return super().fit(*arguments, **options)
        finally:
            self._first_position = None

    def _maybe_load_initial_counters_from_ckpt(self, steps_per_epoch: int, initial_epoch: int) -> tuple[int, int]:
        # Keras calls this to ask its BackupAndRestore for the first epoch and the first step inside it.
        return self._first_position or (initial_epoch, 0)

    def train_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update, skipped if the loss or the gradient is not finite.

        A skipped update leaves weights, optimizer slots and metrics unchanged, and the returned `bad_step` is above 0.
        `optimizer.iterations` still counts it, as Keras' LossScaleOptimizer does, so that the schedule, dropout and
        the data remain functions of the step. With float16 a skipped step is bad only at a loss scale of 1: at a
        larger scale, the scale was the cause.

        Returns:
            The metrics averaged since the start of the epoch, and `bad_step`, float32.
        """
        features, labels = data
        replica = tf.distribute.get_replica_context()
        # The loss of a batch is its summed cross-entropy divided by its number of labels, over all replicas and parts.
        # The maximum makes it 0 instead of 0 / 0 for a batch without labels.
        num_labels = tf.reduce_sum(tf.cast(labels != IGNORE_INDEX, tf.float32))
        num_labels = tf.maximum(replica.all_reduce(tf.distribute.ReduceOp.SUM, num_labels), 1.0)
        gradients, sums = self._accumulate_gradients(features, labels, num_labels)
        if replica.num_replicas_in_sync > 1:
            exchanged = [tf.cast(gradient, self.gradient_precision) for gradient in gradients]
            exchanged = replica.all_reduce(tf.distribute.ReduceOp.SUM, exchanged)
            gradients = [tf.cast(gradient, tf.float32) for gradient in exchanged]
        sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        norm = tf.linalg.global_norm(gradients)
        # A non-finite loss can have a finite gradient.
        norm = tf.where(tf.math.is_finite(self._averages.by_name(sums)[LOSS.name]), norm, float("nan"))
        is_finite = tf.math.is_finite(norm)
        if self._clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, use_norm=norm)
        is_bad = tf.logical_not(is_finite)
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            is_bad &= self.optimizer.loss_scale <= 1.0
        self._apply_gradients(gradients, is_finite)
        self._averages.add(tf.where(is_finite, sums, tf.zeros_like(sums)))
        return self._averages.results() | {"bad_step": tf.cast(is_bad, tf.float32)} | self._stop_requests()

    def _apply_gradients(self, gradients: list[tf.Tensor], is_finite: tf.Tensor) -> None:
        """Apply the gradients, already summed over the replicas, if `is_finite`."""
        optimizer = self.optimizer

        def apply(gradients: list[tf.Tensor]) -> None:
            pairs = zip(gradients, self.trainable_variables, strict=True)
            optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

        def skip() -> None:
            optimizer.iterations.assign_add(1, read_value=False)

        def across_replicas(strategy: Any, gradients: list[tf.Tensor], is_finite: tf.Tensor) -> None:
            # The optimizer leaves the replica context, which TensorFlow does not allow inside a branch: branch outside.
            is_finite = strategy.experimental_local_results(is_finite)[0]
            tf.cond(is_finite, lambda: strategy.extended.call_for_each_replica(apply, args=(gradients,)), skip)

        if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
            # It skips a non-finite step by itself, and lowers its scale.
            apply([tf.where(is_finite, gradients[0], float("nan")), *gradients[1:]])
        elif tf.__internal__.distribute.strategy_supports_no_merge_call():
            tf.cond(is_finite, lambda: apply(gradients), skip)
        else:
            tf.distribute.get_replica_context().merge_call(across_replicas, args=(gradients, is_finite))

    def validate(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The `label_outputs` of a validation batch, which are added to the averaged metrics."""
        losses, logits, slot_labels, weights = self.label_outputs(features, labels, training=False)
        sums = self._averages.sums(losses, logits, slot_labels, weights)
        self._averages.add(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums))
        return losses, logits, slot_labels, weights

    def test_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor]) -> dict[str, tf.Tensor]:
        losses, logits, slot_labels, weights = self.validate(*data)
        results = self._averages.results()
        for metric in self._averages.not_averaged:
            metric.update_state(slot_labels, tf.argmax(logits, -1, output_type=tf.int32), weights)
            results |= metric.result()
        return results | self._stop_requests()

    def _stop_requests(self) -> dict[str, tf.Tensor]:
        return {STOP_REQUEST: self.stop_request.total()} if self.stop_request else {}

    def _accumulate_gradients(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, num_labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients of the batch's loss, and the sums for the metrics, over `accumulate_steps` parts in turn."""
        first_example: Any = 0  # of this replica, in the batch of all replicas
        if self.distribute_strategy.num_replicas_in_sync > 1:
            first_example = tf.distribute.get_replica_context().replica_id_in_sync_group * labels.shape[0]
        self._forward_pass.begin(first_example)
        if self._accumulate_steps == 1:
            return self._gradients(features, labels, num_labels)
        # Otherwise the last rows would be missing from the gradient although `num_labels` counts their labels.
        assert labels.shape[0] and labels.shape[0] % self._accumulate_steps == 0, (labels.shape, self._accumulate_steps)
        size = labels.shape[0] // self._accumulate_steps

        def add_part(part: tf.Tensor, *totals: tf.Tensor) -> list[tf.Tensor]:
            def rows(value: tf.Tensor) -> tf.Tensor:
                # Not a slice: XLA compiles a slice once for each `part` and runs each uncompiled the first time, with
                # other float bits than later, so that a resumed run would differ.
                return tf.gather(tf.reshape(value, [-1, size, value.shape[1]]), part)

            self._forward_pass.begin(first_example + part * size)
            gradients, sums_of_part = self._gradients(tf.nest.map_structure(rows, features), rows(labels), num_labels)
            addends = [*gradients, sums_of_part]
            return [part + 1, *(total + addend for total, addend in zip(totals, addends, strict=True))]

        zeros = [tf.zeros_like(variable) for variable in self.trainable_variables]
        zeros.append(tf.zeros([len(self._averages.names())], tf.float64))
        _, *total_gradients, total_sums = tf.while_loop(
            lambda part, *_: part < self._accumulate_steps, add_part, [tf.constant(0), *zeros], parallel_iterations=1
        )
        self._forward_pass.begin(first_example)  # `part` is a tensor of the loop, invalid outside it
        return total_gradients, total_sums

    def _gradients(
        self, features: dict[str, tf.Tensor], labels: tf.Tensor, num_labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        scales_loss = isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trainable_variables)  # not frozen ones, whose gradients would take time
            losses, logits, slot_labels, weights = self.label_outputs(features, labels, training=True)
            loss = tf.reduce_sum(losses) / num_labels
            if scales_loss:
                loss = self.optimizer.get_scaled_loss(loss)
        # Zeros for variables that the loss does not use: TFAlbertForMaskedLM has a bias that it never adds.
        gradients = tape.gradient(loss, self.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        if scales_loss:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        sums = self._averages.sums(losses, logits, slot_labels, weights)
        return [tf.convert_to_tensor(gradient) for gradient in gradients], sums
