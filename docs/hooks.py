"""Pages that the site takes from elsewhere: the README, the change log and the commands' help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of the folder."""
    from mkdocs.structure.files import File

    def of_root(name: str) -> str:
        text = (ROOT / name).read_text().replace("](docs/", "](")
        return text.replace("](CHANGELOG.md)", "](changelog.md)").replace(
            "[license](LICENSE)", "license"
        )

    made = {
        "index.md": of_root("README.md"),
        "changelog.md": of_root("CHANGELOG.md"),
        "reference/commands.md": commands(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Lead links to the README, as they are right on GitHub, to the site's first page."""
    return markdown.replace("../README.md", "index.md").replace("../index.md", "../index.md")


def commands() -> str:
    """Return the reference of the command line as Markdown."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "simulations.cli", "utils", "docs", "--name", "fedscan"],
        cwd=ROOT,
        env={**os.environ, "TERMINAL_WIDTH": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    text = made.stdout.replace("# `fedscan`", "# Commands", 1)
    return re.sub(r"^(Examples?)\n-+$", r"**\1**\n", text, flags=re.M)
