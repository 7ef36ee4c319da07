from __future__ import annotations

import asyncio
import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from retinue_agents import (
    FunctionTool,
    InvocationContext,
    NeedInput,
    ToolCall,
    ToolContext,
    ToolResult,
    as_tool,
    open_tool,
    tool,
)
from retinue_memory.errors import (
    ConfigError,
    ImportAttributeError,
    ImportFormatError,
    ImportModuleError,
    ToolError,
)

CONTEXT = ToolContext(InvocationContext("s"), ToolCall("c", "t", {}), "turn/tool/1/0")


@dataclass
class Place:
    city: str
    country: str = "Italy"


def weather(place: Place, days: int = 3, unit: Literal["C", "F"] = "C", *, context: ToolContext) -> dict[str, Any]:
    """Say how the weather will be.

    Only for Europe.

    Args:
        place: Where.
        days (int): How many days,
            today included.
        unit: Of the temperature.

    Returns:
        A forecast.
    """
    return {"city": place.city, "days": days, "unit": unit, "key": context.key}


def sphinx(a: int, b: str | None = None) -> str:
    """Add.

    :param a: The first
        number.
    :param str b: The second.
    :returns: nothing of use
    """
    return f"{a} {b}"


def test_a_function_describes_itself() -> None:
    """Name, summary and schema come from the function, its type hints and its docstring; the context is hidden."""
    spec = as_tool(weather).spec
    assert (spec.name, spec.description) == ("weather", "Say how the weather will be.\n\nOnly for Europe.")
    properties = spec.parameters["properties"]
    assert spec.parameters["required"] == ["place"]
    assert set(properties) == {"place", "days", "unit"}
    assert properties["days"] == {"type": "integer", "default": 3, "description": "How many days, today included."}
    assert properties["unit"] == {
        "type": "string",
        "enum": ["C", "F"],
        "default": "C",
        "description": "Of the temperature.",
    }
    assert spec.parameters["$defs"]["Place"]["properties"]["city"]["type"] == "string"
    json.dumps(spec.parameters)


def test_sphinx_style_docstrings_are_read() -> None:
    """Parameters described as `:param name:` reach the tool's schema."""
    spec = as_tool(sphinx).spec
    assert spec.description == "Add."
    assert {name: p["description"] for name, p in spec.parameters["properties"].items()} == {
        "a": "The first number.",
        "b": "The second.",
    }


async def test_arguments_are_validated_and_converted() -> None:
    """The function gets the types of its hints; an invalid argument is named, and the function does not run."""
    forecast = as_tool(weather)
    result = await forecast({"place": {"city": "Rome"}, "days": "2"}, CONTEXT)
    assert json.loads(result.content) == {"city": "Rome", "days": 2, "unit": "C", "key": "turn/tool/1/0"}
    for wrong, named in (
        ({}, "place: Field required"),
        ({"place": {"city": "Rome"}, "days": "many"}, "days: "),
        ({"place": {"city": "Rome"}, "context": {}}, "context: "),
        ({"place": {"city": "Rome"}, "unit": "K"}, "unit: "),
    ):
        result = await forecast(wrong, CONTEXT)
        assert result.failed
        assert named in result.content


async def test_parameters_may_be_named_like_anything() -> None:
    """Names with a meaning in pydantic or JSON Schema are not special."""

    def odd(schema: str, model_config: int, title: str = "", json: bool = True) -> str:
        return f"{schema} {model_config} {title} {json}"

    described = as_tool(odd)
    assert set(described.spec.parameters["properties"]) == {"schema", "model_config", "title", "json"}
    assert await described({"schema": "a", "model_config": 1, "title": "b"}, CONTEXT) == ToolResult("a 1 b True")


async def test_the_context_may_be_optional() -> None:
    """For a function that is also called without a model."""

    def who(context: ToolContext | None = None) -> str:
        return context.key if context else "by hand"

    assert as_tool(who).spec.parameters["properties"] == {}
    assert (await as_tool(who)({}, CONTEXT)).content == CONTEXT.key


