"""Strategies and models of the user's own, by the name under which every process finds them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from common.errors import ConfigError
from common.extensions import allow, is_extension, name_of


def allow_extensions(*names: str) -> None:
    """Let this process load extensions that a folder or a study names.

    What is given to ``fedscan.run`` or ``fedscan.register_model`` is allowed by that. A
    folder that somebody else has made is not: to open it could be to execute any code that is
    installed here.

    Parameters
    ----------
    *names : str
        Each ``package.module:attribute``.

    Raises
    ------
    ConfigError
        For a name of another form.
    """
    for name in names:
        if not is_extension(name):
            raise ConfigError(f"extension '{name}': accepted is package.module:attribute")
    allow(names)


def register_model(build: Callable[..., Any]) -> str:
    """Make a function that builds a classifier known, and return its name for ``classifier``.

    Parameters
    ----------
    build : callable
        Called as ``build(channels=…, classes=…, size=…)``, it returns a ``torch.nn.Module`` that
        maps images (B, channels, size, size), or volumes (B, 1, size, size, size), to logits
        (B, classes). It is a function of an importable module: the processes of the sites import
        it.

    Returns
    -------
    str
        ``package.module:function``.

    Raises
    ------
    ConfigError
        Other processes could not import it, such as a function of a notebook's cell.

    Examples
    --------
    >>> fedscan.run(classifier=fedscan.register_model(ward7.nets.small))  # doctest: +SKIP
    """
    return registered(build)


def registered(thing: Any) -> str:
    """Return the name of a function or class, and allow it."""
    whole = name_of(thing)
    module, _, name = whole.partition(":")
    here = getattr(sys.modules.get(module), name, None) is thing
    if module == "__main__" or not here or not is_extension(whole):
        raise ConfigError(
            f"{name or thing!r}: the processes of the sites cannot import it. Define it at the "
            "top level of a module that is installed, or whose folder is in PYTHONPATH"
        )
    allow([whole])
    return whole
