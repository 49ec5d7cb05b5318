"""What the KV index promises, example by example."""

from __future__ import annotations

import subprocess
import sys

import pytest

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.kv.prefix import Prefix

from .test_index_stateful import make_limits


def index(*, pages=16, windows=(None, None), sizes=(4, 4)):
    return KvIndex(make_limits(pages, windows, sizes))


def serve(kv, name, tokens, *, chain=0, isolation="a"):
    """Compute a prompt in one go and let it end; the tokens that were found."""
    tokens = list(tokens)
    reused = kv.acquire(name, chain=chain, prefix=Prefix(isolation, tokens))
    assert kv.reserve(name, len(tokens))
    kv.commit(name, len(tokens))
    kv.release(name)
    kv.check_integrity()
    return reused


def test_reuse_is_by_content_and_never_across_isolation_groups():
    kv = index()
    prompt = range(12)
    assert serve(kv, "first", prompt) == 0
    assert serve(kv, "again", prompt) == 8, "the last token is left to compute, so its page is too"
    assert serve(kv, "longer", range(13)) == 12
    assert serve(kv, "equal domains", prompt, chain=1) == 8
    assert serve(kv, "other upper domain", prompt, chain=2) == 0
    assert serve(kv, "upper group only", prompt, chain=3) == 8
    assert serve(kv, "another tenant", prompt, isolation="b") == 0
    assert serve(kv, "other first token", [99, *range(1, 12)]) == 0


def test_running_requests_share_what_is_committed():
    kv = index()
    kv.acquire("one", chain=0, prefix=Prefix("a", list(range(10))))
    assert kv.acquire("two", chain=0, prefix=Prefix("a", list(range(10)))) == 0, "nothing is committed yet"
    kv.commit("one", 9)
    assert kv.acquire("three", chain=0, prefix=Prefix("a", list(range(10)))) == 8
    shared = [table[:2] for table in kv.tables("one", 8)]
    assert [table[:2] for table in kv.tables("three", 8)] == shared
    kv.release("one")
    kv.check_integrity()
    assert all(usage.idle == 0 for usage in kv.usage()), "another request holds them still"


def test_a_window_needs_its_own_pages_only_and_gives_back_the_rest():
    kv = index(windows=(None, 6), pages=32)
    tokens = list(range(40))
    kv.acquire("one", chain=0, prefix=Prefix("a", tokens))
    for stop in range(8, 41, 8):
        assert kv.reserve("one", stop)
        kv.commit("one", stop)
    full, windowed = kv.tables("one", 40)
    assert None not in full
    assert windowed[:8] == (None,) * 8
    assert None not in windowed[8:]
    kv.release("one")
    assert serve(kv, "two", range(41)) == 40


def test_least_recently_used_pages_go_first_and_tails_before_heads():
    kv = index(pages=4)
    serve(kv, "old", [1] * 8)
    serve(kv, "new", [2] * 8)
    serve(kv, "taker", [3] * 4)  # evicts one page: the tail of the old prompt
    assert serve(kv, "new again", [2] * 9) == 8
    kv = index(pages=4)
    serve(kv, "old", [1] * 8)
    serve(kv, "new", [2] * 8)
    serve(kv, "taker", [3] * 4)
    assert serve(kv, "head of the old one", [1] * 9) == 4


def test_what_is_refused_changes_nothing():
    kv = index(pages=4)
    kv.acquire("one", chain=0, prefix=Prefix("a", [1] * 12))
    before = kv.usage()
    assert kv.acquire("two", chain=0, prefix=Prefix("a", [2] * 12)) is None
    assert not kv.reserve("one", 17)
    assert kv.usage() == before
    assert kv.lacking("one", 17) == {0, 1}
    assert kv.room("one") == 16
    kv.check_integrity()


def test_shortage_says_what_can_never_fit():
    kv = index(pages=4, windows=(None, 4))
    assert kv.shortage(0, 16) is None
    assert "5 KV pages of 4 tokens, there are 4" in (kv.shortage(0, 17) or "")
    assert kv.shortage(3, 1000) is None, "a window holds few pages, however long the text"


def test_misuse_is_refused():
    kv = index()
    kv.acquire("one", chain=0, prefix=Prefix("a", [1] * 6))
    with pytest.raises(ValueError, match="already"):
        kv.acquire("one", chain=0, prefix=Prefix("a", [1]))
    kv.commit("one", 5)
    for tokens in (4, 7):
        with pytest.raises(ValueError, match="cannot commit"):
            kv.commit("one", tokens)
    with pytest.raises(ValueError, match="cannot go back"):
        kv.truncate("one", 4)


def test_digests_depend_on_every_token_and_on_the_isolation_group():
    def last(isolation, tokens, size=4):
        return Prefix(isolation, tokens).digests(size, len(tokens) // size)[-1]

    tokens = list(range(16))
    own = last("a", tokens)
    others = [last("b", tokens), last("a", tokens, 8), last("a", tokens[4:])]
    others += [last("a", [*tokens[:i], 99, *tokens[i + 1 :]]) for i in range(16)]
    assert own not in others
    assert len({own, *others}) == 20
    with pytest.raises(ValueError, match="not full"):
        Prefix("a", tokens).digests(4, 5)


def test_no_torch():
    code = "import sys, blockc_runtime.kv.index; sys.exit(str({'torch', 'numpy'} & set(sys.modules) or '') or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
