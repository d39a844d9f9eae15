// Users from Node.js: create, get, list, read an error's details, and have gRPC repeat what is lost on the way.
// Usage: node users.mjs PROTOS, where PROTOS is the directory that `make protos` has filled.
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import grpc from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import protobuf from 'protobufjs'

const protos = path.resolve(process.argv[2] ?? 'protos')
const address = process.env.KRONOS_ADDRESS ?? '127.0.0.1:50051'
const deadline = 5_000 // milliseconds
// gRPC repeats by itself what the service config names, until the deadline. That is safe for writes because they carry
// a requestId: a repeat gets the first answer and changes nothing.
const options = {
  'grpc.service_config': readFileSync(path.join(protos, 'kronos/service_config.json'), 'utf8'),
  'grpc.initial_reconnect_backoff_ms': 100,
}

const loaded = loadSync('kronos/users/v1/users.proto', {
  includeDirs: [protos], longs: String, enums: String, defaults: true, oneofs: true,
})
const { UsersService } = grpc.loadPackageDefinition(loaded).kronos.users.v1
// grpc-js takes waitForReady from here alone.
const credential = new grpc.Metadata({ waitForReady: true })
credential.set('authorization', `Bearer ${process.env.KRONOS_TOKEN}`)

const root = new protobuf.Root()
root.resolvePath = (_origin, target) => path.resolve(protos, target)
root.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'])

// Calls with credential and deadline.
function call(client, method, request) {
  return new Promise((resolve, reject) => client[method](
    request, credential, { deadline: Date.now() + deadline },
    (error, response) => (error ? reject(error) : resolve(response)),
  ))
}

// The details of a refused call: [{ '@type': 'google.rpc.ErrorInfo', reason, … }, …].
function details(error) {
  const [trailer] = error.metadata?.get('grpc-status-details-bin') ?? []
  if (!trailer) return []
  return root.lookupType('google.rpc.Status').decode(trailer).details.map(({ type_url, value }) => {
    const type = type_url.split('/').pop()
    return { '@type': type, ...root.lookupType(type).decode(value).toJSON() }
  })
}

function explain(error) {
  const words = [grpc.status[error.code]]
  for (const detail of details(error)) {
    if (detail.reason) words.push(detail.reason)
    for (const { field, description } of detail.fieldViolations ?? []) words.push(`${field}: ${description}`)
  }
  return words.join(' | ')
}

const client = new UsersService(address, grpc.credentials.createInsecure(), options)
const name = `ann-${randomUUID().slice(0, 8)}`

const request = { user: { username: name, email: `${name}@example.org` }, requestId: randomUUID() }
const { user: created } = await call(client, 'createUser', request)
console.log('created ', created.id, created.username)

const { user: repeated } = await call(client, 'createUser', request)
console.log('repeated', repeated.id, repeated.id === created.id ? 'the same user' : 'ANOTHER USER')

const { user: found } = await call(client, 'getUser', { email: `${name.toUpperCase()}@example.org` })
console.log('found   ', found.id, found.email)

let count = 0
let pageToken = ''
do {
  const page = await call(client, 'listUsers', { usernamePrefix: 'ann-', pageSize: 100, pageToken })
  count += page.users.length
  pageToken = page.nextPageToken
} while (pageToken)
console.log('listed  ', count)

for (const user of [{ username: name }, { username: '-', email: 'nowhere' }]) {
  await call(client, 'createUser', { user, requestId: randomUUID() }).catch((error) => {
    console.log('refused ', explain(error))
  })
}
client.close()
