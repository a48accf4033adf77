"""Metaflow's four datastores, each with the service that it speaks to, reached and trusted as in its own cloud."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from support.hosts import Host
from support.remote import Datastore
from support.requirements import find_tool, missing, require_packages

from .servers import S3_CREDENTIALS, JsonServer, Refused, listen, s3_server, url_of

_BUCKET = "gang-tests"
_ROOT = f"{_BUCKET}/flows"

_ACCOUNT = "gangaccount"
_AZURE_NAMES = tuple(f"{_ACCOUNT}.{service}.core.windows.net" for service in ("blob", "dfs"))
"""An account's own names in Azure: Azurite knows by them whose blobs are meant, as Azure does."""

_MACHINE = "of this machine"

_GOOGLE_MACHINE = "metadata.google.internal"
_GOOGLE_ACCOUNT = "tests@gang-tests.iam.gserviceaccount.com"
_GOOGLE_ANSWERS = {
    "": "",
    "project/project-id": "gang-tests",
    "universe/universe-domain": "googleapis.com",
    "instance/service-accounts/default": {"email": _GOOGLE_ACCOUNT, "scopes": [], "aliases": ["default"]},
    "instance/service-accounts/default/token": {
        "access_token": "of the service account",
        "expires_in": 3600,
        "token_type": "Bearer",
    },
}

_START_S = 60.0


class Identities(JsonServer):
    """What gives a task on Azure's or Google's machines its tokens: a managed identity, a service account."""

    headers = {"Metadata-Flavor": "Google"}  # by which Google's libraries know that it is no other's

    def __init__(self, host: Host) -> None:
        _name(host, _GOOGLE_MACHINE)
        super().__init__(host, host.address, 80)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        asked = path.removeprefix("/computeMetadata/v1/").strip("/").replace(_GOOGLE_ACCOUNT, "default")
        if path == "/azure" and self.request_headers.get("X-IDENTITY-HEADER") == _MACHINE:
            return 200, _azure_token()
        if asked in _GOOGLE_ANSWERS and self.request_headers.get("Metadata-Flavor") == "Google":
            return 200, _GOOGLE_ANSWERS[asked]
        self.problems.append(f"{method} {path} is not known")
        raise Refused(404, {"error": f"{method} {path} is not known"})


def _azure_token() -> dict[str, str]:
    """A token as Azurite reads it: whom it is for and until when; it does not look at the signature."""
    now = int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000001/",
        "iat": now - 60,
        "nbf": now - 60,
        "exp": now + 3600,
    }
    pieces = [json.dumps(piece).encode() for piece in ({"alg": "none", "typ": "JWT"}, claims)] + [b"unsigned"]
    token = ".".join(base64.urlsafe_b64encode(piece).decode().rstrip("=") for piece in pieces)
    return {
        "access_token": token,
        "expires_on": str(now + 3600),
        "resource": claims["aud"],
        "token_type": "Bearer",
    }


@contextlib.contextmanager
def local_store(host: Host, folder: Path) -> Iterator[Datastore]:
    """A folder that all hosts share."""
    yield Datastore("local", str(folder / "flows"))


