"""Who a client stands in for, deployed or simulated, and what a refusal may tell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.run_config import RunConfig
from common.data.phantoms import cohorts
from common.data.phantoms.cohorts import PHANTOM_TEST, phantom_sites
from common.data.phantoms.lesion_cohorts import HOSPITALS, LESION_PHANTOM_VERSION
from common.errors import ConfigError
from common.imaging.cohorts import PHANTOM_VERSION, check_site
from common.site_names import SITE_NAME
from common.sites import PHANTOM_FOLDERS, Site, locate_site, site_name

PHANTOMS = RunConfig.from_flower({})
LESIONS = RunConfig.from_flower({"study": "skin-lesions"})
NOWHERE = Path("/no/cache")


def of_cohort(folder: Path) -> RunConfig:
    return RunConfig.from_flower({"data.cohort-dir": str(folder)})


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Names of the phantoms that were asked for; none is made."""
    names: list[str] = []

    def ensure(site, cache):
        names.append(site)
        return cache / site

    for study, cohort in cohorts._COHORTS.items():
        changed = dataclasses.replace(cohort, ensure=ensure)
        monkeypatch.setitem(cohorts._COHORTS, study, changed)
    return names


def node(number: int, count: int) -> dict[str, int]:
    return {"partition-id": number, "num-partitions": count}


@pytest.fixture
def cohort(tmp_path):
    for name in ("south", "east", "north"):
        (tmp_path / name).mkdir()
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_cohort_is_listed_once_for_many_messages_and_anew_when_a_site_comes(cohort, monkeypatch):
    from common.imaging import bids

    listed = []
    whole = bids.list_sites
    monkeypatch.setattr(bids, "list_sites", lambda folder: listed.append(1) or whole(folder))
    config = of_cohort(cohort)
    names = [site_name(node(number, 3), config) for number in (0, 1, 2, 0)]
    assert names == ["east", "north", "south", "east"] and len(listed) == 1
    (cohort / "west").mkdir()
    assert site_name(node(3, 4), config) == "west" and len(listed) == 2


# Deployed


def test_deployed_site_is_what_its_node_says(tmp_path):
    config = {"site": "north", "data-dir": str(tmp_path)}
    assert site_name(config, PHANTOMS) == "north"
    assert locate_site(config, PHANTOMS, NOWHERE) == Site("north", tmp_path, simulated=False)


def test_deployed_site_ignores_the_cohort_of_the_run(tmp_path, cohort):
    """A server cannot point a hospital at another folder."""
    run = of_cohort(cohort)
    site = locate_site({"site": "mine", "data-dir": str(tmp_path)}, run, NOWHERE)
    assert site.data_dir == tmp_path


def test_hospital_is_deployed_also_where_its_node_has_a_number(tmp_path, cohort):
    """Flower's guides start SuperNodes with a partition-id; that simulates nothing."""
    config = node(0, 3) | {"site": "mine", "data-dir": str(tmp_path)}
    for run in (PHANTOMS, of_cohort(cohort)):
        assert site_name(config, run) == "mine"
        assert locate_site(config, run, NOWHERE) == Site("mine", tmp_path, simulated=False)


@pytest.mark.parametrize("name", ["a", "7T", "st.-mary_2", "x" * 64])
def test_usable_names(name, tmp_path):
    assert site_name({"site": name, "data-dir": str(tmp_path)}, PHANTOMS) == name


@pytest.mark.parametrize(
    "name",
    ["", "-north", ".north", "a b", "a/b", "../north", "x" * 65, "north\n", "nörth", 3, True],
)
def test_unusable_name_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="letters, digits"):
        site_name({"site": name, "data-dir": str(tmp_path)}, PHANTOMS)


@pytest.mark.parametrize("data_dir", ["scans", "./scans", "~/scans", "", 3, True])
def test_data_dir_that_is_no_absolute_path_is_refused(data_dir):
    with pytest.raises(ConfigError, match="absolute path") as caught:
        locate_site({"site": "north", "data-dir": data_dir}, PHANTOMS, NOWHERE)
    assert repr(data_dir) in str(caught.value)
    assert "north" in caught.value.public


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        locate_site({"site": "north", "data-dir": str(tmp_path / "no")}, PHANTOMS, NOWHERE)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        locate_site({"site": "north", "data-dir": str(tmp_path / "file")}, PHANTOMS, NOWHERE)


@pytest.mark.parametrize("half", [{"site": "north"}, {"data-dir": "/"}])
def test_half_a_node_config_is_refused(half):
    with pytest.raises(ConfigError):
        locate_site(half, PHANTOMS, NOWHERE)


def test_node_that_says_nothing_is_told_what_to_say():
    with pytest.raises(ConfigError, match="--node-config"):
        locate_site({}, PHANTOMS, NOWHERE)


SECRET = "/secret/hospital"


@pytest.mark.parametrize(
    "config",
    [
        {"site": "north", "data-dir": SECRET},
        {"site": "north", "data-dir": SECRET[1:]},
        {"site": "-", "data-dir": SECRET},
        {"data-dir": SECRET},
        {"site": SECRET, "data-dir": "north"},  # swapped
    ],
)
def test_public_words_hold_no_path(config):
    with pytest.raises(ConfigError) as caught:
        locate_site(config, PHANTOMS, NOWHERE)
    assert "secret" not in caught.value.public


# Simulated, with a cohort


