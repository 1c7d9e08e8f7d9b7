"""requirements.txt pins everything that the README's two commands install."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def pinned() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    return {canonicalize_name(pin.partition("==")[0]) for pin in pins}


def needed() -> set[str]:
    """Names of the packages that the project and its test extra need, and those that these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    found: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if not any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if (name, frozenset(extras)) in found:
            continue
        found.add((name, frozenset(extras)))
        try:
            children = [Requirement(child) for child in requires(name) or []]
        except PackageNotFoundError:
            continue
        for child in children:
            if any(child.marker is None or child.marker.evaluate({"extra": extra}) for extra in extras):
                child.marker = None
                waiting.append(str(child))
    return {name for name, _ in found}


def test_every_package_needed_is_pinned() -> None:
    # pip comes with every virtual environment, setuptools with the build alone.
    assert needed() - pinned() - {"setuptools", "pip", "wheel"} == set()


def test_nothing_is_pinned_that_is_not_needed() -> None:
    assert pinned() - needed() == set()
