// Users: a write that may be repeated, look-ups, pages, permissions, errors by reason, and changes as they happen.
import { randomUUID } from 'node:crypto'
import { connect, follow, pages } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const name = `ann-${randomUUID().slice(0, 8)}`

// With a requestId of its own a request may be sent again, also after a crash: it gets the first answer.
const request = { user: { username: name, email: `${name}@example.org` }, requestId: randomUUID() }
const { user: created } = await db.users.createUser(request)
console.log('created ', created.id, created.username)
const { user: repeated } = await db.users.createUser(request)
console.log('repeated', repeated.id, repeated.id === created.id ? 'the same user' : 'ANOTHER USER')

const { user: found } = await db.users.getUser({ email: `${name.toUpperCase()}@example.org` })
console.log('found   ', found.id, found.email)
let count = 0
for await (const page of pages(db.users.listUsers, { usernamePrefix: 'ann-', pageSize: 100 })) count += page.users.length
console.log('listed  ', count)

for (const user of [{ username: name }, { username: '-', email: 'nowhere' }]) {
  await db.users.createUser({ user }).catch(({ code, reason, violations }) => {
    console.log('refused ', code, reason, violations.map((each) => `${each.field}: ${each.description}`).join(' | '))
  })
}

// The first message comes at once and says from where on changes are told.
const changes = follow(db.users.watchUsers, { userIds: [created.id] })
await changes.next()
const { role } = await db.users.createRole({ role: { name, permissions: ['reports:read'] } })
await db.users.grantRole({ grant: { userId: created.id, roleId: role.id } })
for await (const { change } of changes) {
  if (!change) continue
  console.log('changed ', change.userId, change.event)
  break
}
const { allowed } = await db.users.checkPermission({ userId: created.id, permission: 'reports:read' })
console.log('allowed ', allowed)
db.close()
