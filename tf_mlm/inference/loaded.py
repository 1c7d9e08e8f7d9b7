"""A trained model with its tokenizer: fills masks, scores and encodes texts, evaluates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm.config import Config, ModelConfig, load_config
from tf_mlm.errors import Refused
from tf_mlm.inference.evaluate import evaluate_model, other_data
from tf_mlm.inference.features import Encoder, build_encoder, encode_texts
from tf_mlm.inference.fill_mask import Answer, answer, fill_masks
from tf_mlm.inference.locate import FoundModel, find_model
from tf_mlm.inference.masked_copies import Predictor, build_predictor
from tf_mlm.inference.predict import LabeledText, TaggedText, predict_labels, predict_tags
from tf_mlm.inference.score import Masking, ScoredText, score_texts, tokenize_text
from tf_mlm.inference.targets import TargetAnswer, fill_targets
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.model.loading import load_trained, load_trained_label_model, objective_of
from tf_mlm.model.protocol import MaskedLanguageModel


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in float32.

    Attributes:
        found: origin of the model, and its run if it has one.
    """

    model: MaskedLanguageModel
    tokenizer: PreTrainedTokenizerFast
    found: FoundModel

    @classmethod
    def load(cls, name: str | Path) -> "LoadedModel":
        """Load a run directory, a model directory or a model on the Hub.

        Raises:
            Refused: there is no such model, or it has no trained masked language modeling head.
        """
        found = find_model(str(name))
        return cls(*load_trained(found.model), found)

    @classmethod
    def of(cls, config: ModelConfig) -> "LoadedModel":
        """Load the pretrained model that the settings of a training name.

        Raises:
            Refused: as `load`.
        """
        return cls(*load_trained(config.name, revision=config.revision), FoundModel(config.name))

    @overload
    def fill(self, texts: str | Sequence[str], top_k: int = 5) -> list[Answer]: ...

    @overload
    def fill(self, texts: str | Sequence[str], *, targets: Sequence[str]) -> list[TargetAnswer]: ...

    def fill(
        self, texts: str | Sequence[str], top_k: int = 5, *, targets: Sequence[str] | None = None
    ) -> list[Answer] | list[TargetAnswer]:
        """Fill the masks of each text.

        Args:
            texts: one or more texts, each with at least one `[MASK]`.
            top_k: number of tokens for each mask.
            targets: words whose probabilities are returned in place of the most likely tokens; see `fill_targets`.

        Raises:
            Refused: a text has no mask or more tokens than the model has positions, or a target is not in the
                vocabulary.
        """
        if targets is not None:
            return [
                fill_targets(self.model, self._predictor, self.tokenizer, text, _as_list(targets))
                for text in _as_list(texts)
            ]

        def fill(sentence: str, top_k: int) -> Any:
            return fill_masks(self.model, self.tokenizer, sentence, top_k)

        return [answer(fill, text, top_k) for text in _as_list(texts)]

    def score(self, texts: str | Sequence[str], masking: Masking = "word-l2r") -> list[ScoredText]:
        """The pseudo-log-likelihood of each text and of its words; see `score_texts`.

        Args:
            masking: the tokens that are masked to predict a token: `word-l2r`, `word` or `token`.

        Raises:
            Refused: a text has a mask, no ordinary token, or more tokens than the model has positions.
        """
        length = max_sequence_length(self.model.config)
        tokenized = [tokenize_text(self.tokenizer, text, length) for text in _as_list(texts)]
        return list(score_texts(self._predictor, self.tokenizer, tokenized, masking))

    def encode(self, texts: str | Sequence[str]) -> np.ndarray:
        """The mean of the last hidden states over the tokens of each text: float32 [texts, dim].

        A text longer than the model's positions is truncated.
        """
        config = self.model.config
        return encode_texts(
            self._encoder, self.tokenizer, _as_list(texts), config.hidden_size, max_sequence_length(config)
        )

    @cached_property
    def _predictor(self) -> Predictor:
        return build_predictor(self.model)

    @cached_property
    def _encoder(self) -> Encoder:
        return build_encoder(self.model)

    def evaluate(self, dataset: str | None = None) -> dict[str, Any]:
        """The metrics of `tf-mlm evaluate --json`.

        Args:
            dataset: a name on the Hub or a path; None for the validation data of the model's run.

        Raises:
            Refused: the data is missing or malformed, or the model has no run and `dataset` is None.
        """
        if self.found.config is None and dataset is None:
            raise Refused(f"{self.found.model}: is not a run directory and has no validation data; pass dataset")
        config = replace(self.found.config or Config(), model=ModelConfig(name=self.found.model))
        if dataset is not None:
            config = other_data(config, load_config(None, {"data.dataset": dataset}).data)
        train_hashes = self.found.run.load_train_hashes() if self.found.run else None
        return evaluate_model(config, own_data=dataset is None, train_hashes=train_hashes).as_dict()


@dataclass(frozen=True)
class LoadedClassifier:
    """A fine-tuned classification model in float32.

    Attributes:
        found: origin of the model, and its run if it has one.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    found: FoundModel

    @classmethod
    def load(cls, name: str | Path) -> "LoadedClassifier":
        """Load a fine-tuned run, a model directory or a model on the Hub.

        Raises:
            Refused: there is no such model, or it is not a classification model.
        """
        found = find_model(str(name))
        return cls(*load_trained_label_model(found.model), found)

    def predict(
        self, texts: str | Sequence[str], text_pairs: str | Sequence[str] | None = None
    ) -> Sequence[LabeledText | TaggedText]:
        """The labels of texts, or the tags of their words.

        Args:
            text_pairs: the second text of each text, for a model that labels pairs of texts.

        Raises:
            Refused: a text is empty, the numbers of texts differ, or the model tags words and `text_pairs` is given.
        """
        if objective_of(self.model.config, type(self.model).__name__) == "classification":
            pairs = None if text_pairs is None else _as_list(text_pairs)
            if pairs is not None and len(pairs) != len(_as_list(texts)):
                raise Refused(
                    f"text_pairs: {len(pairs)} second texts for {len(_as_list(texts))} texts; pass one for each text"
                )
            return predict_labels(self.model, self.tokenizer, _as_list(texts), pairs)
        if text_pairs is not None:
            raise Refused(f"{self.found.model}: this model tags the words of one text; omit the second text")
        return predict_tags(self.model, self.tokenizer, _as_list(texts))


def _as_list(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
