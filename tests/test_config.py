"""Settings: read from arguments, environment and file; refused with one sentence; never printing a secret."""

from __future__ import annotations

import json
import os
import runpy
import traceback
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from kronos_db import config
from kronos_db.config import Settings, SettingsError, explain, load, require_for_serving
from kronos_db.runtime.database.dsn import masked

REQUIRED = {"postgres_dsn": "host=db", "postgres_role_secret_file": "f", "master_key_file": "f", "access_file": "f"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(config.PREFIX):
            monkeypatch.delenv(name)


def refusal(**overrides: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load(**overrides)
    return str(caught.value)


def config_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "kronos.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    monkeypatch.setenv(config.CONFIG_FILE, str(path))
    return path


def test_defaults_need_nothing() -> None:
    settings = load()
    assert settings.grpc_listen == "127.0.0.1:50051"
    assert settings.ops_listen == "127.0.0.1:9464"
    assert settings.data_dir == Path(".kronos")
    assert settings.postgres_dsn is None


def test_arguments_go_before_environment_before_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config_file(monkeypatch, tmp_path, "pool_max_size = 1\nworker_threads = 1\ncompute_threads = 1\n")
    monkeypatch.setenv("KRONOS_DB_POOL_MAX_SIZE", "2")
    monkeypatch.setenv("KRONOS_DB_WORKER_THREADS", "2")
    settings = load(pool_max_size=3)
    assert (settings.pool_max_size, settings.worker_threads, settings.compute_threads) == (3, 2, 1)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_DB_REDIS_URL", "")
    monkeypatch.setenv(config.CONFIG_FILE, "")
    assert load().redis_url is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRPC_LISTEN", "localhost"),
        ("GRPC_LISTEN", ":50051"),
        ("GRPC_LISTEN", "localhost:"),
        ("GRPC_LISTEN", "localhost:65536"),
        ("GRPC_LISTEN", "localhost:²"),
        ("GRPC_LISTEN", "::1:50051"),
        ("GRPC_LISTEN", "[localhost]:50051"),
        ("OPS_LISTEN", "http://localhost:9464"),
        ("OPS_LISTEN", "local host:9464"),
        ("POOL_MAX_SIZE", "0"),
        ("POOL_MAX_SIZE", "many"),
        ("POOL_MAX_SIZE", "4.5"),
        ("POOL_TIMEOUT", "nan"),
        ("POOL_TIMEOUT", "0"),
        ("DRAIN_TIMEOUT", "inf"),
        ("PREPARED_STATEMENTS", "perhaps"),
        ("LOG_LEVEL", "loud"),
        ("PUBLIC_SERVICES", "all"),
        ("POSTGRES_DSN", "db.example.org"),
        ("POSTGRES_DSN", "postgresql://"),
        ("USERS_DSN", "mysql://db/users"),
        ("USERS_DSN", "postgresql://u:p/w@db/users"),
        ("USERS_DSN", "postgresql://u:p@w@db/users"),
        ("USERS_DSN", "postgresql://u:p@db:65536/users"),
        ("LOGS_DIRECT_DSN", "host=db hots=db"),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "http://localhost:6379"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://localhost:port"),
        ("REDIS_URL", "redis://:p/w@localhost"),
        ("REDIS_URL", "unix://"),
        ("REDIS_URL", "redis+cluster://"),
        ("REDIS_URL", "redis+cluster://a:1,b:port"),
        ("REDIS_URL", "redis+cluster://a:1,,b:2"),
        ("REDIS_URL", "redis+cluster://a:0"),
        ("REDIS_URL", "redis+sentinel://a:1,b:2"),
        ("REDIS_URL", "redis+sentinel://a:1/service/2"),
        ("REDIS_URL", "redis+magic://a:1"),
        ("TLS_CLIENT_CA_FILE", "/nowhere/ca.pem"),
        ("NOT_A_SETTING", "1"),
        ("GRPC_PORT", "50051"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(config.PREFIX + name, value)
    sentence = refusal()
    assert sentence.startswith(f"{config.PREFIX}{name} ")
    assert sentence.endswith((".", "?"))
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "localhost:65535", "[::1]:50051", "0.0.0.0:50051", "kronos-db.svc:50051"]
)
def test_addresses_that_are_right(address: str) -> None:
    assert load(grpc_listen=address).grpc_listen == address


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://:p%40w@localhost:6380/2",
        "unix:///run/redis.sock?db=1",
        "redis://[::1]:1",
        "redis+cluster://a:1,[::1]:2,c",
        "rediss+cluster://ann:p%40w@a:1,b:2",
        "redis+sentinel://a:1,b/kronos?sentinel_password=p%40w&db=2",
    ],
)
def test_redis_urls_that_are_right(url: str) -> None:
    settings = load(redis_url=url)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


def test_a_misspelt_name_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_DB_GRPC_LISTN", "127.0.0.1:1")
    assert refusal() == "KRONOS_DB_GRPC_LISTN is not a setting; did you mean KRONOS_DB_GRPC_LISTEN?"


