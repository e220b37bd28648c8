"""A study as a run config holds it, since no site can read a file of the researcher's."""

from __future__ import annotations

import json
from pathlib import Path

from common.paths import expanded
from common.studies.study import built_in_studies, load_study, read_study


def run_config_study(study: str | Path) -> str:
    """Return what a run config's key ``study`` holds for a study, checked.

    Parameters
    ----------
    study : str or Path
        As for `common.studies.study.load_study`.

    Returns
    -------
    str
        A built-in study's name, or the whole text of a file: UTF-8 without a byte order mark, lines
        ended by a line feed, the last one too.

    Raises
    ------
    ConfigError
        As of `load_study`.
    """
    load_study(study)
    if isinstance(study, str) and study in built_in_studies():
        return study
    text = expanded(Path(study)).read_text("utf-8-sig").rstrip("\n") + "\n"
    read_study(text)  # what is sent, should the file have changed just now
    return text


def run_config_toml(study: str | Path) -> str:
    """Return a study as a TOML file for ``flwr run --run-config FILE.toml``.

    Raises
    ------
    ConfigError
        As of `load_study`.
    """
    text = run_config_study(study)
    readable = "\n" in text and all(c.isprintable() or c in "\n\t" for c in text)
    if readable and "'''" not in text:
        return f"study = '''\n{text}'''\n"  # the line feed after the quotes is no part of it
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"study = {quoted}\n"
