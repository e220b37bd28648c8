"""Secure sums: the sum is right, the server sees nothing else, and sites are not fooled."""

from __future__ import annotations

import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import ConfigError, SecureSumError
from common.secure_sums import primitives, server, site
from common.secure_sums.fixed_point import Layout
from common.secure_sums.in_process import Transcript, secure_sum
from common.secure_sums.protocol import OVER, STAGES, Plan, majority, read, statement, write
from common.secure_sums.server import Server
from common.secure_sums.site import Site

FEW = settings(deadline=None, max_examples=25)
NAMES = ("east", "north", "south", "west")
LENGTH = 20
TURNS = (*STAGES, "total")
TAKES = dict(zip(STAGES, ("roster", "forward", "add", "signatures", "total"), strict=True))


def coins(seed: int):
    """Of each site its own coins, which another run with the seed repeats."""
    return lambda name: random.Random(f"{seed} {name}").randbytes


def vectors(names=NAMES, seed=0, dtype="<u4", length=LENGTH):
    rng = np.random.default_rng(seed)
    high = np.iinfo(dtype).max
    return {name: rng.integers(0, high, length, dtype, endpoint=True) for name in names}


def plain(inputs, names):
    return sum(inputs[name] for name in names)  # wraps around, as unsigned numbers do


def flipped(text):
    """Change the last bit of a number in hexadecimal."""
    return text[:-1] + f"{int(text[-1], 16) ^ 1:x}"


class Sites:
    """Four sites in one sum, and what an honest server would send them."""

    def __init__(self, run="run", number=1, spent=None, **changes):
        plan = {"sites": NAMES, "length": LENGTH, "threshold": 3, **changes}
        self.plan = Plan(run, number, "vectors", **plan)
        self.keys = {
            name: Ed25519PrivateKey.from_private_bytes(coins(5)(name)(32)) for name in NAMES
        }
        self.known = {name: key.public_key() for name, key in self.keys.items()}
        self.spent = spent or {name: set() for name in NAMES}
        self.inputs = vectors()
        self.sites = {name: self.site(name) for name in NAMES}
        self.server = Server(self.plan)
        self.requests, self.stage = dict.fromkeys(self.plan.sites, b""), STAGES[0]

    def site(self, name):
        return Site(name, self.plan, self.keys[name], self.known, self.spent[name])

    def ask(self, stage, name, request):
        one = self.sites[name]
        if stage == "advertise":
            return one.advertise()
        if stage == "mask":
            return one.mask(request, self.inputs[name])
        return getattr(one, stage)(request)

    def to(self, stage, without=()):
        """Go on to a stage, or to the total; those of ``without`` fail in the one before."""
        while self.stage != stage:
            answers = {n: self.ask(self.stage, n, one) for n, one in self.requests.items()}
            if TURNS[TURNS.index(self.stage) + 1] == stage:
                answers = {n: one for n, one in answers.items() if n not in without}
            self.give(answers)
        return self

    def give(self, answers):
        """Have the server take answers."""
        self.requests = getattr(self.server, TAKES[self.stage])(answers)
        self.stage = TURNS[TURNS.index(self.stage) + 1]

    def content(self, name, kind):
        """Open what an honest server sends a site."""
        context = self.plan.digest if kind == "roster" else self.server.context
        return read(self.requests[name], kind, context)

    def refuses(self, stage, name, request, match):
        with pytest.raises(SecureSumError, match=match):
            self.ask(stage, name, request)
        assert self.sites[name].turn == OVER
        with pytest.raises(SecureSumError, match="second time"):  # what is refused stays so
            self.ask(stage, name, self.requests.get(name, b""))


# The sum


