"""Classification models compute what transformers' own models compute, and learn through the shared training step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import transformers

from tests.model.conftest import LENGTH, tiny_config
from tf_mlm.config import ModelConfig, OptimizerConfig
from tf_mlm.data.masking import IGNORE_INDEX
from tf_mlm.model.architectures import ARCHITECTURES
from tf_mlm.model.label_model import label_model_class
from tf_mlm.model.loading import load_label_model, load_trained_label_model
from tf_mlm.model.optimizer import build_optimizer
from tf_mlm.model.saving import save_model
from tf_mlm.model.tokenizer import build_tokenizer

TAGS = ["O", "B-PER", "I-PER"]


def build(model_type: str, objective: str, names: list[str]) -> Any:
    config = tiny_config(model_type)
    config.id2label, config.label2id = dict(enumerate(names)), {name: index for index, name in enumerate(names)}
    keras.utils.set_random_seed(3)
    model = label_model_class(model_type, objective)(config)
    model.build_in_name_scope()
    return model


def make_batch(objective: str, num_rows: int = 6) -> Any:
    numbers = np.random.default_rng(2)
    lengths = numbers.integers(LENGTH // 2, LENGTH + 1, num_rows)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    input_ids = np.where(mask, numbers.integers(5, 50, mask.shape), 0).astype(np.int32)
    if objective == "classification":
        labels = (input_ids[:, 1:2] % 3).astype(np.int32)
        labels[-1] = IGNORE_INDEX  # a filler row
    else:
        labels = np.where((mask > 0) & (np.arange(LENGTH) % 2 == 1), input_ids % 3, IGNORE_INDEX).astype(np.int32)
    return {"input_ids": tf.constant(input_ids), "attention_mask": tf.constant(mask)}, tf.constant(labels)


@pytest.mark.parametrize("objective", ["classification", "token_classification"])
@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_the_loss_is_that_of_the_stock_model(model_type: str, objective: str) -> None:
    model = build(model_type, objective, TAGS)
    features, labels = make_batch(objective)
    head = {"classification": "SequenceClassification", "token_classification": "TokenClassification"}[objective]
    stock_name = ARCHITECTURES[model_type].stock_class_name.replace("MaskedLM", head)
    stock = getattr(transformers, stock_name)(model.config)
    stock.build_in_name_scope()
    for mine, theirs in zip(model.weights, stock.weights, strict=True):
        assert mine.shape == theirs.shape
        theirs.assign(mine)
    logits = stock(features).logits.numpy()
    logits = logits[:, None] if logits.ndim == 2 else logits
    labeled = labels.numpy() != IGNORE_INDEX
    shifted = logits[labeled] - logits[labeled].max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_probabilities, labels.numpy()[labeled][:, None], 1).mean()

    model.compile(build_optimizer(OptimizerConfig(), 10, "float32"), objective)
    results = model.test_step((features, labels))
    assert float(results["loss"]) == pytest.approx(expected, rel=1e-5)
    accuracy = (logits[labeled].argmax(-1) == labels.numpy()[labeled]).mean()
    assert float(results["accuracy"]) == pytest.approx(accuracy)


@pytest.mark.parametrize("objective", ["classification", "token_classification"])
def test_fit_learns_the_labels_and_reports_the_metrics_of_the_objective(objective: str) -> None:
    model = build("distilbert", objective, TAGS)
    batch = make_batch(objective)
    config = OptimizerConfig(learning_rate=3e-3, warmup_ratio=0.0)
    model.compile(build_optimizer(config, 300, "float32"), objective, accumulate_steps=2)
    dataset = tf.data.Dataset.from_tensors(batch)
    history = model.fit(dataset.repeat(), steps_per_epoch=100, epochs=1, validation_data=dataset, verbose=0).history
    final = {"classification": "macro_f1", "token_classification": "entity_f1"}[objective]
    assert history["val_accuracy"] == [1.0] and history[f"val_{final}"] == [1.0]
    assert history["val_loss"][0] < 0.2


@pytest.mark.parametrize(
    ("names", "is_new"),
    [(["no", "yes"], False), (["yes", "no"], True), (["no", "maybe"], True), (["a", "b", "c"], True)],
)
def test_a_head_for_other_labels_is_newly_initialized_and_the_encoder_is_kept(
    tmp_path: Path, names: list[str], is_new: bool
) -> None:
    tokenizer = build_tokenizer(["a film"], 50)
    save_model(build("distilbert", "classification", ["no", "yes"]), tokenizer, tmp_path)
    config = ModelConfig(name=str(tmp_path))
    model, new_weights = load_label_model(config, tokenizer, 8, "classification", names)
    saved, _ = load_trained_label_model(str(tmp_path))
    assert list(model.config.id2label.values()) == names
    for mine, theirs in zip(model.distilbert.weights, saved.distilbert.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert {name.split("/")[1] for name in new_weights} == ({"pre_classifier", "classifier"} if is_new else set())
    is_same = np.array_equal(model.pre_classifier.kernel, saved.pre_classifier.kernel)
    assert is_same != is_new
