// Node's ws against the echo of a Holdfast with default limits. Usage: ws_client.cjs URL
'use strict';

const assert = require('node:assert');
const { once } = require('node:events');
const WebSocket = require('ws');

const url = process.argv[2];
const MIB = 1024 * 1024;

async function open() {
  const socket = new WebSocket(url);
  await once(socket, 'open');
  return socket;
}

async function echo(socket, message) {
  const answer = once(socket, 'message');
  socket.send(message);
  const [data, isBinary] = await answer;
  assert.strictEqual(isBinary, typeof message !== 'string');
  assert.ok(Buffer.from(message).equals(data), `${message.length} came back changed`);
}

const checks = {
  async echoes() {
    const socket = await open();
    const large = Buffer.alloc(MIB, 'the quick brown fox ');
    for (const message of ['hello', '', 'Grüße, 世界, 🦀', Buffer.alloc(0), Buffer.from([0, 255, 10, 13]), large]) {
      await echo(socket, message);
    }
    socket.terminate();
  },

  async fragments() {
    const socket = await open();
    const answer = once(socket, 'message');
    socket.send('frag', { fin: false });
    socket.ping('between fragments');
    socket.send('', { fin: false });
    socket.send('mented', { fin: true });
    const [data, isBinary] = await answer;
    assert.deepStrictEqual([data.toString(), isBinary], ['fragmented', false]);
    socket.terminate();
  },

  async pings() {
    const socket = await open();
    for (const payload of ['', 'are you there?', 'x'.repeat(125)]) {
      const pong = once(socket, 'pong');
      socket.ping(payload);
      assert.strictEqual((await pong)[0].toString(), payload);
    }
    socket.terminate();
  },

  async closeCodes() {
    for (const code of [1000, 1001, 1003, 1011, 3000, 4999]) {
      const socket = await open();
      const closed = once(socket, 'close');
      socket.close(code, 'enough');
      assert.strictEqual((await closed)[0], code);
    }
  },

  // Reading stops while a hundred messages of a megabyte travel: all come back when it goes on.
  async slowReader() {
    const socket = await open();
    for (const [messages, pauseMs] of [[6, 0], [100, 2000]]) {
      if (pauseMs > 0) socket.pause();
      const sent = [...Array(messages).keys()].map((n) => Buffer.alloc(MIB, `message ${n} `));
      for (const message of sent) socket.send(message);
      setTimeout(() => socket.resume(), pauseMs);
      const changed = await new Promise((resolve, reject) => {
        const wrong = [];
        let back = 0;
        const closed = (code) => reject(new Error(`closed with ${code} after ${back} of ${messages}`));
        socket.once('close', closed);
        socket.on('message', (data) => {
          if (!sent[back].equals(data)) wrong.push(back);
          back += 1;
          if (back < messages) return;
          socket.removeAllListeners('message').removeListener('close', closed);
          resolve(wrong);
        });
      });
      assert.deepStrictEqual(changed, []);
    }
    socket.terminate();
  },

  async tooBig() {
    const socket = await open();
    const closed = once(socket, 'close');
    socket.on('error', () => {}); // the server may close while the message is still being sent
    socket.send(Buffer.alloc(MIB + 1));
    assert.strictEqual((await closed)[0], 1009);
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    await check();
    console.log(`ok ${name}`);
  }
})();
