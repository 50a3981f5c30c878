"""`caption` from every kind of archive at once, through Ray Data: tables, tars, lists, the web, HEIC."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from captioning.data.heic import has_heic
from jobs.__main__ import app
from tests.captioning.run.runs import make_tar
from tests.captioning.web_server import Handler, web_server
from tests.jobs.archive import encode, picture, read_rows, write_photos
from tests.jobs.in_process import run_with


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def write_archives(root: Path, url: str) -> list[str]:
    """Six INPUTs that hold 8 + 4 + 3 + 2 + 3 + 2 images."""
    photos = [encode(picture(number), "JPEG") for number in range(30)]
    table = pa.table(
        {
            "image": [{"bytes": data, "path": None} for data in photos[:8]],
            "license": ["by", "sa", None, "by", "by", "by", "by", "by"],
            "shot": pa.array(range(8), pa.int16()),
        }
    )
    (root / "tables").mkdir(parents=True)
    pq.write_table(table.slice(0, 5), root / "tables" / "a.parquet", row_group_size=2)
    pq.write_table(table.slice(5), root / "tables" / "b.parquet")
    write_photos(root / "photos", 4)
    uris = pa.table({"path": ["photos/0/0000.jpg", "photos/1/0001.jpg", "photos/none.jpg"], "key": ["x", "y", "z"]})
    with pa.OSFile(str(root / "uris.arrow"), "wb") as file, pa.ipc.new_file(file, uris.schema) as writer:
        writer.write_table(uris)
    tar = make_tar(root / "cut.tar", [("k.jpg", photos[10]), ("k.json", b"{}"), ("l.jpg", photos[11] + bytes(5000))])
    tar.write_bytes(tar.read_bytes()[: 3 * 1024 + 1000 + len(photos[10])])
    (root / "web.txt").write_text(f"{url}/good.jpg\n{url}/moved.jpg\n{url}/gone.jpg\n")
    assert has_heic()
    (root / "phone").mkdir()
    (root / "phone" / "IMG_1.HEIC").write_bytes(encode(picture(20, (64, 48)), "HEIF"))
    (root / "phone" / "IMG_2.avif").write_bytes(encode(picture(21, (64, 48)), "AVIF"))
    return [f"{name}={root / place}" for name, place in INPUTS.items()]


INPUTS = {
    "t": "tables",
    "p": "photos",
    "u": "uris.arrow",
    "c": "cut.tar",
    "w": "web.txt",
    "h": "phone",
}


def answer(handler: Handler) -> None:
    if handler.path == "/good.jpg":
        return handler.say(200, encode(picture(12), "JPEG"), Content_Type="text/plain")
    if handler.path == "/moved.jpg":
        return handler.say(301, Location="/good.jpg")
    return handler.say(404, b"<html>not here</html>")


@pytest.mark.usefixtures("ray_local")
def test_every_kind_of_archive_in_one_run(tmp_path: Path, tiny_captioner: Path) -> None:
    with web_server(answer) as server:
        inputs = write_archives(tmp_path, server.url)
        output = tmp_path / "out"
        command = ["caption", *inputs, "-o", output, "--model", tiny_captioner, "--set", "output.shard_size=4"]
        command += ["--set", "storage.allow_http=true", "--set", "storage.allow_private=true"]
        command += ["--set", "input.keep_columns=[license,shot]"]
        done = invoke(*command)
        assert done.exit_code == 0, done.output
        assert "damaged or cut short" in done.output
        rows = read_rows(output)
        errors = {name: row["error_class"] for name, row in rows.items() if row["status"] == "error"}
        assert errors == {"u/uris.arrow#2": "missing", "c/l": "truncated", f"w/{server.url}/gone.jpg": "missing"}
        assert len(rows) == 22
        assert [rows[f"t/a.parquet#{row}"]["license"] for row in range(5)] == ["by", "sa", None, "by", "by"]
        assert rows["t/b.parquet#2"]["shot"] == 7
        assert rows["p/0/0000.jpg"]["shot"] is None
        assert pq.read_table(sorted(output.glob("part-*.parquet"))[0]).schema.field("shot").type == pa.int16()
        assert rows["t/a.parquet#1"]["caption"]
        assert rows["t/a.parquet#1"]["uri"] == f"{tmp_path}/tables/a.parquet#1"
        assert rows["u/uris.arrow#0"]["caption"] == rows["p/0/0000.jpg"]["caption"]
        assert (rows["h/IMG_1.HEIC"]["width"], rows["h/IMG_1.HEIC"]["height"]) == (64, 48)

        assert invoke("verify", output).exit_code == 0
        again = invoke(*command)
        assert again.exit_code == 0
        assert json.loads((output / "_run" / "summary.json").read_text())["already_done"] == 22
        other = invoke(*command[:-1], "input.keep_columns=[license]")
        assert other.exit_code == 2
        assert "columns.shot" in other.stderr

        # Later steps find the images again where they are.
        report = invoke("report", output)
        assert report.exit_code == 0, report.output
        assert "19 photos shown" in report.output
        exported = invoke("export", output, "--format", "imagefolder", "-o", tmp_path / "exported")
        assert exported.exit_code == 0, exported.output
        first = next((tmp_path / "exported").rglob("*a.parquet*0*"))
        assert first.read_bytes() == encode(picture(0), "JPEG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("two.parquet",), "input.image_column=left"),
        (("two.parquet", "--set", "input.image_column=middle"), "left (binary), right (binary)"),
        (("two.parquet", "--set", "input.image_column=left", "--set", "input.id_column=key"), "no such column"),
        (("photos", "--set", "input.keep_columns=[license]"), "'license', but no INPUT"),
        (("one.parquet", "--set", "input.keep_columns=[caption]"), "has its own column of that name"),
        (("web.txt",), "storage.allow_http=true"),
        (("https://example.org/a.jpg?token=secret",), "Put web addresses into a text list"),
        (("secret.txt", "--set", "storage.allow_http=true"), "contains a user name or a password"),
        (("photos", "--set", "input.columns=[x]"), "image_column"),
        (("broken.parquet",), "broken.parquet is damaged or cut short"),
    ],
)
def test_inputs_that_cannot_be_meant_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_captioner: Path, arguments: tuple[str, ...], says: str
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be started")

    # What stands on a later line is found when all is listed, which is after the runner was started.
    run_with(monkeypatch, forbidden)
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 2)
    photo = encode(picture(1), "JPEG")
    pq.write_table(pa.table({"left": [photo], "right": [photo]}), "two.parquet")
    pq.write_table(pa.table({"jpg": [photo], "caption": ["a photo"]}), "one.parquet")
    Path("broken.parquet").write_bytes(Path("one.parquet").read_bytes()[:-9])
    Path("web.txt").write_text("photos/0/0000.jpg\nhttp://example.org/a.jpg\n")
    Path("secret.txt").write_text("https://me:secret@example.org/a.jpg\n")
    done = invoke("caption", *arguments, "-o", "out", "--model", tiny_captioner)
    assert done.exit_code == 2, (done.output, done.exception)
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "secret@" not in done.stderr
    assert "token" not in done.stderr
    assert not Path("out").exists()
