"""`cloudrun completion`: what a shell needs to complete commands, options, and the ids of runs, grids and machines.

Commands and options are written into the script when it is made. Ids are asked for as they are needed, by
`cloudrun __names KIND...`, which reads the ledger and nothing else, and prints nothing where something is wrong.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import Parameter

from cloudrun.cli.parser import PLAIN, Json, application
from cloudrun.cli.printing import print_json

if TYPE_CHECKING:
    from cyclopts import App

Shell = Literal["bash", "zsh", "fish"]
ASK = "__names"  # the word that `main` takes for the question
# Values that are a few words, by option; "file" completes paths, other kinds are asked of the ledger.
WORDS = {"--provider": "sandbox aws", "--on-exit": "terminate stop keep", "--stream": "stdout stderr"}
SAID = {"run": "run", "grid": "grid", "unit": "unit|machine|instance"}  # kinds of ids, by the words for them
KINDS = {"--instance-id": "unit", "--instance": "unit", "--grid": "grid", "--data": "file", "--output": "file"}


@dataclass(frozen=True)
class Option:
    """`values`: words to choose from. `kind`: "file", or what the ledger is asked for; "" where nobody can know."""

    name: str
    takes_value: bool
    values: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """A command as it is typed ("sandbox start"), its options, and what its arguments are."""

    path: str
    options: tuple[Option, ...]
    kind: str
    words: str = ""


def completion(
    shell: Annotated[Shell, Parameter(help="bash, zsh or fish. Example: cloudrun completion bash")],
    /,
    *,
    as_json: Json = False,
) -> None:
    """Print a script that completes commands, options, and ids of runs, grids and
    machines in your shell.

    Type, for example:
        source <(cloudrun completion bash)
        cloudrun completion zsh >> ~/.zshrc
        cloudrun completion fish > ~/.config/fish/completions/cloudrun.fish
    """
    script = script_for(shell)
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        sys.stdout.write(script)


def script_for(shell: Shell) -> str:
    lines = list(commands(application()))
    return "\n".join(_fish(lines) if shell == "fish" else _bash(lines, zsh=shell == "zsh")) + "\n"


def commands(app: App, path: Sequence[str] = ()) -> Iterator[Line]:
    names = [name for name in app if not name.startswith("-")]
    if names and path:
        yield Line(" ".join(path), (), "", " ".join(names))
    for name in names:
        yield from commands(app[name], (*path, name))
    if not names and path:
        yield _line(app, " ".join(path))


def _line(app: App, path: str) -> Line:
    options, kind, words = [Option("--help", takes_value=False)], "", ""
    for argument in app.assemble_argument_collection(default_parameter=PLAIN):
        hints = (argument.hint, *get_args(argument.hint))
        about = (argument.parameter.help or "").lower()
        named = [name for name in argument.names if name.startswith("--") and not name.startswith("--empty-")]
        for name in named:
            known = "file" if Path in hints else KINDS.get(name, "")
            options.append(Option(name, bool not in hints, WORDS.get(name, ""), known))
        if argument.index is not None:  # it has a place, whether it may be named or not
            kind = kind or _kind(argument.names[0].lstrip("-").upper(), hints, about)
            words = words or (" ".join(map(str, get_args(argument.hint))) if _is_choice(argument.hint) else "")
    return Line(path, tuple(sorted(options, key=lambda option: option.name)), kind, words)


def _is_choice(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is Literal


def _kind(name: str, hints: Sequence[Any], about: str) -> str:
    """What an argument is, by what it is called and said to be."""
    if "SCRIPT" in name or Path in hints:
        return "file"
    said = f"{name.lower()} {about.partition('example:')[0]}"
    return " ".join(kind for kind, words in SAID.items() if re.search(rf"(?<![\w-])({words})s?(?![\w-])", said))


# -- bash, and zsh by its own way of reading bash's -------------------------------------------------------------------


def _bash(lines: Sequence[Line], *, zsh: bool) -> Iterator[str]:
    shell = "zsh" if zsh else "bash"
    yield f"# completes cloudrun in {shell}; made by `cloudrun completion {shell}`"
    if zsh:
        yield "autoload -U +X compinit && compinit -u"
        yield "autoload -U +X bashcompinit && bashcompinit"
    yield "_cloudrun() {"
    yield '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command="" word i words="" kind=""'
    yield "    COMPREPLY=()"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        word=${COMP_WORDS[i]}"
    yield '        if [[ $word == -- ]]; then COMPREPLY=($(compgen -f -- "$cur")); return; fi'
    yield "        if [[ $word == -* ]]; then continue; fi"
    yield "        if [[ -z $command ]]; then command=$word; continue; fi"
    groups = [line.path for line in lines if not line.options]
    yield f'        case $command in {"|".join(groups)}) command="$command $word"; break;; esac'
    yield "    done"
    yield "    case $command in"
    top = dict.fromkeys(line.path.split()[0] for line in lines)
    yield f'        "") words="{" ".join(top)} --help --version --debug";;'
    for line in lines:
        yield f"        {shlex.quote(line.path)})"
        yield "            case $prev in"
        for answer, names in _answers(line).items():
            yield f"                {'|'.join(names)}) {answer} ;;"
        every = " ".join(option.name for option in line.options)
        rest = _answer(line.words, line.kind)
        yield f'                *) if [[ $cur == -* ]]; then words="{every}"; else {rest}; fi ;;'
        yield "            esac ;;"
    yield "    esac"
    yield "    case $kind in"
    yield '        "") ;;'
    yield '        file) COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null; return ;;'
    yield f"        *) words=$(cloudrun {ASK} $kind 2>/dev/null | cut -f1) ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield "}"
    yield "complete -F _cloudrun cloudrun"


def _answers(line: Line) -> dict[str, list[str]]:
    """The options that take a value, by what completes it."""
    by_answer: dict[str, list[str]] = {}
    for option in line.options:
        if option.takes_value:
            by_answer.setdefault(_answer(option.values, option.kind), []).append(option.name)
    return by_answer


def _answer(words: str, kind: str) -> str:
    return f'words="{words}"' if words else f'kind="{kind}"'


# -- fish --------------------------------------------------------------------------------------------------------------


def _fish(lines: Sequence[Line]) -> Iterator[str]:
    yield "# completes cloudrun in fish; made by `cloudrun completion fish`"
    yield "complete -c cloudrun -f"
    for name in dict.fromkeys(line.path.split()[0] for line in lines):
        yield f"complete -c cloudrun -n __fish_use_subcommand -a {name}"
    for line in lines:
        words = line.path.split()
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
        if line.words:
            yield f'complete -c cloudrun -n "{seen}" -a "{line.words}"'
        elif line.kind:
            yield f'complete -c cloudrun -n "{seen}" {_fish_kind(line.kind)}'
        for option in line.options:
            value = "-r" if option.takes_value else ""
            if option.values:
                value = f'-x -a "{option.values}"'
            elif option.kind:
                value = f"-r {_fish_kind(option.kind)}"
            yield f'complete -c cloudrun -n "{seen}" -l {option.name.removeprefix("--")} {value}'.rstrip()


def _fish_kind(kind: str) -> str:
    return "-F" if kind == "file" else f'-a "(cloudrun {ASK} {kind} 2>/dev/null)"'
