"""Finding the network interface of an address."""

import sys

import pytest

from jobs.training.network import interface_of


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_an_address_has_the_interface_that_it_is_of() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None
