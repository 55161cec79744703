// Echo with Bun's own server: two processes that share the port in the first argument (SO_REUSEPORT).
if (process.argv[3] !== "serve") {
  const start = () =>
    Bun.spawn([process.execPath, import.meta.path, process.argv[2], "serve"], { stdout: "inherit", stderr: "inherit" });
  await Promise.all([start().exited, start().exited]);
} else {
  Bun.serve({
    hostname: "127.0.0.1",
    port: Number(process.argv[2]),
    reusePort: true,
    fetch: (request, server) => (server.upgrade(request) ? undefined : new Response("", { status: 426 })),
    websocket: {
      perMessageDeflate: false,
      maxPayloadLength: 2 * 1024 * 1024,
      backpressureLimit: 4 * 1024 * 1024,
      message: (socket, message) => socket.send(message),
    },
  });
}
