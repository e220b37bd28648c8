"""Keyword arguments of Python as keys of a run's configuration, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.run_config import known_keys
from common.errors import ConfigError
from common.paths import expanded
from common.reading import read_json
from fedscan._extensions import registered


def overrides(
    study: str | Path | None, strategy: object, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keys of a run's configuration that arguments set.

    Parameters
    ----------
    study : str or Path, optional
    strategy : str or subclass of Strategy, optional
    settings : mapping of str to bool, int, float or str
        By the last part of a key, with ``_`` for ``-``, as ``local_steps`` for
        ``training.local-steps``; no two keys end alike. By a whole key too.

    Raises
    ------
    ConfigError
        The study cannot be used. What a key accepts is checked by whoever reads the result.
    """
    from simulations.options import allow_named, study_override

    ends = {key.rpartition(".")[2]: key for key in known_keys()}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = name.replace("_", "-")
        found[ends.get(key, key)] = str(value) if isinstance(value, Path) else value
    if strategy is not None:
        found["strategy.name"] = strategy if isinstance(strategy, str) else registered(strategy)
    allow_named(found)
    found |= study_override(None if study is None else str(study))
    return _with_strategy_options(found)


def _with_strategy_options(found: dict[str, Any]) -> dict[str, Any]:
    """Give what only a strategy knows its group, as ``mu`` of FedProx."""
    from common.strategies.strategy import load_strategy

    unknown = [key for key in found if key not in known_keys() and "." not in key]
    if not unknown or "strategy.name" not in found:
        return found
    own = load_strategy(found["strategy.name"]).Options().to_mapping()
    return {f"strategy.{k}" if k in unknown and k in own else k: v for k, v in found.items()}


def read_folder(path: Path) -> dict[str, Any]:
    """Read a JSON file of a folder of results."""
    try:
        found: Mapping[str, Any] = read_json(path)
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: there is no {path.name} in it") from None
    return dict(found)


def absolute(path: str | Path | None) -> Path | None:
    """Return a path as it is from any folder."""
    return None if path is None else expanded(Path(path)).absolute()
