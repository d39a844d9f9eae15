// Answers GET /users/ID as JSON with Express and Sequelize, from the table that kronos-db serves.
//
//   node server.mjs PORT PROCESSES CONNECTIONS
//
// PG* variables name the database, SEAL_KEYS the keys of its e-mails and phones; CONNECTIONS is the pool of each process.
// Says when all processes serve, and ends when standard input closes. It does less than kronos-db: no caller is known or
// refused, and nothing is counted or logged.
import cluster from "node:cluster";

import express from "express";
import { DataTypes, Sequelize } from "sequelize";

import { opener } from "./sealed.mjs";

const [port, processes, connections] = process.argv.slice(2).map(Number);
const STATES = { 1: "ACTIVE", 2: "SUSPENDED" };

function start() {
  let listening = 0;
  cluster.on("listening", () => {
    listening += 1;
    if (listening === processes) console.log("serving");
  });
  cluster.on("exit", () => process.exit(1));
  for (let i = 0; i < processes; i += 1) cluster.fork();
  process.stdin.on("end", () => process.exit(0)).resume();
}

function serve() {
  const { PGDATABASE, PGUSER, PGPASSWORD, PGHOST, PGPORT, SEAL_KEYS } = process.env;
  const open = opener(JSON.parse(SEAL_KEYS));
  const sequelize = new Sequelize(PGDATABASE, PGUSER, PGPASSWORD, {
    dialect: "postgres",
    host: PGHOST,
    port: PGPORT,
    logging: false,
    pool: { min: connections, max: connections },
  });
  const columns = {
    id: { type: DataTypes.UUID, primaryKey: true },
    username: DataTypes.TEXT,
    email: DataTypes.TEXT,
    phone: DataTypes.TEXT,
    display_name: DataTypes.TEXT,
    attributes: DataTypes.JSONB,
    state: DataTypes.SMALLINT,
    version: DataTypes.BIGINT,
    create_time: DataTypes.DATE,
    update_time: DataTypes.DATE,
    delete_time: DataTypes.DATE,
  };
  const User = sequelize.define("User", columns, { schema: "users", tableName: "users", timestamps: false });

  const app = express();
  // What costs time and is not asked for.
  app.disable("etag");
  app.disable("x-powered-by");
  app.get("/users/:id", async (request, response) => {
    const user = await User.findByPk(request.params.id, { raw: true });
    if (user === null) {
      response.status(404).json({ reason: "USER_NOT_FOUND" });
      return;
    }
    response.json({
      id: user.id,
      username: user.username,
      email: open(user.email, "kronos.users.v1.User.email", user.id),
      phone: open(user.phone, "kronos.users.v1.User.phone", user.id),
      displayName: user.display_name,
      attributes: user.attributes,
      state: user.delete_time ? "DELETED" : STATES[user.state],
      etag: user.version,
      createTime: user.create_time,
      updateTime: user.update_time,
      deleteTime: user.delete_time,
    });
  });
  app.listen(port, "127.0.0.1");
}

if (cluster.isPrimary) start();
else serve();
