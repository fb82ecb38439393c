"""Resource names of FtpTransfer, taken apart and put together.

The servicer has validated names against the patterns of the protos before they come here, so a name that does not fit
is a mistake of ours.
"""

from __future__ import annotations

from typing import Final

_CONNECTION: Final = "connections/"
_TRANSFER: Final = "transfers/"


def connection(connection_id: str) -> str:
    """`connections/{connection}`."""
    return _CONNECTION + connection_id


def transfer(transfer_id: str) -> str:
    """`transfers/{transfer}`."""
    return _TRANSFER + transfer_id


def connection_id(name: str) -> str:
    """The id of a connection's name."""
    return name.removeprefix(_CONNECTION)


def transfer_id(name: str) -> str:
    """The id of a transfer's name."""
    return name.removeprefix(_TRANSFER)
