"""The gate that a hospital owns: it has apps do Flower's tasks in a box, and decides what leaves.

For each task it fetches the order itself, and refuses it before any of the app's code has run where
the app is not approved, or the order breaks the policy. A box (:mod:`clients.gateway.sandbox`) is
kept ready with its imports done, and serves the tasks of one run. What the app answers is composed
anew (:mod:`clients.gateway.judge`), written to the ledger, and only then sent.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import torch

from clients.gateway import sandbox
from clients.gateway.approvals import Approvals
from clients.gateway.form import form_of
from clients.gateway.judge import Composed, compose, failure_content
from clients.gateway.ledger import Entry, Ledger
from clients.gateway.policy import read_policies, read_sums
from clients.gateway.run import ORDERS, Asked, SiteRun, require_approved
from clients.gateway.runtime_api import Exchange, Refused, RuntimeApi
from clients.gateway.view import View
from clients.gateway.watch import GIB, Limits, bytes_below
from clients.policy import GATED, VARIABLE
from clients.state import SiteState
from common import messages
from common.errors import ConfigError, FedscanError
from common.files import make_folder, write_atomically
from common.incoming import Bounds
from common.paths import cache_dir, site_records
from common.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flwr.app import RecordDict

    from clients.gateway.sandbox import Box
    from clients.gateway.upstream import Order, SuperNodeTask
    from clients.sums import Summand
    from common.evaluation.of_site import Evaluation
    from common.summed import Change

log = logging.getLogger("flwr.fedscan")

MOST_APP_BYTES = 16 * 2**20  # of a bundle, which Flower bounds at 10 MB, and what is sent with it
FINISH_SECONDS = 10.0  # for a task to end by itself after its answer
LOOK_SECONDS = 0.2


def gate_folder(site: str) -> Path:
    """Folder of the gate's own state and ledger, beside the site's records, unseen by any app."""
    return site_records(site).with_name(f"gate@{site}")  # no site can be called that


@dataclass
class _Running:
    """A box, and the run whose tasks it serves; none as long as it is a spare."""

    box: Box
    api: RuntimeApi
    stack: contextlib.ExitStack
    run_id: int | None = None


class Gate:
    """A site's gate; a context manager that keeps a box ready.

    Parameters
    ----------
    site : Site
    policy : Path
        The site's ``policy.toml``, beside which is its list of approved apps.
    extractor : Path, optional
        The site's own file of what judges generated pictures.
    folder : Path, optional
        For the ledger and the gate's own state; by default :func:`gate_folder`.

    Raises
    ------
    ConfigError
        If the policy cannot be read, or asks for a sandbox that the system does not grant.
    FedscanError
        If another gate writes to the ledger.
    """

    def __init__(
        self,
        site: Site,
        policy: Path,
        extractor: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self.site, self.policy_file, self.extractor = site, policy, extractor
        self.folder = folder or gate_folder(site.name)
        self._policy_text = policy.read_bytes() if policy.is_file() else b""
        self.policy, self.settings = read_policies(policy)
        self.ledger = Ledger(self.folder / "ledger.jsonl", site.name)
        self._held: int | None = None
        self._run: SiteRun | None = None
        self._running: _Running | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Gate:
        """Open the ledger and start the first box."""
        self._stack.enter_context(self.ledger)
        torch.set_num_threads(1)  # comparing weights needs no more, and the app the others
        log.info("Site %s: the ledger's last line has hash %s", self.site.name, self.ledger.head)
        self._prepare_box()
        return self

    def __exit__(self, *error: object) -> None:
        """End the box."""
        self._end_box()
        log.info("Site %s: the ledger's last line has hash %s", self.site.name, self.ledger.head)
        self._stack.close()

    def answer(self, task: SuperNodeTask) -> None:
        """Do one task: whatever comes of it, the server gets an answer, and the ledger a line.

        Parameters
        ----------
        task : SuperNodeTask

        Raises
        ------
        FedscanError
            If the ledger cannot be written: then nothing may leave any more.
        httpx.HTTPError
            If the SuperNode does not answer.
        """
        with task:
            try:
                order = task.pull(MOST_APP_BYTES + self.settings.max_message_bytes)
            except FedscanError as error:
                self.ledger.append(Entry("", 0, "unknown", "refused", error.public))
                return
            task.reply(order, self._decide(order))
        if self._running is None:  # the next order finds the imports done
            with _logged():
                self._prepare_box()

    def _decide(self, order: Order) -> RecordDict:
        """Return what leaves."""
        began, asked = time.monotonic(), None
        try:
            if order.problem:
                raise Refused(order.problem)
            run = self._open(order)
            asked = run.accept(order)
            composed, why = self._answer(order, asked, run)
            decision = "sent"
        except Exception as error:  # an app may make anything raise anything
            decision, why = "refused", _reason(error)
            if not isinstance(error, FedscanError):
                log.error("Site %s: the gate failed", self.site.name, exc_info=error)
            composed = self._refusal(order, asked, error)
        self._write_down(order, asked, decision, why, composed)
        log.info(
            "Site %s: %s %s (%d bytes, %.1f s)%s",
            *(self.site.name, _name(order, asked), decision, composed.size),
            *(time.monotonic() - began, f": {why}" if why else ""),
        )
        return composed.content

    def _answer(self, order: Order, asked: Asked, run: SiteRun) -> tuple[Composed, str]:
        """Return what may leave, and what is to be said of it."""
        if asked.stage is None:
            return self._of_app(order, asked, run)
        in_sum, why, failed = run.in_sum(order.message), "", None

        def told() -> Change | Evaluation:
            nonlocal why, failed
            plain, why = self._of_app(order, asked, run)
            if plain.failure:
                failed = plain
                raise Refused(why)
            return run.told(asked, plain.content)

        if asked.kind == messages.SUM:
            composed = Composed(messages.stage_content(in_sum.answer()))
        else:
            try:
                masked = in_sum.answer(told)
            except Refused:
                if failed is None:
                    raise
                return failed, why
            composed = Composed(messages.masked_content(masked), masked=in_sum.plan.length)
        self._require_bytes(run, composed.size)
        return composed, why

    def _of_app(self, order: Order, asked: Asked, run: SiteRun) -> tuple[Composed, str]:
        """Return what the app answers, as it may leave."""
        given = run.given(asked)
        composed = Composed(given) if given else self._ask(order, asked, run)
        self._require_bytes(run, composed.size)
        if not given and not composed.failure:
            run.keep(asked, composed.trained, composed.digest, composed.content)
        why = composed.failure and f"the app failed: {composed.failure}"
        return composed, "the answer that was given before" if given else why

    def _write_down(
        self,
        order: Order,
        asked: Asked | None,
        decision: Literal["sent", "refused"],
        why: str,
        composed: Composed | None = None,
    ) -> None:
        run = self._run if self._run and self._run.id == order.run.run_id else None
        name = run.name if run else str(order.run.run_id)
        of_order = (name, asked.round if asked else 0, _name(order, asked))
        if composed is None:
            self.ledger.append(Entry(*of_order, decision, why))
            return
        arrays, metrics = composed.names()
        self.ledger.append(
            Entry(*of_order, decision, why, arrays, metrics, composed.size, composed.digest)
        )

    def _open(self, order: Order) -> SiteRun:
        """Return the run that an order belongs to; one that is new is looked at whole."""
        if self._run is None or self._run.id != order.run.run_id:
            self._run = None
            if self._running and self._running.run_id is not None:
                self._end_box()  # and with it what the run before has left there
            self._read_policy()
            self._require_approved(order)
            self._run = SiteRun(self.site, order, self.policy, self.folder, self._summand)
        self._require_approved(order)
        return self._run

    def _summand(self, state: SiteState) -> Summand:
        """Read anew with each run by which keys the site is in its secure sums."""
        from clients.gateway.sums import key_file, summand_of

        policy = read_sums(self.policy_file)
        return summand_of(state, policy, key_file(self.site.name, self.policy_file))

    def _require_approved(self, order: Order) -> None:
        """Look at the list with every order: an approval may have been taken back."""
        approved = Approvals.beside(self.policy_file).current()
        require_approved(order, {one.hash for one in approved})

    def _read_policy(self) -> None:
        """Read the policy; a box that was started under another one ends."""
        text, before = self.policy_file.read_bytes(), self._policy_text
        self.policy, self.settings = read_policies(self.policy_file)
        self._policy_text = text
        if text != before:
            self._end_box()

    def _ask(self, order: Order, asked: Asked, run: SiteRun) -> Composed:
        """Have the app answer an order in its box, and compose what it answers anew."""
        most = self.settings.max_message_bytes
        form = form_of(
            *(asked.kind, run.config, run.policy),
            site=self.site.name,
            sites=asked.sites,
            split=asked.split,
        )
        exchange = Exchange(order, Bounds.of_bytes(most))
        running = self._box_of(run)
        running.api.exchange = exchange
        try:
            running.box.run(exchange.token)
            deadline = time.monotonic() + run.config.run.round_timeout
            while not exchange.wait(LOOK_SECONDS):
                if why := running.box.ended:
                    raise Refused(f"the app's process ended: {why}")
                if running.box.finished(0):
                    break  # without the call that ends a task
                if time.monotonic() > deadline:  # when the server no longer waits for it
                    self._end_box()
                    raise Refused("the app took longer than the run's round-timeout")
            for name in exchange.refused:
                why = f"a call that an app has no need for: {name}"
                self._write_down(order, asked, "refused", why)
            reply = exchange.reply()
            if reply is None:
                raise Refused("the app gave no whole answer")
            return compose(reply, asked, run, form, self.settings)
        except Refused:
            raise
        except Exception as error:  # whose words may be the app's
            log.warning("Site %s: %s", self.site.name, error)
            raise Refused("the app's answer cannot be put together") from error
        finally:
            running.api.exchange = None
            if not running.box.finished(FINISH_SECONDS) or running.box.ended:
                self._end_box()

    def _require_bytes(self, run: SiteRun, size: int) -> None:
        day = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        limits = (
            ("max-message-bytes", self.settings.max_message_bytes, size),
            ("max-run-bytes", self.settings.max_run_bytes, size + self.ledger.sent_bytes(run.name)),
            (
                "max-day-bytes",
                self.settings.max_day_bytes,
                size + self.ledger.sent_bytes_since(day),
            ),
        )
        for key, most, found in limits:
            if most and found > most:
                raise Refused(f"more bytes than the policy lets out ({key})")

    def _refusal(self, order: Order, asked: Asked | None, error: Exception) -> Composed:
        """Compose what the server is told: the gate's own words, which hold nothing of the site."""
        words, kind = f"held back by the site's gate: {_reason(error)}", type(error).__name__
        content = failure_content(self.site.name, _name(order, asked), words, kind)
        return Composed(content, failure=kind)

    # The box

    def _box_of(self, run: SiteRun) -> _Running:
        running = self._running
        if running and (running.run_id not in (None, run.id) or running.box.ended):
            self._end_box()
        if self._running is None:
            try:
                self._prepare_box()
            except (FedscanError, OSError) as error:
                log.error("Site %s: no box can be started: %s", self.site.name, error)
                raise Refused("no sandbox can be started") from error
        self._running.run_id = run.id
        return self._running

    def _prepare_box(self) -> None:
        settings, environment = self.settings, {}
        kind = sandbox.kind() if settings.sandbox == "required" else sandbox.NONE
        if not kind:
            raise ConfigError(
                f"site {self.site.name}: this system grants no sandbox: allow unprivileged user "
                'namespaces, or install Bubblewrap. A policy with sandbox = "none" under [gate] '
                "does without: then a run's code has all rights of this user"
            )
        records, cache = make_folder(site_records(self.site.name)), make_folder(cache_dir())
        rules = self.folder / "policy.toml"  # a copy: the file may lie where a box has its own
        write_atomically(rules, self._policy_text)
        environment |= {VARIABLE: str(rules), "FEDSCAN_RECORDS": str(records.parent)}
        environment |= {"FEDSCAN_CACHE": str(cache), GATED: "1"}
        shown = (self.site.data_dir, rules, self.extractor)
        writable = (records, cache)
        if self._held is None:  # once: what boxes write counts, however many there are
            self._held = sum(map(bytes_below, writable))
        view = View(tuple(path for path in shown if path), writable, environment, self._held)
        limits = Limits(
            memory_bytes=int(settings.max_memory_gib * GIB) or psutil.virtual_memory().total,
            cpu_seconds=settings.max_cpu_hours * 3600 or math.inf,
            disk_bytes=int(settings.max_disk_gib * GIB),
        )
        stack = contextlib.ExitStack()
        box = stack.enter_context(sandbox.start_box(view, limits, kind, _of_app))
        api = RuntimeApi(box.listener)
        stack.callback(api.close)
        self._running = _Running(box, api, stack)

    def _end_box(self) -> None:
        if self._running:
            running, self._running = self._running, None
            running.stack.close()


def _name(order: Order, asked: Asked | None) -> str:
    """Name an order, as far as it could be read."""
    if asked:
        return asked.name
    kind = order.message.metadata.message_type
    return kind if kind in ORDERS else "unknown"


def _reason(error: Exception) -> str:
    """Say why something is held back, in words that may leave the site."""
    if isinstance(error, FedscanError):
        return error.public
    return f"the gate failed ({type(error).__name__})"


def _of_app(line: str) -> None:
    log.info("app: %s", line)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except (FedscanError, OSError) as error:
        log.error("%s", error)
