// A parent that spawns its arguments with Node's default stdio, and says what it saw at `close`,
// which comes when the child has exited and both of its streams have ended.
const { spawn } = require("node:child_process");
const child = spawn(process.argv[2], process.argv.slice(3));
let stdout = "";
let stderr = "";
child.stdout.on("data", (data) => (stdout += data));
child.stderr.on("data", (data) => (stderr += data));
child.on("close", (code, signal) => console.log(JSON.stringify({ code, signal, stdout, stderr })));
