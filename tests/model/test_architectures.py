"""The facts about the architectures, readable without TensorFlow, and the one place where one is added."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras as keras
import transformers

from tests.conftest import ROOT
from tests.model.conftest import (
    LENGTH,
    VOCAB_SIZE,
    assert_same_gradients,
    build,
    build_pair,
    compile_model,
    gradients_of,
    make_batch,
    read_arrays,
    stock_loss_and_gradients,
    tiny_config,
)
from tf_mlm.config import ModelConfig
from tf_mlm.model import architectures
from tf_mlm.model.architectures import ARCHITECTURES, Roberta, architecture_of, max_sequence_length
from tf_mlm.model.loading import load_model, load_trained
from tf_mlm.model.masked_lm import MaskedPositionsHead, model_class
from tf_mlm.model.matmul_peak import step_products
from tf_mlm.model.protocol import MaskedLanguageModel
from tf_mlm.model.saving import save_model
from tf_mlm.model.tokenizer import load_tokenizer


def test_the_facts_are_read_without_importing_tensorflow_or_transformers() -> None:
    program = """
import sys
from tf_mlm.model.architectures import architecture_of
print(architecture_of("roberta").stock_class_name, architecture_of("roberta").mask_token)
print([name for name in ("tensorflow", "tf_keras", "keras", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["TFRobertaForMaskedLM <mask>", "[]"]


def test_each_architecture_names_its_stock_class_and_type(model_type: str) -> None:
    architecture = architecture_of(model_type)
    stock: Any = getattr(transformers, architecture.stock_class_name)
    assert stock.config_class.model_type == architecture.model_type == model_type
    ours = model_class(model_type)
    assert issubclass(ours, stock) and issubclass(ours, MaskedPositionsHead) and issubclass(ours, architecture)
    assert issubclass(ours, keras.Model)  # of Keras 2, which transformers' TensorFlow models need
    assert f"TF{ours.__name__}" == stock.__name__  # its name is written to config.json
    assert model_class(model_type) is ours


def test_an_unknown_type_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        architecture_of("gpt2")


def test_a_model_has_all_members_of_the_protocol(model_type: str) -> None:
    model = compile_model(build(tiny_config(model_type)))
    members = {name for name in vars(MaskedLanguageModel) if not name.startswith("_")}
    members |= MaskedLanguageModel.__annotations__.keys() - {"history"}  # which `fit` sets
    assert {"config", "weights", "compile", "encode_positions"} < members
    assert [name for name in members if not hasattr(model, name)] == []
    for name in ("compile", "resume_at", "encode_positions", "predict_tokens", "create_optimizer_weights"):
        promised, ours = (inspect.signature(getattr(owner, name)) for owner in (MaskedLanguageModel, type(model)))
        assert list(ours.parameters) == list(promised.parameters), name
        defaults = [[parameter.default for parameter in s.parameters.values()] for s in (promised, ours)]
        assert defaults[0] == defaults[1], name


class Camembert(Roberta):
    """RoBERTa's model under another name: with one class, all of the package supports it."""

    model_type = "camembert"
    stock_class_name = "TFCamembertForMaskedLM"


def test_a_new_architecture_takes_one_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Any) -> None:
    monkeypatch.setitem(ARCHITECTURES, "camembert", Camembert)
    config_class: Any = transformers.CamembertConfig
    config = config_class(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=1,
        initializer_range=0.3,
    )  # fmt: skip
    assert max_sequence_length(config) == 18
    ours, stock = build_pair(config)
    features, labels = make_batch((3, 1, 0, 5, 2, 4))
    _, gradients = stock_loss_and_gradients(stock, features, labels)
    assert_same_gradients(gradients_of(compile_model(ours), features, labels), gradients)
    save_model(ours, tokenizer, tmp_path)
    assert "roberta.embeddings.word_embeddings.weight" in read_arrays(tmp_path)
    settings = ModelConfig(name=str(tmp_path))
    loaded, missing = load_model(settings, load_tokenizer(settings, ()), LENGTH)
    assert missing == []
    np.testing.assert_array_equal(loaded(features).logits, ours(features).logits)
    assert load_trained(str(tmp_path))[0].config.model_type == "camembert"
    assert step_products(config, 6, LENGTH, num_slots=5)
    assert architectures.architecture_of("camembert") is Camembert
