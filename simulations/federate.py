"""One federated run from configuration to summary, followed on the console."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from clients.gateway.policy import read_policies, read_sums
from clients.policy import VARIABLE, SitePolicy
from common.config.run_config import RunConfig
from common.data.phantoms.cohorts import phantom_cohort
from common.errors import ConfigError, DataContractError, FedscanError
from common.files import make_folder
from common.metrics_log import WHOLE, MetricsTail, Row
from common.paths import cache_dir, site_records
from common.processes.environment import require_plain_path
from common.reading import read_json
from common.rounds import require_number, require_sites
from common.run_folder import FAILURE, MANIFEST, METRICS, SUMMARY, cut_logs
from common.selection import due
from simulations import console
from simulations.folders import require_writable
from simulations.hospitals import prepare_phantoms, site_names
from simulations.launch import (
    SHARED_NETWORK,
    FlowerRun,
    Resources,
    flower_run,
)
from simulations.private_state import clean_up_after_killed, looked_after, mark_ended
from simulations.resume import Launch, way_on
from simulations.run_name import claim_name
from simulations.separate import keep_ledgers, separate_run
from simulations.why import why

if TYPE_CHECKING:
    from common.data.image_table import ImageTable

POLL_SECONDS = 0.5
MOST_NAMED = 10  # sites of which a line of progress tells each by its name
MOST_OPENED, SEEN = 20, 32  # images of a split before a run, and their pixels or voxels a side
CLOSING_SECONDS = 60.0  # in which Flower and Ray may end by themselves, once the run is decided


class RunFailed(FedscanError):
    """A run ended without a result."""


def survey_cohort(config: RunConfig, *, quiet: bool = False) -> None:
    """Read every hospital's table, which its owner may, before anything is started.

    Of each split some images are opened, until one can be used. Unless it is to be quiet, it warns
    of hospitals whose given split parts persons.

    Raises
    ------
    ConfigError
        A table cannot be used under the run's study, none of a split's images that were opened can
        be, the sites are too few for the strategy, or the run names one that there is not.
    """
    if not config.data.cohort_dir:
        return
    from common.data.check import MISSING_TABLES
    from common.data.likely import likely
    from common.data.site_data import parted_groups, read_table
    from common.imaging.bids import list_sites
    from common.tasks.task import survey_table

    sites = list_sites(Path(config.data.cohort_dir))
    require_sites(config, sites)
    for site, folder in sites.items():
        try:
            table = read_table(config.read_study(), site, folder)
            survey_table(table, config)
            _require_readable(table, config)
        except DataContractError as error:
            study = config.read_study().name
            guess = likely(folder) if error.problem in MISSING_TABLES else ""
            raise ConfigError(
                f"{error}\nThat is under study '{study}': --study names another, and `fedscan "
                "check` tells of every file" + (guess and f". By the looks of it, {guess}")
            ) from None
        if not quiet and (parted := parted_groups(table)):
            console.err.print(f"Warning: {parted}", markup=False, soft_wrap=True)


def _require_readable(table: ImageTable, config: RunConfig) -> None:
    """Open images of each split until one can be used.

    Raises
    ------
    DataContractError
        None of the first few can, nor are there others.
    """
    from common.data.site_data import reader_of
    from common.imaging.splits import SPLITS

    study = config.read_study()
    read = reader_of(study).read_image
    for split in SPLITS:
        rows = table.rows(split)
        fault: DataContractError | None = None
        for row in rows[:MOST_OPENED]:
            path = table.root / table.files[row]
            try:
                read(path, study, size=SEEN, heights_mm=(), root=table.root, site=table.site)
            except DataContractError as error:
                fault = fault or error
            else:
                break
        else:
            if fault is not None and len(rows) <= MOST_OPENED:
                raise fault


def check_checkpoint(config: RunConfig, sites: int) -> None:
    """Read what a classifier begins with, before Flower and Ray are started.

    Parameters
    ----------
    config : RunConfig
    sites : int
        How many phantom hospitals take part, where there is no cohort.

    Raises
    ------
    ConfigError
        If it cannot be read, or is of other networks.
    """
    if not (config.model.gan_checkpoint or config.model.warm_start):
        return
    import torch

    from common.imaging.bids import list_sites
    from common.tasks.task import SiteContext, load_task

    cohort = (
        list_sites(Path(config.data.cohort_dir))
        if config.data.cohort_dir
        else phantom_cohort(config.study).subjects(sites)
    )
    place = SiteContext("", tuple(sorted(cohort)), torch.device("cpu"))
    task = load_task(config.task)
    try:
        task.warm_start(task.build_model(config, place), config)
    except ConfigError:
        raise
    except FedscanError as error:
        raise ConfigError(f"model.gan-checkpoint: {error}") from None


def check_extractor(config: RunConfig) -> None:
    """Read what judges pictures, where it is a user's own file, before anything is started.

    Raises
    ------
    ConfigError
        If it cannot be read, or is no network that is accepted.
    """
    from common.evaluation.extractor import DEFAULTS, load_extractor

    if config.task != "generation" or config.model.extractor in DEFAULTS:
        return
    if not Path(config.model.extractor).is_absolute():
        raise ConfigError(
            f"model.extractor = '{config.model.extractor}': give the absolute path, since sites "
            "work in folders of their own"
        )
    load_extractor(config.model.extractor, cache_dir()).require_features()


def federate(
    config: RunConfig,
    resources: Resources,
    *,
    phantoms: Mapping[str, Path] | None = None,
    test_scans: int | None = None,
    separate: bool = False,
    policy: Path | None = None,
    quiet: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Run a federation through Flower and wait for its end.

    Parameters
    ----------
    config : RunConfig
        ``output_dir`` must be set. A run without an id gets a name of its own:
        :func:`simulations.run_name.claim_name`.
    resources : Resources
    phantoms : mapping of str to Path, optional
        Folders of simulated hospitals, where there is no cohort; by default those of every run.
    test_scans : int, optional
        Test subjects of each of these, other than the default.
    separate : bool
        Whether sites are separate processes behind gates (:mod:`simulations.separate`) instead of
        actors of Flower's simulation.
    policy : Path, optional
        The policy of all sites; by default their owner, the researcher, bounds nothing.
    quiet : bool
        Show nothing on the way.

    Returns
    -------
    tuple of Path and dict
        The run folder and its summary.

    Raises
    ------
    ConfigError, DataContractError
        Before anything is started.
    RunFailed
        With the failed site's name, phase and traceback, or the end of Flower's log.
    """
    from common.imaging.bids import list_sites
    from common.tasks.task import survey

    if not separate:
        require_plain_path()
    resources.check()
    require_number(config, resources.sites)
    own = read_policies(policy)[0] if policy else SitePolicy.of_site(simulated=True)
    if policy:
        read_sums(policy)  # wrong here is told now, not by each site when it has started
    if refused := own.objections(config):
        what = f"the policy {policy}" if policy else f"the policy that {VARIABLE} names"
        raise ConfigError(f"{what} refuses this run: {'; '.join(refused)}")
    check_checkpoint(config, resources.sites)
    check_extractor(config)
    survey_cohort(config, quiet=quiet)
    require_writable(Path(config.run.output_dir), "--out")
    require_writable(cache_dir(), "the cache, FEDSCAN_CACHE")
    require_writable(site_records("any").parent, "the sites' own records, FEDSCAN_RECORDS")
    if config.data.cohort_dir:
        folders, phantoms = list_sites(Path(config.data.cohort_dir)), None
    else:
        names = site_names(None, config.study, resources.sites)
        require_sites(config, names)
        phantoms = phantoms or prepare_phantoms(config.study, names, test=test_scans, quiet=quiet)
        if config.model.adapt == "center":  # which not every site's classes allow
            for site, folder in phantoms.items():
                survey(site, folder, config)
        folders = phantoms
    clean_up_after_killed()
    if not config.run.id:
        config = config.replace({"run.id": claim_name(config)})
    folder = Path(config.run.output_dir) / config.run.id
    with looked_after(folder):  # until every process has ended: a site would save its round
        make_folder(folder)
        launch = Launch(config, resources, folders, separate=separate, policy=policy)
        launch.write(folder)
        (folder / FAILURE).unlink(missing_ok=True)
        if config.run.resume:
            cut_logs(folder)  # before they are followed
        if separate:
            run = separate_run(config, folders, folder, policy)
        else:
            run = flower_run(config, resources, phantoms)
        log = _through_flower(config, run, folder, quiet=quiet)
        keep_ledgers(folder)
    # It writes one of the two as its last; with neither, its process has died.
    if (folder / SUMMARY).is_file() and not (folder / FAILURE).is_file():
        return folder, read_json(folder / SUMMARY)
    words = why(folder, log)
    if not (folder / FAILURE).is_file():
        mark_ended(folder, words)
    raise RunFailed("\n".join(filter(None, (words, way_on(folder)))))


