"""The npm package: packed, installed where nothing else is, typed, and what it adds to calls."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from kronos.users.v1 import users_pb2 as pb

from kronos_db import __version__
from kronos_db.config import DOMAINS
from tests.clients.conftest import NODE
from tests.clients.places import ROOT, NodePlace, block_of_the_page
from tests.clients.scripted import AnsweredError, Scripted, unavailable
from tests.clients.stories import STORIES, parted
from tests.parts.serving import Serving
from tests.runtime.interceptors.certificates import Authority


def test_the_version_is_the_servers() -> None:
    assert json.loads((NODE / "package.json").read_text())["version"] == __version__


def test_the_lock_names_no_registry() -> None:
    assert '"resolved"' not in (NODE / "package-lock.json").read_text()


def test_the_package_holds_the_contract_and_its_types(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
        policy = archive.extractfile("package/protos/kronos/service_config.json")
        assert policy is not None
        assert policy.read() == (ROOT / "generated" / "kronos" / "service_config.json").read_bytes()
    protos = ROOT / "protos"
    assert {f"protos/{path.relative_to(protos)}" for path in protos.rglob("*.proto")} <= names
    assert {"dist/index.js", "dist/index.d.ts", "dist/generated/users.d.ts"} <= names
    assert not any(name.startswith(("src/", "node_modules/")) or name.endswith("build.mjs") for name in names)


TYPED = """
import { connect, follow, pages, Refusal, type Answers, type Conversation } from 'kronos-db-client'
import { UserState, type User } from 'kronos-db-client/users'
import type { GetUserResponse__Output, WatchUsersResponse__Output } from 'kronos-db-client/users'
import type { ConsumeMessagesRequest, ConsumeMessagesResponse__Output } from 'kronos-db-client/messages'

