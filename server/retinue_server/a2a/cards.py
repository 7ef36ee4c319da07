"""Agent cards: what an agent is, and where it is reached."""

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

REST = "/rest"
"""Where the HTTP+JSON binding lives, below an agent's base."""
CACHE_CONTROL = "public, max-age=60"
"""Cards change with the configuration, which people edit: a minute, then a revalidation that costs a 304."""
_MEMORY = AgentExtension(
    uri=MEMORY_EXTENSION,
    description=(
        'Remembers its users. A request may carry metadata.memory = {mode: "on" | "read-only" | "off", top_k: 1..100}; '
        "a finished task's metadata.memory tells what was retrieved and what became of the update."
    ),
)
_GENERATION = AgentExtension(
    uri=GENERATION_EXTENSION,
    description=(
        "Numbers the changes of a task. If a request activates it, metadata.generation of each task and streamed event is the "
        "task's generation: it starts at 1, and every state change and artifact update raises it by one."
    ),
)
TEXT, JSON, ANY = "text/plain", "application/json", "*/*"


def agent_card(
    name: str, agent: AgentConfig, url: str, grpc: str | None = None, *, remembers: bool = False
) -> AgentCard:
    """The card of an agent whose base address is `url`, which has no slash at its end, and `grpc` "host:port"."""
    provider = agent.provider
    more = [AgentInterface(url=grpc, protocol_binding=TransportProtocol.GRPC, protocol_version="1.0")] if grpc else []
    return AgentCard(
        name=name,
        description=agent.description or f"The agent {name}.",
        version=agent.version,
        supported_interfaces=[
            AgentInterface(url=f"{url}/", protocol_binding=TransportProtocol.JSONRPC, protocol_version="1.0"),
            AgentInterface(url=f"{url}/", protocol_binding=TransportProtocol.JSONRPC, protocol_version="0.3"),
            AgentInterface(url=f"{url}{REST}", protocol_binding=TransportProtocol.HTTP_JSON, protocol_version="1.0"),
            *more,
        ],
        capabilities=AgentCapabilities(
            streaming=True, push_notifications=True, extensions=_extensions(agent, remembers)
        ),
        default_input_modes=agent.input_modes or ([ANY] if agent.executor else [TEXT, JSON]),
        default_output_modes=[TEXT],
        skills=[_skill(skill) for skill in agent.skills] or [_only_skill(name, agent)],
        provider=AgentProvider(organization=provider.organization, url=provider.url) if provider else None,
    )


def card_route(name: str, config: Config, *, at: str) -> Route:
    """Serves the card of the agent whose base is the path `at` ("" or "/agents/x"), below the address callers use."""

    agent, server, remembers = config.agents[name], config.server, bool(config.memories_of(name))
    since = formatdate(usegmt=True)  # a card changes when its server starts with another configuration

    @lru_cache(maxsize=32)
    def answer(base: str) -> tuple[bytes, dict[str, str]]:
        grpc = f"{urlsplit(base).hostname}:{server.grpc_port}" if server.grpc_port and not at else None
        body = JSONResponse(agent_card_to_dict(agent_card(name, agent, f"{base}{at}", grpc, remembers=remembers))).body
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"', "Last-Modified": since}
        return bytes(body), headers | {"Cache-Control": CACHE_CONTROL, "Vary": "Host"}

    async def card(request: Request) -> Response:
        body, headers = answer(server.public_url or base_url(request))
        if _has_it(request, headers["ETag"], since):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    return Route(AGENT_CARD_WELL_KNOWN_PATH, card, methods=["GET"])


def _has_it(request: Request, tag: str, since: str) -> bool:
    """Whether the caller has the card already; where both conditions are there, the tag decides (RFC 9110, 13.2.2)."""
    wanted = request.headers.get("if-none-match")
    if wanted is not None:
        return tag in wanted or wanted.strip() == "*"
    return request.headers.get("if-modified-since") == since


def base_url(request: Request) -> str:
    """The server's address as this request reached it, without a slash at its end."""
    return str(request.base_url).rstrip("/")


def _extensions(agent: AgentConfig, remembers: bool) -> list[AgentExtension]:
    """By their URIs; what the configuration says of one goes before what is known of it."""
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
    """A card must list a skill: where none is configured, what the agent does is the one."""
    return AgentSkill(id=name, name=name, description=agent.description or f"The agent {name}.", tags=["chat"])