@FEW
@given(
    st.integers(3, 7).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.sampled_from(STAGES), max_size=n - majority(n)),
            st.permutations(range(n)),
        )
    ),
    st.sampled_from(["<u4", "<u8"]),
    st.integers(0, 99),
)
def test_sum_over_those_who_sent_a_vector_is_the_plain_one(drawn, dtype, seed):
    n, fails, order = drawn
    inputs = vectors([f"site-{i}" for i in range(n)], seed, dtype)
    dropouts = {f"site-{i}": stage for i, stage in zip(order, fails, strict=False)}
    total, survivors = secure_sum(inputs, dropouts)
    early = {name for name, stage in dropouts.items() if STAGES.index(stage) <= 2}
    assert set(survivors) == inputs.keys() - early
    assert total.dtype == dtype
    np.testing.assert_array_equal(total, plain(inputs, survivors))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("n", [3, 5, 6])
def test_the_most_dropouts_are_borne_in_each_stage_and_one_more_in_none(n, stage):
    inputs = vectors([f"site-{i}" for i in range(n)])
    most = n - majority(n)
    for count in (0, 1, most):
        total, survivors = secure_sum(inputs, {f"site-{i}": stage for i in range(count)})
        np.testing.assert_array_equal(total, plain(inputs, survivors))
    transcript = Transcript()
    with pytest.raises(SecureSumError, match=r"are left, and a sum takes"):
        secure_sum(inputs, {f"site-{i}": stage for i in range(most + 1)}, transcript=transcript)
    assert len([one for one in transcript.seen if one[0] == "unmask"]) < majority(n)


def test_weighted_mean_of_weights_is_the_plain_one_to_the_stated_error():
    layout = Layout({"w": (2, 5)}, {"w": 3.0}, len(NAMES), most_weight=1000)
    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(-3, 3, (2, 5)).astype(np.float32) for name in NAMES}
    counts = {"east": 7, "north": 1000, "south": 0, "west": 31}
    inputs = {name: layout.encode({"w": arrays[name]}, counts[name]) for name in NAMES}
    total, survivors = secure_sum(inputs, {"east": "mask"})
    sums = layout.decode(total)
    assert sums.weight == 1031 and survivors == ("north", "south", "west")
    mean = sum(np.float64(arrays[name]) * counts[name] for name in survivors) / 1031
    assert np.abs(sums.means()["w"] - mean).max() <= layout.error("w") / 1031


def test_sites_go_on_from_what_they_saved():
    """As with a process for each message."""
    parties = Sites()
    for stage in TURNS[1:]:
        parties.to(stage)
        for name, one in parties.sites.items():
            if stage != "total":
                parties.sites[name] = parties.site(name).load(one.save())
    np.testing.assert_array_equal(parties.requests, plain(parties.inputs, NAMES))


def test_a_plan_that_changes_between_two_stages_is_refused():
    saved = Sites(threshold=4).to("unmask").sites["north"].save()
    with pytest.raises(SecureSumError, match="plan of the sum has changed"):
        Sites(threshold=3).sites["north"].load(saved)


# What the server sees


class Shifted:
    """Coins that differ in one mask, which the server cannot expand: it is unknown to it.

    In the protocol's proof the masks of seeds that the server does not get are replaced by uniform
    ones. Then each shift of them is as likely as none.
    """

    def __init__(self, monkeypatch):
        self.shifts, self.monkeypatch = {}, monkeypatch
        monkeypatch.setattr(site, "expand", self.expand)
        monkeypatch.setattr(server, "expand", self.of_server)
        monkeypatch.setattr(site, "pair_seed", self.pair_seed)
        monkeypatch.setattr(site, "self_seed", self.self_seed)
        self.seeds = {}

    def pair_seed(self, secret, public, context, *pair):
        seed = primitives.pair_seed(secret, public, context, *pair)
        self.seeds[frozenset(pair)] = seed
        return seed

    def self_seed(self, secret, context, name):
        self.seeds[frozenset([name])] = seed = primitives.self_seed(secret, context, name)
        return seed

    def expand(self, seed, length, bits):
        return primitives.expand(seed, length, bits) + self.shifts.get(seed, np.uint32(0))

    def of_server(self, seed, length, bits):
        assert seed not in self.shifts, "the server knows the mask"
        return primitives.expand(seed, length, bits)

    def view(self, inputs, dropouts):
        transcript = Transcript()
        try:
            found = secure_sum(inputs, dropouts, transcript=transcript, random=coins(1))[0]
        except SecureSumError as error:
            found = str(error)
        return found, transcript.seen


