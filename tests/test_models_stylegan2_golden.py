"""Reference numbers of StyleGAN2, reproduced; those of another folder, ``FEDSCAN_GOLDEN``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import golden_folder
from torch import Tensor, nn

from common.models.architecture import Architecture
from common.models.resample import upfirdn2d
from common.models.stylegan2 import Discriminator, Generator, modulated_conv2d
from common.training.gan_losses import path_lengths, r1_penalty

TOLERANCE = {"rtol": 0, "atol": 1e-4}


def read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def cases(arrays: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The numbered cases ``i.*`` of a file."""
    for number in sorted({name.split(".")[0] for name in arrays if "." in name}):
        prefix = f"{number}."
        yield {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network_file" in metafunc.fixturenames:
        folder = golden_folder()
        paths = sorted(folder.glob("networks_*.npz"))
        if not paths:
            raise pytest.UsageError(f"FEDSCAN_GOLDEN={folder}: no file networks_*.npz there")
        ids = [path.stem for path in paths]
        metafunc.parametrize("network_file", paths, ids=ids, scope="module")


def test_golden_upfirdn2d(golden_dir: Path) -> None:
    for case in cases(read(golden_dir / "upfirdn2d.npz")):
        y = upfirdn2d(
            case["x"],
            case["filter"],
            up=int(case["up"]),
            down=int(case["down"]),
            padding=tuple(case["padding_x0_x1_y0_y1"].tolist()),
            gain=float(case["gain"]),
            flip_filter=bool(case["flip_filter"]),
        )
        torch.testing.assert_close(y, case["y"], **TOLERANCE)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_golden_modulated_conv2d(golden_dir: Path, memory: torch.memory_format) -> None:
    arrays = read(golden_dir / "modulated_conv2d.npz")
    for case in cases(arrays):
        y = modulated_conv2d(
            case["x"].contiguous(memory_format=memory),
            case["weight"],
            case["styles"],
            fir=arrays["resample_filter"],
            up=int(case["up"]),
            demodulate=bool(case["demodulate"]),
        )
        torch.testing.assert_close(y, case["y"], **TOLERANCE)


@pytest.fixture(scope="module")
def golden(network_file: Path) -> dict[str, Tensor]:
    return read(network_file)


@pytest.fixture(scope="module")
def networks(golden: dict[str, Tensor]) -> tuple[Generator, Discriminator]:
    architecture = architecture_of(golden)
    generator, discriminator = Generator(architecture), Discriminator(architecture)
    fill(generator, {ours(k[2:]): v for k, v in golden.items() if k.startswith("G.")})
    top = f"b{architecture.resolution}."
    fill(discriminator, {ours(k[2:], top): v for k, v in golden.items() if k.startswith("D.")})
    return generator, discriminator


def architecture_of(golden: dict[str, Tensor]) -> Architecture:
    """Sizes, as the arrays have them."""
    widths = {
        int(match[1]): len(array)
        for name, array in golden.items()
        if (match := re.fullmatch(r"G\.synthesis\.b(\d+)\.conv1\.weight", name))
    }
    resolution, labels = max(widths), golden["c"].shape[1]

    def layers(network: str) -> int:
        return sum(
            bool(re.fullmatch(rf"{network}\.mapping\.fc\d+\.weight", name)) for name in golden
        )

    return Architecture(
        resolution=resolution,
        channels=golden["d_input"].shape[1],
        labels=(("class", tuple(map(str, range(labels)))),) if labels else (),
        channel_base=widths[resolution] * resolution,
        channel_max=max(widths.values()),
        z_dim=golden["z"].shape[1],
        w_dim=golden["ws"].shape[2],
        mapping_layers=layers("G"),
        label_layers=layers("D"),
    )


def ours(name: str, top: str = "") -> str:
    """Our name of one of the reference's arrays."""
    if re.fullmatch(r"b(?!4\.)\d+\.(conv0|conv1|skip)\..*", name):  # the discriminator's blocks
        side = int(name[1 : name.index(".")])
        number = int(np.log2(int(top[1:-1]))) - int(np.log2(side))
        name = name.replace(f"b{side}.", f"blocks.{number}.")
        return name.replace("conv0", "first").replace("conv1", "second")
    if match := re.match(r"synthesis\.b(\d+)\.", name):
        name = name.replace(match[0], f"synthesis.blocks.{int(np.log2(int(match[1]))) - 2}.")
    for theirs, mine in (
        (r"\.const$", ".constant"),
        (r"noise_const", "noise"),
        (r"conv0", "up"),
        (r"conv1", "convolution"),
        (r"torgb", "to_image"),
        (r"w_avg", "w_average"),
        (rf"^{re.escape(top)}fromrgb" if top else "^$", "from_image"),
        (r"^b4\.conv\.", "last."),
        (r"^b4\.fc", "dense"),
        (r"^b4\.out", "output"),
        (r"^mapping\.fc(\d+)", r"label_layers.\1" if top else r"mapping.layers.\1"),
        (r"^mapping\.embed", "embed" if top else "mapping.embed"),
    ):
        name = re.sub(theirs, mine, name)
    return name


def fill(network: nn.Module, arrays: dict[str, Tensor]) -> None:
    arrays = {k: v for k, v in arrays.items() if not k.endswith("resample_filter")}
    network.load_state_dict(arrays, strict=True)


def test_golden_mapping(golden: dict[str, Tensor], networks: tuple) -> None:
    mapping = networks[0].mapping
    torch.testing.assert_close(mapping(golden["z"], golden["c"]), golden["ws"], **TOLERANCE)
    for name in (name for name in golden if name.startswith("ws_truncated")):
        psi, cutoff = re.fullmatch(r"ws_truncated_psi([\d.]+)_cutoff(\d+)", name).groups()
        ws = mapping(golden["z"], golden["c"], truncation=float(psi), cutoff=int(cutoff))
        torch.testing.assert_close(ws, golden[name], **TOLERANCE)


@pytest.mark.parametrize("noise, name", [("constant", "const"), ("none", "none")])
def test_golden_pictures(golden: dict[str, Tensor], networks: tuple, noise: str, name: str) -> None:
    images = networks[0](golden["z"], golden["c"], noise=noise)
    torch.testing.assert_close(images, golden[f"image_noise_{name}"], **TOLERANCE)


def test_golden_logits(golden: dict[str, Tensor], networks: tuple) -> None:
    logits = networks[1](golden["d_input"], golden["d_c"])
    torch.testing.assert_close(logits, golden["d_logits"].flatten(), **TOLERANCE)


def test_golden_r1(golden: dict[str, Tensor], networks: tuple) -> None:
    images = golden["d_input"].clone().requires_grad_(True)
    penalties = r1_penalty(images, networks[1](images, golden["d_c"]))
    torch.testing.assert_close(penalties, golden["r1_squared_gradient_norm"], **TOLERANCE)


def test_golden_path_lengths(golden: dict[str, Tensor], networks: tuple) -> None:
    ws = networks[0].mapping(golden["z"], golden["c"])
    images = networks[0].synthesis(ws)
    noise = golden["path_length_noise"] * images.shape[2]  # the file's is divided by it already
    torch.testing.assert_close(path_lengths(images, ws, noise), golden["path_lengths"], **TOLERANCE)


def test_reference_numbers_may_lie_anywhere(golden_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(golden_dir, tmp_path / "numbers")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]

    def judged_by(folder: Path) -> str:
        done = subprocess.run(
            [*command, "-k", "test_golden_upfirdn2d or test_golden_logits", __file__],
            env={**os.environ, "FEDSCAN_GOLDEN": str(folder)},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    count = 1 + len(list(golden_dir.glob("networks_*.npz")))
    assert f"{count} passed" in judged_by(tmp_path / "numbers")
    assert "no file networks_*.npz there" in judged_by(tmp_path)
