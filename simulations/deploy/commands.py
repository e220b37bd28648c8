"""``fedscan deploy``: what a federation of separate machines needs, made where it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import ConfigError
from simulations.options import Format, FormatOption, absolute

app = typer.Typer(
    name="deploy",
    no_args_is_help=True,
    help="Set up a federation of separate machines: folders, keys and certificates.",
)
CoordinatorOption = Annotated[
    Path, typer.Option(metavar="DIR", help="The coordinator's folder, such as /etc/fedscan.")
]


@app.command()
def init(
    sites: Annotated[str, typer.Option(help="Names of the hospitals, with commas.")],
    out: Annotated[Path, typer.Option(help="Folder to make; nothing is overwritten.")],
    host: Annotated[
        str | None, typer.Option(help="Name or address of the coordinator, without port.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the coordinator's proxy.")] = 443,
    coordinator: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Of a federation that is there: folders of further hospitals."
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Write a folder for the coordinator and one for each hospital.

    The coordinator's has the federation's authority, the server's certificate, the configuration of
    nginx, services and commands; a hospital's has its policy, service and commands, and no key: it
    makes its own with `fedscan deploy keys`.

    Examples
    --------
    - `fedscan deploy init --sites north,south --host coordinator.example --out federation`
    - `fedscan deploy init --sites west --coordinator /etc/fedscan --out west`
    """
    from simulations.deploy.folders import Federation, write_federation, write_further_hospitals

    names, folder = tuple(sites.split(",")), absolute(out)
    if (coordinator is None) == (host is None):
        raise ConfigError("--host makes a federation, --coordinator adds to one: give one of them")
    if coordinator:
        folders = write_further_hospitals(names, absolute(coordinator), folder)
    else:
        folders = write_federation(Federation(host, names, port), folder)
    _tell(
        output_format,
        {"folders": [str(one) for one in folders]},
        [
            *map(str, folders),
            "Each folder goes to its machine, where COMMANDS.md tells what to do. The "
            "coordinator's holds private keys: ca.key signs certificates, and is best kept offline",
        ],
    )


@app.command("keys")
def make_keys(
    site: Annotated[str, typer.Option(help="The hospital's name in the federation.")],
    out: Annotated[Path, typer.Option(help="Folder for the keys.")],
    output_format: FormatOption = Format.text,
) -> None:
    """Make a hospital's keys, at the hospital; only SITE.pub and SITE.csr are for others.

    SITE.key proves to the SuperLink which node speaks, SITE-tls.key to the proxy that it is a
    hospital's machine, and SITE-sums.key to the other hospitals that it is the one that it says, in
    secure sums. None ever leaves this folder.

    Example: `sudo fedscan deploy keys --site north --out /etc/fedscan`
    """
    from simulations.deploy import keys, sums_keys

    folder = absolute(out)
    own = (f"{keys.check_site(site)}-tls.key", f"{site}.csr", f"{site}-sums.key")
    keys.require_free(folder, *own)
    private, request = keys.make_node_key(folder, site), keys.make_client_request(folder, site)
    of_sums = sums_keys.make_sums_key(folder, site)
    public = private.with_suffix(".pub")
    facts = {
        "site": site,
        "private": [str(private), str(folder / f"{site}-tls.key"), str(of_sums)],
        "public": [str(public), str(request)],
        "key_fingerprint": keys.key_fingerprint(public),
        "request_fingerprint": keys.request_fingerprint(request),
        "secure_sums": f"{site}:{sums_keys.sums_key(folder, site)}",
    }
    _tell(
        output_format,
        facts,
        [
            "These two files go to the coordinator, and no others:",
            f"  {public}  {facts['key_fingerprint']}",
            f"  {request}  SHA256 {facts['request_fingerprint']}",
            "Read the fingerprints to the coordinator on the telephone",
            "For secure sums, tell this to the other hospitals themselves, for their policies:",
            f"  {facts['secure_sums']}",
        ],
    )


