"""Loops and calls in threads of their own."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest

from retinue_memory.background import DaemonThreads, LoopClosed, LoopThread, blocking, call_in_thread, wait_for


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def test_a_call_runs_on_the_loop_of_the_thread() -> None:
    """From another loop, from its own, and from a thread without one; all on one loop."""
    thread = LoopThread("a-loop")

    async def where() -> tuple[str, asyncio.AbstractEventLoop]:
        return threading.current_thread().name, asyncio.get_running_loop()

    async def nested() -> tuple[str, asyncio.AbstractEventLoop]:
        return await thread.call(where)

    found = [await thread.call(where), await thread.call(nested), await asyncio.to_thread(thread.wait, where)]
    assert {name for name, _ in found} == {"a-loop"}
    assert len({loop for _, loop in found}) == 1
    await asyncio.to_thread(thread.close)


async def test_a_closed_loop_takes_no_calls() -> None:
    """What is still running there is cancelled, after the last call; closing again does nothing."""
    thread = LoopThread("a-loop")
    started, ends = threading.Event(), list[str]()

    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    async def last() -> None:
        ends.append("last")

    future = thread.start_soon(hang)
    assert await asyncio.to_thread(started.wait, 20)
    await asyncio.to_thread(thread.close, last)
    await asyncio.to_thread(thread.close, last)
    assert ends == ["last", "cancelled"]
    assert future.cancelled()
    with pytest.raises(LoopClosed, match="a-loop is closed"):
        await thread.call(last)
    with pytest.raises(LoopClosed, match="a-loop is closed"):
        thread.wait(last)


async def test_a_call_that_is_cancelled_before_it_started_is_not_started() -> None:
    """The loop is blocked when it comes; the caller goes on at once, and so does its loop."""
    thread = LoopThread("a-loop")
    blocked, may, calls = threading.Event(), threading.Event(), list[str]()

    async def block() -> None:
        blocked.set()
        assert may.wait(20)

    async def call() -> None:
        calls.append("called")

    blocking_it = asyncio.create_task(thread.call(block))
    assert await asyncio.to_thread(blocked.wait, 20)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await thread.call(call)
    may.set()
    await blocking_it
    assert await thread.call(lambda: answer(1)) == 1
    assert calls == []
    await asyncio.to_thread(thread.close)


async def test_a_call_is_cancelled_once_and_its_cleanup_is_not() -> None:
    """As asyncio's tasks are, and not at every await."""
    thread = LoopThread("a-loop")
    started, cleaned = threading.Event(), threading.Event()

    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            cleaned.set()

    task = asyncio.create_task(thread.call(hang))
    assert await asyncio.to_thread(started.wait, 20)
    task.cancel()
    assert await asyncio.to_thread(cleaned.wait, 20)
    await asyncio.to_thread(thread.close)


class Held:
    pass


async def test_what_a_failed_call_held_is_let_go_with_its_error() -> None:
    """A file that it locked, say: without waiting for the garbage collector."""
    thread = LoopThread("a-loop")
    held: list[weakref.ref[Held]] = []

    async def fail() -> None:
        value = Held()
        held.append(weakref.ref(value))
        raise ValueError("no")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no") as caught:
            await thread.call(fail)
        del caught
        assert await thread.call(lambda: answer(1)) == 1
        assert held[0]() is None
    finally:
        gc.enable()
    await asyncio.to_thread(thread.close)


async def test_a_call_in_a_thread_cannot_be_cancelled() -> None:
    """Who gives up leaves it running, and may wait for it again."""
    may = threading.Event()
    future = call_in_thread(lambda: may.wait(20), name="waiting")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.wrap_future(future)
    assert not future.done()
    may.set()
    assert await asyncio.wrap_future(future)


async def test_an_executor_of_daemon_threads_runs_every_call_at_once() -> None:
    """A hundred calls that wait for each other all run."""
    together = threading.Barrier(100)
    executor = DaemonThreads()
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(executor, together.wait, 20) for _ in range(100)))


def test_code_without_a_loop_waits_for_coroutines() -> None:
    """With arguments; what they raise is raised."""
    assert wait_for(answer, 3) == 3
    assert blocking(answer)(value=4) == 4

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        wait_for(fail)


@pytest.mark.parametrize(
    "hang",
    [
        "call_in_thread(hang, name='hanging')",
        "DaemonThreads().submit(hang)",
        "LoopThread('hanging').start_soon(block)",
        "LoopThread('waiting').start_soon(wait)",
        "threading.Thread(target=wait_for, args=[wait], daemon=True).start()",
    ],
)
def test_what_hangs_does_not_keep_the_process_alive(hang: str) -> None:
    """Neither a thread, nor a loop that is blocked, nor one that nobody closed; and nothing is printed."""
    program = f"""
        import asyncio, threading
        from retinue_memory.background import DaemonThreads, LoopThread, call_in_thread, wait_for

        started = threading.Event()

        def hang():
            started.set()
            threading.Event().wait()

        async def block():
            hang()

        async def wait():
            started.set()
            await asyncio.Event().wait()

        kept = {hang}
        assert started.wait(20)
        """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
