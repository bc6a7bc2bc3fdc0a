"""The tab Versions: every version with its accuracy, gates, aliases and run, its model card, and who moved an alias.

The list comes from the pool. What needs the store (release.json, the experiment of a run) is read in a thread: a
registry that is unreachable blocks no page.
"""

import dataclasses
import re
import threading
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from vitcifar.errors import VitCifarError
from vitcifar.registry.aliases import Event, read_events
from vitcifar.registry.registry import Registry, Version, select
from vitcifar.release.manifest import Manifest, served_evaluation
from vitcifar.serving.model_pool import MAX_SPEC, RETRY_SECONDS, ModelPool
from vitcifar.serving.page.gradio_setup import load_gradio
from vitcifar.serving.page.html import percent
from vitcifar.stores import run_url

if TYPE_CHECKING:
    import gradio

    from vitcifar.registry.verdicts import Verdict

MAX_VERSIONS = 50  # listed, besides those with an alias
MAX_EVENTS = 50
WAIT_SECONDS = 1.0  # between two looks at what the thread has read
SELECT = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-card]");
  if (button) trigger("select", { version: button.dataset.card });
});"""
GO_TO_CARD = 'watch("value", () => element.firstElementChild?.focus());'
# Folders and addresses of the server in texts that were written for its users, not for visitors.
ADDRESS = re.compile(r"\b[a-z][\w+.-]*:/{1,3}[^\s|,;'\"]+", re.IGNORECASE)
FOLDER = re.compile(r"(?<![\w.:/<…])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\|,;'\"]+[/\\])+|(?<![\w.:/<…])[/~](?=\w)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Details:
    """What is read from the store for a version; `problem` says why it could not be."""

    release: Manifest | None = None
    run_url: str = ""
    problem: str = ""
    failed: float = 0.0  # when


class DetailsReader:
    """Reads the details of versions in a thread and keeps them; what could not be read is tried again later."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._known: dict[tuple[int, str | None], Details] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, versions: Sequence[Version]) -> dict[int, Details]:
        """The details that are known, by number. The thread reads the others."""
        known = {version.number: self._known.get((version.number, version.digest)) for version in versions}
        old = time.monotonic() - RETRY_SECONDS
        missing = [v for v in versions if (one := known[v.number]) is None or 0 < one.failed < old]
        with self._lock:
            if missing and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._read, args=(missing,), daemon=True, name="details")
                self._thread.start()
        return {number: details for number, details in known.items() if details}

    def _read(self, versions: Sequence[Version]) -> None:
        for version in versions:
            try:
                details = Details(
                    release=self.registry.manifest(version) if version.digest else None,
                    run_url=run_url(version.run_id),
                    problem="" if version.digest else "was not recorded by vitcifar",
                )
            except Exception:  # the libraries of object stores raise anything
                details = Details(problem="cannot be read now", failed=time.monotonic())
            self._known[version.number, version.digest] = details


def build_versions(pool: ModelPool, seen: "gradio.Number") -> None:
    """The tab. `seen` changes when the registry does."""
    gradio = load_gradio()
    reader = DetailsReader(pool.registry)
    own: dict[str, Any] = {"apply_default_css": False}
    table = gradio.HTML(elem_id="versions", js_on_load=SELECT, **own)
    history = gradio.HTML(elem_id="history", **own)
    card = gradio.HTML(elem_id="model-card", js_on_load=GO_TO_CARD, **own)
    waiting = gradio.Timer(WAIT_SECONDS, active=False)
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def refresh() -> tuple[Any, ...]:
        versions = listed_versions(pool)
        known = reader.get(versions)
        missing = len(known) < len(versions)
        timer = gradio.Timer(
            WAIT_SECONDS if missing else RETRY_SECONDS, active=missing or any(one.failed for one in known.values())
        )
        return versions_table(pool, known), history_table(read_events(pool.state.tags).values()), timer

    def show_card(event: Any = None) -> str:
        sent = event and event._data
        return card_of(pool, reader, sent.get("version") if isinstance(sent, dict) else None)

    show_card.__annotations__["event"] = gradio.EventData
    gradio.on([seen.change, waiting.tick], refresh, None, [table, history, waiting], **at_once)
    table.select(show_card, None, card, **at_once)


def listed_versions(pool: ModelPool) -> list[Version]:
    """The newest versions and those with an alias."""
    return [v for index, v in enumerate(pool.state.versions) if index < MAX_VERSIONS or v.aliases]


def versions_table(pool: ModelPool, known: Mapping[int, Details]) -> str:
    """The table of versions. What is not yet known is "…"."""
    versions = listed_versions(pool)
    rows = "".join(version_row(version, known.get(version.number), pool) for version in versions)
    heads = "".join(f"<th>{title}</th>" for title in ("Version", "Test accuracy (95% interval)", "Gates", "Registered"))
    num_older = len(pool.state.versions) - len(versions)
    older = f'<p class="small">{num_older:,} older versions are not listed.</p>' if num_older else ""
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Versions"><table><thead><tr>'
        f'{heads}<th><span class="unseen">More</span></th></tr></thead><tbody>{rows}</tbody></table></div>{older}'
    )


