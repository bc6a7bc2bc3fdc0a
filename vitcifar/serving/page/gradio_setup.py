"""Gradio, imported when the page is built, with its telemetry off: nothing connects to another machine."""

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# What the page and gradio_client ask for. Gradio has many more routes: to forward requests, to record, to write code.
ROUTES = (
    *(
        "/",
        "/config",
        "/login",
        "/logout",
        "/favicon.ico",
        "/robots.txt",
        "/theme.css",
        "/manifest.json",
        "/openapi.json",
    ),
    *("/assets/{path:path}", "/static/{path:path}", "/svelte/{path:path}"),
)
API_ROUTES = (
    *("/user", "/login_check", "/token", "/app_id", "/info", "/openapi.json", "/startup-events", "/theme.css"),
    *("/call/{api_name}", "/call/{api_name}/{event_id}", "/run/{api_name}", "/api/{api_name}"),
    *("/queue/join", "/queue/data", "/queue/status", "/cancel", "/reset", "/heartbeat/{session_hash}"),
    *("/component_server", "/upload", "/upload_progress", "/file={path_or_url:path}"),
)
MAX_SESSION_NAME = 64  # characters; Gradio's own have 11


@functools.cache
def private_folder() -> Path:
    """A folder of this process for uploads and examples, deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="vitcifar-page-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def load_gradio() -> Any:
    """Gradio, imported without anything that connects to other machines."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(private_folder() / "uploads")
    import annotated_types
    import gradio
    from gradio import data_classes, processing_utils, state_holder

    async def reject_download(*args: Any, **kwargs: Any) -> str:
        raise gradio.Error(
            "Send the image itself, not its address: this page downloads nothing.", print_exception=False
        )

    # A request may name a web address instead of an uploaded file, and Gradio would download it.
    processing_utils.async_ssrf_protected_download = reject_download
    # Gradio would keep the last inputs of every session, images of 30 MB among them, for its "deep links".
    setattr(state_holder.SessionState, "_update_value_in_config", lambda *args: None)  # noqa: B010
    # The name that a client gives its session is kept for as long as the session.
    predict = (data_classes.PredictBody, data_classes.PredictBodyInternal, data_classes.SimplePredictBody)
    for body in (*predict, data_classes.ComponentServerJSONBody, data_classes.ComponentServerBlobBody):
        body.model_fields["session_hash"].metadata.append(annotated_types.MaxLen(MAX_SESSION_NAME))
        body.model_rebuild(force=True)
    return gradio


def keep_routes(router: Any) -> None:
    """Take every route but ours away from Gradio's app, before its first request."""
    for route in router.routes:
        if inner := getattr(route, "original_router", None):  # of FastAPI's newer versions
            keep_routes(inner)
    kept = {*ROUTES, *(f"/gradio_api{path}" for path in API_ROUTES)}
    router.routes[:] = [
        route
        for route in router.routes
        if not (path := getattr(route, "path", "")) or (path.rstrip("/") or "/") in kept
    ]


def forged_errors() -> tuple[type[Exception], ...]:
    """What Gradio raises at requests that it does not expect, instead of answering them."""
    import httpx
    from gradio.route_utils import FnIndexInferError

    return FnIndexInferError, httpx.InvalidURL, AttributeError, LookupError, OSError, TypeError, ValueError


def theme() -> Any:
    gradio = load_gradio()
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gradio.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono, text_size="md", radius_size="md"
    ).set(
        body_background_fill="#f6f8fb", body_background_fill_dark="#0d1422", block_label_background_fill="transparent"
    )
