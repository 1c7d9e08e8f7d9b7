"""Models from directories of other libraries' files, new models, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tf_keras as keras
import transformers

from tests.model.conftest import (
    VOCAB_SIZE,
    build,
    make_batch,
    one_layer_config,
    own_name,
    pytorch_arrays,
    read_arrays,
    refusal,
    tiny_config,
    write_arrays,
)
from tf_mlm.commands.main import main
from tf_mlm.config import ModelConfig
from tf_mlm.errors import HubOutOfReach, Refused
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.loading import load_model, load_model_config, load_trained
from tf_mlm.model.saving import save_model
from tf_mlm.model.tokenizer import build_tokenizer, load_tokenizer


def load(folder: Path, tokenizer: Any, sequence_length: int = 10, **settings: Any) -> tuple[Any, list[str]]:
    return load_model(ModelConfig(name=str(folder), **settings), tokenizer, sequence_length)


def test_a_pytorch_checkpoint_loads_with_every_weight_equal(tmp_path: Path, tokenizer: Any) -> None:
    """transformers 4.55 and later cannot: `'builtins.safe_open' object is not iterable`."""
    arrays = pytorch_arrays(np.random.default_rng(1))
    write_arrays(tmp_path, arrays | {"vocab_projector.weight": arrays["distilbert.embeddings.word_embeddings.weight"]})
    one_layer_config().save_pretrained(tmp_path)
    model, missing = load(tmp_path, tokenizer)
    assert missing == []
    layer = "distilbert/transformer/layer_._0"
    found = {own_name(variable): variable.numpy() for variable in model.weights}
    assert len(found) == len(arrays) == 25
    for tf_name, pt_name in {
        f"{layer}/ffn/lin1/kernel:0": "distilbert.transformer.layer.0.ffn.lin1.weight",
        f"{layer}/attention/q_lin/kernel:0": "distilbert.transformer.layer.0.attention.q_lin.weight",
        "vocab_transform/kernel:0": "vocab_transform.weight",
    }.items():
        np.testing.assert_array_equal(found.pop(tf_name), arrays.pop(pt_name).T)
    np.testing.assert_array_equal(
        found["distilbert/embeddings/position_embeddings/embeddings:0"],
        arrays["distilbert.embeddings.position_embeddings.weight"],
    )
    remaining = {array.tobytes() for array in arrays.values()} | {array.T.tobytes() for array in arrays.values()}
    assert all(array.tobytes() in remaining for array in found.values())
    assert len({array.tobytes() for array in found.values()}) == len(found) == 22


def test_the_summary_of_distilbert_base_uncased_has_the_published_parameters(shared: Path) -> None:
    name = str(shared / "models" / "distilbert-base-uncased-config")
    config = ModelConfig(name=name, from_config=True)
    model, missing = load_model(config, load_tokenizer(config, ()), 128)
    assert missing == []
    lines: list[str] = []
    model.summary(print_fn=lines.append, line_length=120)
    layers = [line.split() for line in lines if "(" in line]
    assert [(line[0], int(line[-1])) for line in layers if line[0] != "Layer" and line[-1].isdigit()] == [
        ("distilbert", 66_362_880),
        ("vocab_transform", 590_592),
        ("vocab_layer_norm", 1_536),
        ("vocab_projector", 23_866_170),
    ]
    assert any(line.startswith("Total params: 66985530 ") for line in lines)


def test_a_checkpoint_without_head_is_trained_with_a_newly_initialized_one(
    tmp_path: Path, tokenizer: Any, model_type: str
) -> None:
    save_model(build(tiny_config(model_type)), tokenizer, tmp_path)
    arrays = read_arrays(tmp_path)
    head = sorted(name for name in arrays if not name.startswith(f"{model_type}."))
    assert 4 < len(head) < 7
    write_arrays(tmp_path, {name: array for name, array in arrays.items() if name not in head})
    _, missing = load(tmp_path, tokenizer)
    assert missing == head
    # The commands that use a model need a trained head.
    with pytest.raises(Refused, match=f"{len(head)} weights of the masked language modeling head are missing"):
        load_trained(str(tmp_path))


def test_an_encoder_saved_without_its_prefix_loads(tmp_path: Path, tokenizer: Any) -> None:
    """As AutoModel.save_pretrained of PyTorch writes one."""
    arrays = pytorch_arrays(np.random.default_rng(1), prefix="")
    head = sorted(name for name in arrays if name.startswith("vocab_"))
    write_arrays(tmp_path, {name: array for name, array in arrays.items() if name not in head})
    one_layer_config().save_pretrained(tmp_path)
    model, missing = load(tmp_path, tokenizer)
    assert missing == head
    np.testing.assert_array_equal(model.weights[0], arrays["embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("with_head", [True, False])
def test_a_tensorflow_h5_checkpoint_loads(tmp_path: Path, tokenizer: Any, with_head: bool) -> None:
    stock = build(tiny_config("distilbert"), stock=True)
    if not with_head:
        keras.utils.set_random_seed(3)
        encoder_class: Any = transformers.TFDistilBertModel
        stock = encoder_class(tiny_config("distilbert"))
        stock.build_in_name_scope()
    stock.save_pretrained(tmp_path)
    assert (tmp_path / "tf_model.h5").exists()
    model, missing = load(tmp_path, tokenizer)
    assert missing == ([] if with_head else ["vocab_layer_norm", "vocab_projector", "vocab_transform"])
    mine = {own_name(variable): variable.numpy() for variable in model.weights}
    for variable in stock.weights:
        np.testing.assert_array_equal(mine[own_name(variable)], variable)


@pytest.mark.parametrize("with_head", [True, False])
def test_a_sharded_pytorch_checkpoint_loads(tmp_path: Path, tokenizer: Any, model_type: str, with_head: bool) -> None:
    saved = build(tiny_config(model_type))
    save_model(saved, tokenizer, tmp_path)
    arrays = read_arrays(tmp_path)
    head = sorted(name for name in arrays if not name.startswith(f"{model_type}."))
    kept = sorted(arrays if with_head else arrays.keys() - head)
    (tmp_path / "model.safetensors").unlink()
    shards = {f"model-{n + 1:05d}-of-00003.safetensors": kept[n::3] for n in range(3)}
    for shard, names in shards.items():
        part = {name: arrays[name] for name in names}
        safetensors.numpy.save_file(part, tmp_path / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model, missing = load(tmp_path, tokenizer)
    assert missing == ([] if with_head else head)
    encoders = [getattr(which, which.base_model_prefix) for which in (model, saved)]
    weights = [which.weights for which in ((model, saved) if with_head else encoders)]
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_newly_initialized_weights_from_a_config_ignore_the_checkpoint(folder: Path, tokenizer: Any) -> None:
    model, missing = load(folder, tokenizer, from_config=True)
    assert missing == []
    assert model.weights[0].shape == (VOCAB_SIZE, 16)
    stored = read_arrays(folder)["distilbert.embeddings.word_embeddings.weight"]
    assert np.abs(model.weights[0].numpy() - stored).max() > 0.1
    (folder / "model.safetensors").unlink()
    load(folder, tokenizer, from_config=True)


def test_a_new_model_has_the_sizes_of_the_settings_and_the_vocabulary_of_the_tokenizer(tokenizer: Any) -> None:
    config = ModelConfig(name="", n_layers=1, dim=12, n_heads=3, hidden_dim=20, dropout=0.25)
    model, missing = load_model(config, tokenizer, 600)
    assert missing == []
    c = model.config
    assert (c.n_layers, c.dim, c.n_heads, c.hidden_dim, c.dropout, c.attention_dropout) == (1, 12, 3, 20, 0.25, 0.25)
    assert (c.vocab_size, c.max_position_embeddings, c.pad_token_id) == (len(tokenizer), 600, 0)
    assert model.weights[0].shape == (len(tokenizer), 12)


@pytest.mark.parametrize(
    "missing", ["distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.1.ffn.lin2.bias"]
)
def test_a_missing_weight_of_the_encoder_is_refused_by_name(folder: Path, tokenizer: Any, missing: str) -> None:
    arrays = read_arrays(folder)
    del arrays[missing]
    write_arrays(folder, arrays)
    message = refusal(load, folder, tokenizer)
    assert f": encoder weights are missing: {missing}; pass a complete checkpoint, or set model.from_config" in message


def test_a_missing_layer_of_an_h5_encoder_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    build(one_layer_config(), stock=True).save_pretrained(tmp_path)
    tiny_config("distilbert").save_pretrained(tmp_path)
    message = refusal(load, tmp_path, tokenizer)
    assert "encoder weights are missing: " in message and " and 15 more; " in message


def test_a_weight_of_another_shape_is_refused(folder: Path, tokenizer: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dim": 32}))
    message = refusal(load, folder, tokenizer)
    assert message.startswith(f"model.name = {str(folder)!r}: cannot be loaded: ")


def test_an_unsupported_architecture_is_refused_with_the_supported_ones(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    message = refusal(load_model_config, ModelConfig(name=str(folder)))
    assert "the architecture 'gpt2' is not supported; pass one of distilbert, bert, roberta, albert" in message


@pytest.mark.parametrize(
    "content", ["{", "", "[]", "null", '{"model_type": "no such"}', '{"model_type": [1]}', '{"vocab_size": 3}']
)
def test_an_invalid_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert str(folder) in refusal(load_model_config, ModelConfig(name=str(folder)))


def test_a_folder_without_config_is_refused(folder: Path, tokenizer: Any) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(load, folder, tokenizer)


def test_a_missing_folder_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    assert "no such file or directory" in refusal(load, tmp_path / "nothing", tokenizer)


def test_a_folder_without_weights_is_refused_with_two_solutions(folder: Path, tokenizer: Any) -> None:
    (folder / "model.safetensors").unlink()
    message = refusal(load, folder, tokenizer)
    assert "has no weights" in message
    assert "model.from_config = true" in message
    assert "pickle" not in message


def test_a_pickle_is_never_loaded(folder: Path, tokenizer: Any) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle, which is never loaded" in refusal(load, folder, tokenizer)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def huge_header(content: bytes) -> bytes:
    return b"\xff" * 8 + content[8:]


@pytest.mark.parametrize("damage", [truncate, huge_header, lambda content: b"", lambda content: b"not a tensor file"])
def test_damaged_weights_are_refused(folder: Path, tokenizer: Any, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert f"model.name = {str(folder)!r}: cannot be loaded: " in refusal(load, folder, tokenizer)


def test_a_tokenizer_larger_than_the_vocabulary_of_the_model_is_refused_with_both_numbers(
    folder: Path, tokenizer: Any
) -> None:
    larger = build_tokenizer([" ".join(chr(0x61 + i) * 3 for i in range(26))] * 2, 80)
    assert len(larger) > VOCAB_SIZE
    message = refusal(load, folder, larger)
    assert f"the tokenizer has {len(larger)} tokens, the model 50" in message


@pytest.mark.parametrize(
    ("model_type", "positions"), [("distilbert", 20), ("bert", 20), ("roberta", 18), ("albert", 20)]
)
def test_sequences_longer_than_the_positions_are_refused(
    tmp_path: Path, tokenizer: Any, model_type: str, positions: int
) -> None:
    """RoBERTa counts its positions from the id of the padding token + 1."""
    config = tiny_config(model_type)
    config.pad_token_id = 1 if model_type == "roberta" else 0
    assert max_sequence_length(config) == positions
    save_model(build(config), tokenizer, tmp_path)
    model, _ = load(tmp_path, tokenizer, sequence_length=positions)
    features, _ = make_batch((0,), length=positions)
    features["input_ids"] = tf.fill([1, positions], 7)
    assert np.isfinite(model(features).logits).all()
    message = refusal(load, tmp_path, tokenizer, sequence_length=positions + 1)
    assert f"data.sequence_length = {positions + 1}: " in message
    assert f"has {positions} positions" in message


def test_a_hub_name_without_a_connection_is_out_of_reach(tokenizer: Any) -> None:
    with pytest.raises(HubOutOfReach, match="connect once, pass a local directory, or run the sample"):
        load_tokenizer(ModelConfig(name="someone/no-such-model"), ())
    with pytest.raises(HubOutOfReach):
        load_model(ModelConfig(name="someone/no-such-model"), tokenizer, 10)


def test_a_trained_model_computes_with_the_policy_asked_for(folder: Path, policy: Callable[[str], None]) -> None:
    """Keras reads the policy when a layer is built; one set later has no effect."""
    model: Any
    model, _ = load_trained(str(folder), policy="mixed_bfloat16")
    assert keras.mixed_precision.global_policy().name == "float32"
    assert model.vocab_transform(tf.zeros([1, 16])).dtype == tf.bfloat16
    policy("mixed_bfloat16")
    model, _ = load_trained(str(folder))
    policy("float32")
    assert model.vocab_transform(tf.zeros([1, 16])).dtype == tf.float32


# How a message names the model: as the setting in a training, as typed for a command.


def command_error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on stderr with which a command refuses its arguments."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_fill_mask_on_a_missing_folder_names_it_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    line = command_error(capsys, "fill-mask", "/nonexistent", "a [MASK]")
    assert line == "error: /nonexistent: no such file or directory; a Hub name is written owner/name"


CONFIGS_OF_OTHER_KINDS = {
    None: "has no config.json; pass a run or model directory",
    "{}": "config.json has no model_type; pass a model of a supported type: distilbert, bert, roberta, albert",
    '{"model_type": "gpt2"}': (
        "the architecture 'gpt2' is not supported; pass one of distilbert, bert, roberta, albert"
    ),
}


@pytest.mark.parametrize("content", CONFIGS_OF_OTHER_KINDS)
def test_fill_mask_on_a_folder_that_is_no_model_does_not_list_the_architectures_of_transformers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    """A path that contains the name of an architecture changes nothing."""
    folder = tmp_path / "albert"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if content:
        (folder / "config.json").write_text(content)
    assert command_error(capsys, "fill-mask", ".", "a [MASK]") == f"error: .: {CONFIGS_OF_OTHER_KINDS[content]}"


COMMANDS = {
    "fill-mask": ["a [MASK]"],
    "explain": ["a film"],
    "evaluate": ["--dataset", "sample"],
    "export": ["--output", "exported"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_only_a_training_is_advised_to_initialize_missing_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tokenizer: Any, command: str
) -> None:
    monkeypatch.chdir(folder.parent)
    config = tiny_config("distilbert")
    config.max_position_embeddings = 128  # evaluate's sequence length
    save_model(build(config), tokenizer, folder)
    weights, advice = folder / "model.safetensors", "model.from_config = true for newly initialized weights"
    weights.rename(folder / "pytorch_model.bin")
    line = command_error(capsys, command, "model", *COMMANDS[command])
    assert line == (
        "error: model: has no weights (model.safetensors or tf_model.h5); pytorch_model.bin is a pickle, which is "
        "never loaded; save them as safetensors"
    )
    (folder / "pytorch_model.bin").unlink()
    line = command_error(capsys, command, "model", *COMMANDS[command])
    assert line == "error: model: has no weights (model.safetensors or tf_model.h5); add them"
    assert advice in refusal(load, folder, tokenizer)

    save_model(build(config), tokenizer, folder)
    arrays = read_arrays(folder)
    removed = "distilbert.embeddings.word_embeddings.weight"
    write_arrays(folder, {name: array for name, array in arrays.items() if name != removed})
    line = command_error(capsys, command, "model", *COMMANDS[command])
    assert line == f"error: model: encoder weights are missing: {removed}; pass a complete checkpoint"
    assert advice in refusal(load, folder, tokenizer)

    head = [name for name in arrays if name.startswith("vocab_")]
    write_arrays(folder, {name: array for name, array in arrays.items() if name not in head})
    line = command_error(capsys, command, "model", *COMMANDS[command])
    assert line.startswith("error: model: 5 weights of the masked language modeling head are missing (vocab_layer_norm")
    assert line.endswith("); train it first with train.py --model")
