"""Code from packages outside fedscan: a strategy, a reader or a classifier, by its name.

A name is ``package.module:attribute``, as in ``ward7.nets:small``. It stands in a run's config, and
to load it is to execute what it names. So a process loads those names alone that its owner allows:
at a hospital those that its policy lists (``allowed-extensions``), anywhere else those of the
environment variable ``FEDSCAN_EXTENSIONS``, to which a command adds what its user has typed.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from typing import Any

from common.errors import ConfigError, causes
from common.machine import is_out_of_memory

VARIABLE = "FEDSCAN_EXTENSIONS"  # names with blanks between them
LONGEST = 200
_PART = "[A-Za-z_][A-Za-z0-9_]*"
NAME = re.compile(rf"{_PART}(\.{_PART})*:{_PART}")
ACCEPTED = "package.module:attribute, as in 'ward7.nets:small'"


def is_extension(name: str) -> bool:
    """Tell whether a name is that of an extension, and none of fedscan's own."""
    return len(name) <= LONGEST and NAME.fullmatch(name) is not None


def allowed() -> frozenset[str]:
    """Return the names that this process may load."""
    return frozenset(os.environ.get(VARIABLE, "").split())


def allow(names: Iterable[str]) -> None:
    """Let this process, and those that it starts, load these names too."""
    allow_only({*allowed(), *names})


def allow_only(names: Iterable[str]) -> None:
    """Let this process, and those that it starts, load these names and no others."""
    os.environ[VARIABLE] = " ".join(sorted(filter(is_extension, names)))


def name_of(thing: Any) -> str:
    """Return the name of a class or function of a module."""
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"


def load_extension(name: str, key: str) -> Any:
    """Import what a name stands for.

    Parameters
    ----------
    name : str
    key : str
        The key of the run config, or the section and key of a study, that holds the name.

    Raises
    ------
    ConfigError
        It is not allowed here, or there is no such thing, or its import fails. Nothing has been
        imported in the first case.
    """
    if name not in allowed():
        raise ConfigError(
            f"{key} = '{name}': this is no extension that may be loaded here. A hospital allows it "
            f'by allowed-extensions = ["{name}"] in its policy; elsewhere the environment variable '
            f"{VARIABLE} names it"
        )
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error) or _is_signal(error):
            raise
        what, absent = f"{key} = '{name}': it cannot be imported", isinstance(error, ImportError)
        raise ConfigError(
            f"{what} ({error if absent else _first_cause(error)}). "
            + ("Install its package" if absent else "Mend or update its package")
            + " where this process runs, at every site too",
            public=f"{what}. {'Install' if absent else 'Mend or update'} its package at every site",
        ) from error
    if not hasattr(found, attribute):
        raise ConfigError(f"{key} = '{name}': module {module} has no '{attribute}'")
    return getattr(found, attribute)


def _is_signal(error: BaseException) -> bool:
    """Tell whether the command line ends itself upon a signal, with 128 and the signal's number."""
    return isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128


def _first_cause(error: BaseException) -> str:
    """Name the error from which others followed, in one line."""
    *_, first = causes(error)
    return ": ".join(filter(None, (type(first).__name__, " ".join(str(first).split())[:LONGEST])))


def load_class(name: str, key: str, base: type) -> Any:
    """Import a class; as :func:`load_extension`, and refused where it is none of the base."""
    found = load_extension(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key} = '{name}': it is no class of {base.__name__}")
    return found
