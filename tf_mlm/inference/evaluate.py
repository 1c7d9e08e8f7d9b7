"""Evaluates a model on the masked tokens of a text, with the validation metrics of training."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import tf_keras as keras
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from tf_mlm import runtime
from tf_mlm.config import Config, DataConfig
from tf_mlm.data.corpus import ScoredDocuments, load_corpus, load_documents
from tf_mlm.data.masking import VALIDATION_PROBABILITY, MaskingCollator, num_slots
from tf_mlm.data.pipeline import build_collator, build_validation_dataset
from tf_mlm.data.sequences import load_sequences
from tf_mlm.data.shards import find_shards
from tf_mlm.data.streams import load_stream
from tf_mlm.errors import Refused
from tf_mlm.inference.breakdown import BASELINE, MODEL, Breakdown, deviation_of
from tf_mlm.inference.masked_tokens import MaskedTokens, Predictions, build_step, predict_masked_tokens
from tf_mlm.inference.token_groups import build_breakdown
from tf_mlm.model.loading import load_trained
from tf_mlm.model.metrics import METRICS, metric_results, metric_values, total_and_count
from tf_mlm.model.protocol import MaskedLanguageModel


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model on some documents.

    Attributes:
        metrics: value of each metric of the table, by name.
        masked_tokens: tokens that were masked and predicted.
        documents: description of the documents, for display.
        num_documents: number of documents.
        num_in_training: number of documents that are also in the training text of the run; None if unknown.
        draws: the metrics of each draw of the masks, if there are several. `metrics` and `masked_tokens` are those of
            the first one, the validation masks of training.
        breakdown: the metrics of groups of tokens; None if not requested.
    """

    metrics: dict[str, float]
    sequences: int
    masked_tokens: int
    documents: str
    num_documents: int
    num_in_training: int | None
    draws: list[dict[str, float]] = field(default_factory=list)
    breakdown: Breakdown | None = None

    def as_dict(self) -> dict[str, Any]:
        """One flat object, for JSON; draws and breakdown, if any, are objects in it."""
        found: dict[str, Any] = {
            **self.metrics,
            "sequences": self.sequences,
            "masked_tokens": self.masked_tokens,
            "documents": self.documents,
            "num_documents": self.num_documents,
            "num_in_training": self.num_in_training,
        }
        if self.draws:
            found["draws"] = {
                name: {"mean": fmean(values), "deviation": deviation_of(values), "values": values}
                for name, values in self._values_of_draws().items()
            }
        if self.breakdown:
            found["breakdown"] = self.breakdown.as_dict()
        return found

    def _values_of_draws(self) -> dict[str, list[float]]:
        return {name: [draw[name] for draw in self.draws] for name in self.metrics}

    def describe(self) -> str:
        """The metrics and the evaluated data, as lines of text."""
        lines = [f"{metric.title:<28}  {metric.show(self.metrics[metric.name])}" for metric in METRICS]
        if self.draws:
            values = self._values_of_draws()
            for number, metric in enumerate(METRICS):
                mean, deviation = fmean(values[metric.name]), deviation_of(values[metric.name])
                lines[number] = f"{lines[number]:<40}  {metric.show(mean)} ± {metric.show(deviation)}"
            lines.insert(0, f"{'':<28}  {'draw 1':<10}  {len(self.draws)} draws: mean ± standard deviation")
        lines.append(
            f"{'scored':<28}  {self.masked_tokens:,} masked tokens ({VALIDATION_PROBABILITY:.0%} of all) in "
            f"{self.sequences:,} sequences of {self.num_documents:,} documents: {self.documents}"
        )
        if self.num_in_training:
            lines.append(
                f"{'warning':<28}  {self.num_in_training:,} of these documents are in the run's training text: "
                "the model has seen them"
            )
        if self.breakdown:
            lines += ["", self.breakdown.describe()]
        return "\n".join(lines)


