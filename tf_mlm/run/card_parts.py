"""The parts that model cards of all objectives share: the report of a run, its tables, and formatting."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tf_mlm.config import Config, setting_fields
from tf_mlm.hub import Source
from tf_mlm.model.metrics import LOSS, METRICS, metrics_of
from tf_mlm.run.events import Event, Events, finite_or_none
from tf_mlm.run.probe_results import ProbeResults

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
        takes_strings: whether the SavedModel has a signature that takes strings.
        probe: the results of `tf-mlm probe`, if there are any.
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
    probe: ProbeResults | None = None


def front_matter(report: RunReport, *, task_type: str, task_name: str, tag: str, metrics: list[str]) -> str:
    """The metadata that the Hub reads, between lines of three dashes.

    Args:
        task_type: the Hub's name of the task, such as `fill-mask`.
        metrics: the Hub's names of the metrics.
    """
    config = report.config
    validation = validation_of(report.events.best) if report.events.epochs else {}
    on_hub = is_hub_dataset(config)
    split = config.data.validation_split if on_hub and not report.data.get("held_out") else ""
    results = [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=config.data.source.short_name,
            dataset_name=config.data.source.short_name,
            dataset_config=config.data.config_name or None,
            dataset_split=split or "validation",
            dataset_revision=(on_hub and config.data.revision) or None,
            metric_type=metric.hub_name,
            metric_name=metric.title,
            metric_value=value,
        )
        for metric in metrics_of(report.config.objective.name)
        if metric.hub_name and (value := finite_or_none(validation.get(metric.name))) is not None
    ]
    card = ModelCardData(
        base_model=config.model.name if starts_from_hub(config) else None,
        datasets=config.data.dataset if on_hub else None,
        library_name="transformers",
        pipeline_tag=task_type,
        tags=["tensorflow", tag, report.model_type, "tf_mlm"],
        metrics=metrics,
        model_name=report.run_name if results else None,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def origin_and_text(report: RunReport) -> tuple[str, str]:
    """The starting model and the training text, as noun phrases."""
    config = report.config
    model, dataset = config.model.source.short_name, config.data.source.short_name
    if is_on_hub(config.model.source):
        model = f"[{model}](https://huggingface.co/{model})"
    else:
        model = f"the local model {escaped(model)}"
    if not config.model.name:
        origin = "a new DistilBERT with a new vocabulary"
    elif config.model.from_config:
        origin = f"the architecture of {model} with random weights"
    else:
        origin = model
    if is_hub_dataset(config):
        text = f"the text of [{dataset}](https://huggingface.co/datasets/{dataset})"
    elif config.data.dataset == "sample":
        text = "the built-in sample corpus of tf_mlm"
    else:
        text = f"the local text {escaped(dataset)}"
    return origin, text


def outcome(report: RunReport) -> list[str]:
    """Paragraphs about the end of the run and about its weights: early stopping, frozen or new weights."""
    config, paragraphs = report.config, []
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
    if config.model.train != "all":
        selected = [config.model.train] if isinstance(config.model.train, str) else config.model.train
        names = ", ".join(f"`{name}`" for name in selected)
        paragraphs.append(f"Only a part of the weights was trained (`model.train`: {names}); the others were frozen.")
    if report.new_weights:
        names = ", ".join(f"`{weight}`" for weight in report.new_weights)
        paragraphs.append(f"Newly initialized weights (missing from the starting checkpoint): {names}.")
    if not report.events.end:
        paragraphs.append(f"**This run has not finished.** The card describes {epochs_done(report)} epochs.")
    return paragraphs


def summary(report: RunReport, heading: str) -> str:
    """The validation metrics before and after training, and facts about the run.

    Args:
        heading: heading of the column with the names of the metrics.
    """
    start, best, end, epochs = report.events.start, report.events.best, report.events.end, report.events.epochs
    data = report.data
    speeds = [speed for epoch in epochs if (speed := finite_or_none(epoch.tokens_per_second)) is not None]
    seconds = end.seconds if end else sum(epoch.seconds or 0.0 for epoch in epochs)
    used = f"{data['train_sequences_used']:,} of {report.config.data.sequence_length} tokens"
    measures = [
        [
            metric.title,
            metric.show(validation_of(start).get(metric.name)),
            metric.show(validation_of(best).get(metric.name)),
        ]
        for metric in metrics_of(report.config.objective.name)
    ]
    if second := data.get("second_validation"):
        measures += [
            [f"{title}, on {escaped(second['dataset'])}", *values] for title, *values in _second_measures(start, best)
        ]
    facts = [
        ["Parameters", f"{report.num_parameters:,}"],
        ["Training sequences", used],
        ["Epochs", epochs_done(report)],
        ["Best epoch", str(best.epoch) if best else "–"],
        ["Skipped steps (loss or gradient not finite)", str(report.events.skipped_steps)],
        [
            "Tokens seen in training, without padding",
            "–" if not end or end.num_tokens is None else f"{end.num_tokens:,}",
        ],
        ["Time", _duration(seconds)],
        [
            "Tokens per second, without padding (median of the epochs)",
            number(median(speeds) if speeds else None, "{:,.0f}"),
        ],
    ]
    if start and start.unigram_entropy is not None:
        entropy = [
            "Unigram entropy (the loss of predicting from token frequencies alone)",
            number(start.unigram_entropy),
        ]
        facts.insert(4, entropy)
    mfus = [mfu for epoch in epochs if (mfu := finite_or_none(epoch.mfu)) is not None]
    if mfus:
        facts.append(["Speed relative to the matrix products alone, with padding (MFU)", f"{median(mfus):.0%}"])
    if end and end.rolled_back:
        facts.append(["Rolled back after bad steps", "from step {:,} to step {:,}".format(*end.rolled_back)])
    validation = table([heading, "Before training", "Best epoch"], measures)
    return f"## Summary\n\n{validation}\n\n{table(['The run', ''], facts)}"


def _second_measures(start: Event | None, best: Event | None) -> list[list[str]]:
    """Title, value before training and value of the best epoch of each metric on the second validation dataset."""
    events = [(event and event.second_validation) or {} for event in (start, best)]
    return [[metric.title, *(metric.show(values.get(metric.name)) for values in events)] for metric in METRICS]


def data_section(report: RunReport, explanation: str, facts: list[str]) -> str:
    """Counts of both splits, and facts about them.

    Args:
        explanation: how documents become sequences.
        facts: additional lines of the list.
    """
    config, data = report.config.data, report.data
    rows = []
    for name, split in (("Training", "train"), ("Validation", "validation")):
        tokens = data[f"{split}_tokens"]
        counts = [data[f"{split}_documents"], tokens, data.get(f"{split}_tokens_packed", tokens)]
        counts += [data[f"{split}_sequences"], data[f"{split}_sequences_used"]]
        rows.append([name, *(number(count, "{:,}") for count in counts)])
    if data.get("held_out"):
        explanation += f" The validation documents ({100 * config.validation_fraction:.4g}%) are held out at random."
    column = (
        f"{escaped(data['text_column'])}, of {escaped(', '.join(data['columns']))}" if data.get("text_column") else "–"
    )
    if shards := data.get("streamed_shards"):
        facts = [
            *facts,
            f"The training documents are read from {shards:,} shards while training. "
            f"{config.shuffle_buffer_size:,} consecutive sequences are shuffled together.",
        ]
    facts = [
        *facts,
        *(
            f"{other['share']:.0%} of the training sequences of each epoch are from "
            f"{escaped(Source.of(other['dataset']).short_name)} ({other['documents']:,} documents, "
            f"{other['sequences']:,} sequences)"
            for other in data.get("mixture", [])
        ),
    ]
    drawn = '"Sequences used" are drawn from them at random.'
    if data.get("streamed_shards"):
        drawn = "Each training sequence is used once in a pass over the documents."
    if second := data.get("second_validation"):
        facts.append(
            f"The model is also validated on {escaped(second['dataset'])}: {second['documents']:,} documents, "
            f"{second['sequences_used']:,} of {second['sequences']:,} sequences. Documents dropped because they are "
            f"also training documents: {number(second['dropped_overlap'], '{:,}')}."
        )
    repeated = data.get("dropped_repeated", 0)
    repeated = f"- Documents dropped because they repeat an earlier one: {repeated:,}\n" if repeated else ""
    return f"""## Data

