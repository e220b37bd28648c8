"""The bundle that Flower sends to a site: whole, and enough by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from common.provenance import NOT_SENT

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, unpacked."""
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(ROOT))) as archive:
        archive.extractall(folder)
    return folder


def test_bundle_holds_every_source_that_the_apps_need(bundle: Path) -> None:
    for package in ("common", "server", "clients"):
        ours = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*.py")}
        ours = {p for p in ours if not str(p).startswith(NOT_SENT)}
        theirs = {p.relative_to(bundle) for p in (bundle / package).rglob("*.py")}
        assert ours == theirs


def test_bundle_holds_every_built_in_study(bundle: Path) -> None:
    ours = {p.relative_to(ROOT) for p in (ROOT / "common").rglob("*.toml")}
    theirs = {p.relative_to(bundle) for p in (bundle / "common").rglob("*.toml")}
    assert ours == theirs
    assert Path("common/studies/brain-sex.toml") in ours


def test_bundle_holds_nothing_but_sources(bundle: Path) -> None:
    files = {p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file()}
    others = {p for p in files if p.parts[0] not in ("common", "server", "clients", ".info")}
    assert {str(p) for p in others} <= {"pyproject.toml", "LICENSE"}


def test_data_and_results_below_the_project_do_not_travel_to_the_sites(tmp_path: Path) -> None:
    """Flower would take every JSON and YAML file along, and a participant's name with it."""
    app = tmp_path / "fedscan"
    for package in ("common", "server", "clients"):
        shutil.copytree(ROOT / package, app / package)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, app)
    for name in ("scans/north/sub-anna1950/anat/sub-anna1950_T1w.json", "out/summary.json"):
        (app / name).parent.mkdir(parents=True)
        (app / name).write_text("{}")
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(app))) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".json")]


def test_both_apps_import_from_the_bundle_alone(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        f"root, bundle = {str(ROOT)!r}, {str(bundle)!r}\n"
        "sys.path[:] = [bundle] + [p for p in sys.path if p not in ('', root)]\n"
        "import server.app, clients.app, server.rounds, clients.local\n"
        "from common.tasks.task import load_task\n"
        "from common.provenance import source_hash\n"
        "task = sys.modules[type(load_task('classification')).__module__]\n"
        "modules = [server.app, clients.app, task]\n"
        "assert all(pathlib.Path(m.__file__).is_relative_to(bundle) for m in modules), modules\n"
        "assert type(server.app.app).__name__ == 'ServerApp'\n"
        "assert type(clients.app.app).__name__ == 'ClientApp'\n"
        "assert not any(m in sys.modules for m in ('nilearn', 'monai', 'sklearn.linear_model'))\n"
        "print(source_hash())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    from common.provenance import source_hash

    assert done.stdout.strip() == source_hash()


def test_generic_package_names_resolve_to_this_repository() -> None:
    import clients
    import common
    import server
    import simulations

    for package in (common, server, clients, simulations):
        assert Path(package.__file__).parents[1] == ROOT
