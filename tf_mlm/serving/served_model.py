"""The answers of one model: fills of masks, scores of texts, and the signatures of the SavedModel.

A served model answers several jobs at once. Its `answer` is called in one thread only.
"""

import os
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_mlm.config import Config, ModelConfig
from tf_mlm.errors import Refused
from tf_mlm.export.saved_model import build_signatures
from tf_mlm.inference.features import batch_by_length
from tf_mlm.inference.fill_mask import MASK, MaskedText, fill_in, find_masks, load_signatures, read_fills
from tf_mlm.inference.loaded import LoadedModel
from tf_mlm.inference.locate import is_saved_model
from tf_mlm.inference.masked_copies import build_predictor
from tf_mlm.inference.score import ScoredText, TokenizedText, score_texts, tokenize_text
from tf_mlm.model.architectures import max_sequence_length
from tf_mlm.serving.requests import Limits, RequestError

_CHARACTERS_PER_TOKEN = 4  # English prose in WordPiece


@dataclass(frozen=True)
class FillJob:
    """Fill the masks of a text.

    Attributes:
        targets: only these words are fills; None for all tokens.
        as_pipeline: words and texts as the pipeline of transformers decodes them, instead of the given text with the
            fill in place of its mask.
    """

    text: str
    top_k: int
    targets: tuple[str, ...] | None = None
    as_pipeline: bool = False

    num_texts = 1

    @property
    def num_tokens(self) -> int:
        return _estimate_tokens(self.text)


class TokenFill(NamedTuple):
    """A fill of a mask; `text` is the whole text with it."""

    token_id: int
    token: str
    probability: float
    text: str


@dataclass(frozen=True)
class ScoreJob:
    """Score the words of a text, in which each token is masked once."""

    text: str

    num_texts = 1

    @property
    def num_tokens(self) -> int:
        return _estimate_tokens(self.text) ** 2


@dataclass(frozen=True)
class SignatureJob:
    """Call a signature of the SavedModel; its inputs have the types of the signature."""

    signature: str
    inputs: dict[str, np.ndarray]

    @property
    def num_texts(self) -> int:
        return len(next(iter(self.inputs.values()))) if "text" not in self.inputs else len(self.inputs["text"])

    @property
    def num_tokens(self) -> int:
        if "text" not in self.inputs:
            return int(next(iter(self.inputs.values())).size)
        return sum(_estimate_tokens(text) for text in self.inputs["text"].tolist())


@dataclass(frozen=True)
class Signature:
    """A function of the SavedModel.

    Attributes:
        inputs: TensorSpec by name; likewise `outputs`.
        takes_text: whether it is fill_mask.
    """

    function: Callable[..., Mapping[str, Any]]
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    @property
    def takes_text(self) -> bool:
        return "text" in self.inputs


@dataclass(frozen=True)
class Segment:
    """A part of a text: a word, a mask, or what is between them.

    Attributes:
        log_probability: of a word that was scored, in nats.
    """

    text: str
    word: bool = False
    mask: bool = False
    log_probability: float | None = None


