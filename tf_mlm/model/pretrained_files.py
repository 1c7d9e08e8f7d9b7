"""The files of a pretrained model: found in a directory or on the Hub, and checked before they are read."""

import json
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tf_mlm import hub
from tf_mlm.config import ModelConfig
from tf_mlm.errors import Refused

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "tf_model.h5", "tf_model.h5.index.json")
_PICKLE = "pytorch_model.bin"


@dataclass(frozen=True)
class PretrainedModel:
    """A pretrained model in a directory or on the Hub. Its name is resolved once, on construction.

    Attributes:
        source: its name, and its path if it is local.
        revision: branch, tag or commit on the Hub; "" is the default branch.
        setting: the setting that gave the name, for messages; "" if it was an argument of a command.
    """

    source: hub.Source
    revision: str = ""
    setting: str = ""

    @classmethod
    def of(cls, config: ModelConfig) -> "PretrainedModel":
        """The model that the settings of a training name.

        Raises:
            Refused: it is a path that does not exist.
        """
        return cls._checked(cls(config.source, config.revision, "model.name"))

    @classmethod
    def named(cls, name: str, revision: str = "") -> "PretrainedModel":
        """The model that an argument of a command names.

        Raises:
            Refused: it is a path that does not exist.
        """
        return cls._checked(cls(hub.Source.of(name), revision))

    @staticmethod
    def _checked(model: "PretrainedModel") -> "PretrainedModel":
        if model.source.path and not model.source.path.exists():
            raise model.refusal("no such file or directory; a Hub name is written owner/name")
        return model

    def refusal(self, problem: str) -> Refused:
        """The error to raise for a problem with this model; the message begins with its name, as the user gave it."""
        return Refused(f"{hub.label(self.setting, self.source.name)}: {problem}")

    def refusal_without_weights(self, problem: str, solution: str) -> Refused:
        """As `refusal`, for missing weights. Training can initialize them; other commands require them."""
        initialize = ", or set model.from_config = true for newly initialized weights" if self.setting else ""
        return self.refusal(f"{problem}; {solution}{initialize}")

    def loading_error(self, error: Exception) -> Refused:
        """The error to raise if a Hugging Face library cannot load this model."""
        if self.source.path is None:
            return hub.refusal(self.setting, self.source.name, error)
        reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
        return self.refusal(f"cannot be loaded: {reason}")

    def load(self, loader: Any, folder: Path | None = None, **options: Any) -> Any:
        """`loader.from_pretrained` of this model.

        Args:
            loader: a class of transformers.
            folder: local copy of the model's files, if they are already downloaded.
            options: further arguments of `from_pretrained`.

        Raises:
            Refused: it cannot be loaded.
        """
        name = str(folder or self.source.path or self.source.name)
        try:
            return loader.from_pretrained(name, revision=self.revision or "main", **options)
        except Exception as error:  # transformers passes on any error of its readers, parsers and transports
            raise self.loading_error(error) from None

    def find_file(self, name: str) -> Path | None:
        """The file `name` of this model, downloaded if the model is on the Hub; None if it has no such file.

        Raises:
            Refused: the Hub answers with an error.
            HubOutOfReach: the Hub does not answer.
        """
        if self.source.path:
            path = self.source.path / name
            return path if path.is_file() else None
        try:
            return Path(huggingface_hub.hf_hub_download(self.source.name, name, revision=self.revision or None))
        except Exception as error:
            may_exist = isinstance(error, LocalEntryNotFoundError) and not hub.is_offline()
            if isinstance(error, EntryNotFoundError) and not may_exist:
                return None
            raise self.loading_error(error) from None

    def has_pickle(self) -> bool:
        """Whether it has weights in a pickle file.

        Raises:
            Refused: the Hub answers with an error.
            HubOutOfReach: the Hub does not answer.
        """
        if self.source.path:
            return self.find_file(_PICKLE) is not None
        try:
            return huggingface_hub.file_exists(self.source.name, _PICKLE, revision=self.revision or None)
        except Exception as error:
            raise self.loading_error(error) from None


def check_tokenizer_files(model: PretrainedModel) -> None:
    """Refuse a tokenizer whose config names a file outside the model's directory.

    transformers would read any file of this machine, and saving the tokenizer would publish it with the model.

    Raises:
        Refused: it names one.
    """
    path = model.find_file("tokenizer_config.json")
    if path is None:
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # transformers reports a damaged file
    for setting, value in settings.items() if isinstance(settings, dict) else ():
        # Old checkpoints keep the path of special_tokens_map_file; transformers does not open it.
        if setting.endswith("_file") and setting != "special_tokens_map_file" and isinstance(value, str):
            if os.path.exists(value) and Path(value).resolve().parent != path.parent.resolve():
                raise model.refusal(
                    f"tokenizer_config.json names {value!r}, which lies outside its directory; remove {setting} from it"
                )


def find_weights(model: PretrainedModel) -> Path:
    """The directory with the weights, downloaded if the model is on the Hub.

    transformers would not find safetensors in several files on the Hub, and would read files before they are checked.

    Raises:
        Refused: there are no weights or only a pickle, or they refer to files outside the directory.
    """
    found = next((path for name in _WEIGHT_FILES if (path := model.find_file(name))), None)
    if found is None:
        problem, solution = "has no weights (model.safetensors or tf_model.h5)", "add them"
        if model.has_pickle():
            problem += f"; {_PICKLE} is a pickle, which is never loaded"
            solution = "save them as safetensors"
        raise model.refusal_without_weights(problem, solution)
    if found.name.endswith(".index.json"):
        for name in _files_in_index(model, found):
            model.find_file(name)
    for path in found.parent.glob("*.h5"):
        _check_hdf5(model, path)
    return found.parent


def _files_in_index(model: PretrainedModel, path: Path) -> list[str]:
    """The files that an index of weights names. They must be in the directory of the index."""
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = next((name for name in names if Path(name).name != name or name == ".."), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise model.refusal(f"{path.name} is damaged ({type(error).__name__}); write it again") from None
    if outside is not None:
        raise model.refusal(f"{path.name} names {outside!r}, which lies outside the directory; save the model again")
    return names


def _check_hdf5(model: PretrainedModel, path: Path) -> None:
    """Refuse an HDF5 file that includes another file: its links and external storage can name any file."""
    try:
        with h5py.File(path) as file:
            outside = next(_entries_outside(file), None)
    except OSError:
        return  # transformers reports a damaged file
    except RecursionError:  # circular links
        outside = "/"
    if outside:
        raise model.refusal(f"{path.name}: {outside!r} is stored in another file; save the weights in one file")


def _entries_outside(group: h5py.Group) -> Iterator[str]:
    """The names of the entries that are stored in another file."""
    for name in group:
        link = group.get(name, getlink=True)
        path = f"{group.name}/{name}".lstrip("/")
        if isinstance(link, h5py.ExternalLink):
            yield path
        if isinstance(link, h5py.HardLink):
            entry = group[name]
            if isinstance(entry, h5py.Dataset) and (entry.external or entry.is_virtual):
                yield path
            if isinstance(entry, h5py.Group):
                yield from _entries_outside(entry)
