// A page in headless Chromium: an echo with a subprotocol, and what a script sees of a refusal. Usage: browser.cjs CHROMIUM OPEN_URL FULL_URL
'use strict';

const assert = require('node:assert');
const { chromium } = require('playwright-core');

const [executablePath, openUrl, fullUrl] = process.argv.slice(2);

async function main() {
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  try {
    const page = await browser.newPage();
    const echo = await page.evaluate(
      (url) =>
        new Promise((done) => {
          const socket = new WebSocket(url, ['other', 'mqtt']);
          socket.onopen = () => socket.send('from a page');
          socket.onmessage = ({ data }) => done({ data, protocol: socket.protocol });
          socket.onclose = ({ code }) => done({ code });
        }),
      openUrl,
    );
    assert.deepStrictEqual(echo, { data: 'from a page', protocol: 'mqtt' });
    const refusal = await page.evaluate(
      (url) =>
        new Promise((done) => {
          const socket = new WebSocket(url);
          socket.onclose = ({ code, reason }) => done({ code, reason });
        }),
      fullUrl,
    );
    assert.strictEqual(refusal.code, 1013);
    assert.match(refusal.reason, /^max_connections; retry after \d+ s$/);
    console.log(`${browser.version()}: an echo by ${echo.protocol}; a refusal with ${refusal.code} ${refusal.reason}`);
  } finally {
    await browser.close();
  }
}

setTimeout(() => {
  console.error('browser.cjs: not done after a minute');
  process.exit(1);
}, 60_000).unref();
main();
