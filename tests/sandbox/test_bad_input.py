"""What bad input gets: one clear message, the right exit code, no traceback, and nothing launched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sandbox.conftest import Project


def refused(project: Project, *words: str, code: int = 2) -> str:
    """What `cloudrun submit` says on stderr; fails where anything was launched."""
    done = project.cloudrun_here("submit", *words)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "next:" in done.stderr
    assert done.stdout == ""
    assert project.ledger.launches() == []
    return done.stderr


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({}, ["missing.py"], "there is no script"),
        ({"folder/train.py": ""}, ["folder"], "is a folder"),
        ({"bad.py": "def f(:\n"}, ["bad.py"], "bad.py"),
        ({"image.py": "\x89PNG\x00\x01"}, ["image.py"], "image.py"),
        ({"a.py": ""}, ["a.py", "--set", "alpha"], "alpha"),
        ({"a.py": ""}, ["a.py", "--set", "=1"], "parameter"),
        ({"a.py": ""}, ["a.py", "--instance-type", "m7i.lrage"], "m7i.large"),
        ({"a.py": ""}, ["a.py", "--region", "mars-east-1"], "mars-east-1"),
        ({"a.py": ""}, ["a.py", "--image", "ami-00000000000000000"], "ami-00000000000000000"),
        ({"a.py": ""}, ["a.py", "--provider", "azure"], "azure"),
        ({"a.py": ""}, ["a.py", "--deadline", "soon"], "soon"),
        ({"a.py": ""}, ["a.py", "--no-such-option"], "no-such-option"),
        ({"a.py": "import not_a_module_anywhere"}, ["a.py"], "not_a_module_anywhere"),
        ({"a.py": "# /// script\n# dependencies = ['joblib==99999']\n# ///\n"}, ["a.py"], "99999"),
        ({"a.py": "# /// script\n# dependencies = [\n# ///\n"}, ["a.py"], "a.py"),
        ({"a.py": "", "requirements.txt": "joblib=1\n"}, ["a.py"], "requirements.txt"),
        ({"a.py": "", "cloudrun.toml": "region = \n"}, ["a.py"], "cloudrun.toml:1"),
        ({"a.py": "", "cloudrun.toml": "\nregoin = 'x'\n"}, ["a.py"], "cloudrun.toml:2"),
        ({"a.py": "", "cloudrun.toml": "volume_gib = 'big'\n"}, ["a.py"], "cloudrun.toml:1"),
    ],
)
def test_it_is_refused_before_launching(
    project: Project, files: dict[str, str], words: list[str], message: str
) -> None:
    for name, text in files.items():
        project.write(name, text)
    assert message in refused(project, *words)


def test_without_an_ssh_client_it_says_what_to_install(project: Project, tmp_path: Path) -> None:
    project.write("a.py", "print(1)")
    # Every program but ssh is found.
    links = tmp_path / "bin"
    links.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            if program.name not in {"ssh", "scp", "sftp"} and not (links / program.name).exists():
                (links / program.name).symlink_to(program)
    project.env["PATH"] = str(links)
    assert "openssh-client" in refused(project, "a.py", code=2)


def test_aws_without_credentials_or_network_is_an_error_in_seconds(project: Project) -> None:
    project.write("a.py", "print(1)")
    project.env |= {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_DEFAULT_REGION": "eu-central-1",
        # A proxy that refuses: what a laptop without a network looks like, wherever this test runs.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = project.cloudrun_here("submit", "a.py", "--provider", "aws")
    assert done.returncode in (1, 4), done.stderr
    assert "next:" in done.stderr
    assert "Traceback" not in done.stderr


def test_aws_with_no_credentials_at_all_is_exit_code_4(project: Project) -> None:
    project.write("a.py", "print(1)")
    project.env |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    assert "credentials" in refused(project, "a.py", "--provider", "aws", code=4).lower()