def version_row(version: Version, details: Details | None, pool: ModelPool) -> str:
    aliases = "".join(f' <span class="badge">{escape(alias)}</span>' for alias in version.aliases)
    serves = ' <span class="badge quiet">serves</span>' if version.number == pool.state.current.version else ""
    broken = '<p class="problem">its files are incomplete</p>' if version.broken else ""
    link = ""
    if details and details.run_url:
        link = f'<a href="{escape(details.run_url)}" target="_blank" rel="noreferrer">Run</a>'
    return (
        f'<tr><th scope="row">{version.number}{aliases}{serves}{broken}</th><td>{accuracy(details)}</td>'
        f"<td>{gates(version)}</td><td>{escape(version.created[:16].replace('T', ' '))}</td>"
        f'<td class="more"><button type="button" data-card="{version.number}">Model card</button>{link}</td></tr>'
    )


def accuracy(details: Details | None) -> str:
    """The accuracy on the test images with its interval, recorded in release.json."""
    if details is None:
        return "…"
    if details.release is None:
        return f'<span class="problem">{escape(details.problem)}</span>'
    evaluation = served_evaluation(details.release)
    if (value := evaluation.get("accuracy")) is None:
        return "not recorded"
    text = f"<b>{percent(value)}</b>"
    if {"accuracy_low", "accuracy_high", "labels"} <= evaluation.keys():
        low, high = percent(evaluation["accuracy_low"]), percent(evaluation["accuracy_high"])
        text += f' <span class="small">({low} to {high}, {len(evaluation["labels"]):,} images)</span>'
    return text


def gates(version: Version) -> str:
    """The last attempt to promote a version to each alias, with its gates."""
    from vitcifar.registry.verdicts import read_verdicts  # the page starts without it

    last = {verdict.alias: verdict for verdict in read_verdicts(version)}
    return "".join(map(verdict_details, last.values())) or '<span class="small">never checked</span>'


def verdict_details(verdict: "Verdict") -> str:
    required = [gate for gate in verdict.gates if gate.required]
    passed = sum(gate.passed for gate in required)
    items = "".join(
        f'<li class="{"" if gate.passed else "problem"}"><b>{escape(gate.name)}</b> {escape(gate.state)}: '
        f"{escape(for_visitors(gate.message))}</li>"
        for gate in verdict.gates
    )
    style = "" if verdict.outcome == "passed" else ' class="problem"'
    return (
        f"<details><summary><span{style}>{passed} of {len(required)} passed</span> for {escape(verdict.alias)}"
        f"{'' if verdict.outcome == 'passed' else f', {verdict.outcome}'}</summary><ul>{items}</ul></details>"
    )


def history_table(events: Any) -> str:
    """Who moved an alias, when and why; the newest first."""
    done: list[Event] = [event for event in events if event.done][::-1]
    rows = "".join(map(event_row, done[:MAX_EVENTS]))
    if not rows:
        return '<h2>History of the aliases</h2><p class="small">No alias was moved yet.</p>'
    heads = "".join(f"<th>{title}</th>" for title in ("When", "Who", "What", "Why"))
    older = f'<p class="small">{len(done) - MAX_EVENTS:,} older moves are not listed.</p>' * (len(done) > MAX_EVENTS)
    return (
        '<h2>History of the aliases</h2><div class="scroll" role="region" tabindex="0" '
        f'aria-label="History of the aliases"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{older}"
    )


def event_row(event: Event) -> str:
    kind = {"promote": "promoted", "rollback": "rolled back", "drop": "removed"}.get(event.kind, event.kind)
    ends = escape(f"{event.before or '–'} → {event.after or '–'}")
    forced = ' <span class="problem">gates overridden</span>' if event.forced else ""
    cells = (
        escape(event.when[:16].replace("T", " ")),
        escape(event.who),
        f'{escape(kind)} <span class="badge">{escape(event.alias)}</span> {ends}{forced}',
        escape(for_visitors(event.reason)) or "–",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def card_of(pool: ModelPool, reader: DetailsReader, number: Any) -> str:
    """The model card of a listed version as HTML, or one sentence."""
    version = select(pool.state.versions, number[:MAX_SPEC]) if isinstance(number, str) else None
    if version is None:
        return note("There is no such version: choose one of the list.")
    details = reader.get([version]).get(version.number)
    if details is None or details.release is None:
        why = details.problem if details else "is being read: try again in a moment"
        return note(f"The model card of version {version.number} {why}.")
    from vitcifar.registry.card import model_card

    try:
        text = model_card(version, details.release)
    except (VitCifarError, ValueError, LookupError, TypeError, AttributeError):  # tags that somebody edited
        return note(f"The tags of version {version.number} cannot be read.")
    return f'<article class="model-card" tabindex="0">{render_markdown(for_visitors(text))}</article>'


def note(sentence: str) -> str:
    return f'<p class="note problem" role="alert">{escape(sentence)}</p>'


def render_markdown(text: str) -> str:
    """Markdown as HTML: HTML in it is escaped, links and images stay text, headings start at the second level."""
    import markdown_it

    markdown = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.disable(["link", "image", "autolink", "html_inline", "html_block"])
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + 1, 6)}"
    return str(markdown.renderer.render(tokens, markdown.options, {}))


def for_visitors(text: str) -> str:
    """A text without the addresses and folders of the server; the last name of a path stays."""
    return FOLDER.sub("…/", ADDRESS.sub("…", text))
