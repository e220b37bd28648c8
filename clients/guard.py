"""What may leave a site when something goes wrong, and who may ask for anything at all."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from pathlib import PureWindowsPath

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from clients.resources import declared
from common import messages
from common.config.run_config import RunConfig
from common.errors import AbsentError, ConfigError, FedscanError
from common.messages import Failure
from common.provenance import require_same_source
from common.site_names import SITE_NAME
from common.sites import site_name

log = logging.getLogger(__name__)


def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower mod: refuse other sources, and answer an exception with what may be told of it.

    Without it Flower sends ``str(exception)`` to the server, and with that perhaps a path or a
    participant. A simulated site shares its machine with the server and tells everything; a
    deployed one tells the public words of fedscan's own errors, of others only the type and the
    lines of code passed, and keeps the rest in its own log.
    """
    node_config = declared(context.node_config)
    simulated = "partition-id" in node_config and not {"site", "data-dir"} & node_config.keys()
    site = _site_name(node_config, context.run_config)
    phase = message.metadata.message_type
    try:
        config = message.content.config_records.get(messages.CONFIG, {})
        if config.get("round"):
            phase = f"{phase}, round {config['round']}"
        require_same_source(str(config.get("source-hash", "")), "the server")
        return call_next(message, context)
    except Exception as error:  # every failure must reach the server, told in safe words
        # A configuration is mended by who wrote it: lines of code would only hide the way out.
        traced = not isinstance(error, ConfigError | AbsentError)
        log.error("site %s failed in %s: %s", site, phase, error, exc_info=traced)
        told = traceback.format_exc() if simulated else _frames(error)
        return messages.failure_reply(
            message,
            Failure(
                site=site,
                phase=phase,
                error=str(error) or type(error).__name__ if simulated else _public(error),
                traceback=told if traced else "",
                kind=type(error).__name__,
            ),
        )


def _site_name(node_config: Mapping[str, object], run_config: Mapping[str, object]) -> str:
    try:
        return site_name(node_config, RunConfig.from_flower(run_config))
    except Exception:  # it will be met again, and told, by whoever answers the message
        name = str(node_config.get("site", node_config.get("partition-id", "")))
        return name if SITE_NAME.fullmatch(name) else "unnamed"


def _public(error: Exception) -> str:
    if isinstance(error, FedscanError):
        return error.public
    return f"{type(error).__name__} (its message stays in the site's log)"


def _frames(error: Exception) -> str:
    """Lines of code that an exception passed: names of files and functions, no values."""
    return "".join(
        f"{frame.name} ({PureWindowsPath(frame.filename).name}:{frame.lineno})\n"
        for frame in traceback.extract_tb(error.__traceback__)
    )
