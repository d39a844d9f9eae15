// A caller as the platform's Node.js services are: clients from `.proto` files, error details decoded.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import grpc from '@grpc/grpc-js'
import { loadFileDescriptorSetFromBuffer, loadSync } from '@grpc/proto-loader'
import protobuf from 'protobufjs'

const { KRONOS_ADDRESS: address, KRONOS_PROTOS: protos, KRONOS_DESCRIPTORS: descriptors } = process.env
const options = { longs: String, enums: String, defaults: true, oneofs: true }

const root = new protobuf.Root()
root.resolvePath = (_origin, target) => path.resolve(protos, target)
root.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'])

// The service from sources, or from the one file that holds the whole contract.
export const fromSources = () => loadSync('kronos/users/v1/users.proto', { includeDirs: [protos], ...options })
export const fromDescriptors = () => loadFileDescriptorSetFromBuffer(readFileSync(descriptors), options)

export class Refusal extends Error {
  constructor(error) {
    super(error.details)
    this.code = grpc.status[error.code]
    this.details = Object.fromEntries(detailsOf(error))
  }
}

function detailsOf(error) {
  const [trailer] = error.metadata?.get('grpc-status-details-bin') ?? []
  if (!trailer) return []
  return root.lookupType('google.rpc.Status').decode(trailer).details.map(({ type_url, value }) => {
    const type = type_url.split('/').pop()
    return [type.replace('google.rpc.', ''), root.lookupType(type).decode(value).toJSON()]
  })
}

// Every method of UsersService as an async function; `deadline` is in milliseconds from now.
export function connect(token, definition = fromSources()) {
  const { UsersService } = grpc.loadPackageDefinition(definition).kronos.users.v1
  const client = new UsersService(address, grpc.credentials.createInsecure())
  const metadata = new grpc.Metadata()
  if (token) metadata.set('authorization', `Bearer ${token}`)
  const call = (method, request, { deadline = 10_000 } = {}) => new Promise((resolve, reject) => client[method](
    request, metadata, { deadline: Date.now() + deadline },
    (error, response) => (error ? reject(new Refusal(error)) : resolve(response)),
  ))
  return { call, close: () => client.close() }
}
