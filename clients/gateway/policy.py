"""What a site's gate allows: the table ``[gate]`` of the policy file, and the file's whole text.

The file's other keys are the site's bounds on what a run may ask (:mod:`clients.policy`), which the
run's own code reads as well. The gate's are read here alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from clients.policy import GATE, SIMULATED, SUMS, PolicySettings, SitePolicy, read_file
from common.config.privacy import FEWEST_SITES
from common.errors import ConfigError
from common.processes.environment import toml
from common.settings import NonNegative, Positive
from common.site_names import ACCEPTED_SITE_NAME, SITE_NAME

MOST_BYTES = 2**40  # what a bound on bytes may be, for one that bounds nothing
WIDTH = 100


class GatePolicy(PolicySettings):
    """What a site's gate does with a run's process and with what it answers.

    Read it with :func:`read_policies`.
    """

    prefix: ClassVar[str] = f"{GATE}."

    sandbox: Literal["required", "none"] = Field(
        "required",
        description="'required': where the machine allows no sandbox, no task is run; 'none': a "
        "run's code has the rights of the gate's user, network and files included",
    )
    max_message_bytes: int = Field(
        500_000_000, ge=1, le=MOST_BYTES, description="bytes of a message that leaves"
    )
    max_run_bytes: int = Field(
        50_000_000_000, ge=0, description="bytes that leave in a run; 0: as many as there are"
    )
    max_day_bytes: int = Field(
        50_000_000_000, ge=0, description="bytes that leave in 24 hours; 0: as many as there are"
    )
    metric_digits: int = Field(
        6, ge=0, le=17, description="significant digits of a number that leaves; 0: as it is"
    )
    mantissa_bits: int = Field(
        23,
        ge=1,
        le=23,
        description="bits that are left of each weight's mantissa; 23: float32 as it is. Fewer "
        "leave less room to hide something in",
    )
    max_update_norm: NonNegative = Field(
        0.0,
        description="Euclidean length to which the gate shortens a round's change of weights; "
        "0: as long as it is",
    )
    error_words: bool = Field(
        False,
        description="whether an error leaves with its public words; else as kind and phase alone",
    )
    max_memory_gib: NonNegative = Field(
        32.0, description="GiB of memory that a task may use; 0: no limit"
    )
    max_cpu_hours: NonNegative = Field(
        48.0, description="hours of processor time that a task may use; 0: no limit"
    )
    max_disk_gib: Positive = Field(20.0, description="GiB of temporary files that a task may write")


class SumsPolicy(PolicySettings):
    """With whom a site sums, the table ``[secure-sums]``: without one it is in no secure sum.

    Read it with :func:`read_sums`. The site's own private key is not in it, but in a file.
    """

    prefix: ClassVar[str] = f"{SUMS}."

    sites: tuple[str, ...] = Field(
        (),
        description="of every site, this one too, its name and public key, as it has told them "
        "itself and not by way of the server",
        json_schema_extra={"accepted": "a list of texts NAME:KEY, as `fedscan deploy keys` says"},
    )
    fewest: int = Field(
        FEWEST_SITES,
        ge=FEWEST_SITES,
        description="sites over which a sum must be for this one to take part",
    )

    @field_validator("sites", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


# The researcher owns every site: the gate passes on what fedscan answers as it is.
OPEN = GatePolicy(
    max_message_bytes=MOST_BYTES,
    max_run_bytes=0,
    max_day_bytes=0,
    metric_digits=0,
    error_words=True,
    max_memory_gib=0.0,
    max_cpu_hours=0.0,
    max_disk_gib=1000.0,
)


def read_policies(path: Path) -> tuple[SitePolicy, GatePolicy]:
    """Read both parts of a site's policy file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    SitePolicy
        What the site lets itself be asked.
    GatePolicy
        What its gate lets out; defaults without a table ``[gate]``.

    Raises
    ------
    ConfigError
        There is no such file, it cannot be read, or holds what is not accepted. Its public words
        do not name the file.
    """
    values = read_file(path)
    values.pop(SUMS, None)
    table = values.pop(GATE, {})
    if not isinstance(table, dict):
        problem = f"site policy: {GATE}: accepted is a table, [{GATE}]"
        raise ConfigError(f"{path}: {problem}", public=problem)
    return SitePolicy.of_file(path, values), GatePolicy.of_file(path, table)


def read_sums(path: Path) -> SumsPolicy:
    """Read with whom a site sums; nobody, without a table ``[secure-sums]``.

    Raises
    ------
    ConfigError
        As of :func:`read_policies`.
    """
    table = read_file(path).get(SUMS, {})
    if not isinstance(table, dict):
        problem = f"site policy: {SUMS}: accepted is a table, [{SUMS}]"
        raise ConfigError(f"{path}: {problem}", public=problem)
    return SumsPolicy.of_file(path, table)


def text_with_sites(text: str, sites: Sequence[str]) -> str:
    """Return the text of a policy file with other sites in secure sums, without its comments.

    Parameters
    ----------
    text : str
        Of a file that :func:`read_policies` and :func:`read_sums` accept.
    sites : sequence of str
        Name and public key of each site, as NAME:KEY.
    """
    values = tomllib.loads(text)
    gate, sums = values.pop(GATE, {}), values.pop(SUMS, {})
    sums["sites"] = list(sites)
    return f"{toml(values)}\n[{GATE}]\n{toml(gate)}\n[{SUMS}]\n{toml(sums)}"


def default_policy_text(site: str) -> str:
    """Return a policy file for a site to edit: every key with its default, commented out.

    Raises
    ------
    ConfigError
        No site can have that name.
    """
    if not SITE_NAME.fullmatch(site):
        raise ConfigError(f"site {site!r}: accepted is {ACCEPTED_SITE_NAME}")
    return "\n".join(
        [
            f"# Policy of site {site}: what a run may ask of it, and what its gate lets out.",
            "# Every key has its default here. To change one, take the # before it away.",
            "",
            *_explained(SitePolicy()),
            "# What the gate does with a run's process and its answers.",
            f"[{GATE}]",
            "",
            *_explained(GatePolicy()),
            "# With whom the site sums in secret, where a run asks for it (privacy.secure-sums).",
            f"[{SUMS}]",
            "",
            *_explained(SumsPolicy()),
        ]
    )


def open_policy_text(
    approved_weights: Sequence[str] = (), allowed_extensions: Sequence[str] = ()
) -> str:
    """Return the policy of sites that the researcher owns: it changes nothing of what they say.

    Parameters
    ----------
    approved_weights : sequence of str
        Fingerprints of first weights that are not a run's own random ones.
    allowed_extensions : sequence of str
        What the run names of other packages.
    """
    own = SIMULATED.to_mapping() | {
        "approved-weights": list(approved_weights),
        "allowed-extensions": list(allowed_extensions),
    }
    return f"{toml(own)}\n[{GATE}]\n{toml(OPEN.to_mapping())}"


def _explained(settings: PolicySettings) -> list[str]:
    """Return the lines of a part of the file: of each key what it means, and its value."""
    lines: list[str] = []
    for key, value in settings.to_mapping().items():
        words = settings.explained(key)
        lines += wrap(words, WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines += ["#" + toml({key: value})]
    return lines
