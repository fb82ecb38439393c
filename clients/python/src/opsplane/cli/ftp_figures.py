"""How transfers are written, and where those that are followed stand."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from rich.text import Text

from opsplane.cli.durations import format_duration
from opsplane.cli.output import clean, short
from opsplane.ftptransfer.v1 import errors_pb2, ftptransfer_pb2, transfers_pb2

ENDED = frozenset(
    (
        transfers_pb2.TRANSFER_STATE_SUCCEEDED,
        transfers_pb2.TRANSFER_STATE_FAILED,
        transfers_pb2.TRANSFER_STATE_CANCELLED,
    )
)
STATE_STYLES = {
    transfers_pb2.TRANSFER_STATE_RUNNING: "cyan",
    transfers_pb2.TRANSFER_STATE_WAITING: "yellow",
    transfers_pb2.TRANSFER_STATE_SUCCEEDED: "green",
    transfers_pb2.TRANSFER_STATE_FAILED: "bold red",
    transfers_pb2.TRANSFER_STATE_CANCELLED: "magenta",
}
_MANY = (transfers_pb2.SELECTION_GLOB, transfers_pb2.SELECTION_TREE)
_UNDER_WAY = (transfers_pb2.TRANSFER_STATE_RUNNING, transfers_pb2.TRANSFER_STATE_WAITING)


def size_text(count: float) -> str:
    """Bytes in powers of 1000, with three digits that count: `512 B`, `12.3 kB`, `1.25 GB`."""
    if count < 1000:
        return f"{count:.0f} B"
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    count, unit = count / 1000, next(units)
    while count >= 999.5 and (larger := next(units, "")):
        count, unit = count / 1000, larger
    return f"{count:.2f} {unit}" if count < 9.995 else f"{count:.1f} {unit}" if count < 99.95 else f"{count:.0f} {unit}"


def state_name(transfer: transfers_pb2.Transfer) -> str:
    """PENDING, RUNNING, ...; SKIPPED for one that had nothing to send."""
    if transfer.skipped:
        return "SKIPPED"
    return transfers_pb2.TransferState.Name(transfer.state).removeprefix("TRANSFER_STATE_")


def state_text(transfer: transfers_pb2.Transfer) -> Text:
    """The name of the state in its colour."""
    return Text(state_name(transfer), style=STATE_STYLES.get(transfer.state, ""))


def error_text(error: errors_pb2.TransferError) -> str:
    """`FILE_NOT_FOUND: no such file (550)`; empty without a failure."""
    if not error.code:
        return ""
    code = errors_pb2.ErrorCode.Name(error.code).removeprefix("ERROR_CODE_")
    reply = f" ({error.ftp_code})" if error.ftp_code and str(error.ftp_code) not in error.message else ""
    return clean(f"{code}: {error.message}{reply}").replace("\n", " ")


def place_text(location: transfers_pb2.Location) -> str:
    """`nas:/in/a.csv`."""
    return clean(f"{short(location.connection)}:{location.path}")


def way_text(transfer: transfers_pb2.Transfer, names: Mapping[str, str] | None = None) -> str:
    """`nas:/in/a.csv -> here:/a.csv`; `names` are those to show instead of some places."""
    source, destination = place_text(transfer.source), place_text(transfer.destination)
    if transfer.destination.path.endswith("/") and transfer.selection not in _MANY:
        destination += clean(posixpath.basename(transfer.source.path))
    names = names or {}
    return f"{names.get(source, source)} -> {names.get(destination, destination)}"


def line_text(transfer: transfers_pb2.Transfer, names: Mapping[str, str] | None = None) -> Text:
    """A transfer as one line: its state, from where to where, its size, its children, and why it failed."""
    line = Text.assemble((f"{state_name(transfer):9}", STATE_STYLES.get(transfer.state, "")), " ")
    line.append(way_text(transfer, names))
    if transfer.HasField("children"):
        line.append(f"  {counts_text(transfer.children)}", style="dim")
    elif transfer.HasField("size_bytes"):
        line.append(f"  {size_text(transfer.size_bytes)}", style="dim")
    if transfer.error.code and transfer.state != transfers_pb2.TRANSFER_STATE_SUCCEEDED:
        line.append(f"  {error_text(transfer.error)}", style="red")
    return line


def counts_text(counts: transfers_pb2.TransferCounts) -> str:
    """`12 of 40 files, 3.20 MB of 9.10 MB, 2 skipped, 1 failed`, and the rate where something is under way."""
    done, total = ended_count(counts), total_count(counts)
    files = f"{total:,} file{'' if total == 1 else 's'}"
    parts = [files if done == total else f"{done:,} of {files}"]
    sent, size = size_text(counts.bytes_transferred), size_text(counts.size_bytes)
    parts.append(f"{sent} of {size}" if counts.bytes_transferred < counts.size_bytes else sent)
    if counts.bytes_per_second:
        parts.append(f"{size_text(counts.bytes_per_second)}/s")
    for name in ("waiting", "skipped", "failed", "cancelled"):
        number = getattr(counts, name)
        if number:
            parts.append(f"{number:,} {name}")
    return ", ".join(parts)


def ended_count(counts: transfers_pb2.TransferCounts) -> int:
    """Transfers that have ended."""
    return counts.succeeded + counts.failed + counts.cancelled


def total_count(counts: transfers_pb2.TransferCounts) -> int:
    """All transfers."""
    return ended_count(counts) + counts.pending + counts.running + counts.waiting


def remaining(counts: transfers_pb2.TransferCounts) -> str:
    """How long the rest will take at the present rate; empty when that is not known."""
    left = counts.size_bytes - counts.bytes_transferred
    if left <= 0 or counts.bytes_per_second <= 0:
        return ""
    return f"{format_duration(timedelta(seconds=left // counts.bytes_per_second + 1))} left"


class Progress:
    """Where transfers stand, from what WatchTransfers has sent so far.

    With `names`, the transfers of these names are counted here, a tree by its files; else the server's counts count.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self.roots: dict[str, transfers_pb2.Transfer] = {}
        self.under_way: dict[str, transfers_pb2.Transfer] = {}
        """The files that are being transferred, or wait for their next attempt."""
        self._names = frozenset(names)
        self._counts = transfers_pb2.TransferCounts()

    def add(self, response: ftptransfer_pb2.WatchTransfersResponse) -> list[transfers_pb2.Transfer]:
        """Takes in what is new; returns the transfers whose state is another than was told before, or not known."""
        if response.HasField("counts") and not self._names:
            self._counts = response.counts
        changed = []
        for transfer in response.transfers:
            known = self.roots.get(transfer.name) or self.under_way.get(transfer.name)
            if known is None or known.state != transfer.state:
                changed.append(transfer)
            if transfer.name in self._names:
                self.roots[transfer.name] = transfer
                if transfer.state in ENDED and transfer.HasField("children"):
                    # Its files are not followed any longer than it.
                    self.under_way = {k: v for k, v in self.under_way.items() if v.parent != transfer.name}
            if transfer.state in _UNDER_WAY and not transfer.HasField("children"):
                self.under_way[transfer.name] = transfer
            else:
                self.under_way.pop(transfer.name, None)
        return changed

    @property
    def counts(self) -> transfers_pb2.TransferCounts:
        """Counts of the files."""
        return count(self.roots.values()) if self._names else self._counts


