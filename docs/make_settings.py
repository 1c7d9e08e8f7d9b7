"""Write docs/settings.md from tf_mlm/config.py: `python docs/make_settings.py`."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from tf_mlm.config import setting_fields

PAGE = Path(__file__).with_name("settings.md")
_LIMITS = {"Ge": "≥ {.ge}", "Gt": "> {.gt}", "Le": "≤ {.le}", "Lt": "< {.lt}"}

_HEAD = """\
# Settings

<!-- Generated from tf_mlm/config.py by docs/make_settings.py. Do not edit. -->

A setting is a line in a TOML file or a flag on the command line, which takes precedence:

```toml
[optimizer]
learning_rate = 5e-5
```

    python train.py --config my.toml --optimizer.learning_rate 5e-5

These flags are short for settings: `--model`, `--dataset`, `--epochs`, `--batch-size`, `--learning-rate` and `--seed`.
`python train.py --print-config` prints the resolved settings. An unknown setting is an error that names the nearest.
"""


def build_page() -> str:
    """The text of docs/settings.md."""
    lines, section = [_HEAD], ""
    for name, field in setting_fields().items():
        if name.partition(".")[0] != section:
            section = name.partition(".")[0]
            table = ["| setting | default | values | meaning |", "|---|---|---|---|"]
            lines += [*([""] if section != "model" else []), f"## {section}", "", *table]
        cells = (f"`{name}`", _default(field.default.default), _values(field), field.default.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} sentences" if value else "`[]`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value!r}`"


def _values(field: Any) -> str:
    if get_origin(field.type) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.type))
    if field.type is bool:
        return "`true`, `false`"
    names: dict[Any, str] = {int: "integer", float: "number", str: "text"}
    kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    kind = " or ".join(names.get(each, "list of texts") for each in kinds)
    limits = [
        _LIMITS[type(limit).__name__].format(limit)
        for limit in field.default.metadata
        if type(limit).__name__ in _LIMITS
    ]
    return ", ".join([kind, *limits])


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
