"""Who a client stands in for, deployed or simulated, and what a refusal may tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.run_config import RunConfig
from common.config.site_names import SITE_NAME
from common.errors import ConfigError
from common.imaging.cohorts import check_site
from common.sites import PHANTOM_TEST, Site, locate_site, phantom_sites, site_name

PHANTOMS = RunConfig()


def no_phantom(name: str, subjects: int) -> Path:
    raise AssertionError(f"nobody asked for a phantom ({name}, {subjects})")


def node(number: int, count: int) -> dict[str, int]:
    return {"partition-id": number, "num-partitions": count}


@pytest.fixture
def cohort(tmp_path):
    for name in ("south", "east", "north"):
        (tmp_path / name).mkdir()
    (tmp_path / ".hidden").mkdir()
    return tmp_path


# Deployed


def test_deployed_site_is_what_its_node_says(tmp_path):
    config = {"site": "north", "data-dir": str(tmp_path)}
    assert site_name(config, PHANTOMS) == "north"
    assert locate_site(config, PHANTOMS, no_phantom) == Site("north", tmp_path, simulated=False)


def test_deployed_site_ignores_the_cohort_of_the_run(tmp_path, cohort):
    """A server cannot point a hospital at another folder."""
    run = RunConfig(cohort_dir=str(cohort))
    site = locate_site({"site": "mine", "data-dir": str(tmp_path)}, run, no_phantom)
    assert site.data_dir == tmp_path


def test_hospital_is_deployed_also_where_its_node_has_a_number(tmp_path, cohort):
    """Flower's guides start SuperNodes with a partition-id; that simulates nothing."""
    config = node(0, 3) | {"site": "mine", "data-dir": str(tmp_path)}
    for run in (PHANTOMS, RunConfig(cohort_dir=str(cohort))):
        assert site_name(config, run) == "mine"
        assert locate_site(config, run, no_phantom) == Site("mine", tmp_path, simulated=False)


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
        locate_site({"site": "north", "data-dir": data_dir}, PHANTOMS, no_phantom)
    assert repr(data_dir) in str(caught.value)
    assert "north" in caught.value.public


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        locate_site({"site": "north", "data-dir": str(tmp_path / "no")}, PHANTOMS, no_phantom)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        locate_site({"site": "north", "data-dir": str(tmp_path / "file")}, PHANTOMS, no_phantom)


@pytest.mark.parametrize("half", [{"site": "north"}, {"data-dir": "/"}])
def test_half_a_node_config_is_refused(half):
    with pytest.raises(ConfigError):
        locate_site(half, PHANTOMS, no_phantom)


def test_node_that_says_nothing_is_told_what_to_say():
    with pytest.raises(ConfigError, match="--node-config"):
        locate_site({}, PHANTOMS, no_phantom)


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
        locate_site(config, PHANTOMS, no_phantom)
    assert "secret" not in caught.value.public


# Simulated, with a cohort


def test_simulated_sites_are_the_cohort_each_once_in_order_of_name(cohort):
    run = RunConfig(cohort_dir=str(cohort))
    sites = [locate_site(node(i, 3), run, no_phantom) for i in range(3)]
    assert [site.name for site in sites] == ["east", "north", "south"]
    assert [site.name for site in sites] == [site_name(node(i, 3), run) for i in range(3)]
    assert [site.data_dir for site in sites] == [cohort / site.name for site in sites]
    assert all(site.simulated for site in sites)


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_other_number_of_nodes_than_sites_says_what_to_pass(cohort, count):
    with pytest.raises(ConfigError, match='--federation-config "num-supernodes=3"') as caught:
        site_name(node(0, count), RunConfig(cohort_dir=str(cohort)))
    assert f"there are {count} SuperNodes" in str(caught.value)
    assert "east, north, south" in str(caught.value)


def test_cohort_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        site_name(node(0, 1), RunConfig(cohort_dir=str(tmp_path / "no")))


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
def test_each_node_makes_its_own_phantom(count, tmp_path):
    made = {}

    def make(name: str, subjects: int) -> Path:
        made[name] = subjects
        return tmp_path / name

    sites = [locate_site(node(i, count), PHANTOMS, make) for i in range(count)]
    assert made == phantom_sites(count)
    assert sites == [Site(name, tmp_path / name, simulated=True) for name in made]


def test_naming_a_site_makes_no_phantom(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path))
    assert site_name(node(2, 3), PHANTOMS) == "island"
    assert list(tmp_path.iterdir()) == []