def test_what_kubernetes_adds_for_a_service_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SERVICE_HOST": "10.0.0.7",
        "SERVICE_PORT": "50051",
        "SERVICE_PORT_GRPC": "50051",
        "PORT": "tcp://10.0.0.7:50051",
        "PORT_50051_TCP": "tcp://10.0.0.7:50051",
        "PORT_50051_TCP_PROTO": "tcp",
        "PORT_50051_TCP_PORT": "50051",
        "PORT_50051_TCP_ADDR": "10.0.0.7",
        "OPS_SERVICE_HOST": "10.0.0.8",
        "OPS_PORT": "tcp://10.0.0.8:9464",
    }.items():
        monkeypatch.setenv(config.PREFIX + name, value)
    load()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpc_listn = 'a:1'", "grpc_listn in {path} is not a setting; did you mean grpc_listen?"),
        ("zebra = 1", "zebra in {path} is not a setting; `kronos-db config show` lists them all."),
        ("[users]\ndsn = 'host=db'", "users in {path} is not a setting; did you mean users_dsn?"),
        (
            "KRONOS_DB_GRPC_LISTEN = 'a:1'",
            "KRONOS_DB_GRPC_LISTEN in {path} is not a setting; did you mean grpc_listen?",
        ),
        ("grpc_listen = 'a'", "grpc_listen in {path} must be HOST:PORT"),
        ("users_dsn = 7", "users_dsn in {path} should be a valid string."),
        ("grpc_listen = a", "KRONOS_DB_CONFIG_FILE names a file that cannot be read ({path}): not TOML"),
        (b"\xff", "KRONOS_DB_CONFIG_FILE names a file that cannot be read ({path}): not TOML"),
    ],
)
def test_faults_of_the_file_name_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | bytes, expected: str
) -> None:
    path = config_file(monkeypatch, tmp_path, text)
    assert refusal().startswith(expected.format(path=path))


def test_a_missing_file_and_a_folder_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        monkeypatch.setenv(config.CONFIG_FILE, str(path))
        assert refusal() == f"KRONOS_DB_CONFIG_FILE names a file that is not there: {path}."


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    pem = tmp_path / "any.pem"
    pem.touch()
    assert refusal(tls_certificate_file=pem).startswith("KRONOS_DB_TLS_KEY_FILE must be set too")
    assert refusal(tls_key_file=pem).startswith("KRONOS_DB_TLS_CERTIFICATE_FILE must be set too")
    assert refusal(tls_client_ca_file=pem).startswith("KRONOS_DB_TLS_CERTIFICATE_FILE must be set too")
    assert load(tls_certificate_file=pem, tls_key_file=pem, tls_client_ca_file=pem).tls_key_file == pem


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().pool_max_size = 5


@pytest.mark.parametrize("missing", REQUIRED)
def test_serving_needs_some_settings(tmp_path: Path, missing: str) -> None:
    (tmp_path / "f").touch()
    given_ = {name: str(tmp_path / "f") if value == "f" else value for name, value in REQUIRED.items()}
    require_for_serving(load(**given_))
    del given_[missing]
    with pytest.raises(SettingsError, match=f"^KRONOS_DB_{missing.upper()} is not set, and `serve` needs it.$"):
        require_for_serving(load(**given_))


def test_serving_needs_the_files_it_names(tmp_path: Path) -> None:
    given_ = {name: str(tmp_path / "absent") if value == "f" else value for name, value in REQUIRED.items()}
    with pytest.raises(SettingsError, match=r"^KRONOS_DB_MASTER_KEY_FILE names a file that is not there: "):
        require_for_serving(load(**given_))


def test_a_dsn_for_every_domain_is_enough_to_serve(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    own = {f"{domain}_dsn": f"host={domain}" for domain in config.DOMAINS}
    require_for_serving(load(master_key_file=file, access_file=file, **own))


def test_direct_connections_have_a_line_of_defaults() -> None:
    given_ = {"postgres_dsn": "host=a", "postgres_direct_dsn": "host=b", "users_dsn": "host=c"}
    settings = load(**given_, logs_direct_dsn="host=d")
    assert settings.domain_direct_dsn("users") == "host=c"
    assert settings.domain_direct_dsn("logs") == "host=d"
    assert settings.domain_direct_dsn("admin") == "host=b"
    assert load(postgres_dsn="host=a").domain_direct_dsn("admin") == "host=a"
    assert load().domain_direct_dsn("admin") is None
    assert settings.domain_dsn("users") == "host=c"
    assert settings.domain_dsn("logs") is None


def test_every_setting_is_explained() -> None:
    rows = list(explain(load(users_dsn="postgresql://u:sesame@db/users")))
    assert [row.name for row in rows] == [config.environment_name(name) for name in Settings.model_fields]
    assert all(row.meaning.endswith(".") and row.kind for row in rows)
    by_name = {row.name.removeprefix(config.PREFIX): row for row in rows}
    assert by_name["USERS_DSN"].value == "user=u password=*** dbname=users host=db"
    assert by_name["GRPC_LISTEN"].kind == "HOST:PORT"
    assert by_name["POOL_MAX_SIZE"].kind == "whole number, 1 to 1000"
    assert by_name["POOL_TIMEOUT"].kind == "seconds, more than 0, at most 60"
    assert by_name["REDIS_URL"].kind == "URL, secret"
    assert by_name["ACCESS_FILE"].kind == "path"
    assert by_name["LOG_FORMAT"].kind == "json / console"
    assert by_name["PREPARED_STATEMENTS"].kind == "true / false"


# Long and odd enough that it is nowhere by chance.
passwords = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=6, max_size=40).map(
    lambda text: f"Zq{text}qZ"
)


