"""Every public name of sona_pg with hostile arguments: typed errors, finite weights, and valid outcomes are learned."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sona_pg
from sona_pg import AsyncSonaEngine, SonaEngine, SonaError
from sona_pg.store.connection import connect, use_vector_schema
from sona_pg.store.database import ENV_URL
from sona_pg.types import QueryTrajectory, TrajectoryStep

from . import budget, config_values, file_values, graph_values, python_values, text_values
from .anything import DIM, anything
from .budget import tries
from .python_values import ANSWER
from .sweep import learn_all, not_finite

OF = (python_values, graph_values, text_values, config_values, file_values)
GOOD_OF = {entry: of for values in OF for entry, of in values.GOOD_OF.items()}
HOSTILE_OF = {entry: of for values in OF for entry, of in values.HOSTILE_OF.items()}
MAKERS = {entry: of for values in OF for entry, of in values.MAKERS.items()}
NUMBERS_OF = {**python_values.NUMBERS_OF, **graph_values.NUMBERS_OF}

PLAIN = {
    *(
        "BackgroundResult",
        "Context",
        "DeepLearningResult",
        "DeepResult",
        "Dream",
        "DreamEvidence",
        "EmbedderReport",
        "FitReport",
        "ForgetReport",
        "ImprovementMetrics",
        "InstantLoopMetrics",
        "Item",
        "LearningMode",
        "LearnedPattern",
        "LearningResult",
        "LoadReport",
        "PatternImport",
        "RecordedQuery",
        "Response",
        "SaveReport",
        "TaskMemory",
    ),
    "TrajectoryStep",
    "Score",
}
"""Tuples and counts that check nothing and do nothing: what takes them is fuzzed with them."""
UNFIT = {f"{kind}.{method}" for kind in ("SonaEngine", "AsyncSonaEngine") for method in ("__init__", "close")}
"""`connect` makes engines, and a closed one takes nothing."""


def public_entries() -> list[str]:
    """Constructors and methods of every public class; errors take any message."""
    found = []
    for name in sona_pg.__all__:
        value = getattr(sona_pg, name)
        if not inspect.isclass(value) or issubclass(value, Exception) or name in PLAIN:
            continue
        if getattr(value, "_is_protocol", False):  # what applications make
            continue
        methods = [m for m in dir(value) if not m.startswith("_") and callable(getattr(value, m))]
        found += [f"{name}.{method}" for method in ("__init__", *methods)]
    return [entry for entry in found if entry not in UNFIT]


ENTRIES = public_entries()

KERNEL = {
    f"MicroLoRA.{name}"
    for name in ("add", "backward", "backward_batch", "fisher_batch", "forward_batch", "load", "refresh", "set_scale")
}
"""Compiled, for the code that learns: Cython checks the types of their arguments, and adds what it is told."""


def as_sync(entry: str) -> str:
    """The engine for asyncio takes what the engine takes."""
    return entry.removeprefix("Async")


def parameters_of(entry: str) -> list[inspect.Parameter]:
    owner, _, method = entry.partition(".")
    signature = inspect.signature(getattr(getattr(sona_pg, owner), method))
    return [p for p in signature.parameters.values() if p.name != "self"]


def good_of(entry: str, parameter: inspect.Parameter) -> st.SearchStrategy[Any] | None:
    """A setting of a config is good at its default; everything else has a strategy of its own."""
    own = GOOD_OF.get(entry, GOOD_OF.get(as_sync(entry), {}))
    if parameter.name in own:
        return own[parameter.name]
    if entry.partition(".")[0].endswith("Config") and parameter.default is not parameter.empty:
        return st.just(parameter.default)
    return python_values.GOOD.get(parameter.name)


def call_of(entry: str) -> st.SearchStrategy[dict[str, Any]]:
    """Good arguments, of which some are left out and up to three replaced by hostile ones."""
    parameters = parameters_of(entry)
    hostile = HOSTILE_OF.get(as_sync(entry), {})
    optional = [p.name for p in parameters if p.default is not p.empty]
    good = {p.name: good_of(entry, p) for p in parameters}

    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        left_out = draw(st.sets(st.sampled_from(optional))) if optional else set()
        given = [name for name in good if name not in left_out]
        changed = draw(st.sets(st.sampled_from(given), max_size=(min(len(given), 5) + 1) // 2)) if given else set()
        return {name: draw(hostile.get(name, anything) if name in changed else good[name]) for name in given}  # type: ignore[arg-type]

    return build()


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[SonaEngine]:
    with connect(url) as connection:
        use_vector_schema(connection)
        connection.execute(f"CREATE TABLE public.fuzz_python (id integer PRIMARY KEY, embedding vector({DIM}))")
        for row in range(1, 41):
            connection.execute(
                "INSERT INTO public.fuzz_python VALUES (%s, %s)",
                (row, np.random.default_rng(row).standard_normal(DIM).astype(np.float32)),
            )
    model = text_values.function_embedder()
    with SonaEngine.connect(url, space="fuzz python", embedder=model, background=False) as made:
        made.set_items("public.fuzz_python", "id", "embedding")
        nothing = np.zeros(0, dtype=np.float32)
        step = TrajectoryStep(nothing, nothing, 1.0, 0.0, "1", 1)
        made.record(QueryTrajectory(ANSWER, np.ones(DIM, dtype=np.float32), (step,), None, 0, None, None, {}))
        made.flush()
        assert [item.item_id for item in made.why(ANSWER).items] == ["1"]
        yield made


class Asynchronous:
    """An engine for asyncio over another one, and the event loop that it belongs to."""

    def __init__(self, engine: SonaEngine) -> None:
        self._runner = asyncio.Runner()
        self._sona = self._runner.run(self._made(engine))

    async def _made(self, engine: SonaEngine) -> AsyncSonaEngine:
        return AsyncSonaEngine(engine)

    def act(self, method: str) -> Callable[..., Any]:
        """A method, run to its end."""

        async def acted(arguments: dict[str, Any]) -> object:
            if method in ("connect", "from_pretrained", "load", "open"):
                async with getattr(AsyncSonaEngine, method)(**arguments):
                    return None
            made = getattr(self._sona, method)(**arguments)
            return await made if inspect.isawaitable(made) else made

        return lambda **arguments: self._runner.run(acted(arguments))

    def close(self) -> None:
        self._runner.run(self._sona._connections.close())
        self._runner.close()


@pytest.fixture(scope="module")
def asynchronous(engine: SonaEngine) -> Iterator[Asynchronous]:
    made = Asynchronous(engine)
    yield made
    made.close()


def test_every_parameter_has_a_strategy() -> None:
    missing = [f"{e}: {p.name}" for e in ENTRIES for p in parameters_of(e) if good_of(e, p) is None]
    assert not missing, f"say in tests/fuzz/python_values.py what is good of {missing}"
    owners = {entry.partition(".")[0] for entry in ENTRIES}
    assert {owner for entry in ENTRIES if not entry.endswith("__init__") for owner in [entry.partition(".")[0]]} <= (
        set(MAKERS) | {"AsyncSonaEngine", "LearningSignal", "LoraConfig", "QueryAdapterConfig", "SonaEngine"}
    ), "a class with methods needs a maker in tests/fuzz/python_values.py"
    assert len(owners) >= 15


@pytest.mark.parametrize("entry", ENTRIES)
def test_hostile_arguments_are_refused_with_an_error_of_ours(
    entry: str, url: str, engine: SonaEngine, asynchronous: Asynchronous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_URL, url)
    often = {
        "SonaEngine.record": 6,
        "SonaEngine.record_batch": 6,
        "SonaEngine.score": 3,
        "TrajectoryBuilder.add_step": 2,
        "InstantLoop.on_inference": 4,
    }
    times = often.get(entry, 1)

    @tries(short=40 * times, full=1000 * times)
    @given(arguments=call_of(entry))
    def every_input(arguments: dict[str, Any]) -> None:
        call(entry, arguments, engine, asynchronous)

    every_input()


def call(entry: str, arguments: dict[str, Any], engine: SonaEngine, asynchronous: Asynchronous) -> None:
    """One call; whatever it does, the object stays sound."""
    owner, _, method = entry.partition(".")
    kind = getattr(sona_pg, owner)
    held = engine if kind is SonaEngine else MAKERS[owner]() if owner in MAKERS else None
    act: Callable[..., Any] = kind if method == "__init__" else getattr(kind if held is None else held, method)
    if kind is AsyncSonaEngine:
        held, act = engine, asynchronous.act(method)
    elif entry in ("SonaEngine.connect", "SonaEngine.from_pretrained"):
        act = opened_and_closed(act)
    budget.executed[entry] += 1
    refusals = (SonaError, TypeError, ValueError, BufferError, OverflowError) if entry in KERNEL else SonaError
    refusal: Exception | None = None
    try:
        made = act(**arguments)
        if method == "__init__" and owner in MAKERS:
            held = made
    except refusals as error:
        refusal = error
    if refusal is not None:
        budget.refused[entry, type(refusal).__name__] += 1
        assert str(refusal)
    if held is engine:
        keep_up(engine)
    elif owner in NUMBERS_OF and held is not None and entry not in KERNEL:
        assert all(np.isfinite(part).all() for part in NUMBERS_OF[owner](held))


def opened_and_closed(make: Callable[..., SonaEngine]) -> Callable[..., None]:
    def act(**arguments: object) -> None:
        make(**arguments).close()

    return act


def keep_up(engine: SonaEngine) -> None:
    """Make durable what was taken, before the buffers are full."""
    if engine.metrics.pending + engine.metrics.unflushed >= 100:
        engine.flush()


@pytest.mark.parametrize("name", [n for n in sona_pg.__all__ if inspect.isclass(getattr(sona_pg, n))])
def test_errors_have_a_message_whatever_they_are_given(name: str) -> None:
    kind = getattr(sona_pg, name)
    if issubclass(kind, Exception):
        budget.executed[name] += 1
        assert str(kind(3, 4) if name == "DimensionMismatch" else kind())


def test_what_was_valid_is_learned_all_the_same(url: str, engine: SonaEngine) -> None:
    engine.set_items("public.fuzz_python", "id", "embedding")
    made = engine.record(np.ones(DIM), ["1", "2"], [1.0, 0.0])
    engine.flush()
    assert engine.metrics.refused == engine.metrics.unflushed == engine.metrics.pending == engine.metrics.dropped == 0
    with connect(url) as connection:
        assert not learn_all(url, connection)
        learned = connection.execute("SELECT learned FROM sona.ledger WHERE trajectory_id = %s", (made,)).fetchall()
        assert learned == [("adapter",)]
        assert not not_finite(connection)
    assert np.isfinite(engine.adapt(np.eye(DIM))).all()