@app.command()
def admit(
    request: Annotated[Path, typer.Argument(help="SITE.csr, as the hospital sent it.")],
    node_key: Annotated[
        Path | None, typer.Argument(help="SITE.pub; left out where a certificate is renewed.")
    ] = None,
    coordinator: CoordinatorOption = Path("/etc/fedscan"),
    out: Annotated[Path, typer.Option(help="Folder for SITE.crt.")] = Path(),
    output_format: FormatOption = Format.text,
) -> None:
    """Let a hospital in, at the coordinator: sign its certificate, which goes back to it.

    Compare the fingerprints with the hospital first, on the telephone: who can send files in its
    name could take part in its place.

    Example: `sudo fedscan deploy admit --coordinator /etc/fedscan north.csr north.pub`
    """
    from simulations.deploy import admission

    folder = absolute(coordinator)
    admitted = admission.admit(
        folder, absolute(request), node_key and absolute(node_key), absolute(out)
    )
    commands = ["sudo systemctl reload nginx"]
    if node_key:
        commands.append(f"flwr supernode register {node_key} hospitals")
    facts = {
        "site": admitted.site,
        "certificate": str(admitted.certificate),
        "serial": admitted.serial,
        "until": admitted.until,
        "request_fingerprint": admitted.request_fingerprint,
        "key_fingerprint": admitted.key_fingerprint,
        "other_certificates": admitted.others,
        "commands": commands,
    }
    node = [f"  {node_key}  {admitted.key_fingerprint}"] if node_key else []
    if admitted.others:
        node.append(
            f"  {admitted.others} other certificates of this site are admitted as well: if it has "
            "not asked for a new one, `fedscan deploy remove` takes all of them out"
        )
    _tell(
        output_format,
        facts,
        [
            f"Site {admitted.site} is admitted until {admitted.until}, if these are what it told:",
            f"  {request}  SHA256 {admitted.request_fingerprint}",
            *node,
            f"{admitted.certificate} goes back to it. Now:",
            *(f"  {one}" for one in commands),
        ],
    )


@app.command()
def remove(
    site: Annotated[str, typer.Option(help="The hospital to let in no more.")],
    coordinator: CoordinatorOption = Path("/etc/fedscan"),
    output_format: FormatOption = Format.text,
) -> None:
    """Let a hospital in no more, at the coordinator.

    Example: `sudo fedscan deploy remove --coordinator /etc/fedscan --site north`
    """
    from simulations.deploy import admission

    serials = admission.remove(absolute(coordinator), site)
    commands = [
        "sudo systemctl reload nginx",
        "flwr supernode list hospitals",
        "flwr supernode unregister NODE hospitals",
    ]
    _tell(
        output_format,
        {"site": site, "serials": serials, "commands": commands},
        [
            f"No certificate of site {site} is admitted any more. Now:",
            *(f"  {one}" for one in commands),
            "where NODE is its number in the list",
        ],
    )


@app.command()
def renew(
    coordinator: CoordinatorOption = Path("/etc/fedscan"),
    output_format: FormatOption = Format.text,
) -> None:
    """Make the server's key and certificate anew, at the coordinator; move the old ones away first.

    Example: `sudo fedscan deploy renew --coordinator /etc/fedscan`
    """
    from simulations.deploy import keys
    from simulations.deploy.folders import read_federation

    folder = absolute(coordinator)
    certificate = keys.make_server_certificate(folder, [read_federation(folder).host])
    command = "sudo systemctl restart fedscan-superlink nginx"
    _tell(
        output_format,
        {"certificate": str(certificate), "commands": [command]},
        [f"{certificate} is good for {keys.CERTIFICATE_DAYS} days. Now:", f"  {command}"],
    )


def _tell(output_format: Format, facts: dict[str, Any], lines: list[str]) -> None:
    if output_format is Format.json:
        typer.echo(json.dumps(facts))
        return
    for line in lines:
        typer.echo(line)
