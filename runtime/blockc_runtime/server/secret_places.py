"""Where the values of secrets are, of which plans know the names.

In: the name of a secret. Out: its text. Invariant: what is said of a secret that is not there, or is in two places, is
its name and where it was looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_MOST_BYTES = 1 << 16


class SecretError(Exception):
    """What is wrong with a secret, as the end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretPlaces:
    """A secret is in the one of these places where it is.

    ``folder``: a file of its name, as Docker and Kubernetes mount them; ``environment``: the variable ``NAME``, or a
    file that the variable ``NAME_FILE`` names.
    """

    folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def files(self, name: str) -> tuple[Path, ...]:
        """Files that it may be in, whether they are there or not."""
        stated = self.environment.get(f"{name}_FILE")
        named = () if stated is None else (Path(stated),)
        return named if self.folder is None else (self.folder / name, *named)

    def read(self, name: str) -> str:
        """Return a secret. Raises `SecretError`."""
        stated = self.environment.get(f"{name}_FILE")
        inside = None if self.folder is None else self.folder / name
        found: dict[str, Path | None] = {}
        if name in self.environment:
            found[f"the variable {name}"] = None
        if stated is not None:
            found[f"the file that {name}_FILE names"] = Path(stated)
        if inside is not None and inside.is_file():
            found["the folder of --secrets"] = inside
        if len(found) != 1:
            raise SecretError("is in " + " and in ".join(found) if found else "is not set")
        ((place, path),) = found.items()
        return self.environment[name] if path is None else _read(path, place)


def _read(path: Path, place: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) <= _MOST_BYTES:
            return data.decode()
    except OSError as error:
        raise SecretError(f"cannot be read: {place}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SecretError(f"is no text, in {place}") from None
    raise SecretError(f"is longer than any key, in {place}")
