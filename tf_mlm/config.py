"""The settings: their names, defaults, units and limits, read from TOML and the command line, and checked.

TensorFlow is not imported here, so that `--help` and errors in settings are fast. pydantic checks types and ranges;
`_describe` writes each of its errors as one line.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from tf_mlm.errors import Refused
from tf_mlm.hub import Source

_RECIPE_FOLDERS = (Path(__file__).parent.parent / "configs", Path(__file__).parent / "configs")  # checkout, wheel
_FORBID = ConfigDict(extra="forbid")


def _setting(default: Any, description: str, **limits: Any) -> Any:
    # Strict: "32" is not a number, and 1 is not a boolean. str is never converted; Literal does not support `strict`.
    if not isinstance(default, str):
        limits["strict"] = True
    if isinstance(default, float):
        limits["allow_inf_nan"] = False
    return Field(default=default, description=description, **limits)


@dataclass(frozen=True, config=_FORBID)
class ModelConfig:
    name: str = _setting(
        "distilbert-base-uncased",
        "Hub name or directory of the starting weights; '' builds a new DistilBERT and trains its vocabulary",
    )
    revision: str = _setting("", "branch, tag or commit on the Hub; '' is the default branch")
    from_config: bool = _setting(False, "start from random weights with the config of `name`")
    train: str | tuple[str, ...] = Field(
        default="all",
        description="weights to train: all, head, or a list of parts of weight names such as layer.5",
    )
    vocab_size: int = _setting(8000, "new models only: size of the WordPiece vocabulary", ge=100)
    n_layers: int = _setting(6, "new models only: number of transformer layers", ge=1)
    dim: int = _setting(768, "new models only: size of the hidden states", ge=1)
    n_heads: int = _setting(12, "new models only: number of attention heads; must divide dim", ge=1)
    hidden_dim: int = _setting(3072, "new models only: size of the feed-forward layers", ge=1)
    dropout: float = _setting(0.1, "new models only: dropout rate", ge=0, lt=1)

    @field_validator("train", mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        """One name is the same as a list of one name."""
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value

    @field_validator("train")
    @classmethod
    def _check_train(cls, value: Any) -> Any:
        if not value or not all(value):
            raise ValueError("must be all, head, or a list of names")
        return value

    @cached_property
    def source(self) -> Source:
        """Where `name` is: a local path or the Hub, decided once."""
        return Source.of(self.name)


@dataclass(frozen=True, config=_FORBID)
class DataConfig:
    dataset: str = _setting("stanfordnlp/imdb", "Hub name, directory, glob or file; 'sample' is the built-in corpus")
    revision: str = _setting("", "branch, tag or commit on the Hub; '' is the default branch")
    config_name: str = _setting("", "configuration of the dataset; '' is the default configuration")
    document: Literal["line", "paragraph", "file"] = _setting("line", "unit of a .txt file that forms one document")
    text_column: str = _setting("", "column that contains the text; '' selects it automatically")
    csv_header: bool = _setting(True, "the first line of csv and tsv files names the columns")
    train_split: str = _setting("train", "split to train on; join several splits with +")
    validation_split: str = _setting(
        "test", "split to validate on; '' holds out a share of the training documents (evaluate: selects all documents)"
    )
    validation_fraction: float = _setting(
        0.05, "share of the documents held out if the data has no splits or validation_split is ''", gt=0, lt=1
    )
    sequence_length: int = _setting(128, "tokens in a sequence", ge=8)
    num_train_sequences: int = _setting(3000, "training sequences, drawn at random; 0 uses all", ge=0)
    num_validation_sequences: int = _setting(1000, "validation sequences, drawn at random; 0 uses all", ge=0)
    line_by_line: bool = _setting(False, "one document per sequence, padded, instead of packed documents")
    overflow: Literal["split", "truncate"] = _setting(
        "split", "with line_by_line: treatment of a document longer than a sequence"
    )
    mixture: tuple[str, ...] = Field(
        default=(),
        description="other training datasets, each with its share of the sequences of an epoch, such as '0.2 general/'",
    )
    second_validation_dataset: str = _setting(
        "", "another dataset to validate on after each epoch, such as general text; '' for none"
    )
    isolate_documents: bool = _setting(
        False, "keep attention inside each of the packed documents, and restart the positions at each document"
    )
    num_proc: int = _setting(1, "processes that prepare a Hub dataset", ge=1)
    wait_minutes: float = _setting(
        240.0, "minutes to wait while another process tokenizes the same documents into the same cache", gt=0
    )
    streaming: bool = _setting(
        False,
        "read and tokenize the training documents during training, without storing them; requires "
        "training.num_train_steps and training.validate_every_steps; ignores num_train_sequences",
    )
    shuffle_buffer_size: int = _setting(
        10_000, "with streaming: number of consecutive sequences that are shuffled together in memory", ge=1
    )

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.isolate_documents and self.line_by_line:
            raise ValueError(
                "isolate_documents has no effect with line_by_line, which puts one document in each sequence; omit one"
            )
        if sum(share for share, _ in self.mixture_shares) > 1 - 1e-9:  # ten times 0.1 is less than 1
            raise ValueError("the shares in mixture must add up to less than 1; the rest is the share of dataset")
        return self

    @property
    def mixture_shares(self) -> list[tuple[float, str]]:
        """The share and the name of each dataset in `mixture`."""
        found = []
        for entry in self.mixture:
            share, _, dataset = entry.strip().partition(" ")
            if not re.fullmatch(r"0?\.\d+", share) or not float(share) or not dataset.strip():
                raise ValueError(f"mixture has {entry!r}; write a share below 1 and a dataset, such as '0.2 general/'")
            found.append((float(share), dataset.strip()))
        return found

    @cached_property
    def source(self) -> Source:
        """Where `dataset` is: a local path or the Hub, decided once. The sample is neither."""
        return Source.of(self.dataset)


@dataclass(frozen=True, config=_FORBID)
class ObjectiveConfig:
    name: Literal["masked", "classification", "token_classification"] = _setting(
        "masked", "what the model predicts: masked tokens, the label of each text, or the tag of each word"
    )
    label_column: str = _setting(
        "",
        "fine-tuning: column that contains the labels or the tags; '' is label, or ner_tags for token_classification",
    )
    text_pair_column: str = _setting(
        "", "classification: column that contains the second text of each pair; '' if none"
    )


@dataclass(frozen=True, config=_FORBID)
class MaskingConfig:
    mlm_probability: float = _setting(
        0.15, "share of the ordinary tokens to predict in training; validation uses 0.15", gt=0, le=1
    )
    mask_replace_prob: float = _setting(
        0.8, "share of the predicted tokens that are replaced by the mask token", ge=0, le=1
    )
    random_replace_prob: float = _setting(
        0.1, "share of the predicted tokens that are replaced by a random token; the rest is kept", ge=0, le=1
    )

    @model_validator(mode="after")
    def _check(self) -> "MaskingConfig":
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError(
                "mask_replace_prob + random_replace_prob must be at most 1: "
                f"{self.mask_replace_prob} + {self.random_replace_prob}"
            )
        return self


@dataclass(frozen=True, config=_FORBID)
class OptimizerConfig:
    learning_rate: float = _setting(2e-5, "peak rate, reached at the end of the warmup", gt=0, lt=1)
    end_learning_rate: float = _setting(0.0, "rate at the end of the decay", ge=0)
    power: float = _setting(1.0, "exponent of the polynomial decay; 1 is linear", gt=0)
    warmup_ratio: float = _setting(0.06, "share of the steps used for linear warmup", ge=0, lt=1)
    num_warmup_steps: int = _setting(-1, "steps used for linear warmup; -1 uses warmup_ratio", ge=-1)
    weight_decay_rate: float = _setting(0.01, "decoupled weight decay, not applied to LayerNorm and biases", ge=0, lt=1)
    beta_1: float = _setting(0.9, "decay rate of the first moment estimates", ge=0, lt=1)
    beta_2: float = _setting(0.999, "decay rate of the second moment estimates", ge=0, lt=1)
    epsilon: float = _setting(1e-8, "constant for numerical stability", gt=0)
    clip_norm: float = _setting(1.0, "maximum global norm of the gradients; 0 disables clipping", ge=0)

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        if self.end_learning_rate > self.learning_rate:
            raise ValueError(
                f"end_learning_rate must be at most learning_rate: {self.end_learning_rate} > {self.learning_rate}"
            )
        return self


@dataclass(frozen=True, config=_FORBID)
class TrainingConfig:
    epochs: int = _setting(20, "passes over the training sequences", ge=1)
    num_train_steps: int = _setting(0, "number of updates; overrides epochs; 0 uses epochs", ge=0)
    validate_every_steps: int = _setting(
        0,
        "with data.streaming: number of updates between two validations, reported as an epoch",
        ge=0,
    )
    batch_size: int = _setting(32, "sequences per update", ge=1)
    accumulate_steps: int = _setting(
        1, "parts of a batch computed one after the other, to save memory; must divide batch_size", ge=1
    )
    seed: int = _setting(
        42, "seed of the data order, masks, dropout, held-out documents and newly initialized weights", ge=0, lt=2**32
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "precision of matrix products and activations; auto uses bfloat16 if the hardware supports it"
    )
    xla: Literal["auto", "off"] = _setting(
        "auto", "auto compiles element-wise operations on CPU and the whole step on GPU"
    )
    log_every: int = _setting(10, "steps between two progress lines and step events", ge=1)
    measure_matmul_peak: bool = _setting(
        False, "time the matrix products alone before training, and report the training speed relative to them (MFU)"
    )
    max_bad_steps: int = _setting(
        3,
        "consecutive steps with a non-finite loss or gradient before the run rolls back to a checkpoint, once",
        ge=1,
    )
    early_stopping_patience: int = _setting(
        0, "epochs without a lower val_loss before training stops; 0 never stops", ge=0
    )
    example_sentences: tuple[str, ...] = Field(
        default=(
            "Machine learning is a [MASK] technology.",
            "This is a great [MASK].",
            "The acting was [MASK] and the plot made no sense.",
            "I would [MASK] this film to anyone.",
        ),
        description="sentences with [MASK], filled before and after training, shown in the model card",
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.batch_size % self.accumulate_steps:
            raise ValueError(f"accumulate_steps must divide batch_size: {self.batch_size} / {self.accumulate_steps}")
        for sentence in self.example_sentences:
            if "[MASK]" not in sentence:
                raise ValueError(f"each of example_sentences must contain [MASK]; {sentence!r} does not")
        return self


@dataclass(frozen=True, config=_FORBID)
class CheckpointConfig:
    every_minutes: float = _setting(5.0, "minutes between two checkpoints", gt=0)
    every_steps: int = _setting(
        0, "steps between two checkpoints, in addition to every_minutes; 0 uses every_minutes only", ge=0
    )
    keep: int = _setting(2, "number of newest checkpoints to keep", ge=1)


@dataclass(frozen=True, config=_FORBID)
class DistributionConfig:
    strategy: Literal["auto", "none", "mirrored", "multi_worker"] = _setting(
        "auto",
        "auto uses the workers of TF_CONFIG or SLURM, or all GPUs; mirrored requires two devices, multi_worker two "
        "workers",
    )
    gradient_precision: Literal["float32", "bfloat16"] = _setting(
        "float32", "data type of the gradients that devices or workers exchange; bfloat16 halves their size"
    )
    timeout_seconds: float = _setting(300.0, "seconds to wait for the other workers when training starts", gt=0)


@dataclass(frozen=True, config=_FORBID)
class Config:
    """Every setting of a run. Immutable; `load_config` builds it, `dump_config` writes it."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    distribution: DistributionConfig = Field(default_factory=DistributionConfig)

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.training.measure_matmul_peak and self.model.train != "all":
            raise ValueError("training.measure_matmul_peak requires model.train = 'all'")
        if self.objective.name == "masked":
            if self.objective.label_column or self.objective.text_pair_column:
                raise ValueError(
                    "objective.label_column and objective.text_pair_column have no effect with objective.name = "
                    "'masked'; omit them, or set objective.name"
                )
        elif not self.model.name:
            raise ValueError(f"objective.name = {self.objective.name!r} requires model.name")
        elif names := [
            name for name in ("isolate_documents", "mixture", "second_validation_dataset") if getattr(self.data, name)
        ]:
            raise ValueError(f"data.{names[0]} requires objective.name = 'masked'; omit it")
        elif self.training.measure_matmul_peak:
            raise ValueError("training.measure_matmul_peak requires objective.name = 'masked'; omit it")
        elif self.objective.text_pair_column and self.objective.name != "classification":
            raise ValueError("objective.text_pair_column requires objective.name = 'classification'")
        if not self.model.name and self.model.dim % self.model.n_heads:
            raise ValueError(f"model.n_heads must divide model.dim: {self.model.dim} / {self.model.n_heads}")
        return self


