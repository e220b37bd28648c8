"""One site's work orders: say who it is, train on its scans, judge a model on one split."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from flwr.app import Context, Message

from clients.resources import compute_device, declared, granted
from common import messages
from common.config import RunConfig
from common.paths import cache_dir, site_records
from common.predictions import save_predictions
from common.seeding import derive_seed
from common.sites import PHANTOM_SEED, PHANTOM_TEST, Site, locate_site
from common.tasks import load_task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.imaging.prepare import ImageSet

# A child of Flower's logger, so that lines reach its console and `flwr run --stream`.
log = logging.getLogger("flwr.fedscan")


class Workplace:
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
        self.state, self.run_id = context.state, context.run_id
        self.config = RunConfig.from_flower(context.run_config)
        self.site: Site = locate_site(declared(context.node_config), self.config, _phantom)
        self.task: ModuleType = load_task(self.config.task)

    def hello(self, message: Message) -> Message:
        """Prepare the training and validation scans; answer with counts, never with names.

        That there are test scans is seen now, not after the training; none is opened.
        """
        counts = self.task.survey(self.site.name, self.site.data_dir)
        for split in ("train", "val"):
            data = self._split(split)
            counts[f"n_{split}"] = len(data.labels)
            counts["left_out"] += sum(data.left_out.values())
        with compute_device(self.config, granted()) as device:
            return messages.identity_reply(message, self.site.name, counts, str(device))

    def train(self, message: Message) -> Message:
        """Fit the global model to the site's training scans for one round."""
        config, round_number = self.config, int(message.content[messages.CONFIG]["round"])
        data = self._split("train")
        with compute_device(config, granted()) as device:
            model = self._model(message)
            fit = self.task.fit(
                model,
                data,
                config,
                first_step=(round_number - 1) * config.local_steps,
                steps=config.local_steps,
                seed=derive_seed(
                    config.seed, site=self.site.name, round=round_number, purpose="fit"
                ),
                device=device,
                private=self._private(),
            )
        # Flower keeps this record at the site, in memory, until the run ends.
        self.state[messages.PRIVATE] = messages.pack(fit.private)
        return messages.reply(
            message,
            {messages.WEIGHT: len(data.labels), **fit.metrics},
            arrays=messages.pack(self.task.shared_state(model)),
        )

    def evaluate(self, message: Message) -> Message:
        """Judge the model that came with the message on one split.

        What it predicts for each test scan stays in the site's own records.
        """
        split = str(message.content[messages.CONFIG]["split"])
        # Test scans are read once: there is nothing to keep them in memory for.
        data = self._split(split) if split != "test" else self._load(split)
        with compute_device(self.config, granted()) as device:
            predictions = self.task.predict(self._model(message), data, device)
        if split == "test":
            save_predictions(
                site_records(self.site.name) / f"{self.run_id}.csv", data.labels, predictions
            )
        metrics = self.task.score(data, predictions)
        return messages.reply(message, {messages.WEIGHT: len(data.labels), **metrics})

    def _model(self, message: Message) -> nn.Module:
        model = self.task.build_model(self.config)
        shared = messages.unpack(message.content[messages.ARRAYS])
        model.load_state_dict({**model.state_dict(), **shared}, strict=True)
        return model

    def _private(self) -> dict[str, Tensor]:
        if messages.PRIVATE not in self.state:
            return {}
        return messages.unpack(self.state[messages.PRIVATE])

    def _load(self, split: str) -> ImageSet:
        return self.task.load_split(
            self.site.name, self.site.data_dir, split, self.config, cache_dir()
        )

    def _split(self, split: str) -> ImageSet:
        return _remembered(self.config, self.site, split)


@lru_cache(maxsize=8)  # an actor serves many sites in turn: its memory must not grow with them
def _remembered(config: RunConfig, site: Site, split: str) -> ImageSet:
    return load_task(config.task).load_split(site.name, site.data_dir, split, config, cache_dir())


def _phantom(name: str, subjects: int) -> Path:
    from common.imaging.phantom_cache import ensure_site

    return ensure_site(cache_dir(), name, n=subjects, n_test=PHANTOM_TEST, seed=PHANTOM_SEED)
