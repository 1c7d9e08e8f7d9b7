"""Compare sentences/s of the SavedModel's fill_mask with the fill-mask pipeline of transformers in TensorFlow.

    python benchmarks/serving.py [--model NAME_OR_DIR] [--rounds 5]

Without --model, it uses DistilBERT-base with random weights and a vocabulary of the sample, which needs no network; the
time does not depend on the weights. Both compute in float32 and get the same strings, and both return the five most
likely words. They take turns. A speed is the median over the rounds, a ratio is the median of the rounds' ratios.

The batch_size of the pipeline has no effect in TensorFlow (transformers 4.54 runs a list sentence by sentence). A last
row therefore compares fill_mask with tokenizer and model called on the whole padded batch by hand.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tf_mlm import runtime
from tf_mlm.config import TrainingConfig

NUM_SENTENCES = 32
TOP_K = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a trained model [random weights]")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runtime.prepare(TrainingConfig(xla="off"))  # the flags of XLA would also apply to the pipeline
    import tensorflow as tf
    import transformers

    from tf_mlm.data.sample_corpus import generate_documents
    from tf_mlm.export.saved_model import export_saved_model
    from tf_mlm.model.loading import load_trained
    from tf_mlm.model.masked_lm import model_class
    from tf_mlm.model.saving import save_model
    from tf_mlm.model.tokenizer import build_tokenizer

    documents = generate_documents(2000, seed=0)
    if arguments.model:
        model, tokenizer = load_trained(arguments.model)
    else:
        tokenizer = build_tokenizer(documents, 30_522)
        model = model_class("distilbert")(transformers.DistilBertConfig())
        model.build_in_name_scope()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tokenizer, Path(folder) / "model")
        if obstacle := export_saved_model(model, tokenizer, Path(folder) / "saved_model"):
            raise SystemExit(obstacle)
        pipeline = transformers.pipeline(
            "fill-mask", model=f"{folder}/model", framework="tf", torch_dtype=None, top_k=TOP_K
        )
        served = tf.saved_model.load(f"{folder}/saved_model").signatures["fill_mask"]

    def fill_mask(sentences: list[str]) -> Any:
        return {name: out.numpy() for name, out in served(text=tf.constant(sentences), k=tf.constant(TOP_K)).items()}

    def by_hand(sentences: list[str]) -> Any:
        encoded = pipeline.tokenizer(sentences, padding=True, return_tensors="tf")
        logits = pipeline.model(**encoded).logits
        at_masks = tf.boolean_mask(logits, encoded["input_ids"] == tokenizer.mask_token_id)
        best = tf.math.top_k(tf.nn.softmax(at_masks), TOP_K)
        return best.values.numpy(), tokenizer.convert_ids_to_tokens(best.indices.numpy().ravel().tolist())

    print(f"{runtime.processor()[0]}; {', '.join(f'{name} {number}' for name, number in runtime.versions().items())}")
    print(f"{model.count_params():,} parameters, float32, {NUM_SENTENCES} sentences, {arguments.rounds} rounds")
    print("| tokens | how | transformers, sentences/s | fill_mask, sentences/s | ratio |\n|---:|---|---:|---:|---:|")
    for num_tokens in (12, 128):
        sentences = make_sentences(documents, tokenizer, num_tokens)
        same = sum(
            [fill["token"] for fill in fills] == ids[0].tolist()
            for fills, ids in zip(pipeline(sentences), fill_mask(sentences)["token_ids"], strict=True)
        )
        cases = {
            "one by one": (lambda s: [pipeline(x) for x in s], lambda s: [fill_mask([x]) for x in s]),
            "a list of 32": (pipeline, fill_mask),
            "a list of 32, batch_size=32": (lambda s: pipeline(s, batch_size=32), fill_mask),
            "a batch of 32, transformers by hand": (by_hand, fill_mask),
        }
        for name, (peer, ours) in cases.items():
            rows = [(seconds(peer, sentences), seconds(ours, sentences)) for _ in range(arguments.rounds + 1)][1:]
            theirs, mine = (NUM_SENTENCES / statistics.median(column) for column in zip(*rows, strict=True))
            ratio = statistics.median(peer_seconds / our_seconds for peer_seconds, our_seconds in rows)
            print(f"| {num_tokens} | {name} | {theirs:.1f} | {mine:.1f} | {ratio:.2f} |", flush=True)
        print(
            f"| {num_tokens} | the same {TOP_K} tokens in the same order | | {same} of {NUM_SENTENCES} | |", flush=True
        )


def seconds(call: Callable[[list[str]], Any], sentences: list[str]) -> float:
    start = time.perf_counter()
    call(sentences)
    return time.perf_counter() - start


def make_sentences(documents: list[str], tokenizer: Any, num_tokens: int) -> list[str]:
    """Texts of the sample with one masked word and 3/4 to 5/4 of `num_tokens` tokens, [CLS] and [SEP] included."""
    numbers = random.Random(num_tokens)
    words = " ".join(documents).split()
    sentences = []
    for _ in range(NUM_SENTENCES):
        first = numbers.randrange(len(words) - 2 * num_tokens)
        target = numbers.randint(num_tokens * 3 // 4, num_tokens * 5 // 4)
        chosen = words[first : first + target]
        while len(tokenizer(" ".join(chosen))["input_ids"]) > target:
            chosen.pop()
        chosen[numbers.randrange(len(chosen))] = tokenizer.mask_token
        sentences.append(" ".join(chosen))
    return sentences


if __name__ == "__main__":
    main()
