"""A list of choices: the browser's own, which keyboards, screen readers and phones know."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page.gradio_setup import load_gradio

if TYPE_CHECKING:
    import gradio

# The entries are made here, not in the template: Gradio would run a name like ${x} as JavaScript.
SCRIPT = """
const list = element.querySelector('select');
const follow = () => { list.value = props.value; };
const fill = () => {
  list.replaceChildren(...props.choices.map(([text, value]) => new Option(text, value)));
  follow();
};
fill();
watch('value', follow);
watch('choices', fill);
list.addEventListener('change', () => { props.value = list.value; trigger('input'); });
"""


def build_dropdown(choices: Sequence[tuple[str, str]], value: str, *, label: str, elem_id: str) -> "gradio.HTML":
    """A list with `choices`, (text, value) pairs. An update is `gradio.HTML(value, choices=...)`."""
    dropdown: gradio.HTML = load_gradio().HTML(
        value,
        choices=choices,
        html_template=f'<label for="{elem_id}-list">{escape(label)}</label><select id="{elem_id}-list"></select>',
        js_on_load=SCRIPT,
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes="dropdown",
    )
    setattr(dropdown, "preprocess", str)  # noqa: B010
    return dropdown


def numbered_versions(pool: ModelPool) -> list[tuple[str, str]]:
    """Choices: every version, the newest first, with its aliases."""
    return [(" · ".join([f"version {v.number}", *v.aliases]), str(v.number)) for v in pool.state.versions]
