"""A fake of the parts of Ray's Jobs API that `python -m cluster` uses; it records requests and has settable answers.

It answers like Ray 2.60; `test_submit_to_ray.py` tests against a real one.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeHead:
    """Requires `token` if it is not None. A job's log is sent in pieces; a None among them drops the connection."""

    token: str | None = None
    ray: str = "2.60.0"
    python: str = "3.11.9"
    packages: dict[str, bytes] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[str | None]] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    #: A job's state right after its submission.
    ends: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCEEDED", "driver_exit_code": 0})
    writes: list[str | None] = field(default_factory=lambda: ["9 of 9 images (100%)\n"])
    refuse: tuple[int, str] | None = None
    #: Answer every request with a web page of this status, like a login page instead of a head.
    page: int | None = None
    asked: list[str] = field(default_factory=list)
    address: str = ""
    #: Number of submissions whose answer is lost after the job was accepted.
    lose_answers: int = 0

    def job(self, job_id: str, **details: Any) -> None:
        """Add a job with this id."""
        self.details[job_id] = {
            "type": "SUBMISSION",
            "submission_id": job_id,
            "entrypoint": "exec sh cluster/start.sh caption s3://a -o s3://b",
            "start_time": 1_790_000_000_000,
            **details,
        }

    @web.middleware
    async def check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if self.page is not None:
            return web.Response(status=self.page, text="<html>Sign in</html>", content_type="text/html")
        if self.token is not None:
            given = request.headers.get("Authorization") or request.headers.get("X-Ray-Authorization")
            if not given:
                return web.Response(status=401, text="Unauthorized: Missing authentication token")
            if given != f"Bearer {self.token}":
                return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.check], client_max_size=100 * 1024**2)
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/v0/cluster_metadata", self._metadata),
                web.get("/api/packages/gcs/{name}", self._get_package),
                web.put("/api/packages/gcs/{name}", self._put_package),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/", self._list),
                web.get("/api/jobs/{id}", self._job),
                web.get("/api/jobs/{id}/logs", self._logs),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
                web.post("/api/jobs/{id}/stop", self._stop),
            ]
        )
        return app

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self.ray, "ray_commit": "", "session_name": "s"})

    async def _metadata(self, request: web.Request) -> web.Response:
        data = {"rayVersion": self.ray, "pythonVersion": self.python}
        return web.json_response({"result": True, "msg": "", "data": data})

    async def _get_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuse is not None:
            return web.Response(status=self.refuse[0], text=self.refuse[1])
        self.submitted.append(body)
        self.job(
            body["submission_id"],
            entrypoint=body["entrypoint"],
            metadata=body["metadata"],
            runtime_env=body["runtime_env"],
            **self.ends,
        )
        self.logs.setdefault(body["submission_id"], list(self.writes))
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(
            [*self.details.values(), {"type": "DRIVER", "job_id": "01000000", "status": "RUNNING"}]
        )

    async def _job(self, request: web.Request) -> web.Response:
        found = self.details.get(request.match_info["id"])
        return web.Response(status=404, text="does not exist") if found is None else web.json_response(found)

    async def _logs(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in self.details:
            return web.Response(status=404, text="does not exist")
        written = self.logs.get(request.match_info["id"], [])
        return web.json_response({"logs": "".join(piece for piece in written if piece is not None)})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        pieces = self.logs.get(request.match_info["id"], [])
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for place, piece in enumerate(pieces):
            if piece is None:
                pieces.pop(place)  # the next connection gets further
                assert request.transport is not None
                request.transport.abort()
                return socket
            await socket.send_str(piece)
        while self.details[request.match_info["id"]]["status"] == "RUNNING":
            await asyncio.sleep(0.05)
        return socket

    async def _stop(self, request: web.Request) -> web.Response:
        details = self.details.get(request.match_info["id"])
        if details is None:
            return web.Response(status=404, text="does not exist")
        details |= {"status": "STOPPED", "end_time": details["start_time"] + 12_000}
        return web.json_response({"stopped": True})


@contextmanager
def serving(head: FakeHead) -> Iterator[FakeHead]:
    """Serve `head` on a free port of this machine; its `address` is set."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(head.app(), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        head.address = f"http://127.0.0.1:{port}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield head
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