def count(transfers: Iterable[transfers_pb2.Transfer]) -> transfers_pb2.TransferCounts:
    """Counts of these transfers: of a tree those made of it, and itself where it failed or ended on its own account."""
    total = transfers_pb2.TransferCounts()
    for transfer in transfers:
        if transfer.HasField("children"):
            for field in total.DESCRIPTOR.fields:
                setattr(total, field.name, getattr(total, field.name) + getattr(transfer.children, field.name))
            made = total_count(transfer.children)
            blamed = transfer.error.reason != errors_pb2.ERROR_REASON_CHILDREN_FAILED
            if transfer.state == transfers_pb2.TRANSFER_STATE_FAILED and blamed:
                total.failed += 1
            elif transfer.state == transfers_pb2.TRANSFER_STATE_CANCELLED and not transfer.children.cancelled:
                total.cancelled += 1
            elif transfer.state not in ENDED and not made:
                total.pending += 1
        else:
            _count_file(total, transfer)
    return total


def _count_file(total: transfers_pb2.TransferCounts, transfer: transfers_pb2.Transfer) -> None:
    field = transfers_pb2.TransferState.Name(transfer.state).removeprefix("TRANSFER_STATE_").lower()
    setattr(total, field, getattr(total, field) + 1)
    total.skipped += transfer.skipped
    total.size_bytes += transfer.size_bytes
    total.bytes_transferred += transfer.bytes_transferred
    total.bytes_per_second += transfer.bytes_per_second
