"""The methods of backups as callers see them, on an engine that makes none: streams, refusals, retries, policy."""

from __future__ import annotations

import http.client
import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any, NamedTuple

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kronos.admin.v1 import backups_pb2 as pb
from kronos.admin.v1.admin_pb2_grpc import AdminServiceStub
from kronos.admin.v1.status_pb2 import PART_STATE_OK, GetStatusRequest

from kronos_db.backup.model import BackupDamagedError, Retention
from kronos_db.embedded.postgres import EmbeddedPostgres
from tests.admin.scripted_engine import EPOCH, ScriptedEngine
from tests.parts.domain import LIMIT, new_database
from tests.parts.eventually import eventually
from tests.parts.refusal import refused
from tests.parts.serving import Serving


class Shared(NamedTuple):
    """One server for all tests here."""

    serving: Serving
    engine: ScriptedEngine
    dsn: str


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory, serving: Serving) -> Iterator[Shared]:
    # The server of all other tests is there by now, and has no engine.
    del serving
    folder = tmp_path_factory.mktemp("backups")
    engine = ScriptedEngine()
    with new_database(postgres) as dsn, pytest.MonkeyPatch.context() as patch:
        patch.setattr("kronos_db.domains.open_engine", lambda _settings: engine)
        # It begins by itself some time behind a backup: at a closed gate, it would hold up what a test asks for.
        patch.setattr(engine, "retain", lambda _policy, _now: Retention((), 0, 0))
        serving = Serving(folder, dsn, backup_restore_folder=folder / "restored")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("UPDATE admin.backup_policy SET full_schedule = '', incremental_schedule = ''")
        serving.start()
        yield Shared(serving, engine, dsn)
        serving.stop()


@pytest.fixture
def engine(shared: Shared) -> Iterator[ScriptedEngine]:
    """The engine, with two backups of which the second builds on the first, and nothing under way."""
    shared.engine.gate.set()
    eventually(lambda: not active(shared.dsn), LIMIT)
    shared.engine.failures.clear()
    shared.engine.backups.clear()
    for _ in range(2):
        for _progress in shared.engine.create():
            pass
    shared.engine.begun.clear()
    yield shared.engine
    shared.engine.gate.set()


@pytest.fixture
def admin(shared: Shared, engine: ScriptedEngine) -> AdminServiceStub:
    return AdminServiceStub(shared.serving.channel_of("operator"))


