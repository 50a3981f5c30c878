"""An OUTPUT that is a folder which not all nodes of a cluster see."""

from pathlib import Path

import pytest

from tests.cluster.rehearsal import Rehearsal
from tests.jobs.archive import write_photos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_it_is_refused_before_a_node_has_written_to_a_folder_of_its_own(tmp_path: Path, tiny_captioner: Path) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    with Rehearsal(tmp_path / "pace", seconds=0, head_cpus=0) as rehearsal:
        rehearsal.machines.add("one")
        command = ("caption", photos, "-o", tmp_path / "out", "--model", tiny_captioner, "--set", "runtime.runner=ray")
        code, said = rehearsal.job(*command, "--limit", "4").end()
        assert code == 0, said
        blind = rehearsal.machines.add("blind")
        code, said = rehearsal.job(*command[:3], tmp_path / "other", *command[4:]).end()
        assert code == 2, said
        assert f"run.json does not exist on {blind.address}" in " ".join(said.split())
        assert "s3://" in said
