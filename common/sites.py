"""Who a client stands in for: a site, by name, with a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.config.run_config import RunConfig
from common.data.phantoms.cohorts import phantom_cohort
from common.errors import ConfigError
from common.reading import read_json
from common.site_names import ACCEPTED_SITE_NAME, SITE_NAME

# Environment variable of a simulation's processes: a file with the folder of each phantom hospital.
PHANTOM_FOLDERS = "FEDSCAN_PHANTOM_FOLDERS"


@dataclass(frozen=True)
class Site:
    """A hospital.

    Parameters
    ----------
    name : str
    data_dir : Path
        Its data. Nothing outside this folder is read for the site.
    simulated : bool
        Whether the site shares a machine and an owner with the server.
    """

    name: str
    data_dir: Path
    simulated: bool


def site_name(node_config: Mapping[str, object], config: RunConfig) -> str:
    """Name the site that a client stands in for, without touching its data.

    A deployed SuperNode says so itself (``--node-config 'site="north" data-dir="/…"'``). A
    simulated one has a number: it takes the site with that number in the cohort, or in the
    phantom cohort when the run names none.

    Raises
    ------
    ConfigError
        For a node config that names no usable site, or a cohort of another number of sites than
        there are SuperNodes.
    """
    if "site" in node_config or "data-dir" in node_config:
        return deployed_site(node_config).name
    if "partition-id" not in node_config:
        raise ConfigError(
            "this SuperNode does not say which site it is. Start it with "
            '--node-config \'site="north" data-dir="/absolute/path/to/its/data"\''
        )
    number, count = int(node_config["partition-id"]), int(node_config["num-partitions"])
    names = list(_cohort(config) if config.data.cohort_dir else _phantoms(config, count))
    if len(names) != count:
        raise ConfigError(
            f"the cohort has {len(names)} sites ({', '.join(names)}) but there are {count} "
            f'SuperNodes. Run with --federation-config "num-supernodes={len(names)}"'
        )
    return names[number]


def is_simulated(node_config: Mapping[str, object]) -> bool:
    """Tell whether a client is one of a simulation, and no hospital's."""
    return not {"site", "data-dir"} & node_config.keys()


def locate_site(node_config: Mapping[str, object], config: RunConfig, cache: Path) -> Site:
    """Find a client's site and its folder.

    Parameters
    ----------
    node_config : mapping
        Flower's node config.
    config : RunConfig
    cache : Path
        Where phantom hospitals are, or are made.

    Raises
    ------
    ConfigError
        As :func:`site_name`, or if the folder that a deployed site names cannot be used.
    """
    name = site_name(node_config, config)
    if not is_simulated(node_config):
        return deployed_site(node_config)
    if config.data.cohort_dir:
        return Site(name, _cohort(config)[name], simulated=True)
    folder = _made_phantoms().get(name) or phantom_cohort(config.study).ensure(name, cache)
    return Site(name, Path(folder), simulated=True)


def _phantoms(config: RunConfig, count: int) -> Mapping[str, object]:
    return _made_phantoms() or phantom_cohort(config.study).subjects(count)


def _made_phantoms() -> dict[str, str]:
    """Folders of the phantom hospitals that whoever started the simulation has chosen, if any."""
    file = os.environ.get(PHANTOM_FOLDERS)
    return read_json(Path(file)) if file else {}


def _cohort(config: RunConfig) -> dict[str, Path]:
    folder = Path(config.data.cohort_dir)
    return _listed(folder, folder.stat().st_mtime_ns if folder.is_dir() else 0)


@lru_cache(maxsize=1)
def _listed(cohort: Path, _changed: int) -> dict[str, Path]:
    """List a cohort once: with hundreds of sites it takes longer than what a message asks for.

    A site's folder that comes, goes or becomes another changes the time of the cohort's.
    """
    from common.imaging.bids import list_sites

    return dict(sorted(list_sites(cohort).items()))


def deployed_site(node_config: Mapping[str, object]) -> Site:
    """Read the site and its folder from the node config of a SuperNode at a hospital.

    Raises
    ------
    ConfigError
        If the name or the folder cannot be used.
    """
    name, data_dir = node_config.get("site"), node_config.get("data-dir")
    if not isinstance(name, str) or not SITE_NAME.fullmatch(name):
        raise ConfigError(
            f"node config: site = {name!r}: accepted is a name of {ACCEPTED_SITE_NAME}",
            public="node config: site is not a usable name",  # it may be a path, by mistake
        )
    if not isinstance(data_dir, str) or not Path(data_dir).is_absolute():
        raise ConfigError(
            f"site '{name}': node config: data-dir = {data_dir!r}: accepted is the absolute path "
            "of the site's folder of data",
            public=f"site '{name}': node config: data-dir is not an absolute path",
        )
    if not Path(data_dir).is_dir():
        raise ConfigError(
            f"site '{name}': data-dir '{data_dir}' is not a folder",
            public=f"site '{name}': data-dir is not a folder",
        )
    return Site(name, Path(data_dir), simulated=False)
