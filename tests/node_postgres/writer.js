// Writes numbered rows through one pool of one host and port, as an application does, and says which were committed.
// Usage: node writer.js HOST PORT USER DATABASE; the password is in PGPASSWORD. Ends when standard input ends.
'use strict'
const { Pool } = require('pg')

const [host, port, user, database] = process.argv.slice(2)
const pool = new Pool({ host, port: Number(port), user, database, max: 2, connectionTimeoutMillis: 15000 })
pool.on('error', () => {}) // an idle connection was lost; the pool makes another

let going = true
process.stdin.on('end', () => { going = false }).resume()

async function main () {
  for (let number = 1; going; number++) {
    try {
      await pool.query('INSERT INTO written (number) VALUES ($1) ON CONFLICT DO NOTHING', [number])
    } catch (error) {
      process.stdout.write(`failed ${number} ${error.code || error.message}\n`)
      number--
      await new Promise(resolve => setTimeout(resolve, 20))
      continue
    }
    process.stdout.write(`committed ${number}\n`)
  }
  await pool.end()
}

main().catch(error => { console.error(error); process.exit(1) })
