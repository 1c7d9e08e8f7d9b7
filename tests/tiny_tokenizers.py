"""A small tokenizer for each architecture: WordPiece, byte-level BPE as in RoBERTa, and Unigram as in ALBERT."""

from typing import Any

from tf_mlm.model.tokenizer import build_tokenizer

TEXTS = ["the film was long and the plot made no sense but we liked it. Don't go: it's not-so great!"] * 3


def tiny_tokenizer(model_type: str) -> Any:
    """At most 320 entries, so that longer words have several tokens."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if model_type in ("bert", "distilbert"):
        return build_tokenizer(TEXTS, 60)
    backend: Any
    if model_type == "roberta":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(TEXTS, trainer)
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        mask = AddedToken("<mask>", lstrip=True)
        return transformers.RobertaTokenizerFast(tokenizer_object=backend, mask_token=mask)
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=70, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    mask = AddedToken("[MASK]", lstrip=True)
    return transformers.AlbertTokenizerFast(tokenizer_object=backend, mask_token=mask)


def tiny_models(model_type: str) -> tuple[Any, Any, Any]:
    """Our model and the stock one with the same random weights, and their tokenizer."""
    from tests.model.conftest import build_pair, tiny_config

    tokenizer = tiny_tokenizer(model_type)
    config = tiny_config(model_type)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.max_position_embeddings = 80
    ours, stock = build_pair(config)
    return ours, stock, tokenizer