def evaluate_model(
    config: Config,
    *,
    own_data: bool,
    train_hashes: np.ndarray | None = None,
    num_draws: int = 1,
    with_breakdown: bool = False,
    baseline: str | None = None,
) -> Evaluation:
    """Evaluate `config.model` on the validation data of `config.data`, at the precision and batch size of `config`.

    Args:
        own_data: True evaluates on exactly the validation data of a run with this config. False evaluates on the
            documents of `data.validation_split`, or on all if it is "" or the data has no splits.
        train_hashes: uint64, hashes of the training documents of the model; None if unknown.
        num_draws: number of fixed draws of the masks. The first one has the validation masks of training.
        with_breakdown: also compute the metrics of groups of tokens, over all draws.
        baseline: a model directory or a Hub name, to compare with on the same masks in the breakdown.

    Raises:
        Refused: the data or a model is missing or malformed, no token can be masked, or the baseline has another
            tokenizer.
    """
    policy = runtime.choose_precision(config.training.precision).policy
    keras.mixed_precision.set_global_policy(policy)
    seed = config.training.seed
    shards = find_shards(config.data)
    scored = None if shards else _own_documents(config) if own_data else load_documents(config.data, train_hashes)
    model, tokenizer = load_trained(config.model.name, sequence_length=config.data.sequence_length, policy=policy)
    models, names = {MODEL: model}, {MODEL: config.model.name}
    if baseline is not None:
        models[BASELINE] = _load_baseline(baseline, config, tokenizer, policy)
        names[BASELINE] = baseline
    if shards:
        sequences, description = shards.load("validation"), f"validation documents of {shards.path}"
        num_documents, num_in_training = sequences.num_documents, 0 if own_data else None
        if not own_data:
            shards.check_tokenizer(tokenizer, config.model)
    else:
        assert scored is not None
        sequences = load_sequences(scored.documents, scored.fingerprint, tokenizer, config.data, "validation")
        description, num_documents = scored.description, len(scored.documents)
        num_in_training = scored.num_in_training
    rows = sequences.draw_rows(config.data.num_validation_sequences, seed)
    collator = build_collator(sequences, tokenizer, config.masking, seed, validation=True)
    evaluated = {
        key: list(_evaluate_draws(key, each, collator, rows, config, num_draws, with_tokens=with_breakdown))
        for key, each in models.items()
    }
    draws = evaluated[MODEL]
    if not draws[0].num_masked:
        raise Refused("data.dataset: the documents contain no ordinary tokens to mask; pass a dataset with text")
    breakdown = None
    if with_breakdown:
        tokens = MaskedTokens.join([draw.tokens for draw in draws])
        predictions = {key: Predictions.join([draw.predictions for draw in found]) for key, found in evaluated.items()}
        breakdown = build_breakdown(tokens, predictions, sequences, tokenizer, names)
    return Evaluation(
        metrics=draws[0].metrics,
        sequences=len(rows),
        masked_tokens=draws[0].num_masked,
        documents=description,
        num_documents=num_documents,
        num_in_training=num_in_training,
        draws=[draw.metrics for draw in draws] if num_draws > 1 else [],
        breakdown=breakdown,
    )


@dataclass(frozen=True)
class _Draw:
    """The metrics of a model on one draw of the masks, and the masked tokens if requested."""

    metrics: dict[str, float]
    num_masked: int
    tokens: Any = None
    predictions: Any = None


def _evaluate_draws(
    key: str,
    model: MaskedLanguageModel,
    collator: MaskingCollator,
    rows: np.ndarray,
    config: Config,
    num_draws: int,
    *,
    with_tokens: bool,
) -> Iterator[_Draw]:
    model.compile(
        keras.optimizers.legacy.SGD(),  # required by Keras, never used
        max_masked_per_sequence=num_slots(config.data.sequence_length, config.masking.mlm_probability),
    )
    step = build_step(model)
    for draw in range(num_draws):
        masks = replace(collator, draw=draw + 1)
        dataset = build_validation_dataset(masks, rows, batch_size=config.training.batch_size)
        found: tuple[Any, ...] = ()
        if with_tokens:
            model.reset_metrics()
            found = predict_masked_tokens(step, dataset, rows, draw, f"{key}, draw {draw + 1} of {num_draws}")
        else:
            model.evaluate(dataset, verbose=0)
        yield _Draw(metric_values(metric_results(model)), int(total_and_count(model.metrics[0])[1]), *found)


def _load_baseline(name: str, config: Config, tokenizer: PreTrainedTokenizerFast, policy: str) -> MaskedLanguageModel:
    model, other = load_trained(name, sequence_length=config.data.sequence_length, policy=policy)
    if other.get_vocab() != tokenizer.get_vocab() or other.all_special_ids != tokenizer.all_special_ids:
        raise Refused(
            f"--baseline {name}: has another tokenizer ({len(other):,} tokens) than {config.model.name} "
            f"({len(tokenizer):,} tokens), so their losses cannot be compared; pass a model with the same tokenizer"
        )
    return model


def other_data(config: Config, data: DataConfig) -> Config:
    """`config` with `data`, except for the settings that determine how sequences are built."""
    kept = ("sequence_length", "num_validation_sequences", "line_by_line", "overflow", "isolate_documents")
    return replace(config, data=replace(data, **{name: getattr(config.data, name) for name in kept}))


def _own_documents(config: Config) -> ScoredDocuments:
    if config.data.streaming:
        stream = load_stream(config.data, config.training.seed)
        return ScoredDocuments(
            stream.validation,
            stream.validation_fingerprint,
            description=f"documents drawn from {describe_own_documents(config.data, stream.held_out)}",
            num_in_training=0,
        )
    corpus = load_corpus(config.data, config.training.seed)
    return ScoredDocuments(
        corpus.validation,
        corpus.validation_fingerprint,
        description=describe_own_documents(config.data, corpus.held_out),
        num_in_training=0,
    )


def describe_own_documents(config: DataConfig, held_out: bool) -> str:
    """The validation documents of a run, for display.

    Args:
        held_out: whether they are a share of the training documents instead of a split.
    """
    if held_out:
        return f"the {100 * config.validation_fraction:.4g}% of {config.dataset} held out of training"
    return f"split {config.validation_split} of {config.dataset}, without training documents"