def test_simulated_sites_are_the_cohort_each_once_in_order_of_name(cohort):
    run = of_cohort(cohort)
    sites = [locate_site(node(i, 3), run, NOWHERE) for i in range(3)]
    assert [site.name for site in sites] == ["east", "north", "south"]
    assert [site.name for site in sites] == [site_name(node(i, 3), run) for i in range(3)]
    assert [site.data_dir for site in sites] == [cohort / site.name for site in sites]
    assert all(site.simulated for site in sites)


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_other_number_of_nodes_than_sites_says_what_to_pass(cohort, count):
    with pytest.raises(ConfigError, match='--federation-config "num-supernodes=3"') as caught:
        site_name(node(0, count), of_cohort(cohort))
    assert f"there are {count} SuperNodes" in str(caught.value)
    assert "east, north, south" in str(caught.value)


def test_cohort_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        site_name(node(0, 1), of_cohort(tmp_path / "no"))


# Simulated, with phantoms


@pytest.mark.parametrize("count", range(1, 8))
def test_last_phantom_is_the_poor_one(count):
    subjects = phantom_sites(count)
    assert len(subjects) == count
    name, poorest = list(subjects.items())[-1]
    assert (name, poorest) == ("island", 20)
    assert all(other > poorest for other in list(subjects.values())[:-1])


@given(st.integers(1, 300))
def test_phantoms_have_names_that_can_be_made(count):
    subjects = phantom_sites(count)
    assert len(subjects) == count  # names are unique: one name more or less would show
    for name, number in subjects.items():
        assert SITE_NAME.fullmatch(name)
        check_site(name, number, PHANTOM_TEST)


@given(st.integers(1, 50))
def test_more_sites_leave_the_rich_ones_as_they_were(count):
    fewer, more = list(phantom_sites(count).items()), list(phantom_sites(count + 1).items())
    assert more[: count - 1] == fewer[:-1]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_node_makes_its_own_phantom(count, made, tmp_path):
    sites = [locate_site(node(i, count), PHANTOMS, tmp_path) for i in range(count)]
    assert made == list(phantom_sites(count))
    assert sites == [Site(name, tmp_path / name, simulated=True) for name in made]


@given(st.integers(1, 60))
@settings(deadline=None, max_examples=20)
def test_a_phantom_made_alone_has_the_subjects_it_has_among_others(count):
    """A site knows its name alone; its folder must be the one that `fedscan run` made."""
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cohorts, "ensure_brains", lambda cache, site, *, n, **_: asked.update({site: n})
        )
        for name in phantom_sites(count):
            cohorts._ensure_brain(name, NOWHERE)
    assert asked == phantom_sites(count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hospitals_of_lesions_are_those_of_their_study(count, made, tmp_path):
    sites = [locate_site(node(i, count), LESIONS, tmp_path) for i in range(count)]
    assert [site.name for site in sites] == made
    assert set(made) <= set(HOSPITALS)
    assert made[-1] == list(HOSPITALS)[-1]  # the data-poor one


def test_more_nodes_than_hospitals_of_lesions_are_refused():
    with pytest.raises(ConfigError, match=f"has {len(HOSPITALS)} simulated hospitals"):
        site_name(node(0, len(HOSPITALS) + 1), LESIONS)


def test_study_of_ones_own_has_no_phantoms():
    text = (
        'name = "own"\n[images]\nstorage = "bids"\nchannels = 1\n'
        '[label]\ncolumn = "x"\nclasses = ["a", "b"]\n'
    )
    with pytest.raises(ConfigError, match="--cohort"):
        site_name(node(0, 2), RunConfig.from_flower({"study": text}))


def test_naming_a_site_makes_no_phantom(made):
    assert site_name(node(2, 3), PHANTOMS) == "island"
    assert made == []


def test_a_simulated_site_takes_the_folder_that_was_chosen_for_it(made, tmp_path, monkeypatch):
    chosen = tmp_path / "phantoms.json"
    chosen.write_text(json.dumps({"island": "/elsewhere/island", "north": "/elsewhere/north"}))
    monkeypatch.setenv(PHANTOM_FOLDERS, str(chosen))
    sites = [locate_site(node(number, 2), PHANTOMS, NOWHERE) for number in range(2)]
    assert {site.name: site.data_dir for site in sites} == {
        name: Path("/elsewhere") / name for name in ("island", "north")
    }
    assert made == []
    with pytest.raises(ConfigError, match="2 sites"):
        locate_site(node(0, 3), PHANTOMS, NOWHERE)


@pytest.mark.parametrize(
    ("study", "asked", "spec"),
    [
        ("brain-sex", {}, [PHANTOM_VERSION, "island", 20, 60, 0]),
        ("brain-sex", {"n": 5, "seed": 3, "test": 300}, [PHANTOM_VERSION, "island", 5, 300, 3]),
        ("skin-lesions", {}, ["lesions", LESION_PHANTOM_VERSION, "island", None, 0]),
        (
            "skin-lesions",
            {"n": 5, "seed": 3, "test": 9},
            ["lesions", LESION_PHANTOM_VERSION, "island", 5, 3, 9],
        ),
    ],
)
def test_size_seed_and_test_choose_a_phantom_and_by_default_it_is_the_one_of_old(
    study, asked, spec, monkeypatch
):
    """What keys the cache decides the bytes: another key makes every user's phantoms anew."""
    keys = []
    monkeypatch.setattr(cohorts, "ensure", lambda cache, site, key, write: keys.append(key))
    cohorts.phantom_cohort(study).ensure("island", NOWHERE, **asked)
    assert keys == [spec]
