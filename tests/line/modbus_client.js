// A PLC of another maker: the handshake of docs/guides/station.md with npm's modbus-serial.
// node modbus_client.js PORT PARTS: prints one line of JSON a part.
"use strict";
const Modbus = require("modbus-serial");

const bit = { enable: 1, trigger: 2, ack: 4 };
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function main(port, parts) {
  const client = new Modbus();
  await client.connectTCP("127.0.0.1", { port });
  client.setID(1);
  client.setTimeout(3000);
  const read = async () => (await client.readInputRegisters(0, 17)).data;
  const wait = async (what, condition) => {
    const end = Date.now() + 60000;
    for (;;) {
      const registers = await read();
      if (condition(registers)) return registers;
      if (Date.now() > end) throw new Error(`no ${what}`);
      await sleep(1);
    }
  };
  await client.writeRegisters(0, [bit.enable]);
  for (let sequence = 1; sequence <= parts; sequence += 1) {
    await wait("ready", (r) => r[0] & 1);
    const text = Buffer.alloc(32);
    text.write(`SN-${sequence}`);
    const words = Array.from({ length: 16 }, (_, i) => text.readUInt16BE(2 * i));
    await client.writeRegisters(0, [bit.enable | bit.trigger, sequence, 0, sequence, ...words]);
    await wait("trigger ack", (r) => r[0] & 2);
    await client.writeRegisters(0, [bit.enable]);
    const r = await wait("result", (now) => now[0] & 8 && now[4] === sequence);
    const pass = (r[0] >> 4) & 1;
    const reject = (r[0] >> 5) & 1;
    console.log(JSON.stringify({ sequence: r[4], inspection: r[3], acquisition: r[2], evaluation: r[5], pass, reject, recipe: r[8] }));
    await client.writeRegisters(0, [bit.enable | bit.ack]);
    await wait("end of valid", (now) => !(now[0] & 8));
    await client.writeRegisters(0, [bit.enable]);
  }
  client.close();
}

main(Number(process.argv[2]), Number(process.argv[3])).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
