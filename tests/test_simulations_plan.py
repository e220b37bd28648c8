"""What a comparison will do is known, and refused where it cannot be, before it starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from processes import fedscan_here

from common.errors import ConfigError
from common.strategies.strategy import load_strategy, strategy_names
from common.studies import study
from common.studies.study import built_in_studies, read_study
from common.training.gan_presets import stylegan2
from simulations import estimate
from simulations.compare import Request, compare
from simulations.plan import Cell, load_plan
from simulations.preset_files import presets

WITH_HOOKS = [name for name in strategy_names() if load_strategy(name).of_classifiers]


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_plan_with_a_description_and_valid_cells(name: str) -> None:
    plan = load_plan(name, {}, {})
    assert plan.description
    for cell in (cell for stage in plan.stages() for cell in stage):
        assert plan.config(cell, {}, features="/features").run.seed == cell.seed
    for variant in plan.variants:  # also those that the preset leaves to `--strategies`
        assert plan.config(Cell("federated", variant, 0), {}, features="/features")


@pytest.mark.parametrize("study", built_in_studies())
@pytest.mark.parametrize("name", presets())
def test_every_variant_of_every_preset_suits_every_study(name: str, study: str) -> None:
    every = [*strategy_names(), *load_plan(name, {}, {}).variants]
    generation = load_plan(name, {}, {}).run.get("task") == "generation"
    able = [one for one in every if not (generation and one in WITH_HOOKS)]
    plan = load_plan(name, {"strategies": able}, {"study": study})
    for cell in (cell for stage in plan.stages() for cell in stage):
        assert plan.config(cell, {}, features="/features").study == study


def test_a_preset_of_slices_takes_the_studys_classifier_of_pictures_and_no_center() -> None:
    plan = load_plan("gan-domain-adaptation", {}, {"study": "skin-lesions"})
    scratch, frozen = (
        plan.config(Cell("federated", name, 0), {}, features="/there").model
        for name in ("scratch", "gan-frozen")
    )
    assert (scratch.classifier, scratch.adapt) == ("small", "none")
    assert (frozen.classifier, frozen.adapt) == ("gan-features", "none")
    usual = load_plan("gan-domain-adaptation", {}, {}).config(Cell("federated", "scratch", 0), {})
    assert usual.model.classifier == "slices"
    assert (usual.model.heights, usual.model.adapt) == ("whole-head", "center")


@pytest.mark.parametrize(
    ("study", "kinds"), [("brain-sex", ("sex", "height")), ("skin-lesions", ("diagnosis",))]
)
def test_by_label_is_by_the_studys_label(study: str, kinds: tuple[str, ...]) -> None:
    plan = load_plan("generation", {"strategies": ["by-label"]}, {"study": study})
    assert stylegan2(plan.config(Cell("federated", "by-label", 0), {})).label_kinds == kinds


def test_what_goes_before_and_after_has_stages_of_its_own() -> None:
    plan = load_plan("generation", {"repetitions": 2}, {})
    assert [sorted({cell.arm for cell in stage}) for stage in plan.stages()] == [
        ["centralized", "federated", "local"],
        ["use"],
    ]
    assert plan.config(Cell("use", "", 1), {}).task == "classification"
    assert plan.config(Cell("local", "", 1), {}).task == "generation"
    plan = load_plan("gan-domain-adaptation", {"repetitions": 2}, {})
    before, compared = plan.stages()
    assert [cell.name for cell in before] == ["pretraining-seed1", "pretraining-seed2"]
    assert plan.config(before[0], {}).task == "generation"
    assert {cell.name for cell in compared if cell.seed == 1} == {
        "local-seed1",
        *(f"federated-{name}-seed1" for name in plan.strategies),
    }


def test_only_pretrained_variants_begin_with_the_features_of_the_pretraining() -> None:
    plan = load_plan("gan-domain-adaptation", {}, {})
    begins = {
        name: plan.config(Cell("federated", name, 0), {}, features="/there").model.gan_checkpoint
        for name in plan.strategies
    }
    assert begins == {
        "scratch": "",
        "untrained-frozen": "",
        "gan-frozen": "/there",
    }
    # The control differs in nothing else.
    one, other = (
        plan.config(Cell("federated", f"{start}-frozen", 0), {}, features="/there")
        for start in ("gan", "untrained")
    )
    assert one.replace({"model.gan-checkpoint": ""}) == other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategies": ["fedsgd"]}, "'fedsgd': accepted are .*fedavg, .*fedprox"),
        ({"variants": {"../x": {}}}, "lower-case"),
        ({"variants": {"fedprox": {}}, "pretrained": []}, "'fedprox': that name is taken"),
        ({"variants": {"local": {}}, "pretrained": []}, "'local': that name is taken"),
        ({"reference": "nobody"}, "reference 'nobody'"),
        ({"contrasts": [["scratch", "nobody"]]}, "contrast with 'nobody'"),
        ({"contrasts": [["scratch", "scratch"]]}, "with itself"),
        ({"contrasts": [["scratch"]]}, "at least 2"),
        ({"pretrained": ["scratch"], "pretraining": {}}, "need a table"),
        ({"pretrained": ["nobody"]}, "is no variant"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan("gan-domain-adaptation", {"strategies": ["fedavg"], **changes}, {})


@pytest.mark.parametrize(
    ("preset", "run", "words"),
    [
        ("gan-domain-adaptation", {"model.gan-checkpoint": "runs/x"}, "trains itself"),
        ("gan-domain-adaptation", {"task": "generation"}, "made for classification"),
        ("generation", {"task": "classification"}, "made for generation"),
    ],
)
def test_a_preset_of_several_stages_refuses_settings_that_take_its_sense(
    preset: str, run: dict, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_plan(preset, {}, run)


def test_generators_before_classifiers_take_nothing_of_how_those_are_trained() -> None:
    run = {
        "training.batch-size": 16,
        "strategy.weighting": "images",
        "transport": "int8",
        "run.evaluate-every": 7,
    }
    plain, changed = (
        load_plan("gan-domain-adaptation", {}, values).config(Cell("pretraining", "", 1), {})
        for values in ({}, {**run, "run.threads": 2})
    )
    assert (plain.training.batch_size, plain.strategy.weighting) == (4, "uniform")
    assert plain.run.evaluate_every == 10
    assert changed == plain.replace({"run.threads": 2})


@pytest.mark.parametrize(
    ("overrides", "begun"),
    [
        ({}, True),
        ({"strategies": ["gan-frozen"]}, True),
        ({"strategies": ["scratch", "untrained-frozen"]}, False),
        ({"arms": ["local"]}, False),
    ],
)
def test_generators_are_trained_where_a_variant_begins_with_one(overrides, begun) -> None:
    stages = load_plan("gan-domain-adaptation", overrides, {}).stages()
    assert any(cell.arm == "pretraining" for cell in stages[0]) == begun


def test_a_preset_of_classifiers_can_be_asked_for_generators() -> None:
    plan = load_plan("smoke", {}, {"task": "generation"})
    config = plan.config(Cell("local", "", 0), {})
    assert (config.run.rounds, config.training.batch_size) == (2, 4)  # what suits both stays
    with pytest.raises(ConfigError, match=r"data\.size has no effect"):
        load = load_plan("smoke", {}, {"task": "generation", "data.size": 16})
        load.config(Cell("local", "", 0), {})


def test_a_variant_keeps_the_changes_that_hold_for_all() -> None:
    plan = load_plan(
        "generation",
        {"strategies": ["fedavg", "by-site"]},
        {"model.gan-changes": "diversity-weight=0 label-kinds=sex"},
    )
    plain, own = (
        stylegan2(plan.config(Cell("federated", strategy, 0), {}))
        for strategy in ("fedavg", "by-site")
    )
    assert (plain.diversity_weight, plain.label_kinds) == (0.0, ("sex",))
    assert (own.diversity_weight, own.label_kinds) == (0.0, ("site",))


def test_a_preset_may_be_given_its_own_task() -> None:
    assert load_plan("generation", {}, {"task": "generation"}).run["task"] == "generation"
    assert load_plan("default", {}, {"task": "generation"}).run["task"] == "generation"


def test_classifiers_after_generators_take_nothing_of_how_those_are_trained() -> None:
    run = {
        **{"strategy.share": "generator", "strategy.weighting": "images", "transport": "int8"},
        **{"strategy.server-learning-rate": 2.0, "run.evaluate-every": 7},
        **{"run.rounds": 9, "training.local-steps": 9, "training.batch-size": 8},
    }
    shared = {
        "run.threads": 2,
        "run.device": "cpu",
        "model.gan-changes": "resolution=64",
        "run.round-timeout": 9.0,
    }
    base = {"run.min-sites": 3, "data.cohort-dir": "/there"}
    use = Cell("use", "", 1)
    plain = load_plan("generation", {}, {}).config(use, base)
    changed = load_plan("generation", {}, {**run, **shared}).config(use, base)
    kept = {key: value for key, value in changed.to_flower().items() if key not in shared}
    assert kept == {k: v for k, v in plain.to_flower().items() if k not in shared}
    assert {key: changed.to_flower()[key] for key in shared} == shared
    assert (changed.run.seed, changed.run.min_sites) == (1, 3)
    assert changed.data.cohort_dir == "/there"


@pytest.mark.parametrize("name", built_in_studies())
def test_auto_among_strategies_is_the_studys_own(name: str) -> None:
    own = read_study(name).classifier.strategy
    assert load_plan("default", {}, {"study": name}).strategies == [own]
    made = {"study": name, "task": "generation"}
    assert load_plan("default", {}, made).strategies == ["fedavg"]


def test_one_strategy_stands_for_federation_and_pairs_need_both() -> None:
    plan = load_plan("gan-domain-adaptation", {}, {})
    assert plan.reference_strategy == "gan-frozen"
    assert plan.compared_contrasts == plan.contrasts and len(plan.contrasts) == 4
    plan = load_plan("gan-domain-adaptation", {"strategies": ["scratch", "untrained-frozen"]}, {})
    assert plan.reference_strategy == "scratch"
    assert plan.compared_contrasts == [["scratch", "local"]]
    assert load_plan("default", {"arms": ["local"]}, {}).reference_strategy == ""
    both = {"strategies": ["fedprox", "fedavg"]}
    assert load_plan("default", both, {}).reference_strategy == "fedavg"


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_pool_with_an_impossible_batch_is_refused_before_anything_starts(
    dry_run: bool, tmp_path: Path
) -> None:
    request = Request(
        **{
            "preset": "generation",
            "overrides": {},
            "run": {"training.batch-size": 2},
            "cohort": None,
        },
        **{"sites": 3, "out": tmp_path / "out", "gpus_per_cell": 0.0, "cell_timeout": 9.0},
    )
    with pytest.raises(ConfigError, match=r"arm 'centralized', 3 × training.batch-size: .*6"):
        compare(request, resume=False, dry_run=dry_run)
    assert not list(tmp_path.iterdir())


def test_cells_are_arms_times_seeds_and_strategies_concern_the_federated_arm_only() -> None:
    plan = load_plan("default", {"repetitions": 2, "strategies": ["fedavg", "fedprox"]}, {})
    assert {cell.name for cell in plan.cells()} == {
        f"{arm}-seed{seed}"
        for seed in (0, 1)
        for arm in ("centralized", "local", "federated-fedavg", "federated-fedprox")
    }


def test_repetitions_may_begin_beyond_the_seeds_that_a_recipe_was_chosen_on() -> None:
    plan = load_plan("gan-domain-adaptation", {"repetitions": 2, "first-repetition": 5}, {})
    assert [{cell.seed for cell in stage} for stage in plan.stages()] == [{5, 6}] * 2
    assert {plan.config(cell, {}).run.seed for cell in plan.cells()} == {5, 6}


def test_only_fedprox_cells_have_a_proximal_term() -> None:
    plan = load_plan("default", {"strategies": ["fedavg", "fedprox"]}, {"strategy.mu": 0.3})
    told = {
        name: plan.config(Cell(arm, name, 0), {}).strategy.options
        for arm, name in (("federated", "fedprox"), ("federated", "fedavg"), ("local", ""))
    }
    assert told == {"fedprox": "mu=0.3", "fedavg": "", "": ""}


def test_arms_differ_in_nothing_but_the_data_that_they_see() -> None:
    plan = load_plan("default", {"repetitions": 3}, {"training.local-steps": 7})
    configs = [plan.config(cell, {}) for cell in plan.cells() if cell.seed == 2]
    assert len(configs) == 3 and len(set(configs)) == 1


@pytest.mark.parametrize(
    ("preset", "overrides", "run", "expected"),
    [
        ("nope", {}, {}, "unknown preset 'nope': accepted are attackers, default"),
        ("smok", {}, {}, "did you mean 'smoke'?"),
        ("nowhere/plan.toml", {}, {}, "there is no such file"),
        ("default", {"arms": ["local", "fed"]}, {}, "unknown arm 'fed'.* mean 'federated'"),
        ("default", {"arms": ["central"]}, {}, "'central'"),
        ("default", {"arms": ["local", "local"]}, {}, "named once"),
        ("default", {"repetitions": 0}, {}, "repetitions = 0"),
        ("default", {"seeds": 2}, {}, "unknown key 'seeds'; it is 'repetitions' now"),
        ("default", {"first-seed": 2}, {}, "it is 'first-repetition' now"),
        ("default", {"first-repetition": -1}, {}, "first-repetition = -1"),
        ("default", {"centralized-batch": "huge"}, {}, "'huge'"),
        ("default", {}, {"run.seed": 1}, "--repetitions"),
        ("default", {}, {"strategy.name": "fedprox"}, "--strategies"),
        ("default", {}, {"data.cohort-dir": "/elsewhere"}, "--cohort"),
        ("default", {}, {"run.min-sites": 1}, "every site"),
        ("default", {}, {"strategy.mu": 0.1}, "no effect"),
        ("default", {"arms": ["local"], "strategies": ["fedprox"]}, {}, "without the arm"),
        (
            "default",
            {},
            {"model.classifier": "slices", "model.adapt": "center"},
            "leave centralized out",
        ),
    ],
)
def test_what_cannot_be_is_refused(preset: str, overrides: dict, run: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_plan(preset, overrides, run)


def test_a_pool_is_not_trained_where_the_study_says_center() -> None:
    built_in = Path(study.__file__).with_name("brain-sex.toml").read_text()
    text = built_in.replace('adapt = "threshold"', 'adapt = "center"')
    with pytest.raises(ConfigError, match="leave centralized out"):
        load_plan("default", {}, {"study": text})


@pytest.mark.parametrize("adapt", ["statistics", "threshold"])
def test_a_pool_is_adapted_to_each_site_as_every_arm_is(adapt: str) -> None:
    plan = load_plan("default", {}, {"model.adapt": adapt})
    assert {plan.config(cell, {}).model.adapt for cell in plan.cells()} == {adapt}
    assert {cell.arm for cell in plan.cells()} == {"centralized", "local", "federated"}


def test_resources_that_do_not_exist_are_refused_before_the_start(tmp_path: Path) -> None:
    for words in (["--set", "run.threads=200"], ["--gpus-per-cell", "100"]):
        done = fedscan_here("benchmark", *words, cwd=tmp_path, cache=tmp_path / "cache")
        assert done.returncode == 2
        assert "cannot be had" in done.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run_tells_cells_and_time_and_starts_nothing(tmp_path: Path) -> None:
    done = fedscan_here(
        *("benchmark", "--dry-run", "--repetitions", "2", "--set", "data.size=16"),
        cwd=tmp_path,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stderr
    assert "6 cells: federated-fedavg-seed0" in done.stdout
    assert "data.size = 16" in done.stdout
    assert "min on" in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_times_steps_that_are_alike_once_and_tells_what_variants_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = []
    monkeypatch.setattr(estimate, "step_seconds", lambda config, _: timed.append(config) or 0.01)
    plan = {"strategies": ["fedavg", "krum-of-three", "harmonized", "threshold", "fednova-epochs"]}
    request = Request("hospitals-that-differ", plan, {}, None, 3, tmp_path / "out", 0.0, 60.0)
    compare(request, resume=False, dry_run=True)
    told = capsys.readouterr().out.splitlines()
    assert 'krum-of-three: strategy.options = "malicious=0"' in told
    assert 'threshold: model.adapt = "threshold"' in told
    assert len(timed) == 3  # as usual; with another model.adapt; by epochs


def test_dry_run_refuses_a_cohort_of_another_study(tiny_cohort: Path, tmp_path: Path) -> None:
    words = ("benchmark", "--dry-run", "--cohort", str(tiny_cohort), "--study", "skin-lesions")
    done = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--study names another" in done.stderr and "Traceback" not in done.stderr


def test_benchmark_refuses_a_folder_with_other_files(tiny_cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    done = fedscan_here(
        *("benchmark", "--preset", "smoke", "--cohort", str(tiny_cohort), "--out", "full"),
        cwd=tmp_path,
        cache=tmp_path / "cache",
    )
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_strategy_that_needs_more_sites_is_refused_before_the_start(tmp_path: Path) -> None:
    plan = {"strategies": ["krum"]}
    request = Request("default", plan, {}, None, 3, tmp_path / "out", 0.0, 60.0)
    with pytest.raises(ConfigError, match="strategy 'krum' needs 5 sites and there are 3"):
        compare(request, resume=False, dry_run=True)
    assert not list(tmp_path.iterdir())


def test_the_headline_is_five_new_cohorts_and_the_default_one_repetition() -> None:
    headline, default = (load_plan(name, {}, {}) for name in ("headline", "default"))
    assert headline.cohort_seeds == {seed: seed for seed in range(1, 6)}
    assert default.cohort_seeds == {0: 0}
    same = load_plan("headline", {"same-cohort": True, "first-repetition": 1000}, {})
    assert same.cohort_seeds == dict.fromkeys(range(1000, 1005), 0)


@pytest.mark.parametrize(("option", "now"), [("--seeds", "--repetitions"),
                                             ("--first-seed", "--first-repetition")])  # fmt: skip
def test_an_option_of_earlier_versions_names_the_one_that_it_is_now(option: str, now: str) -> None:
    from typer.testing import CliRunner

    from simulations.cli import app

    done = CliRunner().invoke(app, ["benchmark", option, "5"])
    assert str(done.exception) == f"{option} 5: it is {now} now"
    assert option not in CliRunner().invoke(app, ["benchmark", "--help"]).stdout


@pytest.mark.parametrize("command", ["run", "benchmark"])
def test_the_number_of_test_scans_of_a_cohort_of_ones_own_cannot_be_set(
    command: str, tiny_cohort: Path
) -> None:
    from typer.testing import CliRunner

    from simulations.cli import app

    words = [command, "--cohort", str(tiny_cohort), "--test-scans", "300"]
    assert "is for simulated hospitals" in str(CliRunner().invoke(app, words).exception)


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    own = tmp_path / "plan.toml"
    own.write_text(presets()["smoke"].read_text())
    assert load_plan(str(own), {}, {}) == load_plan("smoke", {}, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("strategies = [3]", "strategies = [3]: accepted is a list of texts"),
        ('arms = "local"', "arms = 'local': accepted is a list of texts"),
        ("run = 3", "run = 3: accepted is a table, [run]"),
        ("variants = { a = 3 }", "variants.a = 3: accepted is a table, [variants.a]"),
        ("[run]\nstudy = 3", "run.study = 3: accepted is a text"),
    ],
)
def test_a_file_of_another_form_is_refused_in_words(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_plan(str(tmp_path / "plan.toml"), {}, {})
