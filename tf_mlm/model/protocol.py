"""The interface of a masked language model, for the types of all other modules. TensorFlow is not imported here."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig


class MaskedLanguageModel(Protocol):
    """A model of `masked_lm.model_class`: a Keras model, a Hugging Face model, and our training step.

    Tensors, variables and Keras objects are `Any`, because TensorFlow ships no types.

    Attributes:
        base_model_prefix: name of the attribute with the encoder.
        stop_training: a callback sets it to end `fit`.
        weights: all variables; tied weights occur once.
        metrics: Keras metrics in the order of `metrics.METRICS`, without those computed from the loss.
        history: Keras' `History` of the last `fit`.
        distribute_strategy: the `tf.distribute` strategy in whose scope the model was built.
    """

    config: "PretrainedConfig"
    base_model_prefix: str
    optimizer: Any
    stop_training: bool
    history: Any

    @property
    def weights(self) -> list[Any]: ...

    @property
    def trainable_variables(self) -> list[Any]: ...

    @property
    def metrics(self) -> list[Any]: ...

    @property
    def submodules(self) -> Iterable[Any]: ...

    @property
    def distribute_strategy(self) -> Any: ...

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Hugging Face's call: `.logits` of what it returns is float [batch, length, vocabulary]."""

    def encode_positions(
        self, input_ids: Any, attention_mask: Any, positions: Any, training: bool, position_ids: Any = None
    ) -> Any:
        """See `Architecture.encode_positions`."""

    def predict_tokens(self, hidden_states: Any, training: bool) -> Any:
        """See `Architecture.predict_tokens`."""

    def compile(
        self,
        optimizer: Any,
        *,
        max_masked_per_sequence: int,
        accumulate_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        jit_compile: bool = False,
    ) -> None:
        """See `MaskedPositionsHead.compile`."""

    def create_optimizer_weights(self) -> None:
        """See `MaskedPositionsHead.create_optimizer_weights`."""

    def resume_at(self, step: int, steps_per_epoch: int) -> None:
        """See `MaskedPositionsHead.resume_at`."""

    def fit(self, x: Any, **options: Any) -> Any:
        """Keras' `fit`, from the update that `resume_at` chose or from the first one."""

    def evaluate(self, x: Any, *, verbose: int, return_dict: bool = False, **options: Any) -> Any:
        """Keras' `evaluate`."""

    def validate(self, features: Any, labels: Any) -> Any:
        """See `TrainingStep.validate`."""

    def reset_metrics(self) -> None:
        """Set the metrics to zero, as `evaluate` does at its start."""

    def build_in_name_scope(self) -> None:
        """Create the variables under the names that the checkpoint uses."""

    def count_params(self) -> int:
        """Number of parameters; tied weights count once."""

    def summary(self, **options: Any) -> None:
        """Keras' `summary`."""
