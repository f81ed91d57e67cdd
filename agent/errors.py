"""The agent's errors.

AgentFault          the work failed; carries the fault that the manager shows
ConfigError         before anything connects; names file, key and remedy
"""

from schemas.faults import Fault, FaultCode, fault

#: What a probe meets at a mount that has lost its server, whatever the reason is: the kernel says "host is down" of a server
#: that refuses the password on reconnection, too. Who attaches anew finds the reason.
SYMPTOMS = frozenset((FaultCode.SERVER_UNREACHABLE, FaultCode.SHARE_NOT_FOUND, FaultCode.PERMISSION_DENIED))


class AgentFault(Exception):
    """The work failed for a reason with a code; the text is for the operator, the cause is in the log."""

    def __init__(self, what: Fault, *, is_retryable: bool = False) -> None:
        super().__init__(what.detail)
        self.fault = what
        self.is_retryable = is_retryable

    @classmethod
    def of(cls, code: FaultCode, detail: str, remedy: str | None = None, *, is_retryable: bool = False) -> "AgentFault":
        """The fault of a code with its standing remedy unless a better one is given."""
        return cls(fault(code, detail, remedy), is_retryable=is_retryable)


class ConfigError(Exception):
    """The configuration cannot be used."""
