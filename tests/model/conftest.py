"""TensorFlow imported as the commands do, before the test modules import it, and tiny models of all architectures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tf_mlm import runtime
from tf_mlm.config import TrainingConfig

runtime.prepare(TrainingConfig())

import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402
import transformers  # noqa: E402
from transformers.configuration_utils import PretrainedConfig  # noqa: E402

from tf_mlm.errors import Refused  # noqa: E402
from tf_mlm.model.architectures import ARCHITECTURES  # noqa: E402
from tf_mlm.model.masked_lm import model_class  # noqa: E402
from tf_mlm.model.saving import save_model  # noqa: E402
from tf_mlm.model.tokenizer import build_tokenizer  # noqa: E402

VOCAB_SIZE = 50
LENGTH = 12
WORDS = "the film was long and the plot made no sense but we liked it".split()


def tiny_config(model_type: str, dropout: float = 0.0) -> PretrainedConfig:
    """Two layers, 16 wide, with weights large enough that gradients exceed rounding errors."""
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


def build(config: PretrainedConfig, *, stock: bool = False, seed: int = 3) -> Any:
    """A model with random weights, the same for the same seed; of transformers' own class if `stock`."""
    ours = model_class(config.model_type)
    keras.utils.set_random_seed(seed)
    model = (getattr(transformers, f"TF{ours.__name__}") if stock else ours)(config)
    model.build_in_name_scope()
    return model


def build_pair(config: PretrainedConfig) -> Any:
    """Our model and the stock one, with equal weights; biases and LayerNorms are no longer 0 and 1."""
    ours, stock = build(config), build(config, stock=True)
    numbers = np.random.default_rng(5)
    for mine, theirs in zip(ours.weights, stock.weights, strict=True):
        value = mine.numpy() + numbers.normal(0, 0.1, mine.shape).astype(np.float32) * (mine.shape.rank == 1)
        mine.assign(value)
        theirs.assign(value)
    return ours, stock


def make_batch(
    num_labels: Sequence[int] = (3, 1, 0, 5, 2, 4), vocab_size: int = VOCAB_SIZE, length: int = LENGTH, seed: int = 7
) -> Any:
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


def compile_model(model: Any, *, optimizer: Any = None, **options: Any) -> Any:
    """Compiled with 5 slots a sequence, the most labels that `make_batch` gives a row."""
    model.compile(optimizer or keras.optimizers.legacy.SGD(1.0), **({"max_masked_per_sequence": 5} | options))
    return model


def gradients_of(model: Any, features: Any, labels: Any) -> dict[str, np.ndarray]:
    """The gradients that one training step passes to the optimizer, by variable; no weight is changed."""
    handed = []
    model.optimizer.apply_gradients = lambda pairs, **_: handed.extend(pairs)
    model.reset_metrics()
    model.train_step((features, labels))
    del model.optimizer.apply_gradients
    return {own_name(variable): gradient.numpy() for gradient, variable in handed}


def stock_loss_and_gradients(model: Any, features: Any, labels: Any) -> Any:
    """Loss and gradients of transformers' class, whose loss over one batch is token-weighted, too."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(features, labels=labels, training=True).loss)
    gradients = tape.gradient(loss, model.trainable_variables)
    return float(loss), {
        own_name(variable): np.zeros(variable.shape) if gradient is None else tf.convert_to_tensor(gradient).numpy()
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
    }


def own_name(variable: Any) -> str:
    """Without the model's name, which Keras numbers."""
    return str(variable.name).partition("/")[2]


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


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The message of the `Refused` that the call raises, which must be one line."""
    with pytest.raises(Refused) as refused:
        call(*arguments, **options)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write_arrays(folder: Path, arrays: dict[str, np.ndarray], metadata_format: str = "pt") -> None:
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": metadata_format})


def one_layer_config() -> Any:
    config = tiny_config("distilbert")
    config.n_layers = 1
    return config


def pytorch_arrays(numbers: np.random.Generator, prefix: str = "distilbert.") -> dict[str, np.ndarray]:
    """A checkpoint as PyTorch writes one for one layer of DistilBERT, 16 wide: linear weights are [out, in]."""

    def draw(*shape: Any) -> np.ndarray:
        return numbers.normal(0, 0.3, shape).astype(np.float32)

    arrays = {
        "vocab_transform.weight": draw(16, 16),
        "vocab_transform.bias": draw(16),
        "vocab_layer_norm.weight": draw(16),
        "vocab_layer_norm.bias": draw(16),
        "vocab_projector.bias": draw(VOCAB_SIZE),
        f"{prefix}embeddings.word_embeddings.weight": draw(VOCAB_SIZE, 16),
        f"{prefix}embeddings.position_embeddings.weight": draw(20, 16),
        f"{prefix}embeddings.LayerNorm.weight": draw(16),
        f"{prefix}embeddings.LayerNorm.bias": draw(16),
    }
    layer = f"{prefix}transformer.layer.0"
    for name in ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"):
        arrays |= {f"{layer}.{name}.weight": draw(16, 16), f"{layer}.{name}.bias": draw(16)}
    for name in ("sa_layer_norm", "output_layer_norm"):
        arrays |= {f"{layer}.{name}.weight": draw(16), f"{layer}.{name}.bias": draw(16)}
    arrays |= {f"{layer}.ffn.lin1.weight": draw(24, 16), f"{layer}.ffn.lin1.bias": draw(24)}
    arrays |= {f"{layer}.ffn.lin2.weight": draw(16, 24), f"{layer}.ffn.lin2.bias": draw(16)}
    return arrays


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """45 entries at most, fewer than the 50 of the tiny models."""
    return build_tokenizer([" ".join(WORDS)] * 3, 45)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A saved tiny DistilBERT."""
    save_model(build(tiny_config("distilbert")), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(params=tuple(ARCHITECTURES))
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy() -> Any:
    """Sets the precision policy for one test."""
    yield keras.mixed_precision.set_global_policy
    keras.mixed_precision.set_global_policy("float32")
