"""``fedscan gate``: a hospital's policy, approved apps and ledger, and what a run would send."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError
from simulations.options import (
    Format,
    FormatOption,
    SetOption,
    StudyOption,
    absolute,
    run_overrides,
)

if TYPE_CHECKING:
    from clients.gateway.bundle import Bundle
    from clients.gateway.explain import Explanation, Leaving

HEAD = re.compile("[0-9a-f]{8,64}")
MOST_SHOWN = 20  # files of a bundle that differ
MOST_NAMES = 12  # of numbers, in a line
STAYS = (
    "scans, names, labels and table; predictions; optimizer states; the ledger; the policy but for "
    "min-participants"
)

app = typer.Typer(
    help="Rule what may leave a hospital: policy, approved apps, ledger.", no_args_is_help=True
)
PolicyOption = Annotated[
    Path, typer.Option(metavar="FILE", help="The site's policy; the list of apps lies beside it.")
]
NoteOption = Annotated[str, typer.Option(help="Why, for the list.")]


@app.command()
def policy(
    site: Annotated[str, typer.Option(help="The hospital's name in the federation.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write; there must be none.")],
) -> None:
    """Write a policy to edit: every key with its default and what it means.

    Example: `fedscan gate policy --site north --out policy.toml`
    """
    from clients.gateway.policy import default_policy_text
    from common.files import write_atomically

    text = default_policy_text(site)
    if (path := absolute(out)).exists():
        raise ConfigError(f"--out {out}: it is there already; move it away first")
    write_atomically(path, text.encode())
    _tell(str(path))


@app.command()
def approve(
    policy: PolicyOption,
    app: Annotated[
        str | None, typer.Argument(metavar="FILE.fab|HASH", help="A bundle, or its SHA-256.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="The bundle of the fedscan installed here.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Also if its code is not the code installed here."),
    ] = False,
    note: NoteOption = "",
) -> None:
    """Approve an app: the gate runs its code on this hospital's data, and no other.

    A bundle's files are compared with the fedscan that is installed here. One with other files is
    shown, and not approved without `--accept-changes`: read these files first.

    Examples
    --------
    - `fedscan gate approve --installed --policy policy.toml`
    - `fedscan gate approve fedscan.fedscan.0-1-0.1a2b3c4d.fab --policy policy.toml`
    - `fedscan gate approve $HASH --policy policy.toml --note "release 0.1, as announced"`
    """
    from clients.gateway.approvals import HASH, Approvals
    from clients.gateway.bundle import build_installed, describe, read_bundle

    if installed == (app is not None):
        raise ConfigError("give a bundle, or its hash, or --installed: one of them")
    approvals = Approvals.beside(_policy(policy))
    if app is not None and HASH.fullmatch(app):
        approvals.approve(app, note)
        _tell(f"Approved: {app}, which nobody has looked into")
        return
    bundle = describe(build_installed()) if app is None else read_bundle(absolute(Path(app)))
    for line in _about(bundle):
        _tell(line)
    if not (bundle.identical or accept_changes):
        raise ConfigError(
            "not approved: its code is not the code installed here. Read the files that differ; "
            "--accept-changes approves them"
        )
    approvals.approve(bundle, note)
    _tell("Approved")


@app.command()
def revoke(
    digest: Annotated[str, typer.Argument(metavar="HASH", help="Of the app, or its beginning.")],
    policy: PolicyOption,
    note: NoteOption = "",
) -> None:
    """Take an app's approval back: its next task is refused.

    Example: `fedscan gate revoke 1a2b3c4d --policy policy.toml`
    """
    from clients.gateway.approvals import Approvals

    one = Approvals.beside(_policy(policy)).revoke(digest, note)
    _tell(f"Revoked: {one.hash}")


@app.command("list")
def list_(policy: PolicyOption, output_format: FormatOption = Format.text) -> None:
    """List the approved apps.

    Example: `fedscan gate list --policy policy.toml --format json`
    """
    from clients.gateway.approvals import Approvals

    found = Approvals.beside(_policy(policy)).current()
    if output_format is Format.json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    code = {True: "the code installed here", False: "other code", None: "nobody looked into it"}
    for one in found:
        version = f" {one.version}" if one.version else ""
        note = f": {one.note}" if one.note else ""
        _tell(one.hash)
        _tell(f"    {one.name}{version}, {code[one.identical]}; by {one.by}, {one.when}{note}")
    if not found:
        _tell("No app is approved: every run is refused")


@app.command()
def verify(
    ledger: Annotated[Path, typer.Argument(help="The site's ledger.jsonl.")],
    head: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="A hash that the gate told: it must still be there."),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Look for changed, missing and reordered lines of a ledger; exit code 1 if there are any.

    Only with `--head`, noted elsewhere, a missing end or a ledger written anew is found.

    Examples
    --------
    - `fedscan gate verify /var/lib/fedscan/ledger.jsonl`
    - `fedscan gate verify ledger.jsonl --head 5f2b…`
    """
    from clients.gateway.chain import last_line
    from clients.gateway.chain import verify as verify_ledger

    if head is not None and not HEAD.fullmatch(head := head.lower()):
        raise ConfigError("--head: accepted are 8 to 64 hexadecimal digits, as the gate tells them")
    found = verify_ledger(absolute(ledger), head)
    faults = [one for one in found if one.fault]
    number, last = last_line(absolute(ledger))
    if output_format is Format.json:
        findings = [asdict(one) for one in found]
        typer.echo(json.dumps({"lines": number, "head": last, "findings": findings}))
    else:
        for one in found:
            _tell(one.words)
        if not faults:
            _tell(f"{number} lines are chained; the last one has hash {last}")
            if head is None:
                _tell("Whether that one was changed, or others cut off after it, only --head tells")
    if faults:
        raise typer.Exit(1)


