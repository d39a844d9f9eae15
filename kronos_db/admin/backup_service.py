"""The handlers of backups: part of AdminService. Long work is written down as a run, and its stream follows that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from kronos.admin.v1 import backups_pb2 as pb

from kronos_db.admin.backup_following import Following
from kronos_db.admin.backup_runs import (
    BackupsOffError,
    DomainNotRestorableError,
    NewRun,
    RestoreFolderError,
    Run,
)
from kronos_db.admin.backup_schedule import fault_of, next_times
from kronos_db.admin.backup_store import BackupStore, KeptPolicy
from kronos_db.admin.backup_work import Places
from kronos_db.backup.as_json import Json, archive_json, backup_json, target_json
from kronos_db.backup.choosing import built_on, newest
from kronos_db.backup.engine import Engine
from kronos_db.backup.model import (
    AtBackup,
    AtLsn,
    AtTime,
    Backup,
    BackupNeededError,
    BeforeTransaction,
    Latest,
    Lsn,
    Policy,
    RestoreTarget,
)
from kronos_db.runtime.database.idempotency import Mutation
from kronos_db.runtime.errors import BadRequestError, FieldViolation
from kronos_db.runtime.etags import version_of
from kronos_db.runtime.identifiers import uuid7_text
from kronos_db.runtime.interceptors.call import Call
from kronos_db.runtime.interceptors.outlet import CallOutlet, pushes
from kronos_db.runtime.paging import PageTokens, page_size
from kronos_db.runtime.timestamps import from_timestamp, set_timestamp

_KINDS = {pb.BACKUP_KIND_FULL: "full", pb.BACKUP_KIND_INCREMENTAL: "incremental"}
_SCHEDULES = ("full_schedule", "incremental_schedule", "drill_schedule")
Told = TypeVar("Told", bound=Message)
PolicyAnswer = TypeVar("PolicyAnswer", pb.GetBackupPolicyResponse, pb.SetBackupPolicyResponse)


@dataclass(frozen=True, slots=True)
class BackupParts:
    """What the handlers stand on. `engine` is None when the server has no destination.

    `hurry` has the runs looked for at once, should this process be the one that does them.
    """

    store: BackupStore
    following: Following
    places: Places
    engine: Engine | None = None
    hurry: Callable[[], None] = lambda: None


def _nothing() -> None:
    """Let every run pass."""


class BackupHandlers:
    """Backups, restores, and when they are made."""

    def __init__(self, parts: BackupParts, page_tokens: PageTokens) -> None:
        self._backups = parts
        self._backup_page_tokens = page_tokens

    @pushes
    def CreateBackup(self, request: pb.CreateBackupRequest, outlet: CallOutlet) -> None:
        """Make a backup."""
        self._engine()
        asked: Json = {"kind": _KINDS.get(request.kind), "label": request.label}
        self._begin(NewRun(uuid7_text(), "create", asked), outlet, pb.CreateBackupResponse)

    def ListBackups(self, request: pb.ListBackupsRequest, context: object) -> pb.ListBackupsResponse:
        """Return one page."""
        engine, size = self._engine(), page_size(request.page_size)
        after = self._backup_page_tokens.read(request)
        backups = sorted(engine.list(), key=_key, reverse=True)
        archive = engine.archive_state()
        # By time and id, so that what is made or removed meanwhile moves nothing.
        rest = [backup for backup in backups if after is None or _key(backup) < after]
        page = pb.ListBackupsResponse(archive=ParseDict(archive_json(archive), pb.ArchiveState()))
        for backup in rest[:size]:
            ParseDict(backup_json(backup), page.backups.add())
        if len(rest) > size:
            page.next_page_token = self._backup_page_tokens.make(request, _key(rest[size - 1]))
        return page

    def GetBackup(self, request: pb.GetBackupRequest, context: object) -> pb.GetBackupResponse:
        """Return one backup."""
        backup = self._engine().get(request.id)
        return pb.GetBackupResponse(backup=ParseDict(backup_json(backup), pb.Backup()))

    @pushes
    def VerifyBackup(self, request: pb.VerifyBackupRequest, outlet: CallOutlet) -> None:
        """Check a backup."""
        engine, wanted = self._engine(), request.id
        run = NewRun(uuid7_text(), "verify", {"id": wanted, "drill": request.drill})
        check = partial(engine.get, wanted) if wanted else lambda: newest(engine.list())
        self._begin(run, outlet, pb.VerifyBackupResponse, check)

    @pushes
    def RestoreBackup(self, request: pb.RestoreBackupRequest, outlet: CallOutlet) -> None:
        """Restore."""
        engine, places, target = self._engine(), self._backups.places, _target(request.target)
        if request.HasField("domain") and request.domain not in places.renew:
            raise DomainNotRestorableError(
                violations=[FieldViolation("domain", f"must be one of {', '.join(sorted(places.renew))}")]
            )
        if request.HasField("instance") and places.restore_folder is None:
            raise RestoreFolderError
        run = NewRun(
            uuid7_text(),
            "restore",
            {"target": target_json(target), "domain": request.domain, "instance": request.instance},
        )
        check = partial(engine.get, target.backup_id) if isinstance(target, AtBackup) else _nothing
        self._begin(run, outlet, pb.RestoreBackupResponse, check)

    @pushes
    def DeleteBackup(self, request: pb.DeleteBackupRequest, outlet: CallOutlet) -> None:
        """Remove a backup."""
        engine = self._engine()
        run = NewRun(uuid7_text(), "delete", {"id": request.id, "force": request.force})
        check = partial(_check_deletion, engine, request.id, request.force)
        self._begin(run, outlet, pb.DeleteBackupResponse, check)

    def GetBackupPolicy(self, request: pb.GetBackupPolicyRequest, context: object) -> pb.GetBackupPolicyResponse:
        """Return the policy."""
        kept = self._backups.store.policy()
        answer = _with_policy(pb.GetBackupPolicyResponse, kept)
        if self._backups.engine is not None:
            times = next_times(kept.policy, kept.done)
            made = [time for task, time in times.items() if task != "drill"]
            if made:
                set_timestamp(answer.next_backup_time, min(made))
            if "drill" in times:
                set_timestamp(answer.next_drill_time, times["drill"])
        return answer

    def SetBackupPolicy(self, request: pb.SetBackupPolicyRequest, context: object) -> pb.SetBackupPolicyResponse:
        """Change the policy."""
        mutation: Mutation[KeptPolicy, pb.SetBackupPolicyResponse] = Call.of(context).mutation(
            pb.SetBackupPolicyResponse, partial(_with_policy, pb.SetBackupPolicyResponse)
        )
        version = version_of(request.policy.etag, "policy.etag")
        return self._backups.store.set_policy(_policy(request.policy), version, mutation)

    def _engine(self) -> Engine:
        if self._backups.engine is None:
            raise BackupsOffError
        return self._backups.engine

    def _begin(
        self, run: NewRun, outlet: CallOutlet, answer: type[Told], check: Callable[[], object] = _nothing
    ) -> None:
        """Write a run down that `check` lets pass, or find the one that an earlier call wrote down, and follow it."""
        mutation: Mutation[str, Told] = outlet.call.mutation(
            answer, lambda run_id: ParseDict({"run_id": run_id}, answer())
        )
        first: Any = self._backups.store.add(run, mutation, check)
        if mutation.validate_only:
            outlet.send(first)
            outlet.complete()
            return
        self._backups.following.follow(outlet, first.run_id, first, partial(_told, answer))
        self._backups.hurry()


def _told(answer: type[Told], run: Run) -> Told:
    """Return the message that tells how far a run is, or what came of it."""
    parts = run.result if run.state == "done" and run.result is not None else {"progress": run.progress}
    # A release before this one may have kept what this one has no field for.
    return ParseDict({"run_id": run.id, **parts}, answer(), ignore_unknown_fields=True)


def _check_deletion(engine: Engine, backup_id: str, force: bool) -> None:
    engine.get(backup_id)
    children = built_on(backup_id, engine.list())
    if children and not force:
        raise BackupNeededError(f"{', '.join(children)} would be of no use without it")


def _key(backup: Backup) -> list[str]:
    # Of the same width always, so that texts are in the order of times.
    return [backup.start_time.isoformat(timespec="microseconds"), backup.id]


def _target(target: pb.RestoreTarget) -> RestoreTarget:
    match target.WhichOneof("moment"):
        case "time":
            time = from_timestamp(target, "time", "target")
            return Latest() if time is None else AtTime(time)
        case "lsn":
            return AtLsn(Lsn.parse(target.lsn))
        case "backup_id":
            return AtBackup(target.backup_id)
        case "before_transaction":
            return BeforeTransaction(target.before_transaction)
        case _:
            return Latest()


def _policy(policy: pb.BackupPolicy) -> Policy:
    for name in _SCHEDULES:
        fault = fault_of(getattr(policy, name))
        if fault is not None:
            raise BadRequestError.of(f"policy.{name}", fault)
    if not policy.keep_count and not policy.HasField("keep_age"):
        raise BadRequestError.of("policy.keep_count", "must not be 0 without keep_age: nothing would be kept")
    return Policy(
        full_schedule=policy.full_schedule,
        incremental_schedule=policy.incremental_schedule,
        drill_schedule=policy.drill_schedule,
        keep_count=policy.keep_count or None,
        keep_age=policy.keep_age.ToTimedelta() if policy.HasField("keep_age") else None,
    )


def _with_policy(answer: type[PolicyAnswer], kept: KeptPolicy) -> PolicyAnswer:
    policy = kept.policy
    message = pb.BackupPolicy(
        full_schedule=policy.full_schedule,
        incremental_schedule=policy.incremental_schedule,
        drill_schedule=policy.drill_schedule,
        keep_count=policy.keep_count or 0,
        etag=str(kept.version),
    )
    if policy.keep_age is not None:
        message.keep_age.FromTimedelta(policy.keep_age)
    set_timestamp(message.update_time, kept.update_time)
    return answer(policy=message)
