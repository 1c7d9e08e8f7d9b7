"""The settings: their names, defaults, units and limits, read from TOML and the command line, and checked.

TensorFlow is not imported here, so that `--help` and a refused setting answer at once. pydantic checks types and
ranges and reports them as data, from which each refusal is written as one line.
"""

import difflib
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from tf_mlm.errors import Refused

_FORBID = ConfigDict(extra="forbid")


def _setting(default: Any, description: str, **limits: Any) -> Any:
    # Strict: "32" is no number and 1 no truth value. Texts are never converted anyway, and Literal knows no `strict`.
    if not isinstance(default, str):
        limits["strict"] = True
    if isinstance(default, float):
        limits["allow_inf_nan"] = False
    return Field(default=default, description=description, **limits)


@dataclass(frozen=True, config=_FORBID)
class ModelConfig:
    name: str = _setting(
        "distilbert-base-uncased",
        "Hub name or folder of the starting weights; '' builds a new DistilBERT and trains its vocabulary",
    )
    revision: str = _setting("", "branch, tag or commit on the Hub; '' is its default branch")
    from_config: bool = _setting(False, "random weights from the config of `name`, its weights left alone")
    vocab_size: int = _setting(8000, "of a new model: entries of its WordPiece vocabulary", ge=100)
    n_layers: int = _setting(6, "of a new model: transformer layers", ge=1)
    dim: int = _setting(768, "of a new model: width of the hidden states", ge=1)
    n_heads: int = _setting(12, "of a new model: attention heads, a divisor of dim", ge=1)
    hidden_dim: int = _setting(3072, "of a new model: width inside the feed-forward layers", ge=1)
    dropout: float = _setting(0.1, "of a new model: share of activations dropped", ge=0, lt=1)


@dataclass(frozen=True, config=_FORBID)
class DataConfig:
    dataset: str = _setting(
        "stanfordnlp/imdb", "Hub name, folder, glob or file; 'sample' is the corpus that comes along"
    )
    revision: str = _setting("", "branch, tag or commit on the Hub; '' is its default branch")
    config_name: str = _setting("", "configuration of the dataset; '' is its default one")
    document: Literal["line", "paragraph", "file"] = _setting("line", "what a document is in a .txt file")
    text_column: str = _setting("", "column that holds the text; '' finds it")
    train_split: str = _setting("train", "split to train on; several are joined with +")
    validation_split: str = _setting("test", "split to validate on; '' holds out a share of the training documents")
    validation_fraction: float = _setting(
        0.05, "share of documents held out where the data has no splits or validation_split is ''", gt=0, lt=1
    )
    sequence_length: int = _setting(128, "tokens in a sequence", ge=8)
    num_train_sequences: int = _setting(3000, "training sequences drawn by seed; 0 takes all", ge=0)
    num_validation_sequences: int = _setting(1000, "validation sequences drawn by seed; 0 takes all", ge=0)
    line_by_line: bool = _setting(False, "one document a sequence, padded, instead of documents joined and cut")
    overflow: Literal["split", "truncate"] = _setting("split", "line by line: what becomes of a document too long")
    num_proc: int = _setting(1, "processes that prepare a dataset of the Hub", ge=1)
    streaming: bool = _setting(False, "read only the beginning of a Hub dataset, as much as the caps on sequences need")


