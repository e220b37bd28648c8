"""The training of a StyleGAN2-ADA: what each formula, phase and piece of state means."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_gan import TINY, architecture_of, as_seen, start, toy_slices
from torch import nn

from common.errors import ConfigError, DivergedError, FedscanError
from common.models.augment import BGC, Strengths
from common.training import gan
from common.training.gan import Draws, GanTraining, RealSlices, fit
from common.training.gan_losses import (
    diversity_shortfall,
    ema_beta,
    lazy_adam,
    logistic_loss,
    mix_styles,
    mixing_cutoffs,
    next_p,
    path_lengths,
    r1_penalty,
)
from common.training.gan_state import GROUPS, resolve_device

PHASES = ("generator_step", "path_length_step", "discriminator_step", "r1_step")


def draws_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def fitted(steps: int, *, seed: int = 1, **changes) -> GanTraining:
    training = start(**changes)
    fit(training, toy_slices(), steps=steps, seed=seed)
    return training


@pytest.fixture(scope="module")
def trained() -> GanTraining:
    """Ten iterations; not to be trained further."""
    return fitted(10)


def phase(training: GanTraining, name: str, step: int = 0) -> dict[str, torch.Tensor]:
    reals = RealSlices(toy_slices(), training.architecture, training.config, training.device)
    return getattr(gan, name)(training, reals, Draws(1, step, training.device))


class TestLosses:
    def test_undecided_discriminator_costs_log_2(self):
        for real in (True, False):
            assert logistic_loss(torch.zeros(3), real=real).item() == pytest.approx(math.log(2))

    def test_generator_learns_although_the_discriminator_is_sure(self):
        """Not saturating: the gradient of -log D(G(z)) stays where log(1 - D(G(z))) has none."""
        logits = torch.full((4,), -20.0, requires_grad=True)
        logistic_loss(logits, real=True).backward()
        assert logits.grad.tolist() == pytest.approx([-1 / 4] * 4)

    def test_r1_of_a_linear_discriminator_is_its_squared_weight(self):
        weight = torch.randn(2, 3, 3, generator=draws_of(0)).requires_grad_()
        images = torch.randn(5, 2, 3, 3, generator=draws_of(1)).requires_grad_()
        penalty = r1_penalty(images, (images * weight).sum((1, 2, 3)) + 7)
        torch.testing.assert_close(penalty, weight.square().sum().expand(5))
        penalty.mean().backward()
        torch.testing.assert_close(weight.grad, 2 * weight.detach())

    def test_r1_of_a_quadratic_discriminator_is_each_image_squared(self):
        images = torch.randn(5, 1, 3, 3, generator=draws_of(1)).requires_grad_()
        penalty = r1_penalty(images, images.square().sum((1, 2, 3)) / 2)
        torch.testing.assert_close(penalty, images.square().sum((1, 2, 3)))

    def test_path_length_of_a_linear_generator_is_that_of_its_jacobian(self):
        jacobian = torch.randn(16, 3, 5, generator=draws_of(0))  # of 16 pixels, by layer and w
        ws = torch.randn(2, 3, 5, generator=draws_of(1)).requires_grad_()
        y = torch.randn(2, 1, 4, 4, generator=draws_of(2))
        images = torch.einsum("plw,nlw->np", jacobian, ws).view(2, 1, 4, 4)
        pulled = torch.einsum("plw,np->nlw", jacobian, y.flatten(1)) / 4  # Jᵀ y / R
        expected = pulled.square().sum(2).mean(1).sqrt()
        torch.testing.assert_close(path_lengths(images, ws, y), expected)

    def test_mean_squared_path_length_is_the_jacobians_norm(self):
        jacobian = torch.randn(64, 5, generator=draws_of(0))
        ws = torch.randn(4000, 1, 5, generator=draws_of(1)).requires_grad_()
        images = (ws[:, 0] @ jacobian.T).view(-1, 1, 8, 8)
        lengths = path_lengths(images, ws, torch.randn(images.shape, generator=draws_of(2)))
        assert lengths.square().mean().item() == pytest.approx(
            jacobian.square().sum().item() / 64, rel=0.05
        )


class TestDiversity:
    def test_as_far_apart_as_real_images_costs_nothing_and_equal_ones_cost_one(self):
        images = torch.randn(4000, 1, 4, 4, generator=draws_of(0))
        first, second = images[:2000], images[2000:]
        assert diversity_shortfall(first, first, 32.0) == 1
        # Independent standard normal pixels: the squared distance is 2 a pixel.
        assert diversity_shortfall(first / 2, second / 2, 32.0) == pytest.approx(0.75, abs=0.02)
        assert diversity_shortfall(first * 2, second * 2, 32.0) == 0

    def test_spread_is_the_mean_squared_distance_of_slices_with_equal_labels(self):
        training = start()
        reals = RealSlices(toy_slices(), training.architecture, training.config, training.device)
        distances, weights = [], []
        slices = torch.from_numpy(as_seen(reals.data))
        for group in reals.labels.unique(dim=0):
            images = slices[(reals.labels == group).all(1)].flatten(1)
            distances.append(torch.pdist(images).square().mean())
            weights.append(len(images) - 1)  # degrees of freedom: what a group knows
        assert reals.spread == pytest.approx(np.average(distances, weights=weights), rel=1e-4)

    def test_a_step_down_its_slope_moves_fakes_of_one_label_apart(self):
        generator = start().generator
        z = torch.randn(32, generator.architecture.z_dim, generator=draws_of(3))
        labels = torch.eye(generator.architecture.label_dim)[:1].repeat(32, 1)

        def shortfall() -> torch.Tensor:
            images = generator(z, labels)
            return diversity_shortfall(images[:16], images[16:], 1e3)

        before = shortfall()
        before.backward()
        with torch.no_grad():
            for parameter in generator.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        assert 0 < shortfall() < before < 1

    @pytest.mark.parametrize("batch", [2, 3, 4])
    def test_pairs_share_labels_and_the_shortfall_is_a_metric(self, batch):
        training = start(diversity_weight=1.0, batch_size=batch)
        reals = RealSlices(toy_slices(), training.architecture, training.config, training.device)
        draws = Draws(1, 0, training.device)
        _, labels = gan._latents(training, reals, draws, "G", batch, paired=True)
        assert torch.equal(labels[: batch // 2], labels[-(batch // 2) :])
        assert 0 <= gan.generator_step(training, reals, draws)["diversity-shortfall"] <= 1

    def test_without_labels_all_slices_are_compared(self):
        config = TINY.with_changes({"label-kinds": "none", "diversity-weight": 1.0})
        training = GanTraining.start(config, config.architecture(), device="cpu")
        reals = RealSlices(toy_slices(), training.architecture, config, training.device)
        distances = torch.pdist(torch.from_numpy(as_seen(reals.data)).flatten(1)).square()
        assert reals.spread == pytest.approx(float(distances.mean()), rel=1e-4)
        assert "diversity-shortfall" in fit(training, toy_slices(), steps=1, seed=0).metrics

    def test_slices_that_tell_nothing_of_it_train_as_without(self):
        few = toy_slices().subset([0, 1])  # one slice of each label
        trainings = [start(diversity_weight=weight) for weight in (0.0, 1.0)]
        results = [fit(one, few, steps=2, seed=0) for one in trainings]
        assert results[1].metrics["diversity-shortfall"] == 0  # told, as by sites with pairs
        assert equal(*(one.export("parameters") for one in trainings))

    def test_a_batch_of_one_has_no_pair(self):
        with pytest.raises(ConfigError, match="batch-size to 2"):
            fitted(1, diversity_weight=1.0, batch_size=1)


class TestStyleMixing:
    def test_layers_below_the_cutoff_are_from_the_first_latent(self):
        first, second = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)
        mixed = mix_styles(first, second, torch.tensor([1, 3, 4]))
        assert mixed[:, :, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]

    def test_gradients_go_to_the_latent_that_a_layer_is_from(self):
        first, second = (
            torch.randn(3, 4, 2, dtype=torch.float64, generator=draws_of(i)).requires_grad_()
            for i in range(2)
        )
        cutoffs = torch.tensor([1, 3, 4])

        def of(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return mix_styles(one, other, cutoffs).square()

        assert torch.autograd.gradcheck(of, (first, second))
        of(first, second).sum().backward()
        assert (first.grad != 0).all(2).sum(1).tolist() == cutoffs.tolist()
        assert (second.grad != 0).all(2).sum(1).tolist() == (4 - cutoffs).tolist()

    def test_share_of_images_is_mixed_somewhere_inside(self):
        cutoffs = mixing_cutoffs(20_000, 6, 0.9, draws_of(0))
        assert (cutoffs < 6).float().mean().item() == pytest.approx(0.9, abs=0.01)
        counts = torch.bincount(cutoffs, minlength=7).tolist()
        assert counts[0] == 0
        assert min(counts[1:6]) > 3_400

    def test_no_share_mixes_nothing(self):
        assert (mixing_cutoffs(50, 6, 0.0, draws_of(0)) == 6).all()


class TestSchedules:
    def test_lazy_constants_are_the_papers(self):
        rate, betas = lazy_adam(0.002, (0.0, 0.99), 16)
        assert rate == pytest.approx(0.002 * 16 / 17)
        assert betas == pytest.approx((0.0, 0.99 ** (16 / 17)))
        assert lazy_adam(0.002, (0.5, 0.99), None) == (0.002, (0.5, 0.99))

    @pytest.mark.parametrize("interval", [1, 4, 16])
    def test_a_cycle_with_its_extra_step_goes_as_far_and_forgets_as_much(self, interval):
        rate, betas = lazy_adam(1.0, (0.9, 0.99), interval)
        assert rate * (interval + 1) == pytest.approx(interval)
        assert [beta ** (interval + 1) for beta in betas] == pytest.approx(
            [0.9**interval, 0.99**interval]
        )

    def test_optimizers_have_the_constants_of_their_regularisation(self):
        training = start(r1_interval=16, path_interval=4)
        (g,), (d,) = (
            optimizer.param_groups
            for optimizer in (training.generator_optimizer, training.discriminator_optimizer)
        )
        assert g["lr"] == pytest.approx(0.0025 * 4 / 5)
        assert d["lr"] == pytest.approx(0.0025 * 16 / 17)
        assert d["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
        plain = start(r1_gamma=0, path_weight=0)
        assert plain.generator_optimizer.param_groups[0]["lr"] == 0.0025
        assert plain.discriminator_optimizer.param_groups[0]["lr"] == 0.0025

    def test_half_of_the_old_average_is_left_after_the_half_life(self):
        beta = ema_beta(16, half_life=5000, rampup=0, images_seen=0)
        assert beta ** (5000 / 16) == pytest.approx(0.5)

    def test_half_life_grows_with_the_images_seen(self):
        at = [ema_beta(16, half_life=5000, rampup=0.05, images_seen=n) for n in (0, 640, 10**6)]
        assert at == [0.0, pytest.approx(0.5 ** (16 / 32)), pytest.approx(0.5 ** (16 / 5000))]

    def test_p_follows_the_signs_and_stays_a_probability(self):
        assert next_p(0.5, 1.0, target=0.6, step=0.1) == pytest.approx(0.6)
        assert next_p(0.5, 0.0, target=0.6, step=0.1) == pytest.approx(0.4)
        assert next_p(0.5, 0.6, target=0.6, step=0.1) == 0.5
        assert next_p(0.5, math.nan, target=0.6, step=0.1) == 0.5
        assert next_p(0.0, 0.0, target=0.6, step=0.1) == 0.0
        assert next_p(1.0, 1.0, target=0.6, step=0.1) == 1.0


class TestSlices:
    def reals(self, count: int = 10, **changes) -> RealSlices:
        config = TINY.with_changes({key.replace("_", "-"): v for key, v in changes.items()})
        return RealSlices(toy_slices(count), architecture_of(config), config, torch.device("cpu"))

    @pytest.mark.parametrize("mirror", [False, True])
    def test_an_epoch_has_each_slice_once(self, mirror):
        reals = self.reals(10, mirror=mirror, batch_size=4)
        size = 20 if mirror else 10
        seen = torch.cat([reals.batch(step, 5)[0] for step in range(2 * size // 4)])
        whole = as_seen(toy_slices(10))
        if mirror:
            whole = np.concatenate([whole, whole[..., ::-1]])
        for epoch in seen.split(size):
            assert sorted(image.tobytes() for image in epoch.numpy()) == sorted(
                image.tobytes() for image in whole
            )

    def test_batch_larger_than_the_data(self):
        images, labels = self.reals(3, batch_size=8, mirror=False).batch(0, 5)
        assert images.shape == (8, 1, 16, 16)
        assert labels.shape == (8, 2)
        assert len({image.numpy().tobytes() for image in images[:3]}) == 3

    def test_batch_depends_on_seed_and_iteration_alone(self):
        reals, again = self.reals(), self.reals()
        later = reals.batch(7, 5)[0]
        again.batch(3, 5)
        assert torch.equal(again.batch(7, 5)[0], later)
        assert not torch.equal(reals.batch(8, 5)[0], later)
        assert not torch.equal(reals.batch(7, 6)[0], later)

    def test_labels_stay_with_their_slices(self):
        reals = self.reals(10, mirror=False, batch_size=10, minibatch_group=1)
        images, labels = reals.batch(0, 5)
        data = toy_slices(10)
        slices = as_seen(data)
        for image, label in zip(images, labels, strict=True):
            i = next(i for i in range(10) if np.array_equal(slices[i], image))
            assert label.tolist() == [float(data.conditions[i]["sex"] == s) for s in "FM"]

    def test_labels_of_fakes_are_as_frequent_as_in_the_data(self):
        drawn = self.reals(10).draw_labels(5000, draws_of(0))
        assert drawn.sum(1).tolist() == [1.0] * 5000
        assert drawn[:, 0].mean().item() == pytest.approx(0.4, abs=0.02)

    def test_kinds_that_do_not_condition_are_left_out(self):
        assert self.reals(label_kinds="none").batch(0, 1)[1].shape == (4, 0)
        assert self.reals(label_kinds="sex,site").batch(0, 1)[1].sum(1).tolist() == [2.0] * 4

    def test_images_of_another_size_are_refused(self):
        architecture = architecture_of(TINY.with_changes({"resolution": 32}))
        with pytest.raises(ConfigError, match=r"\(1, 32, 32\)"):
            RealSlices(toy_slices(), architecture, TINY, torch.device("cpu"))

    def test_no_image_is_refused(self):
        with pytest.raises(ConfigError, match="accepted are 1 or more"):
            RealSlices(
                toy_slices().subset([False] * 10), architecture_of(TINY), TINY, torch.device("cpu")
            )


class TestPhases:
    @pytest.mark.parametrize(
        ("name", "network"),
        [
            ("generator_step", "generator"),
            ("path_length_step", "generator"),
            ("discriminator_step", "discriminator"),
            ("r1_step", "discriminator"),
        ],
    )
    def test_a_phase_changes_its_own_network_only(self, name, network):
        training = start()
        before = training.export("parameters")
        phase(training, name)
        changed = {
            key.partition(".")[0]
            for key, tensor in training.export("parameters").items()
            if not torch.equal(tensor, before[key])
        }
        assert changed == {network}
        other = {"generator": training.discriminator, "discriminator": training.generator}[network]
        assert all(parameter.grad is None for parameter in other.parameters())
        assert all(parameter.requires_grad for parameter in other.parameters())

    def test_phases_come_when_they_are_due(self, monkeypatch):
        calls = []
        for name in PHASES:
            monkeypatch.setattr(
                gan,
                name,
                lambda training, *_, name=name: calls.append((training.steps, name)) or {},
            )
        training = start(r1_interval=3, path_interval=2)
        training.sign_count += 1
        for _ in range(7):
            gan.train_step(training, None, 0)
        due = {name: [step for step, called in calls if called == name] for name in PHASES}
        assert due == {
            "generator_step": list(range(7)),
            "path_length_step": [0, 2, 4, 6],
            "discriminator_step": list(range(7)),
            "r1_step": [0, 3, 6],
        }

    def test_regularisation_of_weight_zero_is_left_out(self, monkeypatch):
        for name in ("path_length_step", "r1_step"):
            monkeypatch.setattr(gan, name, lambda *_: pytest.fail("not to be called"))
        fitted(1, r1_gamma=0, path_weight=0)

    def test_r1_makes_the_discriminator_flatter(self):
        training = start(r1_gamma=10, augment="off")
        before = phase(training, "r1_step")["r1-penalty"]
        for step in range(1, 30):
            phase(training, "r1_step", step)
        assert phase(training, "r1_step")["r1-penalty"] < before / 2

    def test_path_lengths_gather_around_their_mean(self):
        training = start(path_decay=1.0)
        spreads = [float(phase(training, "path_length_step", s)["path-penalty"]) for s in range(40)]
        assert np.mean(spreads[-10:]) < np.mean(spreads[:10]) / 2

    def test_running_path_length_takes_up_its_share(self):
        training = start(path_decay=0.25)
        training.path_mean.fill_(8.0)
        length = float(phase(training, "path_length_step")["path-length"])
        assert float(training.path_mean) == pytest.approx(8 + 0.25 * (length - 8))

    def test_each_network_learns_against_the_other_at_rest(self):
        training = start(augment="off")
        losses = [
            float(phase(training, "discriminator_step", s)["loss-discriminator"]) for s in range(40)
        ]
        assert losses[0] == pytest.approx(2 * math.log(2), abs=0.5)
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 1.5
        losses = [float(phase(training, "generator_step", s)["loss-generator"]) for s in range(40)]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2

    def test_signs_of_reals_are_counted(self):
        training = start()
        measured = phase(training, "discriminator_step")
        phase(training, "generator_step")
        phase(training, "r1_step")
        assert float(training.sign_count) == 4
        assert float(training.sign_sum) == 4 * float(measured["sign-real"])


class TestAverage:
    def test_follows_the_formula(self):
        training = start(ema_kimg=0.01, ema_rampup=0)
        before = copy.deepcopy(training.ema)
        fit(training, toy_slices(), steps=1, seed=1)
        beta = 0.5 ** (4 / 10)
        for old, new, average in zip(
            before.parameters(),
            training.generator.parameters(),
            training.ema.parameters(),
            strict=True,
        ):
            torch.testing.assert_close(average, beta * old + (1 - beta) * new)

    def test_is_the_generator_at_first(self):
        training = fitted(1)
        ours, average = training.generator.state_dict(), training.ema.state_dict()
        for name in ours:
            torch.testing.assert_close(average[name], ours[name], rtol=0, atol=1e-7)

    def test_has_the_generators_average_of_w(self, trained):
        assert torch.equal(trained.ema.mapping.w_average, trained.generator.mapping.w_average)
        assert trained.ema.mapping.w_average.abs().sum() > 0

    def test_is_no_part_of_any_graph(self, trained):
        assert not any(parameter.requires_grad for parameter in trained.ema.parameters())


class TestAugmentation:
    def run(self, training: GanTraining, sign: float, iterations: int) -> None:
        for _ in range(iterations):
            training.sign_sum += 4 * sign
            training.sign_count += 4
            training.steps += 1
            training.update_p()

    def test_p_goes_from_0_to_1_over_the_configured_images(self):
        training = start(augment_p=0, ada_kimg=1, ada_interval=5)
        self.run(training, 1.0, 240)
        assert training.p == pytest.approx(0.96)
        self.run(training, 1.0, 10)
        assert training.p == pytest.approx(1.0)
        self.run(training, 1.0, 50)
        assert training.p == 1.0

    def test_p_falls_where_the_discriminator_does_not_overfit(self):
        training = start(augment_p=0.1, ada_kimg=1, ada_interval=5)
        self.run(training, 0.0, 10)
        assert training.p == pytest.approx(0.1 - 40 / 1000)
        self.run(training, 0.0, 50)
        assert training.p == 0.0

    def test_signs_are_forgotten_once_p_has_followed_them(self):
        training = start(ada_interval=2)
        self.run(training, 1.0, 1)
        assert float(training.sign_count) == 4
        self.run(training, 1.0, 1)
        assert float(training.sign_count) == 0

    @pytest.mark.parametrize(
        ("steps", "last"),
        [
            ("b", "xint"),
            ("bg", "xfrac"),
            ("bgc", "saturation"),
            ("bgcf", "imgfilter"),
            ("bgcfn", "noise"),
            ("bgcfnc", "cutout"),
        ],
    )
    def test_steps_that_are_asked_for_reach_the_pipeline(self, steps, last):
        every = [field.name for field in dataclasses.fields(Strengths)][:15]
        strengths = start(augment_steps=steps).augmentation.strengths
        on = [name for name in every if getattr(strengths, name)]
        assert on == every[: every.index(last) + 1]
        assert {getattr(strengths, name) for name in on} == {1.0}
        assert (strengths == start().augmentation.strengths == BGC) == (steps == "bgc")

    def test_steps_change_what_is_learned(self):
        assert not equal(
            fitted(2, augment_p=1.0, augment="fixed", augment_steps="b").export("parameters"),
            fitted(2, augment_p=1.0, augment="fixed").export("parameters"),
        )

    @pytest.mark.parametrize(("augment", "p"), [("fixed", 0.2), ("off", 0.0)])
    def test_p_stays_where_it_is_not_adaptive(self, augment, p):
        assert fitted(4, augment=augment, ada_target=-1).p == p

    def test_p_moves_in_training(self):
        assert fitted(4, ada_target=-1).p == pytest.approx(0.2 + 4 * 4 / 1000)


class TestFit:
    def test_same_seed_gives_the_same_bits(self, trained):
        assert equal(fitted(10).export(), trained.export())

    def test_other_seeds_give_others(self, trained):
        assert not equal(fitted(10, seed=2).export("parameters"), trained.export("parameters"))
        assert not equal(start(seed=1).export("parameters"), start().export("parameters"))

    def test_two_halves_are_a_whole(self, trained):
        training = fitted(5)
        fit(training, toy_slices(), steps=5, seed=1)
        assert equal(training.export(), trained.export())

    def test_global_random_state_is_left_alone(self):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        fitted(2)
        assert torch.equal(torch.rand(4), expected)

    def test_everything_is_told_at_the_interval_and_at_the_end(self):
        told = []
        result = fit(
            start(), toy_slices(), steps=7, seed=1, on_step=lambda t, m: told.append((t.steps, m))
        )
        assert [step for step, _ in told] == list(range(1, 8))
        assert [step for step, metrics in told if metrics] == [5, 7]
        assert (
            told[4][1].keys()
            == result.metrics.keys()
            == {
                *("loss-generator", "loss-discriminator", "sign-real", "p"),
                *("r1-penalty", "path-length", "path-penalty", "images-per-second", "images-seen"),
                *("gradient-norm-generator", "gradient-norm-discriminator"),
                *("non-finite-gradients-generator", "non-finite-gradients-discriminator"),
            }
        )
        assert result.metrics["images-seen"] == 28
        first, last = told[4][1], told[6][1]
        assert result.metrics["loss-generator"] == pytest.approx(
            (5 * first["loss-generator"] + 2 * last["loss-generator"]) / 7
        )
        assert result.metrics["gradient-norm-discriminator"] > 0
        assert result.metrics["non-finite-gradients-generator"] == 0

    def test_generator_learns_where_the_blobs_are_and_whose_are_larger(self):
        plain = {"augment": "off", "style_mixing": 0.0, "path_weight": 0.0}  # as tiny-32
        training = start(channel_base=256, ema_kimg=0.2, batch_size=8, **plain)
        fit(training, toy_slices(), steps=250, seed=1)
        z = torch.randn(32, 16, generator=draws_of(0))
        data = toy_slices()
        means = {}
        for number, sex in enumerate("FM"):
            labels = torch.eye(2)[number].expand(32, 2)
            means[sex] = training.ema(z, labels).mean(0)[0]
            real = np.mean(
                [
                    (image + image[..., ::-1])[0] / 2
                    for image, row in zip(as_seen(data), data.conditions, strict=True)
                    if row["sex"] == sex
                ],
                axis=0,
            )
            assert np.corrcoef(means[sex].flatten(), real.flatten())[0, 1] > 0.6
        assert means["M"].mean() > means["F"].mean() + 0.1

    @pytest.mark.parametrize("kinds", ["none", "sex,site"])
    def test_other_conditions_train_too(self, kinds):
        assert fitted(1, label_kinds=kinds).steps == 1

    def test_colour_images_train_too(self):
        training = start(channels=3)
        fit(training, toy_slices(channels=3), steps=1, seed=1)
        assert training.images_seen == 4

    def test_half_precision_trains_too(self):
        training = start(precision="bfloat16")
        metrics = fit(training, toy_slices(), steps=2, seed=1).metrics
        assert math.isfinite(metrics["loss-generator"])
        assert all(p.dtype == torch.float32 for p in training.generator.parameters())

    def test_divergence_is_an_error_that_says_what_to_do(self):
        training = start()
        with torch.no_grad():
            training.discriminator.output.bias.fill_(math.nan)
        with pytest.raises(DivergedError, match=r"loss-generator.*lower learning rates"):
            fit(training, toy_slices(), steps=1, seed=1)

    def test_gradients_that_overflow_do_not_reach_the_weights(self):
        training = start()
        weight = training.generator.mapping.layers[0].weight
        weight.register_hook(lambda gradient: gradient.fill_(math.inf))
        metrics = fit(training, toy_slices(), steps=1, seed=1).metrics
        assert metrics["non-finite-gradients-generator"] == 1
        assert metrics["non-finite-gradients-discriminator"] == 0
        assert all(p.isfinite().all() for p in training.generator.parameters())

    def test_a_gpu_that_is_not_there_is_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ConfigError, match="sees no GPU"):
            resolve_device("cuda")
        assert resolve_device("auto") == torch.device("cpu")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
    def test_trains_on_a_gpu(self, precision):
        config = TINY.with_changes({"precision": precision})
        training = GanTraining.start(config, architecture_of(config), seed=0, device="cuda")
        metrics = fit(training, toy_slices(), steps=17, seed=1).metrics
        assert math.isfinite(metrics["loss-discriminator"])
        again = GanTraining.start(config, architecture_of(config), seed=1, device="cuda")
        again.load(training.export())
        assert equal(again.export(), training.export())


class TestState:
    def test_groups_hold_everything_once(self, trained):
        groups = {group: trained.export(group) for group in GROUPS}
        names = [name for state in groups.values() for name in state]
        assert len(names) == len(set(names))
        assert equal(
            trained.export(), {k: v for state in groups.values() for k, v in state.items()}
        )
        networks = {"generator": trained.generator, "discriminator": trained.discriminator}
        for prefix, network in networks.items():
            assert {f"{prefix}.{name}" for name in network.state_dict()} <= set(names)
        assert {f"ema.{name}" for name, _ in trained.ema.named_parameters()} <= set(names)

    def test_what_a_site_keeps_to_itself_is_in_no_other_group(self, trained):
        private = trained.export("private")
        own = {"ada.p", "ada.sign_sum", "ada.sign_count", "path_length_mean"}
        assert own <= private.keys()
        assert not own & trained.export([group for group in GROUPS if group != "private"]).keys()
        moments = {name for name in private if "/" in name}
        parameters = trained.export("parameters")
        assert moments == {
            f"{name}/{moment}"
            for name in parameters
            for moment in ("exp_avg", "exp_avg_sq", "step")
        }
        assert any(private[name].abs().sum() > 0 for name in moments)

    def test_groups_have_the_same_names_before_the_first_iteration(self, trained):
        assert start().export().keys() == trained.export().keys()

    def test_export_is_a_copy_in_plain_memory(self, trained):
        state = trained.export()
        assert all(t.is_contiguous() and not t.requires_grad for t in state.values())
        state["generator.mapping.w_average"].fill_(9)
        assert not (trained.generator.mapping.w_average == 9).any()

    def test_a_training_taken_up_elsewhere_goes_on_bit_for_bit(self):
        training = fitted(6)
        other = start(seed=5)
        other.load(training.export())
        for one in (training, other):
            fit(one, toy_slices(), steps=6, seed=1)
        assert equal(other.export(), training.export())

    def test_private_state_matters_and_survives(self):
        """A site that forgot its moments and p would go another way."""
        training = fitted(6)
        keeps, forgets = start(seed=5), start(seed=5)
        shared = [group for group in GROUPS if group != "private"]
        forgets.load(training.export(shared), shared)
        keeps.load(training.export(shared), shared)
        keeps.load(training.export("private"), "private")
        assert keeps.p == training.p != forgets.p
        for one in (training, keeps, forgets):
            fit(one, toy_slices(), steps=1, seed=1)
        parameters = training.export("parameters")
        assert equal(keeps.export("parameters"), parameters)
        assert not equal(forgets.export("parameters"), parameters)

    def test_identical_sites_averaged_are_one_site(self):
        alone = start()
        sites = [start() for _ in range(3)]
        for _ in range(2):
            fit(alone, toy_slices(), steps=3, seed=1)
            for site in sites:
                fit(site, toy_slices(), steps=3, seed=1)
            sent = [site.export("parameters") for site in sites]
            mean = {
                name: torch.stack([state[name].double() for state in sent]).mean(0).float()
                for name in sent[0]
            }
            for site in sites:
                site.load(mean, "parameters")
        assert equal(sites[0].export(), alone.export())

    def test_training_and_averaging_touch_no_constant(self, trained):
        fresh = start(seed=3)
        assert equal(trained.export("constants"), start().export("constants"))
        assert trained.export("constants").keys() >= {
            f"generator.synthesis.blocks.{i}.convolution.noise" for i in range(3)
        }
        # Another seed of the weights, the same constants: they are the architecture's.
        assert equal(fresh.export("constants"), trained.export("constants"))
        fresh.load(trained.export("parameters"), "parameters")
        assert equal(fresh.export("constants"), trained.export("constants"))

    def test_loaded_constants_are_the_averages_too(self, trained):
        training = start(seed=5)
        state = trained.export()
        constants = [name for name in state if name.endswith(".noise")]
        for number, name in enumerate(constants):
            state[name] += number + 1.0
        training.load(trained.export("parameters"), "parameters")
        before = training.ema.synthesis.noise_constants()[0].clone()
        assert torch.equal(before, trained.ema.synthesis.noise_constants()[0])
        training.load(state)
        for one, other in zip(
            training.ema.synthesis.noise_constants(),
            training.generator.synthesis.noise_constants(),
            strict=True,
        ):
            assert torch.equal(one, other)
        name = "synthesis.blocks.0.convolution.noise"
        assert torch.equal(training.ema.state_dict()[name], state[f"generator.{name}"])
        assert not torch.equal(training.ema.state_dict()[name], before)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda s: s.pop("steps"), "missing: steps"),
            (lambda s: s.update(more=torch.zeros(1)), "unknown: more"),
            (
                lambda s: s.update({"path_length_mean": torch.zeros(2)}),
                r"path_length_mean is float32 \(2,\) instead of float32 \(\)",
            ),
            (
                lambda s: s.update({"path_length_mean": torch.zeros((), dtype=torch.float16)}),
                "float16",
            ),
        ],
    )
    def test_state_that_does_not_fit_changes_nothing(self, trained, change, words):
        training = start(seed=5)
        before = training.export()
        state = trained.export()
        change(state)
        with pytest.raises(FedscanError, match=words):
            training.load(state)
        assert equal(training.export(), before)

    def test_many_faults_are_told_briefly(self, trained):
        with pytest.raises(FedscanError) as caught:
            trained.load({}, "parameters")
        assert "and" in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_unknown_group_is_an_error(self, trained):
        with pytest.raises(ValueError, match="accepted are parameters, averages"):
            trained.export("weights")

    def test_adam_is_pytorchs(self):
        """Moments that are there from the start change nothing of the first step."""
        training = start()
        reference = nn.ParameterList([p.detach().clone() for p in training.generator.parameters()])
        group = training.generator_optimizer.param_groups[0]
        plain = torch.optim.Adam(reference.parameters(), lr=group["lr"], betas=group["betas"])
        for ours, theirs in zip(training.generator.parameters(), reference, strict=True):
            ours.grad = torch.randn(ours.shape, generator=draws_of(ours.numel()))
            theirs.grad = ours.grad.clone()
        for _ in range(3):
            training.generator_optimizer.step()
            plain.step()
        for ours, theirs in zip(training.generator.parameters(), reference, strict=True):
            torch.testing.assert_close(ours, theirs)
