// Echo with Node's cluster module and ws: two processes, the port in the first argument.
const cluster = require("node:cluster");

if (cluster.isPrimary) {
  cluster.fork();
  cluster.fork();
} else {
  const { WebSocketServer } = require("ws");
  const server = new WebSocketServer({
    host: "127.0.0.1",
    port: Number(process.argv[2]),
    backlog: 65535,
    perMessageDeflate: false,
    maxPayload: 2 * 1024 * 1024,
  });
  server.on("connection", (socket) => {
    socket.on("error", () => {});
    socket.on("message", (data, binary) => socket.send(data, { binary }));
  });
}
