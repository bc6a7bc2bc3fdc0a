"""The server: REST, health, metrics and documentation of the API, and the page unless it is switched off."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from vitcifar import __version__
from vitcifar.data.image import MAX_BYTES
from vitcifar.serving.api import Predictor, predict_route
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.feedback_route import feedback_route
from vitcifar.serving.metrics import Metrics, RequestCounter
from vitcifar.serving.middleware import (
    MAX_REQUEST_BYTES,
    HostCheck,
    OriginCheck,
    PublicOrigin,
    RequestLimits,
    SecurityHeaders,
    SubPath,
    largest_image,
)
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.monitor_route import monitor_route
from vitcifar.serving.open_inference import open_inference_routes
from vitcifar.serving.page.gradio_setup import forged_errors, keep_routes, load_gradio, theme
from vitcifar.serving.prediction_queue import CLIENT_LEFT, PredictionQueue
from vitcifar.serving.scoring import scoring_routes
from vitcifar.serving.shadow import Shadow
from vitcifar.serving.suggest import Suggestion

LOG = logging.getLogger(__name__)
MAX_QUEUE_SIZE = 64  # predictions on the page; the next request is rejected
MAX_ERRORS, MAX_SENTENCE = 5, 1000  # of a request: its wrong parameters, and the characters of what is said of them
MAX_SESSIONS = 200  # of the page, about 40 kB each; an evicted one goes on as a new one
STYLES = ("page", "feedback", "tabs", "monitor", "label")
PAGE_CSS = [Path(__file__).with_name("page") / f"{name}.css" for name in STYLES]
SWAGGER = Path(fastapi_offline.__file__).with_name("static")  # nothing is loaded from other machines
LogIn = Callable[[str, str], Awaitable[bool]]


def build_server(
    pool: ModelPool,
    *,
    host: str,
    allowed_hosts: tuple[str, ...] = (),
    log_in: LogIn | None = None,
    origin: str = "",
    root_path: str = "",
    store: FeedbackStore | None = None,
    shadow: Shadow | None = None,
    max_request: int = MAX_REQUEST_BYTES,
) -> FastAPI:
    """The server without the page. With `log_in`, everything but health asks for a name and a password.

    Feedback is taken with a `store`; a `shadow` is only reported on here. A request has at most `max_request` bytes.
    """
    queue = PredictionQueue()
    metrics = Metrics(pool, queue, shadow)
    predictor = Predictor(pool, queue, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(
        title=f"{pool.state.current.model_name}: image classification",
        description="Classify images with a registered version. A prediction names the version that answered.",
        version=__version__,
        docs_url=None,  # with files from other machines
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(SubPath, root_path=root_path),
            Middleware(RequestCounter, metrics=metrics),
            Middleware(SecurityHeaders),
            Middleware(HostCheck, host=host, allowed_hosts=allowed_hosts),
            Middleware(PublicOrigin, origin=origin),
            Middleware(OriginCheck),
            Middleware(RequestLimits, max_bytes=max_request),
        ],
    )
    app.add_exception_handler(RequestValidationError, one_sentence)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=CLIENT_LEFT))
    secured = [Depends(password_check(log_in))] if log_in else []
    for routes in (predict_route, open_inference_routes, scoring_routes):
        app.include_router(routes(predictor), dependencies=secured)
    app.include_router(monitor_route(pool, shadow), dependencies=secured)
    if store:
        app.include_router(feedback_route(predictor, store), dependencies=secured)
    add_health(app, pool)  # last: routes are tried in this order
    add_documentation(app, metrics, secured, root_path)
    return app


def password_check(log_in: LogIn) -> Callable[..., Awaitable[None]]:
    """A dependency of routes: HTTP's basic authentication."""
    basic = HTTPBasic(auto_error=False)

    async def check(credentials: HTTPBasicCredentials | None = Depends(basic)) -> None:  # noqa: B008
        if credentials is None or not await log_in(credentials.username, credentials.password):
            detail = "Log in with a name and a password, as curl -u NAME:PASSWORD does."
            raise HTTPException(401, detail, headers={"WWW-Authenticate": 'Basic realm="vitcifar"'})

    return check


