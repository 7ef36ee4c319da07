"""Agent cards: the description of an agent and its addresses."""

from __future__ import annotations

import hashlib
from email.utils import formatdate
from functools import lru_cache
from urllib.parse import urlsplit

from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types import AgentCapabilities, AgentCard, AgentExtension, AgentInterface, AgentProvider, AgentSkill
from a2a.utils.constants import AGENT_CARD_WELL_KNOWN_PATH, TransportProtocol
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from retinue_server.config import AgentConfig, Config, SkillConfig

from .executor import MEMORY_EXTENSION
from .generation import GENERATION_EXTENSION
from .validation import ANY_MEDIA_TYPE

REST = "/rest"
"""The path of the HTTP+JSON binding below an agent's base."""
CACHE_CONTROL = "public, max-age=60"  # a card changes with the config; after a minute, clients revalidate for a 304
_MEMORY = AgentExtension(
    uri=MEMORY_EXTENSION,
    description=(
        'Remembers its users. A request may have metadata.memory = {mode: "on" | "read-only" | "off", top_k: 1..100}; '
        "a finished task's metadata.memory has the retrieved memories and the state of the update."
    ),
)
_GENERATION = AgentExtension(
    uri=GENERATION_EXTENSION,
    description=(
        "Numbers the changes of a task. If a request activates it, metadata.generation of each task and streamed event is the "
        "task's generation: it starts at 1, and every state change and artifact update raises it by one."
    ),
)
TEXT, JSON = "text/plain", "application/json"


def agent_card(
    name: str, agent: AgentConfig, url: str, grpc: str | None = None, *, remembers: bool = False
) -> AgentCard:
    """The card of an agent. `url` is its base address, without a slash at the end; `grpc` is "host:port"."""
    provider = agent.provider
    grpc_interfaces = (
        [AgentInterface(url=grpc, protocol_binding=TransportProtocol.GRPC, protocol_version="1.0")] if grpc else []
    )
    return AgentCard(
        name=name,
        description=agent.description or f"The agent {name}.",
        version=agent.version,
        supported_interfaces=[
            AgentInterface(url=f"{url}/", protocol_binding=TransportProtocol.JSONRPC, protocol_version="1.0"),
            AgentInterface(url=f"{url}/", protocol_binding=TransportProtocol.JSONRPC, protocol_version="0.3"),
            AgentInterface(url=f"{url}{REST}", protocol_binding=TransportProtocol.HTTP_JSON, protocol_version="1.0"),
            *grpc_interfaces,
        ],
        capabilities=AgentCapabilities(
            streaming=True, push_notifications=True, extensions=_extensions(agent, remembers)
        ),
        default_input_modes=agent.input_modes or ([ANY_MEDIA_TYPE] if agent.executor else [TEXT, JSON]),
        default_output_modes=[TEXT],
        skills=[_skill(skill) for skill in agent.skills] or [_only_skill(name, agent)],
        provider=AgentProvider(organization=provider.organization, url=provider.url) if provider else None,
    )


def card_route(name: str, config: Config, *, at: str) -> Route:
    """The route of an agent's card. `at` is the path of the agent's base: "" or "/agents/x"."""
    agent, server, remembers = config.agents[name], config.server, bool(config.memories_of(name))
    since = formatdate(usegmt=True)  # a card changes when the server restarts with another config

    @lru_cache(maxsize=32)
    def answer(base: str) -> tuple[bytes, dict[str, str]]:
        grpc = f"{urlsplit(base).hostname}:{server.grpc_port}" if server.grpc_port and not at else None
        body = JSONResponse(agent_card_to_dict(agent_card(name, agent, f"{base}{at}", grpc, remembers=remembers))).body
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "Last-Modified": since}
        return bytes(body), headers | {"Cache-Control": CACHE_CONTROL, "Vary": "Host"}

    async def card(request: Request) -> Response:
        body, headers = answer(server.public_url or base_url(request))
        if _is_current(request, headers["ETag"], since):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return Route(AGENT_CARD_WELL_KNOWN_PATH, card, methods=["GET"])


def _is_current(request: Request, tag: str, since: str) -> bool:
    """Whether the caller's copy is current. The tag decides if both conditions are present (RFC 9110, 13.2.2)."""
    wanted = request.headers.get("if-none-match")
    if wanted is not None:
        return tag in wanted or wanted.strip() == "*"
    return request.headers.get("if-modified-since") == since


def base_url(request: Request) -> str:
    """The server's address as this request reached it, without a slash at the end."""
    return str(request.base_url).rstrip("/")


def _extensions(agent: AgentConfig, remembers: bool) -> list[AgentExtension]:
    """The agent's extensions; those of the config override the built-in ones of the same URI."""
    known = {one.uri: one for one in ((_MEMORY, _GENERATION) if remembers else (_GENERATION,))}
    for one in agent.extensions:
        description = one.description or (known[one.uri].description if one.uri in known else "")
        known[one.uri] = AgentExtension(uri=one.uri, required=one.required, description=description)
    return list(known.values())


def _skill(skill: SkillConfig) -> AgentSkill:
    return AgentSkill(
        id=skill.id,
        name=skill.name,
        description=skill.description,
        tags=skill.tags or (skill.id,),
        examples=skill.examples,
    )


def _only_skill(name: str, agent: AgentConfig) -> AgentSkill:
    """The skill of an agent without configured ones: a card must list at least one."""
    return AgentSkill(id=name, name=name, description=agent.description or f"The agent {name}.", tags=["chat"])
