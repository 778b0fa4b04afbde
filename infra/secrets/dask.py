"""The identity by which a Dask cluster's members know each other (infra/compose/dask.yml): one key for all, and TLS between them.

Standard library and the `openssl` of the image. Key and certificate follow from the secret alone, so that every start writes the
same.
"""

import base64
import hashlib
import json
import subprocess

SECRETS = "/run/secrets"
CERTIFICATE, KEY = "dask.pem", "dask-key.pem"
# An Ed25519 private key of 32 bytes in DER (RFC 8410).
PRIVATE_KEY = bytes.fromhex("302e020100300506032b657004220420")


def dask_files(secret: str) -> dict[str, str]:
    """Return the files of a member: key, certificate, and Dask's settings that name them (DASK_CONFIG).

    The certificate is its own authority: who lacks the key can neither join, nor submit, nor listen.

    Args:
        secret: The secret that the key is made of.

    Raises:
        CalledProcessError: `openssl` is older than 3.4.
    """
    key = pem("PRIVATE KEY", PRIVATE_KEY + hashlib.sha256(secret.encode()).digest())
    member = {"cert": f"{SECRETS}/{CERTIFICATE}", "key": f"{SECRETS}/{KEY}"}
    tls = {"ca-file": f"{SECRETS}/{CERTIFICATE}", **dict.fromkeys(("scheduler", "worker", "client"), member)}
    loaded = {role: {"preload": ["trainyard.dask_tls"]} for role in ("scheduler", "nanny", "worker", "client")}
    settings = {"distributed": {"comm": {"require-encryption": True, "tls": tls}, **loaded}}
    return {KEY: key, CERTIFICATE: self_signed(key), "dask.yaml": json.dumps(settings)}  # JSON is YAML


def pem(label: str, data: bytes) -> str:
    """Return DER in the form of RFC 7468."""
    return f"-----BEGIN {label}-----\n{base64.b64encode(data).decode()}\n-----END {label}-----\n"


def self_signed(key: str) -> str:
    """Return a certificate of an Ed25519 key by itself; the signature is deterministic (RFC 8032), and so is all else."""
    names = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,digitalSignature,keyCertSign")
    extensions = [argument for name in names for argument in ("-addext", name)]
    fixed = ["-set_serial", "1", "-not_before", "20200101000000Z", "-not_after", "20991231235959Z", "-subj", "/CN=dask"]
    command = ["openssl", "req", "-x509", "-key", "/dev/stdin", *fixed, *extensions]
    return subprocess.run(command, input=key, check=True, capture_output=True, text=True).stdout
