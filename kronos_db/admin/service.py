"""AdminService: the handlers of all groups."""

from __future__ import annotations

from kronos.admin.v1.admin_pb2_grpc import AdminServiceServicer

from kronos_db.admin.audit import HashChain
from kronos_db.admin.audit_service import AuditHandlers
from kronos_db.admin.audit_store import AuditStore
from kronos_db.admin.query_service import QueryHandlers
from kronos_db.admin.querying import Querying
from kronos_db.admin.status import Parts
from kronos_db.admin.status_service import StatusHandlers
from kronos_db.runtime.paging import PageTokens


class AdminService(
    StatusHandlers,
    QueryHandlers,
    # Statements.
    # Indexes.
    AuditHandlers,
    # Backups.
    AdminServiceServicer,
):
    """The handlers of the contract `kronos.admin.v1`, each group in the module of its base."""

    def __init__(
        self,
        page_tokens: PageTokens,
        *,
        status: Parts,
        querying: Querying,
        # Statements.
        # Indexes.
        audit: tuple[AuditStore, HashChain],
        # Backups.
    ) -> None:
        StatusHandlers.__init__(self, status)
        QueryHandlers.__init__(self, querying)
        # Statements.
        # Indexes.
        AuditHandlers.__init__(self, *audit, page_tokens)
        # Backups.
