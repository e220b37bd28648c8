"""One function for every seed: declare the axes that may change it, and nothing else will."""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, **axes: str | int) -> int:
    """Derive a seed from the run's seed and named axes (site, round, purpose, …).

    Two calls with the same axes agree on every machine and Python version, in whatever order the
    axes are given; two that differ in any axis are independent draws. Sites enter by name, never
    by the order in which they happen to answer.

    Parameters
    ----------
    seed : int
        The run's seed.
    **axes : str or int
        What the draw may depend on, for example ``site="north", round=3, purpose="batches"``.

    Returns
    -------
    int
        In [0, 2**63), which NumPy's and PyTorch's generators both take.
    """
    key = json.dumps([int(seed), sorted(axes.items())], separators=(",", ":"))
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
