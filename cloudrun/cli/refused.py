"""A command line that makes no sense, in our words: what was probably meant, and what to type."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError

from cloudrun.cli.catalogue import COMMANDS
from cloudrun.core.errors import UsageError
from cloudrun.core.near import instead, nearest
from cloudrun.plan.typed import path_typed, quoted

SYNONYMS = {  # what others call it
    "run": "submit", "launch": "submit", "exec": "submit", "list": "results", "ls": "results", "status": "ps",
    "stop": "cancel", "kill": "cancel", "down": "reap", "terminate": "reap", "delete": "rm", "download": "get",
    "tail": "logs", "diff": "compare", "fetch": "pull", "dashboard": "report", "setup": "init", "check": "doctor",
}  # fmt: skip


def usage_error(error: CycloptsError, arguments: Sequence[str]) -> UsageError:
    """What is raised for it."""
    if isinstance(error, UnknownCommandError) and error.unused_tokens and error.app is not None:
        names = [name for name in error.app if not name.startswith("-")]
        return _no_command(error.unused_tokens[0], list(error.command_chain or ()), names)
    examples = {command.name: command.example for command in COMMANDS}
    name = f"{arguments[0]} " if arguments[0] in examples else ""
    if isinstance(error, MissingArgumentError) and error.argument is not None and name:
        missing = error.argument.name
        if not missing.startswith("-"):
            whole = " ".join(["cloudrun", *(error.command_chain or arguments[:1])])
            example = f"{examples[arguments[0]]}, or " if whole == f"cloudrun {arguments[0]}" else ""
            return UsageError(f"{whole}: {missing} is missing", next_step=f"{example}{whole} --help")
    hint = "; what is meant for the script goes after --" if name == "submit " else ""
    meant = None
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value).partition("=")[0]
        options = [each for argument in error.argument_collection for each in argument.names]
        if name == "submit " and (script := _script_with(typed, arguments)):
            return UsageError(
                f"{typed} is an option of {script}, and not of cloudrun submit",
                next_step="what is meant for the script goes after --:"
                f" cloudrun submit {path_typed(script)} -- {quoted(typed)} ...;"
                f" or make it a parameter: --set {typed.lstrip('-')}=...",
            )
        meant = _near_option(typed, options)
    return UsageError(str(error).rstrip("."), next_step=f"cloudrun {name}--help{hint}", instead=meant)


def _script_with(option: str, arguments: Sequence[str]) -> str:
    """The script of the command line, where its text names the option."""
    for word in arguments[1:]:
        with suppress(OSError):
            if word.endswith(".py"):
                text = Path(word).read_text(encoding="utf-8", errors="replace")
                return word if f'"{option}"' in text or f"'{option}'" in text else ""
    return ""


def _near_option(typed: str, options: Sequence[str]) -> tuple[str, str] | None:
    """By what follows the dashes: they are alike in all of them."""
    stems = {each[2:]: each for each in options if each.startswith("--")}
    if not typed.startswith("--") or len(typed) < len("--abc"):
        return None
    found = instead(typed[2:], stems)
    return (typed, stems[found[1]]) if found else None


def _no_command(word: str, chain: Sequence[str], names: Sequence[str]) -> UsageError:
    whose = " ".join(["cloudrun", *chain])
    if word.startswith("-"):
        names = ["--version", "--help"]
    if not chain and word.endswith(".py"):
        return UsageError(f"{word} is no command", next_step=f"cloudrun submit {path_typed(word)}")
    near = [SYNONYMS[word]] if not chain and word in SYNONYMS else nearest(word, names)
    hint = f"; did you mean {near[0]}?" if near else f": it has {', '.join(names)}" if chain else ""
    meant = (word, near[0]) if near else None
    return UsageError(f"there is no {whose} {word}{hint}", next_step=f"{whose} --help", instead=meant)
