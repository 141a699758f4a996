"""Generate: one prompt, the answers side by side, and *Translate* for a plain LoRA to keep."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from app import views
from app.engine import Engine, GenerateRequest, TranslateResult
from app.expansions import Expansions, KeptList, lines_of
from app.facts import SamplingChoice, TranslateRequest
from app.jobs import Job
from app.saying import said
from app.tabs.beside import BesideOptions, create_beside_options
from app.tabs.mode import ModeOptions, create_mode_options, mode_sentence
from app.tabs.pick import PickTab, describe
from app.tabs.prompts import READ_BY, PromptsPanel, asked_for, create_prompts_panel
from app.tabs.steps import create_steps_slider
from app.workspace import MAX_TEMPERATURE, MAX_TOKENS, Attached, Beside, Selection, Workspace

# Panes that wait for the first press do not depend on how text is drawn.
_ANY = SamplingChoice(max_tokens=1, temperature=0.0, seed=0)


@dataclass(frozen=True)
class GenerateTab:
    """The widgets of the tab."""

    prompt: gr.Textbox
    examples: gr.Dropdown
    generate: gr.Button
    stop: gr.Button
    panes: gr.HTML
    message: gr.HTML
    options: ModeOptions
    max_tokens: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    one_line: gr.Checkbox
    beside: BesideOptions
    steps: gr.Slider
    prompts: PromptsPanel
    translate: gr.Button
    keep: gr.Button
    cancel: gr.Button
    job: gr.HTML
    download: gr.DownloadButton
    timer: gr.Timer

    @property
    def hints(self) -> gr.Textbox:
        """The example prompts, which *Evaluate* reads as well."""
        return self.prompts.hints

    @property
    def followers(self) -> list[Any]:
        """What `follow` sets, and `app.tabs.mode.follow`."""
        own = [self.panes, self.examples, self.message, self.hints, self.beside.retrained]
        return [*own, *self.mode_shown]

    @property
    def mode_shown(self) -> list[Any]:
        """What `mode_updates` sets."""
        return [self.options.words, self.options.segment, self.translate, self.keep, self.prompts.group]

    @property
    def settings(self) -> list[Any]:
        """What the browser keeps beside the three pickers, in the order of `Workspace.settings`."""
        return [*self.options.way, self.options.strength, self.prompt, *self.drawn]

    @property
    def drawn(self) -> list[Any]:
        """How text is drawn, and what stands beside, in the order in which `request_of` takes them."""
        sampling = [self.max_tokens, self.temperature, self.seed, self.one_line]
        return [*sampling, *self.beside.all]

    @property
    def job_shown(self) -> list[Any]:
        """What `job_updates` sets."""
        return [self.job, self.cancel, self.download, self.timer]


def create_generate_tab(engine: Engine, start: Workspace) -> GenerateTab:
    """Build the tab with the recorded example already answered."""
    with gr.Row(equal_height=True):
        with gr.Column(scale=3, min_width=260):
            examples = gr.Dropdown(
                _example_choices(engine, start.adapter), label="Examples of this adapter's task",
                value=start.prompt if start.prompt in engine.prompts(start.adapter) else None,
            )  # fmt: skip
        with gr.Column(scale=7, min_width=320):
            prompt = gr.Textbox(start.prompt, label="Prompt", lines=2, max_lines=6, elem_id="cast-prompt")
        with gr.Column(scale=2, min_width=120, elem_classes="cast-actions"):
            generate = gr.Button("Generate", variant="primary", min_width=120, elem_id="cast-generate")
            stop = gr.Button("Stop", min_width=80, elem_id="cast-stop")
    message = gr.HTML()
    own = Beside(retrained=engine.retrained(start.selection))
    first = GenerateRequest(start.selection, start.strength, start.prompt, _ANY, beside=own)
    panes = gr.HTML(first_panes(engine, first))
    with gr.Row():
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            options = create_mode_options(engine, start)
            with gr.Accordion("Sampling", open=False, elem_classes="cast-detail"):
                max_tokens = gr.Slider(
                    8, MAX_TOKENS, value=start.max_tokens, step=8, label="Longest answer in tokens"
                )
                temperature = gr.Slider(
                    0, MAX_TEMPERATURE, value=start.temperature, step=0.1, label="Temperature",
                    info="0 is greedy.",
                )  # fmt: skip
                seed = gr.Number(start.seed, label="Seed, the same for every pane", precision=0, minimum=0)
                one_line = gr.Checkbox(start.one_line, label="End at the end of the line")
            beside = create_beside_options(start)
        with gr.Column(scale=1, min_width=320, elem_classes="cast-section"):
            prompts = create_prompts_panel(engine, start)
            with gr.Row():
                translate = gr.Button(translate_label(start.mode), variant="primary", scale=2, min_width=240)
                keep = gr.Button(
                    "Write a recipe",
                    visible=start.mode == "hosted",
                    min_width=120,
                    elem_classes="cast-detail",
                )
                cancel = gr.Button("Cancel", interactive=False, min_width=80)
            job = gr.HTML(
                views.sentence(
                    "Translate writes an ordinary PEFT adapter of the target model, at strength 1."
                )
            )
            download = gr.DownloadButton("Download the adapter", visible=False)
            with gr.Accordion("Effort", open=False, elem_classes="cast-detail"):
                steps = create_steps_slider("Steps of a compiled fit")
            timer = gr.Timer(0.5, active=False)
    return GenerateTab(
        prompt, examples, generate, stop, panes, message, options, max_tokens, temperature, seed, one_line,
        beside, steps, prompts, translate, keep, cancel, job, download, timer,
    )  # fmt: skip


def wire_generate_tab(
    tab: GenerateTab, pick: PickTab, engine: Engine, expansions: Expansions, attached: gr.BrowserState,
    listed: gr.BrowserState,
) -> gr.events.Dependency:  # fmt: skip
    """Connect the tab's events; `listed` is what the browser keeps of the list of prompts.

    Returns:
        What *Generate* starts, for others to cancel.
    """
    _wire_translate(tab, pick, engine, expansions, attached, listed)
    return _wire_text(tab, pick, engine, attached)


def streamed(engine: Engine, kept: object, prompt: str, *values: Any) -> Iterator[tuple[Any, str]]:
    """The panes and the message while the answers to one prompt come; `values` are those of `asked`."""
    request = request_of(engine, kept, prompt, *values)
    try:
        for shown in engine.generate(request):
            yield views.panes(request.prompt, shown), ""
    except Exception as error:
        yield first_panes(engine, request), said(error)


def _wire_text(
    tab: GenerateTab, pick: PickTab, engine: Engine, attached: gr.BrowserState
) -> gr.events.Dependency:
    run = tab.generate.click(
        partial(streamed, engine),
        [attached, tab.prompt, *asked(tab, pick)],
        [tab.panes, tab.message],
        show_progress="hidden", concurrency_limit=8, api_visibility="private",
    )  # fmt: skip
    # Only once the stream has ended: what it says last would begin the answers anew.
    tab.stop.click(None, cancels=[run], show_progress="hidden", api_visibility="private").then(
        views.stopped, tab.panes, tab.panes, show_progress="hidden", api_visibility="private"
    )
    # A list that is only visited has an `input` too, so it must not hold an example that was written over.
    tab.examples.input(
        lambda example: example or gr.skip(), tab.examples, tab.prompt,
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    tab.prompt.blur(
        None, [tab.prompt, tab.examples], tab.examples,
        js="(prompt, example) => [prompt === example ? example : null]", api_visibility="private",
    )  # fmt: skip
    return run


def _wire_translate(
    tab: GenerateTab, pick: PickTab, engine: Engine, expansions: Expansions, attached: gr.BrowserState,
    listed: gr.BrowserState,
) -> None:  # fmt: skip
    shown = tab.job_shown

    def start(request: TranslateRequest, kept: object) -> tuple[Any, ...]:
        space = Attached.from_json(kept)
        try:
            job_id = engine.start_translate(request, space.heads_job)
        except Exception as error:
            return said(error), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        started = replace(
            space, translate_job=job_id, earlier_job=space.translate_job, folder="", adopt=True
        )  # fmt: skip
        return *job_updates(engine.job(job_id)), started.to_json()

    def translate(
        source: str, target: str, adapter: str, mode: str, steps: int, hints: str,
        of_list: object, cells: object, kept: object,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Start a translation in the background; where nothing has to be made, a compiled one."""
        selection = Selection.of(source, target, adapter, "compiled" if mode == "hosted" else mode)
        shown_list = KeptList.from_json(of_list)
        # A cell that was left by pressing the button is in the table before the browser has kept it.
        shown_list = replace(shown_list, lines=lines_of(cells) or shown_list.lines)
        return start(asked_for(expansions, selection, steps, hints, shown_list), kept)

    def keep(
        source: str, target: str, adapter: str, mode: str, segment: int, kept: object
    ) -> tuple[Any, ...]:
        """Write what hosted mode shows as a recipe."""
        return start(TranslateRequest(Selection.of(source, target, adapter, mode, segment)), kept)

    def tick(source: str, target: str, adapter: str, mode: str, segment: int, kept: object) -> dict[Any, Any]:
        before = Attached.from_json(kept)
        job = engine.job(before.translate_job)
        updates = dict(zip(shown, job_updates(job), strict=True))
        mode, jobs = adopted(job, before, mode)
        if jobs != before:
            # What has not changed is not written back: another handler may have changed it meanwhile.
            selection = Selection.of(source, target, adapter, mode, segment)
            updates |= mode_updates(tab, mode) | {tab.options.mode: mode, attached: jobs.to_json()}
            updates |= {pick.picture: describe(engine, selection)[0]}
        return updates

    def cancel(kept: object) -> tuple[Any, ...]:
        job_id = Attached.from_json(kept).translate_job
        engine.cancel(job_id)
        return job_updates(engine.job(job_id))

    tab.translate.click(
        translate,
        [*pick.chosen, tab.options.mode, tab.steps, tab.hints, listed, tab.prompts.table, attached],
        [*shown, attached],
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    tab.keep.click(
        keep, [*pick.chosen, *tab.options.way, attached], [*shown, attached],
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    tab.timer.tick(
        tick, [*pick.chosen, *tab.options.way, attached],
        [*shown, *tab.mode_shown, tab.options.mode, attached, pick.picture],
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    tab.cancel.click(cancel, attached, shown, show_progress="hidden", api_visibility="private")


def follow(tab: GenerateTab, engine: Engine, chosen: Selection, prompt: str) -> dict[Any, Any]:
    """The panes before the first press for a choice, and the examples of its task."""
    examples = _example_choices(engine, chosen.adapter)
    own = Beside(retrained=engine.retrained(chosen))
    return {
        tab.panes: first_panes(engine, GenerateRequest(chosen, 1.0, prompt, _ANY, beside=own)),
        tab.examples: gr.update(choices=examples, value=prompt if prompt in examples else None),
        tab.message: "",
    }


def follow_choice(
    tab: GenerateTab, engine: Engine, before: Selection, chosen: Selection, prompt: str
) -> dict[Any, Any]:
    """What `follow` shows, with the prompt that belongs to the choice."""
    told = prompt_after(engine, before.adapter, chosen.adapter, prompt)
    # What stays is not written back: the visitor may be writing in it meanwhile.
    written = {} if told == prompt else {tab.prompt: told}
    return written | follow(tab, engine, chosen, told)


def prompt_after(engine: Engine, before: str, adapter: str, prompt: str) -> str:
    """The prompt after a change of adapter: an example of the old one's task gives way to one of the new."""
    examples = engine.prompts(adapter)
    theirs = not prompt.strip() or prompt in engine.prompts(before)
    return examples[0] if theirs and examples and prompt not in examples else prompt


def mode_updates(tab: GenerateTab, mode: str) -> dict[Any, Any]:
    """What is offered in a mode; nothing listens to the mode itself, so whatever sets it sets this too."""
    hosted = mode == "hosted"
    return {
        tab.options.words: mode_sentence(mode),
        tab.options.segment: gr.update(visible=hosted),
        tab.translate: gr.update(value=translate_label(mode)),
        tab.keep: gr.update(visible=hosted),
        tab.prompts.group: gr.update(visible=mode in READ_BY),
    }


def job_updates(job: Job | None) -> tuple[Any, Any, Any, Any]:
    """What the job's panel, *Cancel*, the download and the timer show for a job as it stands."""
    if job is None:
        return gr.skip(), gr.update(interactive=False), gr.update(visible=False), gr.update(active=False)
    running = not job.is_over
    made = job.result if isinstance(job.result, TranslateResult) else None
    return (
        views.job(job) + views.sentence(" ".join(made.prediction) if made else ""),
        gr.update(interactive=running and not job.cancelling),
        gr.update(visible=made is not None, value=str(made.archive) if made else None),
        gr.update(active=running),
    )


def adopted(job: Job | None, jobs: Attached, mode: str) -> tuple[str, Attached]:
    """The mode after a translation: a finished one is chosen once, so that *Generate* runs it."""
    if jobs.adopt and job is not None and isinstance(job.result, TranslateResult):
        return job.result.selection.mode, replace(jobs, adopt=False)
    return mode, jobs


def translate_label(mode: str) -> str:
    """What *Translate* writes in a mode."""
    return "Translate to a recipe" if mode == "kernel" else "Translate to a plain LoRA"


def first_panes(engine: Engine, request: GenerateRequest) -> str:
    """The recorded answers where they are of this choice, else panes that say what to do."""
    example = engine.showcase
    if example and example.knows(request.selection) and request.prompt == example.prompt:
        return views.panes(example.prompt, example.panes(), example.made)
    return views.panes(request.prompt, tuple(request.panes().values()))


def asked(tab: GenerateTab, pick: PickTab) -> list[Any]:
    """Everything that `request_of` takes behind the prompt."""
    return [*pick.chosen, *tab.options.way, tab.options.strength, *tab.drawn]


def request_of(
    engine: Engine, kept: object, prompt: str, source: str, target: str, adapter: str, mode: str,
    segment: int, strength: float, max_tokens: int, temperature: float, seed: int, one_line: bool,
    *beside: Any,
) -> GenerateRequest:  # fmt: skip
    """What the widgets ask for; an adapter retrained on the target is the shipped one if none is named."""
    selection = Selection.of(source, target, adapter, mode, segment)
    source_strength, retrained, retrained_strength, second_mode, second_strength = beside
    retrained = (retrained or "").strip() or engine.retrained(selection)
    return GenerateRequest(
        selection,
        strength,
        prompt or "",
        SamplingChoice(int(max_tokens), float(temperature), int(seed or 0), bool(one_line)),
        Attached.from_json(kept),
        Beside(source_strength, retrained, retrained_strength, second_mode or "", second_strength),
    )


def _example_choices(engine: Engine, adapter: str) -> list[str]:
    return list(engine.prompts(adapter))
