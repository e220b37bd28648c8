"""Takes the place of ``server/app.py`` in a bundle: it orders the attacks, and looks at what comes.

It writes into its run's folder what each site has answered to each attack, and whether any of it
holds a part of a scan.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from common import messages
from common.rounds import begin, first_order
from common.tasks.task import SiteContext, read_run_config
from server.exchange import Deadline, Mail

app = ServerApp()
SITES = ("island", "north")
HELLO = (0, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24)
TRAIN = (30, 31)
PIECE = 30  # bytes of a scan that are looked for


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = read_run_config(context.run_config)
    folder = Path(config.run.output_dir)
    scans = [path.read_bytes() for path in sorted(folder.parent.rglob("*.nii.gz"))]
    while len(nodes := list(grid.get_node_ids())) < len(SITES):
        time.sleep(0.2)
    place = SiteContext("server", SITES, torch.device("cpu"))
    arrays = messages.pack(first_order(begin(config, place), config))
    report, mail = {}, Mail(grid)
    for number in (*HELLO, *TRAIN):
        more = {}
        if number in TRAIN:
            more = {"round_number": 1, "split": "train", "best": number, "arrays": arrays}
        kind = messages.TRAIN if number in TRAIN else messages.HELLO
        orders = {
            str(node): messages.request(kind, node, sites=SITES, **{"round_number": number, **more})
            for node in nodes
        }
        answers = dict(mail.ask(orders, Deadline(120)))
        replies = [one for _, one in sorted(answers.items()) if not isinstance(one, Exception)]
        report[number] = [look(reply, scans) for reply in replies]
        if not number and all(one["failure"] for one in report[number]):
            break  # nobody executes it
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))


def look(reply, scans) -> dict:
    failure = messages.failure_in(reply)
    objects = get_all_nested_objects(reply).values() if not reply.has_error() else ()
    told = b"\n".join(one.deflate() for one in objects) + repr(reply.metadata).encode()
    pieces = [scan[k : k + PIECE] for scan in scans for k in (0, 300, 3000)]
    texts = [base64.b64encode(piece) for piece in pieces]
    found = {"failure": vars(failure) if failure else {}, "group": reply.metadata.group_id}
    found["leaked"] = any(piece in told for piece in (*pieces, *texts))
    if messages.ARRAYS in reply.content.array_records:
        state = messages.unpack(reply.content[messages.ARRAYS])
        values = [tensor.numpy().ravel() for tensor in state.values()]
        found["low bits"] = int((np.concatenate(values).view(np.uint32) & 0xFFFF).any())
    return found
