"""What may stand in a setting that names a thing elsewhere: its form, checked before anybody is asked for it.

Each takes a text and returns it as it is used, or raises ValueError with words that follow the setting's name.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit


def aws_id(kind: str, text: str) -> str:
    """`kind`: as in "subnet", for subnet-0123456789abcdef0."""
    if not re.fullmatch(rf"{kind}-[0-9a-f]+", text):
        raise ValueError(f"{text!r} is not an id, as in {kind}-0123456789abcdef0")
    return text


def instance_profile(text: str) -> str:
    if not re.fullmatch(r"(arn:aws[a-z-]*:iam::\d{12}:instance-profile/[\w+=,.@/-]+|[\w+=,.@-]{1,128})", text):
        raise ValueError(f"{text!r} is neither the name nor the ARN of an instance profile")
    return text


def ip_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network, as in 203.0.113.0/24: {error}") from error


def debian_package(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", text):  # Debian Policy Manual, 5.6.1
        raise ValueError(f"{text!r} is not the name of a Debian package, as in libgomp1")
    return text


def index_url(text: str) -> str:
    """The text is not repeated where it is refused: a password may be in it."""
    address = urlsplit(text)
    if address.scheme not in ("http", "https") or not address.hostname or re.search(r"\s", text):
        raise ValueError("it is no address of a package index, as in https://packages.example.com/simple")
    if address.username is not None:
        raise ValueError(
            "it holds credentials, and settings are written down; leave them out, and put them into ~/.netrc or the"
            " variable CLOUDRUN_INDEX_CREDENTIALS (user:password)"
        )
    return text
