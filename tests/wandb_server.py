"""Test code: a small W&B server on loopback, for `wandb sweep`, `wandb agent` and their runs.

It answers the GraphQL and file-stream calls that wandb 0.31 makes for a sweep and keeps what it is
told: sweeps, agents, each run's configuration, history and summary. It is no W&B: there are no
accounts, any key is accepted, uploaded files are thrown away, and cells are dealt out in a simple
way. W&B's own engine proposes them; a cell that was preempted, or whose agent a test has lost
(`lose`), is given to the next agent that asks, under the same run id, as W&B does. No time passes
here: how slow a machine is changes nothing of who gets what. A query that it
doesn't know is answered by an error and kept in `unknown`, so that a test can see it.

    with WandbServer() as server:
        subprocess.run(["wandb", "sweep", "demo.yaml"], env={**os.environ, **server.env()})
        (sweep,) = server.sweeps.values()
"""

import gzip
import itertools
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

ENTITY = "tester"


@dataclass
class Run:
    """What the server was told about a run."""

    name: str
    sweep: str | None = None
    args: dict = field(default_factory=dict)
    agents: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    group: str | None = None
    display_name: str | None = None
    job_type: str | None = None
    tags: list = field(default_factory=list)
    notes: str | None = None
    entity: str | None = None
    commit: str | None = None
    history: dict = field(default_factory=dict)  # line number -> row
    summary: dict = field(default_factory=dict)
    files: list = field(default_factory=list)
    exit_code: int | None = None
    starts: int = 0
    preempting: bool = False
    preempted: int = 0
    handed_on: int = 0

    @property
    def rows(self) -> list[dict]:
        """The history in order."""
        return [self.history[i] for i in sorted(self.history)]


@dataclass
class Agent:
    """An agent, and the run it was given."""

    name: str
    sweep: str
    run: str | None = None


