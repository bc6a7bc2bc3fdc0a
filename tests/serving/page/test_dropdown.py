"""The lists of choices: a name from a folder or a registry is text, whatever it says."""

from support.serving import in_chromium

from vitcifar.serving.page.dropdown import build_dropdown
from vitcifar.serving.page.gradio_setup import load_gradio

NAMES = ["<b>cat</b>", "${document.title = 'run'}", "`dog`", "{{value}}", "a & b"]


@in_chromium
def test_every_name_is_shown_as_it_is_and_reaches_python(chromium):
    gradio = load_gradio()
    with gradio.Blocks() as blocks:
        names = build_dropdown([(name, name) for name in NAMES], NAMES[1], label="Class", elem_id="names")
        chosen = gradio.Textbox(label="Chosen")
        names.input(lambda name: name, names, chosen, queue=False)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    tab = chromium.new_page()
    try:
        tab.goto(url)
        options = tab.get_by_label("Class").locator("option")
        options.nth(len(NAMES) - 1).wait_for(state="attached")
        assert options.all_inner_texts() == NAMES
        assert tab.get_by_label("Class").input_value() == NAMES[1] and tab.title() != "run"
        for name in NAMES:
            tab.get_by_label("Class").select_option(name)
            tab.wait_for_function("name => document.querySelector('textarea').value === name", arg=name)
    finally:
        tab.close()
        blocks.close()
