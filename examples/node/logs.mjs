// Logs: a batch of which a part is refused, records as they come, a trace page by page, and counts.
import { randomUUID } from 'node:crypto'
import { connect, follow, pages } from 'kronos-db-client'

const [INFO, ERROR] = [9, 17] // as OpenTelemetry numbers severities
const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const service = `shop-${randomUUID().slice(0, 8)}`
const traceId = randomUUID().replaceAll('-', '')

const record = (severity, text, trace = traceId) => ({
  time: { seconds: Math.floor(Date.now() / 1000), nanos: (Date.now() % 1000) * 1e6 },
  severity, body: { stringValue: text }, traceId: trace, attributes: [{ key: 'order.id', value: { intValue: 7 } }],
})

const tail = follow(db.logs.tailLogs, { filter: { service, minimumSeverity: ERROR } })
await tail.next()
const records = [0, 1, 2, 3, 4].map((number) => record(INFO, `step ${number}`))
records.push(record(ERROR, 'card was declined'), record(INFO, 'lost', 'not a trace id'))
const { stored, refusals } = await db.logs.writeLogs({ origin: { service }, records })
console.log('stored  ', stored)
for (const { index, reason, field } of refusals) console.log('refused ', index, reason, field)

for await (const { records: [told] } of tail) {
  if (!told) continue
  console.log('told    ', told.body.stringValue)
  break
}

const sizes = []
const query = { filter: { traceId }, order: 'LOG_ORDER_TIME_ASC', pageSize: 4 }
for await (const page of pages(db.logs.queryLogs, query)) sizes.push(page.records.length)
console.log('read    ', sizes)

const minute = Math.floor(Date.now() / 60_000)
const { total, groups } = await db.logs.aggregateLogs({
  timeFrom: { seconds: (minute - 60) * 60 }, timeUntil: { seconds: (minute + 2) * 60 },
  filter: { service }, grouping: 'LOG_GROUPING_SEVERITY',
})
console.log('counted ', Number(total), groups.map(({ count }) => Number(count)).sort())
db.close()