def _through_flower(
    config: RunConfig,
    started: contextlib.AbstractContextManager[FlowerRun],
    folder: Path,
    *,
    quiet: bool,
) -> str:
    """Run it, until every process has ended; return Flower's log."""
    told = False  # why it failed, by the run itself
    try:
        with started as run:
            try:
                with console.steps("Round", config.run.rounds, quiet=quiet) as bar:
                    if run.shares_network:
                        bar.tell(SHARED_NETWORK)
                    if objections := SitePolicy().objections(config):
                        bar.tell(
                            "Note: this simulation goes on, but a hospital's default policy would "
                            f"refuse it: {'; '.join(objections)}"
                        )
                    bar.say("starting Flower")
                    _follow(run, config, folder, bar)
            finally:
                told = (folder / FAILURE).is_file()
                with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
                    run.save_logs(folder)
            return run.log()
    except BaseException:
        # Only now has every process ended: the server would say how it died.
        if not told:
            mark_ended(folder)
        if not quiet and (words := way_on(folder)):
            console.err.print(words, markup=False, soft_wrap=True)
        raise


def _follow(run: FlowerRun, config: RunConfig, folder: Path, bar: console.Steps) -> None:
    """Show the rounds as they are written to the log of metrics, until the run is over."""
    log, rows = MetricsTail(folder / METRICS), []
    if config.run.resume and (rows := log.new_rows()):
        _show_new_rounds(rows, bar, config, before=True)
        bar.tell(f"Resumed after round {bar.done}; the rounds before it are not told again")
    started = greeted = False
    deadline = math.inf
    while True:
        is_over = run.ended(POLL_SECONDS)
        if not started and run.run_id():
            started = True
            bar.say("sites read and prepare their images")
        if started and not greeted and (folder / MANIFEST).is_file():
            greeted = True
            sites = read_json(folder / MANIFEST)["sites"]
            bar.say(f"training at {_images(sites)}")
            for name, site in sites.items():
                if site.get("left_out"):
                    bar.tell(
                        f"site '{name}': {site['left_out']} left out before the test; fedscan "
                        "check tells why"
                    )
        if new := log.new_rows():
            rows = [row for row in rows if row.round > bar.done] + new  # those not yet shown
            _show_new_rounds(rows, bar, config)
        if any((folder / last).is_file() for last in (SUMMARY, FAILURE)):
            deadline = min(deadline, time.monotonic() + CLOSING_SECONDS)
        if is_over or time.monotonic() > deadline:
            return