def check_new_run(config: Config) -> None:
    """Check what `load_config` accepts, so that older runs can be read, but a new run should not be started with.

    Raises:
        Refused: a setting that applies only to masked language modeling is set for another objective, or the settings
            of a stream are incomplete or contradict each other.
    """
    if config.objective.name != "masked":
        names = [name for name in setting_fields() if name.startswith("masking.")]
        for name in [*names, "data.line_by_line", "data.overflow", "data.streaming"]:
            if not _is_default(config, name):
                raise Refused(f"{name} requires objective.name = 'masked'; omit it")
    if config.data.streaming:
        _check_stream(config)
        return
    for name in ("data.shuffle_buffer_size", "training.validate_every_steps"):
        if not _is_default(config, name):
            raise Refused(f"{name} requires data.streaming = true; omit it")


def _check_stream(config: Config) -> None:
    data, training = config.data, config.training
    for name in ("mixture", "line_by_line"):
        if getattr(data, name):
            raise Refused(f"data.{name} cannot be combined with data.streaming; omit one")
    for name, value in (
        ("training.num_train_steps", training.num_train_steps),
        ("training.validate_every_steps", training.validate_every_steps),
        ("data.num_validation_sequences", data.num_validation_sequences),
    ):
        if not value:
            raise Refused(f"data.streaming requires {name} above 0")
    if data.shuffle_buffer_size < training.batch_size:
        raise Refused(
            "data.shuffle_buffer_size must be at least training.batch_size: "
            f"{data.shuffle_buffer_size} < {training.batch_size}"
        )
    if not config.model.name:
        raise Refused("data.streaming requires model.name; to train a new vocabulary, run `tf-mlm prepare --model ''`")