@pytest.mark.parametrize("dropouts", [{}, {"south": "mask"}, {"west": "share"}, {"east": "unmask"}])
def test_inputs_with_one_sum_give_the_server_the_same_bytes(monkeypatch, dropouts):
    """For each run on x there is one, as likely, on any x' of the same sum that looks the same."""
    shifted, inputs = Shifted(monkeypatch), vectors()
    total, seen = shifted.view(inputs, dropouts)
    change = vectors(["change"], seed=9)["change"]
    others = {**inputs, "east": inputs["east"] + change, "north": inputs["north"] - change}
    shifted.shifts = {shifted.seeds[frozenset(["east", "north"])]: -change}
    assert seen == (again := shifted.view(others, dropouts))[1]
    np.testing.assert_array_equal(total, again[0])
    shifted.shifts = {}
    assert seen != shifted.view(others, dropouts)[1]  # the views differ when the masks do not


@pytest.mark.parametrize("stage", ["agree", "unmask"])
def test_one_dropout_too_many_gives_the_server_bytes_that_fit_every_input(monkeypatch, stage):
    """Not even the sum is determined: no site's own mask is told by t shares."""
    shifted, inputs = Shifted(monkeypatch), vectors()
    dropouts = {"south": "unmask", "west": stage}
    refused, seen = shifted.view(inputs, dropouts)
    assert "2 of 4 sites are left" in refused
    others = vectors(seed=7)
    shifted.shifts = {
        shifted.seeds[frozenset([name])]: inputs[name] - others[name] for name in NAMES
    }
    assert shifted.view(others, dropouts) == (refused, seen)


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("value", [0, 1, -1, "random"])
def test_a_masked_vector_is_uniform_whatever_the_input(value, dtype):
    inputs = vectors(dtype=dtype, length=25_000)
    if value != "random":
        inputs["north"] = np.full(25_000, value).astype(dtype)
    transcript = Transcript()
    secure_sum(inputs, transcript=transcript, random=coins(3))
    masked = next(
        data for stage, name, data in transcript.seen if (stage, name) == ("mask", "north")
    )
    bytes_ = np.frombuffer(masked[-inputs["north"].nbytes :], np.uint8)
    assert stats.chisquare(np.bincount(bytes_, minlength=256)).pvalue > 1e-3
    of_place = [bytes_[i :: inputs["north"].itemsize] for i in range(inputs["north"].itemsize)]
    for place in of_place:  # the highest byte as well as the lowest
        assert stats.chisquare(np.bincount(place, minlength=256)).pvalue > 1e-3


def test_masks_of_two_rounds_have_nothing_in_common():
    """With the same coins: round and run are in each key's derivation."""
    seeds = set()
    for run, number in (("run", 1), ("run", 2), ("other", 1)):
        context = Plan(run, number, "vectors", NAMES, LENGTH, 3).digest
        seeds.add(primitives.self_seed(bytes(32), context, "north"))
        seeds.add(
            primitives.pair_seed(bytes(32), primitives.public_of(b"1" * 32), context, "a", "b")
        )
    assert len(seeds) == 6


# What a plan and a site refuse


@pytest.mark.parametrize(
    ("n", "threshold", "colluding"),
    [(2, 1, 0), (3, 1, 0), (4, 2, 0), (5, 2, 0), (5, 6, 0), (6, 4, 2), (9, 6, 3), (3, 3, 2)],
)
def test_a_threshold_of_which_two_lists_could_be_signed_is_refused(n, threshold, colluding):
    names = tuple(f"site-{i}" for i in range(n))
    with pytest.raises(ConfigError, match="accepted is from"):
        Plan("run", 1, "vectors", names, LENGTH, threshold, colluding)


