"""``fedscan supernode``: what a hospital is asked for when it joins a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.options import absolute


def supernode(
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink, or the proxy before it.")
    ],
    site: Annotated[str, typer.Option(help="The hospital's name in the federation.")],
    data_dir: Annotated[
        Path, typer.Option(help="Folder of its data; nothing else is read for the site.")
    ],
    root_certificates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Who signs the SuperLink's certificate, as PEM; the system's list by default.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS: to try it out on one machine.")
    ] = False,
    auth_supernode_private_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Key with which the node proves which node it is."),
    ] = None,
    client_certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The site's certificate for the coordinator's proxy."),
    ] = None,
    client_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of that certificate.")
    ] = None,
    extractor: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The site's file of what judges generated pictures."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The site's own rules; without any, nothing leaves."),
    ] = None,
    ledger_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For the ledger; beside the site's records by default."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Port of the SuperNode's Runtime API on 127.0.0.1; a free one by default.",
        ),
    ] = None,
) -> None:
    """Take part in a federation as a hospital, until interrupted; in place of `flower-supernode`.

    Only outgoing connections are made. A run's code is executed in a sandbox, if the site has
    approved it, and what it answers passes the site's gate: see `fedscan gate --help`.

    Examples
    --------
    - `fedscan supernode --superlink 127.0.0.1:9091 --insecure --site north --data-dir /data/north
      --policy policy.toml`
    - `fedscan supernode --superlink fl.example.org:443 --root-certificates ca.crt --site north
      --data-dir /data/north --policy policy.toml --auth-supernode-private-key north.key
      --client-certificate north.crt --client-key north-tls.key`
    """
    from clients.gateway.supernode import SuperNode, serve
    from simulations.in_use import cache_in_use

    if policy is None:
        raise ConfigError(
            "--policy FILE is missing, and without one nothing may leave the site. `fedscan gate "
            f"policy --site {site} --out policy.toml` writes one to begin with"
        )

    def given(path: Path | None) -> Path | None:
        return path and absolute(path)

    node = SuperNode(
        superlink=superlink,
        site=site,
        data_dir=absolute(data_dir),
        insecure=insecure,
        root_certificates=given(root_certificates),
        private_key=given(auth_supernode_private_key),
        client_certificate=given(client_certificate),
        client_key=given(client_key),
        extractor=given(extractor),
        policy=given(policy),
        ledger_dir=given(ledger_dir),
        port=port,
    )
    with cache_in_use():  # which `fedscan clean` sees
        serve(node)
