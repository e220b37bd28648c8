"""``fedscan authenticity`` on a generator of one training: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import caches
from safetensors.numpy import load_file
from typer.testing import CliRunner

from common.errors import ConfigError
from common.evaluation.authenticity import GENERATED, GROUPS, HELD_OUT, TRAINING
from simulations.authenticity import SPLITS, Request, choose, measure, summarize
from simulations.gan.plan import Request as Training
from simulations.gan.train import train
from simulations.trained import read_trained

SIZES = {"resolution": 16, "channel-base": 256, "channel-max": 16, "z-dim": 16, "w-dim": 16}


@pytest.fixture(scope="module", autouse=True)
def own_cache(quick_default: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what these tests make, the quick extractor among it, out of others' way."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in caches(tmp_path_factory.mktemp("cache")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def gan(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations on both sites, told sex and site."""
    out = tmp_path_factory.mktemp("trained") / "gan"
    changes = {**SIZES, "batch-size": 4, "kimg": 0.008, "label-kinds": "sex,site"}
    train(Training(out=out, cohort=tiny_cohort, changes=changes))
    return out


@pytest.fixture(scope="module")
def measured(gan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "authenticity"
    measure(Request(run=gan, out=out, count=12, steps=3))
    return out


def test_the_table_has_a_row_an_image_space_and_search_with_its_latent(measured: Path) -> None:
    table = pd.read_csv(measured / "authenticity.csv", keep_default_na=False)
    assert len(table) == 3 * 12 * 2 * 2
    assert not table.duplicated(["group", "site", "row", "space", "seed"]).any()
    w = load_file(measured / "latents.safetensors")["w"]
    assert w.shape == (len(table), 6, 16)
    same = (w == w[:, :1]).all(axis=(1, 2))
    np.testing.assert_array_equal(same, table["space"] == "w")


def test_the_groups_are_matched_in_site_class_and_height(gan: Path) -> None:
    trained = read_trained(gan)
    chosen, pictures, _ = choose(trained, trained.sites, 12, seed=0)
    heights = [
        trained.rows(one.site, SPLITS[one.group])["height"][one.row] if one.group in SPLITS else ""
        for one in chosen.itertuples()
    ]
    keys = chosen.assign(height=heights).groupby("group")
    strata = {name: rows[["site", "class", "height"]].value_counts() for name, rows in keys}
    pd.testing.assert_series_equal(
        strata[TRAINING].sort_index(), strata[HELD_OUT].sort_index(), check_names=False
    )
    assert pictures.shape == (36, 1, 16, 16)
    assert not set(chosen.loc[chosen["group"] == TRAINING, "person"]) & set(
        chosen.loc[chosen["group"] == HELD_OUT, "person"]
    )


def test_rows_lead_to_the_images_that_were_projected(gan: Path) -> None:
    trained = read_trained(gan)
    chosen, pictures, _ = choose(trained, trained.sites, 6, seed=0)
    for one, told, picture in zip(chosen.itertuples(), chosen["class"], pictures, strict=True):
        if one.group != GENERATED:
            image = trained.open(one.site, SPLITS[one.group]).take([one.row])[0]
            np.testing.assert_array_equal(picture, image * 2 - 1)
            assert told == trained.rows(one.site, SPLITS[one.group])["label"][one.row]


def test_generated_images_lie_in_the_generators_range(gan: Path) -> None:
    trained = read_trained(gan)
    chosen, pictures, conditions = choose(trained, trained.sites, 6, seed=0)
    made = np.flatnonzero(chosen["group"] == GENERATED)
    from common.training.gan_sampling import sample_rows

    labels = [conditions[k] for k in made]
    again = sample_rows(trained.generator(), labels, range(len(made)), seed=0)
    np.testing.assert_array_equal(pictures[made], again)
    assert [one["site"] for one in labels] == chosen["site"][made].tolist()


def test_files_are_whole_and_private_and_name_the_networks(gan: Path, measured: Path) -> None:
    found = json.loads((measured / "authenticity.json").read_text())
    assert found["extractor"]["name"] and found["extractor"]["hash"]
    assert found["weights"] == read_trained(gan).weights_hash
    # A step of the figure is the distance of one image.
    assert set(found["stays"]) == {
        *("authenticity.csv", "authenticity.png", "strips.png", "latents.safetensors"),
    }
    assert {path.name for path in measured.iterdir()} == {"authenticity.json", *found["stays"]}
    assert all(path.stat().st_mode & 0o077 == 0 for path in measured.iterdir())
    assert not any(b"sub-" in path.read_bytes() for path in measured.iterdir())


def test_the_summary_follows_from_the_table(measured: Path) -> None:
    found = json.loads((measured / "authenticity.json").read_text())["spaces"]
    table = pd.read_csv(measured / "authenticity.csv", keep_default_na=False)
    assert json.loads(json.dumps(summarize(table))) == found
    best = table[table["space"] == "w"].groupby(["group", "site", "row"])["distance"].min()
    for name in GROUPS:
        median = found["w"]["groups"][name]["median"]["mean"]
        assert median == pytest.approx(best.loc[name].median())


def test_the_same_seed_gives_the_same_bytes(gan: Path, measured: Path, tmp_path: Path) -> None:
    measure(Request(run=gan, out=tmp_path / "again", count=12, steps=3))
    for path in measured.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spaces": ("z",)}, "accepted are w and w+"),
        ({"sites": ("east",)}, "accepted is one of island, north"),
        ({"out": Path(__file__).parent}, "holds other files"),
        ({"extractor": "nowhere.pt"}, "extractor"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    gan: Path, tmp_path: Path, changes, words
) -> None:
    with pytest.raises(ConfigError, match=words.replace("+", r"\+")):
        measure(Request(**{"run": gan, "out": tmp_path / "out", "count": 2, **changes}))
    assert not (tmp_path / "out").exists()


def test_only_sites_that_were_trained_on_have_training_images(gan: Path, tmp_path: Path) -> None:
    manifest = json.loads((gan / "manifest.json").read_text())
    local = tmp_path / "local"
    shutil.copytree(gan, local)
    (local / "manifest.json").write_text(json.dumps({**manifest, "trained_on": ["island"]}))
    with pytest.raises(ConfigError, match="accepted is one of island, on whose images"):
        measure(Request(run=local, out=tmp_path / "out", sites=("north",)))
    out, work = tmp_path / "out", {"spaces": ("w",), "seeds": 1, "steps": 1}
    assert measure(Request(run=local, out=out, count=2, **work))["sites"] == ["island"]


def test_a_site_without_test_images_is_named_and_left_out(
    gan: Path, tiny_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    training_alone(cohort / "north")
    work = {"spaces": ("w",), "seeds": 1, "steps": 1, "count": 2, "cohort": cohort}
    found = measure(Request(run=gan, out=tmp_path / "out", **work))
    assert found["sites"] == ["island"]
    assert "'north' has no image of split 'test'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="none has training and test images"):
        measure(Request(run=gan, out=tmp_path / "none", sites=("north",), **work))


def training_alone(site: Path) -> None:
    """Let all of a site's people be of its training split."""
    path = site / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table.assign(split="train").to_csv(path, sep="\t", index=False)


def test_the_command_prints_the_verdict_of_each_space(gan: Path, tmp_path: Path) -> None:
    from simulations.cli import app

    words = ["authenticity", str(gan), "--count", "2", "--steps", "1", "--seeds", "1"]
    before = torch.get_num_threads()
    text = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a"), "--site", "north"])
    assert text.exit_code == 0, text.output
    found = json.loads((tmp_path / "a" / "authenticity.json").read_text())
    assert found["spaces"]["w"]["groups"][TRAINING]["median"]["mean"] is None  # one or two people
    assert "W+: not judged" in text.stdout and "stay at the site" in text.stdout
    machine = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--format", "json"])
    found = json.loads(machine.stdout)
    assert found == json.loads((tmp_path / "b" / "authenticity.json").read_text())
    assert torch.get_num_threads() == before
