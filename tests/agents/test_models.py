from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from retinue_agents import (
    LiteLLMChat,
    LocalChat,
    check_model,
    open_model,
)
from retinue_agents.testing import EchoModel, ScriptedModel
from retinue_memory import (
    ChatModel,
    Message,
    ModelDelta,
    ToolCall,
    ToolSpec,
)
from retinue_memory.errors import (
    ConfigError,
    ImportAttributeError,
    ImportFormatError,
    ImportModuleError,
    ModelError,
)


class Own(ChatModel):
    """A model of a user."""

    def __init__(self, answer: str = "mine") -> None:
        self.answer = answer

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        yield ModelDelta(self.answer, finish="stop")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("openai/gpt-5-mini", "openai/gpt-5-mini"),
        ("gpt-5-mini", "gpt-5-mini"),
        ("ollama/qwen3.5:latest", "ollama/qwen3.5:latest"),
        ("ollama::qwen3.5:latest", "ollama_chat/qwen3.5:latest"),
        ("anthropic::claude", "anthropic/claude"),
        ("azure-openai::my-deployment", "azure/my-deployment"),
        ("x.ai::grok-4", "xai/grok-4"),
        ("openrouter::meta/llama:free", "openrouter/meta/llama:free"),
        ("openai/ft:gpt-4o:org::id", "openai/ft:gpt-4o:org::id"),
    ],
)
def test_a_litellm_name_in_either_style(spec: str, name: str) -> None:
    """`provider/model` passes through, `provider::model` is split at the first "::"; a tag's ":" stays."""
    model = open_model(spec)
    assert isinstance(model, LiteLLMChat)
    assert model.name == name


def test_built_in_models_open_by_name() -> None:
    """`echo` and `local/...` open their models, and a model is passed through."""
    assert isinstance(open_model("echo"), EchoModel)
    local = open_model("local/smollm2-135m")
    assert isinstance(local, LocalChat)
    assert local.name == "local/smollm2-135m"
    assert open_model(local) is local


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "module:attribute" names an instance, or a class that is called; each import failure has its own error."""
    (tmp_path / "own_models.py").write_text(
        "from retinue_agents.testing import EchoModel\nready = EchoModel()\nnumber = 7\nKind = EchoModel\n", "utf-8"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert isinstance(open_model("own_models:ready"), EchoModel)
    made = open_model("own_models:Kind", chunks=3)
    assert isinstance(made, EchoModel)
    assert made.chunks == 3
    for spec, error, said in (
        ("own_models:", ImportFormatError, "own_models:"),
        ("qwen3.5:latest", ConfigError, "qwen3.5:latest"),
        ("own_modelz:ready", ImportModuleError, "own_modelz"),
        ("own_models:redy", ImportAttributeError, "redy"),
        ("own_models:number", ConfigError, "neither a ChatModel"),
    ):
        with pytest.raises(error, match=said) as raised:
            open_model(spec)
        assert raised.value.key == "model"
    with pytest.raises(ConfigError, match="no settings"):
        open_model("own_models:ready", delay=1)
    sys.modules.pop("own_models")


@pytest.mark.parametrize("spec", ["", " ", "gpt 5", "local/", "local/llama-900b", "::x", "openai::"])
def test_what_cannot_be_a_model_is_refused(spec: str) -> None:
    """Nothing is imported or loaded; the error for an unknown local model names the known ones."""
    with pytest.raises(ConfigError) as raised:
        open_model(spec)
    if spec.startswith("local/"):
        assert "local/smollm2-135m" in str(raised.value)


def test_an_unknown_provider_is_found_by_the_check() -> None:
    """`check_model` needs neither key nor network."""
    for fine in ("openai/whatever", "ollama::qwen3.5:latest", "echo", "local/smollm2-135m", Own()):
        check_model(fine)
    with pytest.raises(ConfigError, match="'opnai/gpt-5-mini': LiteLLM knows no such provider"):
        check_model("opnai/gpt-5-mini")


def test_importing_and_opening_load_nothing() -> None:
    """Neither `import retinue_agents` nor creating an agent loads litellm, the runtimes, numpy or an HTTP client."""
    program = """
import sys
import retinue_agents
from retinue_agents import Agent, LiteLLMChat, LocalChat
Agent("openai/gpt-5-mini"), Agent("local/smollm2-135m"), Agent("ollama::x"), LocalChat(), LiteLLMChat("x")
heavy = {"litellm", "openai", "xllamacpp", "onnxruntime", "tokenizers", "numpy", "mem0", "httpx", "pydantic", "a2a"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


async def test_the_scripted_model_follows_its_script() -> None:
    """Texts, calls, pieces, errors and functions, then ModelError. It keeps its requests."""
    model = ScriptedModel(["a", ["b", "c"], ToolCall("1", "t", {}), lambda messages: messages[-1].content.upper()])

    async def ask(text: str) -> list[ModelDelta]:
        return [delta async for delta in model.stream([Message("user", text)], temperature=0)]

    assert [d.text for d in await ask("1")] == ["a", ""]
    assert [d.text for d in await ask("2")] == ["b", "c", ""]
    assert (await ask("3"))[0].tool_calls[0].name == "t"
    assert (await ask("four"))[0].text == "FOUR"
    with pytest.raises(ModelError, match="4 lines"):
        await ask("5")
    assert [request.messages[0].content for request in model.requests] == ["1", "2", "3", "four", "5"]
    assert model.requests[0].settings == {"temperature": 0}


async def test_the_echo_model_repeats_the_user() -> None:
    """In as many pieces as requested, at most one per character."""
    messages = [Message("user", "hello"), Message("assistant", "no")]
    for chunks in (1, 2, 5, 50):
        texts = [d.text async for d in EchoModel(chunks=chunks).stream(messages) if d.text]
        assert "".join(texts) == "hello"
        assert len(texts) <= chunks
    assert (await anext(EchoModel().stream([]))).text == ""
