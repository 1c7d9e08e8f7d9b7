"""docs/settings.md is generated from config.py."""

import importlib.util

from tests.conftest import ROOT
from tf_mlm.config import setting_fields


def test_the_page_of_settings_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    message = "docs/settings.md is stale: run python docs/make_settings.py"
    assert module.PAGE.read_text(encoding="utf-8") == module.build_page(), message


def test_the_page_has_every_setting() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in setting_fields())
