"""A target's config, checked again on the host that shall act on it."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from agent.errors import AgentFault
from schemas.command import Target
from schemas.faults import FaultCode
from schemas.kinds import KindSpec
from schemas.validation import validate_config

T = TypeVar("T", bound=msgspec.Struct)


def decode_config(spec: KindSpec, struct: type[T], target: Target) -> T:
    """The config as its struct. Raises AgentFault kind_unsupported: the manager let through what this agent does not know.

    The manager has validated it with the same struct, so a refusal here means that the two are of different versions; it is
    checked all the same, because from here on its words go into command lines.
    """
    values, errors = validate_config(spec, target.config)
    if errors:
        first = errors[0]
        raise AgentFault.of(
            FaultCode.KIND_UNSUPPORTED, f"this agent does not accept the configuration: {first.pointer} {first.detail}"
        )
    return msgspec.convert(values, struct)


def held_config(struct: type[T], target: Target) -> T:
    """The config of what is on this host already, not judged again: a newer agent that is stricter must still be able to
    let go of it. Raises AgentFault failed: it is not a config of the kind at all.
    """
    names = {field.encode_name for field in msgspec.structs.fields(struct)}
    try:
        return struct(**{name: value for name, value in target.config.items() if name in names})
    except TypeError as error:
        raise AgentFault.of(FaultCode.FAILED, "what this host holds of the backend has an incomplete config") from error


def decode_partial(spec: KindSpec, config: Mapping[str, Any], needed: str) -> str:
    """The one text field that discovery needs, checked as in a whole config. Raises AgentFault option_rejected."""
    values, errors = validate_config(spec, config, is_partial=True)
    if errors:
        raise AgentFault.of(FaultCode.OPTION_REJECTED, f"{errors[0].pointer} {errors[0].detail}", "Correct the field")
    if needed not in values:
        raise AgentFault.of(FaultCode.OPTION_REJECTED, f"/config/{needed} is required", "Fill in the field")
    return str(values[needed])


def refuse_verb(spec: KindSpec, verb: str) -> AgentFault:
    """The fault of a verb that a kind cannot have, for example initialize of a folder."""
    return AgentFault.of(
        FaultCode.KIND_UNSUPPORTED, f"{spec.title} backends have no {verb}", "Choose a kind that offers it"
    )
