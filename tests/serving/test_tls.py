"""TLS of servers, between gateways and hosts, and of clients, with certificates made here."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from asking import settings
from certificates import Authority
from small_server import PATIENCE, serving

from recsys.client import AccessDeniedError, Client, UntrustedServerError
from recsys.core.errors import UserError
from recsys.operations.rollout.admin import AdminClient, UnreachableError
from recsys.serving.gateway.discovery import HostDiscovery
from recsys.serving.gateway.remote_host import HostFailed, RemoteHost
from recsys.serving.http.access import Access
from recsys.serving.http.app import App
from recsys.serving.http.endpoint import endpoints_of, route
from recsys.serving.http.messages import ModelVersions, Status, Versions
from recsys.serving.observability.metrics import Metrics
from recsys.serving.tls import TLS, KeptCertificate

TOKEN = "token-between-gateway-and-hosts"


class Routes:
    """As much of a host as a probe needs."""

    @route("GET", "/v1/version")
    async def version(self) -> Versions:
        return {"two_tower": ModelVersions("v", ["v"])}

    @route("GET", "/readyz")
    async def ready(self) -> Status:
        return Status("ready")


class Files(NamedTuple):
    authority: Authority
    host: TLS
    gateway: TLS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    host, gateway = (TLS(*authority.issue(name), authority.ca) for name in ("host", "gateway"))
    return Files(authority, host, gateway)


def app(token: str | None = None) -> App:
    return App(endpoints_of(Routes()), body_bytes=1000, access=Access(host=token))


def probe(port: int, context: ssl.SSLContext | None, **options: Any) -> Versions:
    async def ask() -> Versions:
        host = RemoteHost(("127.0.0.1", port), probe_seconds=PATIENCE, tls=context, **options)
        try:
            return await host.version()
        finally:
            await host.close()

    return asyncio.run(ask())


def test_a_gateway_and_a_host_verify_each_other(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = Authority(tmp_path, "stranger")
    strange = TLS(*stranger.issue("strange"), files.authority.ca)
    with serving(app(TOKEN), tmp_path, files.host.server_context(verifies_callers=True)) as port:
        assert probe(port, files.gateway.client_context(), token=TOKEN)["two_tower"].serving == "v"
        refusals = [
            (TLS(ca=files.authority.ca).client_context(), {}, "closed the connection|certificate"),
            (strange.client_context(), {}, "closed the connection|unknown"),
            (TLS(ca=stranger.ca).client_context(), {}, "certificate that is not accepted"),
            (files.gateway.client_context(), {"tls_name": "other.example"}, "certificate that is not accepted"),
            (files.gateway.client_context(), {"token": TOKEN + "x"}, "prove|401"),
            (None, {}, "connection|HTTP"),
        ]
        for context, options, message in refusals:
            with pytest.raises(HostFailed, match=message):
                probe(port, context, **{"token": TOKEN, **options})
        # Commands that call servers take the files from the environment.
        for name, value in zip(
            ("CERT", "KEY", "CA"), (files.gateway.cert, files.gateway.key, stranger.ca), strict=True
        ):
            monkeypatch.setenv(f"RECSYS_TLS_{name}", str(value))
        with pytest.raises(UnreachableError, match="certificate is not accepted"):
            AdminClient(("127.0.0.1", port), TOKEN, patience=0).versions(None)
        monkeypatch.setenv("RECSYS_TLS_CA", files.authority.ca)
        assert AdminClient(("127.0.0.1", port), TOKEN, patience=PATIENCE).versions(None).serving == "v"


def test_the_python_client(files: Files, tmp_path: Path) -> None:
    with serving(app(TOKEN), tmp_path, files.host.server_context(verifies_callers=False)) as port:
        url = f"https://127.0.0.1:{port}"
        with Client(url, token=TOKEN, ca=files.authority.ca, timeout=PATIENCE) as client:
            assert client.is_ready()
            assert client.versions()["two_tower"].loaded == ["v"]
        with Client(url, ca=files.authority.ca, timeout=PATIENCE) as client:
            with pytest.raises(AccessDeniedError, match=r"Client\(token=TOKEN\)") as refused:
                client.versions()
            assert refused.value.status == 401
        with Client(url, token=TOKEN, timeout=PATIENCE) as client:
            with pytest.raises(UntrustedServerError, match="ca=FILE"):
                client.versions()
            assert not client.is_ready()
    for given, message in (
        ({"url": "http://127.0.0.1:1", "ca": files.authority.ca}, "expected https://"),
        ({"url": url, "ca": "nowhere.pem"}, "ca: nowhere.pem: No such file"),
        ({"url": url, "ca": files.host.key}, "ca: "),
        ({"url": url, "token": "a\nb"}, "token: "),
        ({"url": url, "token": ""}, "token: "),
    ):
        with pytest.raises(ValueError, match=message):
            Client(**given)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, other = authority.issue("good"), authority.issue("other")
    expired, later = authority.issue("expired", days=(-9, -2)), authority.issue("later", days=(2, 9))
    (tmp_path / "both.pem").write_bytes(Path(good[0]).read_bytes() + Path(good[1]).read_bytes())
    (tmp_path / "empty.pem").write_bytes(b"")
    locked = tmp_path / "locked.key"
    os.system(f"openssl ec -in {good[1]} -aes128 -passout pass:secret -out {locked} 2>/dev/null")
    for given, message in (
        (TLS("gone.pem", good[1]), r"tls.cert: gone.pem: no such file"),
        (TLS(good[0], "gone.key"), r"tls.key: gone.key: no such file"),
        (TLS(good[0], other[1]), rf"tls.key: {other[1]}: the key does not belong to the certificate {good[0]}"),
        (TLS(good[0]), r"tls.cert: .*good.pem: found no private key in PEM form; tls.key names its file"),
        (TLS(good[0], good[0]), r"tls.key: .*good.pem: found no private key in PEM form$"),
        (TLS(good[0], str(locked)), r"tls.key: .*locked.key: the key has a password"),
        (TLS(good[1], good[1]), r"tls.cert: .*good.key: found no certificate in PEM form"),
        (TLS(*expired), r"tls.cert: .*expired.pem: the certificate expired on 20"),
        (TLS(*later), r"tls.cert: .*later.pem: the certificate is not valid before 20"),
        (TLS(key=good[1]), r"tls.key: found .* without tls.cert"),
        (TLS(*good, str(tmp_path / "empty.pem")), r"tls.ca: .*empty.pem: found no certificate"),
        (TLS(ca=expired[0]), r"tls.ca: .*expired.pem: the certificate expired on"),
        (TLS(str(tmp_path), good[1]), r"tls.cert: .*: is a directory"),
    ):
        with pytest.raises(UserError, match=message):
            given.expires()
    assert TLS(str(tmp_path / "both.pem")).server_context(verifies_callers=True) is not None
    assert TLS().server_context(verifies_callers=True) is None
    assert TLS(*good).client_context() is None


def test_settings_that_do_not_fit_the_role(files: Files, tmp_path: Path) -> None:
    store = SimpleNamespace(store=tmp_path)
    for options, message in (
        ({"role": "all", "tls": files.host}, "tls.ca: expected role=host or gateway"),
        ({"role": "host", "tls": TLS(ca=files.authority.ca)}, "tls.ca: found no tls.cert"),
        ({"role": "host", "tls": TLS("gone.pem")}, "tls.cert: gone.pem"),
    ):
        with pytest.raises(UserError, match=message):
            settings(store, tmp_path / "events", **options)
    for places, context, message in (
        (["http://a:1"], files.gateway.client_context(), "expected https://, because tls.ca is set"),
        (["https://a:1"], None, "https:// needs tls.ca=FILE"),
    ):
        with pytest.raises(UserError, match=message):
            HostDiscovery(places, tls=context)


def test_hosts_of_a_name_show_a_certificate_of_the_name(files: Files, tmp_path: Path) -> None:
    named = TLS(*files.authority.issue("named", names=("localhost",)), files.authority.ca)
    with serving(app(), tmp_path, named.server_context(verifies_callers=True)) as port:

        async def ask(place: str) -> Versions:
            (host, *_) = await HostDiscovery([place], tls=files.gateway.client_context())()
            try:
                return await host.version()
            finally:
                await host.close()

        assert asyncio.run(ask(f"dns:localhost:{port}"))["two_tower"].serving == "v"
        with pytest.raises(HostFailed, match="not accepted"):
            asyncio.run(ask(f"https://127.0.0.1:{port}"))


def test_a_replaced_certificate_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    old = authority.issue("first", days=(-1, 10))
    new, wrong = authority.issue("second", days=(-1, 90)), authority.issue("wrong")
    cert, key = str(tmp_path / "used.pem"), str(tmp_path / "used.key")

    def use(one: tuple[str, str]) -> None:
        shutil.copy(one[0], cert)
        shutil.copy(one[1], key)

    use(old)
    tls, metrics = TLS(cert, key), Metrics()
    context = tls.server_context(verifies_callers=False)
    assert context is not None
    with caplog.at_level("INFO"):
        kept = KeptCertificate(tls, [context], expires=metrics.set_certificate)
        kept.look()
        kept.look()
        assert caplog.text.count("in 10 days") == 2
        assert "WARNING" in caplog.text
        first = metrics.value("recsys_certificate_ends_seconds")
        shutil.copy(wrong[1], key)
        kept.look()
        assert "the certificate stays as it is: tls.key" in caplog.text
        assert metrics.value("recsys_certificate_ends_seconds") == first
        with serving(app(), tmp_path, context) as port:
            served = ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE)
            assert served.split() == Path(old[0]).read_text().split()
            use(new)
            kept.look()
            served = ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE)
            assert served.split() == Path(new[0]).read_text().split()
    assert metrics.value("recsys_certificate_ends_seconds") - first == pytest.approx(80 * 86_400, abs=60)
    assert "recsys_certificate_ends_seconds" not in Metrics().expose().decode()
