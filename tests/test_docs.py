"""What the documentation refers to is there, and it advises nothing that cannot be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_resolve(page):
    for target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_attack_of_the_security_page_names_tests_that_exist():
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [row for row in page.split("## Attacks and tests")[1].splitlines() if "| `" in row]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)?::(test_\w+)`", row)
        assert named, row
        module = ""
        for file, test in named:
            module = file or module
            assert f"def {test}(" in (ROOT / "tests" / module).read_text(), f"{module}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_advises_trusted_entities(page):
    """With ``flwr run .`` a SuperNode that has the option refuses every run."""
    for paragraph in page.read_text().split("\n\n"):
        if "--trusted-entities" in paragraph:
            assert re.search(r"do not use", paragraph, flags=re.I)


def test_readme_is_for_newcomers():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
