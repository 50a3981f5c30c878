"""A verb is checked locally, as far as possible without the cluster, and its files are sent along."""

from pathlib import Path

import pytest
from click.exceptions import UsageError as CommandLineError

from captioning.errors import SettingsError, UsageError
from cluster.packaging import ROOT
from cluster.verb_call import check_call

CAPTION = ["caption", "s3://bucket/photos", "-o", "s3://bucket/captions"]


def test_a_verb_is_passed_on_as_it_is() -> None:
    call = check_call([*CAPTION, "--set", "decoding.beam_size=3"])
    assert call.verb == "caption"
    assert call.arguments == (*CAPTION, "--set", "decoding.beam_size=3")
    assert not call.extra
    assert not call.notes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Pass a verb"),
        (["capture", "s3://a"], "no verb capture.*caption, plan"),
        ([*CAPTION, "--set", "decoding.beam=3"], "beam"),
        ([*CAPTION, "--set", "runtime.actors=many"], "runtime.actors"),
        (["verify", "s3://a", "--set", "storage.nothing=1"], "nothing"),
        (["evaluate", "--data", "s3://a", "--set", "nothing=1"], "nothing"),
        (["train", "--data", "s3://a", "-o", "s3://b", "--set", "wrong=1"], "wrong"),
        (["serve", "--set", "wrong=1"], "wrong"),
        (["doctor", "--set", "wrong=1"], "wrong"),
    ],
)
def test_a_wrong_verb_or_setting_is_found_at_once(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){says}"):
        check_call(arguments)


@pytest.mark.parametrize("arguments", [["caption", "s3://a"], [*CAPTION, "--nothing"], [*CAPTION, "--limit", "some"]])
def test_a_wrong_option_is_found_at_once(arguments: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such|valid integer") as raised:
        check_call(arguments)
    assert getattr(raised.value, "exit_code", None) == CommandLineError.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["caption", "photos", "-o", "s3://b"], "INPUT photos"),
        (["caption", "mine=~/photos", "-o", "s3://b"], "INPUT ~/photos"),
        (["caption", "s3://a", "-o", "build/out"], "--output build/out"),
        (["caption", "s3://a", "-o", "s3://b", "--model", "./mine"], "--model ./mine"),
        (["verify", "out"], "OUTPUT out"),
        (["evaluate", "--data", "shards"], "--data shards"),
        (["train", "--data", "shards", "-o", "s3://b"], "--data shards"),
        (["train", "-o", "s3://b", "--set", "data=shards"], "the setting data shards"),
        (["train", "--data", "s3://a", "-o", "s3://b", "--set", "text=mine.txt"], "the setting text mine.txt"),
        (["average", "s3://a", "./b", "-o", "s3://c"], "REF… ./b"),
    ],
)
def test_a_path_of_this_machine_is_refused(arguments: list[str], named: str) -> None:
    with pytest.raises(UsageError, match="on this machine.*s3://") as raised:
        check_call(arguments)
    assert str(raised.value).startswith(named)


def test_an_absolute_path_is_noted_as_shared_storage() -> None:
    call = check_call(["caption", "/mnt/photos", "a=/mnt/more", "-o", "file:///mnt/out", "--model", "/mnt/mine"])
    [note] = call.notes
    assert "INPUT /mnt/photos, INPUT /mnt/more, --output file:///mnt/out and --model /mnt/mine are paths" in note
    assert "shared storage" in note
    [note] = check_call(["verify", "/mnt/out"]).notes
    assert "OUTPUT /mnt/out is a path: it must be on shared storage" in note
    assert check_call(["caption", "s3://a", "-o", "s3://b", "--model", "flickr-lstm"]).notes == ()
    assert check_call(["caption", "name=s3://a", "-o", "s3://b"]).notes == ()


def test_a_file_of_settings_from_elsewhere_goes_along(config: Path) -> None:
    for option in (["--config", str(config)], [f"--config={config}"]):
        call = check_call([*CAPTION, *option])
        [(name, path)] = call.extra.items()
        assert name.startswith("_submitted/mine-")
        assert name.endswith(".yaml")
        assert path == config
        assert call.arguments[len(CAPTION) :] in ((option[0], name), (f"--config={name}",))


def test_one_of_the_checkout_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "configs")
    call = check_call(["train", "--data", "s3://a", "-o", "s3://b", "--config", "train/flickr-lstm.yaml"])
    assert call.arguments[-2:] == ("--config", "configs/train/flickr-lstm.yaml")
    assert not call.extra


def test_settings_in_a_file_are_checked(config: Path) -> None:
    config.write_text("decoding:\n  beams: 2\n")
    with pytest.raises(SettingsError, match=r"mine\.yaml"):
        check_call([*CAPTION, "--config", str(config)])
    with pytest.raises(UsageError, match="cannot be read"):
        check_call([*CAPTION, "--config", str(config.with_name("none.yaml"))])
