"""The Flower ClientApp: one process of one hospital."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.guard import guard

app = ClientApp(mods=[guard])


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say who the site is and how many scans it has."""
    return _site_client(context).hello(message)


@app.query("sum")
def take_part(message: Message, context: Context) -> Message:
    """Answer a stage of a secure sum that needs no training."""
    return _site_client(context).take_part(message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the site's own scans for one round."""
    return _site_client(context).train(message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the global model on the site's own scans."""
    return _site_client(context).evaluate(message)


def _site_client(context: Context):
    # Late: a deployed site starts a process for every message, and a refused one needs no torch.
    from clients.local import SiteClient

    return SiteClient(context)