class WandbServer:
    """The server; a context manager that starts and ends it."""

    def __init__(self):
        self.sweeps: dict[str, dict] = {}
        self.runs: dict[str, Run] = {}
        self.agents: dict[str, Agent] = {}
        self.to_stop: set[str] = set()  # runs that early termination ends
        self.unknown: list[str] = []
        self.reports: list[dict] = []
        self.alerts: list[dict] = []
        self.artifacts: list[dict] = []
        self.used: list[str] = []
        self.uses: list[tuple] = []  # (run, artifact's id)
        self.called: dict[str, int] = {}
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)
        self.http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def env(self) -> dict[str, str]:
        """Environment of a W&B client of this server."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "x" * 40,
            "WANDB_MODE": "online",
            "WANDB_ENTITY": ENTITY,
        }

    def answer(self, name: str, v: dict) -> dict:
        """Answer a GraphQL operation: its `data`."""
        with self.lock:
            self.called[name] = self.called.get(name, 0) + 1
            return getattr(self, f"on_{name}")(v)

    def on_Viewer(self, v):  # noqa: N802 - the operations' own names
        """Who is logged in."""
        nothing = {"edges": []}
        return {
            "viewer": {
                "id": "user",
                "entity": ENTITY,
                "username": ENTITY,
                "name": ENTITY,
                "email": "tester@localhost",
                "flags": "{}",
                "admin": False,
                "teams": nothing,
                "apiKeys": nothing,
            }
        }

    on_GetViewer = on_GetDefaultEntity = on_Viewer  # noqa: N815

    def on_ServerFeaturesQuery(self, v):  # noqa: N802
        """What the server can do beyond the basics: nothing."""
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, v):  # noqa: N802
        """No such organisation."""
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def on_UpsertSweep(self, v):  # noqa: N802
        """Create a sweep."""
        name = f"sweep{next(self.numbers)}"
        config = yaml.safe_load(v["config"])
        project = v.get("projectName") or config.get("project") or "uncategorized"
        self.sweeps[name] = {"config": config, "project": project, "given": []}
        return {
            "upsertSweep": {
                "sweep": {"name": name, "project": _project(project)},
                "configValidationWarnings": [],
            }
        }

    def on_SweepWithRuns(self, v):  # noqa: N802
        """A sweep's configuration, for an agent that begins."""
        if v["sweep"] not in self.sweeps:
            return {"project": None}
        config = yaml.safe_dump(self.sweeps[v["sweep"]]["config"])
        keys = (
            "description",
            "createdAt",
            "heartbeatAt",
            "updatedAt",
            "earlyStopJobRunning",
            "bestLoss",
            "controller",
            "scheduler",
        )
        return {
            "project": {
                "sweep": {
                    **dict.fromkeys(keys),
                    "id": v["sweep"],
                    "name": v["sweep"],
                    "method": "grid",
                    "state": "RUNNING",
                    "config": config,
                    "runs": {"edges": []},
                }
            }
        }

    def on_CreateAgent(self, v):  # noqa: N802
        """Register an agent."""
        name = f"agent{next(self.numbers)}"
        self.agents[name] = Agent(name, v["sweep"])
        return {"createAgent": {"agent": {"id": name}}}

    def on_Heartbeat(self, v):  # noqa: N802
        """An agent reports; give it a run, tell it to wait, to stop its run, or to leave."""
        agent = self.agents[v["id"]]
        commands = []
        if not json.loads(v["runState"] or "{}"):
            agent.run = None
            run = self._take(agent)
            if run is not None:
                agent.run = run.name
                run.agents.append(agent.name)
                program = self.sweeps[agent.sweep]["config"]["program"]
                commands = [
                    {"type": "run", "run_id": run.name, "program": program, "args": run.args}
                ]
            elif not self.unfinished(agent.sweep):
                commands = [{"type": "exit"}]
        elif agent.run in self.to_stop:
            commands = [{"type": "stop", "run_id": agent.run}]
        return {"agentHeartbeat": {"agent": {"id": agent.name}, "commands": json.dumps(commands)}}

    def lose(self, run: str) -> None:
        """Take the agent of a run for gone: its process has been killed."""
        with self.lock:
            for agent in self.agents.values():
                if agent.run == run:
                    agent.run = None

    def unfinished(self, sweep: str) -> list[Run]:
        """Runs of a sweep that were given out and haven't ended."""
        return [r for r in self.runs.values() if r.sweep == sweep and r.exit_code is None]

    def _take(self, agent: Agent) -> Run | None:
        """The next run for an agent: one that another agent has left, or the engine's next."""
        from tune.sweep.config import engine

        taken = {a.run for a in self.agents.values()}
        for run in self.unfinished(agent.sweep):
            if run.name not in taken or run.preempted > run.handed_on:
                run.handed_on = run.preempted
                return run
        sweep = self.sweeps[agent.sweep]
        done = [engine().SweepRun(config=args, state="finished") for args in sweep["given"]]
        wanted = {k: sweep["config"][k] for k in ("method", "parameters")}
        (found,) = engine().next_runs(wanted, done)
        if found is None:
            return None
        sweep["given"].append(found.config)
        run = Run(f"run{next(self.numbers):05d}", agent.sweep, found.config)
        self.runs[run.name] = run
        return run

    def on_UpsertBucket(self, v):  # noqa: N802
        """A run begins, or changes what is known of it."""
        name = v.get("name") or v.get("id")
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        run.starts += bool(v.get("config") and v.get("host"))
        if v.get("config"):
            run.config.update({k: c["value"] for k, c in json.loads(v["config"]).items()})
        run.sweep = v.get("sweep") or run.sweep
        run.group = v.get("groupName") or run.group
        run.display_name = v.get("displayName") or run.display_name
        run.job_type = v.get("jobType") or run.job_type
        run.tags = v.get("tags") or run.tags
        run.notes = v.get("notes") or run.notes
        run.commit = v.get("commit") or run.commit
        run.entity = run.entity or v.get("entity")  # later ones repeat this server's answer
        if v.get("summaryMetrics"):
            run.summary.update(json.loads(v["summaryMetrics"]))
        bucket = {
            "id": run.name,
            "name": run.name,
            "displayName": run.display_name or run.name,
            "description": None,
            "config": None,
            "sweepName": run.sweep,
            "project": _project(v.get("project")),
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_ProjectInternalId(self, v):  # noqa: N802
        """A project's number, for a report's runs."""
        return {"project": {"id": "project", "internalId": "1"}}

    def on_GetProjects(self, v):  # noqa: N802
        """The projects there are."""
        user = self.on_Viewer(v)["viewer"] | {"deletedAt": None}
        node = {
            "__typename": "Project",
            "id": "project",
            "name": "tune",
            "entityName": ENTITY,
            "createdAt": "2026-01-01T00:00:00Z",
            "isBenchmark": False,
            "user": user,
        }
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"node": node, "cursor": "a"}], "pageInfo": page}}

    def on_upsertView(self, v):  # noqa: N802
        """A report is saved."""
        self.reports.append(v)
        user = {"id": "user", "username": ENTITY, "name": ENTITY, "photoUrl": None, "admin": False}
        view = {
            "id": "Vmlldzox",
            "name": v["name"],
            "displayName": v["displayName"],
            "type": v["type"],
            "description": v["description"],
            "spec": v["spec"],
            "project": {"id": "project", "name": v["projectName"], "entityName": ENTITY},
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "user": user,
            "coverUrl": None,
            "previewUrl": None,
            "locked": False,
            "viewCount": 0,
            "starCount": 0,
            "alertSubscription": None,
        }
        return {"upsertView": {"view": view, "inserted": True}}

    def on_RunResumeStatus(self, v):  # noqa: N802
        """What there is of a run that is begun again; nothing of one that never began."""
        run, bucket = self.runs.get(v["name"]), None
        if run is not None and run.starts:
            bucket = {
                "id": run.name,
                "name": run.name,
                "displayName": run.display_name,
                "summaryMetrics": json.dumps(run.summary),
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
                "eventsTail": "[]",
                "config": json.dumps({k: {"value": x} for k, x in run.config.items()}),
                "tags": run.tags,
                "notes": run.notes,
                "wandbConfig": json.dumps({"t": 1}),
            }
        return {
            "model": {
                "id": "project",
                "name": v["project"],
                "entity": {"id": ENTITY, "name": ENTITY},
                "bucket": bucket,
            }
        }

    def on_NotifyScriptableRunAlert(self, v):  # noqa: N802
        """A run sends its user a message."""
        self.alerts.append(v)
        return {"notifyScriptableRunAlert": {"success": True}}

    def on_RunState(self, v):  # noqa: N802
        """A run is running until it has said how it ended."""
        ended = self.runs[v["run"]].exit_code is not None
        state = "finished" if ended else "running"
        return {"project": {"run": {"id": v["run"], "state": state}}}

    def on_CreateRunFiles(self, v):  # noqa: N802
        """Where to upload a run's files."""
        self.runs[v["run"]].files += v["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def on_CreateArtifact(self, v):  # noqa: N802
        """An artifact that is there already, so that nothing of it is uploaded.

        The same files under one name are one version, as in W&B.
        """
        made = v["input"]
        known = [self._version(each) for each in self.artifacts]
        if self._version(made) not in known:
            self.artifacts.append(made)
            known.append(self._version(made))
        name = f"artifact{known.index(self._version(made))}"
        sequence = {"latestArtifact": {"id": name}}
        return {
            "createArtifact": {
                "artifact": {"id": name, "state": "COMMITTED", "artifactSequence": sequence}
            }
        }

    @staticmethod
    def _version(made: dict) -> tuple:
        """An artifact's name and its files' digest."""
        return made["artifactCollectionName"], made["digest"]

    def on_ArtifactType(self, v):  # noqa: N802
        """No artifact has a type yet."""
        return {"project": {"artifact": None}}

    def on_UseArtifact(self, v):  # noqa: N802
        """An artifact that a run uses."""
        used = v.get("input", v)
        number = int(used["artifactID"].removeprefix("artifact"))
        self.used.append(self.artifacts[number]["artifactCollectionName"])
        self.uses.append((used.get("runName"), used["artifactID"]))
        return {"useArtifact": {"artifact": {"id": used["artifactID"]}}}

    def on_ArtifactByID(self, v):  # noqa: N802
        """An artifact as it was created."""
        made = self.artifacts[int(v["id"].removeprefix("artifact"))]
        project = _project(made["projectName"]) | {"internalId": "1"}
        collection = {
            "__typename": "ArtifactSequence",
            "name": made["artifactCollectionName"],
            "project": project,
        }
        alias = {"__typename": "ArtifactAlias", "id": "alias", "alias": "v0"}
        artifact = {
            "__typename": "Artifact",
            "id": v["id"],
            "artifactSequence": collection,
            "versionIndex": 0,
            "artifactType": {"name": made["artifactTypeName"]},
            "description": None,
            "metadata": made["metadata"],
            "ttlDurationSeconds": 0,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 1,
            "digest": made["digest"],
            "commitHash": None,
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [alias | {"artifactCollection": collection}],
        }
        return {"artifact": artifact}

    def stream(self, name: str, body: dict) -> None:
        """Take a part of a run's file stream."""
        with self.lock:
            run = self.runs.setdefault(name, Run(name))
            for file, part in (body.get("files") or {}).items():
                if file == "wandb-history.jsonl":
                    for i, line in enumerate(part["content"]):
                        run.history[part["offset"] + i] = json.loads(line)
                elif file == "wandb-summary.json":
                    run.summary = json.loads(part["content"][-1])  # always the whole
            run.preempting = run.preempting or bool(body.get("preempting"))
            if body.get("complete"):
                run.exit_code = body.get("exitcode", 0)
                if run.preempting and run.exit_code:  # it waits for another agent
                    run.preempted += 1
                    run.preempting, run.exit_code = False, None


class _Http(ThreadingHTTPServer):
    """HTTP in threads, unmoved by clients that are killed."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Let a connection that was cut off pass; show anything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _project(name: str | None) -> dict:
    """A project as GraphQL returns it."""
    return {"id": "project", "name": name or "tune", "entity": {"id": ENTITY, "name": ENTITY}}


def _handler(server: WandbServer) -> type:
    """The HTTP side of a server."""

    class Handler(BaseHTTPRequestHandler):
        """A request."""

        protocol_version = "HTTP/1.1"

        def do_POST(self):
            data = self._read()
            if self.path.startswith("/sdk/otel/"):  # what the client measures of itself
                self._reply({})
                return
            body = json.loads(data or b"{}")
            if self.path.startswith("/graphql"):
                name = re.search(r"\b(?:query|mutation)\s+(\w+)", body["query"])[1]
                if not hasattr(server, f"on_{name}"):
                    server.unknown.append(f"{name}: {body['query'][:2000]}")
                    self._reply({"data": None, "errors": [{"message": f"unknown query {name}"}]})
                    return
                self._reply({"data": server.answer(name, body.get("variables") or {})})
            elif match := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                server.stream(match[1], body)
                self._reply({"exitcode": None, "limits": {}})
            else:
                server.unknown.append(f"POST {self.path}")
                self._reply({}, 404)

        def do_PUT(self):
            self._read()
            self._reply({})

        def do_GET(self):
            server.unknown.append(f"GET {self.path}")
            self._reply({}, 404)

        def _read(self) -> bytes:
            """The request's body."""
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                data = b"".join(parts)
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def _reply(self, content: dict, status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            """Say nothing."""

    return Handler
