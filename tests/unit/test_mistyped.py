"""Which names of parameters, arguments and scores were probably mistyped."""

from __future__ import annotations

import pytest

from cloudrun.plan.mistyped import argument_doubt, is_no_score, parameter_doubt
from cloudrun.plan.spoken import read

ARGPARSE = """import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--alpha", "-a", type=float)
parser.add_argument("--learning-rate", default=0.1)
parser.add_argument("--depths", nargs="*")
args = parser.parse_args()
Tree(depth=max(args.depths), rate=args.learning_rate)
"""
ONE_EACH = ARGPARSE.replace('"--depths", nargs="*"', '"--verbose", action=argparse.BooleanOptionalAction')
POSITIONAL = ARGPARSE.replace("args =", "parser.add_argument('data')\nargs =")
SOME = 'add("--alpha", type=float)\nadd("--learning-rate")\nargs.learning_rate\n'  # by whoever it may be
CLICK = "@click.option('--shuffle/--no-shuffle')\ndef main(shuffle): ...\n"
TYPER = "import typer\ndef main(learning_rate: float = 0.1, epochs: int = 3, shuffle: bool = True): ...\n"
READS_PARAMS = 'params = json.loads(os.environ["CLOUDRUN_PARAMS"])\nparams["depth"]\nadd("--deep")\n'
KNOWN = "alpha, learning-rate, depths"
NO_Q = f"has no option --Q: its options are {KNOWN}"
SET_Q = "takes no argument Q=1: as a parameter it is --set Q=1"
NO_Q1 = NO_Q.replace("depths", "verbose")
EMPTY = "import argparse\nargparse.ArgumentParser().parse_args()"
NOTHING = "and its earlier runs have nothing called"


@pytest.mark.parametrize(
    ("name", "code", "earlier", "doubt"),
    [
        ("alpha", ARGPARSE, (), ""),
        ("learning-rate", ARGPARSE, (), ""),
        ("al", ARGPARSE, (), ""),  # argparse takes it for --alpha
        ("alhpa", ARGPARSE, (), "has no option --alhpa: did you mean alpha?"),
        ("Alpha", ARGPARSE, (), "has no option --Alpha: did you mean alpha?"),
        ("learning_rate", ARGPARSE, (), "has no option --learning_rate: did you mean learning-rate?"),
        ("rate", ARGPARSE, ("rate",), f"has no option --rate: its options are {KNOWN}"),  # though the word is there
        ("momentum", ARGPARSE, (), f"has no option --momentum: its options are {KNOWN}"),
        ("momentum", EMPTY, (), "has no option --momentum, nor any other"),
        ("alpha", SOME, (), ""),
        ("alhpa", SOME, ("alhpa",), f"{NOTHING} 'alhpa': did you mean alpha?"),
        ("momentum", SOME, ("alpha",), f"{NOTHING} 'momentum': they have alpha"),
        ("momentum", SOME, ("momentum",), ""),
        ("shufle", CLICK, (), f"{NOTHING} 'shufle': did you mean shuffle?"),
        ("no-shuffle", CLICK, (), ""),
        ("optim.lr", "@click.option('--optim.lr')", (), ""),
        ("learning-rate", TYPER, ("epochs",), ""),  # it makes that of `learning_rate`
        ("no-shuffle", TYPER, ("epochs",), ""),
        ("depth", READS_PARAMS, (), ""),
        ("alhpa", "def main(alpha): ...", ("alpha",), f"{NOTHING} 'alhpa': did you mean alpha?"),
        ("alhpa", "def main(alpha): ...", (), ""),  # and nobody knows
        ("beta", "def main(alpha, beta): ...", ("betas",), ""),
    ],
)  # fmt: skip
def test_a_parameter_that_nothing_knows(name: str, code: str, earlier: tuple[str, ...], doubt: str) -> None:
    assert parameter_doubt(name, read([code]), earlier) == doubt


@pytest.mark.parametrize(
    "more",
    [
        "import sys\nprint(sys.argv)",
        "json.loads(os.environ['CLOUDRUN_PARAMS'])",
        "args, others = parser.parse_known_args()",
        "for name in NAMES:\n    parser.add_argument('--' + name)",
        "parser.add_argument(*flags)",
        "pl.Trainer.add_argparse_args(parser)",
        "pl.Trainer.add_argparse_args(parent_parser=parser)",
        "theirs = parser.add_argument_group('theirs')\nlightning.extend(theirs)",
        "lightning.extend(parser.add_mutually_exclusive_group())",
        "option = parser.add_argument\noption('--rate')",
        "list(map(parser.add_argument, NAMES))",
        "LightningCLI(Model)",
        "lightning.extend(parent=0, *[parser]), lightning.extend(parser)",
        "argparse.ArgumentParser(parents=[theirs])",
        "parser.add_argument('rest', nargs=argparse.REMAINDER)",
        "import typer",
        "from x import fire",
        "parser.parse_args(['--alpha', '1'])",
        "def broken(:",
    ],
)
def test_where_something_else_may_read_the_arguments_a_word_of_the_code_is_enough(more: str) -> None:
    code = read([ARGPARSE, more])
    assert code.takes is None
    assert parameter_doubt("rate", code, ()) == ""
    assert argument_doubt(["--momentum", "C=1"], code, ()) == ""


