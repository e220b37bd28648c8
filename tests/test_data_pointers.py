"""Files that were not fetched are told from damaged ones, with the command that fetches them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import DataContractError
from common.site_files import OF_ANNEX, OF_LFS, open_inside

KEY = "SHA256E-s73063--" + 64 * "7" + ".nii.gz"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '7'}\nsize 73063\n"


def refusal(path: Path) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        open_inside(path, root=path.parent, site="north")
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        f"/annex/objects/{KEY}\n",
        f"../../.git/annex/objects/aa/bb/{KEY}/{KEY}",
        f"../../../.git/modules/raw/annex/objects/aa/bb/{KEY}/{KEY}",
    ],
    ids=["unlocked", "link-as-text", "of-a-subdataset"],
)
@pytest.mark.parametrize("as_link", [True, False])
def test_pointers_of_git_annex(tmp_path, text, as_link):
    path = tmp_path / "scan.nii.gz"
    path.symlink_to(text.strip()) if as_link else path.write_text(text)
    error = refusal(path)
    assert error.problem == OF_ANNEX
    assert "datalad get" in error.public
    assert "scan" not in error.public


def test_pointers_of_git_lfs(tmp_path):
    (tmp_path / "picture.png").write_text(LFS)
    error = refusal(tmp_path / "picture.png")
    assert error.problem == OF_LFS
    assert "git lfs pull" in error.public


@pytest.mark.parametrize("content", [b"", b"annexed", b"\x1f\x8b", LFS.encode()[9:]])
def test_other_small_files_are_none(tmp_path, content):
    (tmp_path / "small").write_bytes(content)
    with open_inside(tmp_path / "small", root=tmp_path, site="north") as stream:
        assert stream.read() == content
