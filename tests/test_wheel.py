"""A wheel is one package, and works without the folder that it was built from."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TINY
from processes import ROOT, SCRIPTS, environment, flower_processes, wait_until_gone
from test_extensions import EXAMPLE, hospital

pytestmark = pytest.mark.simulation
PACKAGES = ("common", "server", "clients", "simulations")


@dataclass(frozen=True)
class Installation:
    """An environment that has the wheel, and of this one what the wheel needs."""

    wheel: Path
    scripts: Path
    empty: Path
    cache: Path

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, in an empty folder unless one is named."""
        own = environment(self.cache)
        own.pop("PYTHONPATH", None)
        words = [str(self.scripts / command[0]), *command[1:]]
        return subprocess.run(
            words,
            cwd=cwd or self.empty,
            env=own,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def install(source: Path, scripts: Path, folder: Path) -> Path:
    """Build a wheel of a folder and install it, without what it depends on; return the wheel."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    command = [sys.executable, "-m", "pip", "-q", "--python", str(scripts / "python")]
    command += ["install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Installation:
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "environment", symlinks=True)
    scripts = folder / "environment" / "bin"
    wheel = install(ROOT, scripts, folder)
    # A .pth file that is found through another one is not read, so fedscan's own does nothing here.
    (packages,) = folder.glob("environment/lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    for name in [path.name for path in SCRIPTS.glob("fl*w*r*")]:
        lines = (SCRIPTS / name).read_text().splitlines()
        lines[0] = f"#!{scripts / 'python'}"
        (scripts / name).write_text("\n".join(lines))
        (scripts / name).chmod(0o700)
    (folder / "empty").mkdir()
    return Installation(wheel, scripts, folder / "empty", session_cache)


def test_site_packages_get_one_package(installed: Installation) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    above = {name.partition("/")[0] for name in names}
    assert {name for name in above if not name.endswith(".dist-info")} == {"fedscan"}
    code = "import importlib.util, sys; print(*map(importlib.util.find_spec, sys.argv[1:]))"
    done = installed.run("python", "-c", code, *PACKAGES)
    assert done.stdout.split() == ["None"] * len(PACKAGES), done.stderr


def test_it_holds_the_app_as_it_is_in_the_repository(installed: Installation) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        for path in archive.namelist():
            app, _, name = path.partition("fedscan/app/")
            if name and not app:
                assert archive.read(path) == (ROOT / name).read_bytes(), name
        held = {name.removeprefix("fedscan/app/") for name in archive.namelist()}
    for package in PACKAGES:
        ours = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")}
        assert ours <= held, package


def test_a_hospital_approves_the_bundle_that_any_clone_sends(installed: Installation) -> None:
    code = (
        "import fedscan._app; fedscan._app.put_on_path()\n"
        "from clients.gateway.bundle import build_installed, describe\n"
        "bundle = describe(build_installed())\n"
        "assert bundle.identical\n"
        "print(bundle.hash)"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    from clients.gateway.bundle import build_installed, describe

    assert done.stdout.strip() == describe(build_installed()).hash


def test_a_federation_runs_from_an_empty_folder(installed: Installation, tiny_cohort: Path) -> None:
    before = flower_processes()
    settings = [word for assignment in TINY for word in ("--set", assignment)]
    done = installed.run("fedscan", "run", "--cohort", str(tiny_cohort), *settings)
    assert done.returncode == 0, done.stderr
    assert os.listdir(installed.empty) == ["runs"]  # noqa: PTH208
    assert (Path(done.stdout.splitlines()[-1]) / "model.safetensors").is_file()
    assert not wait_until_gone(before)


def test_an_extension_runs_as_documented(installed: Installation, tmp_path: Path) -> None:
    example = tmp_path / "ward7"
    shutil.copytree(EXAMPLE, example, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "built").mkdir()
    install(example, installed.scripts, tmp_path / "built")
    for seed, name in enumerate(("north", "south")):
        hospital(tmp_path / "hospitals" / name, 30, seed)
    shutil.copy(EXAMPLE / "study.toml", tmp_path)
    page = (ROOT / "docs" / "extending.md").read_text()
    (block,) = re.findall(r"^```bash\n(fedscan run .*?)```", page, flags=re.M | re.S)
    words = shlex.split(block)
    settings = [word for assignment in TINY for word in ("--set", assignment)]
    done = installed.run(*words, *settings, "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["sites"]) == {"north", "south"}
