"""Who one is to a package index: taken from where it is written, and left out of whatever is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudrun import config
from cloudrun.core.errors import ConfigError, UsageError
from cloudrun.provisioning.indexes import VARIABLE, cleaned, has_secret, local_netrc, logins_for, logins_in, netrc_text

URL = "https://packages.example.com/simple"


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)


def test_a_setting_with_credentials_is_refused_without_saying_them(tmp_path: Path) -> None:
    (tmp_path / "cloudrun.toml").write_text('index_url = "https://me:hunter2@packages.example.com/simple"\n')
    with pytest.raises(ConfigError, match=r"~/\.netrc") as caught:
        config.load(tmp_path, {}, {"XDG_CONFIG_HOME": str(tmp_path)})
    assert "hunter2" not in str(caught.value) + caught.value.next_step


@pytest.mark.parametrize("url", ["packages.example.com", "ftp://x/y", "https://", "https://a b/simple"])
def test_what_is_no_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no address of a package index"):
        config.load(tmp_path, {"index_url": url}, {"XDG_CONFIG_HOME": str(tmp_path)})


def test_lines_are_written_without_credentials() -> None:
    lines = ["foo @ https://me:hunter2@a.example/foo.whl", "--extra-index-url https://${TOKEN}@b.example/simple"]
    assert cleaned(lines) == ("--extra-index-url https://b.example/simple", "foo @ https://a.example/foo.whl")
    with pytest.raises(UsageError, match="named with credentials") as caught:
        cleaned(["foo @ git+https://hunter2@github.com/me/foo@abc"])
    assert "hunter2" not in str(caught.value)


def test_a_password_with_an_at_sign_is_one_password() -> None:
    line = "--index-url https://me:p@ssw0rd@packages.example.com/simple"
    assert cleaned([line]) == (f"--index-url {URL}",)
    assert logins_in(line) == {"packages.example.com": ("me", "p@ssw0rd")}
    with pytest.raises(UsageError, match="named with credentials") as caught:
        cleaned(["foo @ git+https://me:p@ssw0rd@github.com/me/foo@abc"])
    assert "ssw0rd" not in str(caught.value)
    assert cleaned(["foo @ git+https://github.com/me/foo@abc"]) == ("foo @ git+https://github.com/me/foo@abc",)


def test_credentials_in_a_requirements_file_are_read_with_variables_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s%3Ecret")
    text = "--index-url https://me:${TOKEN}@a.example/simple\nfoo @ https://token@b.example/foo.whl\nbar==1\n"
    assert logins_in(text) == {"a.example": ("me", "s>cret"), "b.example": ("token", "")}


@pytest.mark.parametrize(
    ("login", "secret"),
    [("me:hunter2@", True), ("token@", True), ("${TOKEN}@", False), ("me:${TOKEN}@", False), ("", False)],
)
def test_a_variable_is_no_secret_and_what_is_written_out_is(login: str, secret: bool) -> None:
    assert has_secret(f"--index-url https://{login}a.example/simple") is secret


def test_the_file_comes_before_the_variable_and_that_before_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"--index-url {URL}", "foo @ https://other.example/foo.whl", "bar==1"]
    (tmp_path / ".netrc").write_text(
        "machine packages.example.com login a password 1\nmachine other.example login b password 2\n"
        "machine unasked.example login c password 3\n"
    )
    assert logins_for(lines, URL, {}) == {"packages.example.com": ("a", "1"), "other.example": ("b", "2")}
    monkeypatch.setenv(VARIABLE, "d:4:5")
    assert logins_for(lines, URL, {})["packages.example.com"] == ("d", "4:5")
    assert logins_for(lines, URL, {"packages.example.com": ("e", "6")})["packages.example.com"] == ("e", "6")
    assert logins_for(["bar==1"], None, {}) == {}


def test_a_variable_that_is_no_login_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "hunter2")
    with pytest.raises(UsageError, match="user:password") as caught:
        logins_for([], URL, {})
    assert "hunter2" not in str(caught.value)


def test_what_netrc_cannot_say_is_refused() -> None:
    assert netrc_text({"a": ("b", "c")}) == "machine a login b password c\n"
    for login in (("b", ""), ("b c", "d"), ("b", "c\nmachine x")):
        with pytest.raises(UsageError, match="netrc cannot say"):
            netrc_text({"a": login})


def test_entries_for_other_hosts_that_cannot_be_written_again_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text(
        'machine nobody.example password x\nmachine quoted.example login a password "b c"\n'
        "machine other.example login a password b\n"
    )
    monkeypatch.setenv(VARIABLE, "u:p")
    with local_netrc(URL) as variables:
        written = Path(variables["NETRC"]).read_text()
    assert written == "machine other.example login a password b\nmachine packages.example.com login u password p\n"
    assert logins_for([f"--index-url {URL}"], URL, {}) == {"packages.example.com": ("u", "p")}
