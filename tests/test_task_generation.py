"""Federated generation: a stated rule for every piece of state, and distances without a feature."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import dataset, run_config

from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.errors import ConfigError, FedscanError
from common.evaluation.generation import Moments, frechet_distance
from common.evaluation.of_site import Evaluation
from common.imaging.slices import LEVELS_MM
from common.local_round import OWN, train_one_round
from common.tasks import generation_grids, generation_networks, generation_quality
from common.tasks.generation import EMBEDDINGS, W_AVERAGE
from common.tasks.task import SiteContext, load_task, read_run_config
from common.training import gan
from common.training.gan_checkpoint import load_discriminator, load_generator
from common.training.gan_presets import preset, stylegan2
from common.training.gan_sampling import sample, sample_rows
from common.training.gan_slices import RealSlices
from simulations.gan.plan import _for_study

pytestmark = pytest.mark.usefixtures("one_thread")

generation = load_task("generation")
SITES = ("island", "north")
CPU = torch.device("cpu")
SMALL = (
    "resolution=16 channel-max=8 z-dim=8 w-dim=8 path-weight=2 ema-kimg=0.05 augment-p=0.3 "
    "ada-interval=1 label-kinds=sex,height,site"
)
TINY = {
    "task": "generation",
    "model.gan-changes": SMALL,
    "training.batch-size": 4,
    "training.local-steps": 3,
    "run.rounds": 2,
}


def config(**changes) -> RunConfig:
    return run_config(TINY, **changes)


def at(site: str) -> SiteContext:
    return SiteContext(site, SITES, CPU)


def slices(site: str, people: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1, (people * len(LEVELS_MM), 1, 16, 16)).astype(np.float32)
    conditions = [
        {"sex": ("female", "male")[person % 2], "height": f"{level:g}", "site": site}
        for person in range(people)
        for level in LEVELS_MM
    ]
    persons = [f"sub-{person}" for person in range(people) for _ in LEVELS_MM]
    return dataset(images, None, persons, conditions)


def first_release(run: RunConfig) -> dict[str, torch.Tensor]:
    return generation.first_release(generation.build_model(run, at("server")), run)


def same(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An extractor that looks at means of 4 × 4 pixels."""

    def features(images: np.ndarray) -> np.ndarray:
        return (
            np.asarray(images, np.float64)
            .reshape(len(images), 4, 4, 4, 4)
            .mean((2, 4))
            .reshape(len(images), 16)
        )

    found = SimpleNamespace(
        name="pixels",
        hash="0" * 64,
        features=features,
        identity=lambda: {"name": "pixels", "hash": "0" * 64},
    )
    monkeypatch.setattr(generation_quality, "_extractor", lambda name: found)
    return found


# What is whose


def test_every_piece_of_state_has_exactly_one_rule():
    run, model = config(), generation.build_model(config(), at("north"))
    shared = generation.shared_state(model, run)
    private = generation.fit(
        model, slices("north", 3, 0), run, place=at("north"), round_number=1, private={}
    ).private
    everything = model.export()
    at_the_server = {name for name in everything if name.startswith("ema.")}
    from_the_round = {"steps", "images_seen"}
    constant = {name for name in everything if name.endswith(".noise")}
    parts = [set(shared), set(private), at_the_server, from_the_round, constant]
    assert set().union(*parts) == set(everything)
    assert sum(map(len, parts)) == len(everything)
    assert {"ada.p", "ada.sign_sum", "path_length_mean"} <= set(private)
    assert sum(name.endswith("/exp_avg_sq") for name in private) > 20


