"""Which Python a unit gets, and which exact versions, from what is installed: no process and no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.provisioning import locks
from cloudrun.provisioning.environment import choose_python, client_python
from cloudrun.provisioning.installed import Installed, unit_markers

MARKERS = unit_markers("3.11", "x86_64")


def install(
    folder: Path, name: str, version: str, files: dict[str, str] | None = None, *, needs: tuple[str, ...] = ()
) -> Path:
    """A distribution as an installer leaves it; returns its `.dist-info`."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in needs]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "RECORD").write_text("".join(f"{path},sha256=x,1\n" for path in (files or {f"{name}/__init__.py": ""})))
    return info


# -- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "requires", "expected"),
    [
        (None, None, client_python()),
        (None, ">=3.9", client_python()),
        (None, f"=={client_python()}.*", client_python()),
        (None, f">={client_python()}.4", client_python()),
        (None, "==3.10.*", "3.10"),
        (None, ">=3.14", "3.14"),
        ("3.12", None, "3.12"),
        ("3.12", ">=3.11", "3.12"),
    ],
)
def test_the_unit_has_the_clients_python_unless_it_may_not(
    given: str | None, requires: str | None, expected: str
) -> None:
    assert choose_python(given, requires, "the script block of job.py") == expected


@pytest.mark.parametrize(
    ("given", "requires", "words"),
    [
        (None, ">=4", "leaves out any Python"),
        ("3.11", ">=3.12", "leaves out Python 3.11"),
        (None, "newest", "not a version range"),
        ("python3", None, "not a minor version"),
        ("3.11.4", None, "not a minor version"),
    ],
)
def test_a_python_that_cannot_be_is_refused(given: str | None, requires: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        choose_python(given, requires, "job.py")


# -- what is installed -----------------------------------------------------------------------------------------------


def test_a_module_is_found_in_the_distribution_that_brings_it(tmp_path: Path) -> None:
    install(tmp_path, "scikit-learn", "1.6.0", {"sklearn/__init__.py": "", "sklearn/svm/__init__.py": ""})
    install(tmp_path, "six", "1.17.0", {"six.py": "", "six-1.17.0.dist-info/METADATA": ""})
    top_level = install(tmp_path, "PyYAML", "6.0", {"elsewhere/x.py": ""})
    (top_level / "top_level.txt").write_text("_yaml\nyaml\n")
    found = Installed([str(tmp_path)]).providers(["sklearn.svm.SVC", "six.moves", "yaml", "torch"])
    assert found == {"sklearn.svm.SVC": ("scikit-learn",), "six.moves": ("six",), "yaml": ("pyyaml",), "torch": ()}


def test_a_shared_top_level_name_belongs_to_whoever_has_the_submodule(tmp_path: Path) -> None:
    install(tmp_path, "google-auth", "2.0", {"google/auth/__init__.py": ""})
    install(tmp_path, "google-cloud-storage", "3.0", {"google/cloud/storage/__init__.py": ""})
    install(tmp_path, "protobuf", "5.0", {"google/protobuf/__init__.py": ""})
    installed = Installed([str(tmp_path)])
    assert installed.providers(["google.cloud.storage.Client"]) == {
        "google.cloud.storage.Client": ("google-cloud-storage",)
    }
    assert len(installed.providers(["google"])["google"]) == 3


def test_pins_are_exact_and_follow_what_holds_on_the_unit(tmp_path: Path) -> None:
    install(
        tmp_path,
        "model",
        "1.0",
        needs=(
            "maths>=1",
            "coloured ; sys_platform == 'win32'",
            "fast[speed] ; platform_machine == 'x86_64'",
            "old ; python_version < '3.9'",
            "docs ; extra == 'docs'",
            "not a requirement at all",
        ),
    )
    install(tmp_path, "Maths", "2.4.6")
    install(tmp_path, "fast", "3.0", needs=("jit ; extra == 'speed'", "maths"))
    install(tmp_path, "jit", "0.1rc1")
    pins = Installed([str(tmp_path)]).pins(["model"], MARKERS)
    assert pins.lines == ("fast==3.0", "jit==0.1rc1", "maths==2.4.6", "model==1.0")
    assert pins.missing == ()
    assert "fast==3.0" not in Installed([str(tmp_path)]).pins(["model"], unit_markers("3.11", "arm64")).lines


def test_what_only_a_unit_needs_is_told_as_missing(tmp_path: Path) -> None:
    install(tmp_path, "model", "1.0", needs=("gpu>=2 ; sys_platform == 'linux'",))
    pins = Installed([str(tmp_path)]).pins(["model", "joblib"], MARKERS)
    assert (pins.lines, pins.missing) == (("model==1.0",), ("gpu>=2", "joblib"))


def test_distributions_that_need_each_other_end(tmp_path: Path) -> None:
    install(tmp_path, "a", "1", needs=("b",))
    install(tmp_path, "b", "2", needs=("a",))
    assert Installed([str(tmp_path)]).pins(["a"], MARKERS).lines == ("a==1", "b==2")


def test_a_local_version_label_is_dropped_and_told(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.5.1+cpu")
    pins = Installed([str(tmp_path)]).pins(["torch"], MARKERS)
    assert pins.lines == ("torch==2.5.1",)
    assert pins.notes == ("torch 2.5.1 without its +cpu",)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ({"url": "file:///home/me/mine", "dir_info": {"editable": True}}, "mine is installed in development mode"),
        ({"url": "file:///home/me/mine", "dir_info": {}}, "mine is installed from this computer"),
        ({"url": "file:///tmp/mine-1-py3-none-any.whl", "archive_info": {}}, "mine is installed from this computer"),
    ],
)
def test_what_lies_on_this_computer_is_refused(tmp_path: Path, origin: dict[str, object], words: str) -> None:
    (install(tmp_path, "mine", "1.0") / "direct_url.json").write_text(json.dumps(origin))
    with pytest.raises(UsageError, match=words):
        Installed([str(tmp_path)]).pins(["mine"], MARKERS)