{table(["", "Documents", "Tokens in", "Tokens out", "Sequences", "Sequences used"], rows)}

{explanation} "Tokens out" counts the tokens of all sequences. {drawn}

- Column of the text: {column}
- Validation documents dropped because they are also training documents: {number(data["dropped_overlap"], "{:,}")}
- Empty documents dropped: {number(data["dropped_empty"], "{:,}")}
{repeated}{"".join(f"- {fact}{chr(10)}" for fact in facts)}- Fingerprint of the text: `{data["fingerprint"]}`"""


def epochs_section(report: RunReport, explanation: str) -> str:
    """One row for each epoch.

    Args:
        explanation: how training loss and validation metrics are computed.
    """
    best, start = report.events.best, report.events.start
    second = report.data.get("second_validation")
    rows = [
        [
            f"**{event.epoch}**" if event is best else str(event.epoch),
            f"{event.step:,}",
            number(getattr(event, "loss", None)),
            *(
                metric.show(validation_of(event).get(metric.name))
                for metric in metrics_of(report.config.objective.name)
            ),
            *([LOSS.show((event.second_validation or {}).get(LOSS.name))] if second else []),
            number(getattr(event, "learning_rate", None), "{:.3e}"),
        ]
        for event in [*([start] if start else []), *report.events.epochs]
    ]
    header = [
        "Epoch",
        "Step",
        "Training loss",
        *(
            f"Validation {metric.title[0].lower()}{metric.title[1:]}"
            for metric in metrics_of(report.config.objective.name)
        ),
        *([f"Loss on {escaped(second['dataset'])}"] if second else []),
        "Learning rate",
    ]
    return (
        f"## Every epoch\n\nEpoch 0 is the model before training. The best epoch is bold. {explanation} The learning "
        "rate is that of the last step.\n\n" + table(header, rows)
    )


def settings_section(report: RunReport) -> str:
    config, start = report.config, report.events.start
    rows = []
    for name, field in setting_fields().items():
        section, key = name.split(".")
        value, meaning = getattr(getattr(config, section), key), field.default.description
        if name in ("model.name", "data.dataset", "data.second_validation_dataset"):
            value = Source.of(value).short_name
        unused = config.model.name and meaning.startswith("new models only")
        rows.append([f"`{name}`", "not used" if unused else shown_value(value), meaning.replace("|", "\\|")])
    text = "## Settings\n\n" + table(["Setting", "Value", "Meaning"], rows)
    if not start:
        return text
    lengths = {"An epoch": "steps_per_epoch", "Warmup": "num_warmup_steps", "All": "num_train_steps"}
    derived = [[name, f"{getattr(start, key):,}"] for name, key in lengths.items()]
    return f"{text}\n\n{table(['Derived', 'Steps'], derived)}"


def environment_section(report: RunReport) -> str:
    rows = [[name.replace("_", " "), shown_value(report.environment.get(name))] for name in _ENVIRONMENT]
    return "## Versions and machine\n\n" + table(["", ""], rows)


def validation_of(event: Event | None) -> Mapping[str, float | None]:
    return (event.validation if event else None) or {}


def epochs_done(report: RunReport) -> str:
    done, start, config = len(report.events.epochs), report.events.start, report.config.training
    planned = math.ceil(start.num_train_steps / start.steps_per_epoch) if start else config.epochs
    return f"{done} of {planned}"


def starts_from_hub(config: Config) -> bool:
    """Whether training started from weights on the Hub; a config alone is not a base model."""
    return is_on_hub(config.model.source) and not config.model.from_config


def is_hub_dataset(config: Config) -> bool:
    return config.data.dataset != "sample" and is_on_hub(config.data.source)


def is_on_hub(source: Source) -> bool:
    return bool(source.name) and source.path is None


def shown_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "<br>".join(escaped(str(item)) for item in value)
    return "–" if value is None else escaped(str(value)) or "''"


def number(value: float | None, form: str = "{:.4f}") -> str:
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


def escaped(text: str) -> str:
    """`text` escaped for a line or a table cell of Markdown."""
    return re.sub(r"([\\`*_<>|~$&]|(?<=\])\()", r"\\\1", " ".join(text.split()))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
