"""``fedscan run`` and ``fedscan federate``: one federation, simulated or of separate processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConfigError
from simulations.options import (
    CohortOption,
    Format,
    FormatOption,
    RayAddressOption,
    SetOption,
    StudyOption,
    TestScansOption,
    absolute,
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
OutOption = Annotated[Path, typer.Option(help="Where the run's folder is made.")]
GpusOption = Annotated[
    float, typer.Option(min=0.0, help="Share of a GPU for each site, for example 0.33.")
]


def run(
    study: StudyOption = None,
    cohort: CohortOption = None,
    sites: SitesOption = None,
    out: OutOption = Path("runs"),
    test_scans: TestScansOption = None,
    set_: SetOption = None,
    gpus_per_site: GpusOption = 0.0,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs to use in all; every one by default.")
    ] = None,
    ray_address: RayAddressOption = "",
    output_format: FormatOption = Format.text,
) -> None:
    """Run a federation of simulated hospitals through Flower, and show each site's test result.

    Examples
    --------
    - `fedscan run` — three phantom hospitals
    - `fedscan run --study skin-lesions`
    - `fedscan run --study chest.toml --cohort ~/hospitals --set run.rounds=30`
    - `fedscan run --gpus-per-site 0.33 --set model.classifier=efficientnet-b2`
    - `fedscan run --set task=generation` — a generator of scans, with a report in its folder
    - `fedscan run --set run.seed=1 --format json > result.json`
    """
    from simulations.launch import Resources

    if ray_address and cohort is None:
        raise ConfigError(
            "--ray-address: name a --cohort too, in a folder that all nodes of the cluster see; "
            "`fedscan prepare` makes one of simulated hospitals"
        )
    if ray_address and cpus:
        raise ConfigError("--cpus: is for this machine; a Ray cluster has the CPUs of its nodes")
    config, number = _config(study, cohort, sites, out, test_scans, set_)
    resources = Resources(number, config.run.threads, gpus_per_site, cpus, ray_address)
    _show(config, output_format, resources=resources, test_scans=test_scans)


def federate(
    study: StudyOption = None,
    cohort: CohortOption = None,
    sites: SitesOption = None,
    out: OutOption = Path("runs"),
    test_scans: TestScansOption = None,
    set_: SetOption = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Policy of all sites, to try it out; they allow all without it."
        ),
    ] = None,
    gpus_per_site: GpusOption = 0.0,
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
    """
    from simulations.launch import Resources

    config, number = _config(study, cohort, sites, out, test_scans, set_)
    if not gpus_per_site:
        config = config.replace({"run.device": "cpu"})
    _show(
        config,
        output_format,
        resources=Resources(number, config.run.threads, gpus_per_site),
        test_scans=test_scans,
        separate=True,
        policy=policy and absolute(policy),
    )


def _config(
    study: str | None,
    cohort: Path | None,
    sites: int | None,
    out: Path,
    test_scans: int | None,
    set_: list[str] | None,
) -> tuple[RunConfig, int]:
    """Read the run config of a federation from the options; return the number of sites, too."""
    from common.tasks.task import read_run_config
    from simulations.hospitals import count_sites

    cohort = cohort and absolute(cohort)
    overrides = run_overrides(set_, study)
    if (
        clash := {"data.cohort-dir": "--cohort", "run.output-dir": "--out"}.keys()
        & overrides.keys()
    ):
        raise ConfigError(f"--set {min(clash)}: use --cohort and --out, which take any path")
    number = count_sites(cohort, sites, test_scans)
    config = read_run_config(
        {
            "run.min-sites": number,
            **overrides,
            "data.cohort-dir": str(cohort or ""),
            "run.output-dir": str(absolute(out)),
        }
    )
    if config.run.min_sites > number:
        raise ConfigError(
            f"--set run.min-sites={config.run.min_sites}, but {number} sites are simulated"
        )
    return config, number


def _show(config: RunConfig, output_format: Format, **how: Any) -> None:
    """Run a federation and show what came of it."""
    from simulations import federate as runs
    from simulations.console import show_run

    folder, summary = runs.federate(config, **how)
    if output_format is Format.json:
        typer.echo(json.dumps(summary))
    else:
        show_run(summary)
    if config.task == "generation":
        from simulations.report.document import write_report

        write_report(folder)
    if output_format is Format.text:
        typer.echo(str(folder))
