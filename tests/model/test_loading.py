"""Models and tokenizers in, and back out to files that every library reads."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tensorflow as tf
import tf_keras as keras
import transformers

from tests.conftest import ROOT
from tests.model.conftest import VOCAB_SIZE, build, compile_model, make_batch, own_name, tiny_config
from tf_mlm.config import ModelConfig
from tf_mlm.errors import HubOutOfReach, Refused
from tf_mlm.model.loading import (
    build_tokenizer,
    load_model,
    load_model_config,
    load_tokenizer,
    load_trained,
    max_sequence_length,
    save_model,
)

WORDS = "the film was long and the plot made no sense but we liked it".split()


@pytest.fixture(scope="module")
def tokenizer():
    """45 entries at most, fewer than the 50 of the tiny models."""
    return build_tokenizer([" ".join(WORDS)] * 3, 45)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A saved tiny DistilBERT."""
    save_model(build(tiny_config("distilbert")), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def load(folder, tokenizer, sequence_length=10, **settings):
    return load_model(ModelConfig(name=str(folder), **settings), tokenizer, sequence_length)


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(Refused) as refused:
        call(*arguments, **options)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def read_arrays(folder) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write_arrays(folder, arrays, metadata_format="pt") -> None:
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": metadata_format})


# ---- PyTorch files -------------------------------------------------------------------------------------------------


def pytorch_arrays(numbers, prefix="distilbert.") -> dict[str, np.ndarray]:
    """A checkpoint as PyTorch writes one for one layer of DistilBERT, 16 wide: linear weights are [out, in]."""

    def draw(*shape):
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


def one_layer_config():
    config = tiny_config("distilbert")
    config.n_layers = 1
    return config


def test_a_pytorch_checkpoint_loads_with_every_weight_equal(tmp_path, tokenizer):
    """transformers 4.55 and later cannot: `'builtins.safe_open' object is not iterable`."""
    arrays = pytorch_arrays(np.random.default_rng(1))
    write_arrays(tmp_path, arrays | {"vocab_projector.weight": arrays["distilbert.embeddings.word_embeddings.weight"]})
    one_layer_config().save_pretrained(tmp_path)
    model, fresh = load(tmp_path, tokenizer)
    assert fresh == []
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


def test_the_summary_of_distilbert_base_uncased_is_the_published_table(shared):
    name = str(shared / "models" / "distilbert-base-uncased-config")
    config = ModelConfig(name=name, from_config=True)
    model, fresh = load_model(config, load_tokenizer(config, ()), 128)
    assert fresh == []
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


# ---- save_model ----------------------------------------------------------------------------------------------------


def test_the_names_written_are_pytorchs_each_weight_once(tmp_path, tokenizer):
    save_model(build(one_layer_config()), tokenizer, tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    written, expected = read_arrays(tmp_path), pytorch_arrays(np.random.default_rng(1))
    assert {name: array.shape for name, array in written.items()} == {
        name: array.shape for name, array in expected.items()
    }
    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}


def test_what_is_saved_is_read_by_the_stock_class_with_the_same_logits(tmp_path, tokenizer, model_type):
    model = compile_model(build(tiny_config(model_type)), optimizer=keras.optimizers.legacy.Adam(1e-2))
    batch = make_batch()
    model.train_step(batch)
    save_model(model, tokenizer, tmp_path)
    stock = getattr(transformers, f"TF{type(model).__name__}")
    again, info = stock.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == info["mismatched_keys"] == []
    np.testing.assert_array_equal(again(batch[0]).logits, model(batch[0]).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["model_type"] == model_type
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) == len(tokenizer)


def test_the_bias_that_albert_trains_stands_under_both_its_names(tmp_path, tokenizer):
    """They are one in PyTorch, whichever name it reads; TensorFlow has two, and trains one."""
    model = compile_model(build(tiny_config("albert")), optimizer=keras.optimizers.legacy.Adam(1e-2))
    model.train_step(make_batch())
    save_model(model, tokenizer, tmp_path)
    arrays = read_arrays(tmp_path)
    assert np.abs(arrays["predictions.decoder.bias"]).max() > 0
    np.testing.assert_array_equal(arrays["predictions.bias"], arrays["predictions.decoder.bias"])


def test_mixed_precision_leaves_float32_on_disk(tmp_path, tokenizer, policy):
    policy("mixed_bfloat16")
    save_model(build(one_layer_config()), tokenizer, tmp_path)
    assert {array.dtype for array in read_arrays(tmp_path).values()} == {np.dtype(np.float32)}
    model, _ = load_trained(str(tmp_path))
    assert model(make_batch()[0]).logits.dtype == tf.float32
    assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_files_have_the_modes_that_the_umask_gives(tmp_path, tokenizer, umask, mode):
    before = os.umask(umask)
    try:
        save_model(build(one_layer_config()), tokenizer, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= modes.keys()
    assert modes == dict.fromkeys(modes, mode)


def test_a_tokenizer_that_cannot_be_written_is_input_output_that_failed(tmp_path, monkeypatch, tokenizer):
    def full(folder):
        raise Exception("No space left on device (os error 28)")  # as the tokenizers' own writer says it

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_model(build(one_layer_config()), tokenizer, tmp_path)


def test_the_fill_mask_pipeline_runs_on_a_saved_model(folder, tokenizer):
    # torch_dtype: its default, "auto", is looked up in PyTorch, which need not be installed.
    fill = transformers.pipeline("fill-mask", model=str(folder), framework="tf", torch_dtype=None)
    answers = fill("the plot made no [MASK]", top_k=3)
    encoded = tokenizer("the plot made no [MASK]", return_tensors="tf")
    model, _ = load_trained(str(folder))
    at_mask = tf.nn.softmax(model(dict(encoded)).logits[0, -2])
    best = np.argsort(at_mask)[::-1][:3]
    assert [answer["token"] for answer in answers] == best.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(at_mask.numpy()[best].tolist(), rel=1e-5)


# ---- other checkpoints ---------------------------------------------------------------------------------------------


def test_a_checkpoint_without_head_trains_with_a_fresh_one_which_is_named(tmp_path, tokenizer, model_type):
    save_model(build(tiny_config(model_type)), tokenizer, tmp_path)
    arrays = read_arrays(tmp_path)
    head = sorted(name for name in arrays if not name.startswith(f"{model_type}."))
    assert 4 < len(head) < 7
    write_arrays(tmp_path, {name: array for name, array in arrays.items() if name not in head})
    _, fresh = load(tmp_path, tokenizer)
    assert fresh == head
    # To be trained it is good enough, to answer it is not.
    with pytest.raises(Refused, match=f"lacks {len(head)} weights of the head that predicts words"):
        load_trained(str(tmp_path))


def test_an_encoder_saved_without_its_prefix_loads(tmp_path, tokenizer):
    """As AutoModel.save_pretrained of PyTorch writes one."""
    arrays = pytorch_arrays(np.random.default_rng(1), prefix="")
    head = sorted(name for name in arrays if name.startswith("vocab_"))
    write_arrays(tmp_path, {name: array for name, array in arrays.items() if name not in head})
    one_layer_config().save_pretrained(tmp_path)
    model, fresh = load(tmp_path, tokenizer)
    assert fresh == head
    np.testing.assert_array_equal(model.weights[0], arrays["embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("with_head", [True, False])
def test_a_tensorflow_h5_checkpoint_loads(tmp_path, tokenizer, with_head):
    stock = build(tiny_config("distilbert"), stock=True)
    if not with_head:
        keras.utils.set_random_seed(3)
        stock = transformers.TFDistilBertModel(tiny_config("distilbert"))
        stock.build_in_name_scope()
    stock.save_pretrained(tmp_path)
    assert (tmp_path / "tf_model.h5").exists()
    model, fresh = load(tmp_path, tokenizer)
    assert fresh == ([] if with_head else ["vocab_layer_norm", "vocab_projector", "vocab_transform"])
    mine = {own_name(variable): variable.numpy() for variable in model.weights}
    for variable in stock.weights:
        np.testing.assert_array_equal(mine[own_name(variable)], variable)


def test_random_weights_from_a_config_leave_the_checkpoint_alone(folder, tokenizer):
    model, fresh = load(folder, tokenizer, from_config=True)
    assert fresh == []
    assert model.weights[0].shape == (VOCAB_SIZE, 16)
    stored = read_arrays(folder)["distilbert.embeddings.word_embeddings.weight"]
    assert np.abs(model.weights[0].numpy() - stored).max() > 0.1
    (folder / "model.safetensors").unlink()
    load(folder, tokenizer, from_config=True)


def test_a_new_model_has_the_settings_sizes_and_the_tokenizers_vocabulary(tokenizer):
    config = ModelConfig(name="", n_layers=1, dim=12, n_heads=3, hidden_dim=20, dropout=0.25)
    model, fresh = load_model(config, tokenizer, 600)
    assert fresh == []
    c = model.config
    assert (c.n_layers, c.dim, c.n_heads, c.hidden_dim, c.dropout, c.attention_dropout) == (1, 12, 3, 20, 0.25, 0.25)
    assert (c.vocab_size, c.max_position_embeddings, c.pad_token_id) == (len(tokenizer), 600, 0)
    assert model.weights[0].shape == (len(tokenizer), 12)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing", ["distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.1.ffn.lin2.bias"]
)
def test_a_missing_weight_of_the_encoder_is_refused_by_name(folder, tokenizer, missing):
    arrays = read_arrays(folder)
    del arrays[missing]
    write_arrays(folder, arrays)
    message = refusal(load, folder, tokenizer)
    assert "1 of the encoder's weights are missing" in message
    assert missing in message


def test_a_missing_layer_of_an_h5_encoder_is_refused(tmp_path, tokenizer):
    build(one_layer_config(), stock=True).save_pretrained(tmp_path)
    tiny_config("distilbert").save_pretrained(tmp_path)
    assert "of the encoder's weights are missing" in refusal(load, tmp_path, tokenizer)


def test_a_weight_of_another_shape_is_refused(folder, tokenizer):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dim": 32}))
    message = refusal(load, folder, tokenizer)
    assert message.startswith(f"model.name = {str(folder)!r}: cannot be loaded: ")


def test_another_architecture_is_refused_with_those_that_are_offered(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    message = refusal(load_model_config, ModelConfig(name=str(folder)))
    assert "its architecture is 'gpt2'; those that can be trained are distilbert, bert, roberta, albert" in message


@pytest.mark.parametrize("content", ["{", "", "[]", "null", '{"model_type": "no such"}', '{"vocab_size": 3}'])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    assert str(folder) in refusal(load_model_config, ModelConfig(name=str(folder)))


def test_a_folder_without_config_is_refused(folder, tokenizer):
    (folder / "config.json").unlink()
    assert "holds no config.json" in refusal(load, folder, tokenizer)


def test_a_folder_that_is_not_there_is_refused(tmp_path, tokenizer):
    assert "no such file or folder" in refusal(load, tmp_path / "nothing", tokenizer)


def test_a_folder_without_weights_is_refused_with_the_way_on(folder, tokenizer):
    (folder / "model.safetensors").unlink()
    message = refusal(load, folder, tokenizer)
    assert "holds no weights" in message
    assert "model.from_config = true" in message
    assert "pickle" not in message


def test_a_pickle_is_never_loaded(folder, tokenizer):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle, which is never loaded" in refusal(load, folder, tokenizer)


def test_no_code_of_a_model_is_ever_run_and_nobody_is_asked(folder, tokenizer, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "my-own", "auto_map": {"AutoConfig": "code.MyConfig", "AutoModelForMaskedLM": "code.My"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass MyConfig: pass\n")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    assert "contains custom code" in refusal(load, folder, tokenizer)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_parts_of_the_weights_lie_in_the_folder(folder, tokenizer, name):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": name}}))
    assert f"model.safetensors.index.json names {name!r}, which is not a file beside it" in refusal(
        load, folder, tokenizer
    )
    index.write_text('{"weight_map": 3}')
    assert "model.safetensors.index.json cannot be read" in refusal(load, folder, tokenizer)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def huge_header(content: bytes) -> bytes:
    return b"\xff" * 8 + content[8:]


@pytest.mark.parametrize("damage", [truncate, huge_header, lambda content: b"", lambda content: b"not a tensor file"])
def test_damaged_weights_are_refused(folder, tokenizer, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert f"model.name = {str(folder)!r}: cannot be loaded: " in refusal(load, folder, tokenizer)


@pytest.mark.parametrize("content", ["{", "", "{}", '{"version": "1.0", "model": {"type": "WordPiece"}}'])
def test_a_damaged_tokenizer_is_refused(folder, content):
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(content)
    assert f"model.name = {str(folder)!r}" in refusal(load_tokenizer, ModelConfig(name=str(folder)), ())


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused_with_both_numbers(folder, tokenizer):
    larger = build_tokenizer([" ".join(chr(0x61 + i) * 3 for i in range(26))] * 2, 80)
    assert len(larger) > VOCAB_SIZE
    message = refusal(load, folder, larger)
    assert f"the tokenizer has {len(larger)} tokens, the model 50" in message


@pytest.mark.parametrize(
    ("model_type", "positions"), [("distilbert", 20), ("bert", 20), ("roberta", 18), ("albert", 20)]
)
def test_sequences_longer_than_the_positions_are_refused(tmp_path, tokenizer, model_type, positions):
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


@pytest.mark.parametrize("kind", ["mask", "pad"])
def test_a_tokenizer_without_mask_or_padding_token_is_refused(tmp_path, tokenizer, kind):
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "mask", "pad") if name != kind}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokens).save_pretrained(
        tmp_path
    )
    message = refusal(load_tokenizer, ModelConfig(name=str(tmp_path)), ())
    assert f"its tokenizer has no {kind} token, which masking needs" in message


