"""The HTTP side of `serve`: routes, statuses, pages. Captioners are reached through `CaptionerClient`, without Ray."""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from captioning.errors import CaptioningError
from jobs.serving.docs import docs_page
from jobs.serving.fetching import fetch
from jobs.serving.limiter import RequestLimiter
from jobs.serving.metrics import Metrics
from jobs.serving.openapi import ERROR_RESPONSES, REQUEST_BODY, Caption, Results
from jobs.serving.request_errors import RequestError, error_body, to_request_error
from jobs.serving.requests import CaptionRequest, Options, read_request
from jobs.serving.samples import Samples
from jobs.serving.settings import ServeSettings

PAGE = Path(__file__).with_name("page.html")

#: A page is one file that loads nothing from elsewhere and is shown in no frame; the browser enforces that.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_MAX_FETCHES = 8


class CaptionerClient(Protocol):
    """The interface to a captioner, wherever it runs."""

    def about(self) -> Awaitable[dict[str, Any]]:
        """See `CaptionerReplica.about`."""
        ...

    def caption(self, data: bytes, overrides: Mapping[str, Any], attention: bool) -> Awaitable[dict[str, Any]]:
        """See `CaptionerReplica.caption`."""
        ...


class CaptionService:
    """The state that the routes share: captioners by short name, limits and counters."""

    _latest: "CaptionService"

    @classmethod
    def latest(cls) -> "CaptionService":
        """The last one made in this process: Serve builds the routes without passing an instance."""
        return cls._latest

    def __init__(self, captioners: Mapping[str, CaptionerClient], settings: ServeSettings) -> None:
        self.captioners = dict(captioners)
        self.settings = settings
        limits = settings.limits
        self.limiter = RequestLimiter(
            max_in_flight=limits.max_requests, rate=limits.client_rate, burst=limits.client_burst
        )
        self.metrics = Metrics()
        self.samples = Samples()
        CaptionService._latest = self
        self._fetches = ThreadPoolExecutor(_MAX_FETCHES, thread_name_prefix="fetch")

    async def answer(self, request: Request) -> Response:
        """Answer a request to `/caption` with captions or an error."""
        begin = time.perf_counter()
        client = request.client.host if request.client else ""
        limit = self.settings.limits.timeout_s
        try:
            with self.limiter.admit(client):
                caption_request = await asyncio.wait_for(read_request(request, self.settings.limits), limit)
                left = max(0.001, limit - (time.perf_counter() - begin))
                content = await asyncio.wait_for(self._captions(caption_request, begin), left)
            answer = JSONResponse(content)
        except TimeoutError:
            late = RequestError(504, "timeout", f"The request took longer than {limit:g} s.", retry_after=1)
            answer = _error_response(late)
        except CaptioningError as error:
            answer = _error_response(to_request_error(error))
        self.metrics.request(answer.status_code, time.perf_counter() - begin)
        return answer

    async def _captions(self, caption_request: CaptionRequest, begin: float) -> dict[str, Any]:
        name = self._name(caption_request.options.model)
        each = [self._caption(name, image, caption_request.options, begin) for image in caption_request.images]
        if not caption_request.multiple:
            return await each[0]
        found = await asyncio.gather(*each, return_exceptions=True)
        results = []
        for result in found:
            if isinstance(result, CaptioningError):
                results.append(error_body(to_request_error(result)))
            elif isinstance(result, BaseException):
                raise result
            else:
                results.append(result)
        return {"results": results}

    async def _caption(self, name: str, image: bytes | str, options: Options, begin: float) -> dict[str, Any]:
        try:
            data = image if isinstance(image, bytes) else await self._fetched(image)
            answer = await self.captioners[name].caption(data, options.decoding(), options.attention)
            refused = answer.get("refused")
            if refused is not None:
                raise refused
        except CaptioningError as error:
            self.metrics.image(name, to_request_error(error).error_class)
            raise
        self.metrics.image(name, "ok", answer["timing"])
        answer["timing"]["total_ms"] = round(1000 * (time.perf_counter() - begin), 1)
        return answer

    async def _fetched(self, url: str) -> bytes:
        loop = asyncio.get_running_loop()
        settings = self.settings
        return await loop.run_in_executor(self._fetches, fetch, url, settings.storage, settings.limits)

    def _name(self, requested: str | None) -> str:
        if requested is None:
            return next(iter(self.captioners))
        if requested not in self.captioners:
            served = ", ".join(self.captioners)
            raise RequestError(404, "model", f"This server has no captioner {requested[:80]!r}. It has: {served}.")
        return requested

    async def about(self, seconds: float) -> list[dict[str, Any]]:
        """What each captioner is, with its short name. Raises `TimeoutError`, and what the captioners raise."""
        found = await asyncio.wait_for(asyncio.gather(*(each.about() for each in self.captioners.values())), seconds)
        return [
            {**about, "checkpoint": about["name"], "name": name}
            for name, about in zip(self.captioners, found, strict=True)
        ]


def build_app(service: CaptionService) -> FastAPI:
    """The routes of `service`."""
    from importlib.metadata import version

    app = FastAPI(
        title="Captioning",
        version=version("captioning"),
        description="Captions for images. A page to try them is at /.",
        # FastAPI's own pages are scripts from elsewhere: blank where there is no internet.
        docs_url=None,
        redoc_url=None,
    )

    @app.post(
        "/caption",
        response_model=Caption | Results,
        responses=ERROR_RESPONSES,
        openapi_extra={"requestBody": REQUEST_BODY},
        summary="Caption an image, or several",
    )
    async def caption(request: Request) -> Response:
        return await service.answer(request)

    @app.get("/models", summary="The captioners served (the first is the default) and the limits")
    async def models() -> dict[str, Any]:
        limits = service.settings.limits
        bounds = {name: getattr(limits, name) for name in ("max_mb", "max_beam_size", "max_new_tokens", "max_images")}
        return {"models": await service.about(30), "limits": bounds}

    @app.get("/health", summary="200 if every captioner answers, else 503")
    async def health() -> JSONResponse:
        try:
            return JSONResponse({"status": "ok", "models": [about["name"] for about in await service.about(10)]})
        except Exception as error:  # whatever it is, the captioner does not answer
            return JSONResponse({"status": "unavailable", "reason": type(error).__name__}, 503)

    @app.get("/metrics", summary="Counters and latencies, for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(service.limiter.in_flight), media_type=service.metrics.content_type)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url)), headers=_PAGE_HEADERS)

    @app.get("/samples", include_in_schema=False)
    async def samples() -> list[str]:
        return service.samples.names

    @app.get("/samples/{name}", include_in_schema=False)
    def sample(name: str) -> Response:
        photo = service.samples.jpeg(name)
        if photo is None:
            return _error_response(RequestError(404, "missing", f"There is no sample {name[:80]!r}."))
        return Response(photo, media_type="image/jpeg", headers={"Cache-Control": "max-age=86400"})

    return app


def _error_response(error: RequestError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(error), error.status, headers=headers)
