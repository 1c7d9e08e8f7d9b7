"""The interface of a training objective."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tf_mlm.config import Config
from tf_mlm.data.prepared import PreparedData
from tf_mlm.model.tokenizer import load_tokenizer


class Objective(ABC):
    """One value of `objective.name`: its data, its model and its results.

    Attributes:
        headline: name of the metric that is reported with the loss at the end of a run.
    """

    headline: str

    @abstractmethod
    def load_documents(self, config: Config) -> Any:
        """Training and validation documents; `train` has a column `text` or `tokens`.

        Raises:
            Refused: the data is missing or malformed.
        """

    def load_tokenizer(self, config: Config, documents: Any) -> Any:
        """The tokenizer of the starting model; for a new model, one trained on the training documents.

        Raises:
            Refused: see `tokenizer.load_tokenizer`.
        """
        return load_tokenizer(config.model, () if config.model.name else documents.train["text"])

    @abstractmethod
    def prepare(self, config: Config, documents: Any, tokenizer: Any) -> PreparedData:
        """Tokenize the documents and draw the rows of both splits."""

    @abstractmethod
    def load_model(self, config: Config, tokenizer: Any, data: PreparedData) -> tuple[Any, list[str]]:
        """The model, and the names of its newly initialized weights.

        Raises:
            Refused: the model cannot be loaded or does not fit the data.
        """

    @abstractmethod
    def compile(self, model: Any, config: Config, optimizer: Any, *, jit_compile: bool) -> None:
        """Compile the model for `fit` and `evaluate`."""

    @abstractmethod
    def logits_per_sequence(self, config: Config, model: Any) -> int:
        """Number of logits that a step computes for each sequence, to estimate the memory."""

    def start_facts(self, config: Config, data: PreparedData, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Additional fields of the start event."""
        return {}

    def end_facts(self, config: Config, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Additional fields of the end event.

        Args:
            model: the best model of the run, and `tokenizer` its tokenizer.
        """
        return {}

    @abstractmethod
    def load_trained(self, path: Path) -> tuple[Any, Any]:
        """The best model of a run and its tokenizer, in float32."""

    @abstractmethod
    def export_saved_model(self, model: Any, tokenizer: Any, directory: Path) -> str:
        """Write the SavedModel. Returns why it does not take strings, as a sentence; "" if it does."""

    @abstractmethod
    def example_command(self, config: Config, path: Path) -> str:
        """A command that uses the trained model of the run directory `path`."""