@app.command()
def explain(
    policy: PolicyOption,
    site: Annotated[str, typer.Option(help="The hospital's name in the federation.")],
    data_dir: Annotated[Path, typer.Option(help="Folder of its data; no image is opened.")],
    study: StudyOption = None,
    set_: SetOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Say what of this hospital would leave it in a run, before the run starts.

    Give the run's study and settings as the researcher has announced them.

    Examples
    --------
    - `fedscan gate explain --policy policy.toml --site north --data-dir /data/north`
    - `fedscan gate explain --policy policy.toml --site north --data-dir /data/north
      --study skin-lesions --set run.rounds=30 --set strategy.name=fedprox`
    """
    from clients.gateway.explain import explain as explain_run
    from clients.gateway.policy import read_policies
    from common.extensions import allow_only
    from common.tasks.task import read_run_config

    of_site, of_gate = read_policies(absolute(policy))
    allow_only(of_site.allowed_extensions)
    overrides = run_overrides(set_, study, allowing=False)  # the researcher's words
    config = read_run_config(overrides)
    told = explain_run(config, of_site, of_gate, site=site, data_dir=absolute(data_dir))
    if output_format is Format.json:
        typer.echo(json.dumps(asdict(told)))
        return
    for line in lines(told):
        _tell(line)


def lines(told: Explanation) -> Iterator[str]:
    """Say in plain words what would leave."""
    people = ", ".join(f"{count} to {name}" for name, count in told.people.items())
    people = people.replace("to val", "to validate")
    yield (
        f"Site {told.site}: study {told.study}, {told.task}, strategy {told.strategy}, "
        f"{told.rounds} rounds"
    )
    yield f"People with a label: {people}"
    if told.refused:
        yield "REFUSED. Nothing leaves but that it is refused:"
        yield from (f"  - {why}" for why in told.refused)
        yield "Otherwise would leave:"
    else:
        yield "The policy accepts this run. What leaves:"
    for one in told.messages:
        yield from _message(one)
    times = sum(one.times for one in told.messages)
    yield f"  {times} messages, with weights and statistics of up to {_size(told.bytes)} in all"
    digits = f"rounded to {told.digits} digits" if told.digits else "as they are"
    words = "with the words of the error" if told.error_words else "without any words"
    yield from (f"  {one}" for one in told.changes)
    yield f"  Numbers leave {digits}; errors as their kind and phase, {words}"
    yield f"What stays: {STAYS}"


def _message(one: Leaving) -> Iterator[str]:
    size = f", {_size(one.bytes)} each" if one.bytes else ""
    yield f"* {one.what}: {one.times} time{'s' * (one.times != 1)}{size}"
    if one.arrays:
        of_type = sorted({kind for _, kind in one.arrays.values()})
        largest = max(one.arrays, key=lambda name: _length(one.arrays[name][0]))
        shape = "x".join(map(str, one.arrays[largest][0])) or "one number"
        yield (
            f"    {len(one.arrays)} arrays of {' and '.join(of_type)}, the largest {largest} "
            f"({shape})"
        )
    parts = {"counts": one.counts, "words": one.words, "numbers": one.metrics}
    yield "    " + "; ".join(f"{what}: {_names(names)}" for what, names in parts.items() if names)
    if one.withheld:
        yield f"    withheld, since {one.why}: {_names(one.withheld)}"


def _names(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _length(shape: list[int]) -> int:
    import math

    return math.prod(shape)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _about(bundle: Bundle) -> Iterator[str]:
    yield f"{bundle.publisher}/{bundle.name} {bundle.version}"
    yield f"SHA-256 {bundle.hash}"
    if bundle.identical:
        yield "Identical to the fedscan installed here, file by file"
        return
    kinds = {"changed": bundle.changed, "added": bundle.added, "missing": bundle.missing}
    for kind, names in kinds.items():
        yield from (f"  {kind}: {name}" for name in names[:MOST_SHOWN])
        if len(names) > MOST_SHOWN:
            yield f"  {kind}: {len(names) - MOST_SHOWN} more"


def _policy(path: Path) -> Path:
    """Return the policy's path: a list beside a file that is not there would be nobody's."""
    if not (path := absolute(path)).is_file():
        raise ConfigError(f"--policy {path}: there is no such file; see fedscan gate policy")
    return path


def _tell(line: str) -> None:
    from simulations.console import out

    out.print(line, markup=False, soft_wrap=True)