@given(st.integers(1, 200), st.integers(0, 200))
def test_two_lists_of_the_least_threshold_share_an_honest_site(n, colluding):
    threshold = majority(n, colluding)
    assert 2 * threshold - n > colluding  # so many sites, at least, are on both lists
    assert 2 * (threshold - 1) - n <= colluding


@FEW
@given(st.permutations(range(9)), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_no_combination_of_sums_of_one_name_is_one_sites_vector(order, helpers, data):
    """As each site helps to unmask once, and more than half of the sites of a sum must help."""
    rows, free = [], list(order)
    for count in helpers:
        helping, free = free[:count], free[count:]
        others = [one for one in order if one not in helping]
        if len(helping) < 2:  # a sum takes two honest sites or more
            continue
        silent = st.lists(st.sampled_from(others), max_size=len(helping) - 1, unique=True)
        summed = helping + data.draw(silent)
        rows.append([one in summed for one in range(9)])
    known = np.array(rows, dtype=float).reshape(-1, 9)
    for one in np.eye(9):
        wider = np.vstack([known, one])
        assert np.linalg.matrix_rank(wider) == (np.linalg.matrix_rank(known) if rows else 0) + 1


def test_a_site_refuses_a_sum_over_fewer_than_it_wants():
    parties = Sites()
    known = parties.known
    with pytest.raises(SecureSumError, match="takes part in sums over 4 or more"):
        Site("north", parties.plan, parties.keys["north"], known, set(), fewest=4)


def test_a_site_refuses_sites_of_which_its_owner_gave_it_no_key():
    parties = Sites()
    known = parties.known.copy()
    del known["west"]
    with pytest.raises(SecureSumError, match="no key is known of west"):
        Site("north", parties.plan, parties.keys["north"], known, set())
    with pytest.raises(SecureSumError, match="own key is another"):
        Site("north", parties.plan, parties.keys["south"], known | {"west": None}, set())


# Servers that lie


def test_a_key_that_the_server_made_is_refused():
    keys = [primitives.public_of(bytes([i]) * 32).hex() for i in (1, 2)]
    for by_server in (True, False):
        parties = Sites().to("share")
        roster = parties.content("north", "roster")
        text = statement("keys", parties.plan.digest, ["south", *keys])
        signed = Ed25519PrivateKey.generate().sign(text).hex() if by_server else roster["south"][2]
        told = write("roster", parties.plan.digest, {**roster, "south": [*keys, signed]})
        parties.refuses("share", "north", told, "not signed by it")


def test_a_key_of_another_site_round_or_run_is_refused():
    for other in (Sites(number=2), Sites(run="other"), Sites(colluding=1)):
        parties = Sites().to("share")
        entry = other.to("share").content("north", "roster")["south"]
        roster = parties.content("north", "roster")
        told = write("roster", parties.plan.digest, {**roster, "south": entry})
        parties.refuses("share", "north", told, "not signed by it")
    parties = Sites().to("share")
    roster = parties.content("north", "roster")
    told = write("roster", parties.plan.digest, {**roster, "south": roster["west"]})
    parties.refuses("share", "north", told, "not signed by it")


def test_a_site_that_repeats_anothers_key_is_refused():
    parties = Sites().to("share")
    roster = parties.content("north", "roster")
    keys = roster["west"][:2]
    signed = parties.keys["south"].sign(statement("keys", parties.plan.digest, ["south", *keys]))
    told = write("roster", parties.plan.digest, {**roster, "south": [*keys, signed.hex()]})
    parties.refuses("share", "north", told, "twice")


def test_a_key_with_which_everybody_would_know_the_mask_is_refused():
    parties = Sites().to("share")
    roster = parties.content("north", "roster")
    keys = [bytes(32).hex(), (b"\1" + bytes(31)).hex()]  # points of low order
    signed = parties.keys["south"].sign(statement("keys", parties.plan.digest, ["south", *keys]))
    told = write("roster", parties.plan.digest, {**roster, "south": [*keys, signed.hex()]})
    parties.refuses("share", "north", told, "not usable")


def test_lists_with_too_few_sites_are_refused_in_each_stage():
    parties = Sites().to("share")
    roster = parties.content("north", "roster")
    two = {name: roster[name] for name in ("north", "south")}
    parties.refuses("share", "north", write("roster", parties.plan.digest, two), "3 are needed")
    parties = Sites().to("mask")
    one = dict([next(iter(parties.content("north", "shares").items()))])
    parties.refuses("mask", "north", write("shares", parties.server.context, one), "are needed")
    parties = Sites().to("agree")
    told = write("survivors", parties.server.context, ["north", "south"])
    parties.refuses("agree", "north", told, "3 are needed")
    parties = Sites().to("unmask")
    signed = dict(list(parties.content("north", "signatures").items())[:2])
    told = write("signatures", parties.server.context, signed)
    parties.refuses("unmask", "north", told, "3 are needed")


def test_different_lists_of_survivors_get_no_shares():
    """The server tells north that all are there, and the others that north is the one who left."""
    parties = Sites().to("agree")
    context = parties.server.context
    without = ["east", "south", "west"]
    answers = {"north": parties.ask("agree", "north", parties.requests["north"])}
    for name in without:
        answers[name] = parties.ask("agree", name, write("survivors", context, without))
    signatures = {name: read(one, "signature", context) for name, one in answers.items()}
    told = write("signatures", context, signatures)
    for name in without:  # north is not on their list
        parties.refuses("unmask", name, told, "does not take part")
    parties.refuses("unmask", "north", told, "not signed by it")
    assert not any(parties.spent.values())


def test_a_list_without_the_site_itself_or_with_one_of_no_shares_is_refused():
    for survivors in (["east", "south", "west"], ["east", "north", "west", "south"], [1, 2, 3]):
        parties = Sites().to("agree")
        told = write("survivors", parties.server.context, survivors)
        parties.refuses("agree", "north", told, "list of survivors")
    parties = Sites().to("mask", without=["west"]).to("agree")
    told = write("survivors", parties.server.context, list(NAMES))
    parties.refuses("agree", "north", told, "had left before")


def test_of_no_site_both_secrets_are_told():
    for gone in ((), ("west",)):
        parties = Sites().to("agree", without=gone).to("unmask")
        for name, request in parties.requests.items():
            answer = parties.ask("unmask", name, request)
            told = read(answer, "unmasking", parties.server.context)
            assert not told["seeds"].keys() & told["keys"].keys()
            assert told["seeds"].keys() | told["keys"].keys() == set(NAMES)
            assert set(told["keys"]) == set(gone)


def test_a_second_unmasking_is_refused_also_in_a_new_session():
    parties = Sites().to("unmask")
    request = parties.requests["north"]
    parties.ask("unmask", "north", request)
    with pytest.raises(SecureSumError, match="second time"):
        parties.ask("unmask", "north", request)
    with pytest.raises(SecureSumError, match="unmasked before"):
        Sites(spent=parties.spent)
    with pytest.raises(SecureSumError, match="unmasked before"):  # the same by another plan
        Sites(spent=parties.spent, threshold=4)
    Sites(number=2, spent=parties.spent)


def test_of_two_sessions_of_one_sum_only_one_is_unmasked():
    spent = {name: set() for name in NAMES}
    first, second = Sites(spent=spent).to("unmask"), Sites(spent=spent).to("unmask")
    first.ask("unmask", "north", first.requests["north"])
    second.refuses("unmask", "north", second.requests["north"], "unmasked before")


@pytest.mark.parametrize("stage", STAGES[1:])
def test_messages_of_another_round_are_refused(stage):
    parties, other = Sites().to(stage), Sites(number=2).to(stage)
    parties.refuses(stage, "north", other.requests["north"], "not of this run, round")


@pytest.mark.parametrize("stage", STAGES[2:])
def test_messages_of_an_earlier_session_of_the_round_are_refused(stage):
    parties, other = Sites().to(stage), Sites().to(stage)
    parties.refuses(stage, "north", other.requests["north"], "not of this run, round")


def test_a_list_of_keys_of_an_earlier_session_is_refused():
    """All of them are signed for this very sum, and of some the private half may be known."""
    parties, earlier = Sites().to("share"), Sites().to("share")
    parties.refuses("share", "north", earlier.requests["north"], "another key of this site")


def test_shares_that_were_changed_or_are_for_another_site_are_refused():
    for changed in (True, False):
        parties = Sites().to("mask")
        told = parties.content("north", "shares")
        other = parties.content("east", "shares")["south"]
        told["south"] = flipped(told["south"]) if changed else other
        request = write("shares", parties.server.context, told)
        parties.refuses("mask", "north", request, "cannot be decrypted")


def test_sites_with_different_lists_of_keys_do_not_understand_each_other():
    parties = Sites().to("share")
    roster = parties.content("north", "roster")
    fewer = {name: entry for name, entry in roster.items() if name != "west"}
    context = None
    for name in ("east", "south"):
        parties.ask("share", name, write("roster", parties.plan.digest, fewer))
        context = parties.sites[name].context
    parties.ask("share", "north", parties.requests["north"])
    assert parties.sites["north"].context != context
    told = write("shares", context, {})
    parties.refuses("mask", "north", told, "list of keys")


@pytest.mark.parametrize(
    "message", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"kind": "roster"}']
)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_what_cannot_be_read_is_refused(stage, message):
    parties = Sites().to(stage)
    parties.refuses(stage, "north", message, "cannot be read|of another form|not of this run")


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_name_that_is_there_twice_is_refused(stage):
    """Else two readers could take one signed or digested message for two."""
    parties = Sites().to(stage)
    twice = parties.requests["north"].replace(b'"content"', b'"content": {}, "content"')
    parties.refuses(stage, "north", twice, "cannot be read")


