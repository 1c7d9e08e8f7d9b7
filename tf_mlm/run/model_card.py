"""The model card: README.md of a run directory, generated from the run."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tf_mlm.config import Config, load_config, setting_fields
from tf_mlm.data.masking import VALIDATION_PROBABILITY
from tf_mlm.hub import Source
from tf_mlm.model.architectures import ARCHITECTURES
from tf_mlm.model.metrics import METRICS
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.events import Event, Events, finite_or_none

# An explicit list, because other entries of environment.json contain paths of the machine.
_ENVIRONMENT = (
    "tf_mlm", "python", "tensorflow", "tf_keras", "transformers", "datasets", "tokenizers", "safetensors",
    "platform", "processor", "precision", "precision_reason", "xla", "xla_reason",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A sentence with [MASK], and its most likely fills with their probabilities, best first."""

    sentence: str
    before: list[tuple[str, float]]
    after: list[tuple[str, float]]


@dataclass(frozen=True)
class RunReport:
    """The content of a model card.

    Attributes:
        run_name: the last part of the run directory.
        events: the events so far; those of an unfinished run have no end.
        num_parameters: number of parameters of the whole model; tied weights count once.
        model_type: Hugging Face's name of the architecture, such as `distilbert`.
        data: counts by name, {train,validation}_{documents,tokens,sequences,sequences_used}, dropped_overlap and
            dropped_empty (documents), and the `fingerprint` of the text. Where known, also held_out (a share of the
            training documents is the validation data) and {train,validation}_tokens_packed (tokens in all sequences).
        environment: versions by package, platform, processor, precision and precision_reason, xla.
        new_weights: names of the newly initialized weights, missing from the starting checkpoint.
        takes_strings: whether the SavedModel has the signature `fill_mask`.
    """

    run_name: str
    config: Config
    events: Events
    num_parameters: int
    model_type: str
    data: dict[str, Any]
    examples: list[Example]
    environment: dict[str, Any]
    new_weights: list[str]
    takes_strings: bool


def load_report(run: RunDirectory, events: Events | None = None, takes_strings: bool = False) -> RunReport:
    """The report of a finished run.

    Args:
        events: the events of the run including its end, if the end is not written yet.
    """
    environment = json.loads(run.environment_path.read_text())
    config, events = load_config(run.config_path), events or run.read_events()
    before = (events.start and events.start.fills) or []
    after = (events.end and events.end.fills) or []
    return RunReport(
        run_name=run.name,
        config=config,
        events=events,
        num_parameters=environment["num_parameters"],
        model_type=json.loads((run.model_path / "config.json").read_text())["model_type"],
        data=environment["data"],
        examples=[Example(*fills) for fills in zip(config.training.example_sentences, before, after, strict=True)],
        environment=environment,
        new_weights=environment["new_weights"],
        takes_strings=takes_strings,
    )