def test_with_private_discriminators_only_the_generator_travels():
    run, data = config(share="generator"), slices("north", 3, 0)
    model = generation.build_model(run, at("north"))
    shared = generation.shared_state(model, run)
    assert all(name.startswith("generator.") for name in shared)

    def one_round(model, received, private, number):
        return train_one_round(
            generation,
            model,
            data,
            run,
            received=received,
            private=private,
            place=at("north"),
            round_number=number,
        )

    done = one_round(model, shared, {}, 1)
    assert all(name.startswith("generator.") for name in done.sent)
    mine = {k: v for k, v in model.export("parameters").items() if k.startswith("discriminator.")}
    assert {f"{OWN}{name}" for name in mine} <= done.private.keys()
    # The next round goes on with it, in a process that knows nothing else.
    again = generation.build_model(run, at("north"))
    untrained = {k: v for k, v in again.export("parameters").items() if k in mine}
    assert not same(untrained, mine)
    seen = {}

    def stop(training, data, **_):
        seen.update({k: v for k, v in training.export("parameters").items() if k in mine})
        return SimpleNamespace(metrics={})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "fit", stop)
        one_round(again, shared, done.private, 2)
    assert same(seen, mine)


def test_a_site_interrupted_between_rounds_goes_on_bit_for_bit():
    """p, moments, mean path length and the order of slices: as if it had never stopped."""
    data, run = slices("north", 3, 0), config()
    whole = generation.build_model(run, at("north"))
    long = config(local_steps=6, rounds=1)
    generation.fit(whole, data, long, place=at("north"), round_number=1, private={})

    first = generation.build_model(run, at("north"))
    done = generation.fit(first, data, run, place=at("north"), round_number=1, private={})
    second = generation.build_model(run, at("north"))
    generation.load_shared(second, generation.shared_state(first, run))
    end = generation.fit(second, data, run, place=at("north"), round_number=2, private=done.private)
    assert same(generation.shared_state(second, run), generation.shared_state(whole, run))
    assert same(end.private, {k: v for k, v in whole.export().items() if k in end.private})
    assert float(end.private["ada.p"]) != 0.3


def test_identical_sites_equal_one_site():
    data, run = slices("north", 3, 0), config()
    states = []
    for _ in range(3):
        model = generation.build_model(run, at("north"))
        generation.fit(model, data, run, place=at("north"), round_number=1, private={})
        states.append(generation.shared_state(model, run))
    average = {name: sum(state[name] for state in states) / 3 for name in states[0]}
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, states[0][name], rtol=1e-6, atol=1e-7)


def test_two_sites_draw_other_latents_and_other_batches():
    run, ends = config(), []
    for site in SITES:
        model = generation.build_model(run, at(site))
        generation.fit(
            model, slices("north", 3, 0), run, place=at(site), round_number=1, private={}
        )
        ends.append(generation.shared_state(model, run))
    assert not same(*ends)


def test_the_servers_average_is_the_average_of_the_sites_averages():
    run = config()
    first = first_release(run)
    rng = torch.Generator().manual_seed(0)
    sites = [
        {k: v + torch.randn(v.shape, generator=rng) for k, v in first.items()} for _ in range(2)
    ]
    mean = {name: (sites[0][name] + sites[1][name]) / 2 for name in first}
    rule = {"round_number": 3, "participants": 2}
    ours = generation.release(first, mean, run, **rule)
    theirs = [generation.release(first, state, run, **rule) for state in sites]
    for name, tensor in ours.items():
        both = (theirs[0][name] + theirs[1][name]) / 2
        torch.testing.assert_close(tensor, both, rtol=1e-5, atol=1e-6)
    moved = generation.release(first, mean, run, round_number=1, participants=2)
    weight = next(name for name in first if name.endswith("weight"))
    between = (moved[weight] - first[weight]) / (mean[weight] - first[weight])
    assert 0 < float(between.mean()) <= 1 and float(between.std()) < 1e-3


def test_the_same_average_for_a_pool_that_shows_as_many_images():
    rule = {"round_number": 2}
    one, pooled = config(), config(batch_size=8)
    first = first_release(one)
    moved = {name: tensor + 1 for name, tensor in first.items()}
    assert same(
        generation.release(first, moved, one, participants=2, **rule),
        generation.release(first, moved, pooled, participants=1, **rule),
    )


