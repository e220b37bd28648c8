"""Names of runs that people can read: ``2026-11-28-1530-brain-sex-fedavg``."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

from clients.state import ENDED
from common.config.run_config import RunConfig
from common.files import PRIVATE_FILE, PRIVATE_FOLDER, make_folder
from common.paths import site_records
from simulations.private_state import claim_of, note_of

LONGEST = 56  # characters of a name, without a number behind it; of run.id 64 are accepted


def run_name(config: RunConfig, at: time.struct_time) -> str:
    """Return date, time, study and strategy, as ``run.id`` takes them."""
    what = f"{config.read_study().name}-{config.strategy.name}"
    words = re.sub(r"[^A-Za-z0-9]+", "-", what)
    return f"{time.strftime('%Y-%m-%d-%H%M', at)}-{words}"[:LONGEST].strip("-")


def claim_name(config: RunConfig) -> str:
    """Return a run's name that no other run has, and make its folder.

    Where the name of this minute is taken, ``-2`` follows it, and so on. Taken is what lies in the
    same folder of runs, or among the sites' records, which runs in other folders share. Whoever
    comes second, also at the same moment, gets another name.

    Raises
    ------
    OSError
        The folder of runs, or that of the records, cannot be written to.
    """
    above, records = Path(config.run.output_dir), site_records("any").parent
    make_folder(above)
    plain = run_name(config, time.localtime())
    for number in itertools.count(1):
        name = plain if number == 1 else f"{plain}-{number}"
        note, folder = note_of(name), above / name
        claim = claim_of(note)
        make_folder(note.parent)
        try:
            folder.mkdir(mode=PRIVATE_FOLDER)
        except FileExistsError:
            continue
        try:
            claim.touch(mode=PRIVATE_FILE, exist_ok=False)
        except FileExistsError:  # of a run in another folder, which is about to begin
            folder.rmdir()
            continue
        kept = (f"*/{name}", f"*/{note.name}", f"*/state/{name}", f"*/state/{name}{ENDED}")
        if not any(any(records.glob(one)) for one in kept):
            break
        folder.rmdir()  # of an earlier run in another folder
        claim.unlink()
    return name
