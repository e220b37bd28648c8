"""The sites of a run as the loop of rounds sees them, reached by Flower's messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import TypeVar

import psutil
import torch
from flwr.app import ArrayRecord, Message

from common import messages
from common.config.run_config import RunConfig
from common.errors import FedscanError
from common.evaluation.of_site import Evaluation, ValidationResult
from common.messages import Stage
from common.metrics_log import BYTES, SERVER_MEMORY, UNUSABLE, WHOLE, Row
from common.participation import (
    MOST_UNUSABLE,
    Attendance,
    Outcome,
    in_training,
    learning_sites,
)
from common.rounds import log
from common.run_folder import RunFolder
from common.run_state import Measured, RunState, Update
from common.selection import Judged, judge_usable
from common.strategies.strategy import State, load_strategy
from common.tasks.task import load_task
from common.transport import broadcast, received, to_keep
from server.exchange import Deadline
from server.participants import Participants
from server.replies import (
    TRAINING,
    SiteFailure,
    all_unusable,
    phase_of,
    read_evaluation,
    read_update,
    require_same_count,
    statistics_bytes,
    unusable,
)
from server.update_store import StoredUpdate, UpdateStore

Answer = TypeVar("Answer")
LONGEST_WHY = 1000  # characters of a reason in the log of attendance
UPDATES = "updates"  # a folder in that of the run


class RemoteSites:
    """The sites of a run as the loop of rounds sees them, reached by Flower's messages.

    Parameters
    ----------
    participants : Participants
    config : RunConfig
    folder : RunFolder
    began : float
        When the run began, by the monotonic clock.
    """

    def __init__(
        self, participants: Participants, config: RunConfig, folder: RunFolder, began: float
    ) -> None:
        self.config, self.folder, self.began = config, folder, began
        self.task, self.participants = load_task(config.task), participants
        self.strategy, self.reports = load_strategy(config.strategy.name), self.task.reports(config)
        self.names = tuple(participants.sites)
        self._updates = UpdateStore(folder.path / UPDATES)

    def train(
        self, number: int, weights: State, state: RunState
    ) -> dict[str, Update | StoredUpdate]:
        """Order sites to train, and read what can be used of the replies.

        Raises
        ------
        SiteFailure
            Too few sites have answered.
        """
        self._updates.clear()
        self._readmit(state)
        names = in_training(number, self._asked(state), self.config)
        order = self._orders(number, weights, state)

        def read(name: str, reply: Message, phase: str) -> Update | StoredUpdate:
            state.standing.trained[name] = number
            scans = self.participants.sites[name].counts[TRAINING]
            update = read_update(
                *(reply, name, phase, weights, self.config.transport, scans),
                self.reports.training,
            )
            learns = self.strategy.trains_at(name, self.config)
            if learns and all(torch.equal(update.state[n], t) for n, t in weights.items()):
                raise unusable(name, phase, "it has sent the weights back unchanged")
            return self._updates.keep(update)

        return self._gather(messages.TRAIN, number, "train", names, order, read, state)

    def _orders(self, number: int, weights: State, state: RunState) -> Callable[[str], ArrayRecord]:
        """Return what composes each site's weights, by what it lacks as the round begins."""
        encoding = self.config.transport
        message = broadcast(weights, encoding, state.reference)
        known = received(message, state.reference)
        state.reference = to_keep(known, encoding)
        common = messages.pack(message)

        @cache  # in most rounds nobody lacks anything
        def whole() -> ArrayRecord:
            return messages.pack(known) if state.reference and number > 1 else common

        @cache
        def first() -> ArrayRecord:
            if not state.unshared:
                return whole()
            own = broadcast(state.unshared, "float32" if number > 1 else encoding)
            return messages.pack({**own, **(known if number > 1 else message)})

        trained = {name: state.standing.trained.get(name, 0) for name in self.names}

        def order(name: str) -> ArrayRecord:
            if not trained[name]:
                return first()
            return common if trained[name] == number - 1 else whole()

        return order

    def evaluate(self, number: int, released: State, split: str, state: RunState) -> Judged:
        """Have the sites judge what is released, and put together what of it can be used.

        Raises
        ------
        SiteFailure
            Too few sites have answered, or no answer can be used.
        """
        arrays = messages.pack(broadcast(released, self.config.transport))

        def read(name: str, reply: Message, phase: str) -> Evaluation:
            counts = self.participants.sites[name].counts
            most = counts[f"n_{split}"] * self.task.images_per_file(self.config)
            one = read_evaluation(reply, name, phase, self.reports.evaluation, most)
            require_same_count(name, phase, one, state.judged_on.setdefault(split, {}))
            return one

        self._readmit(state)
        names = self._asked(state)
        found = self._gather(messages.EVALUATE, number, split, names, lambda _: arrays, read, state)
        judged = judge_usable(self._merge, {name: one for name, one in found.items() if one.count})
        used = found.keys() - judged.refused.keys()
        failures = self._settle(messages.EVALUATE, number, split, used, judged.refused, state)
        if not used and not judged.disagree:
            raise all_unusable(phase_of(messages.EVALUATE, number, split), failures)
        state.incidents.withhold(split, {n: e.words for n, e in found.items() if not e.count})
        return judged

    def settle(
        self, number: int, used: Collection[str], refused: Mapping[str, str], state: RunState
    ) -> None:
        """Note whose updates are used, and why others are not."""
        self._settle(messages.TRAIN, number, "train", used, refused, state)

    def _settle(
        self,
        kind: str,
        number: int,
        split: str,
        used: Collection[str],
        refused: Mapping[str, str],
        state: RunState,
    ) -> dict[str, SiteFailure]:
        phase = phase_of(kind, number, split)
        failures = {name: unusable(name, phase, why) for name, why in sorted(refused.items())}
        for name, failure in failures.items():
            self._lose(number, split, name, Outcome.UNUSABLE, failure, state)
        for name in sorted(used):
            one = Attendance(number, split, name, Outcome.USED)
            state.standing.note(one)
            self.folder.attendance.append(one)
        return failures

    def record(self, number: int, split: str, measured: Measured) -> None:
        """Write metrics, by site with the count of what they were measured on."""
        self.folder.metrics.append(
            [
                Row(number, site, split, name, value, count, self._seconds)
                for site, (count, metrics) in measured.items()
                for name, value in metrics.items()
            ]
        )

    def keep(self, state: RunState) -> None:
        """Write what a run that is interrupted goes on from, and how much memory it takes."""
        if state.trained == state.round:
            mib = psutil.Process().memory_info().rss / 2**20
            self.record(state.round, "train", {WHOLE: (0, {SERVER_MEMORY: round(mib, 1)})})
        self._updates.clear()
        self.folder.save_checkpoint(state, self._seconds)

    def close(self) -> None:
        """Forget what the rounds needed."""
        self._updates.clear()

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)

    def _merge(self, evaluations: Mapping[str, Evaluation]) -> ValidationResult:
        return self.task.judge(evaluations, self.config)

    def _gather(
        self,
        kind: str,
        number: int,
        split: str,
        names: tuple[str, ...],
        arrays: Callable[[str], ArrayRecord],
        read: Callable[[str, Message, str], Answer],
        state: RunState,
    ) -> dict[str, Answer]:
        """Ask sites, again where too few answer, and read what they send; in order of name."""
        run, phase = self.config.run, phase_of(kind, number, split)
        statistics = statistics_bytes(self.config) if kind == messages.EVALUATE else 0
        of_all = self._counting(kind, self.names)
        waits = self.config.privacy.is_central  # else one answer decides whether others count
        self._note_suspended(number, split, state)
        if not (counting := self._counting(kind, names)) or len(counting) < run.min_replies:
            suspended = ", ".join(sorted(state.standing.suspended))
            raise FedscanError(
                f"{phase}: {len(counting)} sites can be asked, since others are suspended "
                f"({suspended}). `fedscan readmit` has one asked again"
            )

        def compose(name: str, node: int) -> Message:
            return self._request(kind, number, split, node, state, arrays(name))

        found: dict[str, Answer] = {}
        failures: dict[str, tuple[Outcome, SiteFailure]] = {}
        traffic: dict[str, tuple[int, int]] = {}
        for attempt in range(run.round_retries + 1 if run.min_replies and not waits else 1):
            if attempt:
                log.warning(
                    "%s: %d of %d answers; asking again", phase, len(found), run.min_replies
                )
                self.participants.wait_for(run.min_replies)
            failures = {}
            answers = self._ask(
                *(phase, [n for n in names if n not in found], compose, read, traffic),
                of_all,
                run.min_replies if split != "test" and not waits else 0,
                statistics,
            )
            for name, answer in answers:
                if isinstance(answer, tuple):
                    failures[name] = answer
                else:
                    found[name] = answer
            if found and len(found.keys() & counting) >= run.min_replies:
                break
        lost = [
            failure
            for _, (outcome, failure) in sorted(failures.items())
            if outcome is not Outcome.UNUSABLE and not run.min_replies
        ]
        if lost:
            raise lost[0]
        for name, (outcome, failure) in sorted(failures.items()):
            self._lose(number, split, name, outcome, failure, state)
        if not found.keys() & counting or len(found.keys() & counting) < run.min_replies:
            raise all_unusable(phase, {name: failure for name, (_, failure) in failures.items()})
        self._record_traffic(kind, number, split, traffic, state)
        return {name: found[name] for name in sorted(found)}

    def _request(
        self,
        kind: str,
        number: int,
        split: str,
        node: int,
        state: RunState,
        arrays: ArrayRecord | None,
        stage: Stage | None = None,
    ) -> Message:
        return messages.request(
            *(kind, node),
            round_number=number,
            split=split,
            sites=self.names,
            best=state.best.round if state.best else 0,
            arrays=arrays,
            timeout=self.config.run.round_timeout,
            stage=stage,
        )

    def _ask(
        self,
        phase: str,
        names: Collection[str],
        compose: Callable[[str, int], Message],
        read: Callable[[str, Message, str], Answer],
        traffic: dict[str, tuple[int, int]],
        counting: Collection[str],
        enough: int,
        statistics: int = 0,
    ) -> Iterator[tuple[str, Answer | tuple[Outcome, SiteFailure]]]:
        """Ask sites once, and read each reply as it comes, so that few are in memory at once.

        With ``enough`` usable answers of those that count, the others have some seconds left; 0:
        all are waited for.
        """
        run, usable = self.config.run, 0

        def measured(name: str, node: int) -> Message:
            request = compose(name, node)
            down, up = traffic.get(name, (0, 0))
            traffic[name] = down + messages.payload_bytes(request), up
            return request

        deadline = Deadline(run.round_timeout)
        asked = self.participants.ask(phase, names, measured, deadline, statistics)
        for name, answer in asked:
            if isinstance(answer, tuple):
                yield name, answer
                continue
            down, up = traffic[name]
            traffic[name] = down, up + messages.payload_bytes(answer)
            try:
                yield name, read(name, answer, phase)
            except SiteFailure as failure:
                yield name, (Outcome.UNUSABLE, failure)
                continue
            usable += name in counting
            # In a simulation every site answers; how soon is a matter of this machine.
            if 0 < enough <= usable and not self.participants.mail.is_simulated:
                deadline.within(run.grace_seconds)
        for name in self.participants.mail.late:
            log.info("A late answer of site '%s' was dropped", name)
        self.participants.mail.late.clear()

    def _note_suspended(self, number: int, split: str, state: RunState) -> None:
        for site in sorted(state.standing.suspended):
            self.folder.attendance.append(Attendance(number, split, site, Outcome.SUSPENDED))

    def _asked(self, state: RunState) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in state.standing.suspended)

    def _counting(self, kind: str, names: tuple[str, ...]) -> set[str]:
        """Return the sites whose answers make a round."""
        return set(learning_sites(names, self.config) if kind == messages.TRAIN else names)

    def _record_traffic(
        self,
        kind: str,
        number: int,
        split: str,
        traffic: Mapping[str, tuple[int, int]],
        state: RunState,
    ) -> None:
        """Write how many bytes of weights went to each site, and came."""
        state.bytes_down += sum(down for down, _ in traffic.values())
        state.bytes_up += sum(up for _, up in traffic.values())
        self.record(
            number,
            split,
            {
                name: (0, {f"{BYTES}down-{kind}": down, f"{BYTES}up-{kind}": up})
                for name, (down, up) in sorted(traffic.items())
            },
        )

    def _lose(
        self,
        number: int,
        split: str,
        name: str,
        outcome: Outcome,
        failure: SiteFailure,
        state: RunState,
    ) -> None:
        """Tell whose answer is not used, and why."""
        why = failure.failure.error
        state.incidents.lose(number, name, failure.failure.phase, why)
        one = Attendance(number, split, name, outcome, why[:LONGEST_WHY])
        self.folder.attendance.append(one)
        self.record(number, split, {name: (0, {UNUSABLE: 1.0})})
        if state.standing.note(one):
            log.warning(
                "Site '%s' is suspended: %d answers in a row could not be used. `fedscan readmit "
                "%s %s` has it asked again",
                *(name, MOST_UNUSABLE, self.folder.path, name),
            )

    def _readmit(self, state: RunState) -> None:
        """Ask those suspended sites again which the researcher has readmitted."""
        for site in self.folder.readmitted():
            log.info("Site '%s' is readmitted", site)
            state.standing.readmit(site)
