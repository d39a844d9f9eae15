// Tokens: a refresh family, whether a token is active, rotation, what becomes of a stolen one, and revocations.
import { randomUUID } from 'node:crypto'
import { connect, follow } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })
const subject = `billing-${randomUUID().slice(0, 8)}`

const { issued, access } = await db.tokens.issueToken({
  token: {
    kind: 'TOKEN_KIND_REFRESH', subjectKind: 'SUBJECT_KIND_SERVICE', subject, scopes: ['invoices'],
    expireTime: { seconds: Math.floor(Date.now() / 1000) + 3600 },
  },
})
console.log('issued  ', issued.token.kind, 'and', access.token.kind)

const { introspection } = await db.tokens.introspectToken({ token: access.secret })
console.log('active  ', introspection.active, introspection.token.subject === subject)
const checked = await db.tokens.checkToken({
  token: access.secret, permission: 'invoices:pay', requiredScopes: ['refunds'],
})
console.log('checked ', checked.outcome)

const rotated = await db.tokens.rotateRefreshToken({ refreshToken: issued.secret })
console.log('rotated ', rotated.outcome)
await db.tokens.rotateRefreshToken({ refreshToken: rotated.refresh.secret })

// Whoever presents a token after its successor was used is not its owner: the whole family is revoked.
const revocations = follow(db.tokens.watchRevocations, {})
await revocations.next()
const stolen = await db.tokens.rotateRefreshToken({ refreshToken: issued.secret })
console.log('stolen  ', stolen.outcome)
for await (const { revocation } of revocations) {
  if (revocation?.familyId !== issued.token.familyId) continue
  console.log('told    ', true)
  break
}
const { introspection: over } = await db.tokens.introspectToken({ token: access.secret })
console.log('over    ', over.active, over.reason)
const { revokedCount } = await db.tokens.revokeTokens({ subject })
console.log('left    ', revokedCount)
db.close()
