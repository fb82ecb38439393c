"""The kinds of operations of this room, and what whoever submits one has done before.

Every operation is submitted in the transaction that checks the call and writes what it wants to the instance's record:

- `target` is the name of the resource that the operation works on: the instance (RESTORE_COPY: the new one), its
  database or its user, and for CHECK_COPY, ARCHIVE_COPY and DELETE_COPY the location of the copy. `node` is the
  instance's machine, `request` the call's request with `password` and `signing_key` cleared, since secrets are in the
  stores alone, encrypted.
- Kinds in EXCLUSIVE change an instance, one at a time: the record names the operation (else the call is refused with
  OPERATION_IN_PROGRESS) and has the state of STATES, if there is one. When the operation ends, however it does, its
  handler or failure hook frees the record and writes the state that the instance is in.
- The spec of UPDATE, UPGRADE and ROLL_BACK (the two change its exact version alone) is in the record at once, and the
  one before in `previous`: a failure goes back to that. `Instance.version` follows when an upgrade has succeeded.
- CREATE and RESTORE_COPY: record and passwords are there. RECOVER: likewise, from what `Provider.find` tells, and
  with the password that the first user is to have, which is set should it be another one.
- CREATE_USER and ROTATE_PASSWORD: the password is in PendingPasswords.
- DELETE with `final_backup` and UPGRADE begin with a backup, for which the instance must serve: so their handlers
  alone change the state, when the backup is done.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message
from opsplane.instances.v1 import copies_pb2, databases_pb2, instances_pb2, lifecycle_pb2

from opsplane_server.instances.model import InstanceState

CREATE: Final = "instances.create"
UPDATE: Final = "instances.update"
DELETE: Final = "instances.delete"
RECOVER: Final = "instances.recover"
START: Final = "instances.start"
STOP: Final = "instances.stop"
RESTART: Final = "instances.restart"
FAILOVER: Final = "instances.failover"
SWITCHOVER: Final = "instances.switchover"
UPGRADE: Final = "instances.upgrade"
ROLL_BACK: Final = "instances.roll_back"
FORGET_UPGRADE: Final = "instances.forget_upgrade"

CREATE_DATABASE: Final = "instances.create_database"
DELETE_DATABASE: Final = "instances.delete_database"
CREATE_USER: Final = "instances.create_user"
UPDATE_USER: Final = "instances.update_user"
DELETE_USER: Final = "instances.delete_user"
ROTATE_PASSWORD: Final = "instances.rotate_password"  # noqa: S105

COPY: Final = "instances.copy"
RESTORE_COPY: Final = "instances.restore_copy"
CHECK_COPY: Final = "instances.check_copy"
ARCHIVE_COPY: Final = "instances.archive_copy"
DELETE_COPY: Final = "instances.delete_copy"

# What `request` is of each kind. FORGET_UPGRADE, which nobody calls for, has none.
REQUESTS: Final[dict[str, type[Message]]] = {
    CREATE: instances_pb2.CreateInstanceRequest,
    UPDATE: instances_pb2.UpdateInstanceRequest,
    DELETE: instances_pb2.DeleteInstanceRequest,
    RECOVER: lifecycle_pb2.RecoverInstanceRequest,
    START: lifecycle_pb2.StartInstanceRequest,
    STOP: lifecycle_pb2.StopInstanceRequest,
    RESTART: lifecycle_pb2.RestartInstanceRequest,
    FAILOVER: lifecycle_pb2.FailoverRequest,
    SWITCHOVER: lifecycle_pb2.SwitchoverRequest,
    UPGRADE: lifecycle_pb2.UpgradeInstanceRequest,
    ROLL_BACK: lifecycle_pb2.RollbackUpgradeRequest,
    CREATE_DATABASE: databases_pb2.CreateDatabaseRequest,
    DELETE_DATABASE: databases_pb2.DeleteDatabaseRequest,
    CREATE_USER: databases_pb2.CreateUserRequest,
    UPDATE_USER: databases_pb2.UpdateUserRequest,
    DELETE_USER: databases_pb2.DeleteUserRequest,
    ROTATE_PASSWORD: databases_pb2.RotatePasswordRequest,
    COPY: copies_pb2.CopyInstanceRequest,
    RESTORE_COPY: copies_pb2.RestoreCopyRequest,
    CHECK_COPY: copies_pb2.CheckCopyRequest,
    ARCHIVE_COPY: copies_pb2.ArchiveCopyRequest,
    DELETE_COPY: copies_pb2.DeleteCopyRequest,
}

# The state that the record has from the submission on. The kinds left out do not change it.
STATES: Final[dict[str, InstanceState]] = {
    CREATE: InstanceState.CREATING,
    RESTORE_COPY: InstanceState.RESTORING,
    UPDATE: InstanceState.UPDATING,
    RECOVER: InstanceState.STARTING,
    START: InstanceState.STARTING,
    STOP: InstanceState.STOPPING,
    RESTART: InstanceState.RESTARTING,
    FAILOVER: InstanceState.FAILING_OVER,
    SWITCHOVER: InstanceState.FAILING_OVER,
    ROLL_BACK: InstanceState.UPGRADING,
}

# One of these at a time changes an instance; copies are made beside them.
EXCLUSIVE: Final = frozenset(REQUESTS) - {COPY, CHECK_COPY, ARCHIVE_COPY, DELETE_COPY} | {FORGET_UPGRADE}

# Not in ListOperations: what other services or this one ask for.
HIDDEN: Final = frozenset({COPY, RESTORE_COPY, CHECK_COPY, ARCHIVE_COPY, DELETE_COPY, FORGET_UPGRADE})
