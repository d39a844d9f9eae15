// Messages: a queue with dead letters, messages that are stored once, and a consumer that acknowledges or rejects.
import { randomUUID } from 'node:crypto'
import { connect } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const name = `mail-${randomUUID().slice(0, 8)}`
await db.messages.createQueue({ queue: { name } })

for (let time = 0; time < 2; time++) {
  const messages = ['good', 'bad'].map((text) => ({ payload: Buffer.from(text), deduplicationKey: text }))
  const { results } = await db.messages.enqueueMessages({ queue: name, messages })
  console.log('enqueued', results.map(({ duplicate }) => duplicate))
}

// Credit for the next message at first, and with each receipt.
const credit = { creditMessages: 1, creditBytes: 1 << 20 }
const consumer = db.messages.consumeMessages({ deadline: 60_000 })
consumer.send({ queue: name, ...credit })
let known = 0
for await (const { messages, outcomes } of consumer) {
  for (const { message, leaseToken } of messages) {
    const receipt = { messageId: message.id, leaseToken }
    console.log('received', message.payload.toString())
    if (message.payload.toString() === 'bad') {
      consumer.send({ nacks: [{ ...receipt, reason: 'cannot be read', deadLetter: true }], ...credit })
    } else {
      consumer.send({ acks: [receipt], ...credit })
    }
  }
  known += outcomes.length
  // Only now are the receipts known to count.
  if (known === 2) consumer.end()
}

const { deadLetters } = await db.messages.listDeadLetters({ queue: name })
for (const { message, cause } of deadLetters) {
  console.log('dead    ', message.payload.toString(), cause, message.failures[0].reason)
}
const stats = await db.messages.getQueueStats({ queue: name })
console.log('left    ', Number(stats.ready) + Number(stats.leased), 'ready,', Number(stats.dead), 'dead')
db.close()
