"""Package indexes that ask who one is: addresses without credentials, which are written down, and a netrc file, which
lives as long as uv needs it.

Credentials are found in requirement files, in the variable `CLOUDRUN_INDEX_CREDENTIALS` (of `index_url`'s host) and in
the user's own netrc file, in this order. Nothing that is kept holds them: no ledger, log, cache or fingerprint.
"""

from __future__ import annotations

import netrc
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cloudrun.core.errors import UsageError

VARIABLE = "CLOUDRUN_INDEX_CREDENTIALS"
_VARIABLE_IN_URL = re.compile(r"\$\{([A-Z0-9_]+)\}")  # as pip and uv read requirement files
# up to the last @ before the path, since a password may have one in it
_WITH_LOGIN = re.compile(r"(https?://)([^/\s]+)@")
_GIT_WITH_LOGIN = re.compile(r"git\+https?://[^/\s]+@")
_URL = re.compile(r"https?://[^\s;]+")

Logins = Mapping[str, tuple[str, str]]  # by host: user and password


def without_logins(text: str) -> str:
    """The same with addresses that name nobody."""
    return _WITH_LOGIN.sub(r"\1", text)


def cleaned(lines: Iterable[str]) -> tuple[str, ...]:
    """Requirement lines without credentials, sorted. Raises UsageError for git's, which would need them there."""
    found = []
    for line in lines:
        if _GIT_WITH_LOGIN.search(line):
            raise UsageError(
                f"{without_logins(line)} is named with credentials, which would be written down",
                next_step="name a released version on a private index (index_url), or a wheel in the project",
            )
        found.append(without_logins(line))
    return tuple(sorted(found))


def logins_in(text: str) -> Logins:
    """Those in a requirement file's addresses, variables in them replaced."""
    text = _VARIABLE_IN_URL.sub(lambda found: os.environ.get(found[1], found[0]), text)
    found = {}
    for scheme, login in _WITH_LOGIN.findall(text):
        host = urlsplit(text[text.index(f"{scheme}{login}@") :].split()[0]).hostname or ""
        user, _, password = login.partition(":")
        found[host] = unquote(user), unquote(password)
    return found


def has_secret(text: str) -> bool:
    """Whether an address in it has a password or a token written out, not named as a variable."""
    logins = [login.partition(":") for _, login in _WITH_LOGIN.findall(_VARIABLE_IN_URL.sub("", text))]
    return any(password or (user and not colon) for user, colon, password in logins)


def logins_for(lines: Iterable[str], index_url: str | None, inline: Logins) -> dict[str, tuple[str, str]]:
    """Who one is to each host that these requirement lines name, as far as anybody said. Raises UsageError."""
    given = {**_of_the_user(), **_of_variable(index_url), **inline}
    hosts = {urlsplit(url).hostname or "" for line in lines for url in _URL.findall(line)}
    return {host: given[host] for host in sorted(hosts) if host in given}


def netrc_text(logins: Logins) -> str:
    """A netrc file; "" for nobody. Raises UsageError for what it cannot say."""
    for host, words in logins.items():
        if not _can_be_said(words):
            raise UsageError(
                f"the credentials for {host} have a part that is empty or has a space in it, which netrc cannot say",
                next_step=f"write {VARIABLE} as user:password",
            )
    return "".join(f"machine {host} login {user} password {password}\n" for host, (user, password) in logins.items())


def _can_be_said(words: tuple[str, str]) -> bool:
    return all(word and not re.search(r"\s", word) for word in words)


@contextmanager
def local_netrc(index_url: str | None) -> Iterator[dict[str, str]]:
    """What uv's environment here needs to be told beside what it finds itself, while the block lasts."""
    own = _of_variable(index_url)
    if not own:
        yield {}
        return
    with tempfile.NamedTemporaryFile("w", prefix="cloudrun-netrc-") as file:  # readable by its owner alone
        # entries of the user's that cannot be written again are most likely of other hosts: they are left out
        others = {host: words for host, words in _of_the_user().items() if _can_be_said(words)}
        file.write(netrc_text({**others, **own}))
        file.flush()
        yield {"NETRC": file.name}


def _of_variable(index_url: str | None) -> Logins:
    login = os.environ.get(VARIABLE, "")
    if not login or index_url is None:
        return {}
    user, colon, password = login.partition(":")
    if not colon:
        raise UsageError(f"{VARIABLE} is not user:password", next_step="write it so, or leave it out")
    return {urlsplit(index_url).hostname or "": (user, password)}


def _of_the_user() -> Logins:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return {}
    return {host: (login, password or "") for host, (login, _, password) in hosts.items() if password}
