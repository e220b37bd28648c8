"""The sites of a run whose updates and evaluations are summed in secret.

A round's training is one secure sum, and so is an evaluation. To the loop of rounds all sites are
one, named "all", whose update is the mean: so no strategy has another path. What a server that is
interrupted needs to go on with a sum is in the run's folder, since no site helps to unmask it
twice: what is masked in it tells nothing, and the total is the server's to know.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, Message

from common import messages
from common.errors import ConfigError, FedscanError, SecureSumError
from common.files import write_atomically
from common.messages import Stage
from common.metrics_log import WHOLE
from common.participation import Outcome, in_training
from common.rounds import log
from common.run_state import RunState, Update
from common.secure_sums.fixed_point import Layout
from common.secure_sums.protocol import OVER, STAGES, Plan
from common.secure_sums.server import Server
from common.selection import Judged, judge_usable
from common.strategies.strategy import State
from common.summed import Vector, evaluation_of, layout_of, plan_of, threshold, update_of
from common.transport import broadcast
from server.replies import SiteFailure, phase_of, read_stage, statistics_bytes, unusable
from server.sites import RemoteSites

SUMS = "sums"  # a folder in that of the run
Failures = dict[str, tuple[Outcome, SiteFailure]]


class SummedSites(RemoteSites):
    """The sites of a run, of which the server learns sums alone; see :class:`RemoteSites`."""

    _survivors: tuple[str, ...] = ()  # of the last sum

    def train(self, number: int, weights: State, state: RunState) -> dict[str, Update]:
        """Sum what sites' training has changed; return the mean as the update of all.

        Raises
        ------
        FedscanError
            Too few sites have answered: then nothing is revealed.
        """
        self._readmit(state)
        asked = in_training(number, self._asked(state), self.config)
        arrays = self._orders(number, weights, state)
        total, layout = self._sum(messages.TRAIN, number, "train", asked, arrays, state)
        state.standing.trained |= dict.fromkeys(self._survivors, number)
        return {WHOLE: update_of(total, layout, self.config, weights)}

    def settle(
        self, number: int, used: Collection[str], refused: Mapping[str, str], state: RunState
    ) -> None:
        """Note which sites are in the sum."""
        super().settle(number, self._survivors if used else (), {}, state)

    def evaluate(self, number: int, released: State, split: str, state: RunState) -> Judged:
        """Sum what sites say of what is released.

        Raises
        ------
        FedscanError
            Too few sites have answered, or what they say together cannot be used.
        """
        self._readmit(state)
        packed = messages.pack(broadcast(released, self.config.transport))
        kind, asked = messages.EVALUATE, self._asked(state)
        total, layout = self._sum(kind, number, split, asked, lambda _: packed, state)
        self._settle(kind, number, split, self._survivors, {}, state)
        words = {  # no sum: the same at all sites, as each has said at the beginning
            name: min(known) if known else self.participants.extractor
            for name, known in self.reports.words.items()
        }
        found = replace(evaluation_of(total, layout, self.config, split), words=words)
        judged = judge_usable(self._merge, {WHOLE: found} if found.count else {})
        if judged.refused:
            raise FedscanError(f"{phase_of(kind, number, split)}: {judged.refused[WHOLE]}")
        return judged

    def keep(self, state: RunState) -> None:
        """Write what a run that is interrupted goes on from; then no sum is needed any more."""
        super().keep(state)
        self.close()

    def close(self) -> None:
        """Forget sums."""
        super().close()
        shutil.rmtree(self.folder.path / SUMS, ignore_errors=True)

    def _sum(
        self,
        kind: str,
        number: int,
        split: str,
        asked: tuple[str, ...],
        arrays: Callable[[str], ArrayRecord],
        state: RunState,
    ) -> tuple[Vector, Layout]:
        """Have sites sum what they are asked for, from the beginning where too few are left."""
        run, phase = self.config.run, phase_of(kind, number, split)
        self._note_suspended(number, split, state)
        least = threshold(self.config, len(asked))
        try:
            plan = plan_of(
                *(self.folder.run_id, number, split, asked, least),
                layout_of(self.config, split, self.names, len(asked)),
            )
        except ConfigError as error:
            raise FedscanError(f"{phase}: {len(asked)} sites can be asked: {error}") from error
        traffic: dict[str, tuple[int, int]] = {}
        failures: Failures = {}

        def attempt() -> Server:
            begun = _Begun.of(plan, self.folder.path / SUMS)
            server = begun.server

            def compose(site: str, node: int) -> Message:
                stage, masks = begun.stage(site), server.turn == STAGES.index("mask")
                sent, what = (arrays(site), kind) if masks else (None, messages.SUM)
                return self._request(what, number, split, node, state, sent, stage)

            def read(site: str, reply: Message, phase: str) -> bytes:
                return read_stage(reply, site, phase)

            while server.turn != OVER:
                found = self._ask(
                    *(phase, begun.requests, compose, read, traffic),
                    server.plan.sites,
                    least if split != "test" else 0,
                    statistics_bytes(self.config) if kind == messages.EVALUATE else 0,
                )
                answers = {}
                for site, answer in found:
                    if isinstance(answer, tuple):
                        failures[site] = answer
                    else:
                        answers[site] = answer
                try:
                    begun.take(answers)
                finally:
                    for site, why in server.unusable.items():
                        failures[site] = Outcome.UNUSABLE, unusable(site, phase, why)
            return server

        for left in reversed(range(run.round_retries + 1 if run.min_replies else 1)):
            failures.clear()
            try:
                server = attempt()
                break
            except SecureSumError as error:
                if _Begun.of(plan, self.folder.path / SUMS).server.turn != STAGES.index("unmask"):
                    self.close()  # else who has helped to unmask it would help no other attempt
                if failures and not run.min_replies:
                    raise min(failures.items())[1][1] from error
                if not left:
                    self._lose_all(number, split, failures, state)
                    raise FedscanError(f"{phase}: no secure sum: {error}") from error
                log.warning("%s: %s; asking again", phase, error)
                self.participants.wait_for(least)
        self._survivors = server.survivors
        lost = {site: one for site, one in failures.items() if site not in server.survivors}
        self._lose_all(number, split, lost, state)
        self._record_traffic(kind, number, split, traffic, state)
        return server.sum, layout_of(self.config, split, self.names, len(server.plan.sites))

    def _lose_all(self, number: int, split: str, failures: Failures, state: RunState) -> None:
        for site, (outcome, failure) in sorted(failures.items()):
            self._lose(number, split, site, outcome, failure, state)


@dataclass
class _Begun:
    """An attempt at a sum, on the disk from the stage on in which a site helps to unmask it.

    Parameters
    ----------
    path : Path
    server : Server
    attempt : str
        Its name.
    requests : dict of str to bytes
        What each site is sent next.
    """

    path: Path
    server: Server
    attempt: str
    requests: dict[str, bytes]

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> _Begun:
        """Go on with a sum, or begin it."""
        path = folder / f"{plan.content}-{plan.round}"
        if path.exists():
            about, _, saved = path.read_bytes().partition(b"\n")
            kept, server = json.loads(about), Server.load(saved)
            if server.plan.name == plan.name:
                requests = {site: bytes.fromhex(one) for site, one in kept["requests"].items()}
                return cls(path, server, kept["attempt"], requests)
        return cls(path, Server(plan), secrets.token_hex(16), dict.fromkeys(plan.sites, b""))

    def stage(self, site: str) -> Stage:
        """Return what a site is asked for."""
        plan, turn = self.server.plan, STAGES[self.server.turn]
        return Stage(turn, self.attempt, plan.sites, plan.threshold, self.requests[site])

    def take(self, answers: dict[str, bytes]) -> None:
        """Take a stage's answers."""
        found = self.server.take(answers)
        self.requests = {} if self.server.turn == OVER else found
        if self.server.turn > STAGES.index("mask"):
            requests = {site: one.hex() for site, one in self.requests.items()}
            about = json.dumps({"attempt": self.attempt, "requests": requests})
            write_atomically(self.path, about.encode() + b"\n" + self.server.save())