class ServedModel(ABC):
    """A model with a name.

    Attributes:
        mask_token: the mask in a text.
        max_tokens: largest number of tokens of a text; None if it is unknown.
        signatures: by name, with `serving_default`.
    """

    mask_token: str
    max_tokens: int | None
    signatures: dict[str, Signature]

    def __init__(self, name: str, title: str, limits: Limits):
        self.name = name
        self.title = title
        self.limits = limits

    def warm_up(self) -> None:
        """Trace the functions, so that the first request is not delayed."""
        self.answer([FillJob(self.mask_token, 1), ScoreJob("a")])

    def answer(self, jobs: Sequence[Any]) -> list[Any]:
        """The result of each job, or the `RequestError` that refuses it.

        `FillJob`: for each mask a list of `TokenFill`, best first. `ScoreJob`: `ScoredText`. `SignatureJob`: the
        outputs by name, as arrays.
        """
        results: list[Any] = [None] * len(jobs)
        for kind, answer in ((FillJob, self._fill), (ScoreJob, self._score), (SignatureJob, self._call)):
            numbers = [number for number, job in enumerate(jobs) if isinstance(job, kind)]
            for number, result in zip(numbers, answer([jobs[number] for number in numbers]), strict=True):
                results[number] = result
        return results

    @abstractmethod
    def split(self, text: str) -> list[Segment]:
        """The words and masks of a text. Their texts joined are the text. Safe in any thread."""

    @abstractmethod
    def count_tokens(self, text: str) -> int | None:
        """The number of tokens of a text; None if it is unknown. Safe in any thread."""

    @abstractmethod
    def _fill(self, jobs: list[FillJob]) -> list[Any]: ...

    @abstractmethod
    def _score(self, jobs: list[ScoreJob]) -> list[Any]: ...

    def _call(self, jobs: list[SignatureJob]) -> list[Any]:
        """Calls of a signature that takes texts are joined."""
        results: list[Any] = [None] * len(jobs)
        with_text = [number for number, job in enumerate(jobs) if self.signatures[job.signature].takes_text]
        if with_text:
            joined = self._fill_texts([(jobs[n].inputs["text"], int(jobs[n].inputs["k"])) for n in with_text])
            for number, result in zip(with_text, joined, strict=True):
                results[number] = result
        for number, job in enumerate(jobs):
            if number not in with_text:
                results[number] = self._call_alone(job)
        return results

    def _call_alone(self, job: SignatureJob) -> dict[str, np.ndarray] | RequestError:
        inputs = {name: tf.constant(value) for name, value in job.inputs.items()}
        try:
            outputs = self.signatures[job.signature].function(**inputs)
            return {name: value.numpy() for name, value in outputs.items()}
        except tf.errors.InvalidArgumentError as error:  # ids outside the vocabulary, or shapes that differ
            # The rest of the message has the names of the server's files.
            found = re.search(r"^\s*(.+)\n\s*\[\[\{\{node", error.message, re.MULTILINE)
            return RequestError(f"The inputs do not fit the model: {found[1] if found else 'see the signature'}")

    def _fill_texts(self, calls: Sequence[tuple[Any, int]]) -> list[dict[str, np.ndarray]]:
        """The outputs of fill_mask for each call of (texts, k), with one call of the function."""
        texts = np.concatenate([np.asarray(each, object) for each, _ in calls])
        function = self.signatures["fill_mask"].function
        outputs = {
            name: value.numpy()
            for name, value in function(
                text=tf.constant(texts, tf.string), k=tf.constant(max(k for _, k in calls))
            ).items()
        }
        ends = np.cumsum([0, *(len(each) for each, _ in calls)]).tolist()
        results = []
        for (start, end), (_, k) in zip(pairwise(ends), calls, strict=True):
            own = {name: value[start:end] for name, value in outputs.items()}
            num_masks = int(own["num_masks"].max(initial=0))
            for name in ("tokens", "token_ids", "probabilities"):
                own[name] = own[name][:, :num_masks, :k]
            results.append(own)
        return results


