"""What a Host header says."""

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backend.hosts import host_name, is_loopback
from tests.serving.client import Client

PORTS = some.just("") | some.integers(0, 65535).map(lambda number: f":{number}") | some.just(":")
NAMES = some.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?){0,3}\Z")


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("a.b:7860", "a.b"),
        ("A.B", "a.b"),
        ("a.b.", "a.b"),
        ("LocalHost.:80", "localhost"),
        ("my_box", "my_box"),
        ("[::1]:80", "[::1]"),
        ("[FE80::1]", "[fe80::1]"),
        ("127.0.0.1:", "127.0.0.1"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_names_and_addresses_with_a_port(authority, name) -> None:
    assert host_name(authority) == name


BAD = [
    "[::1].evil.example", "[::1]evil.example", "[::1]:80.evil.example", "[::1]@evil.example", "[::1", "::1",
    "::1]", "[]",
    "[localhost]", "[127.0.0.1]", "[::1%eth0]", "[[::1]]", "localhost:80:80", "localhost:x", "localhost:99999",
    "localhost:-1", "localhost:+1", "localhost:\u0661", "user@localhost", "user:pass@localhost",
    "localhost/evil.example", "localhost?x", "localhost#x", "localhost\\evil", "localhost evil",
    "localhost,evil.example",
    "\uff4cocalhost", "b\xfccher.example", "localhost\0", "localhost\0.evil.example", "localhost..", ".localhost", ".",
    "-a.example", "a-.example", "a..b", "a" * 64 + ".example", "a." * 128 + "a", "http://localhost", "*",
    "%6cocalhost", "",
]  # fmt: skip


@pytest.mark.parametrize("authority", BAD)
def test_what_is_no_name_or_address_is_none(authority) -> None:
    assert host_name(authority) == ""
    assert Client().ask(host=authority.encode("utf-8").decode("latin-1")).status == 400


def test_two_host_or_origin_headers_are_refused() -> None:
    client = Client()
    assert client.ask(host="localhost", Host="evil.example").status == 400
    assert client.ask(origin="http://localhost:7860", ORIGIN="https://evil.example").status == 400
    assert client.inner.calls == []


@given(NAMES, PORTS)
def test_a_name_is_read_with_any_port(name, port) -> None:
    assert host_name(name.upper() + port) == name


@given(some.ip_addresses(), PORTS)
def test_an_address_is_read_with_any_port(address, port) -> None:
    written = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
    assert host_name(written + port) == written
    assert is_loopback(written) == address.is_loopback


@given(some.text(max_size=30) | some.text("[]:.@1localhst%/\\ ", max_size=14))
def test_whatever_is_served_without_a_password_is_this_machine(authority) -> None:
    name = host_name(authority)
    if name and is_loopback(name):
        assert name == "localhost" or ip_address(name.strip("[]")).is_loopback
        left = authority.strip(" \t").lower().removeprefix(name).removeprefix(".")
        assert left == "" or (left[0] == ":" and (left[1:] == "" or (left[1:].isdigit() and int(left[1:]) < 65536)))
