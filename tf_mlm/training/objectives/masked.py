"""Masked language modeling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tf_mlm.config import Config
from tf_mlm.data.corpus import Corpus, load_corpus
from tf_mlm.data.masking import VALIDATION_PROBABILITY, num_slots
from tf_mlm.data.prepared import MaskedData, PreparedData, prepare_data, prepare_stream
from tf_mlm.data.shards import Shards, find_shards
from tf_mlm.data.streams import DocumentStream, load_stream
from tf_mlm.export.saved_model import export_saved_model
from tf_mlm.inference.fill_mask import fill_masks
from tf_mlm.model.loading import load_model, load_trained
from tf_mlm.model.tokenizer import load_tokenizer
from tf_mlm.run.events import Fills
from tf_mlm.training.objectives.base import Objective

_NUM_FILLS = 5


class Masked(Objective):
    """Predicts masked tokens."""

    headline = "perplexity"

    def load_documents(self, config: Config) -> Corpus | Shards | DocumentStream:
        if config.data.streaming:
            return load_stream(config.data, config.training.seed)
        return find_shards(config.data) or load_corpus(config.data, config.training.seed)

    def load_tokenizer(self, config: Config, documents: Corpus | Shards | DocumentStream) -> Any:
        if not isinstance(documents, Shards):
            return super().load_tokenizer(config, documents)
        name = config.model.name or str(documents.tokenizer_path)
        tokenizer = load_tokenizer(replace(config.model, name=name), ())
        documents.check_tokenizer(tokenizer, config.model)
        return tokenizer

    def prepare(self, config: Config, documents: Corpus | Shards | DocumentStream, tokenizer: Any) -> MaskedData:
        if isinstance(documents, DocumentStream):
            return prepare_stream(config, documents, tokenizer)
        return prepare_data(config, documents, tokenizer)

    def load_model(self, config: Config, tokenizer: Any, data: PreparedData) -> tuple[Any, list[str]]:
        return load_model(config.model, tokenizer, config.data.sequence_length)

    def compile(self, model: Any, config: Config, optimizer: Any, *, jit_compile: bool) -> None:
        model.compile(
            optimizer,
            max_masked_per_sequence=_num_slots(config),
            accumulate_steps=config.training.accumulate_steps,
            clip_norm=config.optimizer.clip_norm,
            seed=config.training.seed,
            jit_compile=jit_compile,
        )

    def logits_per_sequence(self, config: Config, model: Any) -> int:
        return _num_slots(config) * int(model.config.vocab_size)

    def start_facts(self, config: Config, data: PreparedData, model: Any, tokenizer: Any) -> dict[str, Any]:
        assert isinstance(data, MaskedData)
        return {
            "unigram_entropy": data.unigram_entropy,
            "mlm_probability": config.masking.mlm_probability,
            "validation_mlm_probability": VALIDATION_PROBABILITY,
            "fills": _fill_examples(config, model, tokenizer),
        }

    def end_facts(self, config: Config, model: Any, tokenizer: Any) -> dict[str, Any]:
        return {"fills": _fill_examples(config, model, tokenizer)}

    def load_trained(self, path: Path) -> tuple[Any, Any]:
        return load_trained(str(path))

    def export_saved_model(self, model: Any, tokenizer: Any, directory: Path) -> str:
        return export_saved_model(model, tokenizer, directory)

    def example_command(self, config: Config, path: Path) -> str:
        sentence = next(iter(config.training.example_sentences), "This is a great [MASK].")
        return f'python -m tf_mlm fill-mask {path} "{sentence}"'


def _num_slots(config: Config) -> int:
    return num_slots(config.data.sequence_length, config.masking.mlm_probability)


def _fill_examples(config: Config, model: Any, tokenizer: Any) -> Fills:
    """For each example sentence, the most likely tokens of its first mask."""
    return [
        [(fill.token, fill.probability) for fill in fill_masks(model, tokenizer, sentence, _NUM_FILLS)[0]]
        for sentence in config.training.example_sentences
    ]
