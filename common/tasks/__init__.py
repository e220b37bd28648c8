"""A task is one module: how to build, load, fit, predict and score, and what sites share.

Server, clients and the arms of a comparison know a task by these functions only, so none of them
grows when a task is added.
"""

from __future__ import annotations

from types import ModuleType


def load_task(name: str) -> ModuleType:
    """Import a task by its name in the run config; late, for what it needs is heavy."""
    import importlib

    return importlib.import_module(f"common.tasks.{name}")
