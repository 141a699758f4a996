"""A stand-in for the library at the page's boundary: instant, deterministic, and able to fail on request."""

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.backend import Turns
from app.facts import (
    AdapterFacts,
    AnsweredPrompt,
    DepthFacts,
    Drawn,
    Expansion,
    FitRequest,
    GridFacts,
    HeadsFacts,
    JointMap,
    LayerFacts,
    LoadRequest,
    MapPoint,
    MapRequest,
    Measure,
    ModelFacts,
    Opened,
    Option,
    Room,
    SamplingChoice,
    SiteFacts,
    TokenMark,
    TranslateRequest,
)  # fmt: skip
from app.jobs import Job
from app.runs import Ends, EvaluateRequest, Missed, TaskFacts, Told
from app.showcase import Showcase, SkillScore
from app.workspace import PLAIN_MODES, Pair, Selection
from cast.errors import AdapterError, HeadsError, HubError, ModelError, TaskError
from cast.progress import OnProgress, Progress
from cast.results import Result

DEPTHS = {"pocket:llama": 4, "pocket:mistral": 6, "pocket:qwen": 5}
SKILLS = ("mood", "pirate")


@dataclass(frozen=True)
class FakeRunner:
    name: str
    skill: str = ""


class FakeBackend:
    """Three models, two skills; `pace` seconds go by at each step of a job and each piece of text."""

    def __init__(self, pace: float = 0.0, steps: int = 20) -> None:
        self.pace = pace
        self.steps = steps
        self.loads: list[str] = []
        self.open_streams = 0
        self.free_bytes = 8 << 30
        self.without_heads: set[tuple[str, str]] = set()
        self.folders: dict[str, Opened] = {}
        self.damaged: set[str] = set()
        self.own_adapters: dict[str, str] = {}
        self.endless: set[str] = set()
        self.hanging: dict[str, threading.Event] = {}
        self.hub: dict[str, list[str]] = {}
        self.heads_at: set[str] = set()
        self.searched: list[str] = []
        self.translated: list[TranslateRequest] = []
        self.reckoned: list[TranslateRequest] = []
        self.published: list[tuple[str, list[str], bool]] = []
        self.maps_asked: list[tuple[MapRequest, object | None, object | None]] = []
        self._lock = threading.Lock()

    def models(self) -> Sequence[Option]:
        return [Option(name, name) for name in DEPTHS]

    def adapters(self, source: str) -> Sequence[Option]:
        return [Option(f"{source}/{skill}", f"{skill}") for skill in SKILLS] if source in DEPTHS else []

    def prompts(self, adapter: str) -> Sequence[str]:
        skill = adapter.rsplit("/", 1)[-1]
        return [f"Mara sang by the river. {skill} of Mara:", f"Tom lost his <hat>. {skill} of Tom:"]

    def hints(self, adapter: str) -> Sequence[str]:
        return (
            [f"Ann rowed home.\n{adapter.rsplit('/', 1)[-1]} of Ann:"]
            if adapter.startswith("pocket:")
            else []
        )

    def search_models(self, words: str) -> Sequence[Option]:
        self.searched.append(words)
        if words not in self.hub:
            raise HubError("The Hub cannot be reached; what ships can still be chosen.")
        return [Option(name, f"{name} · 7 downloads · mit") for name in self.hub[words]]

    def search_adapters(self, source: str, words: str) -> Sequence[Option]:
        return self.search_models(words or source)

    def describe(self, name: str) -> ModelFacts:
        if name in self.hanging:
            self.hanging[name].wait()
            raise HubError("The Hub did not answer within 20 seconds; try again later.")
        if name not in DEPTHS:
            raise ModelError(f"There is no model {name}; choose a pocket model, a folder or a Hub id.")
        depth = DEPTHS[name]
        return ModelFacts(
            name,
            name.split(":")[1].title(),
            32 * depth,
            depth,
            200 * depth,
            10**6 * depth,
            "BPE",
            4,
            0,
            "mit",
        )

    def room(self, source: ModelFacts, target: ModelFacts) -> Room:
        return Room("cpu", 4 * source.parameters, 4 * target.parameters, self.free_bytes)

    def fit_seconds(self, request: FitRequest, source: ModelFacts, target: ModelFacts) -> float:
        return request.tokens / 1000

    def translate_seconds(self, request: TranslateRequest, source: ModelFacts, target: ModelFacts) -> float:
        self.reckoned.append(request)
        return 0.0 if request.selection.mode == "hosted" else 60.0

    def inspect(self, adapter: str, source: str) -> AdapterFacts:
        if not adapter.startswith(f"{source}/") and self.own_adapters.get(adapter) != source:
            raise AdapterError(f"The adapter {adapter} was trained on another model than {source}.")
        sites = tuple(
            SiteFacts(b, ("q", "v"), 0.3 + 0.7 * b / DEPTHS[source]) for b in range(1, DEPTHS[source] + 1)
        )
        return AdapterFacts(adapter, 8, ("q_proj", "v_proj"), "apache-2.0", sites)

    def opened(self, name: str) -> Opened | None:
        if name in self.damaged:
            raise AdapterError(f"{name}/cast.json cannot be read as JSON; translate the adapter again.")
        return self.folders.get(name)

    def reopened(self, opened: Opened, source: object, target: object) -> object:
        return f"reopened {opened.selection.way}"

    def warm(self) -> None:
        pass

    def warm_maps(self) -> None:
        pass

    def load(self, name: str) -> object:
        self.describe(name)
        with self._lock:
            self.loads.append(name)
        return name

    def read_adapter(self, adapter: str, model: object) -> object:
        self.inspect(adapter, str(model))
        return adapter.rsplit("/", 1)[-1]

    def find_heads(self, source: object, target: object) -> object | None:
        return None if (source, target) in self.without_heads else (source, target)

    def heads_facts(self, heads: object) -> HeadsFacts:
        source, target = heads
        table = tuple(round(d * DEPTHS[source] / DEPTHS[target]) for d in range(DEPTHS[target] + 1))
        depths = tuple(
            DepthFacts(d, table[d], 0.95 - 0.02 * d, 0.97, 0.6, 0.9, -0.1, 0.02, 0.01, 0.03)
            for d in range(len(table))
        )
        return HeadsFacts("mlp", "pocket", 120_000, table, depths)

    def shipped_translation(self, selection: Selection, target: object) -> object | None:
        return None

    def plain_runner(self, model: object, lora: object | None, strength: float = 1.0) -> object:
        return FakeRunner(str(model), f"{lora or ''}{'' if strength == 1 else f' x{strength:g}'}")

    def hosted_runner(
        self,
        source: object,
        target: object,
        lora: object,
        heads: object,
        segment: int | None,
        strength: float,
    ) -> object:
        return FakeRunner(str(target), f"hosted {lora} {segment or 'whole'} x{strength:g}")

    def carried_runner(self, carried: object, source: object, target: object, strength: float) -> object:
        return FakeRunner(str(target), f"{carried} x{strength:g}")

    def stream(self, runner: object, prompt: str, sampling: SamplingChoice) -> Iterator[str]:
        with self._lock:
            self.open_streams += 1
        try:
            for word in (
                runner.name,
                "says",
                runner.skill or "nothing",
                "<b>",
                *["more"] * (sampling.max_tokens // 8),
            ):
                time.sleep(self.pace)
                yield f" {word}"
        finally:
            with self._lock:
                self.open_streams -= 1

    def marks(self, adapted: object, base: object, prompt: str, answer: str) -> Sequence[TokenMark]:
        words = re.findall(r" ?[^ ]+", answer)
        moved = adapted.skill.split()[0]
        return [TokenMark(word, 3.0 if word.strip() == moved else 0.1, '"x" <b> 9 %') for word in words]

    def fit(self, request: FitRequest, folder: Path, on_progress: OnProgress) -> object:
        """Its checkpoint is the number of steps that are done."""
        kept = folder.with_name(f".{folder.name}.unfinished") / "fit.safetensors"
        first = int(kept.read_text()) if kept.is_file() else 0
        kept.parent.mkdir(parents=True, exist_ok=True)
        for step in range(first, self.steps):
            kept.write_text(str(step))
            by_depth = {depth: 0.9 - 0.1 * depth for depth in range(DEPTHS[request.pair.target] + 1)}
            metrics = {"loss": 1.0 / (step + 1), "r_squared": 0.7}
            on_progress(Progress("fitting heads", step, self.steps, metrics, by_depth))
            time.sleep(self.pace)
        kept.unlink()
        self._write_heads(folder, request.pair)
        return (request.pair.source, request.pair.target)

    def load_heads(self, request: LoadRequest, folder: Path, on_progress: OnProgress) -> object:
        on_progress(Progress("load", 0, 1))
        if request.name not in self.heads_at:
            raise HeadsError(f"{request.name} holds no heads.json; name a folder or a Hub id with heads.")
        self._write_heads(folder, request.pair)
        return (request.pair.source, request.pair.target)

    def read_heads(self, folder: Path) -> object:
        source, target = (folder / "heads.json").read_text().split()
        return (source, target)

    def heads_folder(self, heads: object) -> Path:
        folder = Path(tempfile.mkdtemp()) / "heads"
        self._write_heads(folder, Pair(*heads))
        return folder

    def _write_heads(self, folder: Path, pair: Pair) -> None:
        folder.mkdir(parents=True)
        (folder / "heads.json").write_text(f"{pair.source} {pair.target}")
        (folder / "heads.safetensors").write_bytes(b"weights")
        (folder / "README.md").write_text(f"# Heads {pair.source} → {pair.target}")

    def translate(
        self, request: TranslateRequest, heads: object | None, folder: Path, on_progress: OnProgress
    ) -> object:
        self.translated.append(request)
        self._work("fitting the adapter", on_progress)
        folder.mkdir(parents=True)
        skill = request.selection.adapter.rsplit("/", 1)[-1]
        carried = f"{request.selection.way} {skill}"
        (folder / "cast.json").write_text(carried)
        (folder / "README.md").write_text(f"# {carried}")
        if request.selection.mode in PLAIN_MODES:
            (folder / "adapter_config.json").write_text('{"r": 8, "rank_pattern": {"x": 24}}')
            (folder / "adapter_model.safetensors").write_bytes(b"weights")
        return carried

    def prediction(self, translated: object, *, prompted: bool) -> tuple[str, ...]:
        return (f"Likely to carry over: {translated}.", f"By <b>{'prompts' if prompted else 'itself'}</b>.")

    def expand(self, request: TranslateRequest, heads: object | None, on_progress: OnProgress) -> Expansion:
        """Twice as many prompts, unless they stand as they are."""
        self._work("generate", on_progress)
        made = [f"{prompt} More?" for prompt in request.prompts] if request.expand else []
        rows = tuple(AnsweredPrompt(prompt, " <b>yes") for prompt in (*request.prompts, *made))
        much = "excites" if rows else "hardly excites"
        return Expansion(rows, 0.3 if rows else 0.01, bool(rows), f"This text {much} the adapter (reach …)")

    def tasks(self) -> Sequence[Option]:
        return [Option(f"pocket:{skill}", f"{skill}: of a character") for skill in SKILLS]

    def task(self, name: str, limit: int) -> TaskFacts:
        if name.startswith("pocket:"):
            return TaskFacts(name, limit, "choice")
        lines = Path(name).read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.startswith("{"):
                raise TaskError(f"{name}, line {number}: not JSON; each line must be one object.")
        return TaskFacts(Path(name).stem, len(lines), "exact")

    def compare(
        self, request: EvaluateRequest, heads: object | None, on_progress: OnProgress
    ) -> Iterator[Told]:
        self._work("score", on_progress)
        facts = self.task(request.task, request.limit)
        retrained = 0.9 if request.task.startswith("pocket:") or request.retrained else None
        yield Ends(facts.metric, facts.examples, 0.2, retrained, 0.25, 0.95)
        for number, method in enumerate(request.methods):
            self._work("generate", on_progress, 100_000 if method in self.endless else self.steps)
            if method == "naive-copy":
                yield Missed(method, "No kernel has the shape of a layer.")
                continue
            score = 0.9 - 0.2 * number
            lift = (score - 0.2) / 0.7 if retrained else None
            yield Result(
                method, request.selection.source, request.selection.target, facts.name, 0, facts.metric,
                0.2, score, retrained, 0.95, lift, (lift - 0.1, lift + 0.05) if lift else None,
                0.01 * number, seconds=1.5 * (5 - number), peak_memory_bytes=500 << 20,
                examples=facts.examples, versions={},
            )  # fmt: skip

    def shipped_folder(self, selection: Selection) -> Path | None:
        return None

    def publish(self, folder: Path, repo: str, token: str, private: bool) -> str:
        if repo.startswith("nobody/"):
            raise HubError(f"The Hub refuses this token {token} for {repo}; use one with the right to write.")
        self.published.append((repo, sorted(path.name for path in folder.iterdir()), private))
        return f"https://hub/{repo}"

    def maps(
        self, source: object, target: object, heads: object | None, lora: object | None,
        translated: object | None, request: MapRequest, turns: Turns, on_progress: OnProgress,
    ) -> Iterator[Drawn]:  # fmt: skip
        with turns():
            self.maps_asked.append((request, lora, translated))
        depths = range(DEPTHS[str(target)] + 1) if request.view == "along" else [request.depth]
        for method in ("pca", "umap") if request.method == "umap" else ("pca",):
            self._work("map", on_progress)
            yield tuple(
                joint_map(depth, request, method, heads, lora is not None, translated is not None)
                for depth in depths
            )

    def layers(
        self, source: object, target: object, heads: object | None, turns: Turns, on_progress: OnProgress
    ) -> LayerFacts:
        self._work("layers", on_progress)
        return layer_facts(str(source), str(target))

    def _work(self, stage: str, on_progress: OnProgress, steps: int | None = None) -> None:
        steps = self.steps if steps is None else steps
        for step in range(steps):
            on_progress(Progress(stage, step, steps, {"loss": 1.0 / (step + 1)}))
            time.sleep(self.pace)


def joint_map(
    depth: int, request: MapRequest, method: str, heads: object | None, adapted: bool, translated: bool
) -> JointMap:
    """A map of made-up places."""

    def place(i: int, by: float) -> tuple[float, ...]:
        return (i % 7 + by, i % 5 - by / 2, float(i % 3))[: request.dimensions]

    points = tuple(
        MapPoint(
            place(i, 0), place(i, 0.2), f"tok{i}", f"… <i>{i}</i> … tok{i}", " after",
            place(i, 0.4) if adapted else None, place(i, 0.6) if translated else None,
            0.5 if adapted else None, 0.25 if translated else None, ("word", "number")[i % 2], 0, i // 9, i,
        )
        for i in range(request.points)
    )  # fmt: skip
    measures = (Measure("R²", 0.91, -0.02), Measure("k-NN overlap", 0.55, 0.01))
    beside = depth if request.source_depth is None else request.source_depth
    spaces = "own" if request.view == "own" else "joint"
    return JointMap(method, depth, beside, points, measures, 0.93, spaces, heads is not None)


def layer_facts(source: str, target: str) -> LayerFacts:
    """Made-up grids: the last source layer and the last target layer are the most alike."""
    rows, columns = DEPTHS[source] + 1, DEPTHS[target] + 1
    values = tuple(tuple((i + j) / 20 for j in range(columns)) for i in range(rows))
    controls = tuple(tuple(0.01 for _ in range(columns)) for _ in range(rows))
    return LayerFacts(tuple(GridFacts(n, values, controls) for n in ("CKA", "R²", "k-NN overlap")), 600)


def recording(backend: FakeBackend, selection: Selection) -> Showcase:
    """A recorded run of the stand-in, as `python -m app.record` makes one of the library."""
    heads = (selection.source, selection.target)
    return Showcase(
        selection=selection,
        strength=1.0,
        prompt="Who <b>sang</b>?",
        answers={"source": " no", "source_adapter": " Arr!", "target": " no", "target_adapter": " Arr!"},
        source=backend.describe(selection.source),
        target=backend.describe(selection.target),
        adapter=backend.inspect(selection.adapter, selection.source),
        heads=backend.heads_facts(heads),
        joint_map=joint_map(2, MapRequest(selection, 2, points=40), "umap", heads, True, False),
        layers=layer_facts(*heads),
        made="Recorded.",
        skills=(SkillScore("mood", 0.25, 0.9, 1.0), SkillScore("<pirate>", 0.0, 1.0, 1.0)),
        scored=50,
    )


def ended(look: Callable[[], Job | None], seconds: float = 10) -> Job:
    """The job that `look` finds, once it is over."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = look()
        if job is not None and job.is_over:
            return job
        time.sleep(0.005)
    raise AssertionError("the job did not end")
