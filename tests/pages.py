"""Page objects: what a visitor can do and read, in the words that the page itself uses."""

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

from app import theme
from app.backend import Backend
from app.ui import build

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Shared machines can be slow; a right answer ends the wait at once.
WAIT_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, or a skipped test where none is installed (never on CI)."""
    installed = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        found = [
            path for path in (*installed, playwright.chromium.executable_path) if path and Path(path).exists()
        ]
        if not found:
            if os.environ.get("CI"):
                raise RuntimeError("CI must install Chromium.")
            pytest.skip("no Chromium is installed")
        browser = playwright.chromium.launch(executable_path=found[0], args=list(_FLAGS))
        yield browser
        browser.close()


@contextmanager
def served(backend: Backend, folder: Path, recording: Path) -> Iterator[str]:
    """The page in this process, on a free port; yields its address."""
    page = build(backend, folder, recording, folder / "kept")
    page.blocks.queue(default_concurrency_limit=16)
    _, address, _ = page.blocks.launch(
        server_name="127.0.0.1",
        server_port=_free_port(),
        prevent_thread_lock=True,
        quiet=True,
        **theme.launch_options(),
    )
    try:
        yield address
    finally:
        page.close()
        page.blocks.close(verbose=False)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Focus:
    """Where the keyboard is: the name of the element, and whether a ring is drawn round it."""

    name: str
    is_seen: bool


# A ring is an outline or a frame two pixels wide, of the element or of what is drawn in its place.
_FOCUS = """() => {
  const at = document.activeElement;
  if (at === document.body) return ["", false];
  const drawn = (one) => {
    const { outlineStyle: line, outlineWidth: width, boxShadow } = getComputedStyle(one);
    return (line !== "none" && parseFloat(width) >= 2) || boxShadow.includes("0px 0px 0px 1px");
  };
  const parts = [at, at.closest("label"), at.role === "combobox" && at.closest(".wrap")].filter(Boolean);
  const name = at.ariaLabel || at.labels?.[0]?.innerText || at.innerText || at.tagName;
  return [name.trim(), parts.some(drawn)];
}"""


class CastPage:
    """One visitor at the page."""

    def __init__(self, context: BrowserContext, address: str, theme_name: str = "light") -> None:
        self._address = f"{address.rstrip('/')}/?__theme={theme_name}"
        self.errors: list[str] = []
        self._streams: set[Request] = set()
        self._asked = 0
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._count)
        self.page.on("requestfinished", lambda sent: self._streams.discard(sent))
        self.page.on("requestfailed", lambda sent: self._streams.discard(sent))
        self.open()

    def open(self, link: str | None = None) -> None:
        """Open or reload the page and wait until it is alive, and has put back what the browser kept."""
        self.page.goto(link or self._address)
        self.pane("source").wait_for()
        self.restored()

    def restored(self) -> None:
        """Wait until what the browser kept is put back, and the page is at rest."""
        self.page.locator("html[data-restored]").wait_for(state="attached")
        self.settle()

    @contextmanager
    def unanswered(self) -> Iterator[None]:
        """Meanwhile no question of the page reaches the server; then all of them do."""
        held: list[Route] = []
        self.page.route("**/queue/join*", lambda route: held.append(route))
        yield
        for route in held:
            route.continue_()
        self.page.unroute("**/queue/join*")

    def comes_to_rest(self, within: float = 60) -> bool:
        """Whether, with nobody at it, the page soon asks the server next to nothing for five seconds.

        A slow machine may still be answering what was asked before; a page that goes round never rests.
        """
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            before = self._asked
            self.page.wait_for_timeout(5000)
            if self._asked - before <= 1:
                return True
        return False

    def _count(self, sent: Request) -> None:
        self._asked += "queue/join" in sent.url
        if "queue/data" in sent.url:
            self._streams.add(sent)

    def settle(self) -> None:
        """Wait until the page has nothing to do: its stream of answers stays closed for a while.

        Gradio leaves a stream open where a question comes just as the stream before it closes, so after ten
        seconds without a question an open one is not waited for.
        """
        quiet, still, asked = 0, 0, self._asked
        while quiet < 7 and still < 100:
            self.page.wait_for_timeout(100)
            quiet = 0 if self._streams else quiet + 1
            still = still + 1 if asked == self._asked else 0
            asked = self._asked

    # Pick

    def choose(self, label: str, value: str) -> None:
        """Type a name into one of the pickers, as a visitor does."""
        field = self.page.get_by_label(label, exact=True)
        field.fill(value)
        field.press("Enter")
        field.blur()

    def type_at_once(self, label: str, value: str) -> None:
        """Click a picker where it stands and type a name, without a look at whether it can be chosen in."""
        box = self.chosen(label).bounding_box()
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(value)
        self.page.keyboard.press("Enter")

    def type_into(self, label: str, words: str) -> None:
        """Type letter by letter into an emptied picker, and leave it open."""
        field = self.page.get_by_label(label, exact=True)
        field.click()
        field.fill("")
        field.press_sequentially(words, delay=20)

    @property
    def found(self) -> Locator:
        """What the search on the Hub says."""
        return self.page.locator(".cast-found.prose")

    def chosen(self, label: str) -> Locator:
        return self.page.get_by_label(label, exact=True)

    @property
    def notice(self) -> Locator:
        return self.page.locator(".cast-notice .cast-sentence")

    @property
    def reading(self) -> Locator:
        """What stands in the panel while it is asked what a model is."""
        return self.page.get_by_text("Reading what is known of this choice")

    @property
    def facts(self) -> Locator:
        return self.page.locator(".cast-facts").first

    @property
    def picture(self) -> Locator:
        return self.page.locator(".cast-stacks svg")

    @property
    def errors_shown(self) -> Locator:
        return self.page.locator(".cast-error:visible")

    def ready(self, words: str) -> Locator:
        """A ready-made example."""
        return self.page.get_by_role("group", name="Ready-made examples").get_by_role("button", name=words)

    # Generate

    def pane(self, key: str) -> Locator:
        return self.page.locator(f'.cast-tabs [data-pane="{key}"]')

    def answer(self, key: str) -> Locator:
        return self.pane(key).locator(".cast-answer")

    def write(self, prompt: str) -> None:
        self.prompt.fill(prompt)
        self.prompt.blur()

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_label("Prompt", exact=True)

    def generate(self) -> None:
        self.page.get_by_role("button", name="Generate", exact=True).click()

    def stop(self) -> None:
        self.page.get_by_role("button", name="Stop", exact=True).click()

    def pick_mode(self, mode: str) -> None:
        self.page.get_by_label(mode, exact=True).check()

    def mode(self, mode: str) -> Locator:
        return self.page.get_by_label(mode, exact=True)

    @property
    def segment(self) -> Locator:
        return self.page.get_by_label("number input for Target blocks a segment")

    @property
    def strength(self) -> Locator:
        return self.page.get_by_label("number input for Strength of the carried change")

    def translate(self) -> None:
        self.page.get_by_role("button", name="Translate to a plain LoRA").click()

    def translate_with(self, steps: int) -> None:
        """Translate with as many steps of a compiled fit."""
        self.open_fold("Effort")
        self.set_slider("Steps of a compiled fit", str(steps))
        self.translate()

    def open_fold(self, name: str) -> None:
        self.page.get_by_role("button", name=name).click()
        self._built()

    def _built(self) -> None:
        """Wait until widgets that came into sight hold what they shall.

        Gradio gives them what the page put back a moment after they stand there, over what was set meanwhile.
        """
        self.page.evaluate("() => new Promise((done) => setTimeout(() => requestAnimationFrame(done), 100))")

    def set_slider(self, label: str, value: str) -> None:
        field = self.page.get_by_label(f"number input for {label}")
        field.fill(value)
        field.press("Enter")
        expect(field).to_have_value(value)

    def cancel(self) -> None:
        self.page.get_by_role("button", name="Cancel", exact=True).locator("visible=true").click()

    @property
    def job(self) -> Locator:
        return self.page.locator(".cast-job:visible")

    # For a room

    def key(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        for key in keys:
            self.page.keyboard.press(key)

    def focus(self) -> Focus:
        return Focus(*self.page.evaluate(_FOCUS))

    def round_of(self, key: str, most: int) -> list[Focus]:
        """Where the focus is after each press of a key, until it is where it began."""
        first, stops = self.focus(), []
        while len(stops) < most and (not stops or stops[-1] != first):
            self.key(key)
            stops.append(self.focus())
        return stops

    def lists_close(self) -> None:
        """Wait until no list of a picker is open: one that was left fades out."""
        expect(self.page.get_by_role("listbox")).to_have_count(0)

    def tab_to(self, wanted: Locator) -> bool:
        """Whether the Tab key comes to something from where the focus is."""
        for _ in range(30):
            self.key("Tab")
            if wanted.evaluate("node => node === document.activeElement"):
                return True
        return False

    @property
    def talks(self) -> bool:
        return self.page.evaluate("document.documentElement.classList.contains('cast-talk')")

    def copied_link(self) -> str:
        """The share link as it lies in the clipboard."""
        self.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        copy = self.page.get_by_role("button", name="Copy link")
        # Noted by the page: the button says so for two seconds, in which a page that draws answers nobody.
        copy.evaluate("""button => {
          window.saidCopied = false;
          const note = () => { window.saidCopied ||= button.innerText.startsWith("Copied"); };
          new MutationObserver(note).observe(button, { childList: true, characterData: true, subtree: true });
        }""")
        copy.click()
        self.page.wait_for_function("window.saidCopied")
        return self.page.evaluate("navigator.clipboard.readText()")

    @property
    def tour(self) -> Locator:
        return self.page.get_by_role("dialog")

    def toured(self, key: str) -> Locator:
        """One of the tour's four answers."""
        return self.tour.locator(f'[data-pane="{key}"]')

    # Other tabs

    def tab(self, name: str) -> None:
        shown = self.page.get_by_role("tab", name=name)
        if shown.count() == 0:
            # A narrow window keeps the last tabs in a menu.
            self.page.get_by_role("button", name="More tabs").click()
            shown = self.page.locator(".overflow-dropdown").get_by_role("button", name=name)
        shown.click()
        self._built()

    @property
    def tabs(self) -> list[str]:
        """The names of all tabs."""
        return self.page.get_by_role("tab").all_inner_texts()

    def unfold(self) -> None:
        """Open everything that is folded away on the tab that is open."""
        folds = self.page.locator(".gradio-container button.label-wrap:not(.open):visible")
        while folds.count():
            folds.first.click()
            self._built()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    @property
    def plot(self) -> Locator:
        return self.page.locator(".js-plotly-plot:visible")

    def plot_size(self) -> tuple[float, float]:
        """Width and height of the plot that is shown."""
        box = self.plot.bounding_box()
        return box["width"], box["height"]

    @property
    def play(self) -> Locator:
        """The button that goes along the layers, and pauses."""
        return self.page.get_by_role("group", name="Go along the layers").get_by_role("button")

    @property
    def depth_in_map(self) -> Locator:
        return self.page.get_by_label("Target depth in the map")

    def watch_map(self) -> None:
        """Note from now on which depths the map is moved to."""
        self.page.evaluate(
            "window.movedTo = []; document.querySelector('#cast-map .js-plotly-plot')"
            ".on('plotly_animatingframe', (event) => void window.movedTo.push(event.name))"
        )

    def map_moved_to(self) -> list[str]:
        return self.page.evaluate("window.movedTo")

    def find_tokens(self, words: str) -> None:
        self.page.get_by_label("Find tokens").fill(words)

    @property
    def highlighted(self) -> Locator:
        return self.page.locator(".cast-finder [role=status]")

    def chosen_points(self) -> list[list[int]]:
        """Which points are highlighted in each trace of tokens."""
        return self.page.evaluate(
            "document.querySelector('#cast-map .js-plotly-plot').data"
            ".filter((trace) => trace.meta === 'tokens').map((trace) => trace.selectedpoints)"
        )

    def click_token(self, side: int, token: int) -> None:
        """Click the mark of a token in the trace of the source (0) or the target (1)."""
        self._click_at(
            "#cast-map",
            "(plot, [side, token]) => {"
            " const full = plot._fullData.filter((one) => one.meta === 'tokens')[side];"
            " return [full.xaxis, full.x[token], full.yaxis, full.y[token]]; }",
            [side, token],
        )

    def click_cell(self, source_depth: int, target_depth: int) -> None:
        """Click a cell in the grid of all layers."""
        where = [target_depth, source_depth]
        self._click_at("#cast-layers", "(plot, [x, y]) => ['x', x, 'y', y]", where)

    def _click_at(self, plot: str, place: str, values: list[int]) -> None:
        found = self.page.locator(f"{plot} .js-plotly-plot")
        found.scroll_into_view_if_needed()
        x, y = found.evaluate(
            "(plot, values) => { const [xaxis, x, yaxis, y] = ("
            + place
            + ")(plot, values), box = plot.getBoundingClientRect(), layout = plot._fullLayout;"
            " const across = layout[xaxis.replace('x', 'xaxis')], down = layout[yaxis.replace('y', 'yaxis')];"
            " return [box.x + across._offset + across.l2p(x), box.y + down._offset + down.l2p(y)]; }",
            values,
        )
        self.page.mouse.move(x - 3, y - 3)
        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(200)  # plotly looks for what is under the pointer a moment later
        self.page.mouse.click(x, y)

    def command(self, *words: str) -> None:
        """Wait for the command line in the open tab that begins with the first words to hold the others."""
        line = self.page.locator(".cm-content:visible").filter(has_text=re.compile(f"^{words[0]} "))
        for word in words:
            expect(line).to_contain_text(word)

    # Evaluate

    def tick(self, *labels: str) -> None:
        """Tick the methods and baselines of these labels, and no others."""
        groups = self.page.locator("fieldset:visible input[type=checkbox]")
        for box in groups.all():
            box.set_checked(box.evaluate("box => box.parentElement.textContent.trim()") in labels)

    def run(self) -> None:
        self.press("Run")

    def upload(self, button: str, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.press(button)
        chooser.value.set_files(path)

    @property
    def measured(self) -> Locator:
        """The rows of the measured methods."""
        return self.page.locator(".cast-sorted tr")

    def methods_in_order(self) -> list[str]:
        return [row.locator("th").inner_text() for row in self.measured.all()]

    def sort_by(self, column: str) -> None:
        self.page.locator(".cast-results thead").get_by_role("button", name=column).press("Enter")

    def show_run_as_well(self, place: int) -> None:
        """Add one of the earlier runs to those shown, counted from the newest."""
        self.page.get_by_label("Runs shown").click()
        self.page.get_by_role("option").nth(place).click()
        self.page.keyboard.press("Escape")

    # Heads and Export

    def load_heads(self, name: str) -> None:
        self.page.get_by_placeholder("a folder, or owner/name").fill(name)
        self.press("Load heads")

    def publish(self, repo: str, token: str, button: str = "Publish to the Hub") -> None:
        self.page.get_by_label("Repository on the Hub").locator("visible=true").fill(repo)
        self.token.fill(token)
        self.press(button)

    @property
    def token(self) -> Locator:
        return self.page.get_by_label("Your Hub token").locator("visible=true")

    def download(self, button: str) -> Path:
        """Press a download button and return the file."""
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).click()
        return Path(download.value.path())

    def overflow(self) -> int:
        """How many pixels the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def in_background(work) -> threading.Thread:
    """Run something beside the browser."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
