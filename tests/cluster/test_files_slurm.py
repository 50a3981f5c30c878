"""The Slurm script, run as Slurm would, with fakes of Slurm's commands on this machine."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.test_house import ROOT

SCRIPT = ROOT / "cluster" / "slurm" / "captioning.sh"
SHELL_SCRIPTS = [path for path in sorted((ROOT / "cluster").rglob("*.sh")) if "bash" in path.read_text()[:30]]

#: A fake Slurm on this machine. `srun` replaces itself by its command, so that the step lives as long as that.
SLURM = {
    "sbatch": 'printf "%s\\n" "$@" >"$LOG/sbatch"; echo "Submitted batch job 4711"',
    "scontrol": """
case $1 in
    show) [[ $2 == hostnames ]] && tr ',' '\\n' <<<"$3" ;;
    requeue) echo "$2" >>"$LOG/requeue"; exit "${REQUEUE_FAILS:-0}" ;;
esac""",
    "srun": """
echo "$*" >>"$LOG/srun"
while [[ $1 == --* ]]; do shift; done
exec "$@\"""",
}

#: A fake Ray that starts at once, and ends when it is told to.
RAY = """
[[ $1 != start ]] || trap 'echo "${*: -1}" >>"$LOG/ended"; exit 0' TERM
echo "$*" >>"$LOG/ray"
case $1 in
    get-auth-token) echo a-token ;;
    health-check) exit "${SICK:-0}" ;;
    start) while :; do sleep 0.1; done ;;
esac"""

#: A fake Python that waits for both machines, and whose `-m jobs` does what the test sets.
PYTHON = """
if [[ $1 == - ]]; then
    until [[ $(grep -c ^start "$LOG/ray") == 2 ]]; do sleep 0.05; done
    exit 0
fi
trap 'echo terminated >>"$LOG/signals"; sleep 0.2; exit 130' TERM
printf "%s\\n" "$@" >"$LOG/job"
env >"$LOG/environment"
for _ in $(seq "${JOB_S:-0}"); do sleep 0.1; done
exit "${JOB_CODE:-0}\""""


