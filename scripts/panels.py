"""What the Grafana dashboards show: pages, panels and their queries. `dashboards.py` makes Grafana's files of them."""

from __future__ import annotations

from typing import NamedTuple

_WIDTH = 8


class Panel(NamedTuple):
    """One panel: what it says above, its unit, and its queries with what each line is called."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    about: str = ""
    width: int = _WIDTH


class Dashboard(NamedTuple):
    """One page; `variables` are names and the query whose values they have."""

    uid: str
    title: str
    about: str
    variables: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]


def lines(title: str, unit: str, *queries: tuple[str, str], about: str = "", width: int = _WIDTH) -> Panel:
    """Return a panel of lines over time."""
    return Panel(title, unit, queries, about=about, width=width)


def figure(title: str, unit: str, query: str, about: str = "") -> Panel:
    """Return a panel of one figure."""
    return Panel(title, unit, ((query, ""),), "stat", about, 4)


def rows(title: str, unit: str, query: str, legend: str, about: str = "") -> Panel:
    """Return a panel of bars, the longest first."""
    return Panel(title, unit, ((query, legend),), "bargauge", about, 12)


OVERVIEW = Dashboard(
    "kronos-overview",
    "kronos-db: overview",
    "Whether the fleet serves, how fast, and what it lacks.",
    (),
    (
        figure("Targets up", "short", 'sum(up{job="kronos-db"})'),
        figure(
            "Processes missing",
            "short",
            "sum(kronos_db_processes_wanted) - sum(kronos_db_processes_answering)",
            "Serving processes that there should be and that do not answer.",
        ),
        figure("Alerts", "short", 'count(ALERTS{alertname=~"Kronos.+", alertstate="firing"}) or vector(0)'),
        figure("Calls a second", "reqps", "sum(kronos:domain_calls:rate5m)"),
        figure("Failed, 1 h", "percentunit", "max(kronos:domain_errors:ratio_rate1h) or vector(0)"),
        figure("Parts not ready", "short", "count(kronos_db_part_ready == 0) or vector(0)"),
        lines("Calls", "reqps", ("kronos:domain_calls:rate5m", "{{domain}}")),
        lines(
            "Failed",
            "percentunit",
            ("kronos:domain_errors:ratio_rate5m or 0 * kronos:domain_calls:rate5m", "{{domain}}"),
            about="Share of calls that ended with UNAVAILABLE, INTERNAL, UNKNOWN, DATA_LOSS or DEADLINE_EXCEEDED.",
        ),
        lines("99 of 100 calls are faster than", "s", ("kronos:domain_latency_seconds:p99_5m", "{{domain}}")),
        lines("Calls by code", "reqps", ("sum by (grpc_code) (kronos:method_calls:rate5m)", "{{grpc_code}}")),
        lines(
            "Refused for overload",
            "reqps",
            (
                (
                    "sum by (domain) (rate(kronos_db_calls_refused_total[$__rate_interval]))"
                    " or 0 * sum by (domain) (kronos_db_calls_running)"
                ),
                "{{domain}}",
            ),
        ),
        lines("Calls in the server", "short", ("sum by (domain) (kronos_db_calls_running)", "{{domain}}")),
        lines("Parts that are ready", "short", ("min by (part) (kronos_db_part_ready)", "{{part}}")),
        lines("Memory", "bytes", ('process_resident_memory_bytes{job="kronos-db"}', "{{instance}} {{process}}")),
        lines(
            "Processor",
            "percentunit",
            ('rate(process_cpu_seconds_total{job="kronos-db"}[$__rate_interval])', "{{instance}} {{process}}"),
            about="Share of one core.",
        ),
        lines("Streams of changes", "short", ("sum by (domain) (kronos_db_watch_streams)", "{{domain}}")),
        lines(
            "Quotas",
            "ops",
            ("sum by (outcome) (rate(kronos_db_quota_decisions_total[$__rate_interval]))", "{{outcome}}"),
        ),
        lines("Releases", "short", ("count by (version) (kronos_db_build_info)", "{{version}}")),
    ),
)

DOMAIN = Dashboard(
    "kronos-domain",
    "kronos-db: one domain",
    "The calls of one domain, what they wait for, and what is done for it in the background.",
    (("domain", "label_values(kronos_db_calls_running, domain)"),),
    (
        lines(
            "Calls by method",
            "reqps",
            ('sum by (grpc_method) (kronos:method_calls:rate5m{domain=~"$domain"})', "{{grpc_method}}"),
        ),
        lines(
            "Calls by code",
            "reqps",
            ('sum by (grpc_code) (kronos:method_calls:rate5m{domain=~"$domain"})', "{{grpc_code}}"),
        ),
        lines(
            "Latency",
            "s",
            ('kronos:domain_latency_seconds:p50_5m{domain=~"$domain"}', "{{domain}} 50 %"),
            ('kronos:domain_latency_seconds:p95_5m{domain=~"$domain"}', "{{domain}} 95 %"),
            ('kronos:domain_latency_seconds:p99_5m{domain=~"$domain"}', "{{domain}} 99 %"),
        ),
        rows(
            "Slowest methods, 99 of 100 calls",
            "s",
            'topk(15, kronos:method_latency_seconds:p99_5m{domain=~"$domain"})',
            "{{grpc_method}}",
        ),
        rows(
            "Background work, time since it was last done",
            "s",
            'time() - max by (domain, work) (kronos_db_background_last_success_timestamp_seconds{domain=~"$domain"})',
            "{{domain}} {{work}}",
        ),
        lines(
            "Calls in the server",
            "short",
            ('sum by (domain) (kronos_db_calls_running{domain=~"$domain"})', "{{domain}} in all"),
            ('sum by (domain, kind) (kronos_db_calls_queued{domain=~"$domain"})', "{{domain}} wait: {{kind}}"),
        ),
        lines(
            "Refused",
            "reqps",
            (
                (
                    'sum by (domain, reason) (rate(kronos_db_calls_refused_total{domain=~"$domain"}[$__rate_interval]))'
                    ' or 0 * sum by (domain) (kronos_db_calls_running{domain=~"$domain"})'
                ),
                "{{domain}} {{reason}}",
            ),
        ),
        lines(
            "Pool",
            "short",
            (
                'sum by (domain) (kronos_db_pool_size{domain=~"$domain"} - kronos_db_pool_available)',
                "{{domain}} in use",
            ),
            ('sum by (domain) (kronos_db_pool_max_size{domain=~"$domain"})', "{{domain}} at most"),
            ('sum by (domain) (kronos_db_pool_requests_waiting{domain=~"$domain"})', "{{domain}} calls waiting"),
        ),
        lines(
            "Background runs",
            "ops",
            (
                'sum by (work, outcome) (rate(kronos_db_background_runs_total{domain=~"$domain"}[$__rate_interval]))',
                "{{work}} {{outcome}}",
            ),
        ),
        lines("Room", "bytes", ('max by (domain) (kronos_db_domain_bytes{domain=~"$domain"})', "{{domain}}")),
        lines(
            "Log records",
            "ops",
            ("sum by (outcome) (rate(kronos_db_log_records_total[$__rate_interval]))", "{{outcome}}"),
            about="Of the domain logs alone.",
        ),
    ),
)

POSTGRES = Dashboard(
    "kronos-postgres",
    "kronos-db: PostgreSQL and pools",
    "What every PostgreSQL says of itself, and the pools of connections before it.",
    (("server", "label_values(kronos_db_postgres_connections, server)"),),
    (
        lines(
            "Sessions",
            "short",
            ('max by (server) (kronos_db_postgres_connections{server=~"$server"})', "{{server}}"),
            ('max by (server) (kronos_db_postgres_max_connections{server=~"$server"})', "{{server}} at most"),
        ),
        lines(
            "Oldest transaction",
            "s",
            ('max by (server) (kronos_db_postgres_oldest_transaction_seconds{server=~"$server"})', "{{server}}"),
        ),
        lines(
            "Found in memory",
            "percentunit",
            ('min by (server) (kronos_db_postgres_cache_hit_ratio{server=~"$server"})', "{{server}}"),
        ),
        lines(
            "Lag of standbys",
            "s",
            (
                (
                    'max by (server) (kronos_db_postgres_replication_lag_seconds{server=~"$server"})'
                    ' or 0 * max by (server) (kronos_db_postgres_standbys{server=~"$server"})'
                ),
                "{{server}}",
            ),
        ),
        lines(
            "Standbys and receivers",
            "short",
            ('max by (server) (kronos_db_postgres_standbys{server=~"$server"})', "{{server}}"),
        ),
        lines(
            "Transactions not frozen",
            "short",
            ('max by (server) (kronos_db_postgres_wraparound_age{server=~"$server"})', "{{server}}"),
        ),
        lines("Databases", "bytes", ("max by (domain) (kronos_db_database_bytes)", "of {{domain}}")),
        lines("Domains", "bytes", ("max by (domain) (kronos_db_domain_bytes)", "{{domain}}")),
        lines(
            "Pools in use",
            "percentunit",
            (
                (
                    "sum by (domain) (kronos_db_pool_size - kronos_db_pool_available)"
                    " / sum by (domain) (kronos_db_pool_max_size)"
                ),
                "{{domain}}",
            ),
        ),
        lines("Calls that wait", "short", ("sum by (domain) (kronos_db_pool_requests_waiting)", "{{domain}}")),
        lines(
            "Connections asked for",
            "ops",
            ("sum by (domain) (rate(kronos_db_pool_requests_total[$__rate_interval]))", "{{domain}}"),
        ),
        lines(
            "Not had, and lost",
            "ops",
            ("sum by (domain) (rate(kronos_db_pool_requests_errors_total[$__rate_interval]))", "{{domain}} not had"),
            ("sum by (domain) (rate(kronos_db_pool_connections_lost_total[$__rate_interval]))", "{{domain}} lost"),
        ),
        lines(
            "Notifications that failed",
            "ops",
            ("sum by (instance) (rate(kronos_db_notifications_failed_total[$__rate_interval]))", "{{instance}}"),
        ),
    ),
)

CACHE = Dashboard(
    "kronos-cache",
    "kronos-db: copies, Redis and namespaces",
    "What copies in memory and Redis spare, and how the namespaces of the cache domain are used.",
    (("namespace", "label_values(kronos_db_namespace_hits_total, namespace)"),),
    (
        lines("Answered from memory", "percentunit", ("kronos:copies:hit_ratio_rate5m", "{{domain}} {{kind}}")),
        lines(
            "Found in Redis",
            "ops",
            ("sum by (domain) (rate(kronos_db_cache_remote_hits_total[$__rate_interval]))", "{{domain}}"),
        ),
        lines(
            "Processes that answer from copies",
            "short",
            ("sum by (domain) (kronos_db_cache_valid)", "{{domain}}"),
            ("sum(kronos_db_processes_answering)", "processes"),
        ),
        lines("Memory of copies", "bytes", ("sum by (instance) (kronos_db_cache_bytes)", "{{instance}}")),
        lines("Copies", "short", ("sum by (instance) (kronos_db_cache_entries)", "{{instance}}")),
        lines(
            "Copies that gave way",
            "ops",
            ("sum by (instance) (rate(kronos_db_cache_evictions_total[$__rate_interval]))", "{{instance}}"),
        ),
        lines("Processes without Redis", "short", ("sum by (instance) (kronos_db_redis_away)", "{{instance}}")),
        lines(
            "Redis: failed and dropped",
            "ops",
            ("sum by (instance) (rate(kronos_db_redis_failures_total[$__rate_interval]))", "{{instance}} failed"),
            ("sum by (instance) (rate(kronos_db_redis_dropped_total[$__rate_interval]))", "{{instance}} dropped"),
        ),
        lines(
            "Namespaces: hits",
            "percentunit",
            ('kronos:namespace:hit_ratio_rate5m{namespace=~"$namespace"}', "{{namespace}}"),
        ),
        lines(
            "Namespaces: look-ups",
            "s",
            (
                (
                    "histogram_quantile(0.99, sum by (namespace, le) "
                    '(rate(kronos_db_namespace_lookup_seconds_bucket{namespace=~"$namespace"}[$__rate_interval])))'
                ),
                "{{namespace}} 99 %",
            ),
        ),
        lines(
            "Namespaces: entries put",
            "ops",
            (
                'sum by (namespace) (rate(kronos_db_namespace_puts_total{namespace=~"$namespace"}[$__rate_interval]))',
                "{{namespace}}",
            ),
        ),
        lines(
            "Namespaces: entries that gave way",
            "ops",
            (
                (
                    "sum by (namespace) "
                    '(rate(kronos_db_namespace_evictions_total{namespace=~"$namespace"}[$__rate_interval]))'
                ),
                "{{namespace}}",
            ),
        ),
    ),
)

QUEUES = Dashboard(
    "kronos-queues",
    "kronos-db: queues",
    "What waits in each queue and for how long, and what could not be processed.",
    (("queue", "label_values(kronos_db_queue_messages, queue)"),),
    (
        lines(
            "Messages by state",
            "short",
            ('sum by (state) (kronos_db_queue_messages{queue=~"$queue"})', "{{state}}"),
        ),
        lines(
            "Oldest ready message",
            "s",
            ('max by (queue) (kronos_db_queue_oldest_ready_seconds{queue=~"$queue"})', "{{queue}}"),
        ),
        lines(
            "Messages a second",
            "ops",
            ('sum by (event) (kronos_db_queue_rate{queue=~"$queue"})', "{{event}}"),
        ),
        rows(
            "Ready, most first",
            "short",
            'topk(15, max by (queue) (kronos_db_queue_messages{state="ready", queue=~"$queue"}))',
            "{{queue}}",
        ),
        rows(
            "Dead, most first",
            "short",
            'topk(15, max by (queue) (kronos_db_queue_messages{state="dead", queue=~"$queue"}))',
            "{{queue}}",
        ),
        lines(
            "Latency of calls",
            "s",
            ('kronos:method_latency_seconds:p99_5m{domain="messages"}', "{{grpc_method}} 99 %"),
        ),
        lines(
            "Background work, time since it was last done",
            "s",
            (
                'time() - max by (work) (kronos_db_background_last_success_timestamp_seconds{domain="messages"})',
                "{{work}}",
            ),
        ),
    ),
)

BACKUPS = Dashboard(
    "kronos-backups",
    "kronos-db: backups",
    "Whether everything could be restored, up to which moment, and how long that would take.",
    (),
    (
        figure("Newest backup", "s", "time() - max(kronos_backup_last_success_timestamp_seconds)", "Its age."),
        figure("Last drill", "s", "time() - max(kronos_backup_last_verified_timestamp_seconds)", "Its age."),
        figure(
            "Would be lost",
            "s",
            "time() - max(kronos_backup_restorable_until_timestamp_seconds)",
            "Time since the last moment that can be restored; grows while nothing is written.",
        ),
        figure("A restore takes", "s", "max(kronos_backup_expected_recovery_seconds)", "As the last drill measured."),
        figure("Gaps", "short", "max(kronos_backup_archive_gaps)", "Places where the archive lacks WAL."),
        figure("Receiving", "short", "max(kronos_backup_archive_receiving)", "1: WAL is being archived."),
        lines("Archive is behind", "bytes", ("max(kronos_backup_archive_lag_bytes)", "WAL")),
        lines("WAL kept for the archive", "bytes", ("max(kronos_backup_archive_slot_bytes)", "WAL")),
        lines("Missing in the archive", "bytes", ("max(kronos_backup_archive_gap_bytes)", "WAL")),
        lines(
            "Room",
            "bytes",
            ("max(kronos_backup_stored_bytes)", "newest backup"),
            ("max(kronos_backup_size_bytes)", "what it holds"),
            ("max(kronos_backup_archive_stored_bytes)", "archive"),
        ),
        lines("A backup takes", "s", ("max(kronos_backup_duration_seconds)", "newest")),
        lines("Backups", "short", ("max by (kind, state) (kronos_backup_backups)", "{{kind}} {{state}}")),
        lines(
            "Runs within an hour",
            "short",
            ("sum by (kind, outcome) (increase(kronos_backup_runs_total[1h]))", "{{kind}} {{outcome}}"),
        ),
        lines(
            "Background work, time since it was last done",
            "s",
            (
                (
                    "time() - max by (work) "
                    '(kronos_db_background_last_success_timestamp_seconds{domain="admin", work=~".*backups"})'
                ),
                "{{work}}",
            ),
        ),
    ),
)

STATEMENTS = Dashboard(
    "kronos-statements",
    "kronos-db: slow queries",
    "What statements cost PostgreSQL within the last hour. `kronos-db slow-queries` has all, with the methods.",
    (("domain", "label_values(kronos_db_statement_seconds, domain)"),),
    (
        rows(
            "Time in all",
            "s",
            'topk(20, max by (domain, query) (kronos_db_statement_seconds{domain=~"$domain"}))',
            "{{query}}",
        ),
        rows(
            "Time of one run",
            "s",
            "topk(20, max by (domain, query) "
            '(kronos_db_statement_seconds{domain=~"$domain"} / (kronos_db_statement_calls > 0)))',
            "{{query}}",
        ),
        rows(
            "Runs",
            "short",
            'topk(20, max by (domain, query) (kronos_db_statement_calls{domain=~"$domain"}))',
            "{{query}}",
        ),
        rows(
            "Share of one core",
            "percentunit",
            'topk(20, max by (domain, query) (kronos_db_statement_seconds{domain=~"$domain"})) / 3600',
            "{{query}}",
        ),
        lines(
            "Time by domain",
            "s",
            ('sum by (domain) (kronos_db_statement_seconds{domain=~"$domain"})', "{{domain}}"),
            width=12,
        ),
        lines(
            "Oldest transaction",
            "s",
            ("max by (server) (kronos_db_postgres_oldest_transaction_seconds)", "{{server}}"),
            width=12,
        ),
    ),
)

DASHBOARDS = (OVERVIEW, DOMAIN, POSTGRES, CACHE, QUEUES, BACKUPS, STATEMENTS)
