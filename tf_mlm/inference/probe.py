"""Probes frozen encoders: logistic regression on their features, at several numbers of labels."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from tf_mlm import runtime
from tf_mlm.config import Config, ModelConfig
from tf_mlm.data.labeled import load_labeled
from tf_mlm.inference.features import Pooling, cached_features
from tf_mlm.model.loading import load_encoder, load_model_config
from tf_mlm.run.probe_results import Difference, ProbedSize, ProbeResults, Score

SIZES = (8, 32, 128, 1000)
"""Labels per class; then all labels."""

_NUM_RESAMPLES = 1000
_MAX_ITERATIONS = 1000
_STREAM = 4  # separates these random numbers from others drawn with the same seed


def probe(
    config: Config,
    models: dict[str, ModelConfig],
    *,
    pooling: Pooling,
    num_draws: int,
    sizes: Sequence[int] = SIZES,
    train_hashes: np.ndarray | None = None,
) -> ProbeResults:
    """Probe one or two models on the labeled documents of `config`.

    Each draw takes the same number of training documents of each class. All methods use the same draws. TF-IDF is
    fitted on the drawn documents alone.

    Args:
        config: data, objective and seed. The validation split is the test split.
        models: `adapted` and, optionally, `starting`.
        num_draws: random draws for each number of labels; all labels are one draw.
        sizes: labels per class.
        train_hashes: uint64, hashes of the text that the adapted model was trained on; None if unknown.

    Raises:
        Refused: the data or a model is missing or malformed.
    """
    documents = load_labeled(config)
    train_texts, test_texts = list(documents.train["text"]), list(documents.validation["text"])
    train_labels = np.array(documents.train["label"], np.int64)
    test_labels = np.array(documents.validation["label"], np.int64)
    present, frequencies = np.unique(train_labels, return_counts=True)
    smallest, rarest = int(frequencies.min()), documents.label_names[present[frequencies.argmin()]]
    used = [size for size in sizes if size <= smallest]
    skipped = [
        f"{size:,} labels per class: skipped, because the label {rarest!r} has only {smallest:,} training documents"
        for size in sizes
        if size > smallest
    ]
    for model in models.values():
        load_model_config(model)  # refuses a wrong model before another one encodes the texts, which can take long
    features = {
        method: _encode(model, train_texts + test_texts, config, pooling, method) for method, model in models.items()
    }
    probed = []
    counts = _count_words(train_texts + test_texts)
    for size in [*used, None]:
        rows = _draw_rows(train_labels, size, num_draws, config.training.seed)
        methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            method: _on_features(vectors, train_labels, len(train_texts)) for method, vectors in features.items()
        }
        methods |= {
            "tf-idf": _on_counts(counts, train_labels),
            "majority": lambda rows: np.full(len(test_labels), np.bincount(train_labels).argmax()),
        }
        predictions = {
            method: np.stack([predict(each) for each in tqdm(rows, desc=f"{size or 'all'} {method}", **_bar_options())])
            for method, predict in methods.items()
        }
        probed.append(_summarize(size, rows, predictions, test_labels, config.training.seed))
    return ProbeResults(
        models={method: model.name for method, model in models.items()},
        dataset=config.data.dataset,
        labels=list(documents.label_names),
        num_train_documents=len(train_texts),
        num_test_documents=len(test_texts),
        sequence_length=config.data.sequence_length,
        pooling=pooling,
        precision=runtime.choose_precision(config.training.precision).name,
        seed=config.training.seed,
        sizes=probed,
        skipped=skipped,
        num_in_training=None if train_hashes is None else int(np.isin(documents.validation_hashes, train_hashes).sum()),
    )


def _bar_options() -> dict[str, Any]:
    return {"disable": None, "leave": False, "dynamic_ncols": True, "file": sys.stderr}


def _encode(model: ModelConfig, texts: list[str], config: Config, pooling: Pooling, method: str) -> np.ndarray:
    """float32 [texts, dim]"""
    policy = runtime.choose_precision(config.training.precision).policy
    loaded, tokenizer = load_encoder(model, config.data.sequence_length, policy=policy)
    with tqdm(total=len(texts), desc=f"features, {method} model", unit="text", **_bar_options()) as bar:
        return cached_features(loaded, tokenizer, texts, config.data.sequence_length, pooling, bar.update)


def _draw_rows(labels: np.ndarray, size: int | None, num_draws: int, seed: int) -> list[np.ndarray]:
    """The training documents of each draw: `size` of each class, or one draw of all documents if it is None."""
    if size is None:
        return [np.arange(len(labels))]
    by_class = [np.flatnonzero(labels == each) for each in np.unique(labels)]
    draws = []
    for draw in range(num_draws):
        generator = np.random.default_rng([seed, _STREAM, size, draw])
        draws.append(np.concatenate([generator.choice(rows, size, replace=False) for rows in by_class]))
    return draws


def _on_features(features: np.ndarray, labels: np.ndarray, num_train: int) -> Callable[[np.ndarray], np.ndarray]:
    def predict(rows: np.ndarray) -> np.ndarray:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS))
        return np.asarray(classifier.fit(features[rows], labels[rows]).predict(features[num_train:]))

    return predict


def _count_words(texts: list[str]) -> Any:
    """Counts of the words of each text: a sparse matrix [texts, words]; of no words if the texts have none."""
    try:
        return CountVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(texts).tocsr()
    except ValueError:  # the texts contain no word
        return csr_matrix((len(texts), 0))


def _on_counts(counts: Any, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """TF-IDF of the words of the drawn documents; their weights are computed from these documents alone."""

    def predict(rows: np.ndarray) -> np.ndarray:
        words = np.unique(counts[rows].indices)
        if not len(words):
            return np.full(counts.shape[0] - len(labels), np.bincount(labels[rows]).argmax())
        classifier = make_pipeline(TfidfTransformer(sublinear_tf=True), LogisticRegression(max_iter=_MAX_ITERATIONS))
        classifier.fit(counts[rows][:, words], labels[rows])
        return np.asarray(classifier.predict(counts[len(labels) :][:, words]))

    return predict


def _summarize(
    size: int | None, rows: list[np.ndarray], predictions: dict[str, np.ndarray], labels: np.ndarray, seed: int
) -> ProbedSize:
    scores = {
        method: {
            "accuracy": Score.of([float((each == labels).mean()) for each in found]),
            "macro_f1": Score.of([float(f1_score(labels, each, average="macro")) for each in found]),
        }
        for method, found in predictions.items()
    }
    differences = {}
    if "starting" in predictions:
        differences = bootstrap_differences(predictions["adapted"], predictions["starting"], labels, seed)
    return ProbedSize(size, len(rows[0]), len(rows), scores, differences)


def bootstrap_differences(
    adapted: np.ndarray, starting: np.ndarray, labels: np.ndarray, seed: int
) -> dict[str, Difference]:
    """The difference of accuracy and macro F1, with 95% percentile intervals.

    Each resample draws test documents and draws of the labels with replacement, the same ones for both models (Efron
    and Tibshirani 1993, chapter 13).

    Args:
        adapted: int [draws, test documents], predicted labels; likewise `starting`.
        labels: int [test documents].
    """
    generator = np.random.default_rng([seed, _STREAM])
    num_draws, num_documents = adapted.shape
    num_classes = int(max(labels.max(), adapted.max(), starting.max())) + 1
    cells = [labels * num_classes + found for found in (adapted, starting)]  # of the confusion matrices
    observed = _metrics(cells, np.ones(num_documents), num_classes).mean(-1)
    resampled = np.zeros([_NUM_RESAMPLES, 2])
    for number in range(_NUM_RESAMPLES):
        weights = np.bincount(generator.integers(0, num_documents, num_documents), minlength=num_documents)
        draws = generator.integers(0, num_draws, num_draws)
        difference = _metrics(cells, weights, num_classes)
        resampled[number] = difference[:, draws].mean(-1)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return {
        metric: Difference(float(observed[number]), float(low[number]), float(high[number]))
        for number, metric in enumerate(("accuracy", "macro_f1"))
    }


def _metrics(cells: list[np.ndarray], weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Accuracy and macro F1 of the first model minus the second one: float64 [2, draws]."""
    found = np.zeros([2, 2, len(cells[0])])
    for model, rows in enumerate(cells):
        for draw, row in enumerate(rows):
            matrix = np.bincount(row, weights, num_classes**2).reshape(num_classes, num_classes)
            true, predicted, correct = matrix.sum(1), matrix.sum(0), np.diag(matrix)
            occurs = true + predicted > 0
            found[model, 0, draw] = correct.sum() / weights.sum()
            found[model, 1, draw] = (2 * correct[occurs] / (true + predicted)[occurs]).mean()
    difference: np.ndarray = found[0] - found[1]
    return difference
