"""A given address becomes that of the Jobs API, or an error that names it."""

import pytest

from captioning.errors import UsageError
from cluster.address import DEFAULT, find_address, normalise

pytestmark = pytest.mark.usefixtures("nobodys_home")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://rays.example.org", "https://rays.example.org"),
        ("https://example.org/clusters/mine/", "https://example.org/clusters/mine"),
        ("head", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("10.0.0.1:6379", "http://10.0.0.1:8265"),
        ("[::1]:8265", "http://[::1]:8265"),
        ("auto", DEFAULT),
    ],
)
def test_an_address_is_that_of_the_jobs_api(given: str, meant: str) -> None:
    assert normalise(given, "--address") == meant


@pytest.mark.parametrize(
    "given", ["ray://head:10001", "ftp://head", "http://", "http://head:port", "not an address", ""]
)
def test_a_wrong_address_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"--address .*http://"):
        normalise(given, "--address")


def test_the_option_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_address(None) == DEFAULT
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert find_address(None) == "http://10.0.0.2:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://one:8265")
    assert find_address(None) == "http://one:8265"
    assert find_address("http://two:8265") == "http://two:8265"
