"""The environment of a script, resolved by the real uv or read from what is really installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.core.errors import ProvisionError, UsageError
from cloudrun.core.records import Environment
from cloudrun.plan.fingerprint import environment_fingerprint
from cloudrun.provisioning.environment import client_python, environment_for

Maker = Callable[..., Environment]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    return root


@pytest.fixture
def make(project: Path, tmp_path: Path) -> Maker:
    """Writes `job.py` and makes its environment."""

    def make(source: str, *, architecture: str = "x86_64", python: str | None = None) -> Environment:
        script = project / "job.py"
        script.write_text(source)
        return environment_for(script, project, architecture=architecture, python=python, cache_dir=tmp_path / "cache")

    return make


def block(*dependencies: str, python: str = ">=3.9") -> str:
    return f'# /// script\n# requires-python = "{python}"\n# dependencies = {list(dependencies)!r}\n# ///\n'


def test_imports_give_the_installed_versions_and_what_they_need(make: Maker) -> None:
    environment = make(
        "import json\nfrom sklearn.svm import SVC\ntry:\n    import nobody_has_this\nexcept ImportError: ...\n"
    )
    pinned = dict(line.split("==") for line in environment.requirements)
    assert {"joblib", "numpy", "scikit-learn", "scipy", "threadpoolctl"} <= pinned.keys()
    assert all(importlib.metadata.version(name) == version for name, version in pinned.items())
    assert not pinned.keys() & {"boto3", "ansible-core", "cloudrun"}
    assert environment.source == "the imports of job.py"
    assert environment.python == client_python()
    assert environment.fingerprint == environment_fingerprint(client_python(), "x86_64", environment.requirements)


def test_a_script_without_third_party_imports_gets_joblib_alone(make: Maker) -> None:
    names = {line.partition("==")[0] for line in make("print('hello')\n").requirements}
    assert "joblib" in names
    assert "numpy" not in names


def test_a_module_that_nobody_has_is_refused_with_its_line(make: Maker) -> None:
    with pytest.raises(UsageError, match=r"job\.py:2 imports nobody_has_this") as caught:
        make("import sklearn\nimport nobody_has_this.sub\n")
    assert "pip install nobody_has_this" in caught.value.next_step


def test_another_architecture_is_another_environment(make: Maker) -> None:
    assert make("import numpy\n").fingerprint != make("import numpy\n", architecture="arm64").fingerprint
    with pytest.raises(UsageError, match="riscv"):
        make("", architecture="riscv64")


def test_a_script_block_is_resolved_with_what_it_needs(make: Maker, wheels: Callable[..., None]) -> None:
    wheels(
        "alpha", "1.0", needs=("beta>=2", "gamma ; sys_platform == 'win32'", "delta ; platform_machine == 'aarch64'")
    )
    wheels("alpha", "2.0", needs=("beta>=2",))
    wheels("beta", "2.5")
    wheels("delta", "1.0")
    environment = make(block("alpha<2"))
    assert environment.requirements == ("alpha==1.0", "beta==2.5", "joblib==1.4.0")
    assert environment.source == "the script block of job.py"
    assert "delta==1.0" in make(block("alpha<2"), architecture="arm64").requirements


@pytest.mark.parametrize(
    "line",
    [
        '# [[tool.uv.index]]\n# url = "https://me:p@hunter2@packages.example.com/simple"\n',
        '# [tool.uv]\n# extra-index-url = ["https://hunter2@packages.example.com/simple"]\n',
    ],
)
def test_credentials_in_a_script_block_are_refused_since_the_script_is_kept(make: Maker, line: str) -> None:
    with pytest.raises(UsageError, match=r"script block of job\.py") as caught:
        make(block().removesuffix("# ///\n") + line + "# ///\n")
    assert "~/.netrc" in caught.value.next_step
    assert "hunter2" not in str(caught.value) + caught.value.next_step


def test_versions_installed_here_are_kept_where_the_block_leaves_them_open(
    make: Maker, wheels: Callable[..., None]
) -> None:
    here = importlib.metadata.version("joblib")
    wheels("joblib", here)
    wheels("joblib", "99.0")
    assert f"joblib=={here}" in make(block()).requirements
    assert "joblib==99.0" in make(block("joblib>=99")).requirements


def test_the_block_decides_which_python(make: Maker, wheels: Callable[..., None]) -> None:
    other = "3.13" if client_python() != "3.13" else "3.12"
    wheels("alpha", "1.0", python=f"=={other}.*")
    environment = make(block("alpha", python=f"=={other}.*"))
    assert environment.python == other
    assert "alpha==1.0" in environment.requirements
    with pytest.raises(UsageError, match=f"leaves out Python {client_python()}"):
        make(block("alpha", python=f"=={other}.*"), python=client_python())


@pytest.mark.parametrize(
    ("dependency", "words"),
    [
        ("nowhere", "nowhere"),
        ("alpha>=9", "alpha"),
        ("alpha>=1,<1", "alpha"),
        ("alpha=!1", "alpha"),
        ("alpha @ file:///nonexistent/alpha-1.0-py3-none-any.whl", "nonexistent"),
    ],
)
def test_what_does_not_resolve_is_refused_in_uvs_words(
    make: Maker, wheels: Callable[..., None], dependency: str, words: str
) -> None:
    wheels("alpha", "1.0")
    with pytest.raises(UsageError, match=words) as caught:
        make(block(dependency))
    assert "\n" not in str(caught.value)


def test_an_index_that_cannot_be_reached_is_not_the_users_mistake(
    make: Maker, wheels: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_CONFIG_FILE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ProvisionError, match="could not be resolved"):
        make(block("numpy"))


def test_a_requirements_file_at_the_root_is_used_with_what_it_includes(
    make: Maker, project: Path, wheels: Callable[..., None]
) -> None:
    wheels("alpha", "1.0")
    wheels("alpha", "2.0")
    wheels("beta", "1.0")
    (project / "requirements.txt").write_text("-r base.txt\nbeta\n")
    (project / "base.txt").write_text("alpha<2\n")
    environment = make("import something_that_is_not_asked_about\n")
    assert environment.requirements == ("alpha==1.0", "beta==1.0", "joblib==1.4.0")
    assert environment.source == "requirements.txt"
    (project / "base.txt").write_text("alpha\n")
    assert "alpha==2.0" in make("").requirements


def test_a_folder_of_this_computer_in_a_requirements_file_is_refused(
    make: Maker, project: Path, wheels: Callable[..., None]
) -> None:
    wheels("setuptools", "80.0")
    (project / "mine").mkdir()
    (project / "mine" / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\n[build-system]\nrequires = []\nbuild-backend = "none"\n'
    )
    for line in ("-e ./mine", "./mine", f"mine @ file://{project}/mine"):
        (project / "requirements.txt").write_text(line + "\n")
        with pytest.raises(UsageError, match="mine lies on this computer"):
            make("")


def test_a_uv_lock_is_used_without_the_project_itself(make: Maker, project: Path, wheels: Callable[..., None]) -> None:
    from cloudrun.provisioning.uv import run_uv

    wheels("alpha", "1.0")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\n'
        """dependencies = ["alpha", "beta ; sys_platform == 'win32'"]\n"""
    )
    wheels("beta", "1.0")
    run_uv(["lock", "--quiet", "--no-python-downloads"], root=project, named="uv.lock")
    wheels("alpha", "2.0")  # what is locked stays locked
    assert make("import alpha\n").requirements == ("alpha==1.0", "joblib==1.4.0")


def test_a_pylock_is_used(make: Maker, project: Path, wheels: Callable[..., None]) -> None:
    wheels("alpha", "1.0")
    wheels("alpha", "2.0")
    (project / "pylock.toml").write_text('lock-version = "1.0"\n[[packages]]\nname = "alpha"\nversion = "1.0"\n')
    assert make("import alpha\n").requirements == ("alpha==1.0", "joblib==1.4.0")


def test_a_resolution_is_kept_until_its_inputs_change(make: Maker, tmp_path: Path, wheels: Callable[..., None]) -> None:
    wheels("alpha", "1.0")
    first = make(block("alpha"))
    wheels("alpha", "2.0")
    assert make(block("alpha")) == first
    assert make(block("alpha>=1.0")).requirements != first.requirements
    for kept in (tmp_path / "cache" / "environments").iterdir():
        kept.write_text("not JSON")
    assert "alpha==2.0" in make(block("alpha")).requirements


def test_a_script_that_cannot_be_is_refused_before_anything_else(project: Path, tmp_path: Path, make: Maker) -> None:
    def refused(script: Path, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            environment_for(script, project, architecture="x86_64", cache_dir=tmp_path / "cache")

    refused(project / "absent.py", "does not exist")
    refused(project, "does not exist or is not a file")
    (tmp_path / "outside.py").touch()
    refused(tmp_path / "outside.py", "not below the project root")
    with pytest.raises(UsageError, match=r"job\.py:3: not valid Python"):
        make("\n\ndef\n")
    with pytest.raises(UsageError, match="not valid Python"):
        make(block() + "def\n")
