"""One site's work orders: say who it is, train on its scans, judge a model on one split."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message

from clients.budget import Budget
from clients.digests import CONFIG, EXTRACTOR, ROSTER
from clients.orders import Orders, digest_of_order, require_round
from clients.policy import GATED, SitePolicy
from clients.resources import compute_device, declared, granted
from clients.secret import site_secret
from clients.state import SiteState
from common import messages
from common.config.run_config import RunConfig
from common.data.unlabelled import UnlabelledError
from common.errors import ConfigError, FedscanError
from common.evaluation.extractor import DEFAULTS
from common.evaluation.of_site import Evaluation
from common.extensions import allow_only
from common.local_round import judge_at_site, train_one_round
from common.paths import cache_dir, site_records
from common.privacy.guarantee import Guarantee, guarantee_of
from common.site_names import require_sites
from common.sites import Site, is_simulated, locate_site
from common.strategies.strategy import State, load_strategy, with_prefix
from common.summed import Change
from common.tasks.task import SiteContext, Task, load_task, read_run_config, roster, survey
from common.transport import decode_update, encode_update

if TYPE_CHECKING:
    from clients.sums import StageAtSite

log = logging.getLogger("flwr.fedscan")

RESIDUAL = "residual/"  # a part of a site's private state: what the transport owes


class SiteClient:
    """One site during one message: its configuration, its folder, its task.

    Parameters
    ----------
    context : Context
        Flower's context of the message.

    Raises
    ------
    ConfigError, DataContractError
        If the run's configuration, the node's, or the site's data cannot be used.
    """

    def __init__(self, context: Context) -> None:
        node_config = declared(context.node_config)
        if not is_simulated(node_config):  # its own policy says what may be imported here
            allow_only(SitePolicy.of_site(simulated=False).allowed_extensions)
        self.config = read_run_config(context.run_config)
        self.site: Site = locate_site(node_config, self.config, cache_dir())
        self.policy = SitePolicy.of_site(simulated=self.site.simulated)
        self.policy.require(self.site.name, self.config)
        if not self.site.simulated and self.site.name in self.config.data.unlabelled_sites:
            # Without labels of its own it would accept weights that its training does not explain.
            raise ConfigError(
                f"site '{self.site.name}': data.unlabelled is for hospitals of one owner, who "
                "knows all labels: leave the site's name out"
            )
        self.config = with_own_extractor(self.config, self.site, node_config)
        self.task: Task = load_task(self.config.task)
        self.state = SiteState(self.site.name, self.config.run.id or context.run_id)
        self.orders = Orders(
            self.site.name,
            self.task,
            self.config,
            self.policy,
            self.state,
            lambda: not self._data("train").labelled(),
        )

    def hello(self, message: Message) -> Message:
        """Prepare the training and validation scans; answer with counts, never with names.

        That there are test scans is seen now, not after the training; none is opened. So is what
        judges pictures, which must be the same at all sites. The data as they are now are those of
        the whole run.
        """
        counts = survey(self.site.name, self.site.data_dir, self.config)
        counts["min_participants"] = self.policy.min_participants
        digests = {ROSTER: _remembered_roster(self.config, self.site)}
        people = {}
        for split in ("train", "val"):
            if not counts[f"n_{split}"]:  # nothing to judge by, at a site without labels
                continue
            try:
                data, digests[split] = _remembered(self.config, self.site, split)
            except UnlabelledError:  # none is of data.classes, which validation tells again
                counts["left_out"] += counts.pop(f"n_{split}")
                counts[f"n_{split}"] = 0
                continue
            # A class's loss stands by itself, however many images without a label are beside.
            people[split] = (data.labelled() or data).people
            counts["left_out"] += counts[f"n_{split}"] - data.files
            counts[f"n_{split}"] = data.files
        self.policy.require_training(
            self.site.name, people["train"], counts["n_train"], self.config
        )
        if self.config.privacy.is_on:
            self._budget(people["train"]).require(self.state.run_id, self._promise(people["train"]))
        with compute_device(self.config, granted()) as device:
            extractor = self.task.extractor_hash(self.config)
            if self.config.privacy.secure_sums:
                # By what a site judges it tells now alone: in a sum nobody could tell it apart.
                counts, digests = {}, digests | {EXTRACTOR: extractor}
            if not self.state.ended:
                self.state.require_same_data(digests | self._config_digest, begins=True)
            return messages.identity_reply(message, self.site.name, counts, str(device), extractor)

    def train(self, message: Message) -> Message:
        """Fit the global model to the site's training scans for one round.

        What the task keeps between rounds, what the transport still owes, the weights that were
        received and the size of the site's own updates go to the site's own disk. A process that
        gets an order again goes on from the last step that was kept there.
        """
        order = message.content[messages.CONFIG]
        require_round(self.config, int(order["round"]))
        self.state.require_open()
        if self._masks:
            return self._masked(message, lambda: self._update(message))
        count, metrics, update, _ = self._train(message)
        return messages.update_reply(message, count, metrics, update)

    def _update(self, message: Message) -> Change:
        """Return an update as the server would decode it."""
        count, metrics, update, reference = self._train(message)
        trained = decode_update(update, reference, self.config.transport)
        return Change(count, metrics, trained, reference)

    def _train(self, message: Message) -> tuple[int, dict[str, float], State, State]:
        """Return scans trained on, numbers and the encoded update; and what it is added to."""
        order = message.content[messages.CONFIG]
        config, number, best = self.config, int(order["round"]), int(order["best"])
        before = self.state.load(last := self.state.last(number - 1))
        self.state.require_same_data(self._config_digest)
        sent = messages.unpack(message.content[messages.ARRAYS])
        data = self._data("train")
        with self._place(message) as place:
            place = self._private(place, digest_of_order(sent, place.sites))
            model = self.task.build_model(config, place)
            reference = self.orders.require_training(
                *(number, sent, place.sites, last, before),
                lambda: self._warm(model),
            )
            if self.config.privacy.is_on:
                people = data.labelled().people
                self._budget(people).reserve(self.state.run_id, self._promise(people))
            done = train_one_round(
                self.task,
                model,
                data,
                config,
                received=reference,
                private=before,
                place=place,
                round_number=number,
                progress=self.state.progress(number, digest_of_order(sent, place.sites)),
            )
        if not last:  # what stays here came with the first order alone
            reference = {name: reference[name] for name in done.sent}
        update, residual = encode_update(
            done.sent, reference, with_prefix(before, RESIDUAL), config.transport
        )
        kept = self.orders.to_keep(done.sent, reference, before)
        kept |= {RESIDUAL + name: tensor for name, tensor in residual.items()}
        self.state.save(number, done.private | kept, keep=best)
        seen = config.local_steps(len(data)) * config.training.batch_size
        shown = min((data.labelled() or data).people, seen // self.task.images_per_file(config))
        metrics = self.policy.told(self.config).training(done.metrics, shown)
        return data.files, metrics, update, reference

    def evaluate(self, message: Message) -> Message:
        """Judge the released model that came with the message on one split.

        What is found of single test scans stays in the site's own records. With the test the run
        ends, and with it the site's private state.
        """
        order = message.content[messages.CONFIG]
        split = str(order["split"])
        if split not in ("val", "test"):
            raise ConfigError("a model is judged on 'val' or 'test', nothing else")
        require_round(self.config, int(order["round"]))
        if self._masks:
            return self._masked(message, lambda: self._evaluate(message))
        sent = messages.unpack(message.content[messages.ARRAYS])
        asked = digest_of_order(sent, tuple(map(str, order["sites"])))
        if split == "test" and (answer := self.state.answer_to(asked)) is not None:
            return messages.evaluation_reply(message, Evaluation.from_bytes(answer))
        told = self._evaluate(message)
        if split == "test":
            try:
                self.state.end(asked, told.to_bytes())
            except FedscanError as error:  # the test cannot be repeated: its answer comes first
                log.warning("%s", error)
        return messages.evaluation_reply(message, told)

    def _evaluate(self, message: Message) -> Evaluation:
        """Return what may be told of a model."""
        order = message.content[messages.CONFIG]
        split, number = str(order["split"]), int(order["round"])
        sent = messages.unpack(message.content[messages.ARRAYS])
        sites = tuple(map(str, order["sites"]))
        self.state.require_open()
        self.state.require_same_data(self._config_digest)
        if self.config.privacy.secure_sums:
            self.state.require_same_data({EXTRACTOR: self.task.extractor_hash(self.config)})
        records = site_records(self.site.name) / self.state.run_id if split == "test" else None
        personal = load_strategy(self.config.strategy.name).is_personal
        with self._place(message) as place:
            released = self.orders.require_evaluation(
                *(number, split, sent, sites),
                lambda: self._warm(self.task.build_model(self.config, place)),
            )
            found = judge_at_site(
                self.task,
                released,
                self._data,
                split,
                self.config,
                private=self.state.load(self.state.last(number)) if personal else {},
                place=place,
                round_number=number,
                records=records,
            )
        return self.policy.told(self.config).evaluation(found)

    def take_part(self, message: Message) -> Message:
        """Answer a stage of a secure sum before masked vectors are sent, or after."""
        return messages.stage_reply(message, self._in_sum(message).answer())

    def _masked(self, message: Message, told: Callable[[], Change | Evaluation]) -> Message:
        """Answer an order by a masked vector; for the same order it is made once."""
        return messages.masked_reply(message, self._in_sum(message).answer(told))

    @property
    def _masks(self) -> bool:
        """Whether what leaves this process leaves the site, and only in a secure sum."""
        return self.config.privacy.secure_sums and not os.environ.get(GATED)

    def _in_sum(self, message: Message) -> StageAtSite:
        if not self.site.simulated:
            raise ConfigError(
                f"site '{self.site.name}': a hospital takes part in secure sums by its gate, which "
                "has its key: start it with fedscan supernode"
            )
        from clients.sums import StageAtSite, Summand, simulated_keys

        if not self.state.ended:
            self.state.require_same_data(self._config_digest)
        keys = simulated_keys(self.config.run.seed, self._sites_of(message))
        known = {site: key.public_key() for site, key in keys.items()}
        summand = Summand(self.state, keys[self.site.name], known)
        return StageAtSite(message, self.config, summand)

    @staticmethod
    def _sites_of(message: Message) -> tuple[str, ...]:
        sites = tuple(map(str, message.content[messages.CONFIG]["sites"]))
        require_sites(sites)
        return sites

    @property
    def _config_digest(self) -> dict[str, str]:
        return {CONFIG: _digest(self.config.of_result().items())}

    def _warm(self, model: Any) -> Any:
        """Let a simulated site, of one owner with the server, begin with the run's own files."""
        if self.site.simulated:
            self.task.warm_start(model, self.config)
        return model

    @contextlib.contextmanager
    def _place(self, message: Message) -> Iterator[SiteContext]:
        sites = self._sites_of(message)
        if self.site.name not in sites:
            raise ConfigError("the order's list of sites does not name this one")
        with compute_device(self.config, granted()) as device:
            secret = site_secret(self.site.name) if self.policy.private_seed else ""
            yield SiteContext(self.site.name, sites, device, self.policy.disclosure, secret)

    def _private(self, place: SiteContext, order: str) -> SiteContext:
        """Give a deployed site noise that follows from nothing but its secret and this order.

        Noise that another order had too, of a run with other settings, would cancel in the
        difference of their answers. The same order again, as after a crash, has the same noise. A
        simulation's noise follows from the run's seed, so that it can be repeated.
        """
        if not self.config.privacy.is_on or self.site.simulated:
            return place
        own = (site_secret(self.site.name), self.state.run_id, self._config_digest[CONFIG], order)
        return replace(place, secret=_digest([own]))

    def _promise(self, people: int) -> Guarantee:
        guarantee = guarantee_of(self.config, people)
        guarantee.spent(self.config.run.rounds)  # refused now rather than after the hello
        return guarantee

    def _budget(self, people: int) -> Budget:
        if not self.policy.max_epsilon:
            return Budget(self.site.name)
        return Budget(self.site.name, self.policy.max_epsilon, self.policy.max_delta or 1 / people)

    def _data(self, split: str) -> Any:
        """Load a split, and refuse data that are not those with which the run began."""
        # Test scans are read once: there is nothing to keep them in memory for.
        once = split == "test"
        digest_roster, loaded = (
            (_digest_roster, _loaded) if once else (_remembered_roster, _remembered)
        )
        digest = digest_roster(self.config, self.site)
        self.state.require_same_data({ROSTER: digest})  # before a scan is opened
        data, digest = loaded(self.config, self.site, split)
        self.state.require_same_data({split: digest})
        return data


