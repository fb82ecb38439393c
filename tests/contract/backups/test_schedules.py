"""Schedules by their RPCs, and what the clock makes of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from opsplane.backups.v1 import backup_pb2, schedules_pb2
from opsplane.instances.v1 import events_pb2, webhooks_pb2
from opsplane_server.backups.figures import BackupFigures
from opsplane_server.backups.metrics import BackupMetrics
from opsplane_server.errors import DataLoss, Unavailable
from prometheus_client import CollectorRegistry, generate_latest

from tests.backups_harness import Backups
from tests.rpc_harness import require_status
from tests.waiting import until

StatusCode = grpc.StatusCode
KEY = "signing-key-that-nobody-sees"
HOOK = webhooks_pb2.Webhook(url="https://example.com/hooks", signing_key=KEY)


async def get(backups: Backups, name: str) -> schedules_pb2.Schedule:
    found: schedules_pb2.Schedule = await backups.stub.GetSchedule(schedules_pb2.GetScheduleRequest(name=name))
    return found


async def update(backups: Backups, schedule: schedules_pb2.Schedule, *paths: str, etag: str = "") -> Any:
    return await backups.stub.UpdateSchedule(
        schedules_pb2.UpdateScheduleRequest(schedule=schedule, update_mask=FieldMask(paths=paths), etag=etag)
    )


async def ready(backups: Backups, schedule: str, count: int) -> list[backup_pb2.Backup]:
    """The backups of a schedule, newest first, once there are so many that are ready."""
    condition = f'schedule="{schedule}" AND state="STATE_READY"'

    async def enough() -> bool:
        return len(await backups.list(condition)) >= count

    await until(enough)
    return list(await backups.list(condition))


async def test_schedule_is_kept_as_it_was_given(backups: Backups) -> None:
    made = await backups.schedule(
        "nightly",
        cron="0 3 * * *",
        time_zone="Asia/Seoul",
        tiers=[
            schedules_pb2.RetentionTier(name="daily", period=schedules_pb2.PERIOD_DAY, keep_days=7),
            schedules_pb2.RetentionTier(name="long-term", period=schedules_pb2.PERIOD_WEEK, keep_days=30),
        ],
        verify_every=1,
        labels={"from": "schedule"},
        webhooks=[HOOK],
    )
    assert made == await get(backups, "schedules/nightly")
    due = made.next_run_time.ToDatetime(tzinfo=UTC)
    assert (due.hour, due.minute) == (18, 0), "three in the morning of Seoul"
    assert datetime.now(UTC) < due <= datetime.now(UTC) + timedelta(days=1)
    assert made.overdue_after.seconds == 3600
    assert [tier.name for tier in made.tiers] == ["daily", "long-term"]
    assert [status.instance for status in made.statuses] == ["instances/orders"]
    assert made.webhooks[0].url == HOOK.url
    assert made.webhooks[0].signing_key == ""
    assert not made.overdue


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "61 * * * *"}, "schedule.cron"),
        ({"cron": "0 0 31 2 *"}, "schedule.cron"),
        ({"time_zone": "Mars/Olympus"}, "schedule.time_zone"),
    ],
)
async def test_schedule_that_never_comes_is_refused(backups: Backups, fields: dict[str, str], field: str) -> None:
    with require_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as refusal:
        await backups.schedule("s", **fields)
    assert refusal.bad_fields == [field]


async def test_schedule_of_an_unknown_instance_is_refused(backups: Backups) -> None:
    with require_status(StatusCode.NOT_FOUND):
        await backups.schedule("s", instances=["instances/orders", "instances/nobody"])
    made = await backups.schedule("s")
    with require_status(StatusCode.NOT_FOUND):
        await update(backups, schedules_pb2.Schedule(name=made.name, instances=["instances/nobody"]), "instances")
    with require_status(StatusCode.INVALID_ARGUMENT):
        await update(backups, schedules_pb2.Schedule(name=made.name), "instances")
    with require_status(StatusCode.ALREADY_EXISTS):
        await backups.schedule("s")


async def test_update_changes_what_the_mask_names(backups: Backups) -> None:
    made = await backups.schedule("s", webhooks=[HOOK], labels={"a": "b"})
    suspended = await update(
        backups, schedules_pb2.Schedule(name=made.name, suspended=True), "suspended", etag=made.etag
    )
    assert suspended.suspended
    assert not suspended.HasField("next_run_time")
    assert dict(suspended.labels) == {"a": "b"}
    with require_status(StatusCode.ABORTED, "ETAG_MISMATCH"):
        await update(backups, schedules_pb2.Schedule(name=made.name), "suspended", etag=made.etag)
    resumed = await update(backups, schedules_pb2.Schedule(name=made.name), "suspended")
    assert resumed.HasField("next_run_time")
    # Without a key the webhook keeps the one that its URL has.
    again = [webhooks_pb2.Webhook(url=HOOK.url), webhooks_pb2.Webhook(url="https://example.com/other")]
    await update(backups, schedules_pb2.Schedule(name=made.name, webhooks=again), "webhooks")
    stored = await backups.schedules.get(made.name)
    assert [one.signing_key for one in stored.webhooks] == [KEY, ""]
    assert KEY not in str(await backups.platform.value("SELECT s::text FROM backups.schedules s"))


async def test_lists_are_filtered(backups: Backups) -> None:
    backups.stand_in.add("other")
    first = await backups.schedule("first", labels={"team": "shop"})
    second = await backups.schedule("second", instances=["instances/other", "instances/orders"], suspended=True)

    async def names(condition: str) -> list[str]:
        found = await backups.stub.ListSchedules(schedules_pb2.ListSchedulesRequest(filter=condition))
        return [schedule.name for schedule in found.schedules]

    assert await names("") == [second.name, first.name]
    assert await names('instances:"instances/other"') == [second.name]
    assert await names("suspended=false") == [first.name]
    assert await names('labels.team="shop" AND overdue=false') == [first.name]
    assert await names("overdue=true") == []


async def test_all_instances_are_backed_up_when_it_is_due(backups: Backups) -> None:
    backups.stand_in.add("other")
    made = await backups.schedule("s", instances=["instances/orders", "instances/other"], labels={"by": "clock"})
    await backups.make_due(made.name)
    found = await ready(backups, made.name, 2)
    assert {backup.instance for backup in found} == {"instances/orders", "instances/other"}
    assert {backup.type for backup in found} == {backup_pb2.Backup.TYPE_SCHEDULED}
    assert {backup.labels["by"] for backup in found} == {"clock"}
    assert all(list(backup.tiers) == ["default"] for backup in found)
    after = await get(backups, made.name)
    assert after.last_run_time.ToDatetime() < after.next_run_time.ToDatetime()
    assert after.next_run_time == made.next_run_time, "a year is a year"
    by_instance = {backup.instance: backup.name for backup in found}
    assert {status.instance: status.last_backup for status in after.statuses} == by_instance
    assert all(status.HasField("last_success_time") for status in after.statuses)
    assert not after.overdue


async def test_missed_times_are_made_up_for_once(backups: Backups) -> None:
    made = await backups.schedule("s", cron="* * * * *")
    await backups.make_due(made.name, timedelta(minutes=30))
    found = await ready(backups, made.name, 1)
    assert len(found) == 1
    after = await get(backups, made.name)
    assert after.last_run_time.ToDatetime(tzinfo=UTC) > datetime.now(UTC) - timedelta(minutes=3)
    assert after.next_run_time.ToDatetime(tzinfo=UTC) > after.last_run_time.ToDatetime(tzinfo=UTC)


async def test_every_third_is_full_and_every_second_is_verified(backups: Backups) -> None:
    made = await backups.schedule("s", full_every=3, verify_every=2)
    for count in range(1, 5):
        await backups.make_due(made.name)
        await ready(backups, made.name, count)
    found = list(reversed(await ready(backups, made.name, 4)))
    assert [backup.base_backup for backup in found] == ["", found[0].name, found[1].name, ""]

    async def verified() -> bool:
        return len(await backups.list('verification.state="STATE_PASSED"')) == 2

    await until(verified)
    assert [one.name for one in await backups.list('verification.state="STATE_PASSED"')] == [
        found[3].name,
        found[1].name,
    ]


async def test_failure_is_told_to_the_webhooks_of_the_schedule(backups: Backups) -> None:
    backups.stand_in.errors["copy"] = DataLoss("no good")
    made = await backups.schedule("s", webhooks=[HOOK], overdue_after=Duration(seconds=60))
    await backups.make_due(made.name, timedelta(seconds=1))

    async def failed() -> bool:
        return (await get(backups, made.name)).statuses[0].last_error == "no good"

    await until(failed)
    [backup] = await backups.list('schedule="schedules/s"')
    await until(lambda: backups.stand_in.event_kinds(backup.name) == ["BACKUP_FAILED"])
    [event] = backups.stand_in.events
    assert event.event.severity == events_pb2.Event.SEVERITY_ERROR
    assert [(one.url, one.signing_key) for one in event.webhooks] == [(HOOK.url, KEY)]

    async def told() -> bool:
        waiting: int = await backups.platform.value("SELECT count(*) FROM backups.notices")
        return waiting == 0

    await until(told)

    del backups.stand_in.errors["copy"]
    await backups.make_due(made.name)
    await ready(backups, made.name, 1)
    status = (await get(backups, made.name)).statuses[0]
    assert status.last_error == ""
    assert status.HasField("last_failure_time")


async def test_overdue_backup_is_told_once(backups: Backups) -> None:
    await backups.stand_in.hold("copy")
    made = await backups.schedule("s", overdue_after=Duration(seconds=60), webhooks=[HOOK])
    await backups.make_due(made.name)

    async def started() -> bool:
        return len(await backups.list()) == 1

    await until(started)
    assert not (await get(backups, made.name)).overdue
    await backups.platform.run("UPDATE backups.schedule_instances SET pending_due = pending_due - interval '2 minutes'")
    late = await get(backups, made.name)
    assert late.overdue
    assert late.statuses[0].overdue
    listed = await backups.stub.ListSchedules(schedules_pb2.ListSchedulesRequest(filter="overdue=true"))
    assert [schedule.name for schedule in listed.schedules] == [made.name]
    await until(lambda: backups.stand_in.event_kinds(made.name) == ["BACKUP_OVERDUE"])
    assert backups.stand_in.events[0].event.instance_uid == backups.stand_in.instances["instances/orders"].uid
    assert backups.stand_in.events[0].webhooks[0].url == HOOK.url
    # Due again while the one before is under way: it is left out.
    await backups.make_due(made.name)

    async def ran() -> bool:
        return (await get(backups, made.name)).next_run_time.ToDatetime(tzinfo=UTC) > datetime.now(UTC)

    await until(ran)
    await backups.stand_in.let_go("copy")
    await ready(backups, made.name, 1)
    assert len(await backups.list()) == 1


async def test_instance_that_is_gone_is_said_so(backups: Backups) -> None:
    made = await backups.schedule("s")
    del backups.stand_in.instances["instances/orders"]
    await backups.make_due(made.name)

    async def failed() -> bool:
        return "does not exist" in (await get(backups, made.name)).statuses[0].last_error

    await until(failed)
    assert await backups.list() == []
    await until(lambda: backups.stand_in.event_kinds(made.name) == ["BACKUP_FAILED"])


async def test_backups_stay_when_their_schedule_goes(backups: Backups) -> None:
    made = await backups.schedule("s", tiers=[schedules_pb2.RetentionTier(name="one", keep_count=1)])
    await backups.make_due(made.name)
    [backup] = await ready(backups, made.name, 1)
    assert list(backup.tiers) == ["one"]
    request = schedules_pb2.DeleteScheduleRequest(name=made.name, etag="old")
    with require_status(StatusCode.ABORTED):
        await backups.stub.DeleteSchedule(request)
    request.etag = ""
    await backups.stub.DeleteSchedule(request)
    with require_status(StatusCode.NOT_FOUND):
        await backups.stub.DeleteSchedule(request)
    request.allow_missing = True
    await backups.stub.DeleteSchedule(request)
    left = await backups.get(backup.name)
    assert left.schedule == made.name
    assert list(left.tiers) == []
    assert not left.HasField("expire_time")
    # Another schedule of that name has nothing to do with it.
    again = await backups.schedule("s", tiers=[schedules_pb2.RetentionTier(name="one", keep_count=1)])
    await backups.make_due(again.name)
    await ready(backups, again.name, 2)
    assert not (await backups.get(backup.name)).HasField("expire_time")


async def test_only_those_are_kept_that_a_tier_keeps(backups: Backups) -> None:
    made = await backups.schedule("s", tiers=[schedules_pb2.RetentionTier(name="two", keep_count=2)])
    for count in range(1, 3):
        await backups.make_due(made.name)
        await ready(backups, made.name, count)
    [second, first] = await ready(backups, made.name, 2)
    await backups.make_due(made.name)

    async def first_is_gone() -> bool:
        return first.name not in {backup.name for backup in await backups.list()}

    await until(first_is_gone)
    assert len(await ready(backups, made.name, 2)) == 2
    # New tiers apply to what is there.
    tiers = [schedules_pb2.RetentionTier(name="one", keep_count=1)]
    await update(backups, schedules_pb2.Schedule(name=made.name, tiers=tiers), "tiers")

    async def second_is_gone() -> bool:
        return second.name not in {backup.name for backup in await backups.list()}

    await until(second_is_gone)
    [last] = await backups.list()
    assert last.last_good
    await until(lambda: "BACKUP_DELETED" in backups.stand_in.event_kinds(second.name))


async def test_retention_deletes_the_last_one_when_the_instance_is_gone(backups: Backups) -> None:
    ledger = backups.stand_in.add("ledger", logged=True)
    made = await backups.make(ledger.name, retention_days=1)
    await backups.age(made.name, 2)
    composed = await backups.get(made.name)
    assert composed.last_good
    looking = backups.retaining()
    await looking.look()
    assert backups.stand_in.pruned == []
    await until(lambda: backups.stand_in.pruned == [(ledger.uid, made.location)])
    assert await looking.delete_expired() == 0
    del backups.stand_in.instances[ledger.name]
    await looking.look()

    async def gone() -> bool:
        return await backups.list() == []

    await until(gone)
    await looking.look()
    await until(lambda: backups.stand_in.pruned[-1] == (ledger.uid, ""))
    await looking.look()
    assert await backups.platform.value("SELECT count(*) FROM backups.sources") == 0


async def test_events_wait_while_nobody_takes_them(backups: Backups) -> None:
    backups.stand_in.errors["event"] = Unavailable("restarting")
    made = await backups.make()

    async def put_off() -> bool:
        return bool(await backups.platform.value("SELECT attempts FROM backups.notices"))

    await until(put_off)
    del backups.stand_in.errors["event"]
    await backups.platform.run("UPDATE backups.notices SET next_time = now()")
    await until(lambda: backups.stand_in.event_kinds(made.name) == ["BACKUP_COMPLETED"])


async def test_event_is_not_lost_for_a_webhook_that_is_refused(backups: Backups) -> None:
    backups.stand_in.errors["copy"] = DataLoss("no good")
    backups.stand_in.refused_hosts.add("example.com")
    made = await backups.schedule("s", webhooks=[HOOK])
    await backups.make_due(made.name)
    await until(lambda: len(backups.stand_in.events) == 1)
    assert list(backups.stand_in.events[0].webhooks) == []


async def test_figures_are_told_by_the_process_that_leads(backups: Backups) -> None:
    await backups.make()
    figures = BackupFigures()
    registry = CollectorRegistry()
    with BackupMetrics(figures, registry):
        assert b"opsplane_backups{" not in generate_latest(registry)

    async def shown() -> bool:
        text = generate_latest().decode()
        return (
            'opsplane_backups{state="ready"} 1.0' in text
            and 'opsplane_backup_last_good_timestamp_seconds{instance="instances/orders"}' in text
            and 'opsplane_backups_made_total{outcome="completed",type="on_demand"} 1.0' in text
        )

    await until(shown)
