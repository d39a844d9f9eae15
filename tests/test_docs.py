"""What the documents say is there: links, paths, settings, reasons, targets, the chain, and the README's Python."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from kronos.users.v1 import users_pb2 as pb

from kronos_db.config import CONFIG_FILE, Settings, environment_name
from kronos_db.domains import CAPABILITIES, ERRORS
from kronos_db.runtime.errors import UNKNOWN, Code
from kronos_db.runtime.interceptors.chain import ORDER
from kronos_db.runtime.interceptors.policy import load_policy
from tests.parts.serving import Serving

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
DEPLOYED = sorted(path for path in (ROOT / "deploy").rglob("*") if path.is_file())
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
# Words in capitals with an underscore that are no reason of an error.
NO_REASONS = {
    *Code.__members__,
    "NO_SIDE_EFFECTS",
    "USER_STATE_ACTIVE",
    "WORKLOAD_COMPUTE",
    "NOT_SERVING",
    "RUNTIME_ERRORS",
    "IGNORE_ALWAYS",
    # Of records that are refused one by one.
    "RECORD_TOO_LARGE",
    "TEXT_HAS_NUL",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def block(page: Path, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page.name} has no block of {language}"
    return found[1]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spans(page: Path) -> Iterator[str]:
    """Yield what stands between backticks in the prose of a page."""
    yield from re.findall(r"`([^`\n]+)`", prose(page))


def test_the_pages_are_found() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/operations.md"} <= names


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name} links to {target}"


@pages
def test_paths_are_there(page: Path) -> None:
    for span in spans(page):
        path = span.rstrip("/")
        # A placeholder in capitals stands for a name.
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)+", path) or re.search(r"/(DOMAIN|NNNN)", path):
            continue
        if path.partition("/")[0] in TOP or path.startswith(".ci/"):
            assert (ROOT / path).exists(), f"{page.name} names {span}"


@pytest.mark.parametrize("page", [*PAGES, *DEPLOYED], ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_exist(page: Path) -> None:
    known = {*map(environment_name, Settings.model_fields), CONFIG_FILE}
    named = set(re.findall(r"KRONOS_DB_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8")))
    assert named <= known


@pages
def test_reasons_exist(page: Path) -> None:
    reasons = {answer.reason for answer in ERRORS.rows.values()} | {UNKNOWN.reason}
    prefixes = (
        "KRONOS_",
        "OTEL_",
        "CHECK_REASON_",
        "WATCHED_KIND_",
        "USER_EVENT_",
        "USER_ORDER_",
        "USER_STATE_",
        "NAMESPACE_STORAGE_",
        "INDEX_TYPE_",
        "INDEX_ADVICE_KIND_",
        "INDEX_CHANGE_STATE_",
        "SLOW_QUERY_ORDER_",
        "STATEMENT_SOURCE_STATE_",
        "AUDIT_FAULT_",
        "AUDIT_PHASE_",
        "QUERY_CUT_",
        "PART_STATE_",
        "POSTGRES_ROLE_",
        "PUT_OUTCOME_",
        "DELETE_OUTCOME_",
        "LEASE_OUTCOME_",
        "FILL_OUTCOME_",
        "PASSWORD_OUTCOME_",
        "TOKEN_KIND_",
        "TOKEN_STATE_",
        "SUBJECT_KIND_",
        "INACTIVE_REASON_",
        "CHECK_OUTCOME_",
        "ROTATION_OUTCOME_",
        "PROTECTION_",
        "NORMALIZATION_",
        "WORKLOAD_",
        "LOG_ORDER_",
        "LOG_GROUPING_",
        "SEVERITY_RANGE_",
        "MESSAGE_STATE_",
        "FAILURE_KIND_",
        "DEATH_CAUSE_",
        "OUTCOME_",
        "CANCELLATION_",
        "CALLER_REQUIREMENT_",
        "DENIAL_",
        "ROUTE_CONFLICT_KIND_",
        "ROUTE_EVENT_",
        "QUOTA_FAILURE_MODE_",
        "QUOTA_KEY_",
        "CALENDAR_UNIT_",
        "BACKUP_KIND_",
        "BACKUP_STATE_",
    )
    for span in spans(page):
        if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", span) and not span.startswith(prefixes):
            assert span in reasons | NO_REASONS, f"{page.name} names {span}"


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    for call in re.findall(r"(?:`|\$ |^    )make ((?:[a-z-]+ ?)+)", text, re.MULTILINE):
        assert set(call.split()) <= targets, f"{page.name} names make {call}"


def test_the_chain_is_told_as_it_is() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(str(number), place.name, place.because) for number, place in enumerate(ORDER, 1)]


def test_every_function_on_the_road_exists() -> None:
    """Names like `Chain.compose` in the architecture are attributes of a class of that name, `name()` or a method."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "kronos_db").rglob("*.py"))
    found = 0
    for span in spans(ROOT / "docs" / "architecture.md"):
        match = re.fullmatch(r"([A-Z]\w+)\.(\w+)(\(.*\))?", span)
        if match is None or match[1] == "GetUserRequest":
            continue
        found += 1
        assert re.search(
            rf"^class {match[1]}\b(?:(?!^class ).)*?^    def {match[2]}\b", code, re.MULTILINE | re.DOTALL
        ), span
    assert found > 15


def test_the_python_of_the_readme_works(
    fresh_serving: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = ROOT / "README.md"
    fresh_serving.users().CreateUser(
        pb.CreateUserRequest(user=pb.User(username="ann", email="Ann@Example.org")), timeout=10
    )
    snippet = tmp_path / "snippet.py"
    snippet.write_text(block(readme, "python"), encoding="utf-8")
    monkeypatch.setenv("KRONOS_ADDRESS", fresh_serving.server.grpc_address)
    monkeypatch.setenv("KRONOS_TOKEN", fresh_serving.tokens["operator"])
    capsys.readouterr()
    runpy.run_path(str(snippet))
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f"It prints `{printed}`" in readme.read_text(encoding="utf-8")


def test_every_metric_of_a_server_has_its_row(serving: Serving) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for family in serving.server.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"| `{name}` | {family.type} |" in page


def test_the_example_of_an_access_file_is_one(serving: Serving) -> None:
    policy = load_policy(ROOT / "deploy" / "access.example.toml", serving.server._paths, capabilities=CAPABILITIES)
    assert "kronos.users.v1.UsersService/VerifyPassword" in policy.allowed["auth-service"]


def test_what_pgbouncer_needs_gives_the_secrets_of_domains_alone(database: str) -> None:
    text = (ROOT / "deploy" / "pgbouncer.sql").read_text(encoding="utf-8")
    with psycopg.connect(database) as connection:
        connection.execute("CREATE ROLE kronos_example LOGIN PASSWORD 'example'")
        connection.execute("CREATE ROLE kronosx LOGIN PASSWORD 'example'")
        connection.execute(text)
        connection.execute("SET ROLE pgbouncer")
        lookup = "SELECT passwd FROM pgbouncer.lookup(%s)"
        found = connection.execute(lookup, ("kronos_example",)).fetchone()
        assert found is not None
        assert found[0].startswith("SCRAM-SHA-256$")
        assert connection.execute(lookup, ("kronosx",)).fetchall() == []
        # Roles belong to the server of all tests.
        connection.rollback()
