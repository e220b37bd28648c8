"""How the sites' updates become one model: Flower's strategies, and how much each site counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedProx

from common.config.run_config import RunConfig
from common.messages import METRICS, VOTE, WEIGHT, pack
from common.tasks.task import State
from server.bounds import bounded_votes


def make_strategy(config: RunConfig, first: State, *, participants: int) -> FedAvg:
    """Build the strategy whose ``aggregate_train`` merges the replies of a round.

    It averages weighted by :data:`VOTE`, which :func:`give_votes` puts into the replies. FedProx
    averages in the same way; its term is added by the sites, which know μ from the same run config.

    With a server learning rate η, the average is a direction and not the place to go (Hsu et al.
    2019, arXiv 1909.06335). For generation, η = √K with K sites: Adam's steps
    are as long as the noise of a site's gradients allows, averaging K sites divides that noise by
    √K, and a longer step makes use of it. It is taken in all that is shared, also in what one site
    alone has learned.

    Parameters
    ----------
    config : RunConfig
    first : mapping of str to Tensor
        The weights with which the first round begins.
    participants : int
        K.
    """
    rate = config.strategy.server_learning_rate
    if not rate:
        rate = math.sqrt(participants) if config.task == "generation" else 1.0
    if config.strategy.name == "fedprox":
        return FedProx(weighted_by_key=VOTE, proximal_mu=config.strategy.mu)
    if rate == 1:
        return FedAvg(weighted_by_key=VOTE)
    strategy = FedAvgM(
        weighted_by_key=VOTE,
        server_learning_rate=rate,
        server_momentum=0.0,
    )
    strategy.current_arrays = pack(first)  # Flower's own loop of rounds would do so
    return strategy


def give_votes(replies: Mapping[str, Message], config: RunConfig) -> list[str]:
    """Write into each reply how much it counts in the average.

    *images*: the site's training examples (McMahan et al. 2017). *uniform*: one site, one vote,
    since with votes by images a generator hardly hears a small hospital.

    Whatever the weighting, no site has more than ``most_share`` of the votes:
    :func:`server.bounds.bounded_votes`.

    Parameters
    ----------
    replies : mapping of str to Message
        By site.
    config : RunConfig

    Returns
    -------
    list of str
        The sites whose votes were bounded.
    """
    if config.strategy.weighting == "images":
        votes = {site: float(reply.content[METRICS][WEIGHT]) for site, reply in replies.items()}
    else:
        votes = dict.fromkeys(replies, 1.0)
    bounded = bounded_votes(votes, config.strategy.most_share)
    for site, reply in replies.items():
        reply.content[METRICS][VOTE] = bounded[site]
    return [site for site in votes if bounded[site] < votes[site]]