def test_what_a_sites_own_label_means_is_that_sites_alone():
    """Averaging would thin its column out: nobody else has a slice with that label."""
    run = config()
    first = generation.shared_state(generation.build_model(run, at("server")), run)
    updates = {
        site: {name: tensor + 1 + k for name, tensor in first.items()}
        for k, site in enumerate(SITES)
    }
    generation.align(updates, run)
    for name in EMBEDDINGS:
        for state in updates.values():  # columns: female, male, five heights, island, north
            torch.testing.assert_close(state[name][:, 7], first[name][:, 7] + 1)
            torch.testing.assert_close(state[name][:, 8], first[name][:, 8] + 2)
        for k, site in enumerate(SITES):
            torch.testing.assert_close(updates[site][name][:, :7], first[name][:, :7] + 1 + k)
    other = next(name for name in first if name not in EMBEDDINGS)
    torch.testing.assert_close(updates["north"][other], first[other] + 2)


def test_columns_of_sites_whose_names_are_numbers_are_their_own():
    """Labels are sorted as numbers, sites as words: 10 comes before 9 among the updates."""
    run, sites = config(), ("10", "9")
    place = SiteContext("server", sites, CPU)
    first = generation.shared_state(generation.build_model(run, place), run)
    updates = {site: {n: t + int(site) for n, t in first.items()} for site in sites}
    generation.align(updates, run)
    labels = dict(generation_networks.architecture(run, sites).labels)["site"]
    for name in EMBEDDINGS:
        for column, site in enumerate(labels):
            torch.testing.assert_close(
                updates["9"][name][:, 7 + column], first[name][:, 7 + column] + int(site)
            )


@pytest.mark.parametrize("kinds", ["sex,height", "none"])
def test_without_labels_of_sites_there_is_nothing_to_align(kinds):
    run = config(gan_changes=SMALL.replace("sex,height,site", kinds))
    first = generation.shared_state(generation.build_model(run, at("server")), run)
    updates = {
        site: {name: tensor + k for name, tensor in first.items()} for k, site in enumerate(SITES)
    }
    generation.align(updates, run)
    for k, site in enumerate(SITES):
        assert same(updates[site], {name: tensor + k for name, tensor in first.items()})


def test_noise_is_the_same_at_every_site_and_is_not_sent():
    one, other = (generation.build_model(config(), at(site)) for site in SITES)
    assert same(one.export("constants"), other.export("constants"))
    assert not any(
        "noise" in n and "strength" not in n for n in generation.shared_state(one, config())
    )


def test_state_that_does_not_fit_is_refused_and_changes_nothing():
    run, model = config(), generation.build_model(config(), at("north"))
    before, shared = model.export(), generation.shared_state(model, run)
    name = next(iter(shared))
    for wrong in (
        {k: v for k, v in shared.items() if k != W_AVERAGE},
        {k: v for k, v in shared.items() if k != name},
        {**shared, "generator.more": torch.zeros(1)},
        {**shared, name: torch.zeros(3, 3, 3)},
    ):
        with pytest.raises(FedscanError):
            generation.load_shared(model, wrong)
    assert same(model.export(), before)


# Configuration


def test_the_run_config_decides_budget_seed_and_threads():
    found = stylegan2(config(seed=5, threads=2, batch_size=8))
    assert (found.seed, found.threads, found.batch_size, found.w_dim) == (5, 2, 8, 8)
    assert found.path_weight == 2.0 and found.label_kinds == ("sex", "height", "site")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("r1-gama=1", "did you mean 'r1-gamma'"),
        ("r1-gamma", "KEY=VALUE"),
        ("r1-gamma=much", "r1-gamma"),
        ("batch-size=4", "decided by the run config"),
        ("device=cuda", "decided by the run config"),
        ("snapshot-every=9", "no effect in a federation"),
        ("label-kinds=age", "'age' is none of the conditions of study 'brain-sex': sex, "),
        ("resolution=512", "accepted for slices of scans is one of 16, 32, 64, 128, 256"),
    ],
)
def test_changes_that_are_not_accepted(changes: str, words: str):
    with pytest.raises(ConfigError, match=words):
        read_run_config({"task": "generation", "model.gan-changes": changes})


X_RAYS = """
name = "chests"
images = { storage = "table", table = "chests.csv", file = "path", channels = 1 }
label = { column = "grade", classes = ["none", "mild"] }
[generator]
conditions = ["grade", "height"]
values = { height = ["small", "tall"] }
"""


