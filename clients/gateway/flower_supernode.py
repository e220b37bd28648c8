"""Flower's own SuperNode, which proves itself to the proxy and does not sleep through a message.

Usage: ``python -m clients.gateway.flower_supernode [--client-certificate FILE --client-key FILE]
-- ARG …``, as ``flower-supernode ARG …``. Flower 1.42 has no option for a client's certificate, and
looks for messages every three seconds, and for the answer of a task every half.
"""

from __future__ import annotations

import argparse
import logging
import ssl
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 3.0  # seconds, as all here
SHARE = 20  # the pause is this part of the time for which nothing has come: 3 s after a minute
WAITING = 1.0  # a pause of Flower's that is shorter is one for the answer of a task


class Pauses:
    """Stands for the module ``time`` in Flower's loop, which calls nothing but ``sleep``."""

    def __init__(self) -> None:
        self._active = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for so long at most, the shorter the less time has passed since the last task."""
        now = time.monotonic()
        if seconds < WAITING:
            self._active = now
        time.sleep(min(seconds, max((now - self._active) / SHARE, SHORTEST_PAUSE)))


def present_certificate(certificate: Path, key: Path) -> None:
    """Let Flower's connections to the SuperLink show a certificate, as the proxy before it asks."""
    import httpx
    from flwr.supercore import log
    from flwr.supercore.error import FlowerError
    from flwr.supernode import fleet_http_connection
    from flwr.supernode.fleet_http_client import FleetHttpClient

    class Client(FleetHttpClient):
        def __init__(self, base_url: str, *, verify: ssl.SSLContext | bool | str, **more: Any):
            super().__init__(base_url, verify=client_context(verify, certificate, key), **more)

        def ActivateNode(self, request: Any) -> Any:
            try:
                return super().ActivateNode(request)
            except httpx.HTTPStatusError as error:
                # What the SuperLink says is Flower's to tell; this is the proxy's word.
                if error.response.status_code in (400, 403) and not FlowerError.from_json(
                    error.response.text
                ):
                    log(
                        logging.ERROR,
                        "The coordinator's proxy refuses this hospital's certificate (%s): it may "
                        "have ended, been removed, or not be admitted yet; `fedscan deploy admit` "
                        "at the coordinator admits it",
                        error.response.status_code,
                    )
                raise

    fleet_http_connection.FleetHttpClient = Client


def client_context(
    verify: ssl.SSLContext | bool | str, certificate: Path, key: Path
) -> ssl.SSLContext:
    """Return what Flower would verify the SuperLink with, and shows a certificate besides.

    Parameters
    ----------
    verify : ssl.SSLContext or bool or str
        A context, a file of certificates as PEM, or True for the system's.
    certificate, key : Path
        As PEM.

    Raises
    ------
    ValueError
        Without TLS there is nobody to show it to.
    """
    if verify is False:
        raise ValueError("a client's certificate needs TLS")
    if isinstance(verify, str):
        verify = ssl.create_default_context(cafile=verify)
    context = ssl.create_default_context() if verify is True else verify
    context.load_cert_chain(certificate, key)
    return context


def main() -> None:
    """Run Flower's command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--client-certificate", type=Path)
    parser.add_argument("--client-key", type=Path)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    own = parser.parse_args()
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    start_client_internal.time = Pauses()
    # A message is seen before all of it is there, and Flower then waits a second or more.
    start_client_internal.pull_objects = partial(
        start_client_internal.pull_objects,
        initial_backoff=SHORTEST_PAUSE,
        backoff_cap=LONGEST_PAUSE,
    )
    if own.client_certificate:
        present_certificate(own.client_certificate, own.client_key or own.client_certificate)
    sys.argv = ["flower-supernode", *own.words[own.words[:1] == ["--"] :]]
    flower_supernode()


if __name__ == "__main__":
    main()
