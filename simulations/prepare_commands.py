"""``fedscan prepare``: phantoms, and public archives sorted into hospitals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.data.archives import ARCHIVES
from common.data.phantoms.cohorts import PHANTOM_TEST
from common.errors import ConfigError
from simulations.dicom_command import dicom
from simulations.options import Format, FormatOption, absolute

if TYPE_CHECKING:
    from common.data.archive_sorting import Summary

PHANTOM_SITES = "north=200,south=120,island=20"

app = typer.Typer(help="Make data to work with.", no_args_is_help=True)
app.command()(dicom)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to make; one BIDS data set a site in it.")],
    sites: Annotated[
        str | None,
        typer.Option(
            help="name=N, with N training and validation subjects each; by default "
            f"{PHANTOM_SITES}."
        ),
    ] = None,
    test: Annotated[
        int | None,
        typer.Option(
            *("--test-scans", "--test"),
            min=0,
            help=f"Test subjects a site, on top of N; by default {PHANTOM_TEST}.",
        ),
    ] = None,
    sites_count: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Instead: N small sites, site-001 and so on, of the study skin-lesions.",
        ),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Of each of these N sites; by default 20.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
) -> None:
    """Make a cohort of phantom hospitals with a known truth: brains, or N small sites' pictures.

    For example:

    - `fedscan prepare phantom cohort --sites north=200,island=20 --test-scans 60 --seed 0`
    - `fedscan prepare phantom many --sites-count 500`
    """
    from common.imaging.cohorts import write_cohort
    from simulations import console

    folder = absolute(out)
    if sites_count is not None:
        if sites is not None or test is not None:
            raise ConfigError(
                "--sites-count makes small sites with pictures, --sites and --test-scans are of "
                "brains: give one or the other"
            )
        _small_sites(folder, sites_count, pictures or 20, seed)
        console.err.print(
            f"Pictures of the study skin-lesions: fedscan run --study skin-lesions --cohort {out}",
            markup=False,
            soft_wrap=True,
        )
    elif pictures is not None:
        raise ConfigError("--pictures: goes with --sites-count alone")
    else:
        sizes = _numbers("--sites", PHANTOM_SITES if sites is None else sites)
        test = PHANTOM_TEST if test is None else test
        with console.steps("Making phantom scans", sum(sizes.values()) + test * len(sizes)) as bar:
            write_cohort(folder, sizes, n_test=test, seed=seed, progress=bar.advance)
    typer.echo(str(out))


def _small_sites(folder: Path, count: int, pictures: int, seed: int) -> None:
    from common.data.phantoms.small_hospitals import write_small_hospitals
    from common.machine import usable_cpus
    from simulations import console

    workers = min(usable_cpus(), 1 + count * pictures // 400)  # a process takes a second to start
    with console.steps("Making small sites", count) as bar:
        write_small_hospitals(
            *(folder, count),
            **{"pictures": pictures, "seed": seed},
            **{"workers": workers, "progress": bar.advance},
        )


@app.command()
def lesions(
    out: Annotated[Path, typer.Argument(help="Folder to make; one folder a hospital in it.")],
    patients: Annotated[
        str | None,
        typer.Option(
            help="name=N, of north, south and island, with N patients each; by default 1000, 500 "
            "and 100."
        ),
    ] = None,
    test: Annotated[
        int | None,
        typer.Option(
            *("--test-scans", "--test"),
            min=1,
            help="Test patients a hospital, as it sees them; by default a fifth of N, and where no "
            "N is given, so many more that 20 have each diagnosis.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    size: Annotated[int, typer.Option(min=8, max=1024, help="Pixels along each side.")] = 64,
) -> None:
    """Make phantom hospitals with dermatoscopic pictures of eight diagnoses.

    Example: `fedscan prepare lesions hospitals --patients north=200,island=20 --seed 0`
    """
    from common.data.phantoms.lesion_cohorts import HOSPITALS, write_hospital
    from common.machine import usable_cpus
    from simulations import console

    default = {name: hospital.patients for name, hospital in HOSPITALS.items()}
    numbers = _numbers("--patients", patients) if patients is not None else default
    folder = absolute(out)
    for name, number in numbers.items():
        if name not in HOSPITALS:
            raise ConfigError(f"--patients {name}: accepted are {', '.join(HOSPITALS)}")
        if not number:
            raise ConfigError(f"--patients {name}=0: accepted is a whole number of 1 or more")
        if (folder / name).is_dir() and any((folder / name).iterdir()):
            raise ConfigError(
                f"'{folder / name}' exists and is not empty: name another folder, or remove it "
                "first"
            )
    total = sum(numbers.values())
    workers = min(usable_cpus(), 1 + total // 80)  # a process takes some seconds to start
    with console.steps("Photographing phantom patients", total) as bar:
        for name, number in numbers.items():
            write_hospital(
                folder,
                name,
                seed=seed,
                patients=None if patients is None else number,
                test=test,
                size=size,
                workers=workers,
                progress=bar.advance,
            )
    typer.echo(str(out))


def _archive_command(name: str) -> None:
    """Add the command of an archive."""
    archive = ARCHIVES[name]

    def command(
        source: Annotated[
            Path,
            typer.Argument(metavar="INPUT", help="Folder with zips or pictures and tables; a zip."),
        ],
        out: Annotated[Path, typer.Option(help="Folder to make; one folder a hospital in it.")],
        by: Annotated[
            str | None, typer.Option(help="Column of the tables whose values are the hospitals.")
        ] = None,
        sites: Annotated[
            str | None,
            typer.Option(help="name=PART,…: draw hospitals at random, patients kept together."),
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
        keep_split: Annotated[
            bool, typer.Option("--keep-split", help="Keep the published split, leaks and all.")
        ] = False,
        keep_unlabelled: Annotated[
            bool,
            typer.Option("--keep-unlabelled", help="Keep pictures without a known diagnosis."),
        ] = False,
        copy: Annotated[
            bool, typer.Option("--copy", help="Copy pictures even where a hard link would do.")
        ] = False,
        output_format: FormatOption = Format.text,
    ) -> None:
        from common.data.archive_sorting import Sorting, sort_archive
        from simulations.console import counting

        how = Sorting(
            by=by or "",
            shares=_shares(sites) if sites is not None else {},
            seed=seed,
            keep_split=keep_split,
            keep_unlabelled=keep_unlabelled,
            copy=copy,
        )
        folder = absolute(out)
        with counting("Sorting pictures") as count:
            summary = sort_archive(
                name,
                absolute(source),
                folder,
                how,
                progress=lambda site, done, total: count(done, total, site),
            )
        if output_format is Format.json:
            typer.echo(json.dumps({**summary.to_dict(), "out": str(folder)}))
        else:
            _show(summary)
            typer.echo(str(out))

    told = "" if archive.centre else " --sites north=0.5,south=0.3,island=0.2"
    command.__doc__ = f"""Sort {archive.title}, into one folder a hospital.

    Example: `fedscan prepare {name} ~/downloads/{name} --out hospitals{told}`
    """
    app.command(name)(command)


for _name in ARCHIVES:
    _archive_command(_name)


def _show(summary: Summary) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import counted, out

    names = sorted({name for one in summary.hospitals.values() for name in one.diagnoses})
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))  # narrow: eight diagnoses and more
    table.add_column("hospital", no_wrap=True)
    for heading in ("pictures", "groups", *(escape(name) or "unknown" for name in names)):
        table.add_column(heading, justify="right")
    for site, one in summary.hospitals.items():
        counts = [one.images, one.groups, *(one.diagnoses.get(name, 0) for name in names)]
        table.add_row(escape(site), *map(str, counts))
    out.print(table)
    for reason, count in summary.left_out.items():
        out.print(f"{count} left out: {reason}", markup=False, soft_wrap=True)
    for note, count in summary.notes.items():
        out.print(f"{counted(count, 'time')}: {note}", markup=False, soft_wrap=True)
    if leaks := summary.published_leaks:
        kept = "It was kept, as asked" if summary.split_kept else "It was not kept"
        line = (
            f"The published split leaks: {leaks['test']} of {leaks['all_test']} test pictures show "
            f"a patient or lesion that is also in another part. {kept}."
        )
        out.print(line if leaks["groups"] else f"The published split does not leak. {kept}.")


def _numbers(option: str, text: str) -> dict[str, int]:
    """Read name=N,name=N,…."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if not number.isdecimal() or name in found:
            raise ConfigError(f"{option} {text}: accepted is name=N,name=N,… with each name once")
        found[name] = int(number)
    return found


def _shares(text: str) -> dict[str, float]:
    """Read name=PART,name=PART,…."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not 0 < share < math.inf or name in found:
            raise ConfigError(
                f"--sites {text}: accepted is name=PART,name=PART,… with positive numbers, "
                "of which the sum is the whole, and each name once"
            )
        found[name] = share
    return found
