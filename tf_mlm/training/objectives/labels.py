"""Fine-tuning: classification of texts, and of the words of a text."""

from pathlib import Path
from typing import Any

from tf_mlm.config import Config
from tf_mlm.data.labeled import LabeledDocuments, load_labeled
from tf_mlm.data.labels import LabeledData, prepare_labeled
from tf_mlm.export.label_saved_model import export_label_saved_model
from tf_mlm.model.loading import load_label_model, load_trained_label_model
from tf_mlm.model.tokenizer import load_tokenizer
from tf_mlm.training.objectives.base import Objective


class Labels(Objective):
    """Predicts the label of each text (`classification`) or the tag of each word (`token_classification`)."""

    def __init__(self, name: str, headline: str):
        self._name = name
        self.headline = headline

    def load_documents(self, config: Config) -> LabeledDocuments:
        return load_labeled(config)

    def load_tokenizer(self, config: Config, documents: LabeledDocuments) -> Any:
        return load_tokenizer(config.model, (), for_words=self._name == "token_classification")

    def prepare(self, config: Config, documents: LabeledDocuments, tokenizer: Any) -> LabeledData:
        return prepare_labeled(config, documents, tokenizer)

    def load_model(self, config: Config, tokenizer: Any, data: Any) -> tuple[Any, list[str]]:
        return load_label_model(config.model, tokenizer, config.data.sequence_length, self._name, data.label_names)

    def compile(self, model: Any, config: Config, optimizer: Any, *, jit_compile: bool) -> None:
        model.compile(
            optimizer,
            self._name,
            accumulate_steps=config.training.accumulate_steps,
            clip_norm=config.optimizer.clip_norm,
            seed=config.training.seed,
            jit_compile=jit_compile,
        )

    def logits_per_sequence(self, config: Config, model: Any) -> int:
        slots = 1 if self._name == "classification" else config.data.sequence_length
        return slots * int(model.config.num_labels)

    def load_trained(self, path: Path) -> tuple[Any, Any]:
        return load_trained_label_model(str(path))

    def export_saved_model(self, model: Any, tokenizer: Any, directory: Path) -> str:
        return export_label_saved_model(model, tokenizer, directory)

    def example_command(self, config: Config, path: Path) -> str:
        pair = ' --text-pair "Its second text."' if config.objective.text_pair_column else ""
        return f'python -m tf_mlm predict {path} "A text."{pair}'
