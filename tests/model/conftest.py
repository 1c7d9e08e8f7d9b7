"""TensorFlow as the commands import it, before any test module here imports it; and the four architectures, tiny."""

import numpy as np
import pytest

from tf_mlm import runtime
from tf_mlm.config import TrainingConfig

runtime.prepare(TrainingConfig())

import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402
import transformers  # noqa: E402

from tf_mlm.model.masked_lm import MODEL_CLASSES  # noqa: E402

VOCAB_SIZE = 50
LENGTH = 12
ARCHITECTURES = tuple(MODEL_CLASSES)


def tiny_config(model_type: str, dropout: float = 0.0) -> transformers.PretrainedConfig:
    """Two layers, 16 wide, with weights so large that no gradient drowns in rounding."""
    if model_type == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=VOCAB_SIZE, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20,
            dropout=dropout, attention_dropout=dropout, initializer_range=0.3,
        )  # fmt: skip
    options = {"type_vocab_size": 1} if model_type == "roberta" else {}
    options |= {"embedding_size": 10} if model_type == "albert" else {}
    config_class = getattr(transformers, f"{model_type.capitalize()}Config")
    return config_class(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        initializer_range=0.3, **options,
    )  # fmt: skip


def build(config: transformers.PretrainedConfig, *, stock: bool = False, seed: int = 3):
    """A model with random weights, the same for the same seed; of transformers' own class if `stock`."""
    ours = MODEL_CLASSES[config.model_type]
    keras.utils.set_random_seed(seed)
    model = (getattr(transformers, f"TF{ours.__name__}") if stock else ours)(config)
    model.build_in_name_scope()
    return model


def build_pair(config: transformers.PretrainedConfig):
    """Our model and the stock one, with equal weights; biases and LayerNorms are no longer 0 and 1."""
    ours, stock = build(config), build(config, stock=True)
    numbers = np.random.default_rng(5)
    for mine, theirs in zip(ours.weights, stock.weights, strict=True):
        value = mine.numpy() + numbers.normal(0, 0.1, mine.shape).astype(np.float32) * (mine.shape.rank == 1)
        mine.assign(value)
        theirs.assign(value)
    return ours, stock


def make_batch(num_labels=(3, 1, 0, 5, 2, 4), vocab_size=VOCAB_SIZE, length=LENGTH, seed=7):
    """Rows of different lengths, `num_labels[i]` labels in row i: features, labels. The ids 0 to 4 are special."""
    numbers = np.random.default_rng(seed)
    shape = (len(num_labels), length)
    lengths = numbers.integers(length // 2, length + 1, len(num_labels))
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    input_ids = np.where(mask, numbers.integers(5, vocab_size, shape), 0).astype(np.int32)
    labels = np.full(shape, -100, np.int32)
    for row, count in enumerate(num_labels):
        chosen = numbers.choice(lengths[row], count, replace=False)
        labels[row, chosen] = numbers.integers(5, vocab_size, count)
    return {"input_ids": tf.constant(input_ids), "attention_mask": tf.constant(mask)}, tf.constant(labels)


def compile_model(model, *, optimizer=None, **options):
    """Compiled with 5 slots a sequence, the most labels that `make_batch` gives a row."""
    model.compile(optimizer or keras.optimizers.legacy.SGD(1.0), **({"max_masked_per_sequence": 5} | options))
    return model


def gradients_of(model, features, labels) -> dict[str, np.ndarray]:
    """By variable, what one training step hands to the optimizer; no weight is changed."""
    handed = []
    model.optimizer.apply_gradients = lambda pairs, **_: handed.extend(pairs)
    model.reset_metrics()
    model.train_step((features, labels))
    del model.optimizer.apply_gradients
    return {own_name(variable): gradient.numpy() for gradient, variable in handed}


def own_name(variable) -> str:
    """Without the model's name, which Keras numbers."""
    return variable.name.partition("/")[2]


def assert_same_gradients(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """For every variable, max|difference| <= tolerance * max|gradient| of that variable.

    A bias of the keys has no gradient but rounding, since it moves every score of a row alike: it is held to the
    largest gradient of all.
    """
    assert len(ours) == len(theirs) > 20
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for (name, mine), (_, other) in zip(ours.items(), theirs.items(), strict=True):
        of_keys = name.endswith(("k_lin/bias:0", "key/bias:0"))
        scale = largest if of_keys else np.abs(other).max()
        assert np.abs(mine - other).max() <= tolerance * scale, name
        assert of_keys or scale > 0 or name.endswith("predictions/bias:0"), name


@pytest.fixture(params=ARCHITECTURES)
def model_type(request) -> str:
    return request.param


@pytest.fixture
def policy():
    """Sets the precision policy for one test."""
    yield keras.mixed_precision.set_global_policy
    keras.mixed_precision.set_global_policy("float32")