const db = connect('localhost:1', { tokenFile: 'token', tls: { caFile: 'ca.pem' }, deadline: 2_000 })
const user: User = { username: 'ann', state: UserState.USER_STATE_ACTIVE }
const found: GetUserResponse__Output = await db.users.getUser({ id: 'x' }, { deadline: 100, metadata: { a: 'b' } })
const etag: string | undefined = found.user?.etag
await db.users.createUser({ user })
for await (const page of pages(db.users.listUsers, { usernamePrefix: 'a' })) for (const { id } of page.users) id.trim()
const watched: Answers<WatchUsersResponse__Output> = db.users.watchUsers({})
for await (const change of follow(db.users.watchUsers, {})) change.resumeToken.trim()
const talk: Conversation<ConsumeMessagesRequest, ConsumeMessagesResponse__Output> = db.messages.consumeMessages()
try { watched.cancel() } catch (error) { if (error instanceof Refusal) error.reason.trim() }
console.log(etag, talk)
"""
WRONG = """
import { connect } from 'kronos-db-client'
const db = connect('localhost:1')
await db.users.getUser({ nickname: 'x' })
const id: number = (await db.users.getUser({ id: 'x' })).user!.id
db.users.eraseEverybody({})
await db.users.createUser({ user: { state: 'USER_STATE_HAPPY' } })
"""


def test_it_is_typed(node_place: NodePlace) -> None:
    found = [line.partition(",")[0] for line in node_place.check({"right.ts": TYPED, "wrong.ts": WRONG})]
    assert found == [f"wrong.ts({line}" for line in (4, 5, 6, 7)]


ALONE = """
import { connect, pages, Refusal } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const request = { user: { username: 'node-1', email: 'node-1@example.org' } }
const { user: created } = await db.users.createUser(request)
await db.users.createUser({ user: { username: 'node-2' } })
const { user: found } = await db.users.getUser({ id: created.id })
const listed = []
for await (const page of pages(db.users.listUsers, { usernamePrefix: 'node-', pageSize: 1 })) {
  listed.push(page.users.map(({ username }) => username))
}
const refusal = await db.users.createUser(request).catch((error) => error)
const { code, reason, violations, requestId } = refusal
const domains = await Promise.all([
  db.tokens.listSessions({}), db.logs.listRetention({}), db.routes.listRoutes({}),
  db.messages.listQueues({}), db.cache.listNamespaces({}), db.admin.getStatus({}),
].map((call) => call.then(() => 'OK', (error) => error.reason)))
console.log(JSON.stringify({
  same: JSON.stringify(found) === JSON.stringify(created), listed, refusal: refusal instanceof Refusal, code, reason,
  field: violations[0].field, requestId: Boolean(requestId), domains,
}))
db.close()
"""


def test_it_calls_a_server(serving: Serving, node_place: NodePlace) -> None:
    settings = {"KRONOS_ADDRESS": serving.server.grpc_address, "KRONOS_TOKEN": serving.tokens["operator"]}
    said = json.loads(node_place.run(ALONE, **settings))
    assert said.pop("domains") == ["BAD_REQUEST", *["OK"] * 5]
    assert said == {
        "same": True,
        "listed": [["node-1"], ["node-2"]],
        "refusal": True,
        "code": "ALREADY_EXISTS",
        "reason": "EMAIL_TAKEN",
        "field": "user.email",
        "requestId": True,
    }


CHANNEL = """
import { renameSync, writeFileSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { connect, follow } from 'kronos-db-client'

const address = process.argv[2]
const said = {}
writeFileSync('token', 'first\\n')
const db = connect(address, { tokenFile: 'token', deadline: 7_000 })
const request = { user: { username: 'ann' } }
await db.users.createUser(request, { deadline: 30_000 })
await db.users.createUser(request)
said.untouched = !('requestId' in request)
await db.users.createUser({ ...request, requestId: 'mine' }, { metadata: { 'x-request-id': 'r1' } })
const { code, reason, message, metadata, retryAfter } = await db.users.getUser({ id: 'x' }).catch((error) => error)
said.refusal = { code, reason, message, metadata, retryAfter }
said.told = []
try {
  for await (const { resumeToken } of follow(db.users.watchUsers, { resumeToken: 't0' })) said.told.push(resumeToken)
} catch (error) {
  said.lost = error.reason
}
const stop = new AbortController()
const waiting = db.users.getUser({ id: 'slow' }, { signal: stop.signal }).catch((error) => error.code)
stop.abort()
said.aborted = await waiting
writeFileSync('new', 'second')
renameSync('new', 'token')
await pause(1100)
await db.users.getUser({ id: 'last' })
db.close()
console.log(JSON.stringify(said))
"""


def test_what_it_adds_to_calls(node_place: NodePlace) -> None:
    server = Scripted()
    first, second = (pb.WatchUsersResponse(resume_token=name) for name in ("t1", "t2"))
    lost = AnsweredError(code_pb2.OUT_OF_RANGE, "POSITION_LOST")
    overloaded = AnsweredError(code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", retry_seconds=3)
    server.script += [unavailable, unavailable, *[lambda: None] * 3, lambda: overloaded]
    server.script += [lambda: [first, unavailable()], lambda: [second, unavailable()], lambda: [lost]]
    try:
        said = json.loads(node_place.run(CHANNEL, server.start()))
    finally:
        server.stop()
    assert said == {
        "untouched": True,
        "refusal": {
            "code": "RESOURCE_EXHAUSTED",
            "reason": "OVERLOADED",
            "message": "OVERLOADED.",
            "metadata": {"key": "value"},
            "retryAfter": 3000,
        },
        "told": ["t1", "t2"],
        "lost": "POSITION_LOST",
        "aborted": "CANCELLED",
    }
    calls = server.seen
    # Three attempts of one write, another one, and one with an id of its own.
    ids = [call.request.request_id for call in calls[:5]]
    assert len(set(ids[:3])) == 1
    assert (len(set(ids)), ids[4]) == (3, "mine")
    assert calls[4].headers["x-request-id"] == "r1"
    assert 9 < calls[0].left < 40
    assert 0 < calls[3].left < 9
    streams = [call for call in calls if call.method == "WatchUsers"]
    assert [call.request.resume_token for call in streams] == ["t0", "t1", "t2"]
    assert all(call.left > 3600 for call in streams)
    assert [calls[0].headers["authorization"], calls[-1].headers["authorization"]] == ["Bearer first", "Bearer second"]


SECURED = """
import { connect } from 'kronos-db-client'
const [address, caFile, certificateFile, keyFile] = process.argv.slice(2)
const call = async (tls) => {
  const db = connect(address, { tls, token: 'with TLS too' })
  const asked = db.users.getUser({ id: 'x' }, { deadline: tls.keyFile ? 30_000 : 500 })
  const code = await asked.then(() => 'OK', (error) => error.code)
  db.close()
  return code
}
console.log(JSON.stringify([await call({ caFile, certificateFile, keyFile }), await call({ caFile })]))
"""


@pytest.fixture
def mutual(tmp_path: Path) -> Iterator[tuple[Scripted, list[str]]]:
    authority = Authority()
    pair, own = authority.server(), authority.client("spiffe://kronos/tests")
    for name, content in {"ca": authority.certificate, "cert": own.certificate, "key": own.key}.items():
        (tmp_path / name).write_bytes(content)
    server = Scripted()
    address = server.start(grpc.ssl_server_credentials([(pair.key, pair.certificate)], authority.certificate, True))
    yield server, [address, *(str(tmp_path / name) for name in ("ca", "cert", "key"))]
    server.stop()


def test_both_sides_show_certificates(mutual: tuple[Scripted, list[str]], node_place: NodePlace) -> None:
    server, words = mutual
    ours, without = json.loads(node_place.run(SECURED, *words))
    assert ours == "OK"
    assert without in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    headers: list[Any] = [call.headers["authorization"] for call in server.seen]
    assert headers == ["Bearer with TLS too"]


# All in one process, as in Python.
ALL = """
for (const domain of process.argv.slice(2)) {
  console.log('==', domain)
  await import(`./${domain}.mjs`)
}
"""


def test_the_program_of_the_page_runs(serving: Serving, node_place: NodePlace, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(serving.tokens["operator"])
    said = node_place.run(block_of_the_page("js", serving.server.grpc_address, token))
    assert "ann" in said


@pytest.fixture(scope="module")
def stories(serving: Serving, node_place: NodePlace) -> dict[str, str]:
    """What each example prints."""
    for domain in STORIES:
        shutil.copy(ROOT / "examples" / "node" / f"{domain}.mjs", node_place.folder)
    settings = {"KRONOS_ADDRESS": serving.server.grpc_address, "KRONOS_TOKEN": serving.tokens["operator"]}
    return parted(node_place.run(ALL, *STORIES, **settings))


@pytest.mark.parametrize("domain", STORIES)
def test_the_example_tells_its_story(stories: dict[str, str], domain: str) -> None:
    assert re.fullmatch(STORIES[domain], stories[domain]), stories[domain]


def test_the_examples_name_the_package_that_is_built() -> None:
    wanted = json.loads((ROOT / "examples" / "node" / "package.json").read_text())["dependencies"]
    assert wanted == {"kronos-db-client": f"file:../../dist/kronos-db-client-{__version__}.tgz"}


def test_there_is_an_example_for_each_domain_in_each_language() -> None:
    for folder, ending in (("python", "py"), ("node", "mjs")):
        assert {path.stem for path in (ROOT / "examples" / folder).glob(f"*.{ending}")} == set(STORIES) == set(DOMAINS)