def _is_default(config: Config, name: str) -> bool:
    section, key = name.split(".")
    return bool(getattr(getattr(config, section), key) == setting_fields()[name].default.default)


def setting_fields() -> dict[str, Any]:
    """All settings by dotted name, `section.key`: dataclass fields whose `default` is pydantic's FieldInfo."""
    return {
        f"{section.name}.{field.name}": field
        for section in fields(Config)
        for field in fields(section.type)  # type: ignore[arg-type]
    }


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Load the settings. Precedence: defaults < the TOML file < `overrides`.

    Args:
        overrides: values by dotted name, such as `training.epochs`. A string is parsed as on the command line.

    Raises:
        Refused: the file is missing or not TOML; a section or key is unknown; a value has the wrong type, is out of
            range, or contradicts another.
    """
    overrides = overrides or {}
    settings = _read_toml(path) if path else {}
    _check_names(settings, path)
    known = setting_fields()
    for name, text in overrides.items():
        if name not in known:
            raise Refused(f"unknown setting {_printable(name)}{_nearest(name, list(known))}")
        section, key = name.split(".")
        settings.setdefault(section, {})[key] = _parse_value(text, known[name].type)
    try:
        return TypeAdapter(Config).validate_python(settings)
    except ValidationError as error:
        raise Refused(_describe(error.errors()[0], path, overrides)) from None


def dump_config(config: Config) -> str:
    """The settings as TOML, with descriptions as comments. `load_config` reads it back to an equal Config."""
    lines = []
    for section in fields(config):
        lines.append(f"[{section.name}]")
        values = asdict(getattr(config, section.name))
        for field in fields(section.type):  # type: ignore[arg-type]
            description = setting_fields()[f"{section.name}.{field.name}"].default.description
            lines.append(f"{tomli_w.dumps({field.name: values[field.name]}).strip()}  # {description}")
        lines.append("")
    return "\n".join(lines)


def find_recipe(name: str) -> Path:
    """The file of the recipe `name`, such as `imdb-10k`. A path is returned unchanged.

    Raises:
        Refused: there is no recipe of that name.
    """
    path = Path(name)
    if path.suffix or len(path.parts) != 1 or path.exists():
        return path
    recipes = _recipes()
    if name not in recipes:
        raise Refused(f"--config {name}: no such recipe (recipes: {', '.join(recipes)}); pass one of them or a file")
    return recipes[name]


def _recipes() -> dict[str, Path]:
    return {file.stem: file for folder in _RECIPE_FOLDERS for file in sorted(folder.glob("*.toml"))}


def suggest(name: str, known: list[str]) -> str | None:
    """The known name closest to `name`: the same letters, the same initials, or a close spelling."""
    letters = _letters(name)
    for each in known:
        initials = "".join(word[0] for word in re.split(r"[-_.\s]+", each) if word)
        if letters in (_letters(each), initials):
            return each
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if len(letters) > 3 else 0.75)
    return close[0] if close else None


def _letters(name: str) -> str:
    return re.sub(r"[-_.\s]", "", name.lower())


def _nearest(name: str, known: list[str]) -> str:
    match = suggest(name, known)
    return f"; did you mean {match!r}?" if match else f"; known names: {', '.join(known)}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"--config: {path}: no such file (recipes: {', '.join(_recipes())})") from None
    except OSError as error:
        raise Refused(f"--config: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refused(f"--config: {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise Refused(f"--config: {path}: not TOML: {' '.join(str(error).split())}") from None


def _check_names(settings: dict[str, Any], path: Path | None) -> None:
    sections = [section.name for section in fields(Config)]
    for section, values in settings.items():
        if section not in sections:
            raise Refused(f"{path}: unknown section [{_printable(section)}]{_nearest(section, sections)}")
        if not isinstance(values, dict):
            raise Refused(f"{path}: {section} = {values!r}: this is a section; write [{section}] above its keys")
        keys = [name.partition(".")[2] for name in setting_fields() if name.startswith(f"{section}.")]
        for key in values:
            if key not in keys:
                raise Refused(f"{path}: unknown setting {section}.{_printable(key)}{_nearest(key, keys)}")


def _printable(name: str) -> str:
    """Escape newlines: a quoted TOML key may contain them, and an error is one line."""
    return name if name.isprintable() else repr(name)


def _parse_value(text: Any, annotation: Any) -> Any:
    """Parse a command-line value. A string of the wrong type is returned unchanged, and validation rejects it."""
    if not isinstance(text, str) or annotation not in (int, float, bool):
        return text
    try:
        return {"true": True, "false": False}[text.lower()] if annotation is bool else annotation(text)
    except (KeyError, ValueError):
        return text


def _describe(error: ErrorDetails, path: Path | None, overrides: Mapping[str, Any]) -> str:
    """One line with the source of the value, the setting, the value and the rule."""
    name = ".".join(str(part) for part in error["loc"][:2])
    # A rule on several settings fails on their section or on the whole config; its message names the settings.
    given = name in overrides or any(key.startswith(f"{name}.") or not name for key in overrides)
    where = f"--{name}" if name in overrides else "command line" if given else str(path)
    rule = " ".join(error["msg"].removeprefix("Value error, ").replace("Input should", "should").split())
    if name in setting_fields():
        subject = f"{where}" if name in overrides else f"{where}: {name}"
        return f"{subject} = {error['input']!r}: {rule} ({setting_fields()[name].default.description})"
    return f"{where}: {name + ': ' if name else ''}{rule}"
