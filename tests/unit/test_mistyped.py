"""Which names of parameters were probably mistyped."""

from __future__ import annotations

import pytest

from cloudrun.plan.mistyped import is_said, meant_parameter

ARGPARSE = 'parser.add_argument("--alpha", type=float)\nparser.add_argument("--learning-rate")\nargs.learning_rate\n'
CLICK = "@click.option('--shuffle/--no-shuffle')\ndef main(shuffle): ...\n"
READS_PARAMS = 'params = json.loads(os.environ["CLOUDRUN_PARAMS"])\nparams["depth"]\nparser.add_argument("--deep")\n'


@pytest.mark.parametrize(
    ("name", "code", "earlier", "meant"),
    [
        ("alhpa", ARGPARSE, (), "alpha"),
        ("Alpha", ARGPARSE, (), "alpha"),
        ("alpha", ARGPARSE, (), ""),
        ("alhpa", ARGPARSE, ("alhpa",), "alpha"),  # an earlier run was mistyped, too
        ("learning_rate", ARGPARSE, (), "learning-rate"),  # argparse takes no underscore for it
        ("shufle", CLICK, (), "shuffle"),
        ("depth", READS_PARAMS, (), ""),
        ("alhpa", "def main(alpha): ...", ("alpha",), "alpha"),  # no options to be read from the code
        ("alhpa", "def main(alpha): ...", (), ""),  # and nobody knows
        ("beta", "def main(alpha, beta): ...", ("betas",), ""),
        ("momentum", ARGPARSE, ("alpha",), ""),  # like nothing that is known: it may be meant
    ],
)
def test_what_was_meant(name: str, code: str, earlier: tuple[str, ...], meant: str) -> None:
    assert meant_parameter(name, code, earlier) == meant


def test_only_a_whole_word_is_said() -> None:
    assert is_said("f1", 'print({"f1": 1})')
    assert not is_said("f1", "f1_macro = buf1")
    assert is_said("f1-score", "'f1-score': 0.3")
