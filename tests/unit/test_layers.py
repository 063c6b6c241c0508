"""The layers of the design, held against every import in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cloudrun"
ADAPTERS = {"aws", "ssh", "provisioning", "ledger"}
FACES = {"cli", "report", "serving"}
STORIES = [
    "units",
    "setup",
    "runs",
    "pools",
    "grids",
    "functions",
]  # folders of services, each told with the ones before it
SERVICES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "wiring"} | set(STORIES)

# What each layer may import; a layer may always import itself.
ALLOWED = {
    "core": set(),
    "agent": {"core"},
    "plan": {"core"},
    **{adapter: {"core", "plan"} for adapter in ADAPTERS},
    "ssh": {"core", "plan", "agent"},  # it packs the agent that it talks to
    "sandbox": {"core", "plan", "__init__"},  # the package's own folder is shown to its machines
    "wiring": {"core", "plan", "sandbox"} | ADAPTERS,
    "services": {"core", "plan", "wiring"} | ADAPTERS,
    **{face: {"core", "plan", "services", "ledger", "sandbox", "__init__"} for face in FACES},
    "cli": {"core", "plan", "services", "ledger", "sandbox", "__init__", "report"},  # it types out the other faces too
    "__init__": {"core", "services", "ledger"},
    "__main__": {"cli"},
}
LIBRARIES = {
    "boto3": {"aws"},
    "botocore": {"aws"},
    "paramiko": {"ssh"},
    "ansible_runner": {"provisioning"},
    "moto": {"sandbox"},
    "asyncssh": {"sandbox"},
    "sqlite3": {"ledger"},
    "cyclopts": {"cli"},
}


def layer_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__"
    return "services" if parts[1] in SERVICES else parts[1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                folder = PACKAGE.parent / Path(*whole.split("."))
                is_module = folder.with_suffix(".py").exists() or (folder / "__init__.py").exists()
                yield node.lineno, whole if is_module else str(node.module)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_never_up_or_sideways(path: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    layer = layer_of(name)
    for line, target in imports(path):
        top = target.split(".")[0]
        if top == "cloudrun":
            other = layer_of(target)
            assert other == layer or other in ALLOWED[layer], f"{path}:{line}: {layer} imports {other}"
        assert layer in LIBRARIES.get(top, {layer}), f"{path}:{line}: only {LIBRARIES.get(top)} may import {top}"


@pytest.mark.parametrize("story", STORIES)
def test_a_folder_of_services_knows_none_that_comes_after_it(story: str) -> None:
    later = set(STORIES[STORIES.index(story) + 1 :])
    for path in (PACKAGE / story).rglob("*.py"):
        for line, target in imports(path):
            parts = target.split(".")
            assert parts[0] != "cloudrun" or parts[1] not in later, f"{path}:{line}: {story} imports {target}"


def test_the_agent_takes_only_what_travels_with_it_from_core() -> None:
    for path in (PACKAGE / "agent").rglob("*.py"):
        for line, target in imports(path):
            if target.startswith("cloudrun.") and not target.startswith("cloudrun.agent"):
                assert target in {"cloudrun.core.rundir", "cloudrun.core.wire"}, f"{path}:{line} imports {target}"


def test_the_test_above_would_notice_a_wrong_edge(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from cloudrun.aws import images\n")
    assert list(imports(wrong)) == [(2, "cloudrun.aws.images")]
    assert "aws" not in ALLOWED["plan"]


def test_no_code_outside_the_sandbox_and_wiring_asks_for_the_sandbox() -> None:
    for path in modules():
        if {"sandbox", "cli", "config.py", "wiring.py"} & set(path.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If):
                assert "sandbox" not in ast.unparse(node.test), f"{path}:{node.lineno}"
