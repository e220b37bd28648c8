"""How sites learn together: what is shared, what a site does in a round, what the server does.

A strategy is one module of this package with an object ``STRATEGY``, and ``strategy.name`` is the
module's name, ``-`` for ``_``; nothing else knows it. What several share is in modules whose names
begin with ``_``. Or it is a class of a package outside fedscan, by its name
``package.module:Class`` (:mod:`common.extensions`). The loop of rounds bounds what one site can do
(:mod:`common.bounds`).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from common import strategies
from common.averages import State, weighted_mean
from common.errors import ConfigError
from common.extensions import is_extension, load_class, name_of
from common.lazy import Lazy
from common.settings import Settings, as_words, did_you_mean
from common.site_training import SiteTraining, SiteTuning, Trained
from common.training.hooks import Hooks

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

ARRAYS = "strategy/"  # before the names of a strategy's further arrays, beside those of weights


class Options(Settings):
    """Options of one strategy, as fields of a subclass; a run config has ``strategy.options``."""

    what: ClassVar[str] = "run config"
    prefix: ClassVar[str] = "strategy."


@dataclass(frozen=True)
class SiteUpdate:
    """What a strategy's server half sees of a site's round.

    Parameters
    ----------
    weights : mapping of str to Tensor
        All shared weights after the site's training, bounded in how far they have moved.
    count : int
        Images that the site trains on.
    votes : float
        How much it counts in an average, by the run's weighting, bounded; above 0.
    arrays : mapping of str to Tensor
        The strategy's further arrays, as the site has sent them.
    metrics : mapping of str to float
        What the training reports, where the site tells it.
    statistics : mapping of str to Tensor
        What is shared and is no weight, but a statistic over the site's people.
    """

    weights: State
    count: int
    votes: float
    arrays: State = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    statistics: State = field(default_factory=dict)


class Strategy(ABC):
    """Base of all strategies; its methods are pure and know neither messages nor tasks."""

    Options: ClassVar[type[Options]] = Options
    # Whether the server half needs the mean of the sites' weights by votes, and nothing else.
    secure_sums: ClassVar[bool] = False
    # Whether its hooks learn from images without a label, which are left out otherwise.
    uses_unlabelled: ClassVar[bool] = False
    # Names, among the further arrays, of sums over a site's people: a site of too few sends zeros.
    sums_over_people: ClassVar[tuple[str, ...]] = ()
    # Whether DP-SGD covers all that it makes of images: one training a round, no hook sees any.
    private: ClassVar[bool] = False
    # Whether the server's learning rate has a meaning: there is an average, and steps along it.
    takes_server_rate: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name in the run config: of the module, with ``-`` for ``_``; or of the class."""
        package, _, name = type(self).__module__.rpartition(".")
        return name.replace("_", "-") if package == strategies.__name__ else name_of(type(self))

    @property
    def summary(self) -> str:
        """What it does, in the one line that the class begins with."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    @property
    def of_classifiers(self) -> bool:
        """Whether it steps into a classifier's training, or makes a model for each site."""
        own = (type(self).hooks, type(self).train)
        return self.is_personal or own != (Strategy.hooks, Strategy.train)

    @property
    def splits(self) -> bool:
        """Whether it keeps a part of a model at the sites."""
        return type(self).shares is not Strategy.shares

    @property
    def is_personal(self) -> bool:
        """Whether each site is judged by a model of its own."""
        own = (type(self).personal, type(self).tune)
        return self.splits or own != (Strategy.personal, Strategy.tune)

    def options(self, config: RunConfig) -> Any:
        """Return the strategy's options in a run.

        Raises
        ------
        ConfigError
            For one that the strategy does not have, or a value out of range.
        """
        own = self.Options().to_mapping()
        given = [word.partition("=")[0] for word in config.strategy.options.split()]
        if unknown := [key for key in given if key not in own]:
            every = [*own, *type(config.strategy)().to_mapping()]
            hint = did_you_mean(unknown[0], every).replace(" '", " 'strategy.")
            known = {name: load_strategy(name).Options().to_mapping() for name in strategy_names()}
            having = [name for name in known if unknown[0] in known[name]]
            raise ConfigError(
                f"run config: unknown key 'strategy.{unknown[0]}'{hint or '.'} Strategy "
                f"'{self.name}' has {'the options ' + as_words(own) if own else 'no options'}"
                f"{'. With such an option: ' + ', '.join(having) if having else ''}"
            )
        return self.Options.from_words(config.strategy.options)

    def check(self, config: RunConfig) -> None:
        """Refuse what has no effect with this strategy, or that it cannot do.

        Raises
        ------
        ConfigError
        """
        self.options(config)
        if config.strategy.server_learning_rate and not self.takes_server_rate:
            what = "run config: strategy.server-learning-rate has no effect with strategy"
            raise ConfigError(f"{what} '{self.name}': leave it out")
        if config.privacy.is_on and not self.private:
            what = f"run config: strategy '{self.name}' uses images beyond what privacy.epsilon"
            raise ConfigError(f"{what} accounts for. fedscan strategies tells which do not")
        if config.privacy.is_central and not self.secure_sums:
            what = f"run config: strategy '{self.name}' needs more than the mean of sites' weights"
            raise ConfigError(f"{what}, to which privacy.central-epsilon adds noise: try fedavg")
        if config.privacy.secure_sums and not self.secure_sums:
            able = ", ".join(name for name in strategy_names() if load_strategy(name).secure_sums)
            what = f"run config: strategy '{self.name}' needs more than the mean of sites' weights"
            raise ConfigError(f"{what}, all that privacy.secure-sums tells: accepted is {able}")

    def sites_needed(self, config: RunConfig) -> int:
        """Return how many sites must take part for the server half to have a meaning."""
        return 1

    def trains_at(self, site: str, config: RunConfig) -> bool:
        """Tell whether a site learns: not one whose labels are hidden, where labels are needed."""
        return self.uses_unlabelled or site not in config.data.unlabelled_sites

    def shared_steps(self, steps: int, config: RunConfig) -> int:
        """Return how many of a round's steps move what leaves a site; sites ask for a few."""
        del config
        return steps

    def added_terms(self, config: RunConfig) -> Mapping[str, float]:
        """Return the weights of what is added to the loss of shared weights, by option.

        Beside a strong term little of the loss on a site's own labels is left in an update, and the
        server may have chosen what the term pulls towards: sites bound it.
        """
        del config
        return {}

    def shares(self, name: str, part: str, config: RunConfig) -> bool:
        """Tell whether a parameter travels; any other stays at the site, from round to round.

        By default all, or those of the one network that ``strategy.share`` names: its name is the
        first part of theirs.

        Parameters
        ----------
        name : str
        part : {"body", "norm", "head"}
        config : RunConfig
        """
        del part
        return config.strategy.share in ("both", name.partition(".")[0])

    # The site half

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return what a site does in one training.

        Parameters
        ----------
        config : RunConfig
        arrays : mapping of str to Tensor
            The further arrays as the server has sent them: :meth:`arrays`.
        private : mapping of str to Tensor
            What the site's last ``after_round`` has kept; empty at first.
        """
        del config, arrays, private
        return Hooks()

    def train(self, site: SiteTraining) -> Trained:
        """Do a site's half of a round: by default one training, with :meth:`hooks`."""
        hooks = self.hooks(site.config, site.arrays, site.private)
        parameters = site.fit(site.weights, hooks)
        return Trained(parameters, *hooks.after_round(parameters))

    def personal(self, weights: State, private: State, config: RunConfig) -> dict[str, Tensor]:
        """Return the weights by which a site is judged: by default those that it is given.

        Parameters
        ----------
        weights : mapping of str to Tensor
            What is released, with the site's own of those parameters that are not shared.
        private : mapping of str to Tensor
            What the site has kept of the same round.
        config : RunConfig
        """
        del private, config
        return dict(weights)

    def tune(self, site: SiteTuning, weights: State) -> dict[str, Tensor]:
        """Adapt weights to a site once, before its test; by default leave them as they are."""
        del site
        return dict(weights)

    # The server half

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return the server's state before the first round; the same wherever it is built."""
        del weights, config, sites
        return {}

    def arrays(self, state: State) -> dict[str, Tensor]:
        """Return what of the server's state travels to the sites, beside the weights.

        A site sends arrays of the same names and shapes back: what it has made of them, so that
        the difference is as small as the site's part in it.
        """
        del state
        return {}

    @abstractmethod
    def aggregate(
        self,
        updates: Mapping[str, SiteUpdate],
        weights: State,
        state: State,
        config: RunConfig,
        *,
        participants: int,
        rate: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Make the next round's weights and server state.

        Parameters
        ----------
        updates : mapping of str to SiteUpdate
            By site, in order of name; at least one. A site whose answer was not usable is missing.
        weights : mapping of str to Tensor
            The server's, with which the round began.
        state : mapping of str to Tensor
            The server's, of this strategy.
        config : RunConfig
        participants : int
            Sites of the run.
        rate : float
            The server's learning rate.
        """

    def statistics(self, updates: Mapping[str, SiteUpdate], config: RunConfig) -> dict[str, Tensor]:
        """Put together the sites' statistics, in which no step is taken: by default their mean."""
        del config
        return mean_of(updates, "statistics")


def mean_of(
    updates: Mapping[str, SiteUpdate], what: Literal["weights", "arrays", "statistics"] = "weights"
) -> dict[str, Tensor]:
    """Return the mean of one part of the sites' updates by their votes."""
    votes = {site: update.votes for site, update in updates.items()}
    return weighted_mean(Lazy(updates, lambda site: getattr(updates[site], what)), votes)


def join(weights: State, arrays: State) -> dict[str, Tensor]:
    """Put weights and a strategy's further arrays into one mapping, as they travel."""
    return {**weights, **{ARRAYS + name: tensor for name, tensor in arrays.items()}}


def split(joined: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take apart what :func:`join` has put together."""
    arrays = with_prefix(joined, ARRAYS)
    return {n: tensor for n, tensor in joined.items() if not n.startswith(ARRAYS)}, arrays


def with_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}


def strategy_names() -> list[str]:
    """Name the strategies that there are."""
    modules = {module.name for module in pkgutil.iter_modules(strategies.__path__)} - {"strategy"}
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))


def load_strategy(name: str) -> Strategy:
    """Import a strategy by its name in the run config.

    Raises
    ------
    ConfigError
        There is none of that name, or it may not be loaded here.
    """
    if is_extension(name):
        return load_class(name, "run config: strategy.name", Strategy)()
    if name not in strategy_names():
        raise ConfigError(
            f"run config: strategy.name = {name!r}: accepted is one of "
            f"{', '.join(strategy_names())}{did_you_mean(name, strategy_names())}"
        )
    found: Any = importlib.import_module(f"{strategies.__name__}.{name.replace('-', '_')}")
    return found.STRATEGY