def build_model_card(report: RunReport, for_hub: bool = False) -> str:
    """The card as Markdown with the Hub's front matter. Only the last part of a local path is shown.

    Args:
        for_hub: whether the card is published beside the model's files, without the rest of the run.
    """
    parts = [
        _front_matter(report),
        f"# {_text(report.run_name)}",
        _what_it_is(report),
        _summary(report),
        "![Loss, perplexity and learning rate over the epochs](loss.png)",
        _how_to_load(report, for_hub),
        _examples(report),
        _limits(report),
        _data(report),
        _epochs(report),
        _settings(report),
        _environment(report),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(report: RunReport) -> str:
    config = report.config
    validation = _validation(report.events.best) if report.events.epochs else {}
    on_hub = _is_hub_dataset(config)
    split = config.data.validation_split if on_hub and not report.data.get("held_out") else ""
    results = [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modeling",
            dataset_type=_shown(config.data.source),
            dataset_name=_shown(config.data.source),
            dataset_config=config.data.config_name or None,
            dataset_split=split or "validation",
            dataset_revision=(on_hub and config.data.revision) or None,
            metric_type=metric.hub_name,
            metric_name=metric.title,
            metric_value=value,
        )
        for metric in METRICS
        if metric.hub_name and (value := finite_or_none(validation.get(metric.name))) is not None
    ]
    card = ModelCardData(
        base_model=config.model.name if _starts_from_hub(config) else None,
        datasets=config.data.dataset if on_hub else None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["tensorflow", "masked-language-modeling", report.model_type, "tf_mlm"],
        metrics=["perplexity", "accuracy"],
        model_name=report.run_name if results else None,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def _what_it_is(report: RunReport) -> str:
    config = report.config
    model, dataset = _shown(config.model.source), _shown(config.data.source)
    if _is_on_hub(config.model.source):
        model = f"[{model}](https://huggingface.co/{model})"
    else:
        model = f"the local model {_text(model)}"
    if not config.model.name:
        origin = "a new DistilBERT with a new vocabulary"
    elif config.model.from_config:
        origin = f"the architecture of {model} with random weights"
    else:
        origin = model
    if _is_hub_dataset(config):
        text = f"the text of [{dataset}](https://huggingface.co/datasets/{dataset})"
    elif config.data.dataset == "sample":
        text = "the built-in sample corpus of tf_mlm"
    else:
        text = f"the local text {_text(dataset)}"
    share = f"{100 * config.masking.mlm_probability:.4g}%"
    paragraphs = [
        f"This model is {origin}, trained with tf_mlm in TensorFlow as a masked language model on {text}. In training, "
        f"{share} of the tokens of each sequence of {config.data.sequence_length} are masked and predicted; in "
        f"validation, {VALIDATION_PROBABILITY:.0%}. The weights are those of the epoch with the lowest validation loss."
    ]
    best, end = report.events.best, report.events.end
    if best and best.epoch == 0 and report.events.epochs:
        paragraphs.append(
            "**No epoch was better than the model before training.** These are the weights before training. Lower the "
            "learning rate, or train on more text."
        )
    if end and end.stopped_early:
        patience = config.training.early_stopping_patience
        epochs = f"{patience} epoch{'s' * (patience > 1)}"
        reason = f"the validation loss had not improved for {epochs}" if patience else "a callback stopped it"
        paragraphs.append(f"Training stopped early, after epoch {end.epoch}: {reason}.")
    if report.new_weights:
        names = ", ".join(f"`{weight}`" for weight in report.new_weights)
        paragraphs.append(f"Newly initialized weights (missing from the starting checkpoint): {names}.")
    if not report.events.end:
        paragraphs.append(f"**This run has not finished.** The card describes {_epochs_done(report)} epochs.")
    return "\n\n".join(paragraphs)


def _summary(report: RunReport) -> str:
    start, best, end, epochs = report.events.start, report.events.best, report.events.end, report.events.epochs
    data = report.data
    speeds = [speed for epoch in epochs if (speed := finite_or_none(epoch.tokens_per_second)) is not None]
    seconds = end.seconds if end else sum(epoch.seconds or 0.0 for epoch in epochs)
    used = f"{data['train_sequences_used']:,} of {report.config.data.sequence_length} tokens"
    measures = [
        [
            metric.title,
            metric.show(_validation(start).get(metric.name)),
            metric.show(_validation(best).get(metric.name)),
        ]
        for metric in METRICS
    ]
    facts = [
        ["Parameters", f"{report.num_parameters:,}"],
        ["Training sequences", used],
        ["Epochs", _epochs_done(report)],
        ["Best epoch", str(best.epoch) if best else "–"],
        [
            "Unigram entropy (the loss of predicting from token frequencies alone)",
            _number(start.unigram_entropy if start else None),
        ],
        ["Skipped steps (loss or gradient not finite)", str(report.events.skipped_steps)],
        [
            "Tokens seen in training, without padding",
            "–" if not end or end.num_tokens is None else f"{end.num_tokens:,}",
        ],
        ["Time", _duration(seconds)],
        [
            "Tokens per second, without padding (median of the epochs)",
            _number(median(speeds) if speeds else None, "{:,.0f}"),
        ],
    ]
    mfus = [mfu for epoch in epochs if (mfu := finite_or_none(epoch.mfu)) is not None]
    if mfus:
        facts.append(["Speed relative to the matrix products alone, with padding (MFU)", f"{median(mfus):.0%}"])
    if end and end.rolled_back:
        facts.append(["Rolled back after bad steps", "from step {:,} to step {:,}".format(*end.rolled_back)])
    masked = f"Validation, {VALIDATION_PROBABILITY:.0%} of the tokens masked"
    validation = _table([masked, "Before training", "Best epoch"], measures)
    return f"## Summary\n\n{validation}\n\n{_table(['The run', ''], facts)}"


def _how_to_load(report: RunReport, for_hub: bool) -> str:
    architecture = ARCHITECTURES[report.model_type]
    sentences = report.config.training.example_sentences or ("This is a great [MASK].",)
    sentence = " ".join(sentences[0].split())
    with_its_mask = sentence.replace("[MASK]", architecture.mask_token)
    folder = "." if for_hub else "model"
    text = f"""## How to load it

In this directory, with transformers and TensorFlow:

```python
from transformers import AutoTokenizer, {architecture.stock_class_name}, pipeline

model = {architecture.stock_class_name}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, framework="tf", torch_dtype=None)
print(fill({with_its_mask!r}))
```

With tf_mlm:

```
python -m tf_mlm fill-mask . {shlex.quote(sentence)}
python -m tf_mlm evaluate .{" --dataset NAME_OR_PATH" if for_hub else ""}
```"""
    return text if for_hub else f"{text}\n\n{_with_tensorflow_alone(report, sentence)}"


def _with_tensorflow_alone(report: RunReport, sentence: str) -> str:
    if report.takes_strings:
        interface = "it takes strings and returns the filled words"
        call = f'fill = model.signatures["fill_mask"]\nprint(fill(text=tf.constant([{sentence!r}]), k=tf.constant(5)))'
    else:
        interface = "`ids` and `mask` are int32, [batch, length]"
        call = 'logits = model.signatures["logits"](input_ids=ids, attention_mask=mask)["logits"]'
    return f"""With TensorFlow alone, from the SavedModel that a finished run contains; {interface}:

```python
import tensorflow as tf

model = tf.saved_model.load("saved_model")
{call}
```"""


def _examples(report: RunReport) -> str:
    if not report.examples:
        return "## Examples\n\nThe run had no example sentences."
    rows = [[_text(example.sentence), _fills(example.before), _fills(example.after)] for example in report.examples]
    return "## Examples\n\n" + _table(["Sentence", "Before training", "After"], rows)


def _data(report: RunReport) -> str:
    config, data = report.config.data, report.data
    rows = []
    for name, split in (("Training", "train"), ("Validation", "validation")):
        tokens = data[f"{split}_tokens"]
        counts = [data[f"{split}_documents"], tokens, data.get(f"{split}_tokens_packed", tokens)]
        counts += [data[f"{split}_sequences"], data[f"{split}_sequences_used"]]
        rows.append([name, *(f"{count:,}" for count in counts)])
    if not config.line_by_line:
        packing = "Documents are packed into sequences; the last sequence is padded."
    elif config.overflow == "split":
        packing = "Each document has its own padded sequence; a longer document is split."
    else:
        packing = "Each document has its own padded sequence; a longer document is truncated."
    if data.get("held_out"):
        packing += f" The validation documents ({100 * config.validation_fraction:.4g}%) are held out at random."
    column = f"{_text(data['text_column'])}, of {_text(', '.join(data['columns']))}" if data.get("text_column") else "–"
    return f"""## Data

{_table(["", "Documents", "Tokens in", "Tokens out", "Sequences", "Sequences used"], rows)}

{packing} "Tokens out" counts the tokens of all sequences. "Sequences used" are drawn from them at random.

- Column of the text: {column}
- Validation documents dropped because they are also training documents: {data["dropped_overlap"]:,}
- Empty documents dropped: {data["dropped_empty"]:,}
- Fingerprint of the text: `{data["fingerprint"]}`"""


def _epochs(report: RunReport) -> str:
    best, start = report.events.best, report.events.start
    rows = [
        [
            f"**{event.epoch}**" if event is best else str(event.epoch),
            f"{event.step:,}",
            _number(getattr(event, "loss", None)),
            *(metric.show(_validation(event).get(metric.name)) for metric in METRICS),
            _number(getattr(event, "learning_rate", None), "{:.3e}"),
        ]
        for event in [*([start] if start else []), *report.events.epochs]
    ]
    header = [
        "Epoch",
        "Step",
        "Training loss",
        *(f"Validation {metric.title[0].lower()}{metric.title[1:]}" for metric in METRICS),
        "Learning rate",
    ]
    return (
        "## Every epoch\n\nEpoch 0 is the model before training. The best epoch is bold. The training loss is the mean "
        f"over the epoch, with dropout and {100 * report.config.masking.mlm_probability:.4g}% of the tokens masked; "
        f"all other metrics are validation metrics, with {VALIDATION_PROBABILITY:.0%} masked. The learning rate is "
        "that of the last step.\n\n" + _table(header, rows)
    )


def _settings(report: RunReport) -> str:
    config, start = report.config, report.events.start
    rows = []
    for name, field in setting_fields().items():
        section, key = name.split(".")
        value, meaning = getattr(getattr(config, section), key), field.default.description
        if name in ("model.name", "data.dataset"):
            value = _shown(getattr(config, section).source)
        unused = config.model.name and meaning.startswith("new models only")
        rows.append([f"`{name}`", "not used" if unused else _value(value), meaning.replace("|", "\\|")])
    text = "## Settings\n\n" + _table(["Setting", "Value", "Meaning"], rows)
    if not start:
        return text
    lengths = {"An epoch": "steps_per_epoch", "Warmup": "num_warmup_steps", "All": "num_train_steps"}
    derived = [[name, f"{getattr(start, key):,}"] for name, key in lengths.items()]
    return f"{text}\n\n{_table(['Derived', 'Steps'], derived)}"


def _limits(report: RunReport) -> str:
    return f"""## Use and limits

- The model fills masks, and can be fine-tuned, for text like its training text. It does not generate text. Only its
  loss and accuracy on {report.data["validation_sequences_used"]:,} validation sequences were measured; they do not
  apply to other text or to other tasks.
- A fill is a likely word, not a verified fact. Errors and biases of the training text and of the starting model can
  occur in the fills; they were not evaluated."""


def _environment(report: RunReport) -> str:
    rows = [[name.replace("_", " "), _value(report.environment.get(name))] for name in _ENVIRONMENT]
    return "## Versions and machine\n\n" + _table(["", ""], rows)


def _validation(event: Event | None) -> Mapping[str, float | None]:
    return (event.validation if event else None) or {}


def _epochs_done(report: RunReport) -> str:
    done, start, config = len(report.events.epochs), report.events.start, report.config.training
    planned = math.ceil(start.num_train_steps / start.steps_per_epoch) if start else config.epochs
    return f"{done} of {planned}"


def _starts_from_hub(config: Config) -> bool:
    """Whether training started from weights on the Hub; a config alone is not a base model."""
    return _is_on_hub(config.model.source) and not config.model.from_config


def _is_hub_dataset(config: Config) -> bool:
    return config.data.dataset != "sample" and _is_on_hub(config.data.source)


def _is_on_hub(source: Source) -> bool:
    return bool(source.name) and source.path is None


def _shown(source: Source) -> str:
    """A Hub name unchanged, or the last part of a local path, because the card is read on other machines."""
    return source.name if _is_on_hub(source) else re.split(r"[/\\]", source.name.rstrip("/\\"))[-1]


def _fills(fills: list[tuple[str, float]]) -> str:
    return "<br>".join(f"{_text(token)} {probability:.1%}" for token, probability in fills)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "<br>".join(_text(str(item)) for item in value)
    return "–" if value is None else _text(str(value)) or "''"


def _number(value: float | None, form: str = "{:.4f}") -> str:
    if value is None:
        return "–"
    return form.format(value) if _is_finite(value) else "not finite"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _duration(seconds: float | None) -> str:
    if not _is_finite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds or 0), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def _text(text: str) -> str:
    """`text` escaped for a line or a table cell of Markdown."""
    return re.sub(r"([\\`*_<>|~$&]|(?<=\])\()", r"\\\1", " ".join(text.split()))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
