"""`model.train` chooses the weights that training changes."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.model.conftest import build, compile_model, gradients_of, make_batch, tiny_config
from tf_mlm.config import OptimizerConfig
from tf_mlm.errors import Refused
from tf_mlm.model.architectures import ARCHITECTURES
from tf_mlm.model.freezing import freeze
from tf_mlm.model.label_model import label_model_class
from tf_mlm.model.optimizer import build_optimizer
from tf_mlm.model.saving import pytorch_name

HEADS = {
    "distilbert": {"vocab_transform", "vocab_layer_norm", "vocab_projector"},
    "bert": {"mlm___cls"},
    "roberta": {"lm_head"},
    "albert": {"predictions"},
}


def products_in_step(model: Any) -> int:
    """The number of matrix products in the graph of a training step."""
    step = tf.function(model.train_step).get_concrete_function(make_batch())
    return sum("MatMul" in operation.type for operation in step.graph.get_operations())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_only_the_head_changes_and_its_gradients_are_those_of_full_training(model_type: str) -> None:
    everything = compile_model(build(tiny_config(model_type)))
    head = build(tiny_config(model_type))
    freeze(head, "head", [])
    compile_model(head)
    expected, found = gradients_of(everything, *make_batch()), gradients_of(head, *make_batch())
    assert {name.split("/")[0] for name in found} == HEADS[model_type]
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-6)
    before = {weight.name: weight.numpy() for weight in head.weights}
    head.train_step(make_batch())
    changed = {weight.name.split("/")[1] for weight in head.weights if (weight.numpy() != before[weight.name]).any()}
    assert changed == HEADS[model_type]


def test_frozen_weights_have_no_backward_pass_and_no_optimizer_state() -> None:
    models = []
    for train in ("all", ("layer.1", "head"), "head"):
        model = build(tiny_config("distilbert"))
        freeze(model, train, [])
        models.append(compile_model(model, optimizer=build_optimizer(OptimizerConfig(), 9, "float32")))
    everything, last_layer, head = map(products_in_step, models)
    forward = 2 * 8 + 2  # a layer has 6 products with weights and 2 in the attention; the head has 2
    # The backward pass of the head: the gradients of both inputs of the transformation's product, except the frozen
    # ones: of the hidden states, and of the word embeddings.
    assert head == forward + 2 and everything == forward + 2 * forward
    assert head < last_layer < everything
    model = models[-1]
    model.create_optimizer_weights()
    sizes = {variable.shape.num_elements() for variable in model.optimizer.variables()[1:]}
    assert len(model.optimizer.variables()) == 1 + 2 * len(model.trainable_variables)
    assert sizes == {weight.shape.num_elements() for weight in model.trainable_variables}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("part", ["bias", "LayerNorm", "position_embeddings", "word_embeddings", "dense", "attention"])
def test_a_part_selects_exactly_the_weights_with_it_in_their_names(model_type: str, part: str) -> None:
    model = build(tiny_config(model_type))
    names = {pytorch_name(weight)[0] for weight in model.weights}
    expected = {name for name in names if part in name.split(".")}
    if not expected:
        with pytest.raises(Refused):
            freeze(model, [part], [])
        return
    freeze(model, [part], [])
    assert {pytorch_name(weight)[0] for weight in model.trainable_variables} == expected
    assert {pytorch_name(weight)[0] for weight in model.non_trainable_variables} == names - expected
    assert {pytorch_name(weight)[0] for weight in model.weights} == names


def test_a_list_selects_the_weights_of_each_of_its_parts() -> None:
    model = build(tiny_config("distilbert"))
    freeze(model, ["layer.1.attention", "vocab_layer_norm"], [])
    names = [pytorch_name(weight)[0] for weight in model.trainable_variables]
    linear = [f"distilbert.transformer.layer.1.attention.{name}_lin" for name in ("q", "k", "v", "out")]
    layers = [*linear, "vocab_layer_norm"]
    assert sorted(names) == sorted(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


def test_the_newly_initialized_pooler_belongs_to_the_head() -> None:
    model = label_model_class("bert", "classification")(tiny_config("bert"))
    model.build_in_name_scope()
    pooler = [weight.name for weight in model.weights if "/pooler/" in weight.name]
    freeze(model, "head", pooler)
    names = {pytorch_name(weight)[0] for weight in model.trainable_variables}
    assert names == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("train", ["layer.7", "ayer.1", ["head", "nothing"]])
def test_a_name_that_selects_nothing_is_refused_with_the_valid_names(train: Any) -> None:
    with pytest.raises(
        Refused, match=r"model\.train: '.*' is not a part of the name .* distilbert\.transformer\.layer\.1"
    ):
        freeze(build(tiny_config("distilbert")), train, [])


def test_all_weights_are_trained_by_default() -> None:
    model = build(tiny_config("distilbert"))
    freeze(model, "all", [])
    assert len(model.trainable_variables) == len(model.weights) and not model.non_trainable_variables
