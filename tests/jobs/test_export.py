"""`export`: each format is read back whole by the tool it is for; killed, it goes on; it stays in its place."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from captioning.run.export.target import Target
from captioning.run.index import Index
from captioning.storage import Location
from jobs.__main__ import app
from tests.jobs.report_run import EVIL_NAME, SmallRun, grow_run, make_run, unfold
from tests.s3 import s3_server

NAMES = [
    *(f"{number:02d}.jpg" for number in range(9)),
    "cat.jpg",
    "cat.png",
    "two.dots.jpg",
    "ünï 🐕 #?[x].jpg",
    "line\nbreak.jpg",
    EVIL_NAME,
    "broken.jpg",
    ".hidden.jpg",
]


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return make_run(tmp_path, NAMES, broken=("broken.jpg",))


def export(run: SmallRun, kind: str, *more: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["export", str(run.output), "--format", kind, *map(str, more)])
    assert done.exit_code == code, done.output
    return done


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if ".captioning-export" not in path.parts
    }


def captioned(run: SmallRun) -> dict[str, str]:
    return {name: text for name, text in run.captions.items() if name != "broken.jpg"}


def test_imagefolder_is_read_by_datasets(run: SmallRun, tmp_path: Path) -> None:
    from datasets import load_dataset

    for images in ("copy", "link"):
        target = tmp_path / images
        export(run, "imagefolder", "-o", target, "--images", images)
        read = load_dataset("imagefolder", data_dir=str(target), split="train", cache_dir=str(tmp_path / "cache"))
        assert {row["image_id"]: row["text"] for row in read} == captioned(run)
        assert {row["image"].size for row in read} == {(80, 60)}
    assert (tmp_path / "link" / "00.jpg").is_symlink()


def test_imagefolder_metadata_alone_in_the_archives_own_folder(tmp_path: Path) -> None:
    from datasets import load_dataset

    run = make_run(tmp_path, [f"{number}.jpg" for number in range(6)])
    before = tree(run.archive)
    export(run, "imagefolder", "-o", run.archive, "--images", "none")
    assert tree(run.archive).keys() - before.keys() == {"metadata.jsonl"}
    read = load_dataset("imagefolder", data_dir=str(run.archive), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["image_id"]: row["text"] for row in read} == run.captions


def test_coco_is_read_by_pycocotools(run: SmallRun, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    export(run, "coco", "-o", tmp_path / "out" / "mine.json")
    coco = COCO(str(tmp_path / "out" / "mine.json"))
    found = {coco.imgs[number]["key"]: coco.imgToAnns[number] for number in coco.getImgIds()}
    assert {key: annotation["caption"] for key, [annotation] in found.items()} == captioned(run)
    assert {(image["width"], image["height"]) for image in coco.imgs.values()} == {(80, 60)}
    assert len({image["file_name"] for image in coco.imgs.values()}) == len(coco.imgs)


def test_webdataset_is_read_by_webdataset(run: SmallRun, tmp_path: Path) -> None:
    import webdataset

    done = export(run, "webdataset", "-o", tmp_path / "tars", "--shard-size", "5")
    pattern = done.output.partition('"')[2].partition('"')[0]
    assert pattern.endswith("captions-{000000..000003}.tar")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pil"))
    assert {sample["json"]["image_id"]: sample["txt"] for sample in samples} == captioned(run)
    assert {(sample.get("jpg") or sample["png"]).size for sample in samples} == {(80, 60)}
    assert len({sample["__key__"] for sample in samples}) == len(samples)


def test_webdataset_keeps_the_keys_of_tars(tmp_path: Path) -> None:
    import webdataset

    run = make_run(tmp_path, ["000001.jpg", "a/000002.png"], tar=True)
    export(run, "webdataset", "-o", tmp_path / "tars")
    [*samples] = webdataset.WebDataset(str(tmp_path / "tars" / "captions-000000.tar"), shardshuffle=False)
    assert {sample["__key__"] for sample in samples} == {"000001", "a/000002"} == set(run.captions)
    assert all(("jpg" in sample) or ("png" in sample) for sample in samples)


def test_txt_is_a_tree_like_the_archives(run: SmallRun, tmp_path: Path) -> None:
    done = export(run, "txt", "-o", tmp_path / "out")
    found = tree(tmp_path / "out")
    assert found["00.txt"].decode() == run.captions["00.jpg"] + "\n"
    assert {"cat.jpg.txt", "cat.png.txt", "two.dots.txt"} < found.keys()
    assert sorted(data.decode().rstrip("\n") for data in found.values()) == sorted(captioned(run).values())
    assert "1 image failed" in done.output


@pytest.mark.parametrize("kind", ["txt", "imagefolder"])
def test_images_whose_names_change_as_the_archive_grows_are_written_anew(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path, ["a.jpg", "b.jpg"])
    export(run, kind, "-o", tmp_path / "again")
    grow_run(run, ["a.png"])
    export(run, kind, "-o", tmp_path / "again")
    export(run, kind, "-o", tmp_path / "fresh")
    fresh = tree(tmp_path / "fresh")
    assert fresh.items() <= tree(tmp_path / "again").items()
    if kind == "txt":
        assert fresh.keys() == {"a.jpg.txt", "a.png.txt", "b.txt"}


def test_txt_beside_the_images_leaves_a_persons_own_files(run: SmallRun) -> None:
    (run.archive / "00.txt").write_text("mine")
    images = set(os.listdir(run.archive))
    done = export(run, "txt", "--beside")
    assert (run.archive / "00.txt").read_text() == "mine"
    assert "Kept 1 existing .txt file" in done.output
    assert (run.archive / "line\nbreak.txt").read_text() == run.captions["line\nbreak.jpg"] + "\n"
    added = set(os.listdir(run.archive)) - images
    assert len(added) == len(captioned(run)) - 1
    assert all(name.endswith(".txt") for name in added)
    export(run, "txt", "--beside", "--overwrite")
    assert (run.archive / "00.txt").read_text() == run.captions["00.jpg"] + "\n"


@pytest.mark.parametrize("column", ["tar", "table"])
def test_txt_beside_images_that_are_no_files_is_refused_before_any_is_written(tmp_path: Path, column: str) -> None:
    run = make_run(tmp_path, [f"{number}.jpg" for number in range(4)])
    [name] = Index.load(run.layout).segments[0].files
    file = run.layout.index_dir.local_path / name
    rows = pq.read_table(file)
    inside = pa.array([None, None, None, "/data/some.file"], pa.string())
    rows = rows.set_column(rows.schema.get_field_index(column), column, inside)
    pq.write_table(rows, file)
    before = tree(run.archive)
    assert "--beside" in export(run, "txt", "--beside", code=2).stderr
    assert tree(run.archive) == before


def test_error_rows_on_request(run: SmallRun, tmp_path: Path) -> None:
    export(run, "coco", "-o", tmp_path / "coco", "--errors", "include")
    values = json.loads((tmp_path / "coco" / "captions.json").read_text())
    [image] = [image for image in values["images"] if image["key"] == "broken.jpg"]
    assert len(values["images"]) == len(NAMES)
    assert image["id"] not in {annotation["image_id"] for annotation in values["annotations"]}
    export(run, "txt", "-o", tmp_path / "txt", "--errors", "include", code=2)


class Killed(BaseException):
    """What a kill is to a test in one process."""


@pytest.mark.parametrize("kind", ["txt", "imagefolder", "coco", "webdataset"])
def test_stopped_anywhere_it_goes_on_to_the_same_export(
    run: SmallRun, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--shard-size", "3"] if kind == "webdataset" else []
    export(run, kind, "-o", tmp_path / "whole", *options)
    whole = tree(tmp_path / "whole")
    replace = os.replace
    left = [0]

    def dying(*args: str) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        replace(*args)

    for survived in (0, 1, 2, 4, 7, 11):
        left[0] = survived
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                export(run, kind, "-o", tmp_path / "out", *options)
            except Killed:
                # What is there is whole: nothing is half a file.
                there = tree(tmp_path / "out")
                assert there.items() <= whole.items()
    export(run, kind, "-o", tmp_path / "out", *options)
    assert tree(tmp_path / "out") == whole


def test_a_killed_process_leaves_nothing_behind(run: SmallRun, tmp_path: Path) -> None:
    program = f"""