async def one_sentence(request: Request, error: Exception) -> JSONResponse:
    """The response to a wrong parameter."""
    assert isinstance(error, RequestValidationError)
    sentences = [f"{one['loc'][-1]}: {one['msg'][:1].lower()}{one['msg'][1:]}." for one in error.errors()[:MAX_ERRORS]]
    text = " ".join(sentence if sentence.isprintable() else repr(sentence) for sentence in sentences)
    return JSONResponse({"detail": text[:MAX_SENTENCE]}, 422)


async def forged(request: Request, error: Exception) -> JSONResponse:
    """The response to what Gradio does not expect, and neither the page nor gradio_client sends."""
    LOG.warning("%s %.200r: %.500r", request.method, request.url.path, error)
    return JSONResponse({"detail": "The request is not one of this page: reload the page and try again."}, 400)


def add_health(app: FastAPI, pool: ModelPool) -> None:
    """`/health/live`, `/health/ready` and their names in other protocols, which need no password."""

    def state() -> dict[str, Any]:
        now = pool.state
        aliases = now.aliases(now.current.version)
        return {
            "model": now.current.model_name,
            "version": now.current.version,
            "spec": pool.spec,
            "aliases": list(aliases),
            "release_id": now.current.manifest.release_id,
            "problem": now.problem,
        }

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, Any]:
        """The version that serves."""
        return {"status": "ok", **state()}

    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, Any]:
        """Whether the process responds."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    async def ready() -> dict[str, Any]:
        """Ready as soon as a version is loaded; `problem` says why it may not be the one that it should be."""
        return {"status": "ready", **state()}

    @app.get("/v2/health/live", tags=["Open Inference Protocol"])
    async def v2_live() -> dict[str, bool]:
        """Whether the process responds."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["Open Inference Protocol"])
    async def v2_ready() -> dict[str, bool]:
        """Whether a version is loaded."""
        return {"ready": True}

    @app.get("/ping", tags=["MLflow"])
    async def ping() -> Response:
        """Whether a version is loaded."""
        return Response("\n", media_type="application/json")


def add_documentation(app: FastAPI, metrics: Metrics, secured: list[Any], root_path: str) -> None:
    """`/metrics`, `/docs` and `/openapi.json`."""

    @app.get("/metrics", tags=["metrics"], dependencies=secured, response_class=Response)
    def text() -> Response:  # in a thread: a test of drift takes a while
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi.json", include_in_schema=False, dependencies=secured)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi() | {"servers": [{"url": root_path or "/"}]})

    @app.get("/docs", include_in_schema=False, dependencies=secured)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=f"{root_path}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root_path}/docs/files/swagger-ui-bundle.js",
            swagger_css_url=f"{root_path}/docs/files/swagger-ui.css",
            swagger_favicon_url=f"{root_path}/docs/files/favicon.png",
        )

    app.mount("/docs/files", StaticFiles(directory=SWAGGER))


def mount_page(
    app: FastAPI,
    pool: ModelPool,
    poll_seconds: float,
    log_in: LogIn | None,
    root_path: str,
    store: FeedbackStore | None = None,
    shadow: Shadow | None = None,
    suggestions: Sequence[Suggestion] = (),
    max_request: int = MAX_REQUEST_BYTES,
) -> Any:
    """Mount the page at `/`. Returns Gradio's app."""
    from vitcifar.serving.page.layout import build_page
    from vitcifar.serving.page.uploads import UploadLimit

    gradio = load_gradio()
    options: dict[str, Any] = {"password": log_in is not None, "max_bytes": largest_image(max_request)}
    blocks = build_page(pool, poll_seconds, store, shadow, suggestions=suggestions, **options)
    blocks.queue(api_open=False, max_size=MAX_QUEUE_SIZE, default_concurrency_limit=2)
    blocks.state_session_capacity = MAX_SESSIONS
    gradio.mount_gradio_app(
        app,
        blocks,
        "/",
        theme=theme(),
        css_paths=PAGE_CSS,
        auth=log_in,
        root_path=root_path or None,
        max_file_size=min(MAX_BYTES, max_request),
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        footer_links=[],
    )
    # What `launch` sets and mounting does not: without them, Gradio opens any file that a forged request names.
    blocks.has_launched = blocks.is_running = True
    gradio_app = app.routes[-1].app  # type: ignore[attr-defined]
    keep_routes(gradio_app.router)
    gradio_app.add_middleware(UploadLimit)
    gradio_app.add_exception_handler(RequestValidationError, one_sentence)  # Gradio's own repeats the whole request
    for kind in forged_errors():
        gradio_app.add_exception_handler(kind, forged)
    return gradio_app