@pytest.mark.parametrize(
    ("study", "changes", "mirrored"),
    [
        (X_RAYS, "", False),
        (X_RAYS, "mirror=true", True),
        ("skin-lesions", "", True),
        ("brain-sex", "", True),
        ("brain-sex", "mirror=false", False),
    ],
)
def test_images_are_mirrored_where_both_show_the_same_or_it_is_asked_for(study, changes, mirrored):
    run = {"study": study, "task": "generation", "model.gan-changes": changes}
    assert stylegan2(read_run_config(run)).mirror == mirrored
    told = {"mirror": changes == "mirror=true"} if changes else {}
    assert _for_study(preset("tiny-32"), study, told).mirror == mirrored


def test_height_of_a_picture_is_what_its_study_says():
    run = read_run_config({"study": X_RAYS, "task": "generation"})
    labels = generation_networks.architecture(run, SITES).labels
    assert dict(labels) == {"grade": ("mild", "none"), "height": ("small", "tall")}


def test_unknown_preset():
    with pytest.raises(ConfigError, match="tiny-32"):
        read_run_config({"task": "generation", "model.gan": "huge"})


def test_all_sites_have_all_labels_also_those_they_lack():
    networks = generation_networks.architecture(config(), SITES)
    assert dict(networks.labels) == {
        "sex": ("female", "male"),
        "height": tuple(f"{level:g}" for level in LEVELS_MM),
        "site": SITES,
    }


# Judging


def evaluated(pixels, site: str, people: int, seed: int, **more) -> Evaluation:
    run = config()
    released = first_release(run)
    sets = {split: slices(site, people, seed + k) for k, split in enumerate(("val", "train"))}
    return generation.evaluate(released, sets.__getitem__, "val", run, place=at(site), **more)


def test_merged_distance_is_the_pooled_one(pixels):
    """The server's distance equals that of all features in one place; none has left a site."""
    rng = np.random.default_rng(0)
    parts = {
        site: {kind: rng.normal(k, 1 + k, (40 + 30 * k, 16)) for kind in generation_quality.SAMPLE}
        for k, site in enumerate(SITES)
    }
    evaluations = {
        site: Evaluation(
            len(kinds["real"]),
            {"kernel_distance": 0.0, "precision": 0.0, "recall": 0.0, "frechet_distance": 1.0},
            {
                f"{kind}.{name}": torch.as_tensor(value, dtype=torch.float64)
                for kind, features in kinds.items()
                for name, value in vars(Moments.of(features)).items()
            },
            {"extractor": "pixels", "extractor-hash": "0"},
        )
        for site, kinds in parts.items()
    }
    pooled = [
        Moments.of(np.concatenate([parts[site][kind] for site in SITES]))
        for kind in generation_quality.SAMPLE
    ]
    found = generation.judge(evaluations, config()).whole["frechet_distance"]
    assert found == pytest.approx(frechet_distance(*pooled), rel=1e-6, abs=1e-6)


def test_a_site_tells_moments_and_numbers_and_nothing_of_a_single_slice(pixels):
    found = evaluated(pixels, "north", 8, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.statistics.items()}
    for kind in generation_quality.SAMPLE:
        assert shapes.pop(f"{kind}.count") == ()
        assert shapes.pop(f"{kind}.mean") == (16,)
        assert shapes.pop(f"{kind}.covariance") == (16, 16)
    assert not shapes
    assert found.count == 40
    assert found.words == {"extractor": "pixels", "extractor-hash": "0" * 64}
    assert {"kernel_distance", "precision", "recall", "frechet_distance"} <= found.metrics.keys()


def test_too_few_slices_for_a_covariance_are_judged_by_the_kernel_distance(pixels):
    found = {"island": evaluated(pixels, "island", 2, 0)}
    merged = generation.judge(found, config())
    assert "frechet_distance" not in merged.whole
    assert merged.loss == found["island"].metrics["kernel_distance"]
    assert "too few" in merged.words
    whole, sites = generation.summary(found, merged, {}, config(), round_number=2)
    assert whole["generation"]["frechet_distance"] is None
    assert sites["island"]["generation"]["frechet_distance"] is None
    assert sites["island"]["generation"]["kernel_distance"] is not None