def _loaded(config: RunConfig, site: Site, split: str) -> tuple[Any, str]:
    """Load a split, with a digest of whose scans could be read."""
    task = load_task(config.task)
    data = task.open_split(site.name, site.data_dir, split, config, cache_dir())
    return data, _digest(zip(data.persons, data.labels.tolist(), strict=True))


def _digest_roster(config: RunConfig, site: Site) -> str:
    """Digest which images there are, with which label, in which split."""
    return _digest(roster(site.name, site.data_dir, config))


# An actor serves many sites in turn: its memory must not grow with them, nor with a key's config.
_remembered = lru_cache(maxsize=8)(_loaded)
_remembered_roster = lru_cache(maxsize=64)(_digest_roster)


def _digest(rows: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def with_own_extractor(
    config: RunConfig, site: Site, node_config: Mapping[str, object]
) -> RunConfig:
    """Let a hospital name the file of an extractor; the server's word opens no file there."""
    if "extractor" in node_config:
        own = config.model.model_copy(update={"extractor": str(node_config["extractor"])})
        return config.model_copy(update={"model": own})
    if not site.simulated and config.model.extractor not in DEFAULTS:
        raise ConfigError(
            f"site '{site.name}': the run wants another extractor than fedscan's own. If you trust "
            "its file, name it when you start the SuperNode: --node-config 'extractor=\"/path\" …'"
        )
    return config
