"""Compare sentences/s of the SavedModel's fill_mask with the fill-mask pipeline of transformers in TensorFlow, and
requests/s of `tf-mlm serve` with and without batching.

    python benchmarks/serving.py [--model NAME_OR_DIR] [--rounds 5] [--requests 640] [--only {pipeline,server}]

Without --model, it uses DistilBERT-base with random weights and a vocabulary of the sample, which needs no network; the
time does not depend on the weights. All compute in float32 and get the same strings, and all return the five most
likely words. They take turns. A speed is the median over the rounds, a ratio is the median of the rounds' ratios.

The batch_size of the pipeline has no effect in TensorFlow (transformers 4.54 runs a list sentence by sentence). A last
row therefore compares fill_mask with tokenizer and model called on the whole padded batch by hand.

The server runs in separate processes, once with its defaults and once with batches of one request. Each client sends
`POST /` over one connection, the next request after the answer to the one before.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tf_mlm import runtime
from tf_mlm.config import TrainingConfig

NUM_SENTENCES = 32
TOP_K = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a trained model [random weights]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=640, help="to a server in each round")
    parser.add_argument("--only", choices=["pipeline", "server"], help="only one of the two comparisons")
    arguments = parser.parse_args()
    runtime.prepare(TrainingConfig(xla="off"))  # the flags of XLA would also apply to the pipeline
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
    print(f"{runtime.processor()[0]}; {', '.join(f'{name} {number}' for name, number in runtime.versions().items())}")
    print(f"{model.count_params():,} parameters, float32, {NUM_SENTENCES} sentences, {arguments.rounds} rounds")
    sentences = {num_tokens: make_sentences(documents, tokenizer, num_tokens) for num_tokens in (12, 128)}
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tokenizer, Path(folder) / "model")
        if arguments.only != "server":
            if obstacle := export_saved_model(model, tokenizer, Path(folder) / "saved_model"):
                raise SystemExit(obstacle)
            compare_with_pipeline(folder, tokenizer, sentences, arguments.rounds)
        if arguments.only != "pipeline":
            compare_batching(f"{folder}/model", sentences, arguments.rounds, arguments.requests)


def compare_with_pipeline(folder: str, tokenizer: Any, sentences_by_length: dict[int, list[str]], rounds: int) -> None:
    import tensorflow as tf
    import transformers

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

    print("| tokens | how | transformers, sentences/s | fill_mask, sentences/s | ratio |\n|---:|---|---:|---:|---:|")
    for num_tokens, sentences in sentences_by_length.items():
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
            rows = [(seconds(peer, sentences), seconds(ours, sentences)) for _ in range(rounds + 1)][1:]
            theirs, mine = (NUM_SENTENCES / statistics.median(column) for column in zip(*rows, strict=True))
            ratio = statistics.median(peer_seconds / our_seconds for peer_seconds, our_seconds in rows)
            print(f"| {num_tokens} | {name} | {theirs:.1f} | {mine:.1f} | {ratio:.2f} |", flush=True)
        print(
            f"| {num_tokens} | the same {TOP_K} tokens in the same order | | {same} of {NUM_SENTENCES} | |", flush=True
        )


def compare_batching(model: str, sentences_by_length: dict[int, list[str]], rounds: int, num_requests: int) -> None:
    print("| tokens | clients | server | requests/s | p50, ms | p99, ms | relative to one by one |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    with serving(model, "--batch-texts", "1") as alone, serving(model) as batching:
        ports = {"one by one": alone, "batches": batching}
        for num_tokens, sentences in sentences_by_length.items():
            for num_clients in (1, 32):
                found: dict[str, list[np.ndarray]] = {name: [] for name in ports}
                speeds: dict[str, list[float]] = {name: [] for name in ports}
                for number in range(rounds + 1):
                    for name, port in ports.items():
                        latencies, duration = send(port, sentences, num_clients, num_requests if number else 64)
                        if number:  # the first round warms up
                            found[name].append(latencies)
                            speeds[name].append(len(latencies) / duration)
                for name in ports:
                    p50, p99 = 1000 * np.percentile(np.concatenate(found[name]), [50, 99])
                    ratios = [a / b for a, b in zip(speeds[name], speeds["one by one"], strict=True)]
                    print(
                        f"| {num_tokens} | {num_clients} | {name} | {statistics.median(speeds[name]):.1f} "
                        f"| {p50:.0f} | {p99:.0f} | {statistics.median(ratios):.2f} |",
                        flush=True,
                    )


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[int]:
    """Run `tf-mlm serve` in a process. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "tf_mlm", "serve", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"TF_XLA_FLAGS": ""})
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}") from None
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def send(port: int, sentences: list[str], num_clients: int, num_requests: int) -> tuple[np.ndarray, float]:
    """The seconds until each answer, and the seconds until all of them."""
    bodies = [json.dumps({"inputs": sentence, "parameters": {"top_k": TOP_K}}) for sentence in sentences]
    numbers = itertools.count()
    latencies: list[float] = []

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while (number := next(numbers)) < num_requests:
            start = time.perf_counter()
            connection.request("POST", "/", bodies[number % len(bodies)])
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise SystemExit(f"status {response.status}: {answer.decode()}")
            latencies.append(time.perf_counter() - start)
        connection.close()

    clients = [threading.Thread(target=run) for _ in range(num_clients)]
    start = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    duration = time.perf_counter() - start
    if len(latencies) != num_requests:
        raise SystemExit("a client failed")
    return np.array(latencies), duration


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
