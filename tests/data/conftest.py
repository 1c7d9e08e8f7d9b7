"""A tokenizer whose ids can be read off the text, and a cache of its own for each test that looks into it."""

from pathlib import Path
from typing import Any

import pytest

PAD, UNK, CLS, SEP, MASK = 1, 0, 2, 3, 4
SPECIAL = [UNK, PAD, CLS, SEP, MASK]


@pytest.fixture
def tokenizer() -> Any:
    """The word `7` has id 7, from 5 to 99; a document becomes [CLS] words [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

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
    """An empty folder in place of the cache; sequences are kept in `tf_mlm` below it."""
    import datasets

    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
