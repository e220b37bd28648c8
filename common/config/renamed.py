"""Keys of earlier versions, of run configs and of comparisons, and where their meaning is now."""

from __future__ import annotations

_NOW = {
    "num-server-rounds": "run.rounds",
    "seed": "run.seed",
    "threads": "run.threads",
    "device": "run.device",
    "evaluate-every": "run.evaluate-every",
    "output-dir": "run.output-dir",
    "min-sites": "run.min-sites",
    "site-nodes": "run.site-nodes",
    "connect-timeout": "run.connect-timeout",
    "reply-timeout": "run.round-timeout",
    "run.reply-timeout": "run.round-timeout",
    "cohort-dir": "data.cohort-dir",
    "image-size": "data.size",
    "classifier": "model.classifier",
    "gan-checkpoint": "model.gan-checkpoint",
    "heights": "model.heights",
    "adapt": "model.adapt",
    "gan": "model.gan",
    "gan-changes": "model.gan-changes",
    "extractor": "model.extractor",
    "model.weights": "model.warm-start",
    "local-steps": "training.local-steps",
    "batch-size": "training.batch-size",
    "learning-rate": "training.learning-rate",
    "weight-decay": "training.weight-decay",
    "label-smoothing": "training.label-smoothing",
    "augment": "training.augment",
    "strategy": "strategy.name",
    "proximal-mu": "strategy.mu",
    "weighting": "strategy.weighting",
    "server-learning-rate": "strategy.server-learning-rate",
    "most-share": "strategy.most-share",
    "most-norm": "strategy.most-norm",
    "share": "strategy.share",
}
OF_COMPARISONS = {"seeds": "repetitions", "first-seed": "first-repetition"}
_GONE = {
    "server-momentum": "strategy 'fedavgm' has a strategy.momentum",
    "feature-layer": "features are those of the discriminator's first convolution",
    "features": "the discriminator's weights are not trained on",
}


def hint(key: str) -> str:
    """Say what became of an old key; "" for any other."""
    if key in _NOW:
        return f"; it is '{_NOW[key]}' now"
    return f"; it was removed: {_GONE[key]}" if key in _GONE else ""
