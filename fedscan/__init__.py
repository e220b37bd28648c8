"""Federated learning on medical images, from Python.

What the command line does, as functions: each calls what the command of its name calls. A fault of
the caller's is a ``ConfigError``, one of a site's data a ``DataContractError``.

>>> import fedscan
>>> run = fedscan.run(study="skin-lesions", rounds=20)  # doctest: +SKIP
>>> run.metrics, run.plot(), run.predict("new-photographs")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedscan._app import APP, put_on_path

if TYPE_CHECKING:
    from common.errors import ConfigError, DataContractError, FedscanError
    from common.strategies.strategy import Options, SiteUpdate, Strategy, mean_of
    from common.studies.study import Study
    from fedscan._comparisons import Comparison, benchmark, load_benchmark
    from fedscan._extensions import allow_extensions, register_model
    from fedscan._runs import Run, load_run, run

__all__ = [
    "APP",
    "Comparison",
    "ConfigError",
    "DataContractError",
    "FedscanError",
    "Options",
    "Run",
    "SiteUpdate",
    "Strategy",
    "Study",
    "allow_extensions",
    "benchmark",
    "load_benchmark",
    "load_run",
    "mean_of",
    "register_model",
    "run",
]

# Imported when they are first asked for: PyTorch alone takes seconds.
_WHERE = {
    "common.errors": ("ConfigError", "DataContractError", "FedscanError"),
    "common.strategies.strategy": ("Options", "SiteUpdate", "Strategy", "mean_of"),
    "common.studies.study": ("Study",),
    "fedscan._extensions": ("allow_extensions", "register_model"),
    "fedscan._comparisons": ("Comparison", "benchmark", "load_benchmark"),
    "fedscan._runs": ("Run", "load_run", "run"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'fedscan' has no attribute '{name}'")
    put_on_path()
    found = getattr(importlib.import_module(_MODULE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
