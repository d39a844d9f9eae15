// The bearer token of a caller, from a file that may be replaced while the process runs.
import { readFileSync, statSync } from 'node:fs'

const LOOK = 1000 // milliseconds between two looks at the file

/** Returns what gives the token in a file. While the file cannot be read the last token stays; at first it throws. */
export function fileToken(file: string): () => string {
  let state = stateOf(file)
  let token = readFileSync(file, 'utf8').trim()
  let looked = performance.now()
  return () => {
    if (performance.now() - looked < LOOK) return token
    looked = performance.now()
    try {
      const now = stateOf(file)
      if (now !== state) {
        const read = readFileSync(file, 'utf8').trim()
        if (read) [token, state] = [read, now]
      }
    } catch {
      // In the middle of its replacement.
    }
    return token
  }
}

function stateOf(file: string): string {
  const { mtimeMs, ino, size } = statSync(file)
  return `${mtimeMs} ${ino} ${size}`
}
