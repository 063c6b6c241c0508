"""Packages that are not on the usual index: wheels of this computer, and an index that asks who one is."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.core.events import Event, Note
from cloudrun.core.records import Environment
from cloudrun.core.rundir import INDEX_LOGINS, env_python
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.provisioning.environment import environment_for
from cloudrun.provisioning.indexes import VARIABLE
from cloudrun.provisioning.playbook import provision
from cloudrun.runs.furnishing import furnished
from cloudrun.runs.prepared import Job, inspect
from cloudrun.ssh.session import Session

from .conftest import Host, WheelMaker

SECRET = "hunter2"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "wheels").mkdir(parents=True)
    (root / "job.py").write_text("import mine\n")
    return root


def made(project: Path, tmp_path: Path, index_url: str | None = None) -> Environment:
    return environment_for(
        project / "job.py", project, architecture="x86_64", cache_dir=tmp_path / "cache", index_url=index_url
    )


def build(host: Host, environment: Environment, tmp_path: Path) -> str:
    """What `mine` is on the host, once it is there; Ansible's log is checked for secrets."""
    with Session.open(host.target, timeout_s=60) as session:
        with furnished(session, environment):
            log = provision(host.target, environment, private_dir=tmp_path / "private", timeout_s=240)
        assert not (host.home / INDEX_LOGINS).exists(), "nobody needs it any more"
        assert SECRET not in log.read_text()
        python = env_python(environment.fingerprint)
        return session.run(f"{python} -c 'import mine; print(mine.version)'", timeout_s=60).stdout.strip()


def test_a_wheel_in_the_project_travels_and_is_known_by_its_content(
    host: Host, wheels: WheelMaker, project: Path, tmp_path: Path
) -> None:
    (project / "requirements.txt").write_text("./wheels/mine-1.0-py3-none-any.whl\n")
    here = project / "wheels" / "mine-1.0-py3-none-any.whl"
    wheels("mine", "1.0")
    (tmp_path / "wheels" / here.name).rename(here)
    environment = made(project, tmp_path)
    (wheel,) = environment.wheels
    assert wheel.path == str(here)
    assert any(wheel.sha256 in line for line in environment.requirements)
    assert not any(str(tmp_path) in line for line in environment.requirements), "another computer has it elsewhere"
    assert made(project, tmp_path) == environment, "from the cache"
    assert build(host, environment, tmp_path) == "1.0"

    wheels("mine", "1.0", needs=("joblib",))
    (tmp_path / "wheels" / here.name).rename(here)
    assert made(project, tmp_path).fingerprint != environment.fingerprint, "the name is the same, the content is not"


def test_a_wheel_that_is_not_there_is_named(project: Path, wheels: WheelMaker, tmp_path: Path) -> None:
    (project / "requirements.txt").write_text("./wheels/mine-1.0-py3-none-any.whl\n")
    with pytest.raises(UsageError, match=r"mine-1\.0"):
        made(project, tmp_path)


def test_a_folder_of_packages_is_refused_with_what_to_write(project: Path, tmp_path: Path) -> None:
    (project / "requirements.txt").write_text("--find-links ./wheels\nmine\n")
    with pytest.raises(UsageError, match=r"looks for packages in \./wheels"):
        made(project, tmp_path)


@dataclass(frozen=True)
class Index:
    url: str
    refused: list[str]  # paths that somebody without the password asked for


@pytest.fixture
def index(wheels: WheelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A private index with the wheels that were made, for one who has the password."""
    wheels("mine", "2.0")
    refused: list[str] = []
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                refused.append(self.path)
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            parts = self.path.strip("/").split("/")
            if parts[0] == "simple":
                links = [path.name for path in tmp_path.glob("wheels/*.whl") if path.name.startswith(f"{parts[1]}-")]
                page = "".join(f'<a href="/{name}">{name}</a>' for name in links).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
                return
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "wheels")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    (tmp_path / "wheels" / "uv.toml").write_text("")  # the fixture's: no index at all
    monkeypatch.setenv("HOME", str(tmp_path))
    yield Index(f"http://127.0.0.1:{server.server_address[1]}/simple", refused)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("where", ["the variable", "netrc", "the requirements file"])
def test_a_private_index_is_asked_with_credentials_that_are_written_nowhere(
    host: Host, index: Index, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    index_url: str | None = index.url
    requirements = "mine\n"
    if where == "the variable":
        monkeypatch.setenv(VARIABLE, f"me:{SECRET}")
    elif where == "netrc":
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    else:
        requirements += f"--index-url {index.url.replace('//', f'//me:{SECRET}@')}\n"
        index_url = None
    (project / "requirements.txt").write_text(requirements)
    environment = made(project, tmp_path, index_url)
    assert SECRET not in repr(environment)
    assert SECRET not in json.dumps(environment.requirements)
    assert f"--index-url {index.url}" in environment.requirements
    if where == "the variable":
        assert build(host, environment, tmp_path) == "2.0"
    else:  # it is the same file on the unit, and Ansible does the same with it
        with Session.open(host.target, timeout_s=60) as session, furnished(session, environment):
            assert SECRET in (host.home / INDEX_LOGINS).read_text()
        assert not (host.home / INDEX_LOGINS).exists()
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written
    assert not any(SECRET in path.read_text() for path in written)
    assert not any(SECRET.encode() in path.read_bytes() for path in host.home.rglob(".ready"))


def test_a_build_takes_credentials_with_it_whatever_has_become_of_who_brought_them(
    host: Host, index: Index, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"me:{SECRET}")
    (project / "requirements.txt").write_text("mine\n")
    environment = made(project, tmp_path, index.url)
    brought = host.home / INDEX_LOGINS
    brought.parent.mkdir()
    for end in ("once it has built", "where it is there already"):
        brought.write_text(environment.logins)  # by one who never comes back
        provision(host.target, environment, private_dir=tmp_path / "private", timeout_s=240)
        assert not list(brought.parent.rglob("netrc*")), end


def test_without_credentials_the_index_refuses_and_it_says_so(index: Index, project: Path, tmp_path: Path) -> None:
    (project / "requirements.txt").write_text("mine\n")
    with pytest.raises(UsageError, match="does not resolve"):
        made(project, tmp_path, index.url)
    assert index.refused


def test_a_password_that_is_shipped_in_a_requirements_file_is_warned_of(project: Path, tmp_path: Path) -> None:
    def said(login: str) -> list[Event]:
        (project / "more.txt").write_text(f"--index-url https://{login}@packages.example.com/simple\n")
        events: list[Event] = []
        inspect(Job(project / "job.py"), Settings(), Ledger(tmp_path), events.append, project)
        return events

    (project / "requirements.txt").write_text("-r more.txt\n")
    (note,) = said(f"me:{SECRET}")
    assert isinstance(note, Note)
    assert note.level == "warning"
    assert note.text.startswith("more.txt is shipped with the credentials in it")
    assert SECRET not in note.text
    assert said("me:${TOKEN}") == []
