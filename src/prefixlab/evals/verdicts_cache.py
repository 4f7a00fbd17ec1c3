"""Verdicts kept between runs, so that no judge is asked twice about the same response.

One SQLite file, one row a verdict, keyed by everything that decides it: the judge's identity, the prompt and the
response. Rows hold the verdict, the judge's words and no prompt. Every call opens the file anew, so threads, forked
workers and other processes may share it; the first verdict written for a key is the one everybody reads.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from prefixlab.errors import UserError

WAIT = 60.0
"""Seconds to wait for another process that is writing."""


def verdict_key(identity: Mapping[str, str], prompt: str, response: str) -> str:
    """sha256 over a judge's identity and what it is asked, as canonical JSON."""
    return hashlib.sha256(json.dumps([dict(identity), prompt, response], sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """Text by key in a SQLite file.

    Raises:
        UserError: The file is corrupt, is no database, or cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(str(error)) from error
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, judgement TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        """What is stored under a key, if anything."""
        with self._open() as db:
            row = db.execute("SELECT judgement FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, judgement: str) -> str:
        """Store a verdict unless there is one; returns the one that is stored."""
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, judgement))
            row = db.execute("SELECT judgement FROM verdicts WHERE key = ?", (key,)).fetchone()
        return str(row[0])

    def corrupt(self, reason: str) -> UserError:
        """The error for a file whose content is not what was written."""
        return UserError(
            f"verdict cache {str(self.path)!r} is corrupt ({reason}); move it away or delete it, and run again: its "
            "verdicts are then asked for anew"
        )

    def _unusable(self, reason: str) -> UserError:
        return UserError(
            f"verdict cache {str(self.path)!r} cannot be used ({reason}); give a file in a folder that can be written"
        )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as db, db:
                yield db
        except sqlite3.OperationalError as error:
            raise self._unusable(str(error)) from error
        except sqlite3.DatabaseError as error:
            raise self.corrupt(str(error)) from error
