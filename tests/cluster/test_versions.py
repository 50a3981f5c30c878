"""Other versions are noted, and incompatible ones refused."""

import platform
from importlib.metadata import version

import pytest

from captioning.errors import UsageError
from cluster.versions import check_versions


def test_the_same_versions_are_no_news() -> None:
    assert check_versions(version("ray"), platform.python_version()) == []
    assert check_versions(version("ray"), None) == []


def test_differences_are_reported() -> None:
    [line] = check_versions("2.99.0", "3.99.1")
    assert "cluster runs Ray 2.99.0 and Python 3.99.1" in line
    assert f"this machine Ray {version('ray')} and Python {platform.python_version()}" in line
    [line] = check_versions("2.99.0", platform.python_version())
    assert "Python" not in line


def test_a_cluster_that_is_too_old_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Ray 2\.9\.0.*needs Ray >="):
        check_versions("2.9.0", "3.11.0")
    with pytest.raises(UsageError, match=r"Python 3\.9\.18.*needs Python >="):
        check_versions(version("ray"), "3.9.18")
