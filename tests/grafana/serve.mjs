// Serves the built page of render.tsx on a free port of loopback, and prints its address when it can
// be asked. See render.sh.
import { preview } from 'vite';

const server = await preview({ preview: { host: '127.0.0.1', port: 0 }, logLevel: 'silent' });
console.log(server.resolvedUrls.local[0].replace(/\/$/, ''));
