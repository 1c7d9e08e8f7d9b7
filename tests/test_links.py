"""The relative links and paths in the documentation exist."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
# Directories of the repository; a path in backticks that starts with one of them must exist.
_TREES = ("tf_mlm/", "tests/", "docs/", "configs/", "benchmarks/", "plots/", ".ci/", ".github/")
# Written by a run, in the directory where it runs.
_OF_RUNS = ("plots/<", "configs/NAME", "tf_mlm/configs/")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    text = without_code(page.read_text(encoding="utf-8"))
    inline = re.findall(r"\]\(([^()\s]+)\)", text)
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.M)


def test_the_search_sees_links_and_anchors(tmp_path: Path) -> None:
    """A search that found nothing would pass the tests below."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, `code`\n\n[text](other.md#part) ![plot](plot.png)\n\n```\n# [no](link)\n```\n\n[ref]: x.md\n"
    )
    assert links(page) == ["other.md#part", "plot.png", "x.md"]
    assert anchors(page) == {"a-title-code"}
    assert len(PAGES) >= 12 and sum(len(links(page)) for page in PAGES) > 35


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_target_of_every_relative_link_exists(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or anchor and anchor not in anchors(target):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_in_backticks_exists(page: Path) -> None:
    named = re.findall(r"`([^`\s]+)`", without_code(page.read_text(encoding="utf-8")))
    paths = [name for name in named if name.startswith(_TREES) and not name.startswith(_OF_RUNS)]
    assert [path for path in paths if not (ROOT / path.partition("::")[0]).exists()] == []


def test_every_page_of_the_documentation_is_linked_from_the_readme() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")}
    assert pages <= {link.partition("#")[0] for link in links(ROOT / "README.md")}


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_needs_a_directory_outside_the_checkout(page: Path) -> None:
    assert "../shared" not in page.read_text(encoding="utf-8")


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_the_map_of_the_code_names_every_module_of_data_model_and_run() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for room in ("data", "model", "run"):
        table = text.split(f"`{room}/`:\n")[1].strip().split("\n\n")[0]
        named = set(re.findall(r"`(\w+\.py)`", table))
        assert {path.name for path in (ROOT / "tf_mlm" / room).glob("*.py")} - {"__init__.py"} == named
