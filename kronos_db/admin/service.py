"""AdminService: the handlers of all groups."""

from __future__ import annotations

from kronos.admin.v1.admin_pb2_grpc import AdminServiceServicer

from kronos_db.admin.advising import Advisor
from kronos_db.admin.audit import HashChain
from kronos_db.admin.audit_service import AuditHandlers
from kronos_db.admin.audit_store import AuditStore
from kronos_db.admin.backup_service import BackupHandlers, BackupParts
from kronos_db.admin.change_store import ChangeStore
from kronos_db.admin.index_service import IndexHandlers
from kronos_db.admin.query_service import QueryHandlers
from kronos_db.admin.querying import Querying
from kronos_db.admin.reading import Reader
from kronos_db.admin.scratch import Scratch
from kronos_db.admin.statement_service import StatementHandlers
from kronos_db.admin.statement_store import Sources, StatementStore
from kronos_db.admin.status import Parts
from kronos_db.admin.status_service import StatusHandlers
from kronos_db.runtime.paging import PageTokens


class AdminService(
    StatusHandlers,
    QueryHandlers,
    StatementHandlers,
    IndexHandlers,
    AuditHandlers,
    BackupHandlers,
    AdminServiceServicer,
):
    """The handlers of the contract `kronos.admin.v1`, each group in the module of its base."""

    def __init__(
        self,
        page_tokens: PageTokens,
        *,
        status: Parts,
        querying: Querying,
        statements: tuple[Sources, StatementStore, Reader],
        indexes: tuple[Advisor, Scratch, ChangeStore],
        audit: tuple[AuditStore, HashChain],
        backups: BackupParts,
    ) -> None:
        StatusHandlers.__init__(self, status)
        QueryHandlers.__init__(self, querying)
        StatementHandlers.__init__(self, *statements, page_tokens)
        IndexHandlers.__init__(self, statements[0], *indexes, page_tokens)
        AuditHandlers.__init__(self, *audit, page_tokens)
        BackupHandlers.__init__(self, backups, page_tokens)
