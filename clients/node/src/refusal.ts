// Reads what the server says with an error: reason, fields at fault, and how long to wait.
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { status } from '@grpc/grpc-js'
import type * as grpc from '@grpc/grpc-js'
import protobuf from 'protobufjs'

const PROTOS = fileURLToPath(new URL('../protos', import.meta.url))

/** A field at fault, by its path in the request, and what is wrong with it. */
export interface Violation {
  field: string
  description: string
}

/** A call that failed. Programs go by `code` and `reason`; docs/errors.md of the server lists them all. */
export class Refusal extends Error {
  /** The name of the status, for example NOT_FOUND. */
  readonly code: keyof typeof status
  readonly reason: string = ''
  readonly metadata: Record<string, string> = {}
  readonly violations: Violation[] = []
  /** Milliseconds after which the call may be repeated, if the server says so. */
  readonly retryAfter: number | undefined
  /** Under which the server's log has the call. */
  readonly requestId: string = ''

  private constructor(error: grpc.ServiceError) {
    super(error.details || error.message, { cause: error })
    this.name = 'Refusal'
    this.code = status[error.code] as keyof typeof status
    for (const [type, detail] of detailsOf(error)) {
      if (type === 'ErrorInfo') [this.reason, this.metadata] = [detail.reason ?? '', detail.metadata ?? {}]
      if (type === 'BadRequest') this.violations = detail.fieldViolations ?? []
      if (type === 'RetryInfo') this.retryAfter = milliseconds(detail.retryDelay)
      if (type === 'RequestInfo') this.requestId = detail.requestId ?? ''
    }
  }

  /** Returns what an error of @grpc/grpc-js says. */
  static of(error: grpc.ServiceError): Refusal {
    return error instanceof Refusal ? error : new Refusal(error)
  }
}

interface Detail {
  reason?: string
  metadata?: Record<string, string>
  fieldViolations?: Violation[]
  retryDelay?: { seconds?: string | number, nanos?: number }
  requestId?: string
}

interface Packed {
  type_url: string
  value: Uint8Array
}

let known: protobuf.Root | undefined

function rpc(): protobuf.Root {
  if (known === undefined) {
    known = new protobuf.Root()
    known.resolvePath = (_origin, target) => path.join(PROTOS, target)
    known.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto'])
  }
  return known
}

function detailsOf(error: grpc.ServiceError): [string, Detail][] {
  const [trailer] = error.metadata?.get('grpc-status-details-bin') ?? []
  if (!(trailer instanceof Uint8Array)) return []
  const { details } = rpc().lookupType('google.rpc.Status').decode(trailer) as unknown as { details: Packed[] }
  return details.flatMap(({ type_url, value }): [string, Detail][] => {
    const name = type_url.split('/').pop() ?? ''
    const type = rpc().lookup(name)
    return type instanceof protobuf.Type
      ? [[name.replace('google.rpc.', ''), type.toObject(type.decode(value), { longs: Number }) as Detail]]
      : []
  })
}

function milliseconds(delay: Detail['retryDelay']): number {
  return Number(delay?.seconds ?? 0) * 1000 + (delay?.nanos ?? 0) / 1e6
}