def test_what_came_from_an_address_comes_from_there_again(tmp_path: Path) -> None:
    vcs = {"url": "https://host/tool.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    (install(tmp_path, "tool", "1.0") / "direct_url.json").write_text(json.dumps(vcs))
    archive = {"url": "https://host/other-1.0.tar.gz", "archive_info": {}}
    (install(tmp_path, "other", "1.0") / "direct_url.json").write_text(json.dumps(archive))
    conda = install(tmp_path, "numpy", "2.4.6")
    (conda / "direct_url.json").write_text(json.dumps({"url": "file:///croot/numpy", "dir_info": {}}))
    (conda / "INSTALLER").write_text("conda\n")
    assert Installed([str(tmp_path)]).pins(["tool", "other", "numpy"], MARKERS).lines == (
        "numpy==2.4.6",
        "other @ https://host/other-1.0.tar.gz",
        "tool @ git+https://host/tool.git@abc",
    )


def test_a_half_removed_distribution_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "gone-1.0.dist-info").mkdir()
    assert Installed([str(tmp_path)]).providers(["gone"]) == {"gone": ()}


# -- files at the root -----------------------------------------------------------------------------------------------


def test_a_lock_comes_before_a_requirements_file(tmp_path: Path) -> None:
    assert locks.root_file(tmp_path) is None
    for name in reversed(locks.ROOT_FILES):
        (tmp_path / name).touch()
        assert locks.root_file(tmp_path) == tmp_path / name


def test_a_requirements_file_is_read_with_what_it_includes(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("-r more/base.txt\n--constraint=pins.txt\n-r absent.txt\nnumpy\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("-r ../requirements.txt\n--extra-index-url https://host/simple\n")
    (tmp_path / "pins.txt").write_text("numpy<3\n")
    path = tmp_path / "requirements.txt"
    assert {found.name for found in locks.contents(path)} == {"requirements.txt", "base.txt", "pins.txt"}
    wanted = locks.wanted(path, tmp_path)
    assert wanted.files == (path,)
    assert wanted.index_lines == ("--extra-index-url https://host/simple",)


def test_a_pylock_is_read_package_by_package(tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text("""
lock-version = "1.0"
requires-python = ">=3.11"
[[packages]]
name = "numpy"
version = "2.4.6"
[[packages]]
name = "colorama"
version = "0.4"
marker = "sys_platform == 'win32'"
[[packages]]
name = "tool"
vcs = { type = "git", url = "https://host/tool.git", commit-id = "abc" }
[[packages]]
name = "other"
archive = { url = "https://host/other.tar.gz" }
""")
    assert locks.required_python(path) == ">=3.11"
    assert locks.wanted(path, tmp_path).lines == (
        "numpy==2.4.6",
        "colorama==0.4 ; sys_platform == 'win32'",
        "tool @ git+https://host/tool.git@abc",
        "other @ https://host/other.tar.gz",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[packages", "pylock.toml is not TOML"),
        ("[[packages]]\nname = 'mine'\ndirectory = { path = '.' }", "mine lies on this computer"),
        ("[[packages]]\nname = 'mine'\nversion = '1'\narchive = { path = 'a.whl' }", "mine lies on this computer"),
    ],
)
def test_a_pylock_that_a_unit_cannot_use_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        locks.wanted(path, tmp_path)
