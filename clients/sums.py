"""A site's part in the secure sums of a run, kept on its own disk from one message to the next.

Beside the site's state of the run, in ``RECORDS/SITE/state/RUN/sums``: of a sum its protocol's
state, which is secret; the vector, so that a sum that is begun anew needs no training; the answers
that follow the masked vector, so that a server that has lost them can go on with the same sum; and
the list of sums that the site has helped to unmask, each once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from clients.digests import public_errors
from clients.orders import digest_of_order, require_round
from common import messages
from common.config.privacy import FEWEST_SITES
from common.errors import ConfigError, FedscanError, SecureSumError
from common.files import make_folder, write_atomically
from common.secure_sums.fixed_point import UNSIGNED
from common.secure_sums.protocol import STAGES, Plan, digest
from common.secure_sums.site import Site
from common.seeding import derive_seed
from common.site_names import require_sites
from common.summed import Change, Vector, layout_of, plan_of, vector_of

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Message

    from clients.state import SiteState
    from common.config.run_config import RunConfig
    from common.evaluation.of_site import Evaluation
    from common.messages import Stage

# A child of Flower's logger, so that lines reach its console.
log = logging.getLogger("flwr.fedscan")

SUMS, SPENT = "sums", "spent.json"
REPEATED = ("agree", "unmask")  # stages whose answer is given again to the same request


def simulated_keys(seed: int, sites: tuple[str, ...]) -> dict[str, Ed25519PrivateKey]:
    """Return long-term keys of simulated sites: they follow from the run's seed.

    Whoever knows the seed knows them. A simulation shows what secure sums cost and that they are
    right; its sites have one owner, from whom nothing is hidden.
    """
    return {
        site: Ed25519PrivateKey.from_private_bytes(
            hashlib.sha256(
                str(derive_seed(seed, site=site, purpose="simulated key")).encode()
            ).digest()
        )
        for site in sites
    }


class StageAtSite:
    """A stage of a sum that a message asks for.

    Parameters
    ----------
    message : Message
    config : RunConfig
    summand : Summand

    Raises
    ------
    ConfigError, ValueError
        The message asks for no stage, or for one of no sum that can be.
    """

    def __init__(self, message: Message, config: RunConfig, summand: Summand) -> None:
        asked = messages.stage_in(message)
        if asked is None or not config.privacy.secure_sums:
            raise ConfigError("a stage of a secure sum is asked for, and there is none in this run")
        order = message.content[messages.CONFIG]
        self.stage, self.config, self.summand = asked, config, summand
        self.split, self.message = str(order["split"]), message
        if self.split not in ("train", "val", "test"):
            raise ConfigError("a secure sum is over 'train', 'val' or 'test', nothing else")
        require_round(config, number := int(order["round"]))
        self.sites = tuple(map(str, order["sites"]))
        for sites in (self.sites, asked.asked):
            require_sites(sites)
        self.layout = layout_of(config, self.split, self.sites, len(asked.asked))
        self.plan = plan_of(
            *(summand.state.run_id, number, self.split, asked.asked, asked.least, self.layout)
        )

    def answer(self, told: Callable[[], Change | Evaluation] | None = None) -> bytes:
        """Return the answer; with the unmasking of the sum over the test the run ends.

        Parameters
        ----------
        told : callable, optional
            For the stage ``mask`` returns what is summed. What was made for the same order before
            is not made again.
        """
        state, stage = self.summand.state, self.stage
        last = f"{stage.attempt[:64]} {hashlib.sha256(stage.message).hexdigest()}"
        if told is None and (answer := state.answer_to(last)) is not None:
            return answer
        state.require_open()

        def vector() -> Vector:
            sent = messages.unpack(self.message.content[messages.ARRAYS])
            order = digest_of_order(sent, self.sites)
            return self.summand.vector(
                self.plan,
                order,
                lambda: vector_of(self.layout, self.config, self.split, told()),
            )

        answer = self.summand.answer(stage, self.plan, vector if told else None)
        if self.split == "test" and stage.stage == "unmask":
            try:
                state.end(last, answer)
            except FedscanError as error:  # the test cannot be repeated: its answer comes first
                log.warning("%s", error)
        return answer


class Summand:
    """A site in the secure sums of a run.

    Parameters
    ----------
    state : SiteState
        The run has begun there.
    key : Ed25519PrivateKey
        The site's own, for long.
    known : mapping of str to Ed25519PublicKey
        Of each site, as this one's owner has them.
    fewest : int
        The site takes part in sums over so many sites or more.
    """

    def __init__(
        self,
        state: SiteState,
        key: Ed25519PrivateKey,
        known: Mapping[str, Ed25519PublicKey],
        fewest: int = FEWEST_SITES,
    ) -> None:
        self.state, self._key, self._known, self._fewest = state, key, known, fewest
        self.folder: Path = state.folder / SUMS

    def answer(self, asked: Stage, plan: Plan, vector: Callable[[], Vector] | None = None) -> bytes:
        """Answer one stage of a sum, each once; a new attempt begins at the first.

        Parameters
        ----------
        asked : Stage
        plan : Plan
            As the site itself makes it of the order.
        vector : callable, optional
            Makes what is summed, for the stage ``mask``. It is called once the stage's turn is
            known to have come.

        Raises
        ------
        SecureSumError
            The site refuses: see :class:`common.secure_sums.site.Site`.
        FedscanError
            What is kept cannot be read or written.
        """
        if asked.stage not in STAGES or (asked.stage == "mask") != (vector is not None):
            raise SecureSumError("a stage that a secure sum does not have, or in another order")
        if len(asked.attempt) > 64:
            raise SecureSumError("an attempt with a name of more than 64 characters")
        path = self.folder / f"{digest(plan.name)[:32]}.json"
        with public_errors(self.state.site, "the state of a secure sum cannot be read"):
            kept = json.loads(path.read_bytes()) if path.exists() else {}
            spent = self._spent()
        request = hashlib.sha256(asked.message).hexdigest()
        same = kept.get("attempt") == asked.attempt
        if same and asked.stage in REPEATED and request in kept["answers"]:
            return bytes.fromhex(kept["answers"][request])
        site = Site(self.state.site, plan, self._key, self._known, spent, fewest=self._fewest)
        if asked.stage == "advertise":
            kept = {"attempt": asked.attempt, "answers": {}}
        elif not same:
            raise SecureSumError("a stage of an attempt at a sum that did not begin here")
        else:
            site.load(kept["saved"].encode())
        if asked.stage == "advertise":
            answer = site.advertise()
        elif vector is not None:
            if site.turn != STAGES.index("mask"):  # before a training that would be for nothing
                raise SecureSumError("'mask' is asked for a second time, or out of turn")
            answer = site.mask(asked.message, vector())
        else:
            answer = getattr(site, asked.stage)(asked.message)
        if asked.stage in REPEATED:
            kept["answers"][request] = answer.hex()
        kept["saved"] = site.save().decode()
        with public_errors(self.state.site, "the state of a secure sum cannot be saved"):
            # First that it is unmasked: whatever is lost then, no second one is.
            self._write(self.folder / SPENT, json.dumps(sorted(spent)).encode())
            self._write(path, json.dumps(kept).encode())
            if asked.stage == "advertise":  # one sum at a time
                for old in self.folder.glob("*.json"):
                    if old.name not in (SPENT, path.name):
                        old.unlink(missing_ok=True)
            if asked.stage == "unmask":
                self._vector(plan).unlink(missing_ok=True)
        return answer

    def vector(self, plan: Plan, order: str, make: Callable[[], Vector]) -> Vector:
        """Return what is summed: as it was made for this very order, or made now.

        Parameters
        ----------
        plan : Plan
        order : str
            Digest of what was asked for.
        make : callable
        """
        path = self._vector(plan)
        with public_errors(self.state.site, "a vector that is to be summed cannot be read"):
            if path.exists():
                about, _, data = path.read_bytes().partition(b"\n")
                if about == order.encode():
                    return np.frombuffer(data, UNSIGNED[plan.bits]).copy()
        made = make()
        with public_errors(self.state.site, "a vector that is to be summed cannot be saved"):
            for old in self.folder.glob("*.vector"):  # of sums that nobody completes any more
                old.unlink(missing_ok=True)
            self._write(path, order.encode() + b"\n" + made.tobytes())
        return made

    def _spent(self) -> set[str]:
        path = self.folder / SPENT
        return set(json.loads(path.read_bytes())) if path.exists() else set()

    def _vector(self, plan: Plan) -> Path:
        return self.folder / f"{digest(plan.name)[:32]}.vector"

    def _write(self, path: Path, data: bytes) -> None:
        make_folder(self.folder)
        write_atomically(path, data)
