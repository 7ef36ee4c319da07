"""python adk.py PORT: the same echo as an agent of google-adk, served by its own `to_a2a` with services in memory.

A program of its own, for an interpreter that has google-adk with its extra `a2a`; it imports nothing of Retinue.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import AsyncGenerator
from typing import Any

import uvicorn

agents: Any = importlib.import_module("google.adk.agents")  # they are no dependency, so they have no types here
models: Any = importlib.import_module("google.adk.models")
serving: Any = importlib.import_module("google.adk.a2a.utils.agent_to_a2a")
types: Any = importlib.import_module("google.genai.types")


async def echo(self: Any, llm_request: Any, stream: bool = False) -> AsyncGenerator[Any, None]:
    """Say what the user said last."""
    text = "".join(part.text or "" for part in llm_request.contents[-1].parts)
    content = types.Content(role="model", parts=[types.Part(text=text)])
    yield models.LlmResponse(content=content, turn_complete=True)


def main(port: int) -> None:
    warnings.simplefilter("ignore")  # what it says of its own experiments
    model = type("Echo", (models.BaseLlm,), {"generate_content_async": echo})
    agent = agents.LlmAgent(name="echo", model=model(model="echo"), description="Says it again.")
    app = serving.to_a2a(agent, host="127.0.0.1", port=port)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
