// UsersService from Node.js. Run by tests/e2e/test_node.py, which starts the server and sets the environment.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, test } from 'node:test'
import { connect, fromDescriptors } from './kronos.mjs'

const { KRONOS_TOKEN: token, KRONOS_READER_TOKEN: readerToken } = process.env
const users = connect(token)
after(() => users.close())

const prefix = `node-${randomUUID().slice(0, 8)}`
const refused = (promise) => promise.then(() => assert.fail('it was not refused'), (error) => error)

test('a user comes back as it was given', async () => {
  const attributes = { fields: { 'größe': { numberValue: 1.75 }, tags: { listValue: { values: [{ stringValue: 'ü' }] } } } }
  const given = { username: `${prefix}-Käthe`, email: `${prefix}@Example.org`, displayName: 'Käthe 🦉', attributes }
  const { user } = await users.call('createUser', { user: given, requestId: randomUUID() })
  assert.equal(user.state, 'USER_STATE_ACTIVE')
  assert.match(user.id, /^[0-9a-f-]{36}$/)
  assert.ok(Math.abs(Number(user.createTime.seconds) - Date.now() / 1000) < 60)
  assert.equal(user.deleteTime, null)
  for (const key of [{ id: user.id }, { username: given.username.toUpperCase() }, { email: given.email.toUpperCase() }]) {
    const { user: found } = await users.call('getUser', key)
    assert.deepEqual(found, user)
  }
  assert.equal(user.email, given.email)
  assert.equal(user.displayName, given.displayName)
  assert.equal(user.attributes.fields['größe'].numberValue, 1.75)
  assert.equal(user.attributes.fields.tags.listValue.values[0].stringValue, 'ü')
})

test('an update changes what the mask names', async () => {
  const { user } = await users.call('createUser', { user: { username: `${prefix}-update`, displayName: 'before' } })
  const change = { id: user.id, displayName: 'after', etag: user.etag }
  const { user: changed } = await users.call('updateUser', { user: change, updateMask: { paths: ['display_name'] } })
  assert.equal(changed.displayName, 'after')
  assert.equal(changed.username, user.username)
  const error = await refused(users.call('updateUser', { user: change, updateMask: { paths: ['display_name'] } }))
  assert.equal(error.code, 'ABORTED')
  assert.equal(error.details.ErrorInfo.reason, 'ETAG_MISMATCH')
})

test('a batch is created, and listed page by page', async () => {
  const batch = Array.from({ length: 250 }, (_, number) => ({ username: `${prefix}-batch-${number}` }))
  const { users: created } = await users.call('batchCreateUsers', { users: batch, requestId: randomUUID() })
  assert.deepEqual(created.map((user) => user.username), batch.map((user) => user.username))
  const listed = []
  let pages = 0
  let pageToken = ''
  do {
    const page = await users.call('listUsers', { usernamePrefix: `${prefix}-batch-`, pageSize: 40, pageToken })
    assert.ok(page.users.length <= 40)
    listed.push(...page.users.map((user) => user.id))
    pageToken = page.nextPageToken
    pages += 1
  } while (pageToken)
  assert.equal(pages, 7)
  assert.deepEqual(listed, created.map((user) => user.id))
  const ids = [created[1].id, randomUUID(), created[0].id]
  const found = await users.call('batchGetUsers', { ids })
  assert.deepEqual(found.users.map((user) => user.id), [ids[0], ids[2]])
  assert.deepEqual(found.missingIds, [ids[1]])
})

test('a batch with one fault creates nothing and names the fault', async () => {
  const batch = [{ username: `${prefix}-whole-1` }, { username: `${prefix}-whole-2`, email: 'nowhere' }]
  const error = await refused(users.call('batchCreateUsers', { users: batch }))
  assert.equal(error.code, 'INVALID_ARGUMENT')
  assert.deepEqual(error.details.BadRequest.fieldViolations.map((fault) => fault.field), ['users[1].email'])
  const { users: listed } = await users.call('listUsers', { usernamePrefix: `${prefix}-whole-` })
  assert.deepEqual(listed, [])
})

