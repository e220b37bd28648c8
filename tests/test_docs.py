"""What the documentation refers to is there, and it advises nothing that cannot be done."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

from common.config.renamed import hint
from common.config.run_config import GROUPS, flatten, known_keys
from common.strategies.strategy import load_strategy, strategy_names

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


# Keys of the run config

KEY = r"[a-z]+(?:[.-][a-z]+)*"


def documented() -> dict[str, str]:
    """Keys of the tables of the run configuration, with the default that stands there."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    tables = text.split("## Keys")[1].split("## A hospital's policy")[0]
    return dict(re.findall(rf"^\| `({KEY})` \| `([^`]*)` \|", tables, flags=re.M))


def test_every_key_of_the_run_config_is_documented_with_its_default():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    defaults = flatten(project["tool"]["flwr"]["app"]["config"])
    told = documented()
    assert set(told) == set(known_keys()) == set(defaults)
    for key, shown in told.items():
        value = defaults[key]
        written = str(value).lower() if isinstance(value, bool) else str(value)
        assert shown.strip('"') == written, key


def test_groups_are_documented_together():
    order = [key.partition(".")[0] if "." in key else "" for key in documented()]
    assert [group for group, _ in itertools.groupby(order)] == ["", *GROUPS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_is_set_in_an_example_exists(page):
    text = page.read_text()
    found = re.findall(r"fedscan (?:run|benchmark)[^\n]*(?:\\\n[^\n]*)*", text)
    keys = [key for line in found for key in re.findall(rf"--set ({KEY})=", line)]
    for line in re.findall(r"--run-config (\"[^\"\n]*\"|'[^'\n]*')", text):
        keys += re.findall(rf"(?<![\w.-])({KEY})=", line)
    options = [load_strategy(name).Options for name in strategy_names()]
    own = {one.prefix + key for one in options for key in one().to_mapping()}
    assert not [key for key in keys if key not in {*known_keys(), *own}]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_key_of_earlier_versions(page):
    """In prose, a key stands in backticks; what a GAN's preset calls alike is no key of a run."""
    words = re.findall(r"`([a-z-]+)(?:=[^`]*)?`", page.read_text())
    of_other_things = {"gan", "features", "share", "strategy", "device", "seed", "threads"}
    assert not [word for word in words if hint(word) and word not in of_other_things]
