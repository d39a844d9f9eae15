// Cache: entries with versions, a query by index, one filler for many readers, and invalidation as it happens.
import { randomUUID } from 'node:crypto'
import { connect, follow, pages } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const namespace = `shop-${randomUUID().slice(0, 8)}`
const entry = (key, price, more) => (
  { key, value: Buffer.from(JSON.stringify({ price })), tags: ['products'], ...more }
)

const price = { name: 'price', path: 'price', type: 'INDEX_TYPE_NUMBER' }
await db.cache.createNamespace({ namespace: { name: namespace, indexes: [price] } })

const put = await db.cache.putEntries({ namespace, entries: [entry('pen', 2), entry('ink', 9)] })
console.log('put     ', put.results.map(({ outcome }) => outcome))
const [{ version: expectedVersion }] = put.results
for (const amount of [3, 4]) {
  // Both writers have read the same version: the second one is told.
  const { results } = await db.cache.putEntries({ namespace, entries: [entry('pen', amount, { expectedVersion })] })
  console.log('changed ', results[0].outcome)
}

const keys = []
const cheap = { namespace, index: 'price', range: { until: { numberValue: 100 } }, pageSize: 1 }
for await (const { entries } of pages(db.cache.queryEntries, cheap)) keys.push(...entries.map(({ key }) => key))
console.log('by price', keys)

// Of all who miss an entry at once, one gets the lease and fills it.
const { results: [mine] } = await db.cache.getOrLease({ namespace, keys: ['nib'] })
const { results: [other] } = await db.cache.getOrLease({ namespace, keys: ['nib'] })
console.log('leased  ', mine.outcome, other.outcome)
const filled = await db.cache.fillLease({ namespace, fills: [{ lease: mine.lease, entry: entry('nib', 1) }] })
console.log('filled  ', filled.results[0].outcome)

const changes = follow(db.cache.watchInvalidations, { namespaces: [namespace] })
await changes.next()
await db.cache.invalidateTags({ namespace, tags: ['products'] })
for await (const { tags } of changes) {
  if (!tags) continue
  console.log('told    ', tags.tags)
  break
}
const { missingKeys } = await db.cache.getEntries({ namespace, keys: ['pen', 'nib'] })
console.log('gone    ', missingKeys)
await db.cache.deleteNamespace({ name: namespace })
db.close()
