// Administration: how all parts are, a statement that only reads, what is refused, and the log of all that.
import { connect } from 'kronos-db-client'

const db = connect(process.env.KRONOS_ADDRESS, { token: process.env.KRONOS_TOKEN })

const { domains, postgres } = await db.admin.getStatus({})
console.log('status  ', domains.length, 'domains', postgres.length, 'PostgreSQL')

const sql = "SELECT 40 + 2 AS answer, 'text' AS word"
for await (const { columns, rows, end } of db.admin.query({ sql }, { deadline: 20_000 })) {
  if (columns) console.log('columns ', columns.columns.map(({ name }) => name))
  for (const { values } of rows?.rows ?? []) {
    console.log('row     ', values.map((value) => (value.kind === 'int64Value' ? Number(value.int64Value) : value[value.kind])))
  }
  // Without an end part the stream was broken off: its rows are not all rows.
  if (end) console.log('end     ', Number(end.rowCount))
}

for (const refused of ['DELETE FROM users.users', 'SELECT password_hash FROM users.credentials']) {
  try {
    for await (const part of db.admin.query({ sql: refused }, { deadline: 20_000 })) console.log(part)
  } catch ({ code, reason }) {
    console.log('refused ', code, reason)
  }
}

const method = 'kronos.admin.v1.AdminService/Query'
const { events } = await db.admin.listAuditEvents({ method, pageSize: 2 })
console.log('recorded', events.map(({ phase }) => phase))
db.close()
