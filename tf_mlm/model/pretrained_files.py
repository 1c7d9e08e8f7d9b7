"""The files of a pretrained model: found in a folder or on the Hub, and checked before anything reads them."""

import json
import os
from pathlib import Path

import h5py
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tf_mlm import hub
from tf_mlm.config import ModelConfig
from tf_mlm.errors import Refused

_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "tf_model.h5", "tf_model.h5.index.json")
_PICKLE = "pytorch_model.bin"


def check_tokenizer_files(config: ModelConfig) -> None:
    """Raises Refused where the tokenizer's config names a file from elsewhere.

    transformers would read it, whatever file of this machine it is, and it would be published with the model.
    """
    path = _find_file(config, "tokenizer_config.json")
    if path is None:
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # its reader will say so
    for setting, value in settings.items() if isinstance(settings, dict) else ():
        # One is remembered by old checkpoints, and never opened.
        if setting.endswith("_file") and setting != "special_tokens_map_file" and isinstance(value, str):
            if os.path.exists(value) and Path(value).resolve().parent != path.parent.resolve():
                raise Refused(
                    f"model.name = {config.name!r}: tokenizer_config.json names {value!r}, which lies outside its "
                    f"folder; remove {setting} from it"
                )


def find_weights(config: ModelConfig) -> Path:
    """The folder that holds the weights, downloaded first where they are the Hub's.

    transformers finds no safetensors in several files on the Hub, and would read all files before they are checked.

    Raises:
        Refused: there are none but a pickle, or they bring in files from elsewhere.
    """
    where = f"model.name = {config.name!r}"
    found = next((path for name in _WEIGHT_FILES if (path := _find_file(config, name))), None)
    if found is None:
        pickled = (
            f"; {_PICKLE} is a pickle, which is never loaded: have its owner save it as safetensors"
            if _has_pickle(config)
            else ""
        )
        raise Refused(
            f"{where}: holds no weights (model.safetensors or tf_model.h5){pickled}; "
            "add them, or set model.from_config = true for random weights"
        )
    if found.name.endswith(".index.json"):
        for name in _names_in_index(where, found):
            _find_file(config, name)
    _check_stays_inside(where, found.parent)
    return found.parent


def _find_file(config: ModelConfig, name: str) -> Path | None:
    """The file `name` of a model, downloaded first where it is the Hub's; None where the model has no such file."""
    if hub.is_local(config.name):
        path = Path(config.name).expanduser() / name
        return path if path.is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(config.name, name, revision=config.revision or None))
    except Exception as error:  # as in `_from_pretrained`
        is_there = isinstance(error, LocalEntryNotFoundError) and not hub.is_offline()  # for all that is known
        if isinstance(error, EntryNotFoundError) and not is_there:
            return None
        raise hub.refusal("model.name", config.name, error) from None


def _has_pickle(config: ModelConfig) -> bool:
    """Raises HubOutOfReach where that cannot be known."""
    if hub.is_local(config.name):
        return _find_file(config, _PICKLE) is not None
    try:
        return huggingface_hub.file_exists(config.name, _PICKLE, revision=config.revision or None)
    except Exception as error:
        raise hub.refusal("model.name", config.name, error) from None


def _names_in_index(where: str, path: Path) -> list[str]:
    """The files that an index of weights names; it could name any file of this machine."""
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = next((name for name in names if Path(name).name != name), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{where}: {path.name} is damaged: {type(error).__name__}; make it again") from None
    if outside is not None:
        raise Refused(f"{where}: {path.name} names {outside!r}, which must be a file of the folder itself")
    return names


def _check_stays_inside(where: str, folder: Path) -> None:
    """HDF5 can, by its links and its storage, bring in any file of this machine."""
    for path in folder.glob("*.h5"):
        try:
            with h5py.File(path) as file:
                outside = _outside(file)
        except OSError:
            continue  # it cannot be read, and its reader will say so
        except RecursionError:  # links in a circle
            outside = "/"
        if outside:
            raise Refused(f"{where}: {path.name}: {outside!r} lies in another file; only weights of its own are read")


def _outside(group: h5py.Group) -> str:
    """The name of the first entry of an h5 file that lies in another one, or ""."""
    for name in group:
        link = group.get(name, getlink=True)
        path = f"{group.name}/{name}".lstrip("/")
        if isinstance(link, h5py.ExternalLink):
            return path
        if isinstance(link, h5py.HardLink):
            entry = group[name]
            if isinstance(entry, h5py.Dataset) and (entry.external or entry.is_virtual):
                return path
            if isinstance(entry, h5py.Group) and (found := _outside(entry)):
                return found
    return ""
