"""A small Hugging Face Hub on the loopback interface, in memory: what its client asks for when it pushes and loads.

    with HubServer() as hub:
        ...  # a process started with the environment variable HF_ENDPOINT=hub.endpoint
        hub.repos["someone/model"].files("main")

Only the holder of `TOKEN` sees private repositories, and writes, to the repositories of `USER` alone. Routes as
huggingface_hub 2.4 calls them, without Xet: large files go by the Git LFS batch API.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_test"
USER = "tester"


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit hash -> path -> content
    branches: dict[str, str] = field(default_factory=dict)  # branch -> commit hash

    def __post_init__(self):
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, branch: str, added: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), branch)).encode()).hexdigest()
        self.commits[oid] = self.commits.get(self.branches.get(branch), {}) | added
        self.branches[branch] = oid
        return oid

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class HubServer(ThreadingHTTPServer):
    """`requests` holds (method, path, JSON body or None) of all requests, `large` the LFS objects by their SHA-256."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, object]] = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_):
        pass

    def handle_any(self):
        self.path = unquote(urlsplit(self.path).path)
        body = self.read_body()
        is_json = "json" in (self.headers["Content-Type"] or "") and "ndjson" not in self.headers["Content-Type"]
        self.body = json.loads(body) if is_json and body else body
        self.server.requests.append((self.command, self.path, self.body if is_json else None))
        try:
            for method, pattern, answer in ROUTES:
                if self.command in method.split() and (found := re.fullmatch(pattern, self.path)):
                    return answer(self, **found.groupdict())
            raise Refusal(404, "NotFound", f"no route {self.command} {self.path}")
        except Refusal as refusal:
            self.answer({"error": refusal.headers["X-Error-Message"]}, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def read_body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, content: object = None, status: int = 200, headers: dict | None = None):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def is_user(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def check_writer(self, owner: str):
        if not self.is_user:
            raise Refusal(401, "Unauthorized", "Invalid username or password.")
        if owner != USER:
            raise Refusal(403, "Forbidden", f"You don't have the rights to write to {owner}.")

    def repo(self, name: str, write: bool = False) -> Repo:
        """Raises Refusal as the Hub does: to a stranger a private repository does not exist."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.is_user):
            raise Refusal(404 if self.is_user else 401, "RepoNotFound", "Repository not found")
        if write:
            self.check_writer(name.split("/")[0])
        return repo

    def resolve(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self.repo(name)
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, repo.commits[oid]

    # ---- routes ----------------------------------------------------------------------------------------------------

    def front_page(self):
        self.answer(b"a Hub", headers={})

    def create_repo(self):
        owner = self.body["organization"] or USER
        self.check_writer(owner)
        name = f"{owner}/{self.body['name']}"
        url = {"url": f"{self.server.endpoint}/{name}"}
        if name in self.server.repos:
            return self.answer(url, 409)
        # The Hub's own default is a public repository.
        self.server.repos[name] = Repo(private=self.body.get("visibility") == "private")
        self.answer(url)

    def validate_card(self):
        """As the Hub: the front matter must be a YAML mapping, and every result must be complete."""
        try:
            front_matter = yaml.safe_load(self.body["content"].split("---")[1])
            for index in front_matter.get("model-index", []):
                for result in index["results"]:
                    assert index["name"] and result["task"]["type"] and result["metrics"]
                    assert result["dataset"]["type"] and result["dataset"]["name"]
                    assert all(metric["type"] and isinstance(metric["value"], float) for metric in result["metrics"])
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", front_matter.get("base_model", "a/b"))
        except (yaml.YAMLError, AssertionError, LookupError, AttributeError, TypeError) as error:
            return self.answer({"errors": [{"message": repr(error)}], "warnings": []}, 400)
        self.answer({"errors": [], "warnings": []})

    def create_branch(self, name: str, branch: str):
        branches = self.repo(name, write=True).branches
        if branch in branches:
            return self.answer({"error": "Reference already exists"}, 409)
        branches[branch] = branches["main"]
        self.answer({})

    def repo_info(self, name: str, revision: str | None = "main"):
        oid, files = self.resolve(name, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        private = self.server.repos[name].private
        self.answer({"id": name, "sha": oid, "private": private, "tags": [], "siblings": siblings})

    def preupload(self, name: str, revision: str):
        self.repo(name, write=True)
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in self.body["files"]
                ]
            }
        )

    def lfs_batch(self, name: str):
        self.repo(name, write=True)
        for wanted in self.body["objects"]:
            if wanted["oid"] not in self.server.large:
                wanted["actions"] = {"upload": {"href": f"{self.server.endpoint}/large/{wanted['oid']}"}}
        self.answer({"transfer": "basic", "objects": self.body["objects"]})

    def put_large(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(422, "BadObject", "Its SHA-256 is not its name")
        self.server.large[oid] = self.body
        self.answer({})

    def commit(self, name: str, branch: str):
        repo = self.repo(name, write=True)
        if branch not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        added = {}
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                added[value["path"]] = b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                added[value["path"]] = self.server.large[value["oid"]]
        oid = repo.commit(branch, added)
        self.answer({"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def file(self, name: str, revision: str, file: str):
        oid, files = self.resolve(name, revision)
        if file not in files:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": oid}
            return self.answer({"error": "Entry not found"}, 404, error)
        etag = hashlib.sha256(files[file]).hexdigest()
        self.answer(files[file], headers={"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "none"})

    def tree(self, name: str, revision: str, folder: str | None):
        _, files = self.resolve(name, revision)
        if folder:  # all files lie at the top
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        self.answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
        )


NAME, API = r"(?P<name>[^/]+/[^/]+)", r"/api/models/(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("HEAD GET", r"/", Handler.front_page),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("GET", rf"{API}(/revision/(?P<revision>.+))?", Handler.repo_info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", Handler.tree),
    ("POST", rf"{API}/branch/(?P<branch>.+)", Handler.create_branch),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<branch>.+)", Handler.commit),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/large/(?P<oid>\w+)", Handler.put_large),
    ("GET HEAD", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.file),
]
