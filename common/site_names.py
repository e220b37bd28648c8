"""What a hospital may be called in a federation."""

from __future__ import annotations

import re

# "all" is what stands in tables for all sites together.
SITE_NAME = re.compile(r"(?!all$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ACCEPTED_SITE_NAME = (
    "up to 64 letters, digits, '.', '_' and '-', the first a letter or digit; not 'all'"
)