def command(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


class Slurm:
    """A job on two machines, in a folder; the log records the calls."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        commands = folder / "bin"
        for made in (self.log, commands):
            made.mkdir(parents=True)
        for name, body in SLURM.items():
            command(commands, name, body)
        self.ray_folder = folder / "ray"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RAY", "SBATCH"))},
            "PATH": f"{commands}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "CAPTIONING_HOME": str(ROOT),
            "PYTHON": str(command(folder, "python", PYTHON)),
            "RAY": str(command(folder, "ray-command", RAY)),
            "HEAD_IP": "127.0.0.1",
            "RAY_FOLDER": str(self.ray_folder),
            "SLURM_SUBMIT_DIR": str(folder),
        }
        self.allocation = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "machine1,machine2",
            "SLURM_CPUS_PER_TASK": "3",
            "SLURM_MEM_PER_NODE": "1000",
        }

    def start(self, *words: str, allocated: bool = True, **variables: str) -> subprocess.Popen[str]:
        environment = {**self.environment, **(self.allocation if allocated else {}), **variables}
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: str, allocated: bool = True, **variables: str) -> tuple[int, str]:
        """The exit code, and the output of both streams."""
        return self.end(self.start(*words, allocated=allocated, **variables))

    @staticmethod
    def end(process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            out, err = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its Ray
            out, err = process.communicate(timeout=120)
            raise AssertionError(f"it did not end by itself: {out}{err}") from None
        return process.returncode, out + err

    def lines(self, name: str) -> list[str]:
        path = self.log / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, name: str, process: subprocess.Popen[str], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not self.lines(name):
            assert process.poll() is None, self.end(process)
            assert time.monotonic() < until, f"{name} was never called"
            time.sleep(0.02)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_right(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -uo pipefail\n" in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_reads_its_options_where_they_stand() -> None:
    """sbatch stops reading options at the first line that is not a comment."""
    head = SCRIPT.read_text().split("\nset -uo")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    options = [line.removeprefix("#SBATCH ") for line in head if line.startswith("#SBATCH")]
    assert "--signal=B:USR1@300" in options
    assert "--requeue" in options
    assert "--no-kill" in options  # the loss of a machine is not the job's end
    assert not any("nodes=" in option or "gpus" in option for option in options)  # the caller's, or sbatch's own


def test_on_a_login_node_it_submits_itself_to_sbatch(slurm: Slurm) -> None:
    words = ("caption", "/archive/with blanks", "-o", "/out", "--set", "decoding.beam_size=3")
    code, said = slurm.run(*words, allocated=False, NODES="4", GPUS="2", CPUS="16", TIME="01:00:00", MEMORY="64G")
    assert (code, said) == (0, "Submitted batch job 4711\n")
    assert slurm.lines("sbatch") == [
        *("--nodes=4", "--cpus-per-task=16", "--time=01:00:00", "--gpus-per-node=2", "--mem=64G"),
        str(SCRIPT),
        *words,
    ]


def test_defaults_ask_for_little(slurm: Slurm) -> None:
    assert slurm.run("status", "/out", allocated=False)[0] == 0
    assert slurm.lines("sbatch")[:4] == ["--nodes=2", "--cpus-per-task=8", "--time=08:00:00", str(SCRIPT)]


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_it_explains_itself(slurm: Slurm, words: tuple[str, ...]) -> None:
    code, said = slurm.run(*words, allocated=False)
    assert code == 2
    assert "NODES=4 GPUS=2 cluster/slurm/captioning.sh caption" in said
    assert "REQUEUE=0" in said
    assert "#" not in said
    assert not slurm.lines("sbatch")


def test_a_ray_spans_the_machines_for_as_long_as_the_job(slurm: Slurm) -> None:
    slurm.ray_folder.mkdir()
    code, said = slurm.run("caption", "/archive/with blanks", "-o", "/out")
    assert code == 0, said
    assert slurm.lines("job") == ["-m", "jobs", "caption", "/archive/with blanks", "-o", "/out"]
    environment = dict(line.split("=", 1) for line in slurm.lines("environment") if "=" in line)
    assert environment["RAY_ADDRESS"] == "127.0.0.1:26844"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"] == "a-token"
    assert environment["PYTHONPATH"].split(":")[0] == str(ROOT)
    started = [line for line in slurm.lines("ray") if line.startswith("start")]  # beside each other, in any order
    head, worker = sorted(started, key=lambda line: "--head" not in line)
    for line in (head, worker):
        assert "--num-cpus=3" in line
        assert "--memory=629145600 --object-store-memory=209715200" in line
        assert f"--temp-dir={slurm.ray_folder}" in line
    assert "--head --node-ip-address=127.0.0.1 --port=26844" in head
    assert "--address=127.0.0.1:26844" in worker
    on = [line for line in slurm.lines("srun") if "start" in line]
    assert sorted("--nodelist=machine1" in line for line in on) == [False, True]
    assert sorted("--nodelist=machine2" in line for line in on) == [False, True]
    # Both nodes were stopped, nothing of them is left, and the token is in no output.
    assert len(slurm.lines("ended")) == 2
    assert not slurm.ray_folder.exists()
    assert "a-token" not in said
    assert "a-token" not in "".join(slurm.lines("srun"))
    assert not slurm.lines("requeue")


@pytest.mark.parametrize("code", [1, 2])
def test_the_exit_code_is_that_of_the_verb(slurm: Slurm, code: int) -> None:
    slurm.ray_folder.mkdir()
    got, said = slurm.run("caption", "/archive", "-o", "/out", JOB_CODE=str(code))
    assert got == code
    assert slurm.ray_folder.exists()  # with the logs that may say why
    assert str(slurm.ray_folder) in said
    assert not slurm.lines("requeue")


def test_before_the_time_is_up_the_run_ends_cleanly_and_is_requeued(slurm: Slurm) -> None:
    process = slurm.start("caption", "/archive", "-o", "/out", JOB_S="600")
    slurm.wait_for("environment", process)
    process.send_signal(signal.SIGUSR1)
    code, said = slurm.end(process)
    assert code == 130, said
    assert slurm.lines("signals") == ["terminated"]
    assert slurm.lines("requeue") == ["4711"]
    assert "requeued; it will resume" in said
    assert len(slurm.lines("ended")) == 2


@pytest.mark.parametrize(
    ("variables", "asked", "says"),
    [
        ({"REQUEUE": "0"}, False, ""),
        ({"SLURM_RESTART_COUNT": "7", "MAX_RESTARTS": "7"}, False, "MAX_RESTARTS"),
        ({"REQUEUE_FAILS": "1"}, True, "Run the same command"),
    ],
)
def test_it_is_not_requeued_where_it_must_not_be(
    slurm: Slurm, variables: dict[str, str], asked: bool, says: str
) -> None:
    process = slurm.start("caption", "/archive", "-o", "/out", JOB_S="600", **variables)
    slurm.wait_for("environment", process)
    process.send_signal(signal.SIGUSR1)
    code, said = slurm.end(process)
    assert code == 130
    assert bool(slurm.lines("requeue")) is asked
    assert says in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_job_is_not_requeued(slurm: Slurm, number: signal.Signals) -> None:
    process = slurm.start("caption", "/archive", "-o", "/out", JOB_S="600")
    slurm.wait_for("environment", process)
    process.send_signal(number)
    code, said = slurm.end(process)
    assert code == 130, said
    assert slurm.lines("signals") == ["terminated"]
    assert not slurm.lines("requeue")


def test_a_run_that_ends_before_the_signal_is_not_requeued(slurm: Slurm) -> None:
    """The signal came too late: the run ended by itself, with exit code 0."""
    command(Path(slurm.environment["PYTHON"]).parent, "python", PYTHON.replace("exit 130", "exit 0"))
    process = slurm.start("caption", "/archive", "-o", "/out", JOB_S="600")
    slurm.wait_for("environment", process)
    process.send_signal(signal.SIGUSR1)
    assert slurm.end(process)[0] == 0
    assert not slurm.lines("requeue")


def test_a_ray_that_does_not_start_is_reported(slurm: Slurm) -> None:
    command(
        Path(slurm.environment["RAY"]).parent, "ray-command", RAY.replace("start) ", "start) echo no room; exit 1; ")
    )
    code, said = slurm.run("caption", "/archive", "-o", "/out", SICK="1")
    assert code == 1
    assert "did not start on machine1" in said
    [log] = Path(slurm.environment["SLURM_SUBMIT_DIR"]).glob("captioning-4711-ray.log")
    assert "no room" in log.read_text()
    assert not slurm.lines("job")


def test_a_checkout_without_an_environment_is_reported(slurm: Slurm, tmp_path: Path) -> None:
    code, said = slurm.run("caption", "/archive", "-o", "/out", CAPTIONING_HOME=str(tmp_path), PYTHON="", RAY="")
    assert code == 2
    assert "make setup" in said
    assert str(tmp_path) in said


@pytest.mark.slow
def test_it_captions_on_two_nodes(slurm: Slurm, tiny_captioner: Path, tmp_path: Path) -> None:
    """With Ray itself: a head and a worker, and some photos."""
    import sys

    import pyarrow.parquet as pq

    from tests.tiny import square

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(24):
        (photos / f"{number:02d}.jpg").write_bytes(square("red", "top", number))
    # Socket paths have at most 107 characters.
    folder = Path("/tmp") / f"slurm-{os.getpid()}"
    wrapper = command(tmp_path, "real-ray", f'exec "{sys.executable}" -m ray.scripts.scripts "$@"')
    real = {
        "PYTHON": sys.executable,
        "RAY": str(wrapper),
        "RAY_FOLDER": str(folder),
        "RAY_AUTH_TOKEN": "a-token-of-this-test-alone",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_MEM_PER_NODE": "1500",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    words = ("caption", str(photos), "-o", str(tmp_path / "out"), "--model", str(tiny_captioner))
    try:
        code, said = slurm.run(*words, "--set", "output.shard_size=4", **real)
        assert code == 0, said
        assert "2 of 2 machines have joined" in said
        assert pq.read_table(tmp_path / "out").num_rows == 24
        assert not folder.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
