"""What a site keeps to itself from one round to the next, on its own disk.

Every message to a deployed site is answered by a process of its own, and Flower holds a node's
context in the SuperNode's memory: a restart loses it. What a training cannot go on without (an
optimizer's moments, the remainder of an encoding, the weights that the next broadcast differs from,
weights that are not shared) is therefore kept here, in ``RECORDS/SITE/state/RUN/round-N``, for its
owner's eyes only, and never sent. In a long round its latest steps are in ``within-round``. Beside
them, ``data.json`` tells whether the site's data are still those with which the run began, since
each of these processes reads them anew, and ``orders.json`` what the site has been asked. Of a run
that has ended a file ``RUN.ended`` stays, with its last order and the answer: nobody begins it
again, and the answer can be given once more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clients.digests import WAY_OUT, changed, public_errors, read_digests
from common.checkpoints import read_snapshot, save_snapshot
from common.errors import FedscanError
from common.files import PRIVATE_FOLDER, make_folder, write_atomically
from common.paths import site_records
from common.provenance import source_hash
from common.training.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

# A child of Flower's logger, so that lines reach its console.
log = logging.getLogger("flwr.fedscan")

NAME = "state"
DATA, ORDERS, ENDED = "data.json", "orders.json", ".ended"
WITHIN = "within-round"
RUN_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
ROUND = re.compile(r"round-([1-9][0-9]*)")


class SiteState:
    """A site's private state in one run.

    Parameters
    ----------
    site : str
    run_id : int or str
        Digits, letters and ``-``, at most 64. It comes from the server and names a folder here.
    records : Path, optional
        Folder that the states are in; by default the site's own records.

    Raises
    ------
    FedscanError
        If the run's id is anything else.
    """

    def __init__(self, site: str, run_id: int | str, records: Path | None = None) -> None:
        if not RUN_ID.fullmatch(str(run_id)):
            raise FedscanError(
                f"site '{site}': the server's run id {str(run_id)[:80]!r} is refused. A run id "
                "holds 1 to 64 digits, letters and -",
                public=f"site '{site}': the run id is refused. A run id holds 1 to 64 digits, "
                "letters and -",
            )
        self.site, self.run_id = site, str(run_id)
        self.folder = (records or site_records(site)) / "state" / self.run_id

    def load(self, round_number: int) -> dict[str, Tensor]:
        """Read the state as it was at the end of a round.

        Parameters
        ----------
        round_number : int
            0 is the time before the first round.

        Returns
        -------
        dict of str to Tensor
            On the CPU; empty for round 0.

        Raises
        ------
        FedscanError
            If that round was never saved here, was removed, or what is there is damaged.
        """
        _require_round(round_number, least=0)
        if round_number == 0:
            return {}
        folder = self._round(round_number)
        with public_errors(self.site, f"the state of round {round_number} cannot be read"):
            if not self._whole(round_number):
                whole = sorted(filter(self._whole, self._rounds()))
                kept = ", ".join(map(str, whole)) or "none"
                missing = f"the private state of round {round_number} of run {self.run_id}"
                raise FedscanError(
                    f"site '{self.site}': {missing} is missing in {self.folder} (rounds that are "
                    f"there: {kept}). {WAY_OUT}",
                    public=f"site '{self.site}': {missing} is missing. {WAY_OUT}",
                )
        damaged = f"the private state of round {round_number} of run {self.run_id} is damaged"
        try:
            description, state = read_snapshot(folder, NAME)
        except FedscanError as error:
            raise FedscanError(
                f"site '{self.site}': {damaged} ({error}). {WAY_OUT}",
                public=f"site '{self.site}': {damaged}. {WAY_OUT}",
            ) from error
        if any(description.get(key) != value for key, value in self._about(round_number).items()):
            raise FedscanError(
                f"site '{self.site}': {damaged}: {folder} holds another site's, run's or round's. "
                f"{WAY_OUT}",
                public=f"site '{self.site}': {damaged}: it is another's. {WAY_OUT}",
            )
        # Tensors that were just read are windows on the file, which a later round removes.
        return {name: tensor.clone() for name, tensor in state.items()}

    def last(self, round_number: int) -> int:
        """Return the latest round up to one whose state is kept; 0: none is.

        It is an earlier one at a site that was away from rounds.
        """
        rounds = (number for number in self._rounds() if number <= round_number)
        return max(filter(self._whole, rounds), default=0)

    def save(self, round_number: int, state: Mapping[str, Tensor], *, keep: int = 0) -> None:
        """Keep the state at the end of a round: whole, or not at all if the process ends meanwhile.

        The last round before it is kept too, so that an order that is repeated after a crash
        starts from the same state and gets the same answer, and so is the best so far, by whose
        model the site may be tested. All others are removed, older ones and newer ones, which
        belong to a past that is being redone.

        Parameters
        ----------
        round_number : int
            At least 1.
        state : mapping of str to Tensor
            May be empty. No two may share memory.
        keep : int
            The best round so far; 0: none is known.

        Raises
        ------
        FedscanError
            If the disk is full or may not be written to; what was kept before is still there.
        """
        _require_round(round_number, least=1)
        folder = self._round(round_number)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        with public_errors(self.site, f"the private state of round {round_number} cannot be saved"):
            try:
                self._make(folder)
                save_snapshot(folder, NAME, tensors, self._about(round_number))
            except OSError:
                if not self._whole(round_number):  # else it was saved before, and stays
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            rounds = self._rounds()
            before = max(filter(self._whole, (n for n in rounds if n < round_number)), default=0)
            # A site that was away from the best round has an earlier state for it.
            best = self.last(min(keep, round_number))
        self._forget(self.folder / WITHIN, "what was kept within a round")
        for number in rounds - {before, round_number, best}:
            self._forget(self._round(number), f"the state of round {number}")

    def progress(self, round_number: int, order: str) -> Progress:
        """Return what a training keeps within a round, until :meth:`save` of any.

        Parameters
        ----------
        round_number : int
        order : str
            Digest of what was asked for.
        """
        about = {**self._about(round_number), "order": order, "sources": source_hash()}
        return Progress(self.folder / WITHIN, about)

    def require_same_data(self, digests: Mapping[str, str], *, begins: bool = False) -> None:
        """Refuse data that are not those with which the run began.

        Else a participant who joins in mid-run moves others from one split to another, and the run
        is selected or tested on people it was trained on. Of what was not seen before in this run,
        the digest is kept.

        Parameters
        ----------
        digests : mapping of str to str
            Of the :data:`ROSTER`; or, under a split's name, of whose scans could be read.
        begins : bool
            Whether the run may begin now, and nothing be kept yet.

        Raises
        ------
        DataContractError
            If one is another than at first.
        FedscanError
            If what was kept is missing or damaged, or the disk is full or may not be written to.
        """
        about = f"the record of the data with which run {self.run_id} began"
        kept = read_digests(self.folder / DATA, self.site, about)
        if not kept and not begins:
            message = f"site '{self.site}': {about} is missing"
            raise FedscanError(
                f"{message} in {self.folder}. {WAY_OUT}", public=f"{message}. {WAY_OUT}"
            )
        for name, digest in digests.items():
            if kept.get(name, digest) != digest:
                raise changed(self.site, name)
        if not digests.keys() <= kept.keys():
            self._write(DATA, {**kept, **digests}, about)

    def require_one_order(self, order: str, digest: str) -> None:
        """Refuse an order that was given before with other weights; keep a new one.

        The same order again, as after a crash, gets the same answer, which tells nothing new.

        Parameters
        ----------
        order : str
            What is asked for, such as "train, round 3".
        digest : str
            Of the weights that came with it.

        Raises
        ------
        FedscanError
            Or if the run has not begun here, what was kept is damaged, or the disk is full or may
            not be written to.
        """
        self.require_same_data({})
        about = f"the record of the orders of run {self.run_id}"
        kept = read_digests(self.folder / ORDERS, self.site, about)
        if kept.get(order, digest) != digest:
            raise FedscanError(
                f"site '{self.site}': {order} was answered before, with other weights. A site "
                "answers each round once: start the run anew"
            )
        if order not in kept:
            self._write(ORDERS, {**kept, order: digest}, about)

    def require_validated(self, digest: str, round_number: int) -> bool:
        """Refuse to test another model than the one that was validated here in that round.

        Return whether one was: a site that was away then has seen none.

        Parameters
        ----------
        digest : str
            Of the weights that came with the order, and of the run's sites.
        round_number : int

        Raises
        ------
        FedscanError
        """
        about = f"the record of the orders of run {self.run_id}"
        kept = read_digests(self.folder / ORDERS, self.site, about)
        validated = kept.get(f"val, round {round_number}")
        if validated not in (None, digest):
            raise FedscanError(
                f"site '{self.site}': the model to be tested is not the one that was validated in "
                f"round {round_number}"
            )
        return validated is not None

    def require_open(self) -> None:
        """Refuse a run that has ended.

        Raises
        ------
        FedscanError
        """
        if self.ended:
            raise FedscanError(
                f"site '{self.site}': run {self.run_id} has ended with its test. Start another"
            )

    def end(self, order: str, answer: bytes) -> None:
        """Remove the run's state, as :meth:`remove`, and remember how the run has ended.

        Parameters
        ----------
        order : str
            Digest of its last order.
        answer : bytes
            What :meth:`answer_to` gives where that order comes again, as after a crash of the
            server.
        """
        with public_errors(self.site, "the end of the run cannot be kept"):
            self._make(self.folder.parent)
            write_atomically(self._ended, order.encode() + b"\n" + answer)
        self.remove()

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self._ended.exists()

    def last_answer(self) -> bytes:
        """Return the answer to the last order of a run that has ended."""
        with public_errors(self.site, "the end of the run cannot be read"):
            return self._ended.read_bytes().partition(b"\n")[2]

    def digest_of(self, order: str) -> str:
        """Return the digest that :meth:`require_one_order` has kept for an order; else empty."""
        about = f"the record of the orders of run {self.run_id}"
        return read_digests(self.folder / ORDERS, self.site, about).get(order, "")

    def answer_to(self, order: str) -> bytes | None:
        """Return the answer to the run's last order; None if it has not ended, or with another."""
        with public_errors(self.site, "the end of the run cannot be read"):
            try:
                kept, _, answer = self._ended.read_bytes().partition(b"\n")
            except FileNotFoundError:
                return None
        return answer if kept == order.encode() else None

    def remove(self) -> None:
        """Remove all of the run's state, and the folders above it that are empty then.

        Raises
        ------
        FedscanError
            If something of it cannot be removed.
        """
        problem = "the private state of the run that has ended cannot be removed"
        # None may have been saved, or another process may be removing it.
        with public_errors(self.site, problem), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):  # not empty, most of the time
            self.folder.parent.rmdir()
            self.folder.parent.parent.rmdir()

    @property
    def _ended(self) -> Path:
        return self.folder.with_name(self.run_id + ENDED)

    def _write(self, name: str, digests: Mapping[str, str], about: str) -> None:
        with public_errors(self.site, f"{about} cannot be saved"):
            self._make(self.folder)
            text = json.dumps(digests, indent=2)
            write_atomically(self.folder / name, text.encode())

    def _forget(self, folder: Path, what: str) -> None:
        """Remove a folder; that it stays is no reason to fail a round that is saved."""
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
        except OSError as error:  # tried again after the next
            kind = type(error).__name__
            log.warning("site %s: %s could not be removed (%s)", self.site, what, kind)

    def _make(self, folder: Path) -> None:
        """Make the folder of all states, the run's, or one in that, for the owner alone."""
        make_folder(folder)
        for made in (self.folder.parent, self.folder, folder):  # one may have been there before
            if made.is_dir():
                made.chmod(PRIVATE_FOLDER)

    def _about(self, round_number: int) -> dict[str, str | int]:
        return {"site": self.site, "run": self.run_id, "round": round_number}

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _rounds(self) -> set[int]:
        """Rounds of which there is something, be it whole or not."""
        if not self.folder.is_dir():
            return set()
        matches = (ROUND.fullmatch(path.name) for path in self.folder.iterdir())
        return {int(match[1]) for match in matches if match}

    def _whole(self, number: int) -> bool:
        """Tell whether a round was saved to the end: the sidecar comes last."""
        return (self._round(number) / f"{NAME}.json").is_file()


def _require_round(number: int, least: int) -> None:
    if number < least:
        raise FedscanError(f"round {number} has no state. Rounds are counted from {least}")
