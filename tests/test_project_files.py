"""Files for people and machines beside the code agree with it, and name no machine of ours."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = (
    *("CITATION.cff", "CONTRIBUTING.md", ".pre-commit-config.yaml", "Containerfile"),
    ".github/workflows/tests.yml",
)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_citation_is_of_this_version() -> None:
    told = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= told.keys()
    assert (str(told["version"]), told["license"]) == (PROJECT["version"], PROJECT["license"])


def test_hooks_are_ruffs_alone_and_fetch_nothing() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith("ruff ")


def test_the_workflow_runs_what_a_contributor_runs() -> None:
    (job,) = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"].values()
    (script,) = [step["run"] for step in job["steps"] if "run" in step]
    assert os.access(ROOT / script, os.X_OK)
    oldest = re.search(r">=(\d\.\d+)", PROJECT["requires-python"])[1]
    assert oldest in job["strategy"]["matrix"]["python"]


def test_the_container_runs_fedscan_as_a_user_without_rights() -> None:
    lines = [line for line in read("Containerfile").splitlines() if line and line[0] != "#"]
    orders = [line.split(maxsplit=1) for line in lines]
    words = [order for order, _ in orders]
    assert words[0] == "FROM" and ":" in orders[0][1]  # no image of an unknown version
    users = [what for order, what in orders if order == "USER"]
    # By its number, which a system that runs containers can tell from root's.
    made = re.search(r"useradd .*--uid (\d+)", read("Containerfile"))[1]
    assert users and users[-1] == made != "0"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert not any(order == "ADD" or "sudo" in what for order, what in orders)
    assert dict(orders)["ENTRYPOINT"] == '["fedscan"]' and "fedscan" in PROJECT["scripts"]


def test_a_containers_image_holds_what_is_installed_and_nothing_else() -> None:
    first, *rules = [line for line in read(".containerignore").splitlines() if line[0] != "#"]
    assert first == "*"  # whatever lies beside the sources, such as hospitals' data
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["only-include"], *wheel["force-include"], PROJECT["readme"]}
    assert {rule[1:] for rule in rules if rule[0] == "!"} == needed


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_a_machine_or_a_registrys_host(name: str) -> None:
    assert not re.search(r"/work|/tmp|index-url|https?://|\d+\.\d+\.\d+\.\d+", read(name))
