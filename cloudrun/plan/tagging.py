"""The user's own tags on machines and what belongs to them, held to EC2's limits before anything is launched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# "Tag restrictions", Amazon EC2 User Guide; lengths in characters
TAGS_MAX = 50
KEY_MAX = 128
VALUE_MAX = 256
# Ours: Name, ledger, launch, owner, expires-at and grid, and some in reserve.
OURS_MAX = 10
OURS = "cloudrun:"


def read_tags(value: object) -> tuple[str, ...]:
    """Tags as `key=value` texts, from a table, a list of such texts, or one text with commas between them.

    Raises ValueError for what EC2 would refuse, and for tags that are ours to set.
    """
    tags = _table(value)
    for key, text in tags.items():
        _check(key, text)
    if len(tags) > TAGS_MAX - OURS_MAX:
        raise ValueError(f"{len(tags)} are too many: EC2 takes {TAGS_MAX}, and {OURS_MAX} of them are cloudrun's")
    return tuple(f"{key}={text}" for key, text in tags.items())


def tags_of(texts: Iterable[str]) -> dict[str, str]:
    """What `read_tags` has made, as key and value."""
    pairs = (text.partition("=") for text in texts)
    return {key: value for key, _, value in pairs}


def _table(value: object) -> dict[str, str]:
    if isinstance(value, Mapping):
        for key, text in value.items():
            if not isinstance(key, str) or not isinstance(text, str):
                raise ValueError(f"the tag {key!r} is {text!r}, not a text between quotes")
        return {key.strip(): text.strip() for key, text in value.items()}
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise ValueError(f'{value!r} is no table of tags, as in {{ team = "ml" }}')
    tags: dict[str, str] = {}
    for text in texts:
        key, equals, rest = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not equals:
            raise ValueError(f"{text!r} is no tag, as in team=ml")
        if key.strip() in tags:
            raise ValueError(f"the tag {key.strip()} is given twice")
        tags[key.strip()] = rest.strip()
    return tags


def _check(key: str, value: str) -> None:
    if not key:
        raise ValueError("a tag has no key")
    if len(key) > KEY_MAX or len(value) > VALUE_MAX:
        what, length, most = ("key", len(key), KEY_MAX) if len(key) > KEY_MAX else ("value", len(value), VALUE_MAX)
        raise ValueError(f"the {what} of the tag {key[:20]!r} has {length} characters, and EC2 takes {most}")
    if key.lower().startswith("aws:"):
        raise ValueError(f"{key}: keys that begin with aws: are AWS's own")
    if key.lower().startswith(OURS) or key == "Name":
        raise ValueError(f"{key} is a tag that cloudrun sets itself: what is not to be leaked is found by them")