def active(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT count(*) FROM admin.backup_run WHERE state IN ('waiting', 'running')")
        return int(found.fetchall()[0][0])


def told(stream: Any) -> list[Any]:
    return list(stream)


def test_create_tells_progress_and_then_the_backup(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    stream = admin.CreateBackup(pb.CreateBackupRequest(kind=pb.BACKUP_KIND_FULL, label="before"), timeout=LIMIT)
    first = next(stream)
    assert first.run_id
    assert not first.HasField("progress")
    second = next(stream)
    while second.progress.step != "copy":
        second = next(stream)
    assert second.progress.bytes_total == 1000
    assert second.progress.bytes_per_second == 100
    assert second.progress.time_left == Duration(seconds=7, nanos=500_000_000)
    engine.gate.set()
    *_, last = stream
    assert {first.run_id, second.run_id} == {last.run_id}
    backup = last.backup
    assert (backup.kind, backup.state, backup.label) == (pb.BACKUP_KIND_FULL, pb.BACKUP_STATE_COMPLETE, "before")
    assert (backup.start_lsn, backup.stop_lsn, backup.timeline) == ("0/1000000", "0/2000000", 1)
    assert backup.HasField("stop_time")
    assert admin.GetBackup(pb.GetBackupRequest(id=backup.id)).backup == backup


def test_two_at_once_are_refused_with_the_reason(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    stream = admin.CreateBackup(pb.CreateBackupRequest(), timeout=LIMIT)
    run_id = next(stream).run_id
    refusal = refused(lambda: told(admin.CreateBackup(pb.CreateBackupRequest(), timeout=LIMIT)))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BACKUP_RUN_ACTIVE")
    assert refusal.metadata == {"kind": "create", "run_id": run_id}
    engine.gate.set()
    assert told(stream)[-1].backup.id


def test_a_run_goes_on_when_its_caller_leaves_and_a_repeat_follows_it(
    admin: AdminServiceStub, engine: ScriptedEngine
) -> None:
    engine.gate.clear()
    request = pb.CreateBackupRequest(request_id=str(uuid.uuid4()))
    stream = admin.CreateBackup(request, timeout=LIMIT)
    run_id = next(stream).run_id
    stream.cancel()
    again = admin.CreateBackup(request, timeout=LIMIT)
    assert next(again).run_id == run_id
    engine.gate.set()
    backup = told(again)[-1].backup
    # Long after its end too.
    assert [each.backup for each in admin.CreateBackup(request, timeout=LIMIT)][-1] == backup
    assert engine.begun.count("create") == 1


def test_the_same_request_id_for_another_request_is_refused(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    request = pb.CreateBackupRequest(request_id=str(uuid.uuid4()))
    told(admin.CreateBackup(request, timeout=LIMIT))
    request.kind = pb.BACKUP_KIND_FULL
    refusal = refused(lambda: told(admin.CreateBackup(request, timeout=LIMIT)))
    assert refusal.reason == "REQUEST_ID_REUSED"


def test_validate_only_checks_and_does_nothing(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    assert len(told(admin.CreateBackup(pb.CreateBackupRequest(validate_only=True), timeout=LIMIT))) == 1
    request = pb.DeleteBackupRequest(id=min(engine.backups), validate_only=True)
    assert refused(lambda: told(admin.DeleteBackup(request, timeout=LIMIT))).reason == "BACKUP_NEEDED"
    assert engine.begun == []


def test_lists_page_from_the_newest_on(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    first = admin.ListBackups(pb.ListBackupsRequest(page_size=1))
    second = admin.ListBackups(pb.ListBackupsRequest(page_size=1, page_token=first.next_page_token))
    assert [each.id for page in (first, second) for each in page.backups] == sorted(engine.backups, reverse=True)
    assert second.next_page_token == ""
    archive = first.archive
    assert (archive.first_lsn, archive.last_lsn, archive.lag_bytes) == ("0/1000000", "0/8000000", 12)
    assert archive.receiving
    assert not archive.gaps


def test_verify_tells_what_is_wrong(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    newest = max(engine.backups)
    report = told(admin.VerifyBackup(pb.VerifyBackupRequest(), timeout=LIMIT))[-1].report
    assert (report.backup_id, report.sound, report.fault_count) == (newest, False, 1)
    assert report.faults[0].where == "base"
    drilled = told(admin.VerifyBackup(pb.VerifyBackupRequest(id=newest, drill=True), timeout=LIMIT))[-1].report
    assert (drilled.sound, drilled.rows, drilled.restore_time.ToMilliseconds()) == (True, 3456, 1500)
    assert admin.GetBackup(pb.GetBackupRequest(id=newest)).backup.state == pb.BACKUP_STATE_VERIFIED


def test_a_backup_that_is_not_there_is_not_found(admin: AdminServiceStub) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: admin.GetBackup(pb.GetBackupRequest(id="no")),
        lambda: told(admin.VerifyBackup(pb.VerifyBackupRequest(id="no"), timeout=LIMIT)),
        lambda: told(admin.DeleteBackup(pb.DeleteBackupRequest(id="no"), timeout=LIMIT)),
        lambda: told(
            admin.RestoreBackup(
                pb.RestoreBackupRequest(target=pb.RestoreTarget(backup_id="no"), instance="x"), timeout=LIMIT
            )
        ),
    ]
    for call in calls:
        refusal = refused(call)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "BACKUP_NOT_FOUND")


@pytest.mark.parametrize(
    "target",
    [
        pb.RestoreTarget(latest=True),
        pb.RestoreTarget(time=Timestamp(seconds=1_780_000_000, nanos=123_456_000)),
        pb.RestoreTarget(lsn="0/16B3748"),
        pb.RestoreTarget(before_transaction=4711),
    ],
)
def test_restore_into_a_new_instance(shared: Shared, admin: AdminServiceStub, target: pb.RestoreTarget) -> None:
    request = pb.RestoreBackupRequest(target=target, instance="again")
    restored = told(admin.RestoreBackup(request, timeout=LIMIT))[-1].restored
    assert restored.folder == str(shared.serving.folder / "restored" / "again")
    assert restored.host
    assert (restored.lsn, restored.timeline, restored.target_reached) == ("0/4000000", 2, True)


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b", "x" * 65])
def test_restore_stays_below_its_folder(admin: AdminServiceStub, name: str) -> None:
    request = pb.RestoreBackupRequest(target=pb.RestoreTarget(latest=True), instance=name)
    assert refused(lambda: told(admin.RestoreBackup(request, timeout=LIMIT))).code == "INVALID_ARGUMENT"


def test_restore_of_a_domain_voids_copies(shared: Shared, admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    with psycopg.connect(shared.dsn, autocommit=True) as connection:
        before = connection.execute("SELECT id, beat FROM users.copy_holder").fetchall()
        request = pb.RestoreBackupRequest(target=pb.RestoreTarget(latest=True), domain="users")
        restored = told(admin.RestoreBackup(request, timeout=LIMIT))[-1].restored
        assert (restored.domain, dict(restored.rows)) == ("users", {"users.users": 5})
        [(holder, beat)] = before
        after = dict(connection.execute("SELECT id, beat FROM users.copy_holder").fetchall())
        # Entered anew: beats of an entry begin with the time.
        assert after[holder] > beat + 1000
        [(purged,)] = connection.execute("SELECT purged::text::bigint FROM users.change_horizon").fetchall()
        assert purged > 0


@pytest.mark.parametrize("domain", ["admin", "nobody"])
def test_restore_of_other_schemas_is_refused(admin: AdminServiceStub, domain: str) -> None:
    request = pb.RestoreBackupRequest(target=pb.RestoreTarget(latest=True), domain=domain)
    refusal = refused(lambda: told(admin.RestoreBackup(request, timeout=LIMIT)))
    assert (refusal.reason, list(refusal.fields)) == ("DOMAIN_NOT_RESTORABLE", ["domain"])


def test_delete_takes_what_builds_on_it_along_only_by_force(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    oldest, newest = sorted(engine.backups)
    refusal = refused(lambda: told(admin.DeleteBackup(pb.DeleteBackupRequest(id=oldest), timeout=LIMIT)))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BACKUP_NEEDED")
    assert newest in refusal.metadata["detail"]
    request = pb.DeleteBackupRequest(id=oldest, force=True, request_id=str(uuid.uuid4()))
    for _ in range(2):
        assert told(admin.DeleteBackup(request, timeout=LIMIT))[-1].deleted_ids == [newest, oldest]
    assert not engine.backups


def test_a_failed_run_ends_its_stream_with_the_reason(admin: AdminServiceStub, engine: ScriptedEngine) -> None:
    engine.failures.append(BackupDamagedError("base.0007 is cut"))
    request = pb.VerifyBackupRequest(request_id=str(uuid.uuid4()))
    for _ in range(2):
        refusal = refused(lambda: told(admin.VerifyBackup(request, timeout=LIMIT)))
        assert (refusal.code, refusal.reason) == ("DATA_LOSS", "BACKUP_DAMAGED")
        assert "base.0007 is cut" in refusal.message


def test_the_policy_is_changed_under_its_etag(admin: AdminServiceStub) -> None:
    policy = admin.GetBackupPolicy(pb.GetBackupPolicyRequest()).policy
    policy.incremental_schedule = "15 3 * * *"
    policy.keep_age.seconds = 3 * 86_400
    changed = admin.SetBackupPolicy(pb.SetBackupPolicyRequest(policy=policy)).policy
    assert changed.etag != policy.etag
    answer = admin.GetBackupPolicy(pb.GetBackupPolicyRequest())
    assert answer.policy == changed
    assert answer.next_backup_time.ToDatetime().strftime("%H:%M") == "03:15"
    refusal = refused(lambda: admin.SetBackupPolicy(pb.SetBackupPolicyRequest(policy=policy)))
    assert (refusal.code, refusal.reason) == ("ABORTED", "BACKUP_POLICY_ETAG_MISMATCH")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"full_schedule": "every day"}, "policy.full_schedule"),
        ({"drill_schedule": "0 0 31 2 *"}, "policy.drill_schedule"),
        ({"keep_count": 0}, "policy.keep_count"),
        ({"keep_count": -1}, "policy.keep_count"),
        ({"keep_count": 1, "keep_age": Duration(seconds=5)}, "policy.keep_age"),
    ],
)
def test_a_policy_that_would_not_do_is_refused(admin: AdminServiceStub, change: dict[str, Any], field: str) -> None:
    request = pb.SetBackupPolicyRequest(policy=pb.BackupPolicy(**change))
    assert field in refused(lambda: admin.SetBackupPolicy(request)).fields


def test_without_a_destination_all_but_the_policy_is_refused(serving: Serving) -> None:
    admin = AdminServiceStub(serving.channel_of("operator"))
    for call in (
        lambda: told(admin.CreateBackup(pb.CreateBackupRequest(), timeout=LIMIT)),
        lambda: admin.ListBackups(pb.ListBackupsRequest()),
    ):
        refusal = refused(call)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BACKUPS_OFF")
    answer = admin.GetBackupPolicy(pb.GetBackupPolicyRequest())
    assert answer.policy.full_schedule
    assert not answer.HasField("next_backup_time")


def test_metrics_tell_what_there_is(shared: Shared, admin: AdminServiceStub) -> None:
    told(admin.CreateBackup(pb.CreateBackupRequest(), timeout=LIMIT))

    def scraped() -> str:
        with urllib.request.urlopen(f"http://{shared.serving.server.ops_address}/metrics") as answer:
            return str(answer.read().decode())

    eventually(lambda: "kronos_backup_last_success_timestamp_seconds " in scraped(), LIMIT, scraped)
    text = scraped()
    assert "kronos_backup_archive_lag_bytes 12.0" in text
    assert "kronos_backup_archive_gaps 0.0" in text
    assert "kronos_backup_expected_recovery_seconds 1.5" in text
    assert 'kronos_backup_runs_total{kind="create",outcome="OK"}' in text


def over_http(
    shared: Shared, verb: str, path: str, body: Any = None, *, caller: str = "operator", timeout: float = LIMIT
) -> tuple[int, Any]:
    headers = {
        "Authorization": f"Bearer {shared.serving.tokens[caller]}",
        "Content-Type": "application/json",
        "Request-Timeout": str(timeout),
    }
    connection = http.client.HTTPConnection(shared.serving.server.ops_address, timeout=LIMIT)
    connection.request(verb, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_http_lists_and_makes_backups(shared: Shared, engine: ScriptedEngine) -> None:
    request = {"kind": "BACKUP_KIND_FULL", "requestId": str(uuid.uuid4())}
    status, made = over_http(shared, "POST", "/db/backup", request)
    assert (status, made["backup"]["kind"]) == (200, "BACKUP_KIND_FULL")
    status, page = over_http(shared, "GET", "/db/backups?page_size=2")
    assert status == 200
    assert page["backups"][0]["id"] == made["backup"]["id"]
    assert page["archive"]["lastLsn"] == "0/8000000"
    assert page["nextPageToken"]


def test_http_answers_how_far_a_backup_is_when_its_time_is_over(shared: Shared, engine: ScriptedEngine) -> None:
    engine.gate.clear()
    request = {"requestId": str(uuid.uuid4())}
    status, begun = over_http(shared, "POST", "/db/backup", request, timeout=3.0)
    assert (status, begun["progress"]["step"]) == (200, "copy")
    status, busy = over_http(shared, "POST", "/db/backup", {})
    assert (status, busy["reason"]) == (409, "BACKUP_RUN_ACTIVE")
    engine.gate.set()
    status, made = over_http(shared, "POST", "/db/backup", request)
    assert (status, made["runId"]) == (200, begun["runId"])
    assert made["backup"]["id"]


def test_http_refuses_by_the_same_policy(shared: Shared, engine: ScriptedEngine) -> None:
    for verb, path in (("GET", "/db/backups"), ("POST", "/db/backup")):
        status, problem = over_http(shared, verb, path, {} if verb == "POST" else None, caller="reader")
        assert (status, problem["reason"]) == (403, "METHOD_NOT_ALLOWED")
    assert engine.begun == []


def test_the_status_tells_what_can_be_restored(shared: Shared, admin: AdminServiceStub) -> None:
    told(admin.CreateBackup(pb.CreateBackupRequest(), timeout=LIMIT))

    def status() -> Any:
        return admin.GetStatus(GetStatusRequest()).backup

    eventually(lambda: status().HasField("last_backup_time"), LIMIT, status)
    backup = status()
    assert backup.restorable_from.ToDatetime(tzinfo=UTC) >= EPOCH
    assert backup.restorable_until.ToDatetime(tzinfo=UTC) >= backup.last_backup_time.ToDatetime(tzinfo=UTC)
    assert backup.expected_recovery_time.ToMilliseconds() == 1500
    assert backup.archive_gaps == 0
    assert backup.health.state == PART_STATE_OK


def test_a_server_that_stops_ends_streams_and_leaves_the_run(shared: Shared, engine: ScriptedEngine) -> None:
    # The last of this module: the server is not the same after it.
    engine.gate.clear()
    admin = AdminServiceStub(shared.serving.channel_of("operator"))
    request = pb.CreateBackupRequest(request_id=str(uuid.uuid4()))
    stream = admin.CreateBackup(request, timeout=LIMIT)
    next(stream)
    eventually(lambda: "create" in engine.begun, LIMIT)
    shared.serving.server.stop()
    with pytest.raises(grpc.RpcError) as ended:
        told(stream)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert engine.ended_early[-1:] == ["create"]
    engine.gate.set()
    shared.serving.restart()
    admin = AdminServiceStub(shared.serving.channel_of("operator"))
    assert told(admin.CreateBackup(request, timeout=LIMIT))[-1].backup.id
    assert engine.begun.count("create") == 2
