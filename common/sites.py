"""Who a client stands in for: a site, by name, with a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError

# "all" is what stands in tables for all sites together.
SITE_NAME = re.compile(r"(?!all$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PHANTOM_TEST = 60  # test subjects of every phantom site
PHANTOM_SEED = 0  # the cohort is the same for every run, whatever the run's seed
_RICH = {"north": 200, "south": 120, "east": 160, "west": 80}
_POOR = ("island", 20)


@dataclass(frozen=True)
class Site:
    """A hospital.

    Parameters
    ----------
    name : str
    data_dir : Path
        Its BIDS data set. Nothing outside this folder is read for the site.
    simulated : bool
        Whether the site shares a machine and an owner with the server.
    """

    name: str
    data_dir: Path
    simulated: bool


def phantom_sites(count: int) -> dict[str, int]:
    """Name the phantom hospitals of a simulation: the last is the data-poor one.

    Parameters
    ----------
    count : int
        Number of sites, at least 1.

    Returns
    -------
    dict of str to int
        Training and validation subjects by site; test subjects (:data:`PHANTOM_TEST`) come on top.
    """
    names = list(_RICH)
    rich = {
        (names[i] if i < len(names) else f"site-{i + 1:03d}"): list(_RICH.values())[i % len(names)]
        for i in range(count - 1)
    }
    return {**rich, _POOR[0]: _POOR[1]}


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
            '--node-config \'site="north" data-dir="/absolute/path/to/its/BIDS/data"\''
        )
    number, count = int(node_config["partition-id"]), int(node_config["num-partitions"])
    names = list(_cohort(config)) if config.cohort_dir else list(phantom_sites(count))
    if len(names) != count:
        raise ConfigError(
            f"the cohort has {len(names)} sites ({', '.join(names)}) but there are {count} "
            f'SuperNodes. Run with --federation-config "num-supernodes={len(names)}"'
        )
    return names[number]


def locate_site(
    node_config: Mapping[str, object],
    config: RunConfig,
    make_phantom: Callable[[str, int], Path],
) -> Site:
    """Find a client's site and its folder.

    Parameters
    ----------
    node_config : mapping
        Flower's node config.
    config : RunConfig
    make_phantom : callable
        Given a name and a number of subjects, returns the phantom site's folder.

    Raises
    ------
    ConfigError
        As :func:`site_name`, or if the folder that a deployed site names cannot be used.
    """
    name = site_name(node_config, config)
    if "site" in node_config or "data-dir" in node_config:
        return deployed_site(node_config)
    if config.cohort_dir:
        return Site(name, _cohort(config)[name], simulated=True)
    subjects = phantom_sites(int(node_config["num-partitions"]))[name]
    return Site(name, make_phantom(name, subjects), simulated=True)


def _cohort(config: RunConfig) -> dict[str, Path]:
    from common.imaging.bids import list_sites

    return dict(sorted(list_sites(Path(config.cohort_dir)).items()))


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
            f"node config: site = {name!r}: accepted is a name of up to 64 letters, digits, "
            "'.', '_' and '-', beginning with a letter or digit; not 'all'",
            public="node config: site is not a usable name",  # it may be a path, by mistake
        )
    if not isinstance(data_dir, str) or not Path(data_dir).is_absolute():
        raise ConfigError(
            f"site '{name}': node config: data-dir = {data_dir!r}: accepted is the absolute path "
            "of the site's BIDS data set",
            public=f"site '{name}': node config: data-dir is not an absolute path",
        )
    if not Path(data_dir).is_dir():
        raise ConfigError(
            f"site '{name}': data-dir '{data_dir}' is not a folder",
            public=f"site '{name}': data-dir is not a folder",
        )
    return Site(name, Path(data_dir), simulated=False)
