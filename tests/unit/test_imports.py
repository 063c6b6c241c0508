"""Reading a script: which modules it needs, which of them are the project's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core.errors import UsageError
from cloudrun.plan.imports import ImportScan, parse, scan_imports, script_block


def scan(script: str, files: Mapping[str, str]) -> ImportScan:
    return scan_imports(script, lambda path: files[path].encode() if path in files else None)


def names(source: str) -> list[str]:
    return [module.name for module in scan("job.py", {"job.py": source}).third_party]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy", ["numpy"]),
        ("import numpy as np, pandas.io.json", ["numpy", "pandas.io.json"]),
        ("from sklearn.svm import SVC, LinearSVC", ["sklearn.svm.LinearSVC", "sklearn.svm.SVC"]),
        ("from torch import *", ["torch"]),
        ("import os, sys, json\nfrom pathlib import Path", []),
        ("import importlib\nimportlib.import_module('yaml')", ["yaml"]),
        ("__import__('yaml', globals())", ["yaml"]),
        ("import_module(name)\n__import__('.relative')", []),
        ("from . import sibling\nfrom .. import cousin", []),  # a script has no package: it fails there as it does here
        ("if True:\n    while x:\n        with y:\n            import yaml", ["yaml"]),
        ("class A:\n    import yaml", ["yaml"]),
        ("x = '\\d'\nimport yaml", ["yaml"]),
    ],
)
def test_third_party_modules_are_found(source: str, expected: list[str]) -> None:
    assert names(source) == expected


@pytest.mark.parametrize(
    ("source", "guarded"),
    [
        ("try:\n    import a\nexcept ImportError:\n    pass", True),
        ("try:\n    import a\nexcept (ValueError, ModuleNotFoundError):\n    pass", True),
        ("try:\n    x()\nexcept ImportError:\n    import a", True),
        ("try:\n    import a\nexcept:\n    pass", True),
        ("try:\n    import a\nexcept* ImportError:\n    pass", True),
        ("try:\n    import a\nexcept ValueError:\n    pass", False),
        ("def f():\n    import a", True),
        ("async def f():\n    import a", True),
        ("def f():\n    import a\nimport a", False),
        ("import a\ndef f():\n    import a", False),
    ],
)
def test_an_import_the_script_can_do_without_is_marked(source: str, guarded: bool) -> None:
    (module,) = scan("job.py", {"job.py": source}).third_party
    assert module.guarded is guarded


def test_imports_for_type_checkers_are_never_run_and_not_needed() -> None:
    source = "import typing\nif typing.TYPE_CHECKING:\n    import pandas\nelse:\n    import polars"
    assert names(source) == ["polars"]


def test_local_modules_are_followed_and_not_third_party() -> None:
    files = {
        "train/job.py": "import helpers\nfrom lib.deep import core\nimport shared",
        "train/helpers.py": "import numpy",
        "train/lib/__init__.py": "from . import near",
        "train/lib/near.py": "from .deep.core import x\nfrom ..outside import y",
        "train/lib/deep/core.py": "import scipy.stats",  # a folder without __init__.py is a namespace package
        "shared.py": "import joblib",
        "unused.py": "import torch",
    }
    found = scan("train/job.py", files)
    assert [module.name for module in found.third_party] == ["joblib", "numpy", "scipy.stats"]
    assert found.local_files == (
        "shared.py",
        "train/helpers.py",
        "train/job.py",
        "train/lib/__init__.py",
        "train/lib/deep/core.py",
        "train/lib/near.py",
    )
    assert found.search_path == ("",)


def test_a_project_in_src_is_found_and_its_folder_told() -> None:
    found = scan("job.py", {"job.py": "import mine.model", "src/mine/__init__.py": "", "src/mine/model.py": ""})
    assert found.third_party == ()
    assert found.local_files == ("job.py", "src/mine/__init__.py", "src/mine/model.py")
    assert found.search_path == ("src",)


def test_a_module_beside_the_script_hides_the_standard_library_but_one_at_the_root_does_not() -> None:
    files = {"a/job.py": "import random, types_ext, sys", "a/random.py": "", "a/sys.py": "", "json.py": "import numpy"}
    found = scan("a/job.py", files)
    assert found.local_files == ("a/job.py", "a/random.py")
    assert [module.name for module in found.third_party] == ["types_ext"]
    assert scan("a/job.py", {"a/job.py": "import json", "json.py": ""}).local_files == ("a/job.py",)


def test_what_only_a_guarded_module_imports_is_guarded_until_something_else_needs_it() -> None:
    files = {
        "job.py": "try:\n    import plots\nexcept ImportError:\n    pass",
        "plots.py": "import matplotlib",
        "other.py": "import plots",
    }
    assert [module.guarded for module in scan("job.py", files).third_party] == [True]
    files["job.py"] += "\nimport other"
    assert [module.guarded for module in scan("job.py", files).third_party] == [False]


def test_modules_that_import_each_other_end() -> None:
    assert scan("a.py", {"a.py": "import b", "b.py": "import a"}).local_files == ("a.py", "b.py")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"x = 1\nthis is no python\n", "job.py:2: not valid Python"),
        (b"\x7fELF\x02\x00\x00", "job.py"),
        (b"x = 1\x00\n", "job.py"),
        (b"# -*- coding: nonsense -*-\n", "job.py"),
        (b"x = '\xff'\n", "job.py"),
        (b"(" * 5000, "job.py"),
        (b"x = " + b"-" * 200_000 + b"1", "job.py"),
    ],
)
def test_what_is_not_python_is_refused_with_its_place(source: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(source, "job.py")


def test_a_broken_local_module_is_named() -> None:
    with pytest.raises(UsageError, match=r"lib\.py:1"):
        scan("job.py", {"job.py": "import lib", "lib.py": "def"})


def test_a_very_long_expression_is_read() -> None:
    assert names("x = " + " + ".join(["1"] * 900) + "\nimport yaml") == ["yaml"]


@given(
    st.lists(
        st.sampled_from(["import a", "from a import b", "import json", "try:\n    import c\nexcept ImportError: pass"])
    )
)
def test_every_third_party_module_has_the_line_it_is_on(statements: list[str]) -> None:
    source = "\n".join(statements)
    lines = source.splitlines()
    for module in scan("job.py", {"job.py": source}).third_party:
        assert module.name.partition(".")[0] not in sys.stdlib_module_names
        assert "import" in lines[module.line - 1]


# -- PEP 723 ---------------------------------------------------------------------------------------------------------

BLOCK = """#!/usr/bin/env python
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "numpy>=2",
#   "rich", # for people
# ]
# ///
import numpy
"""


def test_a_script_block_is_read() -> None:
    for text in (BLOCK, BLOCK.replace("\n", "\r\n"), "\ufeff" + BLOCK):
        block = script_block(text.encode(), "job.py")
        assert block is not None
        assert block.dependencies == ("numpy>=2", "rich")
        assert block.requires_python == ">=3.11"


@pytest.mark.parametrize(
    "text", ["", "import numpy", "# /// other\n# x = 1\n# ///\n", "# /// script\n# never closed\n"]
)
def test_a_script_without_a_block_has_none(text: str) -> None:
    assert script_block(text.encode(), "job.py") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# /// script\n# dependencies = [\n# ///\n", "job.py:1: .* not TOML"),
        ("\n# /// script\n# dependencies = 'numpy'\n# ///\n", "job.py:2: .*list of strings"),
        ("# /// script\n# requires-python = 3\n# ///\n", "must be a string"),
        (BLOCK + BLOCK, "job.py:11: a second"),
    ],
)
def test_a_malformed_block_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        script_block(text.encode(), "job.py")
