"""Scopes: the key under which a turn's memories live."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_memory import InvocationContext, Scope
from retinue_memory.errors import IdentityError

ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=8)
scopes = st.builds(Scope, tenant=ids, space=ids, owner=st.sampled_from(["user", "session"]), id=ids)


@given(scopes, scopes)
def test_law_different_scopes_have_different_keys(one: Scope, other: Scope) -> None:
    """Whatever the ids hold, slashes and percent signs included."""
    assert (one.key == other.key) == (one == other)


@pytest.mark.parametrize("bad", ["a\nb", "\0", "tab\t", "\x7f", "\x85", "half \ud800", 42])
def test_ids_with_control_characters_are_refused(bad: Any) -> None:
    """In any part of a scope."""
    for ctx, space in (
        (InvocationContext("s", bad), "default"),
        (InvocationContext(bad), "default"),
        (InvocationContext("s", "u", tenant=bad), "default"),
        (InvocationContext("s", "u"), bad),
    ):
        with pytest.raises(IdentityError):
            Scope.of(ctx, space)


def test_the_user_comes_before_the_session() -> None:
    """No user: the session's; a user: theirs, whatever the session."""
    assert Scope.of(InvocationContext("s")) == Scope("", "default", "session", "s")
    assert Scope.of(InvocationContext("s", "u", tenant="t"), "x") == Scope("t", "x", "user", "u")


def test_importing_the_package_is_light() -> None:
    """Neither numpy nor a runtime, a stemmer or another layer is loaded before a memory is opened."""
    program = (
        "import sys, retinue_memory, retinue_memory.testing; "
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'snowballstemmer', 'litellm', 'mem0', 'a2a', 'pytest'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
