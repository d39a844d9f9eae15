// Opens sealed text as kronos-db wrote it (kronos_db/runtime/crypto/sealing.py): XAES-256-GCM, of which node:crypto has
// the parts.
import { createCipheriv, createDecipheriv } from "node:crypto";

const KEY_ID_END = 17;
const HEAD = 12;
const NONCE = 24;
const TAG = 16;
// Derived keys that are remembered.
const MOST_DERIVED = 4096;

/** Return a function that opens (sealed, field, record id); `keys` has data keys by their id, both in hexadecimal. */
export function opener(keys) {
  const ciphers = new Map(Object.entries(keys).map(([id, key]) => [id, derivations(Buffer.from(key, "hex"))]));
  return (sealed, field, recordId) => {
    if (sealed === null) return null;
    const [, text, index = ""] = sealed.split(".");
    const box = Buffer.from(text, "base64url");
    const derive = ciphers.get(box.toString("hex", 1, KEY_ID_END));
    const nonce = box.subarray(KEY_ID_END, KEY_ID_END + NONCE);
    const decipher = createDecipheriv("aes-256-gcm", derive(nonce.subarray(0, HEAD)), nonce.subarray(HEAD));
    decipher.setAAD(Buffer.concat([box.subarray(0, KEY_ID_END), framed(field), framed(recordId), framed(index)]));
    decipher.setAuthTag(box.subarray(-TAG));
    const padded = Buffer.concat([decipher.update(box.subarray(KEY_ID_END + NONCE, -TAG)), decipher.final()]);
    return padded.toString("utf8", 0, padded.lastIndexOf(0x80));
  };
}

/** Return what derives the key of a message from the first half of its nonce: CMAC of one block, twice. */
function derivations(key) {
  const ecb = createCipheriv("aes-256-ecb", key, null).setAutoPadding(false);
  const subkey = doubled(ecb.update(Buffer.alloc(16)));
  const known = new Map();
  return (head) => {
    const name = head.toString("latin1");
    let derived = known.get(name);
    if (derived === undefined) {
      const blocks = [1, 2].map((count) => Buffer.concat([Buffer.from([0, count, 0x58, 0]), head]));
      derived = ecb.update(Buffer.concat(blocks.map((block) => block.map((byte, at) => byte ^ subkey[at]))));
      if (known.size >= MOST_DERIVED) known.clear();
      known.set(name, derived);
    }
    return derived;
  };
}

/** Double a block in the field of CMAC (NIST SP 800-38B). */
function doubled(block) {
  const made = Buffer.alloc(16);
  for (let at = 0; at < 16; at += 1) made[at] = (block[at] << 1) | ((block[at + 1] ?? 0) >> 7);
  if (block[0] & 0x80) made[15] ^= 0x87;
  return made;
}

function framed(text) {
  const bytes = Buffer.from(text);
  const size = Buffer.alloc(4);
  size.writeUInt32BE(bytes.length);
  return Buffer.concat([size, bytes]);
}
