"""How long nodes may be silent: by attribute and setting, refused where it is not valid, given to the kernel."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401 - before any of its extensions
import pytest

from metaflow_extensions.gang.core.attributes import number_or_setting
from metaflow_extensions.gang.core.exceptions import BadAttribute
from metaflow_extensions.gang.core.guard.loop.timeouts import tune
from metaflow_extensions.gang.core.guard.settings import Settings
from metaflow_extensions.gang.core.machine.network import NoRoute, own_address_within
from metaflow_extensions.gang.core.settings.table import BY_NAME, guard_settings


def read(value: Any, name: str = "lost_host_timeout") -> float:
    return number_or_setting(SimpleNamespace(name="gang", attributes={name: value}), name)


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", "86401", "inf"])
def test_a_setting_that_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    setting = BY_NAME["unkillable_timeout"]
    monkeypatch.setenv("METAFLOW_GANG_UNKILLABLE_TIMEOUT", value)
    with pytest.raises(BadAttribute) as raised:
        setting.read()
    told = f"METAFLOW_GANG_UNKILLABLE_TIMEOUT={value}: it is a number of seconds greater than 0 and at most 86400."
    assert str(raised.value) == told
    monkeypatch.setenv("METAFLOW_GANG_UNKILLABLE_TIMEOUT", "")
    assert setting.read() == 30.0
    monkeypatch.setenv("METAFLOW_GANG_UNKILLABLE_TIMEOUT", "7.5")
    assert setting.read() == 7.5
    assert guard_settings({})["unkillable_timeout"] == 7.5


def test_a_number_of_things_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_GANG_TRANSFER_CONNECTIONS", "8")
    settings = Settings(guard_settings({"lost_host_timeout": 45.0}))
    assert (settings.transfer_connections, settings.lost_host_timeout) == (8, 45.0)
    monkeypatch.setenv("METAFLOW_GANG_TRANSFER_CONNECTIONS", "8.5")
    with pytest.raises(BadAttribute, match="it is a whole number of connections greater than 0 and at most 10000"):
        guard_settings({})


def test_the_attribute_comes_before_the_setting_and_that_before_what_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (read(None), read(None, "frozen_node_timeout")) == (30.0, 60.0)
    monkeypatch.setenv("METAFLOW_GANG_LOST_HOST_TIMEOUT", "45")
    assert (read(None), read(None, "frozen_node_timeout")) == (45.0, 60.0)
    assert read("12.5") == read(12.5) == 12.5


def test_a_configuration_file_has_settings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaflow import metaflow_config_funcs

    monkeypatch.setitem(metaflow_config_funcs.METAFLOW_CONFIG, "METAFLOW_GANG_BODY_GRACE", "8")
    assert guard_settings({})["body_grace"] == 8.0


@pytest.mark.parametrize("value", [0, -1, 2, "soon", True, float("nan")])
def test_what_cannot_be_meant_is_refused(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadAttribute, match=r"@gang\(lost_host_timeout=.*is a number of seconds greater than 2"):
        read(value)
    monkeypatch.setenv("METAFLOW_GANG_LOST_HOST_TIMEOUT", str(value))
    with pytest.raises(BadAttribute, match=r"METAFLOW_GANG_LOST_HOST_TIMEOUT=.*is a number of seconds greater than 2"):
        read(None)


def option(sock: socket.socket, name: str) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))


def test_the_kernel_gives_up_an_idle_connection_in_time_and_any_other_after_the_gang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{Settings.__module__}._now", Settings({"lost_host_timeout": 30.0}))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        tune(sock)
        assert option(sock, "USER_TIMEOUT") == 60_000, "an interruption of 20 s costs TCP up to 20 s more"
        tune(sock, idle=True)
        # Silence of 20 s is 23 s after what came last, and one of 30 s has ended it.
        assert 20 + option(sock, "KEEPIDLE") < option(sock, "USER_TIMEOUT") / 1000 < 30
        assert option(sock, "KEEPINTVL") == 1


def test_a_name_that_resolves_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pod's, some seconds after its start."""
    real, said, calls = socket.getaddrinfo, list[str](), list[str]()

    def late(host: str, *arguments: Any, **options: Any) -> Any:
        calls.append(host)
        if len(calls) < 4:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    assert own_address_within("gang-control-0", 10.0, said.append) == "127.0.0.1"
    assert calls == ["gang-control-0"] * 4 and not said
    monkeypatch.setattr("metaflow_extensions.gang.core.machine.network._TOLD_AFTER_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    with pytest.raises(NoRoute, match=r"No such host: 'gang-control-0' .*It was tried for [01] s\."):
        own_address_within("gang-control-0", 1.0, said.append)
    assert len(said) == 1 and "It is tried again for 1 s (all_nodes_started_timeout)." in said[0]
    with pytest.raises(NoRoute, match="the address is empty"):
        own_address_within("", 60.0, said.append)


def _unknown(*arguments: Any, **options: Any) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
