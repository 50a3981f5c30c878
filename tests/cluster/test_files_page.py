"""Every command, option, setting, file and path that cluster/README.md names exists."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.test_house import ROOT, pins, project

PAGE = ROOT / "cluster" / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")


def commands() -> list[str]:
    """The commands on the page, in blocks and inline, one per line."""
    blocks = [match[1] for match in re.finditer(r"```sh\n(.*?)```", TEXT, re.DOTALL)]
    joined = "\n".join(blocks).replace("\\\n", " ")
    outside = re.sub(r"```sh\n.*?```", "", TEXT, flags=re.DOTALL)
    inline = [" ".join(match[1].split()) for match in re.finditer(r"`([^`]+)`", outside)]
    return [line for line in [*joined.splitlines(), *inline] if line.strip()]


def words(pattern: str) -> list[list[str]]:
    """The arguments after `pattern` in each command that contains it."""
    found = [re.search(rf"(?:^|[ =(]){pattern}(?: |$)(.*)", line) for line in commands()]
    return [shlex.split(match[1].removesuffix("&")) for match in found if match]


#: Typer brings a click of its own in some versions.
WrongUsage = typer.BadParameter.__bases__[0]


def check(command: Any, given: list[str]) -> dict[str, Any]:
    """Parse a command's arguments without running it. Raises `WrongUsage`."""
    return command.make_context("page", list(given)).params


def named(app: typer.Typer, name: str) -> Any:
    group: Any = typer.main.get_command(app)
    command = group.get_command(None, name)
    assert command is not None, name
    return command


def check_verb(given: list[str]) -> None:
    from jobs.__main__ import app
    from jobs.caption_settings import read_caption_settings

    command = named(app, given[0])
    if len(given) == 1:
        return  # only mentioned, without arguments
    params = check(command, given[1:])
    if given[0] == "caption":
        read_caption_settings(params["config"], params["settings"] or [])
    if params.get("config"):
        assert (ROOT / params["config"]).is_file()


def test_the_page_covers_all_three_platforms() -> None:
    assert len(words("python -m cluster submit")) >= 5
    assert len(words("cluster/slurm/captioning.sh")) >= 2
    assert {given[0] for given in words("python -m jobs")} >= {"status", "verify"}


@pytest.mark.parametrize("given", words("python -m jobs"), ids=" ".join)
def test_verbs_take_what_the_page_gives_them(given: list[str]) -> None:
    check_verb(given)


@pytest.mark.parametrize("given", words("cluster/slurm/captioning.sh"), ids=" ".join)
def test_the_slurm_script_is_given_verbs(given: list[str]) -> None:
    if given != ["--help"]:
        check_verb(given)


@pytest.mark.parametrize("given", words("python -m cluster"), ids=" ".join)
def test_cluster_commands_take_what_the_page_gives_them(given: list[str]) -> None:
    from cluster.__main__ import app

    command = named(app, given[0])
    if given[0] == "submit":
        split = given.index("--")
        check(command, given[1:])
        check_verb(given[split + 1 :])
    else:
        check(command, given[1:])


@pytest.mark.parametrize("given", words("ray"), ids=" ".join)
def test_ray_takes_what_the_page_gives_it(given: list[str]) -> None:
    from ray.scripts.scripts import cli

    if given and given[0] in cli.commands:
        given = given[: given.index(">")] if ">" in given else given
        check(cli.commands[given[0]], given[1:])
        if given[0] == "exec":
            inner = shlex.split(given[2])[1:]
            assert inner[1] in cli.commands[inner[0]].commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "wrong", ["caption IN -o OUT --sett x=1", "captoin IN -o OUT", "caption IN -o OUT --set runtime.gpu=1"]
)
def test_wrong_commands_would_be_found(wrong: str) -> None:
    from captioning.errors import CaptioningError

    with pytest.raises((WrongUsage, CaptioningError, AssertionError)):
        check_verb(wrong.split())


def test_every_file_of_this_checkout_that_is_named_exists() -> None:
    named = set(re.findall(r"(?<![\w/.-])((?:cluster|configs)/[\w./-]+\w)", TEXT))
    assert len(named) >= 10
    for path in named:
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (PAGE.parent / path).exists(), path


def test_links_within_the_page_lead_to_its_headings() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for anchor in re.findall(r"\]\(#([\w-]+)\)", TEXT):
        assert anchor in anchors, anchor


def test_each_platform_fits_on_a_screen() -> None:
    parts = re.split(r"^#+ ", TEXT, flags=re.MULTILINE)
    for part in parts:
        if part.startswith(("Kubernetes", "AWS", "Slurm")):
            assert len(part.splitlines()) <= 34, part.splitlines()[0]


def test_names_are_those_of_the_files() -> None:
    import yaml

    [cluster] = yaml.safe_load_all((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    [job] = yaml.safe_load_all((ROOT / "cluster/kuberay/rayjob.yaml").read_text())
    [secret] = yaml.safe_load_all((ROOT / "cluster/kuberay/secrets.yaml").read_text())
    name = cluster["metadata"]["name"]
    assert f"service/{name}-head-svc" in TEXT  # as KubeRay names it
    assert f"get secret {name} " in TEXT
    assert f"secret generic {secret['metadata']['name']} " in TEXT
    assert f"rayjob {job['metadata']['name']} " in TEXT
    assert f"job/{job['metadata']['name']}`" in TEXT
    for key in re.findall(r"--from-literal=(\w+)=", TEXT):
        assert key in secret["stringData"]
    tags = set(re.findall(r"captioning:([\d.]+\d)", TEXT))
    assert tags == {project()["version"]}
    assert f"{pins()['ray']}" == cluster["spec"]["rayVersion"]


def test_numbers_of_the_text_are_those_of_the_files() -> None:
    import yaml

    launcher = yaml.safe_load((ROOT / "cluster/aws/cluster.yaml").read_text())
    [cluster] = yaml.safe_load_all((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    [job] = yaml.safe_load_all((ROOT / "cluster/kuberay/rayjob.yaml").read_text())
    assert cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 120
    assert "go two minutes after" in TEXT
    assert launcher["idle_timeout_minutes"] == 5
    assert "go five minutes after" in TEXT
    assert job["spec"]["backoffLimit"] == 3
    assert "three times" in TEXT
    assert "--signal=B:USR1@300" in (ROOT / "cluster/slurm/captioning.sh").read_text()
    assert "Five minutes before the\nlimit" in TEXT
    assert Path(ROOT / "cluster/Dockerfile").read_text().count("580") == TEXT.count("580") == 1


@pytest.mark.parametrize("variable", ["NODES", "GPUS", "CPUS", "MEMORY", "TIME"])
def test_the_slurm_scripts_variables_are_its_own(variable: str) -> None:
    assert f"{variable}" in TEXT
    assert re.search(rf"\${{?{variable}\b", (ROOT / "cluster/slurm/captioning.sh").read_text())
