"""Ships log records of an application to LogIngest, without ever stopping or failing the application.

    shipper = Shipper("127.0.0.1:50051", service="orders", environment="production")
    shipper.log("info", "order placed", user_id="u-1", order={"id": 42})
    shipper.close()

    logging.getLogger().addHandler(OpsplaneHandler(service="orders"))                  # standard logging
    structlog.configure(processors=[..., OpsplaneProcessor(shipper), renderer])        # structlog

`Shipper(address=None, *, service, ...)`: see its docstring for all settings. Its methods are safe to call from any
thread and after a fork, and none of them raises because of the server, the network or the disk:

- `send(record: LogRecord, *, wait: float = 0) -> bool`: ship this record. Empty `timestamp`, `service`, `host`,
  `environment` and `service_version` are filled in. False if it was dropped, because memory (and disk) are full; it is
  counted then. `wait` is how many seconds it may block for room: a program that reads a file gives a large one, an
  application none.
- `log(level, message, *, wait=0, **fields) -> bool`: the same from plain values. `level` is a name ("info", "WARNING")
  or a number of `Level`; `fields` are fields of LogRecord by name, `error=` an exception, all else becomes metadata.
- `flush(timeout: float | None = None) -> bool`: True when all that was taken before is acknowledged or rejected by the
  server; False when `timeout` seconds passed first.
- `close(timeout: float = 5) -> bool`: as `flush`; then what is left is written to the spool folder, for the next start.
  True if nothing is left. Also at the exit of the interpreter. What is sent later is dropped and counted.
- `stats() -> Stats`: accepted, acknowledged, rejected, dropped, spilled, recovered, pending (all in records),
  memory_bytes, spool_bytes, connected, error.

Callbacks, on the sender's thread: `on_rejected(record: LogRecord, rejection: RejectedRecord)` for every record
that the server refuses for good, and `on_problem(problem: Problem)` when something begins or ends that someone should
know of (`Problem.kind` is a `ProblemKind`, `Problem.message` one line); by default it is written to standard error.
"""

from opsplane.logs.handler import OpsplaneHandler
from opsplane.logs.report import Problem, ProblemKind, Stats
from opsplane.logs.shipper import Shipper
from opsplane.logs.structlog import OpsplaneProcessor

__all__ = ["OpsplaneHandler", "OpsplaneProcessor", "Problem", "ProblemKind", "Shipper", "Stats"]
