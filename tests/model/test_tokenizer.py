"""The tokenizer of a pretrained model, and the one trained for a new model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tests.conftest import ROOT
from tests.model.conftest import refusal
from tf_mlm.config import ModelConfig
from tf_mlm.model.tokenizer import build_tokenizer, load_tokenizer

# Ties everywhere: words of equal count over few letters, and more characters than a vocabulary takes.
BUILD = """
import hashlib, random
from tf_mlm.model.tokenizer import build_tokenizer
draw = random.Random(1)
words = ["".join(draw.choice("abcdefghij") for _ in range(draw.randint(2, 7))) for _ in range(400)]
documents = [" ".join(draw.sample(words, 30)) for _ in range(100)]
documents += ["".join(chr(0x4E00 + i) for i in range(1200)), "".join(chr(0x430 + i % 32) for i in range(64))]
digest = hashlib.sha256(build_tokenizer(documents, 1500).backend_tokenizer.to_str().encode()).hexdigest()
"""


def test_the_same_documents_give_the_same_tokenizer_in_any_process() -> None:
    here: dict[str, str] = {}
    exec(BUILD, here)
    done = subprocess.run(
        [sys.executable, "-c", BUILD + "print(digest)"],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == here["digest"]


def test_a_new_tokenizer_tokenizes_like_that_of_bert() -> None:
    documents = ["The film was LONG, and the plot made no sense!", "The the the film film, naïve?"] * 5
    tokenizer = build_tokenizer(documents, 100)
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert 40 < len(tokenizer) <= 100
    assert tokenizer.is_fast and tokenizer.model_max_length == 512
    assert tokenizer.tokenize("The film, NAÏVE!")[:3] == ["the", "film", ","]
    assert tokenizer.decode(tokenizer("the film was long")["input_ids"]) == "[CLS] the film was long [SEP]"
    assert tokenizer.tokenize("the [MASK] was") == ["the", "[MASK]", *tokenizer.tokenize("was")]
    assert tokenizer.unk_token_id in tokenizer("the ☃")["input_ids"]
    assert load_tokenizer(ModelConfig(name="", vocab_size=100), documents).get_vocab() == tokenizer.get_vocab()


def test_a_saved_new_tokenizer_loads(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(ModelConfig(name=str(tmp_path)), ())
    text = "the film [MASK] longer than we liked"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("content", ["{", "", "{}", '{"version": "1.0", "model": {"type": "WordPiece"}}'])
def test_a_damaged_tokenizer_is_refused(folder: Path, content: str) -> None:
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(content)
    assert f"model.name = {str(folder)!r}" in refusal(load_tokenizer, ModelConfig(name=str(folder)), ())


@pytest.mark.parametrize("kind", ["mask", "pad"])
def test_a_tokenizer_without_mask_or_padding_token_is_refused(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "mask", "pad") if name != kind}
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer_class(tokenizer_object=tokenizer.backend_tokenizer, **tokens).save_pretrained(tmp_path)
    message = refusal(load_tokenizer, ModelConfig(name=str(tmp_path)), ())
    assert f"its tokenizer has no {kind} token, which masking needs" in message


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for path in [*folder.glob("*token*"), *folder.glob("vocab*")]:
        path.unlink()
    message = refusal(load_tokenizer, ModelConfig(name="."), ())
    assert message == "model.name = '.': has no tokenizer (tokenizer.json); save one with save_pretrained"
