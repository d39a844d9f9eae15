// Routes: an endpoint and its quota, whether a request may pass, errors by reason, and the table as it changes.
import { randomUUID } from 'node:crypto'
import { connect, follow } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const name = `orders-${randomUUID().slice(0, 8)}`

const rate = { limit: 2, period: { seconds: 3600 } }
await db.routes.createQuota({ quota: { name, rate, keys: ['QUOTA_KEY_IP'] } })

// A stream begins with the whole table; from snapshotComplete on it tells changes.
const table = follow(db.routes.watchRoutes, {})
while (!(await table.next()).value.snapshotComplete);
const wanted = {
  name, methods: ['GET'], path: `/${name}/{id}`, quotas: [name], upstream: 'http://orders.internal',
  caller: 'CALLER_REQUIREMENT_ANYONE',
}
const { route: created } = await db.routes.createRoute({ route: wanted })
for await (const { change } of table) {
  if (change?.routeId !== created.id) continue
  console.log('told    ', change.event)
  break
}

const { route, parameters } = await db.routes.resolveRoute({ method: 'GET', path: `/${name}/7` })
console.log('resolved', route.upstream, parameters.id)

for (let number = 0; number < 3; number++) {
  const decision = await db.routes.authorizeRequest({ method: 'GET', path: `/${name}/7`, clientIp: '192.0.2.7' })
  console.log('asked   ', decision.allowed, decision.denial, decision.httpStatus)
}

await db.routes.createRoute({ route: wanted }).catch(({ code, reason }) => console.log('refused ', code, reason))
await db.routes.deleteRoute({ id: created.id, etag: created.etag })
db.close()
