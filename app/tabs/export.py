"""Export: the current translation as a zip, with its card and recipe, what loads it, and *Publish*."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import snippets, views
from app.exports import Export, Exports
from app.facts import TranslateRequest
from app.saying import said
from app.tabs.choice import Stores
from app.tabs.command import Command, code_block
from app.tabs.mode import ModeOptions
from app.tabs.publishing import Publishing, create_publishing, wire_publishing
from app.workspace import UNCHOSEN, Attached, Selection, Workspace

Updates = dict[Any, Any]


@dataclass(frozen=True)
class ExportTab:
    """The widgets of the tab."""

    tab: gr.Tab
    status: gr.HTML
    download: gr.DownloadButton
    python: gr.Code
    serve: gr.Code
    command: gr.Code
    about: gr.Accordion
    card: gr.Code
    made_of: gr.Accordion
    recipe: gr.Code
    leaving: Publishing
    push: gr.Code

    @property
    def shown(self) -> list[Any]:
        """What `_shown` sets."""
        return [
            self.status, self.download, self.python, self.serve, self.command, self.about, self.card,
            self.made_of, self.recipe, self.leaving.publish, self.leaving.message,
        ]  # fmt: skip


def create_export_tab(tab: gr.Tab) -> ExportTab:
    """Build the tab inside `tab`; it is filled once it is looked at."""
    with gr.Row():
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            status = gr.HTML(views.sentence("Looking for a translation of this choice."))
            download = gr.DownloadButton("Download as .zip", variant="primary", visible=False)
            python = code_block("Python", visible=False)
            serve = code_block("Serve it with vLLM", visible=False)
            command = code_block("On the command line")
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            leaving = create_publishing("Publish to the Hub", ready=False)
            push = code_block("The same on the command line, with the token in HF_TOKEN")
            with gr.Accordion("Model card", open=False, visible=False) as about:
                card = code_block("README.md")
            with gr.Accordion("Recipe", open=False, visible=False) as made_of:
                recipe = code_block("cast.json")
    return ExportTab(
        tab, status, download, python, serve, command, about, card, made_of, recipe, leaving, push,
    )  # fmt: skip


def wire_export_tab(tab: ExportTab, options: ModeOptions, exports: Exports, stores: Stores) -> None:
    """Connect the tab's events."""
    choice = [stores.choice, *options.way, stores.attached]

    def look(chosen: object, mode: str, segment: int, kept: object) -> Updates:
        selection = _selection(chosen, mode, segment)
        return _shown(tab, exports, selection, Attached.from_json(kept))

    def leaving(chosen: object, mode: str, segment: int, kept: object) -> Export | str:
        selection = _selection(chosen, mode, segment)
        return exports.current(selection, Attached.from_json(kept)) or _missing(selection)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Not `always_last`: see `wire_commands`.
    gr.on(
        [tab.tab.select, stores.choice.change, stores.attached.change, *(way.change for way in options.way)],
        look, choice, tab.shown, trigger_mode="multiple", **quiet,
    )  # fmt: skip
    wire_publishing(tab.leaving, exports, leaving, choice)


def push_command(tab: ExportTab, exports: Exports) -> Command:
    """What *Publish* would do."""

    def make(chosen: Selection, repo: str, private: bool) -> str:
        return snippets.push(exports.name(chosen), (repo or "").strip() or "owner/name", bool(private))

    return Command(tab.push, [tab.leaving.repo, tab.leaving.private], make)


def _selection(chosen: object, mode: str, segment: int) -> Selection:
    models = Workspace.from_json(chosen).selection
    return Selection.of(models.source, models.target, models.adapter, mode, segment)


def _shown(tab: ExportTab, exports: Exports, selection: Selection, made: Attached) -> Updates:
    """Everything about the translation of a choice, or what has to be done for one."""
    try:
        found = exports.current(selection, made)
    except Exception as error:
        return _without(tab, said(error), "", "")
    if found is None:
        at_once = snippets.run_hosted(selection) if selection.mode == "hosted" and selection.adapter else ""
        written = snippets.translate(TranslateRequest(selection)) if selection.adapter else ""
        return _without(tab, views.sentence(_missing(selection)), at_once, written)
    plain = found.rank is not None
    python = (snippets.load_with_peft if plain else snippets.run_folder)(selection.target, found.name)
    label = "Python, with peft" if plain else "Python, with CAST"
    served = snippets.serve_with_vllm(selection.target, found.name, found.rank or 0)
    return {
        tab.status: views.sentence(_words(found, selection), "good"),
        tab.download: gr.update(
            visible=True,
            value=str(found.archive),
            label=f"Download {found.name}.zip, {views.size(found.size)}",
        ),
        tab.python: gr.update(value=python, label=label, visible=True),
        tab.serve: gr.update(value=served, visible=plain),
        tab.command: snippets.generate(selection.target, found.name),
        tab.about: gr.update(visible=True),
        tab.card: found.card,
        tab.made_of: gr.update(visible=True),
        tab.recipe: found.recipe,
        tab.leaving.publish: gr.update(interactive=True),
        tab.leaving.message: "",
    }


def _without(tab: ExportTab, status: str, python: str, command: str) -> Updates:
    """The tab where nothing has been written that could leave."""
    return {
        tab.status: status,
        tab.download: gr.update(visible=False, value=None),
        tab.python: gr.update(value=python, label="Python, with CAST", visible=bool(python)),
        tab.serve: gr.update(visible=False),
        tab.command: command,
        tab.about: gr.update(visible=False),
        tab.made_of: gr.update(visible=False),
        tab.leaving.publish: gr.update(interactive=False),
        tab.leaving.message: "",
    }


def _words(found: Export, selection: Selection) -> str:
    if found.rank is not None:
        return (
            f"A plain PEFT adapter of {selection.target}, rank {found.rank}, made in mode {selection.mode}: "
            "unpacked, the folder loads with peft, vLLM, or anything else that reads LoRAs."
        )
    return (
        f"A recipe (mode {selection.way}): it holds no weights, and says how CAST runs {selection.adapter} "
        f"on {selection.target}. It needs {selection.source} and the adapter where it runs."
    )


def _missing(selection: Selection) -> str:
    """What has to be done before something can be exported."""
    if not (selection.source and selection.target and selection.adapter):
        return UNCHOSEN
    if selection.mode == "hosted":
        return (
            "Hosted mode runs at once, from the two models and the adapter as they are: nothing has to be "
            "exported. To keep it as a folder, press Write a recipe in the Generate tab; for a plain PEFT "
            "adapter press Translate there."
        )
    return (
        f"Nothing is written for this choice in mode {selection.mode}: press Translate in the Generate tab."
    )
