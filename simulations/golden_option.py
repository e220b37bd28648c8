"""``pytest --golden DIR``: by which reference numbers the golden tests judge.

An option of ``tests/conftest.py`` would do, were it not for pytest: as long as it does not know an
option, it takes DIR for a folder of tests and looks there for its settings and ``conftest.py``. So
this is a plugin, which the installed project announces (``[project.entry-points.pytest11]``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).parents[1] / "tests" / "golden" / "stylegan2-ada"


def pytest_addoption(parser: Any) -> None:
    """Add the option."""
    parser.addoption(
        "--golden",
        type=lambda text: Path(text).absolute(),
        default=DEFAULT,
        metavar="DIR",
        help="fedscan: folder of reference numbers for StyleGAN2-ADA",
    )
