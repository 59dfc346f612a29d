"""Clients get through a gateway with TLS and a token, and say why where they do not."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from toy_networks import write_repository

import videofer
from base import ROOT
from clients.access import Access, read_header
from clients.errors import AccessRefused
from serving.embedded import EmbeddedServer
from serving.platforms import read_platform

TOKEN = "-".join(("a", "word", "of", "the", "test"))


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    repository = write_repository(tmp_path_factory.mktemp("toys") / "model_repository")
    with EmbeddedServer(read_platform(repository, "trt_fp16")) as running:
        yield running


# What `openssl ca` wants to know; it alone can sign for a time that is over.
AUTHORITY = """[ca]
default_ca = own
[own]
database = index
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = DNS:localhost
"""
TIMES = {
    "server": ("200101000000Z", "491231000000Z"),
    "expired": ("200101000000Z", "210101000000Z"),
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Make a certificate for localhost, one that has expired, and somebody else's."""
    folder = tmp_path_factory.mktemp("tls")
    (folder / "authority").write_text(AUTHORITY)
    (folder / "index").touch()

    def openssl(command):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    for name, (start, end) in {**TIMES, "other": TIMES["server"]}.items():
        key = f"-newkey rsa:2048 -nodes -keyout {name}.key"
        openssl(f"req -new {key} -subj /CN={name} -out {name}.csr")
        signed = f"-selfsign -keyfile {name}.key -in {name}.csr -out {name}.pem -notext"
        openssl(f"ca -batch -config authority {signed} -startdate {start} -enddate {end}")
    return folder


class Gateway(grpc.GenericRpcHandler):
    """Pass every call on to a server, bytes as they are, if it has the token."""

    def __init__(self, upstream):
        self.upstream, self.seen = upstream, []

    def service(self, details):
        sent = dict(details.invocation_metadata)
        self.seen.append(sent)

        def answer(request, context):
            if sent.get("authorization") != f"Bearer {TOKEN}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")
            return self.upstream.unary_unary(details.method)(request)

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def open_gateway(toys, certificates, name="server"):
    with grpc.insecure_channel(toys.grpc_url) as upstream, ThreadPoolExecutor(4) as pool:
        gateway = Gateway(upstream)
        server = grpc.server(pool, handlers=[gateway])
        pair = [(certificates / f"{name}.{end}").read_bytes() for end in ("key", "pem")]
        gateway.port = server.add_secure_port(
            "localhost:0", grpc.ssl_server_credentials([tuple(pair)])
        )
        server.start()
        try:
            yield gateway
        finally:
            server.stop(0).wait()


@pytest.fixture(scope="module")
def gateway(toys, certificates):
    with open_gateway(toys, certificates) as running:
        yield running


def networks(*arguments, port, token=""):
    """Run `videofer networks`: its output, and the one line of its refusal."""
    command = [sys.executable, "-P", "-m", "videofer", "networks", "--url", f"localhost:{port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_TOKEN": token}
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd="/"
    )
    return done.stdout, done.stderr.strip()


def test_token_and_headers_reach_the_gateway_over_tls(gateway, certificates):
    trusted = ("--tls", "--ca", certificates / "server.pem")
    told, error = networks(*trusted, "--header", "X-Team: vision", port=gateway.port, token=TOKEN)
    assert "fan" in told, error
    assert gateway.seen[-1]["x-team"] == "vision"
    access = Access(tls=True, ca=certificates / "server.pem", token=TOKEN)
    url = f"localhost:{gateway.port}"
    assert "fan" in [network.model for network in videofer.networks(url, access=access)]


def test_token_is_read_from_a_file_that_others_may_not_read(gateway, certificates, tmp_path):
    trusted = ("--tls", "--ca", certificates / "server.pem")
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    told, error = networks(*trusted, "--token-file", path, port=gateway.port)
    assert "fan" in told, error
    path.chmod(0o644)
    _, error = networks(*trusted, "--token-file", path, port=gateway.port)
    assert "everyone on this machine may read it (mode 644)" in error
    _, error = networks(*trusted, "--token-file", tmp_path / "none", port=gateway.port)
    assert error.endswith(f"--token-file {tmp_path / 'none'}: No such file or directory")


@pytest.mark.parametrize(
    ("token", "said"),
    [("", "refused a request without a token"), ("wrong", "refused the token that was sent")],
)
def test_wrong_or_missing_token_is_told_and_not_shown(gateway, certificates, token, said):
    trusted = ("--tls", "--ca", certificates / "server.pem")
    told, error = networks(*trusted, port=gateway.port, token=token)
    assert said in error and "$TRITON_TOKEN" in error
    assert not told and "\n" not in error and "Bearer" not in error


def test_other_authoritys_certificate_is_not_trusted(gateway, certificates):
    _, error = networks("--tls", "--ca", certificates / "other.pem", port=gateway.port, token=TOKEN)
    assert "is not trusted" in error and "--ca names the file" in error and "\n" not in error


def test_expired_certificate_is_told(toys, certificates):
    with open_gateway(toys, certificates, "expired") as old:
        trusted = ("--tls", "--ca", certificates / "expired.pem")
        _, error = networks(*trusted, port=old.port, token=TOKEN)
    assert "is not trusted" in error and "expired" in error and "\n" not in error


def test_tls_of_a_server_that_speaks_none_is_told(toys, certificates):
    trusted = ("--tls", "--ca", certificates / "server.pem")
    _, error = networks(*trusted, port=toys.grpc_url.rpartition(":")[2], token=TOKEN)
    assert "does not speak TLS" in error and "\n" not in error


def test_what_would_give_a_secret_away_or_is_half_is_refused(certificates, tmp_path):
    with pytest.raises(AccessRefused, match="without --tls: others could read it on its way"):
        Access(token=TOKEN).check("fer.example.org:8001")
    Access(token=TOKEN).check("localhost:8001")
    with pytest.raises(AccessRefused, match="--cert and --key go together"):
        Access(tls=True, cert=certificates / "server.pem")
    with pytest.raises(AccessRefused, match="--ca without --tls"):
        Access(ca=certificates / "server.pem")
    (tmp_path / "no.pem").write_text("hello")
    with pytest.raises(AccessRefused, match="not a PEM file"):
        Access(tls=True, ca=tmp_path / "no.pem")
    assert TOKEN not in repr(Access(token=TOKEN))
    with pytest.raises(ValueError, match="does not belong on a command line"):
        read_header("Authorization: Bearer x")
    with pytest.raises(ValueError, match="expected <name>: <value>"):
        read_header("x team")
