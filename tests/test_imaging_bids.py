"""Which data sets are read, what is left out and counted, and what is refused in which words."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import site_files
from common.data.image_table import UNKNOWN
from common.data.readers.bids import read_table as read_image_table
from common.errors import ConfigError, DataContractError
from common.imaging.bids import is_dataset, list_sites, read_site, site_name
from common.site_files import plain
from common.studies.study import Study


def put_scan(root: Path, relative: str) -> Path:
    """An unopened image: read_site looks at names alone."""
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"never opened")
    return path


@pytest.fixture
def make_site(tmp_path):
    """Write a site from the text of its table; by default everybody in it has a scan."""

    def make(table: str | bytes, *, scans: list[str] | None = None, sidecar=None) -> Path:
        root = tmp_path / "north"
        root.mkdir()
        raw = table if isinstance(table, bytes) else table.encode()
        (root / "participants.tsv").write_bytes(raw)
        if scans is None:
            names = [line.split("\t")[0] for line in raw.decode(errors="replace").splitlines()[1:]]
            scans = [f"{n}/anat/{n}_T1w.nii.gz" for n in names if n.startswith("sub-0")]
        for scan in scans:
            put_scan(root, scan)
        if sidecar is not None:
            text = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
            (root / "participants.json").write_text(text)
        return root

    return make


def labels(root: Path) -> dict[str, int]:
    return {one.id: one.label for one in read_site(root, "north").participants}


def refusal(root: Path) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        read_site(root, "north")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("site 'north': ")
    assert caught.value.public.startswith("site 'north': ")
    return caught.value


BOTH = {"sub-01": 1, "sub-02": 0}


class TestAccepted:
    @pytest.mark.parametrize(
        ("male", "female"),
        [("M", "F"), ("m", "f"), ("male", "female"), ("Male", "FEMALE"), (" M", "F ")],
    )
    def test_letters_and_words(self, make_site, male, female):
        root = make_site(f"participant_id\tsex\nsub-01\t{male}\nsub-02\t{female}\n")
        assert labels(root) == BOTH

    @pytest.mark.parametrize(
        "levels",
        [
            {"1": "male", "2": "female"},
            {"1": "M", "2": "F."},
            {"1": {"Description": "Male"}, "2": {"Description": "Female"}},
            {"1": "man", "2": "Woman."},
            {"1": "Men", "2": "WOMEN"},
            {"1": "boy", "2": {"Description": "girl"}},
        ],
    )
    @pytest.mark.parametrize("codes", [("1", "2"), ("1.0", "2.0")])
    def test_numbers_that_the_sidecar_explains(self, make_site, levels, codes):
        table = f"participant_id\tsex\nsub-01\t{codes[0]}\nsub-02\t{codes[1]}\n"
        assert labels(make_site(table, sidecar={"sex": {"Levels": levels}})) == BOTH

    @pytest.mark.parametrize("column", ["gender", "Gender", "SEX"])
    def test_names_of_the_column(self, make_site, column):
        table = f"participant_id\tage\t{column}\nsub-01\t33\tM\nsub-02\tn/a\tF\n"
        assert labels(make_site(table, sidecar={column: {"Levels": {"M": "male"}}})) == BOTH

    def test_sex_goes_before_gender(self, make_site):
        table = "participant_id\tgender\tsex\tat_birth\nsub-01\tF\tM\tF\n"
        assert labels(make_site(table)) == {"sub-01": 1}

    @pytest.mark.parametrize(
        "rewrite",
        [
            lambda text: b"\xef\xbb\xbf" + text.encode(),
            lambda text: text.replace("\n", "\r\n").encode(),
            lambda text: text.replace("\n", "\r").encode(),
            lambda text: text.rstrip("\n").encode(),
            lambda text: (text + "\n\t\n\n").encode(),
            lambda text: text.replace("sub-01", '"sub-01"').encode(),
            lambda text: (
                text.replace("sex", "sex\tnote")
                .replace("M", "M\té ")
                .replace("F", "F\tn/a")
                .encode()
            ),
        ],
        ids=["bom", "crlf", "cr", "no-last-newline", "blank-lines", "quotes", "unicode"],
    )
    def test_ways_of_writing_a_table(self, make_site, rewrite):
        text = "participant_id\tsex\nsub-01\tM\nsub-02\tF\n"
        scans = [f"sub-0{i}/anat/sub-0{i}_T1w.nii" for i in (1, 2)]
        assert labels(make_site(rewrite(text), scans=scans)) == BOTH

    @pytest.mark.parametrize("name", ["sub-01.a", "sub-A-b.c_d", "sub-0001", "sub-x+1"])
    @pytest.mark.parametrize("rest", ["_T1w.nii", "_acq-a.b-c_run-01_T1w.nii.gz"])
    def test_dots_and_dashes_in_names(self, make_site, name, rest):
        scan = f"{name}/anat/{name}{rest}"
        root = make_site(f"participant_id\tsex\n{name}\tM\n", scans=[scan])
        (only,) = read_site(root, "north").participants
        assert (only.id, only.scan) == (name, root / scan)

    def test_first_of_several_scans_by_name(self, make_site):
        names = ["run-2_T1w.nii", "run-1_T1w.nii.gz", "run-1_T2w.nii", "run-1_T1w.json"]
        scans = [f"sub-01/anat/sub-01_{name}" for name in names]
        root = make_site("participant_id\tsex\nsub-01\tM\n", scans=scans)
        (only,) = read_site(root, "north").participants
        assert only.scan.name == "sub-01_run-1_T1w.nii.gz"

    def test_second_of_ten_runs_comes_before_the_tenth(self, make_site):
        scans = [f"sub-01/anat/sub-01_run-{run}_T1w.nii" for run in ("10", "2")]
        root = make_site("participant_id\tsex\nsub-01\tM\n", scans=scans)
        (only,) = read_site(root, "north").participants
        assert only.scan.name == "sub-01_run-2_T1w.nii"

    def test_first_session_that_has_a_scan(self, make_site):
        scans = [f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii" for s in ("10", "2")]
        scans.append("sub-01/ses-1/anat/sub-01_ses-1_T2w.nii")
        root = make_site("participant_id\tsex\nsub-01\tM\n", scans=scans)
        (only,) = read_site(root, "north").participants
        assert only.scan.parts[-3] == "ses-2"

    def test_split_column_is_honoured(self, make_site):
        table = (
            "participant_id\tsplit\tsex\nsub-01\tval\tM\nsub-02\ttest\tF\nsub-03\tvalidation\tM\n"
        )
        index = read_site(make_site(table), "north")
        assert [one.split for one in index.participants] == ["val", "test", "val"]

    def test_split_without_a_column_does_not_depend_on_the_rows(self, tmp_path):
        rows = [f"sub-{i:02d}\t{'MF'[i % 2]}" for i in range(12)]
        splits = []
        for site, order in (("a", rows), ("b", rows[::-1])):
            root = tmp_path / site
            for row in rows:
                name = row.split("\t")[0]
                put_scan(root, f"{name}/anat/{name}_T1w.nii")
            (root / "participants.tsv").write_text("participant_id\tsex\n" + "\n".join(order))
            splits.append([(one.id, one.split) for one in read_site(root, site).participants])
        assert splits[0] == splits[1]
        assert {split for _, split in splits[0]} == {"train", "val", "test"}

    def test_link_that_stays_in_the_site(self, make_site):
        root = make_site("participant_id\tsex\nsub-01\tM\n", scans=[])
        kept = put_scan(root, ".git/annex/objects/x.nii")
        scan = root / "sub-01/anat/sub-01_T1w.nii"
        scan.parent.mkdir(parents=True)
        scan.symlink_to(kept)
        assert labels(root) == {"sub-01": 1}


def test_left_out_and_counted_never_guessed(make_site, tmp_path):
    table = (
        "participant_id\tsex\tsplit\n"
        "sub-01\tM\ttrain\n"
        "sub-02\tn/a\ttrain\n"
        "sub-03\t\ttrain\n"
        "sub-04\tF\tn/a\n"
        "sub-9a\tF\ttrain\n"  # no folder
        "sub-9b\tF\ttrain\n"  # a folder without a T1w
        "sub-9c\tF\ttrain\n"  # somebody else's image
        "sub-9d\tF\ttrain\n"  # a link out of the site
        "sub-9e\tF\ttrain\n"  # anat is a link out of the site
        "sub-9f\tF\ttrain\n"  # a circle of links
    )
    root = make_site(table)
    put_scan(root, "sub-9b/anat/sub-9b_T2w.nii")
    put_scan(root, "sub-9c/anat/sub-01_T1w.nii")
    put_scan(root, "sub-99/anat/sub-99_T1w.nii")  # not listed
    put_scan(tmp_path, "south/anat/sub-9d_T1w.nii")
    put_scan(tmp_path, "south/anat/sub-9e_T1w.nii")
    (root / "sub-9d").symlink_to(tmp_path / "south")
    (root / "sub-9f").symlink_to(root / "sub-9f")
    (root / "sub-9e").mkdir()
    (root / "sub-9e/anat").symlink_to(tmp_path / "south/anat")
    index = read_site(root, "north")
    assert [one.id for one in index.participants] == ["sub-01"]
    assert index.left_out == {
        "no label": 2,
        "no split": 1,
        "no scan": 4,
        "folder not in participants.tsv": 1,
        "leaves the site's folder by a link": 2,
    }


class TestRefused:
    def test_no_folder(self, tmp_path):
        assert "does not exist" in str(refusal(tmp_path / "nowhere"))

    def test_no_table(self, tmp_path):
        assert "no participants.tsv" in str(refusal(tmp_path))

    @pytest.mark.parametrize("table", ["", "\n\n", "id\tsex\nsub-01\tM\n", "participant_id,sex\n"])
    def test_no_participant_column(self, make_site, table):
        error = refusal(make_site(table))
        assert "no column participant_id" in str(error)
        assert "tabs" in str(error)

    def test_no_label_column(self, make_site):
        error = refusal(make_site("participant_id\tage\nsub-01\t33\n"))
        assert "no column of labels" in str(error)
        assert "'sex' or 'gender'" in str(error)
        assert "age" in str(error)
        assert "age" not in error.public

    @pytest.mark.parametrize("value", ["X", "1", "2", "0", "男", "m f", "NaN"])
    def test_unknown_label_value(self, make_site, value):
        error = refusal(make_site(f"participant_id\tsex\nsub-01\tM\nsub-02\t{value}\n"))
        assert "participants.tsv, line 3, column sex" in str(error)
        assert f"'{value}'" in str(error)
        assert "Accepted: female, male" in str(error)
        assert f"'{value}'" not in error.public
        assert "line" not in error.public

    @pytest.mark.parametrize(
        "sidecar",
        [
            {"gender": {"Levels": {"1": "male"}}},
            {"sex": {"Levels": {"1": "not female"}}},
            {"sex": {"Levels": {"1": "male or female"}}},
            {"sex": {"Levels": {"1": {"Description": ""}}}},
            {"sex": {"Levels": ["female", "male"]}},
            {"sex": {"Levels": {"1": None}}},
            {"sex": "1 is male"},
            {},
            [],
        ],
    )
    def test_number_that_the_sidecar_does_not_explain(self, make_site, sidecar):
        error = refusal(make_site("participant_id\tsex\nsub-01\t1\n", sidecar=sidecar))
        assert "unknown value" in str(error)

    def test_sidecar_that_contradicts_the_table(self, make_site):
        sidecar = {"sex": {"Levels": {"M": "female"}}}
        error = refusal(make_site("participant_id\tsex\nsub-01\tM\n", sidecar=sidecar))
        assert "contradicts" in str(error)

    @pytest.mark.parametrize("sidecar", ["{", "[" * 100_000, "1" * 10_000, ""])
    def test_sidecar_that_is_not_json(self, make_site, sidecar):
        error = refusal(make_site("participant_id\tsex\nsub-01\tM\n", sidecar=sidecar))
        assert "participants.json is not JSON" in str(error)

    def test_duplicate_participant(self, make_site):
        error = refusal(make_site("participant_id\tsex\nsub-01\tM\nsub-02\tM\nsub-01\tF\n"))
        assert "listed twice" in str(error)
        assert "line 4" in str(error)
        assert "sub-01" not in error.public

    @pytest.mark.parametrize(
        "name",
        [
            "sub-../../x",
            "sub-..",
            "../sub-01",
            "/etc/passwd",
            "sub-",
            "01",
            "sub-a/b",
            "sub-a\\b",
            "sub-a\x00b",
            "sub-\x1b[31m",
            "sub-é",
            "",
        ],
    )
    def test_participant_that_is_no_name(self, make_site, tmp_path, name):
        put_scan(tmp_path, "x/anat/x_T1w.nii")
        error = refusal(make_site(f"participant_id\tsex\n{name}\tM\n"))
        assert "participant_id is not acceptable" in str(error)
        assert "line 2" in str(error)
        assert str(error).isprintable()

    @pytest.mark.parametrize("value", ["dev", "1", "training"])
    def test_unknown_split(self, make_site, value):
        error = refusal(make_site(f"participant_id\tsex\tsplit\nsub-01\tM\t{value}\n"))
        assert "line 2, column split" in str(error)
        assert "train, val" in str(error)

    @pytest.mark.parametrize("row", ["sub-01", "sub-01\tM\tx"])
    def test_row_that_does_not_fit_the_header(self, make_site, row):
        error = refusal(make_site(f"participant_id\tsex\n{row}\n"))
        assert "participants.tsv, line 2" in str(error)
        assert "does not fit the header" in str(error)

    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("age\tage", "7\t8"),
            ("\t", "\t"),
            ("note", 'a 5" scar'),
            ("note", '"never closed'),
            ("note\tmore", "x"),
            ("note", "x\t\t"),
            ("caf\xe9", "M\xfcller"),
        ],
        ids=["twice", "no-name", "inch", "open-quote", "short-row", "long-row", "latin-1"],
    )
    def test_columns_that_nobody_uses_are_not_judged(self, make_site, tmp_path, header, row):
        put_scan(tmp_path, "sub-01/anat/sub-01_T1w.nii")
        text = f"participant_id\tsex\t{header}\nsub-01\tM\t{row}\n"
        index = read_site(make_site(text.encode("latin-1")), "north")
        assert [one.id for one in index.participants] == ["sub-01"]

    @pytest.mark.parametrize("value", ["other", "O", "o", "OTHER", "Other"])
    def test_sex_that_bids_defines_and_the_study_has_no_class_for(self, make_site, value):
        table = f"participant_id\tsex\nsub-01\tM\nsub-02\tF\nsub-03\t{value}\n"
        index = read_site(make_site(table), "north")
        assert index.left_out == {"neither female nor male": 1}
        assert index.unlabelled == ()  # it is no image whose class is not known

    @pytest.mark.parametrize(
        ("told", "word"),
        [("diverse", "diverse"), ({"Description": "intersex."}, "intersex"), ("Other", "")],
    )
    @pytest.mark.parametrize("code", ["D", "3"])
    def test_code_that_the_sidecar_explains_as_neither(self, make_site, told, word, code):
        table = f"participant_id\tsex\nsub-01\tM\nsub-02\tF\nsub-03\t{code}\n"
        root = make_site(table, sidecar={"sex": {"Levels": {"F": "female", code: told}}})
        index = read_site(root, "north")
        ((reason, count),) = index.left_out.items()
        assert reason.startswith("neither female nor male") and count == 1
        assert (f"explains '{code}' as '{word}'" in reason) == bool(word)
        assert [one.id for one in index.participants] == ["sub-01", "sub-02"]

    def test_a_word_of_another_language_is_told_with_its_code_also_where_nobody_is_left(
        self, make_site
    ):
        levels = {"1": "Mann", "2": "Frau"}
        table = "participant_id\tsex\nsub-01\t1.0\nsub-02\t2\nsub-03\t2\n"
        error = refusal(make_site(table, sidecar={"sex": {"Levels": levels}}))
        assert "explains '1.0' as 'Mann'" in str(error) and "'2' as 'Frau'" in str(error)
        assert "write it as female or male" in str(error)
        assert "Frau" not in error.public

    @pytest.mark.parametrize("value", ["n/a", "", "unknown", "9", "X"])
    def test_label_that_is_not_known(self, make_site, value):
        table = f"participant_id\tsex\nsub-01\tM\nsub-02\tF\nsub-03\t{value}\n"
        levels = {"9": "unknown", "X": "n/a", "n/a": "not available"}
        root = make_site(table, sidecar={"sex": {"Levels": levels}})
        assert read_site(root, "north").left_out == {"no label": 1}

    def test_column_that_stands_twice(self, make_site):
        error = refusal(make_site("participant_id\tsex\tSex\nsub-01\tM\tF\n"))
        assert "stands twice" in str(error)

    def test_quote_that_never_ends(self, make_site):
        error = refusal(make_site('participant_id\tsex\n"sub-01\tM\nsub-02\tF\n'))
        assert "not a table" in str(error)

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
    def test_other_encodings(self, make_site, encoding):
        error = refusal(make_site("participant_id\tsex\nsub-01\té\n".encode(encoding)))
        assert "not UTF-8" in str(error)
        assert "byte" in str(error)

    def test_table_that_is_too_large(self, make_site):
        error = refusal(make_site(b"participant_id\tsex\n" + b"#" * (16 * 2**20)))
        assert "too large" in str(error)

    @pytest.mark.parametrize("row", ["\t" * 2000, "\t" * 2**17])
    def test_table_of_too_many_columns(self, make_site, row):
        assert "not a table" in str(refusal(make_site(f"participant_id\tsex{row}\n")))

    def test_cell_that_is_too_long(self, make_site):
        error = refusal(make_site("participant_id\tsex\nsub-01\t" + "M" * 200_000))
        assert "not a table" in str(error)

    @pytest.mark.parametrize("name", ["participants.tsv", "participants.json"])
    def test_table_outside_the_site(self, make_site, tmp_path, name):
        root = make_site("participant_id\tsex\nsub-01\tM\n", sidecar={})
        (root / name).rename(tmp_path / "elsewhere")
        (root / name).symlink_to(tmp_path / "elsewhere")
        error = refusal(root)
        assert name in str(error)
        assert "leaves the site's folder by a link" in str(error)

    def test_table_that_is_a_pipe_does_not_block(self, tmp_path):
        os.mkfifo(tmp_path / "participants.tsv")
        assert "not a regular file" in str(refusal(tmp_path))

    def test_circle_of_links(self, tmp_path):
        (tmp_path / "participants.tsv").symlink_to(tmp_path / "participants.tsv")
        assert "leads nowhere" in str(refusal(tmp_path))

    def test_nobody_left(self, make_site):
        error = refusal(
            make_site("participant_id\tsex\tsplit\nsub-01\tn/a\ttest\nsub-9\tM\ttrain\n")
        )
        assert "no participant has a label and a scan" in str(error)
        assert "no label: 1, no scan: 1" in str(error)

    def test_folder_that_cannot_be_listed(self, make_site, monkeypatch):
        root = make_site("participant_id\tsex\nsub-01\tM\n")

        scandir = os.scandir

        def forbidden(path):
            if Path(path) != root:
                return scandir(path)
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", forbidden)  # root may list what others may not
        error = refusal(root)
        assert "the data folder cannot be listed (got Permission denied)" in str(error)
        assert "Permission" not in error.public


class TestIgnored:
    SCANS = ("sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii", "sub-09/anat/x.nii")

    def read(self, make_site, patterns):
        table = "participant_id\tsex\nsub-01\tM\nsub-02\tF\n"
        root = make_site(table, scans=list(self.SCANS))
        put_scan(root, "sub-02/anat/sub-02_run-2_T1w.nii")
        (root / ".bidsignore").write_text("# a comment\n\n" + patterns)
        return read_site(root, "north")

    @pytest.mark.parametrize(
        "pattern", ["sub-09", "sub-09/", "/sub-09/", "sub-0[3-9]*", "**/sub-09"]
    )
    def test_folder(self, make_site, pattern):
        assert self.read(make_site, pattern).left_out == {}

    @pytest.mark.parametrize(
        "pattern", ["*_run-2_T1w.nii", "sub-02/anat/*run-2*", "/sub-02/**/*run-2*", "**/*run-2*"]
    )
    def test_scan(self, make_site, pattern):
        index = self.read(make_site, f"{pattern}\nsub-09\n")
        assert [one.scan.name for one in index.participants] == [
            "sub-01_T1w.nii",
            "sub-02_T1w.nii",
        ]

    def test_taken_back_in(self, make_site):
        index = self.read(make_site, "sub-0*\n!sub-01\n!sub-02\n")
        assert [one.id for one in index.participants] == ["sub-01", "sub-02"]
        assert index.left_out == {}


class TestSites:
    def test_one_folder_a_site_sorted(self, tmp_path):
        for name in ("south", "north", "ward.2_b-c", ".hidden"):
            (tmp_path / name).mkdir()
        (tmp_path / "README").write_text("no site")
        for name in ("__MACOSX", "derivatives", "$RECYCLE.BIN", "System Volume Information"):
            (tmp_path / name).mkdir()  # which no hospital is called
        assert list_sites(tmp_path) == {
            name: tmp_path / name for name in ("north", "south", "ward.2_b-c")
        }

    @pytest.mark.parametrize("name", ["a b", "-x", "é", "[red]", "x" * 65])
    def test_name_that_names_no_site(self, tmp_path, name):
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match="cannot name a site") as caught:
            list_sites(tmp_path)
        assert name not in caught.value.public

    def test_all_stands_for_all_sites(self, tmp_path):
        (tmp_path / "all").mkdir()
        with pytest.raises(ConfigError, match="'all' cannot name a site"):
            list_sites(tmp_path)

    def test_link_out_of_the_cohort(self, tmp_path):
        for name in ("cohort", "elsewhere"):
            (tmp_path / name).mkdir()
        (tmp_path / "cohort/north").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataContractError, match=r"site 'north'.*by a link.*mount"):
            list_sites(tmp_path / "cohort")

    @pytest.mark.parametrize("name", [".", "nowhere"])
    def test_no_site(self, tmp_path, name):
        with pytest.raises(ConfigError):
            list_sites(tmp_path / name)

    def test_data_set_or_folder_of_them(self, tmp_path):
        put_scan(tmp_path, "one/sub-01/anat/sub-01_T1w.nii")
        assert is_dataset(tmp_path / "one")
        assert not is_dataset(tmp_path)
        assert site_name(tmp_path / "one") == "one"
        assert site_name(Path("/")) == "site"


# Other studies


def study(**changes) -> Study:
    """Four grades of atrophy from T2-weighted images."""
    values = {
        "name": "atrophy",
        "images": {"storage": "bids", "channels": 1, "contrast": "T2w"},
        "label": {
            "column": "grade",
            "classes": {"none": ["0"], "mild": ["1"], "moderate": ["2"], "severe": ["3", "IV"]},
            "missing": ["n/a", "not seen"],
        },
    }
    return Study.from_mapping(values | changes)


GRADES = "participant_id\tgrade\n" + "".join(
    f"sub-0{k}\t{grade}\n" for k, grade in enumerate(("Severe", "0", "moderate", "1.0", "iv"))
)
GRADED = {"sub-00": 3, "sub-01": 0, "sub-02": 2, "sub-03": 1, "sub-04": 3}


def graded(root: Path, one: Study | None = None) -> dict[str, int]:
    index = read_site(root, "north", one or study())
    return {one.id: one.label for one in index.participants}


def refused(root: Path, one: Study | None = None) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        read_image_table(root, "north", one or study())
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def make_graded(make_site):
    """As `make_site`, with T2-weighted images."""

    def make(table: str = GRADES, *, mapping: str = "", sidecar=None) -> Path:
        names = [line.split("\t")[0] for line in table.splitlines()[1:]]
        scans = [f"{n}/anat/{n}_T2w.nii" for n in names]
        root = make_site(table, scans=scans, sidecar=sidecar)
        if mapping:
            (root / "site.toml").write_text(mapping)
        return root

    return make


class TestOtherStudies:
    def test_four_classes_by_their_names_and_spellings(self, make_graded):
        assert graded(make_graded()) == GRADED

    def test_only_the_study_s_contrast_is_an_image(self, make_graded):
        root = make_graded()
        scan = root / "sub-02/anat/sub-02_T2w.nii"
        scan.rename(scan.with_name("sub-02_T1w.nii"))
        put_scan(root, "sub-03/anat/sub-03_FLAIR.nii")
        index = read_site(root, "north", study())
        assert [one.id for one in index.participants] == ["sub-00", "sub-01", "sub-03", "sub-04"]
        assert {one.scan.name[6:] for one in index.participants} == {"_T2w.nii"}
        assert index.left_out == {"no scan": 1}

    def test_a_data_set_without_the_contrast_is_told_what_is_looked_for(self, make_site):
        error = refused(make_site(GRADES))
        assert "sub-*_T2w.nii" in str(error)
        assert "no scan: 5" in str(error)

    def test_the_site_s_own_columns_and_codes_are_translated(self, make_graded):
        table = "ID\tBefund\nsub-01\t-\nsub-02\tleicht\nsub-03\tschwer\nsub-04\t?\n"
        mapping = (
            '[columns]\nID = "participant_id"\nBEFUND = "grade"\n'
            '[codes.grade]\n"-" = "none"\nLeicht = "mild"\nschwer = "3"\n"?" = "n/a"\n'
        )
        root = make_graded(table, mapping=mapping)
        assert graded(root) == {"sub-01": 0, "sub-02": 1, "sub-03": 3}
        assert read_site(root, "north", study()).left_out == {"no label": 1}

    def test_split_of_another_name_is_translated_too(self, make_graded):
        table = "participant_id\tgrade\tGruppe\nsub-01\tmild\tlernen\nsub-02\tmild\ttest\n"
        mapping = '[columns]\nGruppe = "split"\n[codes.split]\nlernen = "train"\n'
        index = read_site(make_graded(table, mapping=mapping), "north", study())
        assert [one.split for one in index.participants] == ["train", "test"]

    def test_the_sidecar_explains_the_site_s_own_column(self, make_graded):
        table = "participant_id\tBefund\nsub-01\t7\nsub-02\t8\nsub-03\tx\n"
        sidecar = {"Befund": {"Levels": {"7": "Mild", "8": {"Description": "severe."}}}}
        mapping = '[columns]\nBefund = "grade"\n[codes.grade]\nx = "8"\n'
        root = make_graded(table, mapping=mapping, sidecar=sidecar)
        assert graded(root) == {"sub-01": 1, "sub-02": 3, "sub-03": 3}

    def test_sidecar_and_mapping_that_contradict_each_other_are_refused(self, make_graded):
        table = "participant_id\tgrade\nsub-01\t7\n"
        sidecar = {"grade": {"Levels": {"7": "mild"}}}
        root = make_graded(table, mapping='[codes.grade]\n7 = "severe"\n', sidecar=sidecar)
        assert "contradicts" in str(refused(root))

    @pytest.mark.parametrize("value", ["4", "unclear", "nan", "mild-moderate", "00"])
    def test_what_is_no_class_is_refused_and_the_classes_named(self, make_graded, value):
        error = refused(make_graded(f"participant_id\tgrade\nsub-01\t{value}\n"))
        assert "line 2, column grade" in str(error)
        assert "Accepted: none, mild, moderate, severe" in str(error)
        assert value not in error.public

    def test_what_the_study_calls_missing_is_left_out(self, make_graded):
        table = GRADES + "sub-05\tNot seen\nsub-06\tn/a\nsub-07\t\n"
        root = make_graded(table)
        assert graded(root) == GRADED
        assert read_site(root, "north", study()).left_out == {"no label": 3}

    def test_column_of_another_study_is_none(self, make_graded):
        error = refused(make_graded("participant_id\tsex\nsub-01\tM\n"))
        assert "no column of labels" in str(error)
        assert "'grade'" in str(error)
        assert "sex" not in error.public


class TestTable:
    """What is told of a data set to what trains on it."""

    def test_files_persons_and_labels_belong_together(self, make_graded):
        table = read_image_table(make_graded(), "north", study())
        assert dict(zip(table.persons, table.labels.tolist(), strict=True)) == GRADED
        assert table.files == tuple(f"{name}/anat/{name}_T2w.nii" for name in table.persons)
        assert len(set(table.groups.tolist())) == len(table)
        assert not table.split_given

    @given(st.lists(st.integers(0, 7), min_size=8, max_size=30))
    @settings(max_examples=20, deadline=None)
    def test_a_family_never_straddles_splits(self, families):
        grouped = study(groups={"also": ["family"]})
        rows = ["participant_id\tgrade\tfamily"]
        with tempfile.TemporaryDirectory() as folder:
            for k, family in enumerate(families):
                put_scan(Path(folder), f"sub-{k}/anat/sub-{k}_T2w.nii")
                rows.append(f"sub-{k}\t{k % 4}\t{family or 'n/a'}")
            (Path(folder) / "participants.tsv").write_text("\n".join(rows))
            table = read_image_table(Path(folder), "north", grouped)
        of = {name: families[int(name[4:])] for name in table.persons}
        splits: dict[int, set[str]] = {}
        groups: dict[int, set[int]] = {}
        for name, split, group in zip(table.persons, table.splits, table.groups, strict=True):
            if of[name]:  # n/a is no family
                splits.setdefault(of[name], set()).add(str(split))
                groups.setdefault(of[name], set()).add(int(group))
        assert all(len(found) == 1 for found in (*splits.values(), *groups.values()))
        alone = families.count(0)
        assert len(set(table.groups.tolist())) == len(groups) + alone

    def test_a_given_split_is_kept_though_it_parts_a_family(self, make_graded):
        rows = "sub-01\tmild\ta\ttrain\nsub-02\tmild\ta\ttest\n"
        root = make_graded("participant_id\tgrade\tfamily\tsplit\n" + rows)
        table = read_image_table(root, "north", study(groups={"also": ["family"]}))
        assert table.split_given
        assert table.splits.tolist() == ["train", "test"]
        assert len(set(table.groups.tolist())) == 1

    def test_generator_s_conditions_are_told_or_unknown(self, make_graded):
        told = study(
            generator={"conditions": ["Grade", "hand", "site"], "values": {"hand": ["l", "r"]}}
        )
        table = "participant_id\tgrade\thand\nsub-01\tmild\tR\nsub-02\t3\tn/a\n"
        found = read_image_table(make_graded(table), "north", told)
        assert found.conditions.tolist() == [[1, 1], [3, UNKNOWN]]

    @pytest.mark.parametrize(
        ("cell", "expected"), [("both", "unknown values"), (None, "no column")]
    )
    def test_conditions_that_are_not_understood_are_refused(self, make_graded, cell, expected):
        told = study(generator={"conditions": ["hand"], "values": {"hand": ["l", "r"]}})
        table = "participant_id\tgrade\nsub-01\tmild\n"
        if cell:
            table = f"participant_id\tgrade\thand\nsub-01\tmild\t{cell}\n"
        error = refused(make_graded(table), told)
        assert expected in str(error)
        assert "hand" in error.public
        assert not cell or cell not in error.public


@given(st.text(max_size=300))
def test_text_of_a_data_set_is_made_safe_for_one_line(text):
    assert plain(text).isprintable()
    plain(text).encode()
    if text.isprintable() and len(text) <= 200:
        assert plain(text) == text


def test_a_file_is_opened_only_through_its_resolved_path(tmp_path):
    (tmp_path / "site").mkdir()
    secret = put_scan(tmp_path, "secret")
    with pytest.raises(DataContractError, match="by a link") as caught:
        site_files.open_inside(
            tmp_path / "site" / ".." / "secret", root=tmp_path / "site", site="north"
        )
    assert secret.exists()
    assert "secret" not in caught.value.public
