"""``fedscan run`` and ``fedscan federate``: one federation, simulated or of separate processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConfigError
from simulations.options import (
    CohortOption,
    ConfigOption,
    Format,
    FormatOption,
    RayAddressOption,
    SetOption,
    StudyOption,
    TestScansOption,
    absolute,
    finite,
    run_overrides,
)

if TYPE_CHECKING:
    from common.config.run_config import RunConfig

SitesOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Phantom hospitals to simulate; 3 by default. The last has few images."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Where the run's folder is made; by default in runs.")
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with an interrupted run, given its folder, from its last whole round.",
    ),
]
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-change",
        metavar="KEY",
        help="With --resume: a key that may be another than at the beginning; repeatable.",
    ),
]
GpusOption = Annotated[
    float,
    typer.Option(min=0.0, callback=finite, help="Share of a GPU for each site, for example 0.33."),
]


def run(
    study: StudyOption = None,
    cohort: CohortOption = None,
    sites: SitesOption = None,
    out: OutOption = None,
    test_scans: TestScansOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    gpus_per_site: GpusOption = 0.0,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs to use in all; every one by default.")
    ] = None,
    ray_address: RayAddressOption = "",
    resume: ResumeOption = None,
    accept_change: AcceptOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Run a federation of simulated hospitals through Flower, and show each site's test result.

    Examples
    --------
    - `fedscan run` — three phantom hospitals
    - `fedscan run --study skin-lesions`
    - `fedscan run --config run.toml --set run.seed=1` — `fedscan config --out run.toml` writes one
    - `fedscan run --study chest.toml --cohort ~/hospitals --set run.rounds=30`
    - `fedscan run --gpus-per-site 0.33 --set model.classifier=efficientnet-b2`
    - `fedscan run --set task=generation` — a generator of scans
    - `fedscan run --set run.seed=1 --format json > result.json`
    - `fedscan run --resume runs/2026-11-29-1015-brain-sex-fedavg` — after an interruption
    """
    from simulations.launch import Resources

    if ray_address and cpus:
        raise ConfigError("--cpus: is for this machine; a Ray cluster has the CPUs of its nodes")
    if resume:
        _resume(
            resume,
            {"--cpus": cpus, **_of_begin(config, sites, out, test_scans, gpus_per_site)},
            *(study, cohort, set_, accept_change, output_format),
            separate=False,
            ray_address=ray_address,
        )
        return
    asked, number = _config(config, study, cohort, sites, out, test_scans, set_)
    _require_cohort(asked, ray_address)
    resources = Resources(number, asked.run.threads, gpus_per_site, cpus, ray_address)
    _show(asked, output_format, resources=resources, test_scans=test_scans)


