"""What a run trains and validates on, once prepared: sequences, the rows drawn from them, and the facts about both."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_mlm.config import Config
from tf_mlm.data.corpus import Corpus
from tf_mlm.data.pipeline import build_collator, build_train_dataset, build_validation_dataset
from tf_mlm.data.sequences import Sequences, load_sequences, unigram_counts, unigram_entropy
from tf_mlm.errors import Refused


@dataclass(frozen=True)
class PreparedData:
    """Training and validation sequences.

    Attributes:
        train_rows: int64 [n], the rows of `train` that are trained on; likewise `validation_rows`.
        unigram_entropy: of the training corpus, in nats a token.
        facts: counts and fingerprint, for the run's environment.json and its model card.
    """

    train: Sequences
    validation: Sequences
    train_rows: np.ndarray
    validation_rows: np.ndarray
    unigram_entropy: float
    facts: dict[str, Any]

    def train_dataset(self, config: Config, tokenizer: Any, epochs: int, first_batch: int = 0) -> Any:
        """Batches of `train_rows`: see `build_train_dataset`."""
        seed = config.training.seed
        return build_train_dataset(
            build_collator(self.train, tokenizer, config.masking, seed),
            self.train_rows,
            batch_size=config.training.batch_size,
            seed=seed,
            epochs=epochs,
            first_batch=first_batch,
        )

    def validation_dataset(self, config: Config, tokenizer: Any) -> Any:
        """One pass over `validation_rows`: see `build_validation_dataset`."""
        return build_validation_dataset(
            build_collator(self.validation, tokenizer, config.masking, config.training.seed, validation=True),
            self.validation_rows,
            batch_size=config.training.batch_size,
        )

    def count_tokens(self, config: Config, first_batch: int, end_batch: int) -> int:
        from tf_mlm.data.pipeline import rows_of_batch

        rows = [
            rows_of_batch(self.train_rows, config.training.batch_size, config.training.seed, batch)
            for batch in range(first_batch, end_batch)
        ]
        return int(sum(self.train.lengths[each].sum() for each in rows))


def prepare_data(config: Config, corpus: Corpus, tokenizer: Any) -> PreparedData:
    """Tokenise both splits and draw their rows.

    Raises:
        Refused: a split holds no ordinary token.
    """
    seed = config.training.seed
    train = load_sequences(corpus.train, corpus.train_fingerprint, tokenizer, config.data, "training")
    validation = load_sequences(corpus.validation, corpus.validation_fingerprint, tokenizer, config.data, "validation")
    for sequences, split in ((train, "training"), (validation, "validation")):
        counts = unigram_counts(sequences, len(tokenizer))
        if np.delete(counts, tokenizer.all_special_ids).sum() == 0:
            raise Refused(
                f"data.dataset: the {split} documents hold no ordinary token, nothing could be masked; "
                "name data with text in it"
            )
        if split == "training":
            entropy = unigram_entropy(counts, tokenizer.all_special_ids)
    train_rows = train.draw_rows(config.data.num_train_sequences, seed)
    validation_rows = validation.draw_rows(config.data.num_validation_sequences, seed)
    facts = {
        "train_documents": train.num_documents,
        "validation_documents": validation.num_documents,
        "held_out": corpus.held_out,
        "dropped_overlap": corpus.num_overlap,
        "dropped_empty": train.num_empty + validation.num_empty,
        "train_tokens": train.num_tokens,
        "validation_tokens": validation.num_tokens,
        "train_tokens_packed": int(train.lengths.sum()),
        "validation_tokens_packed": int(validation.lengths.sum()),
        "train_sequences": len(train.input_ids),
        "validation_sequences": len(validation.input_ids),
        "train_sequences_used": len(train_rows),
        "validation_sequences_used": len(validation_rows),
        "fingerprint": f"{corpus.train_fingerprint}-{corpus.validation_fingerprint}",
    }
    return PreparedData(train, validation, train_rows, validation_rows, entropy, facts)


def describe_data(facts: dict[str, Any]) -> str:
    """The facts in lines for a reader."""
    lines = [
        f"{split:<11}{facts[f'{short}_documents']:>10,} documents  "
        f"{facts[f'{short}_tokens']:>12,} tokens in, {facts[f'{short}_tokens_packed']:,} out  "
        f"{facts[f'{short}_sequences']:>9,} sequences, {facts[f'{short}_sequences_used']:,} used"
        for split, short in (("training", "train"), ("validation", "validation"))
    ]
    if facts["dropped_overlap"]:
        lines.append(
            f"dropped    {facts['dropped_overlap']:>10,} validation documents whose text is in the training ones"
        )
    if facts["dropped_empty"]:
        lines.append(f"dropped    {facts['dropped_empty']:>10,} documents without text")
    return "\n".join(lines)