async def test_plain_functions_run_off_the_event_loop() -> None:
    """A plain function runs in another thread, a coroutine function on the event loop."""

    def where() -> str:
        return threading.current_thread().name

    async def here() -> str:
        return threading.current_thread().name

    assert (await as_tool(where)({}, CONTEXT)).content != threading.current_thread().name
    assert (await as_tool(here)({}, CONTEXT)).content == threading.current_thread().name


async def test_results_are_text_or_json() -> None:
    """A string is the result itself; any other value is written as JSON."""
    for value, text in (
        ("as it is", "as it is"),
        (None, "null"),
        (Place("Rome"), '{"city":"Rome","country":"Italy"}'),
        ([1, "due"], '[1,"due"]'),
        ("è", "è"),
    ):

        def give(value: object = value) -> object:
            return value

        assert (await as_tool(give)({}, CONTEXT)).content == text


async def test_failures_are_results() -> None:
    """ToolError is passed on as its text, other errors with their type; NeedInput and cancellation are raised."""

    async def fail(how: str) -> str:
        if how == "slow":
            await asyncio.Event().wait()
        raise {"told": ToolError("the shop is closed"), "bug": ZeroDivisionError("oops"), "ask": NeedInput("Which?")}[
            how
        ]

    failing = FunctionTool(fail, timeout=0.02)
    assert await failing({"how": "told"}, CONTEXT) == ToolResult("the shop is closed", failed=True)
    assert await failing({"how": "bug"}, CONTEXT) == ToolResult("fail failed: ZeroDivisionError: oops", failed=True)
    assert await failing({"how": "slow"}, CONTEXT) == ToolResult("fail did not answer within 0.02 seconds", failed=True)
    with pytest.raises(NeedInput, match="Which"):
        await failing({"how": "ask"}, CONTEXT)
    task = asyncio.create_task(FunctionTool(fail)({"how": "slow"}, CONTEXT))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_settings_come_from_the_decorator() -> None:
    """The function stays callable; the tool has the name, description, retry and timeout that were given."""

    @tool(name="pay_now", description="Pay.", retry="never", timeout=5)
    def pay(amount: float) -> float:
        return amount

    @tool
    def plain() -> None:
        """Nothing."""

    assert pay(2.5) == 2.5
    marked = as_tool(pay)
    assert isinstance(marked, FunctionTool)
    assert (marked.spec.name, marked.spec.description, marked.retry, marked.timeout) == ("pay_now", "Pay.", "never", 5)
    assert as_tool(plain).spec.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert as_tool(marked) is marked


async def test_methods_and_callable_objects_are_tools() -> None:
    """Bound methods and objects with `__call__` become tools."""

    class Counter:
        def __init__(self) -> None:
            self.n = 0

        def count(self, by: int = 1) -> int:
            """Count."""
            self.n += by
            return self.n

        async def __call__(self, by: int) -> int:
            return self.count(by)

    counter = Counter()
    assert (await as_tool(counter.count)({"by": 2}, CONTEXT)).content == "2"
    assert (await FunctionTool(counter, name="counter")({"by": 3}, CONTEXT)).content == "5"


def test_what_cannot_be_a_tool_is_refused() -> None:
    """Parameters without a schema, an invalid name, an object that is not a function."""

    def star(*values: int) -> None: ...

    def lost(x: NowhereToBeFound) -> None: ...  # type: ignore[name-defined]  # noqa: F821 # pyright: ignore

    class Opaque: ...

    def opaque(x: Opaque) -> None: ...

    refused: list[Any] = [star, lost, opaque, lambda: None, 42]
    for wrong in refused:
        with pytest.raises(ConfigError):
            as_tool(wrong)


def test_a_config_names_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "module:function" is imported; each import failure has its own error."""
    (tmp_path / "shop_tools.py").write_text('def order(n: int) -> str:\n    """Order."""\n    return "ok"\n', "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert open_tool("shop_tools:order").spec.description == "Order."
    for spec, error in (
        ("shop_tools", ImportFormatError),
        ("shop_toolz:order", ImportModuleError),
        ("shop_tools:ordr", ImportAttributeError),
    ):
        with pytest.raises(error):
            open_tool(spec)
    sys.modules.pop("shop_tools")