def test_where_a_site_withholds_its_moments_rounds_are_selected_by_kernel_distances(pixels):
    found = {site: evaluated(pixels, site, 8, k) for k, site in enumerate(SITES)}
    assert generation.judge(found, config()).measure == "Fréchet"
    island = replace(found["island"], statistics={})
    merged = generation.judge({**found, "island": island}, config())
    assert merged.measure == "kernel"
    assert merged.loss == np.mean([one.metrics["kernel_distance"] for one in found.values()])
    assert "frechet_distance" not in merged.whole
    assert "moments withheld" in merged.words


def test_of_three_sites_the_one_with_other_features_is_told(pixels):
    found = {site: evaluated(pixels, "north", 4, 0) for site in ("a", "b", "c")}
    for kind in generation_quality.SAMPLE:
        shrink(found["a"].statistics, kind, 12)
    with pytest.raises(FedscanError, match="site 'a': moments of"):
        generation.judge(found, config())


def test_a_site_without_the_distance_that_rounds_are_selected_by_is_told(pixels):
    found = evaluated(pixels, "north", 2, 0)
    for lost in ({}, {"kernel_distance": math.nan}):
        metrics = {k: v for k, v in found.metrics.items() if k != "kernel_distance"} | lost
        with pytest.raises(FedscanError, match="site 'north': it tells no kernel distance"):
            generation.judge({"north": replace(found, metrics=metrics)}, config())


def test_the_summary_has_what_is_promised_of_the_whole_and_of_each_site(pixels):
    found = {site: evaluated(pixels, site, 6, k) for k, site in enumerate(SITES)}
    fits = {"island": {"p": 0.2}, "north": {"p": 0.1}}
    merged = generation.judge(found, config())
    whole, sites = generation.summary(found, merged, fits, config(), round_number=2)
    promised = {
        *("extractor", "frechet_distance", "kernel_distance", "precision", "recall"),
        *("images_seen", "p_ada"),
    }
    for block in (whole["generation"], *(sites[site]["generation"] for site in SITES)):
        assert promised <= block.keys()
        assert block["extractor"] == {"name": "pixels", "hash": "0" * 64}
    assert whole["generation"]["images_seen"] == 2 * 2 * 3 * 4
    assert sites["island"]["generation"]["images_seen"] == 2 * 3 * 4
    assert whole["generation"]["p_ada"] == pytest.approx(0.15)
    assert sites["north"]["generation"]["p_ada"] == 0.1


def test_sites_that_judge_by_different_extractors_cannot_be_compared(pixels):
    found = {site: evaluated(pixels, site, 4, 0) for site in SITES}
    found["north"].words["extractor-hash"] = "1" * 64
    with pytest.raises(FedscanError, match=r"island 000000000000, north 111111111111"):
        generation.judge(found, config())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda s: s.pop("real.mean"),
        lambda s: s.update({"generated.covariance": torch.zeros(3, 3, dtype=torch.float64)}),
        lambda s: s.update({"real.covariance": torch.full((16, 16), torch.nan)}),
        lambda s: s.update({"real.count": torch.zeros(())}),
        lambda s: s.update({"generated.count": torch.tensor(1e300, dtype=torch.float64)}),
        lambda s: s.update({"real.count": torch.tensor(float("nan"))}),
        lambda s: s.update({"real.count": torch.ones(3)}),
        lambda s: s.update({"real.mean": torch.zeros(())}),
        lambda s: s.update({"real.mean": torch.full((16,), 1e300, dtype=torch.float64)}),
        lambda s: s.update({"real.covariance": torch.zeros(16, 16, dtype=torch.complex64)}),
        lambda s: s.update({"real.covariance": s["real.covariance"].float()}),
        lambda s: shrink(s, "generated", 12),
        lambda s: [shrink(s, kind, 0) for kind in generation_quality.SAMPLE],
    ],
)
@pytest.mark.parametrize("sites", [SITES, ("north",)])
def test_broken_moments_are_refused_by_the_sites_name(break_it, sites, pixels):
    found = {site: evaluated(pixels, site, 4, 0) for site in sites}
    break_it(found["north"].statistics)
    with pytest.raises(FedscanError, match="site 'north': moments of"):
        generation.judge(found, config())