def test_a_name_of_the_hub_out_of_reach_says_so(tokenizer):
    with pytest.raises(HubOutOfReach, match="connect once, name a local folder, or run the sample"):
        load_tokenizer(ModelConfig(name="someone/no-such-model"), ())
    with pytest.raises(HubOutOfReach):
        load_model(ModelConfig(name="someone/no-such-model"), tokenizer, 10)


# ---- a new vocabulary ----------------------------------------------------------------------------------------------

# Ties everywhere: words of equal count over few letters, and more characters than a vocabulary takes.
BUILD = """
import hashlib, random
from tf_mlm.model.loading import build_tokenizer
draw = random.Random(1)
words = ["".join(draw.choice("abcdefghij") for _ in range(draw.randint(2, 7))) for _ in range(400)]
documents = [" ".join(draw.sample(words, 30)) for _ in range(100)]
documents += ["".join(chr(0x4E00 + i) for i in range(1200)), "".join(chr(0x430 + i % 32) for i in range(64))]
digest = hashlib.sha256(build_tokenizer(documents, 1500).backend_tokenizer.to_str().encode()).hexdigest()
"""


def test_the_same_documents_give_the_same_tokenizer_in_any_process():
    here: dict[str, str] = {}
    exec(BUILD, here)
    done = subprocess.run(
        [sys.executable, "-c", BUILD + "print(digest)"],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == here["digest"]


def test_a_new_tokenizer_is_that_of_bert():
    documents = ["The film was LONG, and the plot made no sense!", "The the the film film, naïve?"] * 5
    tokenizer = build_tokenizer(documents, 100)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert 40 < len(tokenizer) <= 100
    assert tokenizer.is_fast and tokenizer.model_max_length == 512
    assert tokenizer.tokenize("The film, NAÏVE!")[:3] == ["the", "film", ","]
    assert tokenizer.decode(tokenizer("the film was long")["input_ids"]) == "[CLS] the film was long [SEP]"
    assert tokenizer.tokenize("the [MASK] was") == ["the", "[MASK]", *tokenizer.tokenize("was")]
    assert tokenizer.unk_token_id in tokenizer("the ☃")["input_ids"]
    assert load_tokenizer(ModelConfig(name="", vocab_size=100), documents).get_vocab() == tokenizer.get_vocab()


def test_a_new_tokenizer_outlasts_being_saved(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(ModelConfig(name=str(tmp_path)), ())
    text = "the film [MASK] longer than we liked"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()