import os, sys
from captioning.run.export import target
def dying(*args):
    os._exit(9)
from jobs.__main__ import app
os.replace, kept = (lambda *a, n=[0]: (n.__setitem__(0, n[0] + 1), os._exit(9) if n[0] > 4 else kept(*a))), os.replace
app(["export", {str(run.output)!r}, "--format", "webdataset", "-o", {str(tmp_path / "out")!r}, "--shard-size", "3"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert list((tmp_path / "out" / ".captioning-export" / "tmp").iterdir())
    export(run, "webdataset", "-o", tmp_path / "out", "--shard-size", "3")
    assert not (tmp_path / "out" / ".captioning-export" / "tmp").exists()
    export(run, "webdataset", "-o", tmp_path / "whole", "--shard-size", "3")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_done_pieces_are_not_written_again_until_their_part_changes(run: SmallRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(run, "webdataset", "-o", out, "--shard-size", "3")
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    again = export(run, "webdataset", "-o", out, "--shard-size", "3")
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == written
    assert f"{len(NAMES)} rows already done" in again.output
    [part] = run.output.glob("part-*.parquet")
    table = pq.read_table(part)
    captions = ["a new caption"] * table.num_rows
    pq.write_table(table.set_column(2, table.schema.field(2), [captions]), part)
    export(run, "webdataset", "-o", out, "--shard-size", "3")
    assert all(path.stat().st_mtime_ns != written[path.name] for path in out.glob("*.tar"))


@pytest.mark.parametrize("images", ["copy", "link"])
def test_images_that_are_gone_are_told_and_come_later(run: SmallRun, tmp_path: Path, images: str) -> None:
    data = (run.archive / "03.jpg").read_bytes()
    (run.archive / "03.jpg").unlink()
    done = export(run, "imagefolder", "-o", tmp_path / "out", "--images", images, code=1)
    assert "1 image could no longer be read" in done.stderr
    assert "copied, not linked" not in done.stdout
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    assert "03.jpg" not in {json.loads(line)["file_name"] for line in lines}
    (run.archive / "03.jpg").write_bytes(data)
    export(run, "imagefolder", "-o", tmp_path / "out", "--images", images)
    assert len((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()) == len(NAMES) - 1


def test_an_unfinished_run_is_exported_on_request_only(run: SmallRun, tmp_path: Path) -> None:
    unfold(run, done=2)
    assert "--partial" in export(run, "coco", "-o", tmp_path / "out", code=1).stderr
    assert not (tmp_path / "out").exists()
    done = export(run, "coco", "-o", tmp_path / "out", "--partial")
    assert f"{len(NAMES)} images without a row yet" in done.output


@pytest.mark.parametrize("kind", ["imagefolder", "coco", "webdataset"])
def test_files_of_others_are_left_alone(run: SmallRun, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    target.mkdir()
    name = {"imagefolder": "mine.jpg", "coco": "captions.json", "webdataset": "captions-000007.tar"}[kind]
    (target / name).write_text("mine")
    assert name in export(run, kind, "-o", target, code=2).stderr
    assert tree(target) == {name: b"mine"}
    export(run, kind, "-o", target, "--overwrite")


@pytest.mark.parametrize(
    "arguments",
    [
        ["txt"],
        ["coco", "--beside"],
        ["txt", "--beside", "-o", "x"],
        ["webdataset", "-o", "x", "--images", "none"],
        ["imagefolder", "-o", "memory://x", "--images", "link"],
    ],
)
def test_wrong_usage_writes_nothing(run: SmallRun, tmp_path: Path, arguments: list[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert export(run, *arguments, code=2).stderr.startswith("Error: ")
    assert tree(tmp_path) == before


def test_a_target_belongs_to_one_export(run: SmallRun, tmp_path: Path) -> None:
    export(run, "txt", "-o", tmp_path / "out")
    assert "different format" in export(run, "webdataset", "-o", tmp_path / "out", code=2).stderr
    assert "inside the run" in export(run, "txt", "-o", run.output / "txt", code=2).stderr
    missing = CliRunner().invoke(app, ["export", str(tmp_path / "no"), "--format", "txt", "-o", str(tmp_path / "x")])
    assert missing.exit_code == 2


def _write_half(folder: Location) -> None:
    with Target(folder).stream(folder / "half.tar") as file:
        file.write(b"0" * (60 << 20))
        raise Killed


def test_to_s3_and_back(run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("bucket") as storage:
        here: Callable[[str], Location] = lambda kind: Location.parse(f"s3://bucket/{kind}", storage)  # noqa: E731
        for kind in ("txt", "imagefolder", "coco", "webdataset"):
            export(run, kind, "-o", here(kind).uri, "--set", f"storage.endpoint={storage.endpoint}")
            export(run, kind, "-o", tmp_path / kind)
            found = {file.path: (here(kind) / file.path).read_bytes() for file in here(kind).walk()}
            found = {name: data for name, data in found.items() if not name.startswith(".captioning-export")}
            assert found == tree(tmp_path / kind)
        with pytest.raises(Killed):
            _write_half(here("x"))
        assert here("x").names() == []


def test_a_captions_line_break_stays_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, ["1.jpg"])
    [part] = run.output.glob("part-*.parquet")
    table = pq.read_table(part)
    out = io.BytesIO()
    pq.write_table(table.set_column(2, table.schema.field(2), [["two\nlines"]]), out)
    part.write_bytes(out.getvalue())
    export(run, "txt", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "1.txt").read_text() == "two lines\n"


def test_columns_kept_of_the_archive_go_along(tmp_path: Path) -> None:
    run = make_run(tmp_path, ["1.jpg"])
    [part] = run.output.glob("part-*.parquet")
    pq.write_table(pq.read_table(part).append_column("label", [["tabby"]]), part)
    export(run, "imagefolder", "-o", tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "metadata.jsonl").read_text())["label"] == "tabby"
    export(run, "webdataset", "-o", tmp_path / "tars")
    with tarfile.open(tmp_path / "tars" / "captions-000000.tar") as tar:
        member = tar.extractfile("1.json")
        assert member is not None
        assert json.load(member)["label"] == "tabby"
