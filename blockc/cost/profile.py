"""A profile: what was measured of one device with the structures of one plan, as a file.

In: a fit and where it comes from. Out: canonical JSON, and back. A profile names the structures whose steps it was
fitted on: of others it says what the device does, and not how well kernels do with their shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blockc.cost.fit import Fit, Kind
from blockc.cost.rates import DeviceRates
from blockc.diag import refuse
from blockc.ir.canonical import canonical_json
from blockc.ir.strict_json import StrictJsonError, parse_strict_json

_MAX_BYTES = 16 << 20
_Rate = Field(gt=0.0, allow_inf_nan=False)
_Constant = Field(ge=0.0, allow_inf_nan=False)


class ProfileRates(BaseModel):
    """See `blockc.cost.DeviceRates`, of one device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops_per_s: float = _Rate
    bytes_per_s: float = _Rate
    side_flops_per_s: float = _Rate
    side_bytes_per_s: float = _Rate
    attention_flops_per_s: float = _Rate
    attention_bytes_per_s: float = _Rate
    block_s: float = _Constant
    row_s: float = _Constant
    step_s: float = _Constant
    overlaps_reads: bool


class ProfileKind(BaseModel):
    """See `blockc.cost.fit.KindError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    bias: float
    error_p50: float


class Profile(BaseModel):
    """``device``: a kind of the catalogue. ``structures``: digests. Errors are relative, of prices to measurements.

    ``kinds``: of steps in which all rows decode, all read prompts, or some do each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = 2
    device: str
    machine: dict[str, str]
    structures: tuple[str, ...]
    samples: int
    error_p50: float
    error_p95: float
    kinds: dict[Kind, ProfileKind] = {}
    rates: ProfileRates

    @property
    def device_rates(self) -> DeviceRates:
        """As the price of a step takes them."""
        own = self.rates
        return DeviceRates(
            flops_per_s=own.flops_per_s,
            bytes_per_s=own.bytes_per_s,
            sides=(own.side_flops_per_s, own.side_bytes_per_s),
            attention=(own.attention_flops_per_s, own.attention_bytes_per_s),
            block_s=own.block_s,
            row_s=own.row_s,
            step_s=own.step_s,
            overlaps_reads=own.overlaps_reads,
        )


def profile_of(fit: Fit, *, device: str, machine: dict[str, str], structures: tuple[str, ...]) -> Profile:
    """Put a fit with its origin."""
    side_flops, side_bytes = fit.rates.side_rates
    attention_flops, attention_bytes = fit.rates.attention_rates
    return Profile(
        device=device,
        machine=machine,
        structures=tuple(sorted(structures)),
        samples=fit.samples,
        error_p50=fit.error_p50,
        error_p95=fit.error_p95,
        kinds={
            kind: ProfileKind(samples=own.samples, bias=own.bias, error_p50=own.error_p50)
            for kind, own in fit.kinds.items()
        },
        rates=ProfileRates(
            flops_per_s=fit.rates.flops_per_s,
            bytes_per_s=fit.rates.bytes_per_s,
            side_flops_per_s=side_flops,
            side_bytes_per_s=side_bytes,
            attention_flops_per_s=attention_flops,
            attention_bytes_per_s=attention_bytes,
            block_s=fit.rates.block_s,
            row_s=fit.rates.row_s,
            step_s=fit.rates.step_s,
            overlaps_reads=fit.rates.overlaps_reads,
        ),
    )


def write_profile(profile: Profile, path: Path) -> None:
    """Write it. Raises `DiagnosticError` (BC003)."""
    try:
        path.write_text(canonical_json(profile.model_dump(mode="json")) + "\n", encoding="utf-8")
    except OSError as error:
        refuse("BC003", f"cannot write {path}: {error.strerror}", "name another file with `-o`")


def read_profile(path: Path) -> Profile:
    """Read one. Raises `DiagnosticError` (BC003, BC505)."""
    problem = None
    data = b""
    try:
        if path.stat().st_size > _MAX_BYTES:
            problem = "it is larger than any profile"
        else:
            data = path.read_bytes()
    except OSError as error:
        refuse("BC003", f"cannot read {path}: {error.strerror}", "`blockc profile PLAN -o FILE` writes one")
    if problem is None:
        try:
            return Profile.model_validate(parse_strict_json(data))
        except StrictJsonError as error:
            problem = str(error)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problem = f"{'.'.join(str(part) for part in first['loc'])[:200]}: {first['msg']}"
    refuse("BC505", f"{path} is no profile: {problem}", "measure again: `blockc profile PLAN -o FILE`")
    raise AssertionError("refused above")
