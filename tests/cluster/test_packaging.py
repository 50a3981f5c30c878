"""The package: its files, its name, and its size limit."""

import io
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from captioning.errors import UsageError
from cluster.packaging import ROOT, collect, is_packaged, upload_limit

pytestmark = pytest.mark.usefixtures("nobodys_home")


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    write(
        root,
        *("captioning/__init__.py", "captioning/assets/flickr-lstm/model.safetensors", "captioning/assets/logo.png"),
        *("jobs/build/deep.py", "cluster/start.sh", "configs/caption/mine.yaml", "pyproject.toml", "plugins/own.py"),
    )
    write(
        root,
        *(".git/config", ".venv/bin/python", "build/demo/part-0.parquet", "dist/a.whl", "tests/test_a.py"),
        *("captioning/__pycache__/a.pyc", "captioning.egg-info/PKG-INFO", ".mypy_cache/a.json", ".env"),
        *("photos/cat.JPG", "photos/list.txt", "tables/a.parquet", "mine/model.safetensors", "mine/_run/run.json"),
        *("environment/pyvenv.cfg", "environment/lib/a.py", "shards/shards.json", "shards/a.py"),
    )
    (root / "link").symlink_to("/usr")
    return root


TRAVELS = {
    *("captioning/__init__.py", "captioning/assets/flickr-lstm/model.safetensors", "captioning/assets/logo.png"),
    *("jobs/build/deep.py", "cluster/start.sh", "configs/caption/mine.yaml", "pyproject.toml", "plugins/own.py"),
    "photos/list.txt",
}


def names_of(root: Path) -> set[str]:
    return {name for name, _ in collect(root).files}


def test_code_travels_and_data_stays(checkout: Path) -> None:
    (checkout / ".git/config").unlink()
    (checkout / ".git").rmdir()
    assert names_of(checkout) == TRAVELS


def test_what_git_ignores_stays(checkout: Path) -> None:
    (checkout / ".git/config").unlink()
    (checkout / ".git").rmdir()
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    write(checkout, "notes/a.md", "notes/b.md")
    (checkout / ".gitignore").write_text("notes/a.md\nphotos/\n")
    assert names_of(checkout) == TRAVELS - {"photos/list.txt"} | {"notes/b.md"}


def test_the_name_is_that_of_the_content(checkout: Path) -> None:
    first = collect(checkout)
    for path in checkout.rglob("*.py"):
        os.utime(path, (time.time() + 100, time.time() + 100))
    assert collect(checkout).name == first.name
    (checkout / "plugins/own.py").write_text("other")
    assert collect(checkout).name != first.name
    assert collect(checkout, {"_submitted/a.yaml": checkout / "pyproject.toml"}).name != collect(checkout).name


def test_the_zip_holds_the_files(checkout: Path) -> None:
    file = io.BytesIO()
    package = collect(checkout, {"_submitted/a.yaml": checkout / "pyproject.toml"})
    assert package.write(file) == len(file.getvalue())
    with zipfile.ZipFile(file) as archive:
        assert set(archive.namelist()) == TRAVELS | {"_submitted/a.yaml"}
        assert archive.read("plugins/own.py") == b"plugins/own.py"
        assert archive.read("_submitted/a.yaml") == b"pyproject.toml"
    again = io.BytesIO()
    package.write(again)
    assert again.getvalue() == file.getvalue()


def test_a_checkout_that_is_too_large_names_its_largest_entries(checkout: Path) -> None:
    (checkout / "models").mkdir()
    (checkout / "models" / "weights.bin").write_bytes(os.urandom(300_000))
    (checkout / "dump.json").write_bytes(os.urandom(200_000))
    with pytest.raises(UsageError, match=r"(?s)too large.*0\.3 MiB  models/weights\.bin\n *0\.2 MiB  dump\.json"):
        collect(checkout).write(io.BytesIO(), 400_000)


def test_the_limit_is_less_where_ray_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upload_limit() == 100 * 1024**2
    monkeypatch.setenv("RAY_max_grpc_message_size", "1000")
    assert upload_limit() == 1000


def test_this_checkout_fits_and_is_whole() -> None:
    package = collect()
    names = {name for name, _ in package.files}
    assert {"jobs/__main__.py", "cluster/start.sh", "pyproject.toml", "constraints.txt"} <= names
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "captioning/assets").rglob("*") if path.is_file()}
    assert assets <= names
    assert not any(name.startswith(("tests/", "build/", ".")) for name in names)
    assert package.size < upload_limit()
    assert is_packaged(ROOT / "configs/train/flickr-lstm.yaml")
    assert not is_packaged(ROOT / "tests/conftest.py")
