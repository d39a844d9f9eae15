// The three kinds of calls, with what each carries: token, deadline, and the request id of a write.
import { randomUUID } from 'node:crypto'
import { Metadata } from '@grpc/grpc-js'
import type * as grpc from '@grpc/grpc-js'
import { Refusal } from './refusal.js'

export interface CallOptions {
  /** Milliseconds from now. */
  deadline?: number
  /** Headers that go along, for example `traceparent`. */
  metadata?: Record<string, string>
  /** Cancels the call. */
  signal?: AbortSignal
}

/** Who calls: the token, if any, and the milliseconds that unary calls get. */
export interface Caller {
  token: () => string | undefined
  deadline: number
}

/** What a stream answers: to be iterated over, once. It throws a Refusal when the stream fails. */
export interface Answers<Answer> extends AsyncIterable<Answer> {
  /** Ends the stream. To leave the loop does too. */
  cancel(): void
}

/** A stream on which both sides speak. */
export interface Conversation<Request, Answer> extends Answers<Answer> {
  send(request: Request): void
  /** Says that nothing more comes from this side. */
  end(): void
}

type Stub = Record<string, (...words: unknown[]) => unknown>
type Callback = (error: grpc.ServiceError | null, answer: unknown) => void

export function unary(
  stub: grpc.Client, name: string, writes: boolean, caller: Caller, request: object, call: CallOptions = {},
): Promise<unknown> {
  const sent = writes && !('requestId' in request && request.requestId) ? { ...request, requestId: randomUUID() } : request
  return new Promise((resolve, reject) => {
    const done: Callback = (error, answer) => (error ? reject(Refusal.of(error)) : resolve(answer))
    const options = { deadline: Date.now() + (call.deadline ?? caller.deadline) }
    const started = methodOf(stub, name)(sent, metadataOf(caller, call), options, done) as grpc.ClientUnaryCall
    cancelled(started, call)
  })
}

export function answers(
  stub: grpc.Client, name: string, caller: Caller, request: object, call: CallOptions = {},
): Answers<unknown> {
  const started = methodOf(stub, name)(request, metadataOf(caller, call), deadlineOf(call))
  return reading(started as grpc.ClientReadableStream<unknown>, call)
}

export function conversation(
  stub: grpc.Client, name: string, caller: Caller, call: CallOptions = {},
): Conversation<unknown, unknown> {
  const started = methodOf(stub, name)(metadataOf(caller, call), deadlineOf(call)) as grpc.ClientDuplexStream<unknown, unknown>
  return {
    ...reading(started, call),
    send: (request: unknown) => void started.write(request),
    end: () => void started.end(),
  }
}

function reading(stream: grpc.ClientReadableStream<unknown>, call: CallOptions): Answers<unknown> {
  cancelled(stream, call)
  // A stream that fails while nobody iterates over it must not end the process.
  stream.on('error', () => {})
  return {
    cancel: () => stream.cancel(),
    async* [Symbol.asyncIterator]() {
      try {
        yield* stream
      } catch (error) {
        throw Refusal.of(error as grpc.ServiceError)
      } finally {
        stream.cancel()
      }
    },
  }
}

function methodOf(stub: grpc.Client, name: string): (...words: unknown[]) => unknown {
  const method = (stub as unknown as Stub)[name]
  if (method === undefined) throw new Error(`the contract has no method ${name}`)
  return method.bind(stub)
}

function metadataOf(caller: Caller, call: CallOptions): Metadata {
  // grpc-js takes waitForReady from here alone.
  const metadata = new Metadata({ waitForReady: true })
  const token = caller.token()
  if (token !== undefined) metadata.set('authorization', `Bearer ${token}`)
  for (const [name, value] of Object.entries(call.metadata ?? {})) metadata.set(name, value)
  return metadata
}

function deadlineOf(call: CallOptions): grpc.CallOptions {
  return call.deadline === undefined ? {} : { deadline: Date.now() + call.deadline }
}

function cancelled(started: { cancel(): void }, { signal }: CallOptions): void {
  if (signal?.aborted) started.cancel()
  signal?.addEventListener('abort', () => started.cancel(), { once: true })
}