def shrink(statistics: dict[str, torch.Tensor], kind: str, size: int) -> None:
    statistics[f"{kind}.mean"] = statistics[f"{kind}.mean"][:size]
    statistics[f"{kind}.covariance"] = statistics[f"{kind}.covariance"][:size, :size]


def test_real_and_generated_features_of_two_sizes_at_all_sites_are_refused(pixels):
    """Each kind can be merged, and no distance be taken between the two."""
    found = {site: evaluated(pixels, site, 4, 0) for site in SITES}
    for one in found.values():
        shrink(one.statistics, "generated", 12)
    with pytest.raises(FedscanError, match="site 'island': moments of"):
        generation.judge(found, config())


def test_a_copy_is_told_and_the_look_alikes_stay_at_the_site(pixels, tmp_path, monkeypatch):
    mirrored = 2 * slices("north", 8, 1).images()[..., ::-1] - 1

    def copies(generator, data, seed, chosen=None):
        yield mirrored if chosen is None else mirrored[chosen]

    monkeypatch.setattr(generation_quality, "pictures", copies)
    found = evaluated(pixels, "north", 8, 0, records=tmp_path / "records")
    assert found.metrics["copies_flagged"] == 1.0
    assert found.metrics["authenticity"] == 0.0
    figure = tmp_path / "records" / "look-alikes.png"
    assert figure.stat().st_mode & 0o777 == 0o600


def test_a_few_of_the_pictures_are_made_again_as_they_were():
    run = config()
    generator = generation_networks.generator_of(
        generation.first_release(generation.build_model(run, at("north")), run), run, at("north")
    )
    data = slices("north", 20, 0)
    whole = np.concatenate(list(generation_networks.pictures(generator, data, 3)))
    few = np.concatenate(list(generation_networks.pictures(generator, data, 3, [17, 2])))
    assert len(whole) == len(data)
    np.testing.assert_array_equal(few, whole[[17, 2]])


# What is left


def test_what_is_saved_is_what_was_released(tmp_path):
    run, place = config(), at("server")
    model = generation.build_model(run, place)
    shared = generation.shared_state(model, run)
    released = {name: tensor + 0.1 for name, tensor in generation.first_release(model, run).items()}
    generation.save(tmp_path, released, shared, run, round_number=2, place=place)
    generator, about = load_generator(tmp_path)
    state = generator.state_dict()
    assert all(torch.equal(state[n.removeprefix("generator.")], t) for n, t in released.items())
    assert about["steps"] == 6
    discriminator, _ = load_discriminator(tmp_path)
    name = "discriminator.dense.weight"
    assert torch.equal(discriminator.state_dict()["dense.weight"], shared[name])
    assert sample(generator, 2, {"site": "island", "sex": "female"}).shape == (2, 1, 16, 16)


@pytest.mark.parametrize(
    ("kinds", "rows", "columns"),
    [
        ("sex,height,site", ["female island", "female north", "male island", "male north"], 10),
        ("site", ["island", "north"], 10),
        ("sex", ["female", "male"], 10),
        ("none", [], 10),
        ("height", [], 10),
    ],
)
def test_a_grid_has_a_row_a_site_and_sex_and_a_column_a_height(kinds, rows, columns, tmp_path):
    run = config(gan_changes=SMALL.replace("sex,height,site", kinds))
    labels, names, captions = generation_grids.grid_rows(
        generation_networks.architecture(run, SITES), {}
    )
    assert names == rows
    assert {len(row) for row in labels} == {columns}
    assert captions[:2] == (["-9 mm", "0 mm"] if "height" in kinds else [])
    released = first_release(run)
    generation.illustrate(tmp_path, released, run, round_number=7, place=at("server"))
    assert [p.name for p in (tmp_path / "grids").iterdir()] == ["round-0007.png"]