@contextlib.contextmanager
def s3_store(host: Host, folder: Path) -> Iterator[Datastore]:
    """S3, played by moto."""
    require_packages("boto3", "moto")
    with s3_server(host, _BUCKET) as url:
        # The first is Metaflow's, the second that of whoever else speaks to S3: AWS's libraries, PyArrow's, Ray's.
        env = {**S3_CREDENTIALS, "METAFLOW_S3_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}
        yield Datastore("s3", f"s3://{_ROOT}", {**env, "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{_ROOT}"})


@contextlib.contextmanager
def gs_store(host: Host, folder: Path) -> Iterator[Datastore]:
    """Google's storage, played by gcp-storage-emulator, for a task that has the machine's service account."""
    require_packages("gcp_storage_emulator", "google.cloud.storage")
    with contextlib.closing(Identities(host)) as identities, listen(host) as listener, ExitStack() as undo:
        argv = [sys.executable, "-c", _GOOGLE, str(listener.fileno()), _BUCKET]
        _run(undo, subprocess.Popen(argv, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL))
        env = {
            "GCE_METADATA_IP": identities.url.removeprefix("http://"),  # its name is known by all hosts
            "STORAGE_EMULATOR_HOST": url_of(listener),
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": url_of(listener),  # PyArrow's name for the same
            "METAFLOW_DATASTORE_SYSROOT_GS": f"gs://{_ROOT}",
        }
        yield Datastore("gs", f"gs://{_ROOT}", env)


# It accepts on a socket that is open already: what comes before it is ready waits and is not refused. The emulator
# serves one request at a time, as it does by its own command.
_GOOGLE = """
import functools, socket, sys
from http.server import HTTPServer
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

storage = Storage(use_memory_fs=True)
create_bucket(sys.argv[2], storage)
listener = socket.socket(fileno=int(sys.argv[1]))
RequestHandler.timeout = 10  # of a host that is gone nothing more comes
server = HTTPServer(listener.getsockname(), functools.partial(RequestHandler, storage), bind_and_activate=False)
server.socket = listener
server.serve_forever()
"""


@contextlib.contextmanager
def azure_store(host: Host, folder: Path) -> Iterator[Datastore]:
    """Azure's blob storage, played by Azurite, for a task that has a managed identity."""
    require_packages("azure.identity", "azure.storage.blob", "cryptography")
    azurite = _azurite()
    with contextlib.closing(Identities(host)) as identities, ExitStack() as undo:
        certificate, key = _certificate(folder, _AZURE_NAMES)
        _name(host, *_AZURE_NAMES)
        options = ["--disableTelemetry", "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
        where = ["--blobHost", host.address, "--blobPort", "443"]
        tls = ["--oauth", "basic", "--cert", str(certificate), "--key", str(key)]
        secret = base64.b64encode(os.urandom(32)).decode()
        server = subprocess.Popen(
            ["nsenter", "-t", str(host.pid), "-n", azurite, *options, *where, *tls],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{_ACCOUNT}:{secret}"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        _run(undo, server)
        assert server.stdout is not None
        undo.enter_context(server.stdout)
        assert any(b"successfully listens" in line for line in server.stdout), "Azurite did not start"
        endpoint = f"https://{_AZURE_NAMES[0]}"
        env = {
            "IDENTITY_ENDPOINT": f"{identities.url}/azure",
            "IDENTITY_HEADER": _MACHINE,
            "REQUESTS_CA_BUNDLE": str(certificate),
            "SSL_CERT_FILE": str(certificate),
            "METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT": endpoint,
            "METAFLOW_DATASTORE_SYSROOT_AZURE": _ROOT,
        }
        create = "import sys; from azure.identity import *; from azure.storage.blob import *; "
        create += "ContainerClient(sys.argv[1], sys.argv[2], DefaultAzureCredential()).create_container()"
        host.run([sys.executable, "-c", create, endpoint, _BUCKET], env={**os.environ, **env}, timeout=_START_S)
        yield Datastore("azure", _ROOT, env)


def _azurite() -> str:
    """The program; the test is skipped, or fails in CI, where it is not installed."""
    own = Path(sys.prefix) / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    found = str(own) if own.exists() else find_tool("azurite-blob")
    if found is None:
        missing(f"Azurite is not installed: tests/tools/install_azurite.sh installs it in {own.parents[2]}.")
    return found


def _certificate(folder: Path, names: tuple[str, ...]) -> tuple[Path, Path]:
    """Files with a certificate for these names, which is its own authority, and with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(pem))
    files[1].write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return files


def _name(host: Host, *names: str) -> None:
    """Let all hosts know this one by these names."""
    host.run(["sh", "-c", 'echo "$@" >> /etc/hosts', "sh", host.address, *names])


def _run(undo: ExitStack, server: subprocess.Popen[bytes]) -> None:
    """End a server with the stack."""
    undo.callback(server.wait)
    undo.callback(server.kill)


STORES: Mapping[str, Callable[[Host, Path], AbstractContextManager[Datastore]]] = {
    "local": local_store,
    "s3": s3_store,
    "azure": azure_store,
    "gs": gs_store,
}
"""By Metaflow's name: what serves the datastore on a host, with its files in a folder."""