def federate(
    study: StudyOption = None,
    cohort: CohortOption = None,
    sites: SitesOption = None,
    out: OutOption = None,
    test_scans: TestScansOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Policy of all sites, to try it out; they allow all without it."
        ),
    ] = None,
    gpus_per_site: GpusOption = 0.0,
    resume: ResumeOption = None,
    accept_change: AcceptOption = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Run a federation of separate processes on this machine, as hospitals would.

    A SuperLink with TLS and node keys, and for each site a SuperNode with its gate and sandbox. It
    takes the options of `fedscan run` and gives the same results.

    Examples
    --------
    - `fedscan federate` — three phantom hospitals
    - `fedscan federate --study chest.toml --cohort ~/hospitals --set run.rounds=30`
    - `fedscan federate --policy policy.toml` — would a hospital's policy allow the run?
    - `fedscan federate --resume runs/2026-11-29-1015-brain-sex-fedavg`
    """
    from simulations.launch import Resources

    if resume:
        _resume(
            resume,
            {"--policy": policy, **_of_begin(config, sites, out, test_scans, gpus_per_site)},
            *(study, cohort, set_, accept_change, output_format),
            separate=True,
        )
        return
    asked, number = _config(config, study, cohort, sites, out, test_scans, set_)
    if not gpus_per_site:
        asked = asked.replace({"run.device": "cpu"})
    _show(
        asked,
        output_format,
        resources=Resources(number, asked.run.threads, gpus_per_site),
        test_scans=test_scans,
        separate=True,
        policy=policy and absolute(policy),
    )


def _of_begin(
    config: Path | None,
    sites: int | None,
    out: Path | None,
    test_scans: int | None,
    gpus_per_site: float,
) -> dict[str, Any]:
    """Return what a run is begun with, of which a resumed one takes nothing new."""
    return {
        "--config": config,
        "--sites": sites,
        "--out": out,
        "--test-scans": test_scans,
        "--gpus-per-site": gpus_per_site or None,
    }


def _resume(
    folder: Path,
    fixed: Mapping[str, Any],
    study: str | None,
    cohort: Path | None,
    set_: list[str] | None,
    accepted: list[str] | None,
    output_format: Format,
    *,
    separate: bool,
    ray_address: str = "",
) -> None:
    """Go on with a run, as it was begun; a Ray cluster may be at another address by now."""
    from simulations.resume import resumed

    if given := [option for option, value in fixed.items() if value is not None]:
        raise ConfigError(f"{given[0]}: leave it out, --resume goes on as the run was begun")
    overrides = run_overrides(set_, study)
    if cohort:
        overrides["data.cohort-dir"] = str(absolute(cohort))
    launch = resumed(absolute(folder), overrides, accepted or [], separate=separate)
    _require_cohort(launch.config, ray_address)
    address = ray_address or launch.resources.ray_address
    _show(
        launch.config,
        output_format,
        resources=replace(launch.resources, ray_address=address),
        phantoms=None if launch.config.data.cohort_dir else launch.folders,
        separate=separate,
        policy=launch.policy,
    )


def _require_cohort(config: RunConfig, ray_address: str) -> None:
    if ray_address and not config.data.cohort_dir:
        raise ConfigError(
            "--ray-address: name a --cohort too, in a folder that all nodes of the cluster see; "
            "`fedscan prepare` makes one of simulated hospitals"
        )


def _config(
    file: Path | None,
    study: str | None,
    cohort: Path | None,
    sites: int | None,
    out: Path | None,
    test_scans: int | None,
    set_: list[str] | None,
) -> tuple[RunConfig, int]:
    """Read the run config of a federation from the options; return the number of sites, too."""
    from simulations.config_file import asked_run

    return asked_run(
        file and absolute(file),
        run_overrides(set_, study),
        cohort=cohort and absolute(cohort),
        sites=sites,
        out=out and absolute(out),
        test_scans=test_scans,
    )


def _show(config: RunConfig, output_format: Format, **how: Any) -> None:
    """Run a federation and show what came of it."""
    from simulations import federate as runs
    from simulations.console import show_run

    folder, summary = runs.federate(config, **how)
    if output_format is Format.json:
        typer.echo(json.dumps(summary))
    else:
        from simulations.ledger_tables import show_promises

        show_run(summary)
        show_promises(summary)
    report = write_run_report(folder, files=config.task == "generation")
    if output_format is Format.text:
        if report:
            typer.echo(f"Report: {report}")
        typer.echo(str(folder))


def write_run_report(folder: Path, *, files: bool) -> Path | None:
    """Draw a run's report; without one, a warning, since the run itself is whole."""
    from simulations.console import err
    from simulations.report.document import write_report
    from simulations.site_details import keep_details

    try:
        keep_details(folder)
        return write_report(folder, files=files)
    except Exception as error:  # whatever a library makes of odd numbers, or a full disk
        words = f"Warning: the report could not be drawn ({error}). The run is whole; "
        words += f"`fedscan report {folder}` tries again"
        err.print(words, markup=False, soft_wrap=True)
        return None
