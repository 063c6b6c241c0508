"""Ed25519 keys: the one a client logs in with, and the one a unit is known by."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class KeyPair:
    """Both halves as OpenSSH writes them. Who stores the private one does so with mode 0600."""

    private: str = field(repr=False)  # "-----BEGIN OPENSSH PRIVATE KEY-----..."
    public: str  # "ssh-ed25519 AAAA... comment"


def make_key(comment: str) -> KeyPair:
    """A new ed25519 pair without a passphrase."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private=private.decode("ascii"), public=f"{public.decode('ascii')} {comment}")
