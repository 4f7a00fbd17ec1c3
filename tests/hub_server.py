"""A small hub: the part of the Hugging Face hub's protocol that pushing and pulling use, over real HTTP.

Not a mock: what is committed is kept by content and given back by revision, with the headers the clients go by; tokens
have rights; large files go the LFS way. It knows no Xet, no pull requests and no multipart uploads: clients run with
HF_HUB_DISABLE_XET=1. The hub library reads HF_ENDPOINT when it is imported, so clients run in processes of their own.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITER, READER = "hf_writer-token-of-the-tests", "hf_reader-token-of-the-tests"
LARGE = (".safetensors", ".parquet", ".pdf", ".arrow", ".bin")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


class Refused(Exception):
    """A request that is turned away."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Blob:
    data: bytes
    large: bool

    @property
    def etag(self):
        """sha256 of a large file, git's hash of a small one."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    sdk: str | None
    branches: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, branch, files, message):
        said = json.dumps([self.branches.get(branch), message, sorted((p, b.etag) for p, b in files.items())])
        ident = hashlib.sha1(said.encode()).hexdigest()
        self.commits[ident] = files
        self.branches[branch] = ident
        self.messages.append(message)
        return ident

    def at(self, revision):
        ident = self.branches.get(revision, revision)
        if ident not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return ident, self.commits[ident]


class Hub:
    """Repositories, tokens, and what was asked.

    Attributes:
        repos: By (kind, name).
        asked: "METHOD path" of every request.
        received: Bytes of large files that were sent.
        failing: Status that writes of one route are answered with: {"commit": 503}.
    """

    def __init__(self):
        self.repos, self.lfs, self.asked, self.received, self.failing = {}, {}, [], 0, {}
        self.lock = threading.Lock()

    def add(self, kind, name, files, *, private=False, message="made by the tests", branch="main"):
        """Put a repository, or a commit of it, there; returns the commit."""
        repo = self.repos.setdefault((kind, name), Repo(kind, name, private, None))
        return repo.commit(branch, {p: Blob(d, p.endswith(LARGE)) for p, d in files.items()}, message)


def front_matter(files):
    text = files["README.md"].data.decode() if "README.md" in files else ""
    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
        ("GET", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", "tree"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/paths-info/([^/]+)", "paths"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/branch/([^/]+)", "branch"),
        ("POST", r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(\w{64})", "store"),
        ("GET", r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def log_message(self, *arguments):
        pass

    def handle_any(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(parts)
        else:
            self.body = self.rfile.read(length)
        hub = self.server.hub
        with hub.lock:
            hub.asked.append(f"{self.command} {url.path}")
            try:
                method = "GET" if self.command == "HEAD" else self.command
                for verb, pattern, name in self.ROUTES:
                    if verb == method and (found := re.fullmatch(pattern, url.path)):
                        self.route = name
                        groups = (unquote(g) if g else g for g in found.groups())
                        status, headers, data = getattr(self, name)(hub, *groups)
                        break
                else:
                    raise Refused(404, f"no {self.command} {url.path} here")
            except Refused as refused:
                status, headers = refused.status, {"X-Error-Message": str(refused)}
                headers |= {"X-Error-Code": refused.code} if refused.code else {}
                data = json.dumps({"error": str(refused)}).encode()
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def token(self):
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given and given not in (WRITER, READER):
            raise Refused(401, "Invalid credentials in Authorization header")
        return given

    def may_write(self, hub, owner):
        if status := hub.failing.get(self.route):
            raise Refused(status, "the hub is being mended")
        if not (token := self.token()):
            raise Refused(401, "Invalid username or password.")
        if token != WRITER or owner != "org":
            raise Refused(403, f"You don't have the rights to create or write under the namespace {owner!r}")

    def repo(self, hub, kind, name):
        token, found = self.token(), hub.repos.get(((kind or "models").rstrip("s"), name))
        if found is None or (found.private and not token):
            raise Refused(404 if token else 401, "Repository not found", "RepoNotFound")
        return found

    @staticmethod
    def json(value, status=200):
        return status, {}, json.dumps(value).encode()

    def create(self, hub):
        asked = json.loads(self.body)
        owner, kind = asked["organization"], asked.get("type") or "model"
        self.may_write(hub, owner)
        name = f"{owner}/{asked['name']}"
        if (kind, name) in hub.repos:
            raise Refused(409, "You already created this repo")
        if kind == "space" and asked.get("sdk") not in ("static", "gradio", "docker"):
            raise Refused(400, "a Space needs an sdk")
        repo = hub.repos[kind, name] = Repo(kind, name, asked.get("visibility") == "private", asked.get("sdk"))
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return self.json({"url": f"http://{self.headers['Host']}/{'' if kind == 'model' else kind + 's/'}{name}"})

    def validate(self, hub):
        asked = json.loads(self.body)
        found = re.match(r"---\n(.*?)\n---", asked["content"], re.DOTALL)
        front = yaml.safe_load(found[1]) if found else {}
        bases = front.get("base_model") or []
        wrong = [b for b in ([bases] if isinstance(bases, str) else bases) if not HUB_ID.match(b)]
        if wrong:
            message = f'"base_model" with value "{wrong[0]}" is not valid. Use a model id from https://hf.co/models.'
            return self.json({"errors": [{"message": message}], "warnings": []}, 400)
        return self.json({"errors": [], "warnings": []})

    def info(self, hub, kind, name, revision):
        repo = self.repo(hub, kind, name)
        ident, files = repo.at(revision or "main")
        front = front_matter(files)
        siblings = [{"rfilename": p} for p in sorted(files)]
        found = {"id": name, "sha": ident, "private": repo.private, "siblings": siblings, "cardData": front}
        return self.json(
            found | {"_id": "0", "tags": front.get("tags") or [], "gated": False, "downloads": 0, "likes": 0}
        )

    @staticmethod
    def entry(path, blob):
        found = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.etag}
        if blob.large:
            found["lfs"] = {"oid": blob.etag, "size": len(blob.data), "pointerSize": 130}
        return found

    def tree(self, hub, kind, name, revision, under):
        _, files = self.repo(hub, kind, name).at(revision)
        under = f"{under.rstrip('/')}/" if under else ""
        inside = {p: b for p, b in files.items() if p.startswith(under)}
        if under and not inside:
            raise Refused(404, f"{under} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found, folders = [], set()
        for path, blob in sorted(inside.items()):
            parts = path[len(under) :].split("/")
            folders |= {under + "/".join(parts[:n]) for n in range(1, len(parts) if deep else min(2, len(parts)))}
            if deep or len(parts) == 1:
                found.append(self.entry(path, blob))
        found += [
            {"type": "directory", "path": p, "oid": hashlib.sha1(p.encode()).hexdigest()} for p in sorted(folders)
        ]
        return self.json(found)

    def paths(self, hub, kind, name, revision):
        _, files = self.repo(hub, kind, name).at(revision)
        asked = parse_qs(self.body.decode())["paths"]
        found = [self.entry(p, files[p]) for p in asked if p in files]
        found += [
            {"type": "directory", "path": p, "oid": hashlib.sha1(p.encode()).hexdigest()}
            for p in asked
            if any(f.startswith(f"{p}/") for f in files)
        ]
        return self.json(found)

    def preupload(self, hub, kind, name, revision):
        repo = self.repo(hub, kind, name)
        self.may_write(hub, name.split("/")[0])
        _, files = repo.at(revision)
        found = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            old = files.get(file["path"])
            found.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": old.etag if old else None}
            )
        return self.json({"files": found})

    def batch(self, hub, kind, name):
        self.repo(hub, kind, name)
        self.may_write(hub, name.split("/")[0])
        found = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in hub.lfs:
                answer["actions"] = {"upload": {"href": f"http://{self.headers['Host']}/lfs/{asked['oid']}"}}
            found.append(answer)
        return self.json({"transfer": "basic", "objects": found})

    def store(self, hub, ident):
        if hashlib.sha256(self.body).hexdigest() != ident:
            raise Refused(400, "content and oid differ")
        hub.lfs[ident] = self.body
        hub.received += len(self.body)
        return 200, {}, b""

    def commit(self, hub, kind, name, branch):
        repo = self.repo(hub, kind, name)
        self.may_write(hub, name.split("/")[0])
        files, message = dict(repo.at(branch)[1]), ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Blob(hub.lfs[value["oid"]], True)
            else:
                raise Refused(400, f"unknown operation {line['key']}")
        ident = repo.commit(branch, files, message)
        where = f"http://{self.headers['Host']}/{'' if kind == 'models' else kind + '/'}{name}/commit/{ident}"
        return self.json({"success": True, "commitOid": ident, "commitUrl": where})

    def branch(self, hub, kind, name, branch):
        repo = self.repo(hub, kind, name)
        self.may_write(hub, name.split("/")[0])
        if branch in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        return self.json({})

    def resolve(self, hub, kind, name, revision, path):
        ident, files = self.repo(hub, kind, name).at(revision)
        if path not in files:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        blob = files[path]
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": ident, "Content-Type": "application/octet-stream"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        return 200, headers, blob.data


@contextmanager
def running():
    """A hub and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub()
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def client(address, home, token=WRITER, **more):
    """Environment of a process that knows this hub only, with caches and login of its own."""
    found = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": token,
    }
    return {**found, **more}