def _images(sites: Mapping[str, Mapping[str, int]]) -> str:
    """Say how many images the sites train on."""
    counts = {name: site["n_train"] for name, site in sites.items() if "n_train" in site}
    if not counts:  # secure sums hide them
        return f"{len(sites)} sites"
    if len(counts) > MOST_NAMED:
        return f"{len(counts)} sites ({sum(counts.values())})"
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _show_new_rounds(
    rows: list[Row], bar: console.Steps, config: RunConfig, *, before: bool = False
) -> None:
    """Count the rounds that are over; of those that were validated, say how well.

    Of rounds that are from ``before`` an interruption nothing is said.
    """
    trained = {row.round for row in rows if row.split == "train"}
    for number in range(bar.done + 1, config.run.rounds + 1):
        if not due(number, config.run.evaluate_every, config.run.rounds):
            if number not in trained:
                return
            bar.advance(1)
            continue
        values = _validation([r for r in rows if r.split == "val" and r.round == number])
        # What comes after a round is over says that nobody has told how well it fared.
        if not values and not any(r.round > number or r.split == "test" for r in rows):
            return
        if before:
            bar.advance(1)
            continue
        bar.advance(1, f"validation: {values or 'not told'}", always=True)


def _validation(rows: list[Row]) -> str:
    """Say what a round's validation gave; nothing before it is whole."""
    accuracies = [row for row in rows if row.name == "balanced_accuracy"]
    if len(accuracies) > MOST_NAMED:
        mean = fmean(row.value for row in accuracies)
        return f"balanced accuracy {mean:.2f}, mean of {len(accuracies)} sites"
    if accuracies:
        sites = ", ".join(f"{row.site} {row.value:.2f}" for row in accuracies)
        return f"balanced accuracy {sites}"
    whole = {row.name: row.value for row in rows if row.site == WHOLE}
    if not whole:  # it is written last
        return ""
    kernel = [row for row in rows if row.name == "kernel_distance" and row.site != WHOLE]
    sites = ", ".join(f"{row.site} {row.value:.3f}" for row in kernel)
    if "frechet_distance" in whole:
        return f"Fréchet distance {whole['frechet_distance']:.4g}; kernel distance {sites}"
    return f"kernel distance {sites}"
