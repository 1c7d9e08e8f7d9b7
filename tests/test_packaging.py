"""requirements.txt pins everything that the README's two commands and the notebook extra install."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def pinned() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    return {canonicalize_name(pin.partition("==")[0]) for pin in pins}


def needed() -> set[str]:
    """Names of the packages that the project and its extras `test` and `notebook` need, dependencies included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    waiting = [*project["dependencies"], *extras["test"], *extras["notebook"]]
    found: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        chosen = requirement.extras or {""}
        if not any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in chosen):
            continue
        if (name, frozenset(chosen)) in found:
            continue
        found.add((name, frozenset(chosen)))
        try:
            children = [Requirement(child) for child in requires(name) or []]
        except PackageNotFoundError:
            continue
        for child in children:
            if any(child.marker is None or child.marker.evaluate({"extra": extra}) for extra in chosen):
                child.marker = None
                waiting.append(str(child))
    return {name for name, _ in found}


def test_every_package_needed_is_pinned() -> None:
    # Every virtual environment has pip; setuptools is needed for the build only.
    assert needed() - pinned() - {"setuptools", "pip", "wheel"} == set()


def test_every_pinned_package_is_needed() -> None:
    if any(not _is_installed(name) for name in ("nbclient", "ipykernel", "distributed")):
        pytest.skip("the extra `notebook` or `prepare` is not installed, so its dependencies are unknown")
    assert pinned() - needed() == set()


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_every_package_directory_is_listed() -> None:
    """A directory that is not listed would be missing from the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "tf_mlm").rglob("__init__.py")}
    assert set(listed) == found | {"tf_mlm.configs"}
