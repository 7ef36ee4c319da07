"""One timer for many."""

from __future__ import annotations

import asyncio

from retinue_server.runtime.timer import CoalescingTimer


async def test_everyone_is_called_once_in_order_and_not_too_early() -> None:
    """Who asks twice is called once; who asked later, later."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    called: list[tuple[str, float]] = []
    reminder = CoalescingTimer(0.05)

    def first() -> None:
        called.append(("first", loop.time()))

    def second() -> None:
        called.append(("second", loop.time()))
        done.set()

    began = loop.time()
    reminder.ask(first)
    reminder.ask(first)
    loop.call_later(0.02, reminder.ask, second)
    async with asyncio.timeout(5):
        await done.wait()
    assert [name for name, _ in called] == ["first", "second"]
    assert called[0][1] - began >= 0.045
    assert called[1][1] - began >= 0.06


async def test_who_is_forgotten_is_not_called() -> None:
    """And whoever asks while the timer runs for nobody is called in time."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    called: list[str] = []
    reminder = CoalescingTimer(0.02)

    def forgotten() -> None:
        called.append("forgotten")

    def forget_and_ask() -> None:
        reminder.forget(forgotten)
        reminder.ask(done.set)

    reminder.ask(forgotten)
    loop.call_later(0.01, forget_and_ask)
    async with asyncio.timeout(5):
        await done.wait()
    assert called == []


async def test_who_is_called_may_ask_again() -> None:
    """As a log does that finds the one before still being written."""
    done = asyncio.Event()
    calls: list[int] = []
    reminder = CoalescingTimer(0.01)

    def again() -> None:
        calls.append(1)
        if len(calls) == 3:
            done.set()
        else:
            reminder.ask(again)

    reminder.ask(again)
    async with asyncio.timeout(5):
        await done.wait()
    assert len(calls) == 3
