"""Files of comparisons: the presets that come with fedscan, and those of one's own."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.settings import did_you_mean
from simulations.config_file import read_toml

PRESETS = Path(__file__).parent / "presets"


def presets() -> dict[str, Path]:
    """Find the presets that come with fedscan, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def read_preset(preset: str) -> dict[str, Any]:
    """Read a preset by its name, or by the path of a file that ends in ``.toml``."""
    found = presets()
    if preset in found:
        return tomllib.loads(found[preset].read_text())
    if preset.endswith(".toml"):
        return read_toml(Path(preset).expanduser(), "Accepted is a TOML file as the presets are")
    meant = did_you_mean(preset, found)
    raise ConfigError(
        f"unknown preset '{preset}': accepted are {', '.join(found)}, or a file's path that ends "
        f"in .toml{meant}"
    )