def spellings(password: str) -> dict[str, str]:
    """Every way to write a password into a DSN or Redis URL, also those that need escaping and lack it."""
    spelt = quote(password, safe="")
    return {
        "url": f"postgresql://ann:{spelt}@db.example.org:5432/users",
        "url-query": f"postgresql://ann@db.example.org/users?password={spelt}",
        "url-hosts": f"postgres://ann:{spelt}@a:1,b:2/users?target_session_attrs=any",
        "url-sslpassword": f"postgresql://db/users?sslpassword={spelt}",
        "url-scram": f"postgresql://db/users?scram_client_key={spelt}",
        "url-raw": f"postgresql://ann:{password}@db.example.org:5432/users",
        "url-query-raw": f"postgresql://db.example.org/users?password={password}",
        "url-bare-raw": f"postgresql://?user=ann&password={password}",
        "pairs": make_conninfo("", host="db", user="ann", password=password),
        "pairs-spaced": "host = db password = " + make_conninfo("", password=password).removeprefix("password="),
        "pairs-raw": f"host=db password={password}",
        "pairs-quoted-raw": f"host=db password='{password}'",
        "redis": f"redis://:{spelt}@cache:6379/0",
        "redis-user": f"rediss://ann:{spelt}@cache",
        "redis-query": f"redis://cache:6379?password={spelt}&db=1",
        "unix": f"unix://ann:{spelt}@/run/redis.sock?db=1",
        "unix-query": f"unix:///run/redis.sock?password={spelt}",
        "redis-cluster": f"redis+cluster://ann:{spelt}@a:1,b:2",
        "redis-sentinel": f"redis+sentinel://:{spelt}@a:1,b:2/kronos?sentinel_password={spelt}",
        "redis-cluster-raw": f"redis+cluster://ann:{password}@a:1,b:2",
        "redis-raw": f"redis://:{password}@cache:6379/0",
        "redis-query-raw": f"redis://cache:6379?password={password}",
    }


def printed(field: str, text: str) -> str:
    """Everything that people or programs may be shown about settings with this value, or about their refusal."""
    variable = config.environment_name(field)
    try:
        with mock.patch.dict(os.environ, {variable: text}):
            settings = load()
    except SettingsError as error:
        return f"{error!r} {error}" + "".join(traceback.format_exception(error))
    dumped = json.dumps(settings.model_dump(mode="json")) + settings.model_dump_json() + str(settings.model_dump())
    rows = [f"{row.value} {row!r}" for row in explain(settings)]
    return f"{settings!r} {settings} {dumped} {rows}"


@pytest.mark.parametrize("spelling", spellings(""))
@given(password=passwords)
@example(password="Zq000://qZ")
@hypothesis.settings(max_examples=40, deadline=None)
def test_a_password_is_never_printed(spelling: str, password: str) -> None:
    text = spellings(password)[spelling]
    assume("\0" not in text)
    seen = printed("redis_url" if spelling.startswith(("redis", "unix")) else "users_dsn", text)
    # Any piece of it long enough to be no accident gives it away as well.
    for piece in {password, quote(password, safe=""), json.dumps(password)[1:-1], password[:5], password[-5:]}:
        assert piece not in seen


def test_of_several_hosts_all_are_shown() -> None:
    assert masked("redis+cluster://ann:secret@a:1,[::1]:2") == "redis+cluster://ann:***@a:1,[::1]:2"


def test_a_password_that_is_spelt_right_is_taken() -> None:
    for spelling, text in spellings("s@s/a:m?e#").items():
        if not spelling.endswith("raw"):
            load(**{"redis_url" if spelling.startswith(("redis", "unix")) else "users_dsn": text})


def test_a_wrong_type_does_not_repeat_the_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config_file(monkeypatch, tmp_path, "users_dsn = ['ZqsesameqZ']\n")
    assert "sesame" not in refusal()
    with pytest.raises(ValueError, match="users_dsn") as caught:
        Settings.model_validate({"users_dsn": "ZqsesameqZ"})  # as a program might, past `load`
    assert "sesame" not in f"{caught.value!r} {caught.value}"


def test_the_reference_page_is_what_the_code_gives(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "reference.py"))
    assert script["drifted"](script["ROOT"]) == []
    assert script["drifted"](tmp_path) == list(script["PAGES"])
    script["write"](tmp_path)
    assert script["drifted"](tmp_path) == []
    with (tmp_path / "docs" / "settings.md").open("a") as page:
        page.write("by hand")
    assert script["drifted"](tmp_path) == ["docs/settings.md"]
