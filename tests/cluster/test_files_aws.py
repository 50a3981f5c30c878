"""The files of cluster/aws: valid for Ray's launcher and CloudFormation, and right as both would use them."""

import copy
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_house import ROOT

FOLDER = ROOT / "cluster" / "aws"


def launcher() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "cluster.yaml").read_text())


def workers() -> dict[str, dict[str, Any]]:
    config = launcher()
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


class _CloudFormation(yaml.SafeLoader):
    """Reads `!Ref`, `!Sub` and `!GetAtt` as {"Ref": …} and the like."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    assert isinstance(node, yaml.ScalarNode)
    return {name if name == "Ref" else f"Fn::{name}": loader.construct_scalar(node)}


_CloudFormation.add_multi_constructor("!", _function)  # type: ignore[no-untyped-call]


def stack() -> dict[str, Any]:
    return yaml.load((FOLDER / "iam.yaml").read_text(), Loader=_CloudFormation)


def profiles() -> dict[str, str]:
    """The instance profiles of the stack, each with the role in it."""
    found = [
        made["Properties"] for made in stack()["Resources"].values() if made["Type"] == "AWS::IAM::InstanceProfile"
    ]
    return {profile["InstanceProfileName"]: profile["Roles"][0]["Ref"] for profile in found}


def test_rays_own_schema_accepts_it() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launcher(), schema)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate({**launcher(), "idle_timeout": 5}, schema)


def test_rays_launcher_accepts_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(launcher()))
    validate_config(prepared)
    # The resources are those of the AWS types; Ray itself adds only the memory.
    assert prepared["available_node_types"]["cpu"]["resources"] == {"CPU": 16}
    # Every command that starts a node requires the token.
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        [start] = [line for line in prepared[key] if "ray start" in line]
        assert "RAY_AUTH_MODE=token" in start


def test_the_head_is_kept_and_the_workers_are_spot() -> None:
    config = launcher()
    head = config["available_node_types"][config["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    for name, kind in workers().items():
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}, name
        assert 0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"], name
    assert any(kind["node_config"]["InstanceType"].startswith("g") for kind in workers().values())
    assert any(kind["node_config"]["InstanceType"].startswith("c") for kind in workers().values())
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert config["provider"]["cache_stopped_nodes"] is False  # spot machines cannot be stopped, disks cost


def test_every_machine_has_a_profile_of_the_stack_that_may_read_and_write_the_bucket() -> None:
    resources, roles = stack()["Resources"], profiles()
    config = launcher()
    for name, kind in config["available_node_types"].items():
        role = resources[roles[kind["node_config"]["IamInstanceProfile"]["Name"]]]["Properties"]
        assert role["ManagedPolicyArns"] == [{"Ref": "BucketPolicy"}], name
    actions = {
        action
        for statement in resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }
    assert {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"} <= actions
    assert not any("*" in action for action in actions)


def test_the_head_may_start_workers_and_end_only_its_own() -> None:
    [policy] = stack()["Resources"]["HeadRole"]["Properties"]["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    by_action = {
        action: statement
        for statement in statements
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert by_action["iam:PassRole"]["Resource"] == {"Fn::GetAtt": "WorkerRole.Arn"}
    assert by_action["ec2:TerminateInstances"]["Condition"] == {
        "StringEquals": {"aws:ResourceTag/ray-cluster-name": launcher()["cluster_name"]}
    }
    assert "ssm:GetParameters" in by_action  # the image is named, not numbered
    image = launcher()["available_node_types"]["head"]["node_config"]["ImageId"]
    prefix = by_action["ssm:GetParameters"]["Resource"]["Fn::Sub"].partition(":parameter")[2].removesuffix("*")
    assert image.removeprefix("resolve:ssm:").startswith(prefix)


def test_cloudformation_accepts_the_stack() -> None:
    text = (FOLDER / "iam.yaml").read_text()
    assert not any(line.split(": ")[-1].startswith(("&", "*")) for line in text.splitlines()), "no YAML aliases there"
    cfnlint = pytest.importorskip("cfnlint.api")
    faults = cfnlint.lint(text, regions=["us-west-2"])
    assert not faults, [str(fault) for fault in faults]


def test_files_that_machines_get_exist_and_lie_there_as_they_do_here() -> None:
    config = launcher()
    for remote, local in config["file_mounts"].items():
        if local.startswith("~"):
            assert (remote, local) == ("~/.ray/auth_token", "~/.ray/auth_token")
            continue
        assert (ROOT / local).exists(), local
        assert remote == f"~/captioning/{local}"
    commands = [line for key, lines in config.items() if key.endswith("_commands") for line in lines]
    used = {word for line in commands for word in line.split() if word.startswith("~/captioning/c")}
    assert len(used) == 3
    for path in used:
        assert any(path == mount or path.startswith(f"{mount}/") for mount in config["file_mounts"]), path
        assert (ROOT / path.removeprefix("~/captioning/")).is_file(), path


@pytest.mark.parametrize("key", [key for key in launcher() if key.endswith("_commands")])
def test_commands_are_right_for_a_shell(key: str) -> None:
    for line in launcher()[key]:
        # The launcher puts each command into parentheses.
        done = subprocess.run(["bash", "-n", "-c", f"true && ({line})"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_spot_watch_is_on_every_worker_and_not_on_the_head() -> None:
    config = launcher()
    assert any("spot_watch.sh" in line and line.endswith("&") for line in config["worker_start_ray_commands"])
    assert not any("spot_watch.sh" in line for line in config["head_start_ray_commands"])


def test_the_comment_at_its_top_is_right() -> None:
    text = (FOLDER / "cluster.yaml").read_text()
    assert "--template-file cluster/aws/iam.yaml" in text
    assert "--parameter-overrides Bucket=" in text
    assert list(stack()["Parameters"]) == ["Bucket"]


class _Metadata(http.server.BaseHTTPRequestHandler):
    """The instance metadata service: a token first; the notice only once it is there."""

    notice: str | None = None
    asked = 0

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self._answer(200, "a-metadata-token")

    def do_GET(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token"] == "a-metadata-token"
        assert self.path == "/latest/meta-data/spot/instance-action"
        type(self).asked += 1
        self._answer(404, "") if self.notice is None else self._answer(200, self.notice)

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def metadata_service() -> Iterator[tuple[type[_Metadata], str]]:
    handler = type("Metadata", (_Metadata,), {"asked": 0, "notice": None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fake_ray(folder: Path, code: int = 0) -> dict[str, str]:
    """An environment with a `ray` that records how it was called."""
    path = folder / "ray"
    path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" --- >>"{folder}/calls"\nexit {code}\n')
    path.chmod(0o755)
    return {**os.environ, "RAY": str(path), "POLL_S": "0.05"}


def drained(folder: Path) -> list[list[str]]:
    return [call.strip().splitlines() for call in (folder / "calls").read_text().split("---\n") if call.strip()]


def test_a_machine_that_aws_reclaims_is_drained_until_then(tmp_path: Path) -> None:
    with metadata_service() as (service, url):
        watch = subprocess.Popen(
            ["bash", FOLDER / "spot_watch.sh", "10.0.0.1:6379"],
            env={**fake_ray(tmp_path), "IMDS": url, "NODE_ID": "cafe"},
            stdout=subprocess.PIPE,
            text=True,
        )
        while service.asked < 3:  # no notice yet, no drain
            assert watch.poll() is None
            time.sleep(0.02)
        assert not (tmp_path / "calls").exists()
        at = datetime.now(UTC) + timedelta(seconds=100)
        service.notice = json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})
        said = watch.communicate(timeout=60)[0]
    assert watch.returncode == 0
    assert "AWS is reclaiming this spot instance" in said
    [call] = drained(tmp_path)
    options = dict(zip(call[1::2], call[2::2], strict=True))
    assert call[0] == "drain-node"
    assert options["--address"] == "10.0.0.1:6379"
    assert options["--node-id"] == "cafe"
    assert options["--reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert 1 <= int(options["--deadline-remaining-seconds"]) <= 100


def test_a_notice_without_a_time_means_two_minutes(tmp_path: Path) -> None:
    with metadata_service() as (service, url):
        service.notice = '{"action": "terminate"}'
        environment = {**fake_ray(tmp_path), "IMDS": url, "NODE_ID": "cafe"}
        subprocess.run(["bash", FOLDER / "spot_watch.sh", "10.0.0.1:6379"], env=environment, check=True, timeout=60)
    [call] = drained(tmp_path)
    assert 100 <= int(call[call.index("--deadline-remaining-seconds") + 1]) <= 120


def test_drain_finds_the_ray_nodes_of_this_machine(tmp_path: Path) -> None:
    """By their raylets: here, a process with such a name."""
    disguise = f"exec -a {tmp_path}/raylet {sys.executable} -c 'import time; time.sleep(60)' --node_id=0123cafe"
    raylet = subprocess.Popen(["bash", "-c", disguise])
    try:
        while b"raylet" not in Path(f"/proc/{raylet.pid}/cmdline").read_bytes().split(b"\0")[0]:
            time.sleep(0.02)
        drain = ["bash", ROOT / "cluster" / "drain.sh", "10.0.0.1:6379", "75", "a test"]
        subprocess.run(drain, env=fake_ray(tmp_path), check=True, timeout=60)
    finally:
        raylet.kill()
        raylet.wait()
    ids = [call[call.index("--node-id") + 1] for call in drained(tmp_path)]
    assert ids.count("0123cafe") == 1
    assert all(call[call.index("--deadline-remaining-seconds") + 1] == "75" for call in drained(tmp_path))


def test_a_refused_drain_is_reported(tmp_path: Path) -> None:
    drain = ["bash", ROOT / "cluster" / "drain.sh", "10.0.0.1:6379", "75", "a test"]
    environment = {**fake_ray(tmp_path, code=1), "NODE_ID": "cafe"}
    assert subprocess.run(drain, env=environment, timeout=60).returncode == 1
    assert subprocess.run(drain[:3], env=environment, timeout=60, capture_output=True).returncode == 2


def test_the_schemas_that_ray_ships_name_the_reasons_for_a_drain() -> None:
    from ray.core.generated import autoscaler_pb2

    assert "DRAIN_NODE_REASON_PREEMPTION" in dict(autoscaler_pb2.DrainNodeReason.items())


@pytest.mark.slow
def test_ray_up_starts_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated AWS: the stack, then what `ray up` does with the file until it starts a machine of each type."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import utils
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.setenv("HOME", str(tmp_path))  # where the key of the machines is put
    (tmp_path / ".ssh").mkdir()
    utils.resource_cache.cache_clear()
    utils.client_cache.cache_clear()
    config = launcher()
    region = config["provider"]["region"]
    with mock_aws():
        boto3.client("cloudformation", region).create_stack(
            StackName="captioning",
            TemplateBody=(FOLDER / "iam.yaml").read_text(),
            Parameters=[{"ParameterKey": "Bucket", "ParameterValue": "a-bucket"}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        made = boto3.client("iam", region).list_instance_profiles()["InstanceProfiles"]
        assert {profile["InstanceProfileName"] for profile in made} == {"captioning-head", "captioning-worker"}
        described = boto3.client("ec2", region).describe_instance_types(
            InstanceTypes=[kind["node_config"]["InstanceType"] for kind in workers().values()]
        )["InstanceTypes"]
        ready = bootstrap_aws(prepare_config(config))
        provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
        try:
            for name, kind in ready["available_node_types"].items():
                node_config = {**kind["node_config"], "ImageId": an_image(boto3.client("ec2", region))}
                provider.create_node(node_config, {"ray-node-type": "worker", "ray-user-node-type": name}, 1)
            found = boto3.client("ec2", region).describe_instances()["Reservations"]
            machines = [machine for reservation in found for machine in reservation["Instances"]]
        finally:
            utils.resource_cache.cache_clear()
            utils.client_cache.cache_clear()
    of_aws = {
        kind["InstanceType"]: (
            kind["VCpuInfo"]["DefaultVCpus"],
            sum(gpu["Count"] for gpu in kind.get("GpuInfo", {"Gpus": []})["Gpus"]),
        )
        for kind in described
    }
    for kind in workers().values():
        stated = (kind["resources"]["CPU"], kind["resources"].get("GPU", 0))
        assert stated == of_aws[kind["node_config"]["InstanceType"]]
    by_type = {machine["InstanceType"]: machine for machine in machines}
    assert set(by_type) == {kind["node_config"]["InstanceType"] for kind in config["available_node_types"].values()}
    for name, kind in config["available_node_types"].items():
        machine = by_type[kind["node_config"]["InstanceType"]]
        profile = kind["node_config"]["IamInstanceProfile"]["Name"]
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{profile}"), name
        assert (machine.get("InstanceLifecycle") == "spot") is (name != config["head_node_type"]), name
        assert machine["KeyName"]


def an_image(ec2: Any) -> str:
    """Some image of the simulated AWS, which does not resolve the name of ours."""
    return str(ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"])
