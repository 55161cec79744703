// Clients that always offer a subprotocol, and fail when none is answered: mqtt and graphql-ws. Their handshakes alone: nobody speaks MQTT or
// GraphQL behind them. Usage: subprotocols.cjs URL
'use strict';

const assert = require('node:assert');
const { once } = require('node:events');
const WebSocket = require('ws');
const mqtt = require('mqtt');
const graphql = require('graphql-ws');

const url = process.argv[2];

// ws, remembering its sockets: what the libraries make of them stays theirs.
const sockets = [];
class Remembered extends WebSocket {
  constructor(...args) {
    super(...args);
    sockets.push(this);
  }
}

async function answered(library, subprotocol) {
  while (sockets.length === 0) await new Promise((next) => setTimeout(next, 10));
  const socket = sockets.pop();
  if (socket.readyState === WebSocket.CONNECTING) await once(socket, 'open');
  assert.strictEqual(socket.protocol, subprotocol);
  // What comes back is an echo, which neither of them understands.
  socket.onmessage = () => {};
  console.log(`${library}: ${socket.protocol}`);
}

async function main() {
  const client = mqtt.connect(url, {
    reconnectPeriod: 0,
    createWebsocket: (target, protocols) => new Remembered(target, protocols),
  });
  client.on('error', () => {});
  await answered('mqtt', 'mqtt');

  graphql.createClient({ url, webSocketImpl: Remembered, lazy: false, retryAttempts: 0, onNonLazyError: () => {} });
  await answered('graphql-ws', 'graphql-transport-ws');

  const other = new WebSocket(url, ['stomp']);
  const [error] = await once(other, 'error');
  assert.match(error.message, /no subprotocol/);
  process.exit(0);
}

setTimeout(() => {
  console.error('subprotocols.cjs: not done after a minute');
  process.exit(1);
}, 60_000).unref();
main();
