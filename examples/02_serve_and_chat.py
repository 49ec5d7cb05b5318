"""Serve a plan and talk to it with the `openai` client, several fine-tunes at once, streaming.

python examples/02_serve_and_chat.py
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import AsyncOpenAI

from blockc.samples import root

BLOCKC = [sys.executable, "-m", "blockc"]


@contextmanager
def server(plan: Path) -> Iterator[str]:
    process = subprocess.Popen([*BLOCKC, "serve", str(plan), "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=30)


async def ask(client: AsyncOpenAI, app: str, question: str) -> str:
    stream = await client.chat.completions.create(
        model=app, messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    return "".join(parts)


async def talk(url: str) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="not needed without --keys")
    apps = [model.id async for model in client.models.list()]
    answers = await asyncio.gather(*(ask(client, app, "What sound does a cow make?") for app in apps))
    for app, answer in zip(apps, answers, strict=True):
        print(f"{app:<16} {' / '.join(answer.split(chr(10)))}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        subprocess.run([*BLOCKC, "compile", str(root() / "fleet.blk"), "-o", str(plan)], check=True)
        with server(plan) as url:
            asyncio.run(talk(url))


if __name__ == "__main__":
    main()