def test_stages_come_in_their_order():
    parties = Sites()
    with pytest.raises(SecureSumError, match="out of turn"):
        parties.sites["north"].agree(b"")
    with pytest.raises(SecureSumError, match="out of turn"):
        parties.server.total({})


def test_a_vector_of_another_form_is_refused():
    for values in (np.zeros(LENGTH + 1, "<u4"), np.zeros(LENGTH, "<u8"), np.zeros(LENGTH)):
        parties = Sites().to("mask")
        parties.inputs["north"] = values
        parties.refuses("mask", "north", parties.requests["north"], "another length or type")


# Sites that lie


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("message", [b"", b"{}", b"\0" * 100])
def test_a_site_that_answers_rubbish_counts_as_one_that_has_left(stage, message):
    parties = Sites().to(stage)
    answers = {name: parties.ask(stage, name, parties.requests[name]) for name in NAMES}
    parties.give(answers | {"west": message})
    parties.to("total")
    assert set(parties.server.unusable) == {"west"}
    assert ("west" in parties.server.survivors) == (stage in ("agree", "unmask"))
    expected = plain(parties.inputs, parties.server.survivors)
    np.testing.assert_array_equal(parties.requests, expected)


@pytest.mark.parametrize(
    ("kind", "whose", "gone", "match"),
    [("seeds", "west", (), "do not belong"), ("keys", "west", ("west",), "do not tell the key")],
)
def test_shares_that_do_not_fit_are_noticed(kind, whose, gone, match):
    parties = Sites().to("agree", without=gone).to("unmask")
    answers = {n: parties.ask("unmask", n, one) for n, one in parties.requests.items()}
    context = parties.server.context
    told = read(answers["north"], "unmasking", context)
    told[kind][whose] = flipped(told[kind][whose])
    answers["north"] = write("unmasking", context, told)
    with pytest.raises(SecureSumError, match=match):
        parties.server.total(answers)
