"""Two sites with quadratic losses, on which a strategy's rounds can be computed by hand.

Site i minimizes F_i(w) = a_i/2 · ‖w - b_i‖² by plain gradient descent. The model has three
parameters of one number each, of which the sites' half of a strategy sees what it would see of a
classifier: ``body.weight``, ``norm.weight`` and ``head.weight``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.config.run_config import RunConfig
from common.strategies.strategy import SiteUpdate, load_strategy
from common.tasks.task import read_run_config
from common.training.hooks import Batch, Hooks

PARTS = {"body.weight": "body", "norm.weight": "norm", "head.weight": "head"}
START = {name: torch.zeros(1) for name in PARTS}


class Point(nn.Module):
    """The model: three numbers."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name in PARTS:
            part = nn.Identity()
            part.weight = nn.Parameter(state[name].clone())
            self.add_module(name.partition(".")[0], part)

    def forward(self, curvature: Tensor) -> Tensor:
        """Return the three numbers, as features and logits (1, 3)."""
        del curvature
        return self.head(torch.cat([p for _, p in sorted(self.named_parameters())])[None])


@dataclass
class QuadraticSite:
    """One site: its loss, and what it keeps between rounds."""

    a: float
    b: float
    steps: int = 1
    rate: float = 0.1
    images: int = 10
    kept: dict[str, Tensor] = field(default_factory=dict)  # the strategy's private state
    own: dict[str, Tensor] = field(default_factory=dict)  # parameters that are not shared
    config: RunConfig | None = None
    parts = PARTS

    def begin(self, config: RunConfig, shared: dict[str, Tensor], arrays: dict[str, Tensor]):
        self.config, self.arrays, self.private = config, arrays, self.kept
        self.weights = {**START, **self.own, **shared}
        return self

    def criterion(self, logits: Tensor) -> Tensor:
        return self.a / 2 * (logits - self.b).square().sum()

    def fit(self, weights, hooks: Hooks, *, model: str = "common") -> dict[str, Tensor]:
        """Make plain gradient steps."""
        point = Point(weights)
        hooks.before_round(point)
        for _ in range(self.steps):
            point.zero_grad(set_to_none=True)
            images = torch.zeros(1, 1)
            logits = point(images)
            loss = self.criterion(logits)
            batch = Batch(images, torch.zeros(1, dtype=torch.long), logits, loss, self.criterion)
            if (term := hooks.loss(point, batch)) is not None:
                loss = loss + term
            loss.backward()
            hooks.gradient(point)
            with torch.no_grad():
                for parameter in point.parameters():
                    if parameter.grad is not None:
                        parameter -= self.rate * parameter.grad
        return {name: p.detach().clone() for name, p in point.named_parameters()}


class Federation:
    """Sites, a strategy, and the server's state."""

    def __init__(self, strategy: str, *sites: QuadraticSite, **options: float) -> None:
        values = {f"strategy.{key.replace('_', '-')}": value for key, value in options.items()}
        self.config = read_run_config({"strategy.name": strategy, **values})
        self.strategy = load_strategy(strategy)
        self.sites = {f"site-{number}": site for number, site in enumerate(sites)}
        self.shared = {n: t for n, t in START.items() if self.shares(n)}
        self.state = self.strategy.first_state(self.shared, self.config, tuple(self.sites))

    def shares(self, name: str) -> bool:
        return self.strategy.shares(name, PARTS[name], self.config)

    def round(self, rate: float = 1.0) -> dict[str, float]:
        """Do one round; return the server's weights."""
        updates = {}
        for name, site in self.sites.items():
            arrays = self.strategy.arrays(self.state)
            done = self.strategy.train(site.begin(self.config, self.shared, arrays))
            site.kept = dict(done.private)
            site.own = {n: t for n, t in done.parameters.items() if not self.shares(n)}
            shared = {n: t for n, t in done.parameters.items() if self.shares(n)}
            assert done.arrays.keys() == arrays.keys()
            loss = float(site.criterion(torch.cat([self.shared[n] for n in sorted(self.shared)])))
            updates[name] = SiteUpdate(
                shared, site.images, float(site.images), done.arrays, {"loss": loss}
            )
        self.shared, self.state = self.strategy.aggregate(
            updates,
            self.shared,
            self.state,
            self.config,
            participants=len(self.sites),
            rate=rate,
        )
        return {name: float(tensor) for name, tensor in self.shared.items()}

    def personal(self, number: int) -> dict[str, float]:
        """Return the weights by which a site is judged."""
        site = self.sites[f"site-{number}"]
        weights = {**START, **site.own, **self.shared}
        found = self.strategy.personal(weights, site.kept, self.config)
        return {name: float(tensor) for name, tensor in found.items()}


def rounds(strategy: str, *sites: QuadraticSite, number: int = 3, **options: float) -> list[float]:
    """Return the server's ``body.weight`` after each round."""
    federation = Federation(strategy, *sites, **options)
    return [federation.round()["body.weight"] for _ in range(number)]
