"""Azure Machine Learning as far as it is asked: its resource manager, tokens, blobs and metrics, played by one server.

Nothing of Azure runs here. What it answers is written after Microsoft's own reference, and what it takes is checked as
far as that tells. Behind an endpoint there is a real server of this project, over the very files that were uploaded.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

WORKSPACE = (
    "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/ours/providers/"
    "Microsoft.MachineLearningServices/workspaces/lab"
)
TOKEN, KEY, SIGNATURE = "a-token", "a-key", "sv=2024&sig=abcdef0123456789"
VERSIONED = re.compile(r"(models|environments)/([^/]+)/versions/([^/]+)")
DEPLOYED = re.compile(r"onlineEndpoints/([^/]+)/deployments/([^/]+)")

Answer = tuple[int, Any, dict[str, str]]


@dataclass
class Azure:
    """What Azure has, and how it is to answer.

    Args:
        folder: where uploaded files are put before they are served.
        things: what is in the workspace, by its path below it.
        blobs: uploaded files.
        counted: requests by deployment, status and the model's own status, for Azure Monitor.
        looks: how often Azure is looked at before it is done with a change.
        stuck: names of deployments that never get ready.
        broken: names of deployments that answer nothing but errors.
        altered: names of deployments that answer with other labels than their model.
        refuses: answers to requests, by verb and path, each given once.
        gives_up: what it says when it gives up a deployment.
        asked: verbs and paths of the requests that came, and the deployments that rows were sent to.
    """

    folder: Path
    url: str = ""
    things: dict[str, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    counted: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    looks: int = 2
    stuck: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    refuses: list[tuple[str, str, int, str, str]] = field(default_factory=list)
    gives_up: dict[str, tuple[str, str]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)
    _operations: list[dict[str, Any]] = field(default_factory=list)
    _servers: dict[str, Any] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def names(self) -> list[str]:
        """Return what is in the workspace."""
        return sorted(self.things)

    def shares(self, name: str = "mine") -> dict[str, int]:
        """Return how an endpoint divides its requests."""
        return dict(self.things[f"onlineEndpoints/{name}"]["properties"].get("traffic", {}))

    def images(self, name: str = "mine") -> dict[str, str]:
        """Return the image of each deployment."""
        found = {}
        for path, one in self.things.items():
            if (match := DEPLOYED.fullmatch(path)) and match[1] == name:
                environment = one["properties"]["environmentId"].removeprefix(f"{WORKSPACE}/")
                found[match[2]] = self.things[environment]["properties"]["image"]
        return found

    # -- the resource manager -------------------------------------------------------------------------

    def answer(self, verb: str, path: str, query: dict[str, str], body: Any) -> Answer:
        """Answer a request below the workspace."""
        for number, (method, pattern, status, code, message) in enumerate(self.refuses):
            if method == verb and re.search(pattern, path):
                del self.refuses[number]
                return _error(status, code, message)
        if path.endswith("/Microsoft.Insights/metrics"):
            return self._metrics(path, query)
        if query.get("api-version") != "2024-10-01":
            return _error(400, "InvalidApiVersionParameter", f"api-version {query.get('api-version')}")
        if not path:
            return 200, {"location": "westeurope", "name": "lab"}, {}
        if verb == "GET":
            return self._get(path, query)
        if verb == "POST":
            return self._post(path, body)
        if verb == "DELETE":
            return self._delete(path)
        return self._put(path, body)

    def _get(self, path: str, query: dict[str, str]) -> Answer:
        if path in self.things:
            return 200, self.things[path], {}
        if path == "datastores" and query.get("isDefault") == "true":
            return 200, {"value": [self._store()]}, {}
        if path == "datastores/workspaceblobstore":
            return 200, self._store(), {}
        if path.endswith(("/deployments", "/versions")):
            if path.endswith("/deployments") and path.rpartition("/")[0] not in self.things:
                return _error(404, "ResourceNotFound", f"{path} was not found")
            names = sorted(one for one in self.things if one.rpartition("/")[0] == path)
            at = int(query.get("$skip", 0))  # one a page
            page: dict[str, Any] = {"value": [self.things[name] for name in names[at : at + 1]]}
            if at + 1 < len(names):
                page["nextLink"] = f"{self.url}{WORKSPACE}/{path}?api-version=2024-10-01&$skip={at + 1}"
            return 200, page, {}
        return _error(404, "ResourceNotFound", f"{path} was not found")

    def _store(self) -> dict[str, Any]:
        # the account's address is put together as "https://ACCOUNT.blob.ENDPOINT", which must come here
        account = f"{urlsplit(self.url).netloc}/account"
        return {"name": "workspaceblobstore", "properties": {
            "datastoreType": "AzureBlob", "accountName": account, "containerName": "azureml-blobs", "endpoint": "here",
            "protocol": "https", "isDefault": True,
        }}  # fmt: skip

    def _post(self, path: str, body: Any) -> Answer:
        if path == "datastores/workspaceblobstore/listSecrets":
            assert body == {"expirableSecret": True}
            return 200, {"secretsType": "Sas", "sasToken": SIGNATURE}, {}
        if path.endswith("/listKeys"):
            return 200, {"primaryKey": KEY, "secondaryKey": "another"}, {}
        if path.endswith("/getLogs"):
            called = path.split("/")[-2]
            if body["containerType"] == "StorageInitializer":
                return _error(404, "ResourceNotFound", "the container is gone")
            return 200, {"content": f"{called} opens its model\n{called} is {body['tail']} lines long\n"}, {}
        return _error(404, "ResourceNotFound", path)

    def _put(self, path: str, body: Any) -> Answer:
        old, name = self.things.get(path), path.rpartition("/")[2]
        thing = {"id": f"{WORKSPACE}/{path}", "name": name, **body}
        thing["properties"] = {**body["properties"]}
        if VERSIONED.fullmatch(path):
            if old and old["properties"] != body["properties"]:
                return _error(400, "UserError", "a version is not changed")
            self.things[path] = thing
            return 201, thing, {}
        assert body["location"] == "westeurope"
        if match := DEPLOYED.fullmatch(path):
            endpoint = self.things.get(f"onlineEndpoints/{match[1]}")
            if endpoint is None:
                return _error(404, "ResourceNotFound", "the endpoint was not found")
            if endpoint["properties"]["provisioningState"] != "Succeeded":
                return _error(409, "Conflict", "the endpoint is being changed")
            properties = body["properties"]
            assert body["sku"]["capacity"] >= 1
            for key in ("model", "environmentId"):
                assert properties[key].removeprefix(f"{WORKSPACE}/") in self.things
            thing["properties"]["provisioningState"] = "Creating"
        else:
            traffic = body["properties"].get("traffic", {})
            ready = [one for one in traffic if self.things.get(f"{path}/deployments/{one}", _NONE)["properties"].get(
                "provisioningState") == "Succeeded"]  # fmt: skip
            if sum(traffic.values()) not in (0, 100) or len(ready) != len(traffic):
                return _error(400, "BadRequest", f"traffic cannot be {traffic}")
            thing["properties"] |= {"provisioningState": "Updating" if old else "Creating",
                                    "scoringUri": f"{self.url}/score/{name}"}  # fmt: skip
        self.things[path] = thing
        return 201, thing, self._begin(path)

    def _delete(self, path: str) -> Answer:
        if path not in self.things:
            return 204, None, {}
        if match := DEPLOYED.fullmatch(path):
            if self.shares(match[1]).get(match[2]):
                return _error(400, "BadRequest", f"{match[2]} still gets requests")
        elif path.startswith("onlineEndpoints/"):
            for name in [name for name in self.things if name.startswith(f"{path}/")]:
                self._close(name)
        elif VERSIONED.fullmatch(path):
            del self.things[path]
            return 200, None, {}
        self._close(path)
        return 202, None, self._begin("")

    def _close(self, path: str) -> None:
        del self.things[path]
        if (server := self._servers.pop(path, None)) is not None:
            server.close()

    def _begin(self, path: str) -> dict[str, str]:
        self._operations.append({"path": path, "looks": self.looks})
        number = len(self._operations) - 1
        return {"Azure-AsyncOperation": f"{self.url}/operations/{number}?api-version=2024-10-01", "Retry-After": "0"}

    def operation(self, number: int) -> Answer:
        """Tell how far a change is."""
        found = self._operations[number]
        called, thing = found["path"].rpartition("/")[2], self.things.get(found["path"])
        found["looks"] -= 1
        if thing is not None and "/deployments/" in found["path"] and called in self.stuck:
            return 200, {"status": "InProgress"}, {}
        if found["looks"] > 0:
            return 200, {"status": "InProgress"}, {"Retry-After": "0"}
        if thing is not None and called in self.gives_up:
            code, message = self.gives_up[called]
            thing["properties"]["provisioningState"] = "Failed"
            return 200, {"status": "Failed", "error": {"code": code, "message": message}}, {}
        if thing is not None:
            thing["properties"]["provisioningState"] = "Succeeded"
        return 200, {"status": "Succeeded"}, {}

    def _metrics(self, path: str, query: dict[str, str]) -> Answer:
        wanted = {"metricnames": "RequestsPerMinute", "interval": "PT1M", "aggregation": "Average",
                  "$filter": "deployment eq '*' and statusCode eq '*' and modelStatusCode eq '*'"}  # fmt: skip
        assert {name: query.get(name) for name in wanted} == wanted
        since, until = (datetime.fromisoformat(one) for one in query["timespan"].split("/"))
        assert until > since
        series = [
            {"metadatavalues": [{"name": {"value": "deployment"}, "value": called},
                                {"name": {"value": "statuscode"}, "value": status},
                                {"name": {"value": "modelstatuscode"}, "value": own}],
             "data": [{"timeStamp": query["timespan"].split("/")[0]}, {"average": count}]}
            for (called, status, own), count in self.counted.items()
        ]  # fmt: skip
        return 200, {"value": [{"name": {"value": "RequestsPerMinute"}, "timeseries": series}]}, {}

    # -- blobs and rows -------------------------------------------------------------------------------

    def blob(self, verb: str, path: str, query: dict[str, str], content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Answer a request to the storage of the workspace."""
        if query.get("sig") != "abcdef0123456789":
            return 403, b"", {"x-ms-error-code": "AuthenticationFailed"}
        if verb == "PUT":
            self.blobs[path] = content
            return 201, b"", {"ETag": '"1"', "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
        if verb == "DELETE":
            return (202, b"", {}) if self.blobs.pop(path, None) is not None else (404, b"", {})
        names = [name for name in self.blobs if name.startswith(query.get("prefix", ""))]
        found = "".join(f"<Blob><Name>{escape(name)}</Name></Blob>" for name in sorted(names))
        listed = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="azureml-blobs"><Blobs>{found}'
        )
        return 200, f"{listed}</Blobs><NextMarker/></EnumerationResults>".encode(), {"Content-Type": "application/xml"}

    def score(self, name: str, called: str | None, key: str, content: bytes) -> tuple[int, bytes]:
        """Let a deployment answer rows."""
        if key != f"Bearer {KEY}":
            return 401, b"key_auth_bad_header"
        with self.lock:
            called = called or max(self.shares(name), key=self.shares(name).__getitem__)
            self.scored.append(called)
            server = None if called in self.broken else self._served(f"onlineEndpoints/{name}/deployments/{called}")
        if server is None:
            own, answer = 502, b"the model does not answer"
        else:
            reply = server.http.post("/score", content=content, headers={"Content-Type": "application/json"})
            own, answer = reply.status_code, reply.content
            if called in self.altered:
                answer = json.dumps([{**one, "label": "?"} for one in json.loads(answer)]).encode()
        status = 200 if own == 200 else 424  # whatever a model says
        self.counted[called, str(status), str(own)] += 1
        return status, answer

    def _served(self, path: str) -> Any:
        """Return a real server over the files that were uploaded for a deployment, laid where Azure lays them."""
        if path not in self._servers:
            import served

            model = self.things[path]["properties"]["model"].removeprefix(f"{WORKSPACE}/")
            below = self.things[model]["properties"]["modelUri"].partition("/paths/")[2]
            place = self.folder / path / below.rpartition("/")[2]
            for name, content in self.blobs.items():
                if name.startswith(f"{below}/"):
                    file = place / name.removeprefix(f"{below}/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
            stack = self._stack.enter_context(ExitStack())
            self._servers[path] = stack
            stack.http = stack.enter_context(served.serving({"model": place})).http  # type: ignore[attr-defined]
        return self._servers[path]

    def forget(self) -> None:
        """Be as at the beginning."""
        with self.lock:
            self._stack.close()
            for one in vars(self).values():
                if isinstance(one, dict | set | list):
                    one.clear()

    def close(self) -> None:
        """Stop what serves."""
        self._stack.close()


_NONE: dict[str, Any] = {"properties": {}}


def _error(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message}}, {}


