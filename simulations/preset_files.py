"""Files of comparisons: the presets that come with fedscan, and a user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.paths import expanded
from common.settings import did_you_mean
from simulations.config_file import read_toml

PRESETS = Path(__file__).with_name("presets")
WANTED = "Accepted is a TOML file as the presets are"
TABLES = ("run", "volumes", "pretraining", "use", "variants", "scenarios")
OF_TABLES = ("variants", "scenarios")
LISTS = ("arms", "strategies", "pooled", "alone")


def presets() -> dict[str, Path]:
    """Find the presets that come with fedscan, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def read_preset(preset: str) -> dict[str, Any]:
    """Read a preset by its name, or by the path of a file that ends in ``.toml``.

    Raises
    ------
    ConfigError
        There is none, or it is of another form. What its keys accept is checked by whoever reads
        the result.
    """
    found = presets()
    if preset in found:
        return tomllib.loads(found[preset].read_text())
    if preset.endswith(".toml"):
        values = read_toml(path := expanded(Path(preset)), WANTED)
        _require_form(values, path)
        return values
    meant = did_you_mean(preset, found)
    raise ConfigError(
        f"unknown preset '{preset}': accepted are {', '.join(found)}, or a file's path that ends "
        f"in .toml{meant}"
    )


def _require_form(values: Mapping[str, Any], path: Path) -> None:
    """Refuse what stands in place of a table or of a list of texts."""
    tables = {key: values[key] for key in TABLES if key in values}
    for key in OF_TABLES:
        if isinstance(inner := values.get(key), dict):
            tables |= {f"{key}.{name}": table for name, table in inner.items()}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {key} = {table!r}: accepted is a table, [{key}]")
    for key in LISTS:
        texts = values.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
            raise ConfigError(f"{path}: {key} = {texts!r}: accepted is a list of texts")
    if not isinstance(study := values.get("run", {}).get("study", ""), str):
        raise ConfigError(f"{path}: run.study = {study!r}: accepted is a text")
