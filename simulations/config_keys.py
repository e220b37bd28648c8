"""The keys of a run configuration, from its schema: for terminal, documentation and template."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from common.config.run_config import GROUPS, RunConfig
from common.errors import ConfigError
from common.settings import Settings, did_you_mean

TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
HEAD = """\
# Keys of the run configuration

This page is written by `fedscan config --format markdown`. [Configuration](configuration.md)
explains more, and what a default of 0, `auto` or nothing stands for.

| key | type | default | accepted | meaning |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Key:
    """One key of a run configuration.

    Parameters
    ----------
    name : str
        As in ``--set``.
    type : str
    default : bool, int, float or str
    accepted : str
        Range or choices; empty where every value of the type is.
    meaning : str
    """

    name: str
    type: str
    default: bool | int | float | str
    accepted: str
    meaning: str

    @property
    def toml(self) -> str:
        """The default, as TOML writes it."""
        return json.dumps(self.default, ensure_ascii=False)


def list_keys(wanted: str = "") -> list[Key]:
    """List the keys, in order of their groups.

    Parameters
    ----------
    wanted : str
        A group, or a part of keys; empty for all.

    Raises
    ------
    ConfigError
        No key is wanted.
    """
    found = _keys_of(RunConfig) + [one for group in GROUPS.values() for one in _keys_of(group)]
    in_group = [one for one in found if one.name.startswith(f"{wanted}.")]
    chosen = in_group or [one for one in found if wanted in one.name]
    if not chosen:
        words = [*GROUPS, *(one.name for one in found)]
        raise ConfigError(
            f"no key has '{wanted}' in its name: accepted is a part of a key, or a group, one of "
            f"{', '.join(GROUPS)}{did_you_mean(wanted, words)}"
        )
    return chosen


def _keys_of(group: type[Settings]) -> list[Key]:
    schema = group.model_json_schema()["properties"]
    found = []
    for field, about in group.model_fields.items():
        if field in GROUPS and group is RunConfig:
            continue
        key = field.replace("_", "-")
        told = schema[key]
        choices = told.get("enum") or ([told["const"]] if "const" in told else [])
        kind = "choice" if choices else TYPES[told["type"]]
        accepted = ", ".join(map(str, choices)) or str(told.get("accepted") or _range(told))
        found.append(
            Key(group.prefix + key, kind, about.default, accepted, about.description or "")
        )
    return found


def _range(told: dict[str, float]) -> str:
    """Say which numbers, or how long a text."""
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "up to {}",
        "exclusiveMaximum": "below {}",
        "maxLength": "up to {} letters",
    }
    ends = [(told[key], phrase) for key, phrase in words.items() if key in told]
    shown = (int(end) if float(end).is_integer() else end for end, _ in ends)
    parts = (phrase.format(f"{end:,}") for end, (_, phrase) in zip(shown, ends, strict=True))
    return " ".join(parts)


def markdown(keys: Sequence[Key]) -> str:
    """Return the page docs/keys.md."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|")

    rows = (
        f"| `{one.name}` | {one.type} | `{one.toml}` | {cell(one.accepted)} | {cell(one.meaning)} |"
        for one in keys
    )
    return HEAD + "\n".join(rows) + "\n"


def template(keys: Sequence[Key]) -> str:
    """Return a TOML file for ``fedscan run --config`` in which all keys are commented out."""
    lines = [
        "# Run configuration: fedscan run --config FILE.toml. What stands here is the default;",
        "# take the # away before a key to change it. --set wins over this file.",
        "",
        "# Folder with one folder a hospital; without it, simulated hospitals.",
        '# cohort = "hospitals"',
    ]
    group = ""
    for one in keys:
        table, _, name = one.name.rpartition(".")
        if table != group:
            lines += ["", f"[{table}]"]
            group = table
        range_ = f"; {one.accepted}" if one.accepted else ""
        about = f"{one.meaning} ({one.type}{range_})"
        lines += ["", *textwrap.wrap(about, 96, initial_indent="# ", subsequent_indent="# ")]
        lines.append(f"# {name} = {one.toml}")
    return "\n".join(lines) + "\n"