@contextmanager
def azure(folder: Path) -> Iterator[tuple[Azure, dict[str, str]]]:
    """Play Azure until the block ends; yield it, and the environment by which Azure's own libraries find it."""
    state = Azure(folder / "served")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a reply is sent at once

        def log_message(self, *_: Any) -> None:
            pass

        def go(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            path = unquote(parts.path)
            if path == "/token":
                state.asked.append((self.command, path))
                known = self.headers.get("X-IDENTITY-HEADER") == "a-secret"
                until = datetime.now(UTC) + timedelta(hours=1)
                told = {"access_token": TOKEN, "expires_on": str(int(until.timestamp())), "resource": query["resource"],
                        "token_type": "Bearer"}  # fmt: skip
                self.reply(200 if known else 401, json.dumps(told).encode(), {})
            elif path.startswith("/score/"):
                called = self.headers.get("azureml-model-deployment")
                status, answer = state.score(path.split("/")[2], called, self.headers["Authorization"], content)
                self.reply(status, answer, {"Content-Type": "application/json"})
            elif path.startswith("/account.blob.here/azureml-blobs"):
                name = path.removeprefix("/account.blob.here/azureml-blobs").lstrip("/")
                with state.lock:
                    self.reply(*state.blob(self.command, name, query, content))
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.reply(401, b"{}", {})
            else:
                self.arm(path, query, json.loads(content) if content else None)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = go

        def arm(self, path: str, query: dict[str, str], body: Any) -> None:
            below = path.removeprefix(WORKSPACE)
            with state.lock:
                state.asked.append((self.command, below))
                if path.startswith("/operations/"):
                    answer = state.operation(int(path.rpartition("/")[2]))
                elif below == path:
                    answer = _error(404, "ResourceNotFound", f"The Resource {path} was not found.")
                else:
                    answer = state.answer(self.command, below.lstrip("/"), query, body)
            status, told, headers = answer
            self.reply(status, b"" if told is None else json.dumps(told).encode(),
                       {"Content-Type": "application/json", **headers})  # fmt: skip

        def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(folder))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"https://localhost:{server.server_port}"
    (folder / "az").mkdir()
    settings: dict[str, Callable[[], str]] = {
        "config": lambda: "[cloud]\nname = Here\n[defaults]\ngroup = ours\nworkspace = lab\n",
        "clouds.config": lambda: f"[Here]\nendpoint_resource_manager = {state.url}\n",
        "azureProfile.json": lambda: "\ufeff" + json.dumps(
            {"subscriptions": [{"id": WORKSPACE.split("/")[2], "isDefault": True}, {"id": "other", "isDefault": False}]}
        ),
    }  # fmt: skip
    for name, text in settings.items():
        (folder / "az" / name).write_text(text(), encoding="utf-8")
    authority = str(folder / "cert.pem")
    environment = {
        "AZURE_CONFIG_DIR": str(folder / "az"), "IDENTITY_ENDPOINT": f"{state.url}/token",
        "IDENTITY_HEADER": "a-secret", "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "REQUESTS_CA_BUNDLE": authority, "SSL_CERT_FILE": authority,
    }  # fmt: skip
    try:
        yield state, environment
    finally:
        server.shutdown()
        server.server_close()
        state.close()
        thread.join(10)


def certificate(folder: Path) -> tuple[str, str]:
    """Write a certificate for this machine and its key; return where."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    return str(folder / "cert.pem"), str(folder / "key.pem")
