"""The ledger of what has left a site: complete, chained, and honest about a crash."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import stat
import subprocess
import sys

import pytest

from clients.gateway.chain import verify
from clients.gateway.ledger import Entry, Ledger
from common.errors import ConfigError, FedscanError

ARRAYS = {"conv.weight": ((8, 1, 3, 3, 3), "float32"), "head.bias": ((2,), "float32")}


def sent(number: int = 1, run: str = "7", size: int = 100) -> Entry:
    digest = hashlib.sha256(b"content").hexdigest()
    return Entry(run, number, "train", "sent", "", ARRAYS, ("loss", "auroc"), size, digest)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gate" / "ledger.jsonl"


@pytest.fixture
def ten(path):
    """A ledger of ten lines: the first opens it."""
    with Ledger(path, "north") as ledger:
        for number in range(1, 10):
            ledger.append(sent(number))
    return path


def lines(path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_line_tells_what_has_left_and_no_value(path):
    with Ledger(path, "north") as ledger:
        assert ledger.append(sent()) == 2
    values = json.loads(lines(path)[1])
    assert values["arrays"] == {
        "conv.weight": [[8, 1, 3, 3, 3], "float32"],
        "head.bias": [[2], "float32"],
    }
    assert values["metrics"] == ["auroc", "loss"]
    assert (values["run"], values["round"], values["kind"]) == ("7", 1, "train")
    assert (values["decision"], values["bytes"]) == ("sent", 100)
    assert values["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert datetime.datetime.fromisoformat(values["time"]).tzinfo == datetime.UTC


def test_each_line_holds_the_hash_of_the_line_before_and_the_first_of_the_site(ten):
    rows = lines(ten)
    for before, after in itertools.pairwise(rows):
        assert json.loads(after)["before"] == hashlib.sha256(before.rstrip(b"\n")).hexdigest()
    text = b"fedscan: ledger of site north"
    assert json.loads(rows[0])["before"] == hashlib.sha256(text).hexdigest()


def test_only_the_gates_user_can_read_it_whatever_the_umask(path):
    before = os.umask(0)
    try:
        with Ledger(path, "north"):
            pass
    finally:
        os.umask(before)
    for one in (path, path.with_name("ledger.jsonl.lock")):
        assert stat.S_IMODE(one.stat().st_mode) == 0o600


def test_arrays_that_left_before_are_told_by_the_number_of_that_line(ten):
    assert json.loads(lines(ten)[2])["arrays"] == {"as in line": 2}
    with Ledger(ten, "north") as ledger:
        ledger.append(sent(10))
    assert json.loads(lines(ten)[-1])["arrays"] == {"as in line": 2}


def test_a_message_without_arrays_refers_to_no_other_line_after_a_restart(path):
    hello = Entry("7", 0, "query.hello", "sent")
    for _ in range(3):
        with Ledger(path, "north") as ledger:
            ledger.append(hello)
    assert [json.loads(line).get("arrays") for line in lines(path)] == [None, {}, {}, {}]


def test_bytes_of_a_run_and_of_a_day_are_known_and_survive_a_restart(path):
    begun = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
    with Ledger(path, "north") as ledger:
        ledger.append(sent(1, run="7", size=100))
        ledger.append(sent(2, run="7", size=20))
        ledger.append(sent(1, run="8", size=3))
        ledger.append(Entry("8", 2, "train", "refused", "too large", bytes=1000))
        assert (ledger.sent_bytes("7"), ledger.sent_bytes("8"), ledger.sent_bytes("9")) == (
            120,
            3,
            0,
        )
    with Ledger(path, "north") as ledger:
        assert (ledger.sent_bytes("7"), ledger.sent_bytes("8")) == (120, 3)
        assert ledger.sent_bytes_since(begun) == 123
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        assert ledger.sent_bytes_since(later) == 0


def test_a_second_gate_is_refused_and_may_have_it_afterwards(path):
    with Ledger(path, "north"), pytest.raises(ConfigError, match="another gate"):
        Ledger(path, "north")
    with Ledger(path, "north"):
        pass


def test_ledger_of_another_site_is_refused(ten):
    with pytest.raises(ConfigError, match="another site"):
        Ledger(ten, "south")


def test_what_a_refused_message_calls_its_parts_neither_fills_the_disk_nor_breaks_a_line(path):
    names = {f"\ud800\n\x1b[2J{'x' * 10_000}{n}": ((1,) * 60, "V" * 1000) for n in range(2000)}
    with Ledger(path, "north") as ledger:
        ledger.append(Entry("7", 1, "train", "refused", "names\nof arrays", names, tuple(names)))
    assert len(lines(path)) == 2
    assert path.stat().st_size < 1_000_000
    assert "and 1800 more" in json.loads(lines(path)[1])["metrics"]
    assert verify(path) == []


# What verify finds


def findings(path, head=None) -> list[tuple[int, str]]:
    return [(one.line, one.problem) for one in verify(path, head)]


def test_ledger_as_it_was_written_has_no_findings(ten):
    assert verify(ten) == []


def change(rows):
    rows[4] = rows[4].replace(b'"bytes": 100', b'"bytes": 999')


def remove(rows):
    del rows[4]


def remove_many(rows):
    del rows[4:7]


def swap(rows):
    rows[4], rows[5] = rows[5], rows[4]


def repeat(rows):
    rows.insert(5, rows[4])


def destroy(rows):
    rows[4] = b"nothing\n"


def other_site(rows):
    rows[0] = rows[0].replace(b"north", b"south")


@pytest.mark.parametrize(
    ("forge", "found", "words"),
    [
        (change, [(5, "changed")], "line 5 was changed: line 6 notes another hash of it"),
        (remove, [(5, "missing")], "line 5 is missing"),
        (remove_many, [(5, "missing")], "lines 5 to 7 are missing"),
        (swap, [(5, "reordered")], "line 5 stands behind line 6"),
        (repeat, [(5, "changed")], "line 5 is there twice"),
        (destroy, [(5, "changed")], "line 5 was changed: it is no JSON"),
        (other_site, [(1, "changed")], "line 1 was changed"),
    ],
)
def test_a_forged_line_is_named_by_its_number(ten, forge, found, words):
    rows = lines(ten)
    forge(rows)
    ten.write_bytes(b"".join(rows))
    assert findings(ten) == found
    assert words in verify(ten)[0].words


def test_gate_does_not_go_on_with_a_forged_ledger(ten):
    rows = lines(ten)
    change(rows)
    ten.write_bytes(b"".join(rows))
    with pytest.raises(FedscanError, match=r"line 5 was changed.*move it away"):
        Ledger(ten, "north")


def test_a_noted_head_finds_an_end_that_was_cut_off(ten):
    with Ledger(ten, "north") as ledger:
        head = ledger.head
    assert verify(ten, head) == []
    ten.write_bytes(b"".join(lines(ten)[:-2]))
    assert verify(ten) == []
    assert findings(ten, head) == [(0, "head")]


def test_a_noted_head_finds_a_chain_that_was_written_anew(ten):
    with Ledger(ten, "north") as ledger:
        head = ledger.head
    before, forged = None, []
    for row in lines(ten):
        values = json.loads(row.replace(b'"bytes": 100', b'"bytes": 1'))
        values["before"] = before or values["before"]
        forged.append(json.dumps(values).encode())
        before = hashlib.sha256(forged[-1]).hexdigest()
    ten.write_bytes(b"\n".join(forged) + b"\n")
    assert verify(ten) == []
    assert findings(ten, head) == [(0, "head")]


def test_a_noted_head_holds_while_the_ledger_grows(ten):
    with Ledger(ten, "north") as ledger:
        head = ledger.head
        ledger.append(sent(10))
    assert verify(ten, head) == []


# Crashes


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_line_cut_short_is_kept_told_and_does_not_break_the_chain(ten, left):
    rows = lines(ten)
    torn = rows[-1].rstrip(b"\n") if left < 0 else rows[-1][:left]
    ten.write_bytes(b"".join(rows[:-1]) + torn)
    assert findings(ten) == [(10, "torn")]
    with Ledger(ten, "north") as ledger:
        ledger.append(sent(10))
    now = lines(ten)
    assert now[9] == torn + b"\n"
    assert json.loads(now[10])["kind"] == "interrupted"
    (one,) = verify(ten)
    assert (one.line, one.problem, one.fault) == (10, "torn", False)
    assert one.words == "line 10 is not whole: the gate was interrupted, as line 11 says"


def test_a_torn_line_that_is_changed_afterwards_is_found(ten):
    rows = lines(ten)
    ten.write_bytes(b"".join(rows[:-1]) + rows[-1][:40])
    with Ledger(ten, "north"):
        pass
    rows = lines(ten)
    rows[9] = b"{}\n"
    ten.write_bytes(b"".join(rows))
    assert (10, "changed") in findings(ten)


def test_a_line_that_a_full_disk_cuts_short_is_closed_off_by_the_next(path, monkeypatch):
    with Ledger(path, "north") as ledger:
        write = os.write

        def full(file: int, data: bytes) -> int:
            if len(data) <= 30:
                raise OSError(28, "No space left on device")
            return write(file, data[:30])

        monkeypatch.setattr(
            os, "write", lambda f, d: full(f, d) if len(d) < 300 else write(f, d[:-20])
        )
        with pytest.raises(FedscanError, match=r"No space left on device.*nothing leaves"):
            ledger.append(sent(1))
        monkeypatch.setattr(os, "write", write)
        assert ledger.sent_bytes("7") == 0
        ledger.append(sent(2))
    assert [(one.line, one.problem, one.fault) for one in verify(path)] == [(2, "torn", False)]


def test_a_killed_gate_leaves_the_line_and_frees_the_ledger(path):
    code = (
        "import os, pathlib, sys\n"
        "from clients.gateway.ledger import Entry, Ledger\n"
        "ledger = Ledger(pathlib.Path(sys.argv[1]), 'north')\n"
        "ledger.append(Entry('7', 1, 'train', 'sent', bytes=5))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    with Ledger(path, "north") as ledger:
        assert ledger.sent_bytes("7") == 5
    assert verify(path) == []
