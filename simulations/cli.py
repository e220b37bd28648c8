"""The command line: ``fedscan run``, ``benchmark``, ``supernode``, ``prepare``, ``check``, …."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from common.errors import ConfigError, DataContractError, FedscanError
from common.machine import is_out_of_memory
from simulations import (
    attendance_command,
    authenticity_command,
    check_command,
    clean_command,
    config_command,
    gate_commands,
    ledger_command,
    model_card_command,
    predict_command,
    prepare_commands,
    run_commands,
    strategies_command,
    studies_commands,
    supernode_command,
    track_command,
)
from simulations.attack import command as attack_command
from simulations.deploy import commands as deploy_commands
from simulations.explain import commands as explain_commands
from simulations.explore import command as explore_command
from simulations.gan import commands as gan_commands
from simulations.options import (
    CellTimeoutOption,
    CohortOption,
    DryRunOption,
    Format,
    FormatOption,
    GpusPerCellOption,
    RayAddressOption,
    ResumeOption,
    SetOption,
    SitesOption,
    StudyOption,
    TestScansOption,
    absolute,
    renamed_option,
    run_overrides,
)
from simulations.stopping import STOP, tell_at_once
from simulations.streams import BROKEN_PIPE, prepare_streams, written_out
from simulations.transfer import command as transfer_command

OUT_OF_MEMORY = (
    "out of memory. Lower the batch size (training.batch-size), the size of the images (data.size) "
    "or --count, or give the machine to this command alone; what is written is kept"
)

app = typer.Typer(
    name="fedscan",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # a value may identify somebody
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(metadata.version("fedscan"))
        raise typer.Exit


@app.callback()
def fedscan(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Federated learning on medical scans: hospitals keep their scans, share what they learn."""


app.add_typer(prepare_commands.app, name="prepare")
app.add_typer(studies_commands.app, name="studies")
app.add_typer(deploy_commands.app, name="deploy")
app.add_typer(gan_commands.app)
app.add_typer(explain_commands.app)
app.command()(attack_command.attack)
app.command()(authenticity_command.authenticity)
app.command()(ledger_command.privacy)
app.add_typer(gate_commands.app, name="gate")
app.command()(supernode_command.supernode)
app.command()(transfer_command.transfer)


app.command()(run_commands.run)
app.command()(run_commands.federate)


