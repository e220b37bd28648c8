"""Where the app of this installation is, and how its packages are found.

The app is the folder that Flower runs: ``pyproject.toml`` with ``common``, ``server`` and
``clients``, and beside them ``simulations``. In a clone of the repository it is the folder above
this package; a wheel has it inside this package, so that site-packages get no package of such
general names.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
APP = _HERE / "app" if (_HERE / "app").is_dir() else _HERE.parent


def put_on_path() -> None:
    """Let ``common``, ``server``, ``clients`` and ``simulations`` be imported.

    Where fedscan's ``common`` has been imported already, it stays: at a site and at the server of
    a federation that is the one of the bundle that the run has brought.

    Raises
    ------
    ImportError
        Another package of that name has been imported.
    """
    loaded = sys.modules.get("common")
    if loaded is None:
        if str(APP) not in sys.path:
            sys.path.insert(0, str(APP))
        return
    folders = [Path(folder) for folder in getattr(loaded, "__path__", ())]
    if not any((folder / "provenance.py").is_file() for folder in folders):
        raise ImportError(
            f"fedscan needs its own package 'common', and another one is loaded: {loaded!r}. "
            "Rename that, or use fedscan in a process of its own"
        )
