// Calls kronos-db: `connect` gives its services as typed methods, with retry policy, deadline and credential.
export { connect, type Client, type ConnectOptions, type Tls } from './connect.js'
export type { Answers, CallOptions, Conversation } from './calls.js'
export { follow, pages } from './reading.js'
export { Refusal, type Violation } from './refusal.js'
