// Makes clients of a server: its retry policy, keepalive, TLS, and what every call carries.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { credentials, loadPackageDefinition, type ChannelCredentials, type ServiceClientConstructor } from '@grpc/grpc-js'
import type * as grpc from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import { answers, conversation, unary, type CallOptions, type Caller } from './calls.js'
import { SERVICES, type Services } from './generated/services.js'
import { fileToken } from './token.js'

const PROTOS = fileURLToPath(new URL('../protos', import.meta.url))
const DEADLINE = 10_000 // milliseconds
const MIB = 1024 * 1024

/** PEM files: the authorities of the server's certificate, by default those of Node.js, and an own certificate (mTLS). */
export interface Tls {
  caFile?: string
  certificateFile?: string
  keyFile?: string
}

export interface ConnectOptions {
  /** Bearer token of every call. */
  token?: string
  /** File with that token, read again when it changes. */
  tokenFile?: string
  /** Without it the connection is plaintext. Files are read once: connect anew when they are renewed. */
  tls?: Tls
  /** Milliseconds that a unary call gets which brings none of its own; streams get none. Default 10,000. */
  deadline?: number
  /** Channel options of @grpc/grpc-js; they go before those set here. */
  channelOptions?: grpc.ChannelOptions
}

export type Client = Services & {
  /** Lets go of all connections. */
  close(): void
}

type Domain = keyof Services
type Kind = 'unary' | 'answers' | 'both'

/**
 * Returns the services of the server at HOST:PORT, to be shared by all of a process. A unary write without a requestId
 * gets one, so that gRPC may repeat it.
 */
export function connect(address: string, options: ConnectOptions = {}): Client {
  const opened: grpc.Client[] = []
  const token = options.tokenFile === undefined ? () => options.token : fileToken(options.tokenFile)
  const caller: Caller = { token, deadline: options.deadline ?? DEADLINE }
  const channel = { ...channelOptions(), ...options.channelOptions }
  const secrets = options.tls ? secured(options.tls) : credentials.createInsecure()
  const client: Record<string, unknown> = { close: () => opened.forEach((each) => each.close()) }
  for (const domain of Object.keys(SERVICES) as Domain[]) {
    let service: unknown
    Object.defineProperty(client, domain, {
      enumerable: true,
      get: () => {
        if (service === undefined) {
          const stub = new (stubOf(domain))(address, secrets, channel)
          opened.push(stub)
          service = methodsOf(domain, stub, caller)
        }
        return service
      },
    })
  }
  return client as unknown as Client
}

function methodsOf(domain: Domain, stub: grpc.Client, caller: Caller): Record<string, unknown> {
  const wrapped: Record<string, unknown> = {}
  const methods: Record<string, { kind: Kind, writes: boolean }> = SERVICES[domain].methods
  for (const [name, { kind, writes }] of Object.entries(methods)) {
    if (kind === 'unary') wrapped[name] = (request: object, call?: CallOptions) => unary(stub, name, writes, caller, request, call)
    if (kind === 'answers') wrapped[name] = (request: object, call?: CallOptions) => answers(stub, name, caller, request, call)
    if (kind === 'both') wrapped[name] = (call?: CallOptions) => conversation(stub, name, caller, call)
  }
  return wrapped
}

const stubs = new Map<Domain, ServiceClientConstructor>()

function stubOf(domain: Domain): ServiceClientConstructor {
  const known = stubs.get(domain)
  if (known) return known
  const loaded = loadSync(`kronos/${domain}/v1/${domain}.proto`, {
    includeDirs: [PROTOS], longs: String, enums: String, defaults: true, oneofs: true,
  })
  let found: unknown = loadPackageDefinition(loaded)
  for (const part of SERVICES[domain].service.split('.')) found = (found as Record<string, unknown>)[part]
  stubs.set(domain, found as ServiceClientConstructor)
  return found as ServiceClientConstructor
}

function channelOptions(): grpc.ChannelOptions {
  return {
    'grpc.service_config': readFileSync(path.join(PROTOS, 'kronos/service_config.json'), 'utf8'),
    // A new connection may be given to a process in its last moment: the next attempt is not to come a second later.
    'grpc.initial_reconnect_backoff_ms': 100,
    // Larger than the server takes by default: what is larger than this buffer is not kept to be repeated.
    'grpc.per_rpc_retry_buffer_size': 5 * MIB,
    'grpc.max_receive_message_length': 64 * MIB,
    // Finds out about a server that is gone without a word, on streams that are quiet for hours.
    'grpc.keepalive_time_ms': 30_000,
    'grpc.keepalive_timeout_ms': 10_000,
  }
}

function secured({ caFile, certificateFile, keyFile }: Tls): ChannelCredentials {
  const read = (file: string | undefined) => (file === undefined ? null : readFileSync(file))
  return credentials.createSsl(read(caFile), read(keyFile), read(certificateFile))
}