@dataclass(frozen=True, config=_FORBID)
class MaskingConfig:
    strategy: Literal["token"] = _setting("token", "what is masked as one")
    mlm_probability: float = _setting(0.15, "share of ordinary tokens to predict, in training", gt=0, le=1)
    mask_replace_prob: float = _setting(0.8, "share of those replaced by the mask token", ge=0, le=1)
    random_replace_prob: float = _setting(
        0.1, "share of those replaced by a random token; the rest is kept", ge=0, le=1
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
    end_learning_rate: float = _setting(0.0, "rate towards which it decays", ge=0)
    power: float = _setting(1.0, "exponent of the polynomial decay; 1 is linear", gt=0)
    warmup_ratio: float = _setting(0.06, "share of the steps over which the rate climbs", ge=0, lt=1)
    num_warmup_steps: int = _setting(-1, "steps over which the rate climbs; -1 takes warmup_ratio", ge=-1)
    weight_decay_rate: float = _setting(
        0.01, "decoupled decay per unit of rate, none on LayerNorm and biases", ge=0, lt=1
    )
    beta_1: float = _setting(0.9, "decay of the first moment", ge=0, lt=1)
    beta_2: float = _setting(0.999, "decay of the second moment", ge=0, lt=1)
    epsilon: float = _setting(1e-8, "added to the root of the second moment", gt=0)
    clip_norm: float = _setting(1.0, "largest global norm of the gradient; 0 leaves it as it is", ge=0)

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        if self.end_learning_rate > self.learning_rate:
            raise ValueError(
                "end_learning_rate must be at most learning_rate, or the decay would climb: "
                f"{self.end_learning_rate} > {self.learning_rate}"
            )
        return self


@dataclass(frozen=True, config=_FORBID)
class TrainingConfig:
    epochs: int = _setting(20, "passes over the training sequences", ge=1)
    num_train_steps: int = _setting(0, "updates in all, in place of epochs; 0 follows epochs", ge=0)
    batch_size: int = _setting(32, "sequences in one update", ge=1)
    accumulate_steps: int = _setting(1, "equal parts in which a batch is worked, to save memory", ge=1)
    seed: int = _setting(42, "of order, masks, dropout, held-out documents and fresh weights", ge=0, lt=2**32)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "of matrix products and activations"
    )
    xla: Literal["auto", "off"] = _setting("auto", "element-wise clusters on CPU, the whole step on GPU")
    log_every: int = _setting(10, "steps between two progress lines and two step events", ge=1)
    measure_matmul_peak: bool = _setting(
        False, "time the matrix products of a step first, and report the share of that ceiling reached (MFU)"
    )
    max_bad_steps: int = _setting(
        3, "steps in a row whose loss or gradient is not finite before the run goes back to a checkpoint, once", ge=1
    )
    early_stopping_patience: int = _setting(0, "epochs without a better val_loss before stopping; 0 never stops", ge=0)
    example_sentences: tuple[str, ...] = Field(
        default=(
            "Machine learning is a [MASK] technology.",
            "This is a great [MASK].",
            "The acting was [MASK] and the plot made no sense.",
            "I would [MASK] this film to anyone.",
        ),
        description="filled before and after training, in the model card",
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.batch_size % self.accumulate_steps:
            raise ValueError(f"accumulate_steps must divide batch_size: {self.batch_size} / {self.accumulate_steps}")
        for sentence in self.example_sentences:
            if "[MASK]" not in sentence:
                raise ValueError(f"each of example_sentences must hold [MASK]; {sentence!r} does not")
        return self


@dataclass(frozen=True, config=_FORBID)
class CheckpointConfig:
    every_minutes: float = _setting(5.0, "minutes between two checkpoints", gt=0)
    every_steps: int = _setting(0, "steps between two checkpoints; 0 follows every_minutes alone", ge=0)
    keep: int = _setting(2, "checkpoints kept, the newest", ge=1)


@dataclass(frozen=True, config=_FORBID)
class DistributionConfig:
    strategy: Literal["auto", "none", "mirrored"] = _setting(
        "auto", "auto mirrors the model where there are several GPUs"
    )


@dataclass(frozen=True, config=_FORBID)
class Config:
    """Every setting of a run. Immutable; `load_config` builds it, `dump_config` writes it."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    distribution: DistributionConfig = Field(default_factory=DistributionConfig)

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.data.streaming and not (self.data.num_train_sequences and self.data.num_validation_sequences):
            raise ValueError("data.streaming needs data.num_train_sequences and data.num_validation_sequences above 0")
        if not self.model.name and self.model.dim % self.model.n_heads:
            raise ValueError(f"model.n_heads must divide model.dim: {self.model.dim} / {self.model.n_heads}")
        return self


def setting_fields() -> dict[str, Any]:
    """Every setting by its dotted name, `section.key`, as a dataclass field whose `default` is pydantic's FieldInfo."""
    return {
        f"{section.name}.{field.name}": field
        for section in fields(Config)
        for field in fields(section.type)  # type: ignore[arg-type]
    }


def load_config(path: Path | None = None, overrides: dict[str, str | list[str]] | None = None) -> Config:
    """Defaults < the TOML file < `overrides` (dotted name -> text as typed on the command line).

    Raises:
        Refused: the file is missing or not TOML; a section or key is unknown; a value has the wrong type, is out of
            range, or contradicts another.
    """
    overrides = overrides or {}
    settings = _read_toml(path) if path else {}
    _check_names(settings, path)
    known = setting_fields()
    for name, text in overrides.items():
        section, key = name.split(".")
        settings.setdefault(section, {})[key] = _parse_value(text, known[name].type)
    try:
        return TypeAdapter(Config).validate_python(settings)
    except ValidationError as error:
        raise Refused(_describe(error.errors()[0], path, overrides)) from None


def dump_config(config: Config) -> str:
    """The settings as TOML, each with its meaning as a comment; `load_config` reads it back to an equal Config."""
    lines = []
    for section in fields(config):
        lines.append(f"[{section.name}]")
        values = asdict(getattr(config, section.name))
        for field in fields(section.type):  # type: ignore[arg-type]
            description = setting_fields()[f"{section.name}.{field.name}"].default.description
            lines.append(f"{tomli_w.dumps({field.name: values[field.name]}).strip()}  # {description}")
        lines.append("")
    return "\n".join(lines)


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean …?' where a known name is close, else '; known are …'."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else f"; known are {', '.join(known)}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(file) for file in Path("configs").glob("*.toml"))
        raise Refused(f"--config: {path}: no such file{'; there are ' + ', '.join(near) if near else ''}") from None
    except OSError as error:
        raise Refused(f"--config: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refused(f"--config: {path}: byte {error.start} is not UTF-8; a config is TOML text") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise Refused(f"--config: {path}: not TOML: {' '.join(str(error).split())}") from None


def _check_names(settings: dict[str, Any], path: Path | None) -> None:
    sections = [section.name for section in fields(Config)]
    for section, values in settings.items():
        if section not in sections:
            raise Refused(f"{path}: unknown section [{_printable(section)}]{nearest(section, sections)}")
        if not isinstance(values, dict):
            raise Refused(f"{path}: {section} = {values!r}: this is a section; write [{section}] above its keys")
        keys = [name.partition(".")[2] for name in setting_fields() if name.startswith(f"{section}.")]
        for key in values:
            if key not in keys:
                raise Refused(f"{path}: unknown setting {section}.{_printable(key)}{nearest(key, keys)}")


def _printable(name: str) -> str:
    """A quoted key of TOML may hold line ends; a refusal may not."""
    return name if name.isprintable() else repr(name)


def _parse_value(text: str | list[str], annotation: Any) -> Any:
    """The value a text on the command line stands for; a text of the wrong type is left for the check to refuse."""
    if isinstance(text, list) or annotation not in (int, float, bool):
        return text
    try:
        return {"true": True, "false": False}[text.lower()] if annotation is bool else annotation(text)
    except (KeyError, ValueError):
        return text


def _describe(error: ErrorDetails, path: Path | None, overrides: dict[str, Any]) -> str:
    """One line: where the value was given, the setting, the value, the rule."""
    name = ".".join(str(part) for part in error["loc"][:2])
    # A rule over several settings fails on their section, or on the whole: then the message itself names them.
    given = name in overrides or any(key.startswith(f"{name}.") or not name for key in overrides)
    where = f"--{name}" if name in overrides else "command line" if given else str(path)
    rule = " ".join(error["msg"].removeprefix("Value error, ").replace("Input should", "should").split())
    if name in setting_fields():
        subject = f"{where}" if name in overrides else f"{where}: {name}"
        return f"{subject} = {error['input']!r}: {rule} ({setting_fields()[name].default.description})"
    return f"{where}: {name + ': ' if name else ''}{rule}"
