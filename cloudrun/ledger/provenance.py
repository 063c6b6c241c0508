"""What runs were made of, kept by digest: the text of their code, and what their environment consisted of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from cloudrun.core.records import Environment, FileEntry, System, Wheel
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ledger.database import Database
from cloudrun.ledger.rows import as_json, text


class Provenance:
    """Each version of a script once, however many runs it has made."""

    _database: Database
    _artifacts: ArtifactStore

    def has_code(self, code_digest: str) -> bool:
        """Whether all of it is here. Whoever asks in a block of `ArtifactStore.in_use` may rely on it until that
        ends."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT sha256 FROM code_files WHERE code_digest = ?", [code_digest]).fetchall()
        here = [self._artifacts.touch(row["sha256"]) for row in rows]  # each of them
        return bool(here) and all(here)

    def keep_code(self, code_digest: str, files: Mapping[str, bytes]) -> None:
        """`files` by path below the project's root; those whose digest that is. Raises LedgerError."""
        entries = [
            FileEntry(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
        ]
        with self._artifacts.in_use():
            with self._artifacts.batch() as open_writer:
                for entry in {entry.sha256: entry for entry in entries}.values():
                    if not self._artifacts.touch(entry.sha256):
                        with open_writer(entry) as sink:
                            sink.write(files[entry.path])
            with self._database.writing() as connection:
                connection.executemany(
                    "INSERT OR IGNORE INTO code_files VALUES (?, ?, ?, ?)",
                    [(code_digest, text(each.path), each.size, each.sha256) for each in entries],
                )

    def code_files(self, code_digest: str) -> dict[str, str]:
        """Digests of the files of that code by path; nothing where they were not kept (any more)."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT path, sha256 FROM code_files WHERE code_digest = ? ORDER BY path", [code_digest]
            ).fetchall()
        found = {str(row["path"]): str(row["sha256"]) for row in rows}
        return found if all(map(self._artifacts.has, found.values())) else {}

    def code(self, code_digest: str) -> dict[str, str]:
        """As `code_files`, their text; bytes that are no UTF-8 as U+FFFD."""
        found: dict[str, str] = {}
        for path, sha256 in self.code_files(code_digest).items():
            with self._artifacts.open(sha256) as file:
                found[path] = file.read().decode("utf-8", "replace")
        return found

    def keep_environment(self, environment: Environment) -> None:
        """Raises LedgerError."""
        known = "SELECT 1 FROM environments WHERE fingerprint = ?"
        with self._database.reading() as connection:
            if connection.execute(known, [environment.fingerprint]).fetchone():
                return
        with self._database.writing() as connection:
            row = (environment.fingerprint, as_json(asdict(replace(environment, logins=""))))  # secrets stay in memory
            connection.execute("INSERT OR IGNORE INTO environments VALUES (?, ?)", row)

    def environment(self, fingerprint: str) -> Environment | None:
        """None where it was not kept."""
        with self._database.reading() as connection:
            query = "SELECT environment FROM environments WHERE fingerprint = ?"
            row = connection.execute(query, [fingerprint]).fetchone()
        if row is None:
            return None
        fields = json.loads(row["environment"])
        system = System(**{**fields["system"], "apt": tuple(fields["system"]["apt"])})
        wheels = tuple(Wheel(**wheel) for wheel in fields["wheels"])
        return Environment(
            **{**fields, "requirements": tuple(fields["requirements"]), "system": system, "wheels": wheels}
        )
