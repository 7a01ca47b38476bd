"""Which cluster is asked, and how."""

from pathlib import Path

import pytest

from components.common import kubernetes_api
from components.common.kubernetes_api import connect


def test_a_pod_asks_its_own_cluster(monkeypatch, tmp_path: Path) -> None:
    from kubernetes.config import incluster_config

    for name, text in {"token": "of-the-account", "ca.crt": "a certificate", "namespace": "team-a\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kubernetes_api, "_ACCOUNT", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    seen = []
    monkeypatch.setattr("kubernetes.client.ApiClient", lambda settings: seen.append(settings))
    assert connect().namespace == "team-a"
    [settings] = seen
    assert (settings.host, settings.verify_ssl) == ("https://10.0.0.1:443", True)
    assert settings.get_api_key_with_prefix("authorization") == "bearer of-the-account"
    assert connect("team-b").namespace == "team-b"


def test_a_laptop_asks_the_cluster_of_its_kubeconfig(kubernetes_api) -> None:
    kubernetes_api.put("rayjobs", "x", labels={"a": "b"}, spec={})
    cluster = connect()
    assert cluster.namespace == "phasetune"
    assert [job["metadata"]["name"] for job in cluster.jobs("a=b")] == ["x"]
    assert cluster.jobs("a=c") == []
    assert cluster.job("y") is None


def test_a_rayjob_is_deleted_only_as_it_was_read(kubernetes_api) -> None:
    kubernetes_api.put("rayjobs", "x", spec={})
    cluster, old = connect(), connect().job("x")
    kubernetes_api.change("rayjobs", "x", {"metadata": {"labels": {"a": "b"}}})
    assert not cluster.delete(old)
    assert cluster.patch("x", {"metadata": {"resourceVersion": old["metadata"]["resourceVersion"]}}) is None
    assert cluster.delete(cluster.job("x"))
    assert not cluster.delete(old)
    assert cluster.patch("x", {"metadata": {}}) is None


def test_what_is_no_failure_of_the_servers_is_raised_as_it_is(kubernetes_api) -> None:
    with pytest.raises(KeyError):
        connect()._ask("list pods", lambda: {}["programming error"])