def test_a_function_of_the_projects_own_may_add_options() -> None:
    here = read([ARGPARSE + "common(parser)", "def common(parser):\n    parser.add_argument('--seed')\n"])
    assert here.takes == ("alpha", "learning-rate", "depths", "seed")
    assert parameter_doubt("seed", here, ()) == ""


@pytest.mark.parametrize(
    ("arguments", "code", "earlier", "doubt"),
    [
        (["--alpha", "1", "-a", "2"], ARGPARSE, (), ""),
        (["--alhpa=1"], ARGPARSE, (), "has no option --alhpa: did you mean alpha?"),
        (["--", "--alhpa"], ARGPARSE, (), ""),
        (["alpha=1"], ARGPARSE, (), "takes no argument alpha=1: as a parameter it is --set alpha=1"),
        (["Q=1"], ARGPARSE, (), f"{SET_Q}, but it {NO_Q}"),
        (["--depths", "a=1"], ARGPARSE, (), ""),  # what an option takes is its own
        (["--depths", "a=1", "b=2"], ARGPARSE, (), ""),
        (["--alpha", "1", "Q=1"], ONE_EACH, (), f"{SET_Q}, but it {NO_Q1}"),
        (["--no-verb", "--learn", "1"], ONE_EACH, (), ""),
        (["--al", "1"], ARGPARSE + ARGPARSE, (), ""),  # the same option of two parsers is one
        (["alpha=1"], POSITIONAL, (), ""),
        (["alpha=1"], SOME, (), "gets alpha=1 as an argument: as a parameter it is --set alpha=1"),
        (["C=1"], "main()", ("C",), "gets C=1 as an argument: as a parameter it is --set C=1"),
        (["C=1"], "main()", (), ""),
        (["C=1"], "import sys\nmain(sys.argv)", ("C",), ""),
        (["data/C=1.csv"], ARGPARSE, (), ""),
    ],
)  # fmt: skip
def test_an_argument_that_was_meant_to_be_something_else(
    arguments: list[str], code: str, earlier: tuple[str, ...], doubt: str
) -> None:
    assert argument_doubt(arguments, read([code]), earlier) == doubt


SCORES = "print(json.dumps({'accuracy': 1, 'mean_loss': 2}))\n"


@pytest.mark.parametrize(
    ("metric", "more", "refused"),
    [
        ("acuracy", "", True),
        ("accuracy", "", False),
        ("f1", "", False),  # like none of them
        ("accuracy_2", "", False),
        ("acuracy", "print(f'epoch {n}: {m}')\nprint(f'mean_{n}', 'x' + b, ', '.join(c))", True),
        ("mean_los", "out[f'mean_{name}'] = 1", False),
        ("mean_los", "out['mean_' + name] = 1", False),
        ("mean_los", "out['mean_%s' % name] = 1", False),
        ("mean_los", "out['{}_{}'.format(a, b)] = 1", False),
        ("mean_los", "out['_'.join(words)] = 1", False),
        ("mean_los", "print(f'{name}: {value}')", False),
        ("mean_los", "out[name.removesuffix('s')] = 1", False),
        ("mean_los", "print(table.add_prefix('mean_').to_json())", False),
        ("mean_los", "print(f'{name} = {value:.3f}')", False),
        ("acuracy", "def broken(:", False),
    ],
)
def test_a_score_is_denied_only_where_nothing_can_make_it(metric: str, more: str, refused: bool) -> None:
    assert is_no_score(metric, read([SCORES, more]), ("accuracy", "mean_loss")) is refused


def test_scores_that_the_code_does_not_name_come_from_where_others_may() -> None:
    assert not is_no_score("test_scor", read(["print(cross_validate(model))"]), ("test_score",))


def test_only_a_whole_word_is_said() -> None:
    assert read(['print({"f1": 1})']).says("f1")
    assert not read(["f1_macro = buf1"]).says("f1")
    assert read(["'f1-score': 0.3"]).says("f1-score")


def test_strings_of_many_pieces_are_looked_through_once() -> None:
    """Each more would take twice as long, and more: a submission would hang."""
    fields = "".join(f"{{{name}}}" for name in "abcdefghijklmnopqrstuvwxyz")
    lines = [
        f"f'{fields}!'",
        f"'{'<>' * 26}?'.format(x)".replace("<>", "{}"),
        f"'{'%s' * 26};' % x",
        "'aa' + b + c + 'dd'",
    ]
    made = [read([line]).made for line in lines]
    assert made == [(".*!",), (r".*\?",), (".*;",), ("aa.*dd", "aa.*")]
    code = read(lines)
    assert not code.may_make("validation_accuracy_weighted")
