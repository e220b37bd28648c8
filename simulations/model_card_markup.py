"""The markup of a model card: YAML, code spans and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations.model_card import printable


def yaml(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write lists and mappings as YAML 1.2, their scalars as JSON, which YAML contains."""
    for key, one in value.items():
        yield from _item(f"{indent}{key}:", one, indent)


def _item(start: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield start
        yield from yaml(value, f"{indent}  ")
    elif isinstance(value, list) and value:
        yield start
        for one in value:
            if isinstance(one, Mapping):
                first, *rest = yaml(one, f"{indent}  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{indent}- {_scalar(one)}"
    else:
        yield f"{start} {_scalar(value)}"


def _scalar(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def code(text: object) -> str:
    """Return a text from a file as a code span that ends neither itself nor a table's cell."""
    kept = printable(text).translate(dict.fromkeys(map(ord, "`|"), "\ufffd"))
    return f"`{kept.strip() or '?'}`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
