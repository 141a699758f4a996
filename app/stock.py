"""Models, adapters, heads and translations that visitors share: made on demand, kept while there is room."""

from app.backend import Backend
from app.cache import Cache
from app.facts import NO_HEADS, AdapterFacts, ModelFacts, Opened
from app.showcase import Showcase
from app.streams import Loaded, held
from app.workspace import Pair, Selection
from cast.errors import HeadsError


class Stock:
    """What has been loaded, by name; nobody changes it."""

    def __init__(self, backend: Backend, max_models: int) -> None:
        self._backend = backend
        self._model_facts: Cache[ModelFacts] = Cache(256)
        self._adapter_facts: Cache[AdapterFacts] = Cache(256)
        self._models: Cache[Loaded] = Cache(max_models)
        self._adapters: Cache[object] = Cache(32)
        self._heads: Cache[object | None] = Cache(8)
        self._shipped: Cache[object | None] = Cache(32)
        self._reopened: Cache[object] = Cache(32)

    def learn(self, example: Showcase) -> None:
        """Take the facts that a recording holds, so that they need not be read."""
        for model in (example.source, example.target):
            self._model_facts.put(model.name, model)
        self._adapter_facts.put((example.adapter.name, example.source.name), example.adapter)

    def knows(self, selection: Selection) -> bool:
        """Whether the facts of a choice are there."""
        adapter = (selection.adapter, selection.source)
        return all(self._model_facts.peek(name) for name in (selection.source, selection.target)) and (
            not selection.adapter or self._adapter_facts.peek(adapter) is not None
        )

    def model_facts(self, name: str) -> ModelFacts:
        """Facts of a model."""
        return self._model_facts.get(name, lambda: self._backend.describe(name))

    def facts_of(self, pair: Pair) -> tuple[ModelFacts, ModelFacts]:
        """Facts of both models of a pair."""
        return self.model_facts(pair.source), self.model_facts(pair.target)

    def adapter_facts(self, name: str, source: str) -> AdapterFacts:
        """Facts of an adapter of a source model."""
        return self._adapter_facts.get((name, source), lambda: self._backend.inspect(name, source))

    def has(self, name: str) -> bool:
        """Whether a model is loaded."""
        return self._models.peek(name) is not None

    def _model(self, name: str) -> Loaded:
        return self._models.get(name, lambda: Loaded(name, self._backend.load(name)))

    def pair(self, pair: Pair) -> tuple[Loaded, Loaded]:
        """Source and target of a pair."""
        pair.check()
        return self._model(pair.source), self._model(pair.target)

    def adapter(self, name: str, source: Loaded) -> object:
        """An adapter of a loaded model."""
        key = (name, source.name)
        return self._adapters.get(key, lambda: self._backend.read_adapter(name, source.model))

    def heads(self, source: Loaded, target: Loaded) -> object | None:
        """The heads that every visitor of a pair may use; None where there are none yet."""
        pair = Pair(source.name, target.name)
        found = self._heads.get(pair, lambda: self._backend.find_heads(source.model, target.model))
        if found is None:
            # A translation may fit and keep them later.
            self._heads.drop(pair)
        return found

    def shipped(self, selection: Selection, target: Loaded) -> object | None:
        """A translation that ships with the program, or None."""
        return self._shipped.get(
            selection, lambda: self._backend.shipped_translation(selection, target.model)
        )

    def reopened(self, opened: Opened, source: Loaded, target: Loaded) -> object:
        """The translation in a visitor's folder; making it again may run both models."""

        def make() -> object:
            with held(source, target)():
                return self._backend.reopened(opened, source.model, target.model)

        return self._reopened.get(opened, make)


def needed(heads: object | None) -> object:
    """Heads that must be there.

    Raises:
        HeadsError: there are none.
    """
    if heads is None:
        raise HeadsError(NO_HEADS)
    return heads
