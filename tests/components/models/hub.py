"""A Hugging Face hub on loopback: the parts of its API by which repositories are listed and fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.components.storage.faulty import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of every repository, unless a test says another


class Handler(BaseHTTPRequestHandler):
    """Serves <root>/<organisation>/<name> as the repository <organisation>/<name>, whatever the revision."""

    def __init__(self, root: Path, asked: list[str], commits: Mapping[str, str], *args: object) -> None:
        self.root, self.asked, self.commits = root, asked, commits
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), "".join(parts[4:5]), "".join(parts[5:6]))
        elif parts[2:3] == ["resolve"]:
            self.asked.append("/".join((*parts[:2], *parts[4:])))
            if parts[3] not in (self._commit("/".join(parts[:2])), "main"):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            self._file(self.root.joinpath(*parts[:2], *parts[4:]), self.root.joinpath(*parts[:2]).is_dir())
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815  (http.server's names)

    def _api(self, repository: str, what: str, revision: str) -> None:
        folder = self.root / repository
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if not files:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif what == "tree":
            entries = [
                {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": _etag(f)}
                for f in files
            ]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        elif revision not in ("", "main", self._commit(repository)):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [{"rfilename": str(f.relative_to(folder))} for f in files]
            whole = {
                "id": repository,
                "sha": self._commit(repository),
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            self._send(200, json.dumps(whole).encode(), {"Content-Type": "application/json"})

    def _commit(self, repository: str) -> str:
        return self.commits.get(repository, COMMIT)

    def _file(self, file: Path, known: bool) -> None:
        commit = self._commit("/".join(file.relative_to(self.root).parts[:2]))
        if not file.is_file():
            headers = {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound", "X-Repo-Commit": commit}
            self._send(404, b"", headers)
        else:
            self._send(200, file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def hub_server(root: Path, asked: list[str] | None = None, commits: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a running hub, for HF_ENDPOINT.

    Args:
        asked: where the names of the files that are asked for are noted.
        commits: the commit that a repository is at now, by its name.
    """
    with serving(partial(Handler, root, [] if asked is None else asked, commits or {})) as address:
        yield address