def test_rows_of_a_grid_are_in_the_studys_order(tmp_path, monkeypatch):
    shown = []
    kinds = SMALL.replace("sex,height,site", "diagnosis,site")
    run = config(study="skin-lesions", gan_changes=kinds)
    monkeypatch.setattr(generation_grids, "write_grid", lambda *_, names, **__: shown.extend(names))
    generation.illustrate(tmp_path, first_release(run), run, round_number=1, place=at("server"))
    classes = run.read_study().label.classes.names
    assert list(classes) != sorted(classes)
    assert shown == [f"{name} {site}" for name in classes for site in SITES]


@pytest.mark.parametrize(("kinds", "people"), [("none", 40), ("height", 8), ("site", 10)])
def test_rows_of_one_kind_show_other_people(kinds, people, tmp_path, monkeypatch):
    shown: list[int] = []

    def recorded(generator, rows, numbers, *, seed):
        shown.extend(numbers)
        return sample_rows(generator, rows, numbers, seed=seed)

    monkeypatch.setattr(generation_grids, "sample_rows", recorded)
    run = config(gan_changes=SMALL.replace("sex,height,site", kinds))
    released = first_release(run)
    generation.illustrate(tmp_path, released, run, round_number=1, place=at("server"))
    assert set(shown) == set(range(people))


def test_unequal_labels_of_fakes_are_no_clue():
    data, run = slices("north", 4, 0), config()
    men = replace(data, conditions=tuple({**row, "sex": "male"} for row in data.conditions))
    networks = generation_networks.architecture(run, SITES)
    reals = RealSlices(men, networks, stylegan2(run), CPU)
    drawn = reals.draw_labels(64, torch.Generator().manual_seed(0))
    assert {tuple(row[:2].tolist()) for row in drawn} == {(0.0, 1.0)}


def test_plain_bytes_are_those_of_three_networks_both_ways():
    run = config()
    model = generation.build_model(run, at("server"))
    sizes = {
        name: sum(p.numel() for p in getattr(model, name).parameters())
        for name in ("generator", "discriminator")
    }
    weights = 2 * sizes["generator"] + sizes["discriminator"]
    assert generation_quality.plain_bytes(run, SITES) == weights * 4 * 2 * 2


# Pictures


def test_a_generator_of_pictures_has_the_studys_diagnoses_and_colours():
    run = read_run_config({"study": "skin-lesions", "task": "generation"})
    names = run.read_study().label.classes.names
    networks = generation_networks.architecture(run, SITES)
    assert networks.channels == 3
    assert dict(networks.labels) == {"diagnosis": tuple(sorted(names)), "site": SITES}
    assert generation.images_per_file(run) == 1


def test_conditions_that_fedscan_makes_may_be_written_in_any_case():
    text = """
name = "own"
images = { storage = "bids", channels = 1 }
label = { column = "grade", classes = ["low", "high"] }
generator = { conditions = ["grade", "Site", "HEIGHT"] }
"""
    run = read_run_config({"study": text, "task": "generation"})
    labels = dict(generation_networks.architecture(run, SITES).labels)
    assert labels["site"] == SITES and len(labels["height"]) == len(LEVELS_MM)


def test_pictures_train_and_make_coloured_pictures_of_a_diagnosis(tmp_path):
    small = SMALL.replace(" label-kinds=sex,height,site", "")
    run = config(study="skin-lesions", gan_changes=small, local_steps=1)
    names = run.read_study().label.classes.names
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 3, 16, 16), dtype=np.uint8)
    told = [{"diagnosis": names[k % 8], "site": "north"} for k in range(10)]
    model = generation.build_model(run, at("north"))
    data = dataset(pixels, conditions=told)
    done = generation.fit(model, data, run, place=at("north"), round_number=1, private={})
    assert math.isfinite(done.metrics["loss-generator"])
    shared = generation.shared_state(model, run)
    released = generation.release(
        generation.first_release(model, run), shared, run, round_number=1, participants=1
    )
    generation.save(tmp_path, released, shared, run, round_number=1, place=at("north"))
    generator, _ = load_generator(tmp_path)
    made = sample(generator, 2, {"diagnosis": "MEL", "site": "island"})
    assert made.shape == (2, 3, 16, 16)
    generation.illustrate(tmp_path, released, run, round_number=1, place=at("north"))
    assert (tmp_path / "grids" / "round-0001.png").is_file()
