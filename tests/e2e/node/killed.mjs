// Callers with the shipped retry policy, while processes of the server are killed: each writes a user again and again,
// reads it back, and prints a line. Whatever fails, or happens twice, ends the program.
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import grpc from '@grpc/grpc-js'
import { fromSources } from './kronos.mjs'

const { KRONOS_ADDRESS: address, KRONOS_PROTOS: protos, KRONOS_TOKEN: token } = process.env
const { UsersService } = grpc.loadPackageDefinition(fromSources()).kronos.users.v1
const options = {
  'grpc.service_config': readFileSync(path.join(protos, 'kronos/service_config.json'), 'utf8'),
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.use_local_subchannel_pool': 1,
}

async function caller(number) {
  const client = new UsersService(address, grpc.credentials.createInsecure(), options)
  const metadata = new grpc.Metadata({ waitForReady: true })
  metadata.set('authorization', `Bearer ${token}`)
  const call = (method, request) => new Promise((resolve, reject) => client[method](
    request, metadata, { deadline: Date.now() + 20_000 },
    (error, response) => (error ? reject(error) : resolve(response)),
  ))
  const { user: { id } } = await call('createUser', { user: { username: `node-${number}` }, requestId: randomUUID() })
  for (let etag = 2; ; etag++) {
    const change = { user: { id, displayName: `${etag}` }, updateMask: { paths: ['display_name'] } }
    const { user } = await call('updateUser', { ...change, requestId: randomUUID() })
    if (user.etag !== String(etag)) throw new Error(`etag ${user.etag} and not ${etag}: a write happened twice`)
    const { user: found } = await call('getUser', { id })
    if (found.etag !== user.etag) throw new Error(`etag ${found.etag} was read, ${user.etag} was written`)
    console.log(number)
  }
}

await Promise.all([0, 1, 2, 3].map(caller))
