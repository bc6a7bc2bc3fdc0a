"""The page: its heading, the list of versions, the status that follows the alias, and the tabs."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitcifar.data.image import MAX_BYTES
from vitcifar.errors import VitCifarError
from vitcifar.serving.feedback import FeedbackStore
from vitcifar.serving.model_pool import MAX_SPEC, ModelPool
from vitcifar.serving.page import html
from vitcifar.serving.page.batch import build_batch
from vitcifar.serving.page.classify import build_classify
from vitcifar.serving.page.compare import build_compare
from vitcifar.serving.page.dropdown import build_dropdown, numbered_versions
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.label import build_label
from vitcifar.serving.page.monitor import build_monitor
from vitcifar.serving.page.versions import build_versions
from vitcifar.serving.shadow import Shadow
from vitcifar.serving.suggest import Suggestion

CLEANUP_SECONDS, MAX_FILE_AGE_SECONDS = 300, 3300  # together less than the hour that the page promises
SCRIPT = Path(__file__).with_name("page.js")


def build_page(
    pool: ModelPool,
    poll_seconds: float,
    store: FeedbackStore | None = None,
    shadow: Shadow | None = None,
    *,
    suggestions: Sequence[Suggestion] = (),
    password: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """The components of the page and their events. `password` = programs must log in; `suggestions` need a store; an
    image that is sent has at most `max_bytes`."""
    gradio = load_gradio()
    model = pool.state.current
    title = f"{model.model_name}: {len(model.class_names)} classes"
    cleanup = (CLEANUP_SECONDS, MAX_FILE_AGE_SECONDS)
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=cleanup) as blocks:
        with gradio.Row(elem_id="top"):
            gradio.HTML(html.heading(model.model_name, model.class_names), elem_id="head", scale=3)
            version = build_dropdown(version_choices(pool), pool.spec, label="Version", elem_id="version")
        status = gradio.HTML(html.status(pool.state, 0), elem_id="status")
        # The serial that the page has shown. No gradio.State: its change tells nobody without the queue.
        seen = gradio.Number(0, precision=0, visible="hidden")
        with gradio.Tabs(elem_id="tabs"):
            with gradio.Tab("Classify"):
                build_classify(pool, version, status, store, max_bytes=max_bytes)
            with gradio.Tab("Batch"):
                build_batch(pool, version, max_bytes)
            with gradio.Tab("Compare"):
                build_compare(pool, seen, max_bytes)
            with gradio.Tab("Versions"):
                build_versions(pool, seen)
            with gradio.Tab("Monitor") as tab:
                build_monitor(pool, shadow, tab)
            if store and suggestions:
                with gradio.Tab("Label"):
                    build_label(pool, store, suggestions)
        script = SCRIPT.read_text(encoding="utf-8")
        gradio.HTML(html.programs(password), js_on_load=script, apply_default_css=False, elem_id="foot")
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        version.input(functools.partial(show_status, pool), [version, seen], status, **at_once)
        for trigger in (blocks.load, gradio.Timer(poll_seconds).tick):  # the pool, for changes
            trigger(functools.partial(poll, pool), [seen, version], [seen, status, version], **at_once)
    return blocks


def version_choices(pool: ModelPool) -> list[tuple[str, str]]:
    """The entries of the version list: the default first, then every version, the newest first."""
    state, choices = pool.state, numbered_versions(pool)
    if pool.spec in [value for _, value in choices]:
        return choices
    return [(f"{pool.spec} (now version {state.current.version})", pool.spec), *choices]


def show_status(pool: ModelPool, spec: str, seen_serial: int) -> str:
    """The status for a page that has shown the state `seen_serial`."""
    try:
        selected = pool.get(spec[:MAX_SPEC])
    except VitCifarError:  # the card shows the error
        selected = None
    return html.status(pool.state, seen_serial, selected)


def poll(pool: ModelPool, seen_serial: int, spec: str) -> tuple[Any, ...]:
    """The serial, the status and the version list of a page, when the pool has changed since `seen_serial`."""
    gradio, serial = load_gradio(), pool.state.serial
    if seen_serial == serial:
        return gradio.skip(), gradio.skip(), gradio.skip()
    return serial, show_status(pool, spec, seen_serial), gradio.HTML(spec, choices=version_choices(pool))