@app.command()
def benchmark(
    preset: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="A plan that comes with fedscan (see the names with --dry-run), or your own file.",
        ),
    ] = "default",
    arms: Annotated[
        str | None, typer.Option(help="Of centralized,local,federated; the preset's by default.")
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Of `fedscan strategies`, the preset's own variants, and auto, the study's."
        ),
    ] = None,
    repetitions: Annotated[
        int | None,
        typer.Option(min=1, help="Each has a new seed; simulated hospitals also get new people."),
    ] = None,
    first_repetition: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of the first, which is its seed; 0 is `fedscan run`'s.",
        ),
    ] = None,
    same_cohort: Annotated[
        bool, typer.Option("--same-cohort", help="The people of `fedscan run` in every repetition.")
    ] = False,
    seeds: Annotated[int | None, renamed_option("--seeds")] = None,
    first_seed: Annotated[int | None, renamed_option("--first-seed")] = None,
    centralized_batch: Annotated[
        str | None,
        typer.Option(help="large: equal steps and images; small: equal images, more steps."),
    ] = None,
    study: StudyOption = None,
    cohort: CohortOption = None,
    sites: SitesOption = None,
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("benchmark"),
    test_scans: TestScansOption = None,
    set_: SetOption = None,
    gpus_per_cell: GpusPerCellOption = 0.0,
    cell_timeout: CellTimeoutOption = 3600.0,
    ray_address: RayAddressOption = "",
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Compare centralized, local-only and federated training, and write a report.

    Every arm makes the same optimizer steps and sees the same number of images; a model that a site
    trains alone sees that site's share of them.

    For example:

    - `fedscan benchmark` — one repetition on three phantom hospitals
    - `fedscan benchmark --preset headline --out headline` — five, each with other people
    - `fedscan benchmark --preset plan.toml` — a plan of your own
    - `fedscan benchmark --strategies fedavg,fedprox --set strategy.mu=0.1`
    - `fedscan benchmark --study skin-lesions --set task=generation`
    - `fedscan benchmark --cohort ~/hospitals --dry-run`
    """
    from common.reading import read_json
    from simulations import compare

    del seeds, first_seed  # their options refuse any value
    if preset == transfer_command.PRESET:
        if arms or strategies or same_cohort or test_scans or centralized_batch:
            raise ConfigError(
                "--preset transfer has no arms and no strategies, and its test scans are the "
                "target's. See fedscan transfer --help for its options"
            )
        transfer_command.transfer(
            study=study,
            cohort=cohort,
            sites=sites,
            repetitions=repetitions,
            first_repetition=first_repetition,
            out=out,
            set_=set_,
            gpus_per_cell=gpus_per_cell,
            cell_timeout=cell_timeout,
            ray_address=ray_address,
            resume=resume,
            dry_run=dry_run,
            output_format=output_format,
        )
        return
    folder = compare.compare(
        compare.Request(
            preset=preset,
            overrides={
                "arms": arms and arms.split(","),
                "strategies": strategies and strategies.split(","),
                "repetitions": repetitions,
                "first-repetition": first_repetition,
                "same-cohort": same_cohort or None,
                "test-scans": test_scans,
                "centralized-batch": centralized_batch,
            },
            run=run_overrides(set_, study),
            cohort=cohort and absolute(cohort),
            sites=sites,
            out=absolute(out),
            gpus_per_cell=gpus_per_cell,
            cell_timeout=cell_timeout,
            ray_address=ray_address,
        ),
        resume=resume,
        dry_run=dry_run,
    )
    if folder is None:
        return
    summary = read_json(folder / "summary.json")
    if output_format is Format.json:
        typer.echo(json.dumps(summary))
    else:
        compare.show(summary)
        typer.echo(str(folder / "report.html"))
    if unfinished := compare.unfinished(folder):
        from common.errors import FedscanError

        raise FedscanError(
            f"{len(unfinished)} of the trainings did not end well: {', '.join(unfinished)}. "
            f"Their tracebacks are in {folder / 'cells'}; --resume runs them again (those that "
            "ended by timeout need a longer --cell-timeout), but for diverged ones, which would "
            "diverge again: give those other settings and another --out"
        )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison or a run.")],
) -> None:
    """Draw the report of a comparison or a run again from its files.

    Example: `fedscan report benchmark`
    """
    from simulations.report.document import write_report

    typer.echo(str(write_report(absolute(folder), files=True)))


app.command()(check_command.check)
app.command("model-card")(model_card_command.model_card)
app.command()(strategies_command.strategies)
app.command()(explore_command.explore)
app.command()(predict_command.predict)
app.command()(config_command.config)
app.command()(clean_command.clean)
app.command()(track_command.track)
app.command()(attendance_command.attendance)
app.command()(attendance_command.readmit)


def _interrupt(number: int, _: object) -> None:
    tell_at_once("Interrupted: ending what was started")
    sys.exit(128 + number)


def _fail(told: str, code: int) -> NoReturn:
    """Tell of an error and end; a name or value in it may be what somebody else has written."""
    from simulations.console import err

    err.print("[bold red]Error:[/] ", end="")
    shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in told)
    err.print(shown, markup=False, soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Run the command line; a user's mistake ends with one clear message, not a traceback."""
    # An exception, so that every block is left in order and nothing started is left behind.
    for number in STOP:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    # Ours say their modes themselves: this is for files of Flower, Ray and other libraries.
    os.umask(0o077)
    prepare_streams()
    try:
        with written_out():
            app()
    except BrokenPipeError:  # whoever reads the results has seen enough
        sys.exit(BROKEN_PIPE)
    except OSError as error:  # a full or broken disk: nothing that a traceback would explain
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1)
    except FedscanError as error:
        # 2: what was asked for, or the data, cannot be; 1: it was tried and failed.
        _fail(str(error), 2 if isinstance(error, ConfigError | DataContractError) else 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(OUT_OF_MEMORY, 1)


if __name__ == "__main__":
    main()