class ServedWeights(ServedModel):
    """A model with its weights and its tokenizer."""

    def __init__(self, loaded: LoadedModel, name: str, title: str, limits: Limits):
        super().__init__(name, title, limits)
        self.loaded = loaded
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self._tokenizer(
            "a"
        )  # resets truncation; after that, no call changes the tokenizer, so that threads can share it
        self.mask_token = str(self._tokenizer.mask_token)
        self._num_positions = max_sequence_length(self._model.config)
        self.max_tokens = self._num_positions
        self._owner, functions = build_signatures(self._model, self._tokenizer)
        concrete = {id(function): function.get_concrete_function() for function in functions.values()}
        self.signatures = {name: _as_signature(concrete[id(function)]) for name, function in functions.items()}
        self._predict = _build_mask_predictor(self._model)
        self._predict_token = build_predictor(self._model)

    def split(self, text: str) -> list[Segment]:
        parts = re.split(f"({'|'.join(map(re.escape, {MASK, self.mask_token}))})", text)
        segments: list[Segment] = []
        for number, part in enumerate(parts):
            segments += [Segment(part, mask=True)] if number % 2 else self._split_words(part)
        return segments

    def _split_words(self, text: str) -> list[Segment]:
        try:
            spans = tokenize_text(self._tokenizer, text, len(text) + 100).spans
        except Refused:  # the text has no ordinary token
            spans = []
        return split_at(text, spans)

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer(text.replace(MASK, self.mask_token))["input_ids"])

    def _fill(self, jobs: list[FillJob]) -> list[Any]:
        results: list[Any] = [None] * len(jobs)
        texts: dict[int, MaskedText] = {}
        targets: dict[int, list[int]] = {}
        for number, job in enumerate(jobs):
            try:
                text = self._find_masks(job.text)
                check_answer(job, len(text.masks), self.limits)
                if job.targets is not None:
                    targets[number] = list(dict.fromkeys(map(self._find_token, job.targets)))
                texts[number] = text
            except (Refused, RequestError) as error:
                results[number] = as_request_error(error)
        numbers = list(texts)
        for batch, length in batch_by_length([len(texts[number].input_ids) for number in numbers]):
            chosen = [numbers[index] for index in batch]
            k = max(jobs[number].top_k for number in chosen)
            best, best_ids, all_values = self._predict_masks([texts[number] for number in chosen], length, k)
            row = 0
            for number in chosen:
                job, text = jobs[number], texts[number]
                results[number] = fills = []
                for position in range(len(text.masks)):
                    values, ids = best[row].tolist(), best_ids[row].tolist()
                    if job.targets is not None:
                        ids = targets[number]
                        values = tf.gather(all_values[row], ids).numpy().tolist()
                        values, ids = zip(*sorted(zip(values, ids, strict=True), reverse=True), strict=True)
                    found = zip(values[: job.top_k], ids[: job.top_k], strict=True)
                    fills.append([self._describe(job, text, position, *each) for each in found])
                    row += 1
        return results

    def _find_masks(self, text: str) -> MaskedText:
        found = find_masks(self._model, self._tokenizer, text)
        if len(found.masks) > self.limits.masks:
            raise RequestError(f"The text has {len(found.masks)} masks, and at most {self.limits.masks} are allowed.")
        return found

    def _find_token(self, target: str) -> int:
        """The token of a target, as the pipeline of transformers finds it, which takes the first of several tokens."""
        vocabulary = self._vocabulary
        if target in vocabulary:
            return vocabulary[target]
        ids = self._tokenizer(target, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id:
            raise RequestError(f"targets: {target!r} is not one token of the vocabulary; omit it")
        return int(ids[0])

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())

    def _predict_masks(self, texts: list[MaskedText], length: int, k: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """For the masks of all texts in order: the k greatest probabilities, float32 [masks, k], their tokens, int32
        [masks, k], and the probabilities of all tokens, a tensor [masks, vocabulary].
        """
        ids = np.full([len(texts), length], self._tokenizer.pad_token_id, np.int32)
        attention_mask = np.zeros_like(ids)
        num_masks = np.array([len(text.masks) for text in texts], np.int32)
        positions = np.zeros([len(texts), num_masks.max()], np.int32)
        for row, text in enumerate(texts):
            ids[row, : len(text.input_ids)], attention_mask[row, : len(text.input_ids)] = text.input_ids, 1
            positions[row, : num_masks[row]] = [mask.position for mask in text.masks]
        k = min(k, self._model.config.vocab_size)
        values, best, probabilities = self._predict(*map(tf.constant, (ids, attention_mask, positions, num_masks, k)))
        return values.numpy(), best.numpy(), probabilities

    def _describe(self, job: FillJob, text: MaskedText, number: int, probability: float, token_id: int) -> TokenFill:
        if not job.as_pipeline:
            word, filled = fill_in(self._tokenizer, text.text, text.masks[number], token_id)
            return TokenFill(token_id, word, probability, filled)
        input_ids = text.input_ids.copy()
        input_ids[text.masks[number].position] = token_id
        filled = self._tokenizer.decode(input_ids, skip_special_tokens=len(text.masks) == 1)
        return TokenFill(token_id, self._tokenizer.decode([token_id]), probability, filled)

    def _score(self, jobs: list[ScoreJob]) -> list[Any]:
        results: list[Any] = [None] * len(jobs)
        tokenized: dict[int, TokenizedText] = {}
        for number, job in enumerate(jobs):
            try:
                text = tokenize_text(self._tokenizer, job.text, self._num_positions)
                if len(text.positions) > self.limits.scored_tokens:
                    raise RequestError(
                        f"The text has {len(text.positions)} tokens, and at most {self.limits.scored_tokens} can be "
                        "scored at once; shorten it."
                    )
                tokenized[number] = text
            except (Refused, RequestError) as error:
                results[number] = as_request_error(error)
        scored: list[ScoredText] = list(score_texts(self._predict_token, self._tokenizer, list(tokenized.values())))
        for number, each in zip(tokenized, scored, strict=True):
            results[number] = each
        return results


class ServedSavedModel(ServedModel):
    """A SavedModel that takes strings. It has no tokenizer outside its graph."""

    max_tokens = None
    mask_token = MASK

    def __init__(self, folder: str, name: str, title: str, limits: Limits):
        super().__init__(name, title, limits)
        signatures, self._prefix = load_signatures(folder)
        self.signatures = {each: _as_signature(function) for each, function in signatures.items()}

    def split(self, text: str) -> list[Segment]:
        segments: list[Segment] = []
        for number, part in enumerate(re.split(f"({re.escape(MASK)})", text)):
            spans = [found.span() for found in re.finditer(r"\w+|[^\w\s]", part)]
            segments += [Segment(part, mask=True)] if number % 2 else split_at(part, spans)
        return segments

    def count_tokens(self, text: str) -> None:
        return None

    def _fill(self, jobs: list[FillJob]) -> list[Any]:
        results: list[Any] = [self._why_not(job) for job in jobs]
        numbers = [number for number, result in enumerate(results) if result is None]
        calls = [(np.array([jobs[number].text.encode()], object), jobs[number].top_k) for number in numbers]
        for number, outputs in zip(numbers, self._fill_texts(calls) if calls else [], strict=True):
            try:
                own = {name: value[0] for name, value in outputs.items()}
                fills = read_fills(jobs[number].text, self._prefix, own)
                results[number] = [
                    [
                        TokenFill(token_id, fill.token, fill.probability, fill.sentence)
                        for token_id, fill in zip(ids, of_mask, strict=True)
                    ]
                    for ids, of_mask in zip(own["token_ids"].tolist(), fills, strict=True)
                ]
            except Refused as error:
                results[number] = as_request_error(error)
        return results

    def _why_not(self, job: FillJob) -> RequestError | None:
        if job.targets is not None:
            return RequestError(
                f"targets: {self.name} is a SavedModel, which returns only the most likely tokens; omit it"
            )
        if (num_masks := job.text.count(MASK)) > self.limits.masks:
            return RequestError(f"The text has {num_masks} masks, and at most {self.limits.masks} are allowed.")
        try:
            check_answer(job, num_masks, self.limits)
        except RequestError as error:
            return error
        return None

    def _score(self, jobs: list[ScoreJob]) -> list[Any]:
        return [RequestError(f"{self.name} is a SavedModel, which cannot score texts; serve the run.") for _ in jobs]


def load_served(name: str, limits: Limits, taken: Sequence[str] = ()) -> ServedModel:
    """Load a run directory, a model directory, a SavedModel or a model on the Hub.

    Args:
        taken: names of other models; the model gets a different name.

    Raises:
        Refused: there is no such model, or it has no trained head.
    """
    path = Path(name).expanduser()
    title = _title_of(path) if path.exists() else name
    name_in_urls = unused_name(title, taken)
    if is_saved_model(name):
        return ServedSavedModel(name, name_in_urls, title, limits)
    return ServedWeights(LoadedModel.load(name), name_in_urls, title, limits)


def load_starting_model(config: Config, limits: Limits, taken: Sequence[str]) -> ServedModel:
    """Load the model that a run started from.

    Raises:
        Refused: the run started from random weights, or the model cannot be loaded or has no trained head.
    """
    if not config.model.name or config.model.from_config:
        raise Refused("the run started from random weights")
    loaded = LoadedModel.of(ModelConfig(name=config.model.name, revision=config.model.revision))
    path = config.model.source.path
    title = _title_of(path) if path else config.model.name
    return ServedWeights(loaded, unused_name(title, taken), title, limits)


def _title_of(path: Path) -> str:
    """The name of a directory, or of the run that it belongs to."""
    path = path.resolve()
    is_part_of_run = path.name in ("model", "saved_model") and (path.parent / "config.toml").is_file()
    name = path.parent.name if is_part_of_run else path.name
    return os.fsencode(name).decode(errors="replace")  # in a locale that is not UTF-8, it may not be valid text


def unused_name(title: str, taken: Sequence[str]) -> str:
    """`title` as a name in URLs, with a number appended if it is taken."""
    name = re.sub(r"[^\w.-]+", "-", title.rpartition("/")[2]) or "model"
    numbered = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(each for each in numbered if each not in taken)


def check_answer(job: FillJob, num_masks: int, limits: Limits) -> None:
    """
    Raises:
        RequestError: the fills, which repeat the text, would be too large.
    """
    if (size := num_masks * job.top_k * len(job.text)) > limits.answer_characters:
        raise RequestError(
            f"The answer would have {size:,} characters, and at most {limits.answer_characters:,} are allowed; shorten "
            "the text or lower top_k."
        )


def as_request_error(error: Exception) -> RequestError:
    """`error` as an error of a request, without the name of the command."""
    if isinstance(error, RequestError):
        return error
    message = str(error).removeprefix("fill-mask: ").removeprefix("score: ")
    return RequestError(textwrap.shorten(message, 300, placeholder=" …"))


def split_at(
    text: str, spans: Sequence[tuple[int, int]], log_probabilities: Sequence[float | None] | None = None
) -> list[Segment]:
    """The words of a text, at the spans of their characters, and what is between them.

    Args:
        log_probabilities: of the words.
    """
    segments = []
    done = 0
    for (start, end), value in zip(spans, log_probabilities or [None] * len(spans), strict=True):
        start = max(start, done)  # some tokenizers count one character to two words, or white space as a word
        if end <= start:
            continue
        segments += [Segment(text[done:start]), Segment(text[start:end], word=True, log_probability=value)]
        done = end
    return [segment for segment in [*segments, Segment(text[done:])] if segment.text]


def _as_signature(function: Any) -> Signature:
    positional, by_name = function.structured_input_signature
    specs = {spec.name: spec for spec in positional} | by_name
    outputs = {name: tf.TensorSpec(each.shape, each.dtype) for name, each in function.structured_outputs.items()}
    return Signature(function, specs, outputs)


def _estimate_tokens(text: str | bytes) -> int:
    return len(text) // _CHARACTERS_PER_TOKEN + 2


def _build_mask_predictor(model: Any) -> Callable[..., Any]:
    """A function that is traced once for all shapes.

    It maps input_ids and attention_mask, int32 [batch, length], the positions of the masks, int32 [batch, masks], their
    numbers, int32 [batch], and k to the k greatest probabilities of each mask, their tokens, and all probabilities.
    """
    ids = tf.TensorSpec([None, None], tf.int32)
    row = tf.TensorSpec([None], tf.int32)

    @tf.function(input_signature=[ids, ids, ids, row, tf.TensorSpec([], tf.int32)], autograph=False)
    def predict(
        input_ids: tf.Tensor, attention_mask: tf.Tensor, positions: tf.Tensor, num_masks: tf.Tensor, k: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.xla.experimental.jit_scope(compile_ops=False):  # XLA would compile its clusters again for each shape
            hidden_states = model.encode_positions(input_ids, attention_mask, positions, training=False)
            at_masks = tf.boolean_mask(hidden_states, tf.sequence_mask(num_masks, tf.shape(positions)[1]))
            # Some heads require three dimensions.
            logits = tf.cast(model.predict_tokens(at_masks[tf.newaxis], training=False)[0], tf.float32)
            probabilities = tf.nn.softmax(logits)
            best = tf.math.top_k(probabilities, k)
            return best.values, best.indices, probabilities

    return predict
