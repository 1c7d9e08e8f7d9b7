"""The web application: all routes, the checks of every request, and the headers of every response."""

import base64
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tf_mlm.serving import fill_mask_api, page, tf_serving
from tf_mlm.serving.metrics import CONTENT_TYPE
from tf_mlm.serving.openapi import describe_api
from tf_mlm.serving.page import PageContent
from tf_mlm.serving.requests import RequestError
from tf_mlm.serving.service import Service, error_response, json_response

_LOG = logging.getLogger(__name__)
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def build_app(service: Service, content: PageContent, allowed_hosts: Sequence[str]) -> Starlette:
    """
    Args:
        allowed_hosts: the names in `Host` that are answered. Without this check, a foreign page could send requests to
            a server on this machine, by DNS rebinding, and read the answers.
    """
    html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page_headers = {"Content-Security-Policy": page_policy(html), "Cache-Control": "no-cache"}

    async def show_page(request: Request) -> Response:
        return HTMLResponse(html, headers=page_headers)

    async def healthz(request: Request) -> Response:
        if service.is_stopping:
            return json_response({"status": "stopping"}, 503)
        return json_response({"status": "ok", "models": list(service.models)})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.as_text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(request: Request) -> Response:
        return json_response(describe_api())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    routes: list[BaseRoute] = [
        Route("/", show_page),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *page.routes(service, content),
        *fill_mask_api.routes(service),
        *tf_serving.routes(service),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(_Measured, service=service, routes=routes),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False),
            Middleware(_SameOrigin),
        ],
        exception_handlers={RequestError: _refuse, HTTPException: _not_found},
    )


def page_policy(html: str) -> str:
    """The content security policy that allows only the script and the style of the page, by their hashes."""

    def hashes(tag: str) -> str:
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        f"img-src 'self' data:; {_NOTHING_ELSE}"
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"{request.url.path} does not exist; see /openapi.json.",
        405: f"{request.method} is not allowed for {request.url.path}; see /openapi.json.",
    }.get(error.status_code, error.detail)
    response = error_response(RequestError(message, error.status_code))
    response.headers.update(error.headers or {})
    return response


class _Measured:
    """Counts and times each request, adds the headers of every response, and answers if a route fails."""

    def __init__(self, app: ASGIApp, service: Service, routes: Sequence[BaseRoute]):
        self._app = app
        self._metrics = service.metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Content-Security-Policy", f"default-src 'none'; {_NOTHING_ELSE}")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _LOG.exception("a request failed")
            if not status:
                failure = error_response(RequestError("The server failed to answer; see its log.", 500))
                await failure(scope, receive, send_with_headers)
        finally:
            route = self._route_of(scope)
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _route_of(self, scope: Scope) -> str:
        """The path of the route, not of the request: metrics must not grow with the paths that clients invent."""
        return next((path_of(route) for route in self._routes if route.matches(scope)[0] == Match.FULL), "none")


def path_of(route: BaseRoute) -> str:
    """The path of a route, without the types of its parameters."""
    assert isinstance(route, Route)
    return re.sub(r":\w+}", "}", route.path)


class _SameOrigin:
    """Refuses requests from pages of other origins. A browser sends these, although it hides the answers."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                refusal = error_response(RequestError("Requests from pages of other origins are not allowed.", 403))
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
