"""Adapt masked language models to your own text with Keras and TensorFlow.

    run = tf_mlm.train("sample", overrides={"training.epochs": 3})
    model = tf_mlm.load(run.path)
    model.fill(["This is a great [MASK]."], top_k=5)

The names below are imported on first use, so that importing tf_mlm loads neither TensorFlow nor pydantic.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "Config": "tf_mlm.config",
    "LoadedClassifier": "tf_mlm.inference.loaded",
    "LoadedModel": "tf_mlm.inference.loaded",
    "Run": "tf_mlm.api",
    "load": "tf_mlm.api",
    "load_classifier": "tf_mlm.api",
    "load_config": "tf_mlm.config",
    "train": "tf_mlm.api",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'tf_mlm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