test('a repeat with the same requestId gets the first answer', async () => {
  const request = { user: { username: `${prefix}-retry` }, requestId: randomUUID() }
  const answers = await Promise.all([1, 2, 3, 4].map(() => users.call('createUser', request)))
  for (const answer of answers) assert.deepEqual(answer, answers[0])
  const error = await refused(users.call('createUser', { ...request, user: { username: `${prefix}-other` } }))
  assert.equal(error.code, 'INVALID_ARGUMENT')
  assert.equal(error.details.ErrorInfo.reason, 'REQUEST_ID_REUSED')
})

test('errors carry details that a program can read', async () => {
  const user = { username: `${prefix}-twice`, email: `${prefix}-twice@example.org` }
  await users.call('createUser', { user })
  const taken = await refused(users.call('createUser', { user: { ...user, username: `${prefix}-another` } }))
  assert.equal(taken.code, 'ALREADY_EXISTS')
  assert.equal(taken.details.ErrorInfo.reason, 'EMAIL_TAKEN')
  assert.equal(taken.details.ErrorInfo.domain, 'db.kronos')
  assert.equal(taken.details.BadRequest.fieldViolations[0].field, 'user.email')
  assert.match(taken.details.RequestInfo.requestId, /^[0-9a-f-]{36}$/)
  const missing = await refused(users.call('getUser', { id: randomUUID() }))
  assert.equal(missing.code, 'NOT_FOUND')
  assert.equal(missing.details.ErrorInfo.reason, 'USER_NOT_FOUND')
  const keyless = await refused(users.call('getUser', {}))
  assert.equal(keyless.code, 'INVALID_ARGUMENT')
  assert.equal(keyless.details.BadRequest.fieldViolations[0].field, 'key')
})

test('without a right there is no answer', async () => {
  for (const wrong of [undefined, 'kdb_wrong', `${token}x`]) {
    const stranger = connect(wrong)
    const error = await refused(stranger.call('getUser', { username: prefix }))
    stranger.close()
    assert.equal(error.code, 'UNAUTHENTICATED')
    assert.equal(error.details.ErrorInfo.reason, 'CREDENTIAL_INVALID')
  }
  const reader = connect(readerToken)
  await reader.call('listUsers', { pageSize: 1 })
  const error = await refused(reader.call('createUser', { user: { username: `${prefix}-reader` } }))
  reader.close()
  assert.equal(error.code, 'PERMISSION_DENIED')
  assert.equal(error.details.ErrorInfo.reason, 'METHOD_NOT_ALLOWED')
})

test('a deadline is kept', async () => {
  for (const deadline of [-1, 0, 1]) {
    const batch = Array.from({ length: 1000 }, (_, number) => ({ username: `${prefix}-late-${deadline}-${number}` }))
    const error = await refused(users.call('batchCreateUsers', { users: batch }, { deadline }))
    assert.equal(error.code, 'DEADLINE_EXCEEDED')
  }
})

test('a password is checked', async () => {
  const { user } = await users.call('createUser', { user: { username: `${prefix}-password` } })
  await users.call('setPassword', { id: user.id, password: 'correct horse battery' })
  const verify = (password) => users.call('verifyPassword', { username: user.username, password })
  const accepted = await verify('correct horse battery')
  assert.deepEqual([accepted.outcome, accepted.userId], ['PASSWORD_OUTCOME_ACCEPTED', user.id])
  const rejected = await verify('wrong horse battery')
  assert.deepEqual([rejected.outcome, rejected.userId], ['PASSWORD_OUTCOME_REJECTED', ''])
})

test('one file with the whole contract does as well', async () => {
  const other = connect(token, fromDescriptors())
  const { user } = await other.call('createUser', { user: { username: `${prefix}-descriptors` } })
  const { user: found } = await other.call('getUser', { id: user.id })
  other.close()
  assert.deepEqual(found, user)
})
