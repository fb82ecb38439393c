"""The handlers of all kinds of operations of this room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opsplane_server.instances.operations import kinds
from opsplane_server.instances.operations.accounts import Accounts
from opsplane_server.instances.operations.checking import Checking, leave_scratch
from opsplane_server.instances.operations.copies import Copies
from opsplane_server.instances.operations.deletion import Deletion
from opsplane_server.instances.operations.failovers import Failovers
from opsplane_server.instances.operations.final_backups import FinalBackups
from opsplane_server.instances.operations.frame import Frame
from opsplane_server.instances.operations.lifecycle import Lifecycle
from opsplane_server.instances.operations.upgrades import Upgrades
from opsplane_server.platform.execution import FailureHook, Handler


def build_handlers(frame: Frame, backups: FinalBackups, *, node: str, exports: Path) -> Mapping[str, Handler]:
    """By kind. node: this machine. exports: folder below which archives of copies are written."""
    lifecycle, deletion, failovers = Lifecycle(frame), Deletion(frame, backups), Failovers(frame)
    upgrades, accounts = Upgrades(frame, backups), Accounts(frame)
    copies, checking = Copies(frame, exports=exports), Checking(frame, node=node)
    return {
        kinds.CREATE: frame.exclusive(lifecycle.create, lifecycle.unmake),
        kinds.RESTORE_COPY: frame.exclusive(lifecycle.restore, lifecycle.unmake),
        kinds.UPDATE: frame.exclusive(lifecycle.update, lifecycle.undo_update),
        kinds.DELETE: frame.exclusive(deletion.delete),
        kinds.RECOVER: frame.exclusive(lifecycle.recover, lifecycle.leave),
        kinds.START: frame.exclusive(lifecycle.start),
        kinds.STOP: frame.exclusive(lifecycle.stop),
        kinds.RESTART: frame.exclusive(lifecycle.restart),
        kinds.FAILOVER: frame.exclusive(failovers.failover, failovers.release),
        kinds.SWITCHOVER: frame.exclusive(failovers.switchover, failovers.release),
        kinds.UPGRADE: frame.exclusive(upgrades.upgrade, upgrades.release_upgrade),
        kinds.ROLL_BACK: frame.exclusive(upgrades.roll_back),
        kinds.FORGET_UPGRADE: frame.exclusive(upgrades.forget),
        kinds.CREATE_DATABASE: frame.exclusive(accounts.create_database),
        kinds.DELETE_DATABASE: frame.exclusive(accounts.delete_database),
        kinds.CREATE_USER: frame.exclusive(accounts.create_user),
        kinds.UPDATE_USER: frame.exclusive(accounts.update_user),
        kinds.DELETE_USER: frame.exclusive(accounts.delete_user),
        kinds.ROTATE_PASSWORD: frame.exclusive(accounts.rotate_password),
        kinds.COPY: frame.beside(copies.copy, copies.undo_copy),
        kinds.CHECK_COPY: frame.beside(checking.check, checking.remove),
        kinds.ARCHIVE_COPY: frame.beside(copies.archive),
        kinds.DELETE_COPY: frame.beside(copies.delete),
    }


def build_failure_hooks(frame: Frame) -> Mapping[str, FailureHook]:
    """By kind: they free the records of operations that their handlers could not end."""
    return {**dict.fromkeys(kinds.EXCLUSIVE, frame.failed), kinds.CHECK_COPY: leave_scratch(frame)}
