"""Folders of a federation that is to be: one for the coordinator and one for each hospital.

Nothing of a hospital's that is secret is made here: its keys are made where they are used, by
``fedscan deploy keys``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.gateway.policy import default_policy_text
from common.errors import ConfigError
from common.files import make_folder, write_json
from common.reading import read_json
from simulations.deploy import keys

TEMPLATES = Path(__file__).parent / "templates"
FACTS = "federation.json"


@dataclass(frozen=True)
class Federation:
    """Who takes part, and where the coordinator is reached.

    Parameters
    ----------
    host : str
        Its name or address, without port.
    sites : tuple of str
    port : int
        Of its proxy.
    """

    host: str
    sites: tuple[str, ...]
    port: int = 443

    def __post_init__(self) -> None:
        keys.check_host(self.host)
        if not self.sites:
            raise ConfigError("no sites: accepted are names with commas, as in north,south")
        for site in self.sites:
            keys.check_site(site)
        if len({site.lower() for site in self.sites}) < len(self.sites):
            raise ConfigError(f"sites {', '.join(self.sites)}: one of them is there twice")

    @property
    def superlink(self) -> str:
        """What a SuperNode is told: ``HOST:PORT``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def write_federation(federation: Federation, out: Path) -> list[Path]:
    """Write the folders ``coordinator`` and ``hospitals/SITE``.

    Parameters
    ----------
    federation : Federation
    out : Path
        Is made; it may be there if it is empty.

    Returns
    -------
    list of Path
        The folders.

    Raises
    ------
    ConfigError
        There is something in ``out``.
    """
    _require_empty(out)
    folder = make_folder(out / "coordinator")
    keys.make_authority(folder)
    keys.make_server_certificate(folder, [federation.host])
    keys.write_new(folder / "superexec.secret", secrets.token_bytes(32))
    keys.write_new(folder / "admitted.map", b"")
    facts = {"host": federation.host, "port": federation.port, "sites": list(federation.sites)}
    write_json(folder / FACTS, facts)
    named = federation.host
    if re.fullmatch(r"[0-9.]+|.*:.*", named):
        named = "_"  # a client that knows an address alone names no server
    values = facts | {"server_name": named}
    for name in ("fedscan-superlink.service", "fedscan-superexec.service", "nginx.conf"):
        _render(f"coordinator/{name}", folder, values)
    for name in ("Containerfile", "COMMANDS.md"):
        _render(f"coordinator/{name}", folder, values)
    return [folder, *_write_hospitals(federation, folder, out)]


def write_further_hospitals(sites: Sequence[str], coordinator: Path, out: Path) -> list[Path]:
    """Write folders of hospitals that join a federation later.

    Parameters
    ----------
    sites : sequence of str
    coordinator : Path
        The coordinator's folder, as :func:`write_federation` wrote it.
    out : Path
        Is made; it may be there if it is empty.

    Returns
    -------
    list of Path
        The folders.

    Raises
    ------
    ConfigError
        The folder is not a coordinator's, or a site takes part already.
    """
    _require_empty(out)
    known = read_federation(coordinator)
    new = Federation(known.host, tuple(sites), known.port)
    every = Federation(known.host, (*known.sites, *sites), known.port)
    folders = _write_hospitals(new, coordinator, out)
    facts = {"host": every.host, "port": every.port, "sites": list(every.sites)}
    write_json(coordinator / FACTS, facts)
    return folders


def read_federation(coordinator: Path) -> Federation:
    """Read what a coordinator's folder says of its federation.

    Raises
    ------
    ConfigError
        The folder is not a coordinator's.
    """
    problem = f"{coordinator} is no coordinator's folder: `fedscan deploy init` makes one"
    try:
        facts = read_json(coordinator / FACTS)
        return Federation(facts["host"], tuple(facts["sites"]), facts["port"])
    except (FileNotFoundError, NotADirectoryError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(problem) from error


def _write_hospitals(federation: Federation, coordinator: Path, out: Path) -> list[Path]:
    authority = (coordinator / "ca.crt").read_bytes()
    folders = []
    for site in federation.sites:
        folder = make_folder(out / "hospitals" / site)
        values = {
            "site": site,
            "data": f"/data/{site}",
            "superlink": federation.superlink,
            "tag": site.lower(),
        }
        keys.write_new(folder / "ca.crt", authority)
        keys.write_new(folder / "policy.toml", default_policy_text(site).encode())
        for name in ("fedscan-supernode.service", "Containerfile", "COMMANDS.md"):
            _render(f"hospital/{name}", folder, values)
        folders.append(folder)
    return folders


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: choose another --out, or move it away")


def _render(template: str, folder: Path, values: dict[str, object]) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    text = environment.get_template(template).render(values)
    keys.write_new(folder / Path(template).name, text.encode())
