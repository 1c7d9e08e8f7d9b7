"""How well a model predicts masked tokens of a text: the metrics of training's validation, for any model and data."""

from typing import Any

import tf_keras as keras

from tf_mlm import runtime
from tf_mlm.config import Config
from tf_mlm.data.corpus import load_corpus, load_documents
from tf_mlm.data.masking import num_slots
from tf_mlm.data.pipeline import build_collator, build_validation_dataset
from tf_mlm.data.sequences import load_sequences
from tf_mlm.errors import Refused
from tf_mlm.model.loading import load_trained
from tf_mlm.model.metrics import perplexity


def evaluate_model(config: Config, own_data: bool) -> dict[str, Any]:
    """Metrics of `config.model` on the validation data of `config.data`, at the precision and batch size of `config`.

    Args:
        own_data: the data that a run with this config validates on, to the last row; else all the documents of
            `data.validation_split`, or of the whole data set where it has no splits.

    Returns:
        loss (nats a masked token), perplexity, masked_accuracy, masked_accuracy_top_5, sequences, masked_tokens.
    """
    policy = runtime.choose_precision(config.training.precision).policy
    keras.mixed_precision.set_global_policy(policy)
    seed = config.training.seed
    model, tokenizer = load_trained(config.model.name, sequence_length=config.data.sequence_length, policy=policy)
    if own_data:
        corpus = load_corpus(config.data, seed)
        documents, fingerprint = corpus.validation, corpus.validation_fingerprint
    else:
        documents, fingerprint = load_documents(config.data)
    sequences = load_sequences(documents, fingerprint, tokenizer, config.data, "validation")
    rows = sequences.draw_rows(config.data.num_validation_sequences, seed)
    model.compile(
        keras.optimizers.legacy.SGD(),  # never used: nothing is trained
        max_masked_per_sequence=num_slots(config.data.sequence_length, config.masking.mlm_probability),
    )
    collator = build_collator(sequences, tokenizer, config.masking, seed, validation=True)
    dataset = build_validation_dataset(collator, rows, batch_size=config.training.batch_size)
    logs = model.evaluate(dataset, verbose=0, return_dict=True)
    if not model.metrics[0].count:
        raise Refused("data.dataset: the documents hold no ordinary token, nothing could be masked; name other data")
    return {
        "loss": logs["loss"],
        "perplexity": perplexity(logs["loss"]),
        "masked_accuracy": logs["masked_accuracy"],
        "masked_accuracy_top_5": logs["masked_accuracy_top_5"],
        "sequences": len(rows),
        "masked_tokens": int(model.metrics[0].count),
    }
