"""``fedscan bench-gan``: figures that follow from each other, and refusals before work is done."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from common.errors import ConfigError
from common.models.architecture import encode_labels
from simulations.cli import app
from simulations.gan import bench as bench_gan
from simulations.gan.bench import PHASES, Case, bench

TINY = "16/64/8/4"


def test_figures_follow_from_each_other() -> None:
    command = f"bench-gan --size {TINY} --precision float32 --repeats 2 --format json"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    (speed,) = json.loads(result.stdout)["speeds"]
    assert (speed["size"], speed["precision"]) == (TINY, "float32")
    seconds = speed["seconds"]
    assert set(seconds) == set(PHASES)
    assert min(seconds.values()) > 0
    always = seconds["generator"] + seconds["discriminator"] + seconds["average"]
    iteration = always + seconds["r1"] / 16 + seconds["path"] / 4
    assert speed["iteration_seconds"] == pytest.approx(iteration)
    assert speed["images_per_second"] == pytest.approx(4 / iteration)
    assert speed["seconds_per_1000_images"] * speed["images_per_second"] == pytest.approx(1000)
    rate = speed["gflop"] / iteration
    assert speed["share_of_peak"] == pytest.approx(rate / speed["peak_gflops"])
    assert speed["memory_gib"] > 0.1


def test_networks_are_conditioned_on_two_labels_of_which_the_pictures_have_both() -> None:
    config = bench_gan._config(Case(TINY, "float32", "cpu", 1, 1))
    architecture = config.architecture(bench_gan.LABELS)
    rows = bench_gan._pictures(config).conditions
    assert encode_labels(architecture, rows).sum(0).tolist() == [8.0, 8.0]


@pytest.mark.parametrize(("device", "fastest"), [("cpu", False), ("cuda", True)])
def test_cudnn_looks_for_its_fastest_algorithms_on_a_gpu_meanwhile(
    monkeypatch: pytest.MonkeyPatch, device: str, fastest: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(bench_gan, "_measure", lambda case: torch.backends.cudnn.benchmark)
    assert bench_gan.measure(Case(TINY, "float32", device, 1, 1)) is fastest
    assert torch.backends.cudnn.benchmark is False


def test_operations_are_counted_through_second_derivatives() -> None:
    """(x W)²: one product forward, one for the gradient of x, two more for that one's gradients."""
    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    one = 2 * 2 * 3 * 5 / 1e9

    def first() -> None:
        torch.autograd.grad((x @ w).square().sum(), x, create_graph=True)

    def second() -> None:
        (gradient,) = torch.autograd.grad((x @ w).square().sum(), x, create_graph=True)
        gradient.sum().backward()

    assert bench_gan._gflop(lambda: x @ w) == pytest.approx(one)
    assert bench_gan._gflop(first) == pytest.approx(2 * one)
    assert bench_gan._gflop(second) > 4 * one


def test_the_table_names_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = bench_gan.Speed(
        size="32/4096/64/16", precision="bfloat16", device="a processor", threads=2,
        seconds=dict.fromkeys(PHASES, 0.1), iteration_seconds=0.25, images_per_second=64.0,
        seconds_per_1000_images=15.6, gflop=27.4, peak_gflops=200.0, share_of_peak=0.55,
        memory_gib=0.5, gpu_memory_gib=None,
    )  # fmt: skip
    monkeypatch.setattr(bench_gan, "bench", lambda cases: iter([speed]))
    result = CliRunner().invoke(app, ["bench-gan"])
    assert result.exit_code == 0
    for words in ("32/4096/64/16", "bfloat16", "55 %", "a processor", "0.50"):
        assert words in result.stdout


@pytest.mark.parametrize(
    "case, message",
    [
        ({"size": "32"}, "RESOLUTION/CHANNEL-BASE/CHANNEL-MAX/BATCH"),
        ({"size": "33/64/8/4"}, "resolution"),
        ({"size": TINY, "precision": "int8"}, "precision"),
    ],
)
def test_nonsense_is_refused_before_anything_is_measured(case: dict, message: str) -> None:
    whole = {"precision": "float32", "device": "cpu", "threads": 1, "repeats": 1, **case}
    with pytest.raises(ConfigError, match=message):
        next(bench([Case(size=TINY, precision="float32", device="cpu", threads=1, repeats=1),
                    Case(**whole)]))  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_is_measured(precision: str) -> None:
    speed = bench_gan.measure(Case("128/8192/128/8", precision, "cuda", 1, 3))
    assert speed.device == torch.cuda.get_device_name()
    assert speed.gpu_memory_gib > 0
