"""One run as the gate sees it: whose app it is, what it may ask, and what the site has answered."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from clients.digests import CONFIG
from clients.gateway.facts import SiteFacts
from clients.gateway.runtime_api import Refused
from clients.local import with_own_extractor
from clients.orders import Orders, digest_of_order, require_round
from clients.policy import SitePolicy
from clients.state import SiteState
from clients.sums import StageAtSite, Summand
from common import messages
from common.config.run_config import RunConfig
from common.evaluation.of_site import Evaluation
from common.extensions import allow_only
from common.files import write_atomically
from common.site_names import require_sites
from common.sites import Site
from common.summed import Change
from common.tasks.task import SiteContext, load_task, read_run_config
from common.transport import decode_update

if TYPE_CHECKING:
    from collections.abc import Collection

    from flwr.app import Message, RecordDict
    from torch import Tensor

    from clients.gateway.upstream import Order

APP_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}/[a-z0-9][a-z0-9_-]{0,63}")
APP_VERSION = re.compile(r"[0-9A-Za-z]+([.+-][0-9A-Za-z]+){0,7}")
ANSWERS = "answers"  # a folder in that of the run's state
KEYS = {"round", "split", "sites", "best", "source-hash"}
ORDERS = (messages.HELLO, messages.TRAIN, messages.EVALUATE, messages.SUM)
WITH_WEIGHTS = (messages.TRAIN, messages.EVALUATE)


@dataclass(frozen=True)
class Asked:
    """What one order asks for.

    Parameters
    ----------
    kind : {"query.hello", "train", "evaluate", "query.sum"}
    round : int
        0 where none is meant.
    split : str
    sites : tuple of str
    best : int
        The best round so far.
    source : str
        Hash of the server's sources.
    weights : dict of str to Tensor
        As they came, encoded.
    stage : Stage, optional
        Of a secure sum.
    """

    kind: str
    round: int
    split: str
    sites: tuple[str, ...]
    best: int
    source: str
    weights: dict[str, Tensor]
    stage: messages.Stage | None = None

    @classmethod
    def of(cls, message: Message) -> Asked:
        """Read an order.

        Raises
        ------
        Refused
            If it is none that fedscan's server gives.
        """
        kind, content = message.metadata.message_type, message.content
        if kind not in ORDERS:
            raise Refused("an order of a kind that fedscan does not have")
        records = {messages.CONFIG} | ({messages.ARRAYS} if kind in WITH_WEIGHTS else set())
        if kind == messages.SUM or (kind in WITH_WEIGHTS and messages.OF_SUM in content):
            records.add(messages.OF_SUM)
        if set(content) != records or set(order := content[messages.CONFIG]) != KEYS:
            raise Refused("an order that is not as fedscan's server gives it")
        try:
            return cls(
                kind,
                int(order["round"]),
                str(order["split"]),
                tuple(map(str, order["sites"])),
                int(order["best"]),
                str(order["source-hash"]),
                messages.unpack(content[messages.ARRAYS]) if kind in WITH_WEIGHTS else {},
                messages.stage_in(message),
            )
        except (TypeError, ValueError) as error:
            raise Refused("an order that cannot be read") from error

    @property
    def name(self) -> str:
        """What it is called in the ledger, and among the orders of a run."""
        if self.kind == messages.HELLO:
            return self.kind
        told = self.split
        if self.stage and self.kind == messages.SUM:
            told += f", {self.stage.stage}"
        return f"{self.kind}{f' ({told})' if told else ''}, round {self.round}"


class SiteRun:
    """A run that the site takes part in.

    Parameters
    ----------
    site : Site
    order : Order
        The run's first.
    policy : SitePolicy
    records : Path
        The gate's own folder, which no app sees.
    summand : callable, optional
        Makes the site in the run's secure sums, given the gate's state of the run.

    Raises
    ------
    FedscanError
        If the policy refuses what the run is configured to do.
    """

    def __init__(
        self,
        site: Site,
        order: Order,
        policy: SitePolicy,
        records: Path,
        summand: Callable[[SiteState], Summand] | None = None,
    ) -> None:
        self.id, self.site, self.policy = order.run.run_id, site, policy
        self.app = order.given.fab.hash_str
        allow_only(policy.allowed_extensions)
        config = read_run_config(order.context.run_config)
        self.config: RunConfig = with_own_extractor(config, site, order.context.node_config)
        if self.config.data.cohort_dir:
            raise Refused("data.cohort-dir is set: a hospital's data are where the hospital says")
        if site.name in self.config.data.unlabelled_sites:
            raise Refused("data.unlabelled names the site, whose labels would then explain nothing")
        policy.require(site.name, self.config)
        self.task = load_task(self.config.task)
        self.facts = SiteFacts.of(site, self.config)
        train = self.facts.splits["train"]
        policy.require_training(site.name, train.people, train.images, self.config)
        self.name = self.config.run.id or str(self.id)
        self.state = SiteState(site.name, self.name, records)
        self._summand = None
        if self.config.privacy.secure_sums:
            if summand is None:
                raise Refused("the run asks for secure sums, and the site has no key for them")
            self._summand = summand(self.state)
        self._orders = Orders(
            *(site.name, self.task, self.config, policy, self.state),
            lambda: not self.facts.labelled,
        )
        self._before: Mapping[str, Tensor] = {}
        self.received: Mapping[str, Tensor] = {}  # the weights of the last order, decoded

    def accept(self, order: Order) -> Asked:
        """Return what an order asks for, which the site answers.

        Raises
        ------
        FedscanError
            If the site does not follow it.
        """
        if order.given.fab.hash_str != self.app:
            raise Refused("the app has changed since the run began")
        asked = Asked.of(order.message)
        if asked.kind != messages.HELLO and bool(asked.stage) != bool(self._summand):
            raise Refused("an order for more than a secure sum, or for one that the run has not")
        if asked.kind == messages.SUM and self.state.ended:
            return asked  # the answer to the last one may come again
        begins = asked.kind == messages.HELLO
        tested = asked.split == "test" and self.state.answer_to(self._digest_of(asked))
        if self.state.ended and (begins or tested):
            return asked  # the answer is the one that was given before
        self.state.require_open()
        self.state.require_same_data({CONFIG: self._digest}, begins=begins)
        if begins or asked.kind == messages.SUM:
            return asked
        require_sites(sites := asked.sites)
        if self.site.name not in sites:
            raise Refused("the order's list of sites does not name this one")
        require_round(self.config, asked.round)
        place = SiteContext(self.site.name, sites, torch.device("cpu"), self.policy.disclosure)
        model = partial(self.task.build_model, self.config, place)
        if asked.kind == messages.TRAIN:
            if asked.split != "train":
                raise Refused("an order to train on another split")
            self._before = self.state.load(last := self.state.last(asked.round - 1))
            self.received = self._orders.require_training(
                asked.round, asked.weights, sites, last, self._before, model
            )
        else:
            if asked.split not in ("val", "test"):
                raise Refused("an order to judge on another split")
            self.received = self._orders.require_evaluation(
                asked.round, asked.split, asked.weights, sites, model
            )
        return asked

    def given(self, asked: Asked) -> RecordDict | None:
        """Return the answer that this very order got before, as after a crash of the server.

        So it tells nothing new, also where the app would not find the same bits again.
        """
        try:
            raw = self._answer(asked).read_bytes()
        except FileNotFoundError:
            return None
        return recorddict_from_proto(RecordDictProto.FromString(raw))

    def keep(
        self, asked: Asked, trained: Mapping[str, Tensor], digest: str, content: RecordDict
    ) -> None:
        """Remember an answer that is about to leave.

        Parameters
        ----------
        asked : Asked
        trained : mapping of str to Tensor
            Of an order to train: the whole weights that are sent back.
        digest : str
            Of all that is sent.
        content : RecordDict
            All that is sent.

        Raises
        ------
        FedscanError
            If the order was answered before in another way.
        """
        if self.state.ended:
            if self._summand:
                return  # a hello tells no count
            kept = json.loads(self.state.last_answer())
            if kept.get(asked.kind) != digest:
                raise Refused("another answer than was given before")
            return
        answer = f"answer to {asked.name}"
        if asked.split == "test" and not self._summand:
            hello = self.state.digest_of(f"answer to {messages.HELLO}")
            answers = {messages.EVALUATE: digest, messages.HELLO: hello}
            self.state.end(self._digest_of(asked), json.dumps(answers).encode())
            return
        self.state.require_one_order(answer, digest)
        self._store(asked, content)
        if asked.kind == messages.TRAIN:
            reference = {name: self.received[name] for name in trained}
            kept = self._orders.to_keep(trained, reference, self._before)
            self.state.save(asked.round, kept, keep=asked.best)

    def in_sum(self, message: Message) -> StageAtSite:
        """Return the stage of a secure sum that an order asks for.

        Raises
        ------
        FedscanError
            It is of no sum that can be.
        """
        try:
            return StageAtSite(message, self.config, self._summand)
        except (TypeError, ValueError) as error:
            raise Refused("a stage of a secure sum that cannot be read") from error

    def told(self, asked: Asked, content: RecordDict) -> Change | Evaluation:
        """Return what is summed: what would leave otherwise."""
        if asked.kind == messages.EVALUATE:
            return messages.evaluation_of(content)
        metrics = dict(content[messages.METRICS])
        images = int(metrics.pop(messages.WEIGHT))
        update = messages.unpack(content[messages.ARRAYS])
        reference = {name: self.received[name] for name in update}
        trained = decode_update(update, reference, self.config.transport)
        return Change(images, metrics, trained, reference)

    def _answer(self, asked: Asked) -> Path:
        name = hashlib.sha256(f"{asked.name} {self._digest_of(asked)}".encode()).hexdigest()
        return self.state.folder / ANSWERS / f"{asked.round}-{name}"

    def _store(self, asked: Asked, content: RecordDict) -> None:
        path = self._answer(asked)
        write_atomically(path, recorddict_to_proto(content).SerializeToString())
        for old in path.parent.glob("[1-9]*-*"):  # orders of rounds that nobody asks for again
            if int(old.name.partition("-")[0]) < asked.round - 1:
                old.unlink(missing_ok=True)

    @staticmethod
    def _digest_of(asked: Asked) -> str:
        return digest_of_order(asked.weights, asked.sites)

    @property
    def _digest(self) -> str:
        text = json.dumps(sorted(self.config.of_result().items()))
        return hashlib.sha256(text.encode()).hexdigest()


def require_approved(order: Order, approved: Collection[str]) -> None:
    """Refuse an app whose bundle the site has not approved, byte by byte.

    Raises
    ------
    Refused
    """
    fab, run = order.given.fab, order.run
    digest = hashlib.sha256(fab.content).hexdigest()
    if digest not in approved:
        raise Refused(f"the app {digest} is not approved here. Ask the hospital to approve it")
    if not fab.hash_str == run.fab_hash == digest:
        raise Refused("the app goes under another's hash")
    if not APP_NAME.fullmatch(run.fab_id) or not APP_VERSION.fullmatch(run.fab_version):
        raise Refused("the app's name or version is not usable")
