"""A tokenizer with readable ids, a separate cache, and helpers for files."""

import gzip
from pathlib import Path

import pytest
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.errors import Refused

PAD, UNK, CLS, SEP, MASK = 1, 0, 2, 3, 4
SPECIAL = [UNK, PAD, CLS, SEP, MASK]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The word `7` has id 7, from 5 to 99; a document becomes [CLS] words [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[UNK]": UNK, "[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    words |= {str(number): number for number in range(5, 100)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of `datasets`; sequences are in its directory `tf_mlm`."""
    import datasets

    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def put(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def one_line(refused: pytest.ExceptionInfo[Refused], folder: Path) -> str:
    message = str(refused.value)
    assert message.isprintable(), message
    return message.replace(f"{folder}/", "")
