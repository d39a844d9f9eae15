// Reads what comes in parts: lists page by page, streams of changes beyond the end of the process that tells them.
import { setTimeout as pause } from 'node:timers/promises'
import type { Answers } from './calls.js'
import { Refusal } from './refusal.js'

// What a stream is begun again after: its process ends, or its reader was away for too long.
const AGAIN = ['UNAVAILABLE', 'WATCH_TOO_SLOW']
const FIRST_PAUSE = 100 // milliseconds
const LONGEST_PAUSE = 5_000

/** Calls a listing method until it has no further page, and gives each answer. */
export async function* pages<Request extends { pageToken?: string }, Answer extends { nextPageToken: string }>(
  list: (request: Request) => Promise<Answer>, request: Request,
): AsyncGenerator<Answer, void, void> {
  let pageToken = request.pageToken ?? ''
  do {
    const answer = await list({ ...request, pageToken })
    yield answer
    pageToken = answer.nextPageToken
  } while (pageToken)
}

/**
 * Watches, and watches again with the last resumeToken when the stream ends before its reader does: nothing is missed,
 * and nothing told twice. Throws what does not pass by itself, as the loss of a place that is too old.
 */
export async function* follow<Request extends { resumeToken?: string }, Answer extends { resumeToken: string }>(
  watch: (request: Request) => Answers<Answer>, request: Request,
): AsyncGenerator<Answer, void, void> {
  let resumeToken = request.resumeToken ?? ''
  let wait = FIRST_PAUSE
  for (;;) {
    try {
      for await (const answer of watch({ ...request, resumeToken })) {
        wait = FIRST_PAUSE
        if (answer.resumeToken) resumeToken = answer.resumeToken
        yield answer
      }
      return
    } catch (error) {
      if (!(error instanceof Refusal) || !(AGAIN.includes(error.code) || AGAIN.includes(error.reason))) throw error
      await pause(Math.max(error.retryAfter ?? 0, wait * (0.5 + Math.random())))
      wait = Math.min(wait * 2, LONGEST_PAUSE)
    }
  }
}
