"""Measure tokens/s of the input pipeline with masking, compared with the stock collator in the same run.

    python benchmarks/input_pipeline.py [--dataset NAME_OR_PATH] [--model NAME_OR_DIR]

Both read the same sequences through `to_tf_dataset`; the stock pipeline follows the examples of transformers.
"""

import argparse
import time
from dataclasses import replace
from statistics import median

from tf_mlm import runtime
from tf_mlm.config import Config, DataConfig, ModelConfig

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert-base-uncased", help="Hub name or directory of the tokenizer")
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 256])
    arguments = parser.parse_args()
    config = Config(model=ModelConfig(name=arguments.model), data=DataConfig(dataset=arguments.dataset))
    config = replace(config, data=replace(config.data, num_train_sequences=20_000, num_validation_sequences=100))
    runtime.prepare(config.training)

    import transformers
    from datasets import Dataset

    from tf_mlm.data.corpus import load_corpus
    from tf_mlm.data.pipeline import build_collator, build_train_dataset
    from tf_mlm.data.prepared import prepare_data
    from tf_mlm.model.tokenizer import load_tokenizer

    corpus = load_corpus(config.data, config.training.seed)
    tokenizer = load_tokenizer(config.model, ())
    data = prepare_data(config, corpus, tokenizer)
    collator = build_collator(data.train, tokenizer, config.masking, config.training.seed)
    input_ids = data.train.input_ids[data.train_rows]
    attention_mask = (input_ids != tokenizer.pad_token_id).astype(int)
    stock = Dataset.from_dict({"input_ids": input_ids, "attention_mask": attention_mask})

    print(f"{'batch':>5} {'tf_mlm, tokens/s':>16} {'stock, tokens/s':>16} {'ratio':>6}")
    for batch_size in arguments.batch_sizes:
        ours_speed, stock_speed = [], []
        for _ in range(ROUNDS):
            ours = build_train_dataset(collator, data.train_rows, batch_size=batch_size, seed=1, epochs=1)
            ours_speed.append(tokens_per_second(ours, 19_000 // batch_size, batch_size * input_ids.shape[1]))
            theirs = stock.to_tf_dataset(
                batch_size=batch_size,
                shuffle=True,
                drop_remainder=True,
                collate_fn=transformers.DataCollatorForLanguageModeling(tokenizer, return_tensors="tf"),
            )
            stock_speed.append(tokens_per_second(theirs, 3_000 // batch_size, batch_size * input_ids.shape[1]))
        ours_median, stock_median = median(ours_speed), median(stock_speed)
        print(f"{batch_size:>5} {ours_median:>16,.0f} {stock_median:>16,.0f} {ours_median / stock_median:>6.1f}")


def tokens_per_second(dataset, num_batches: int, tokens_per_batch: int) -> float:
    """The speed over `num_batches` batches, without the first one, which waits for the pipeline to start."""
    batches = iter(dataset)
    next(batches)
    start = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return num_batches * tokens_per_batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
