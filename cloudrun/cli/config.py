"""`cloudrun config`: which settings hold in this folder, and who says so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cloudrun.cli.parser import Json, new_app
from cloudrun.cli.printing import print_json, print_table

app = new_app(
    "config",
    """The settings of this project. cloudrun init writes its file; the README lists every setting.

Type, for example:
    cloudrun config show --origin""",
)


@app.command
def show(
    *only: Annotated[str, Parameter(help="These settings, and no others. Example: deadline region")],
    origin: Annotated[bool, Parameter(help="Also where each value comes from. Example: --origin")] = False,
    as_json: Json = False,
) -> None:
    """Every setting and the value that a command typed here would use.

    A flag beats a CLOUDRUN_* variable, which beats cloudrun.toml (or
    [tool.cloudrun] of pyproject.toml, the nearest one upward), which beats
    ~/.config/cloudrun/config.toml.

    Type, for example:
        cloudrun config show
        cloudrun config show --origin
        cloudrun config show deadline --json
    """
    from dataclasses import asdict

    from cloudrun import config
    from cloudrun.core.settings import NAMES
    from cloudrun.setup.template import ENTRIES, value_text

    fields = [config.field_of(name) for name in only] or list(NAMES)
    settings, origins = config.load_with_origins(Path.cwd(), {})
    values = asdict(settings)
    if as_json:
        documents: list[dict[str, Any]] = []
        for field in fields:
            given = origins.get(field)
            documents.append(
                {
                    "name": config.key_of(field),
                    "value": values[field],
                    "text": value_text(field, values[field]),
                    "origin": given.kind if given else "default",
                    "where": given.where if given else "default",
                    "path": str(given.path) if given and given.path else None,
                    "line": given.line if given else None,
                }
            )
        print_json({"settings": documents})
        return
    rows = []
    for field in fields:
        text = value_text(field, values[field])
        unset = ENTRIES[field].unset if field in ENTRIES else ""
        where = origins[field].where if field in origins else "default"
        rows.append([config.key_of(field), text or (f"({unset})" if unset else "-"), *([where] if origin else [])])
    print_table(["setting", "value", *(["from"] if origin else [])], rows)
