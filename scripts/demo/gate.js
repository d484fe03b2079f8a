// Stands between the server and the chain's node, and hands everything on. While it is shut, what the
// server sends for broadcast is held here and reaches nobody: that is how the demo stops the time
// between a signature and its broadcast.
//
//   node gate.js PORT NODE_PORT        both on 127.0.0.1
//
// GET /shut and GET /open move it; GET /held answers how many broadcasts wait in front of it.
"use strict";
const http = require("node:http");

const [port, nodePort] = process.argv.slice(2).map(Number);
let shut = false;
let held = 0;

const handOn = (body, response) => {
  const headers = { "content-type": "application/json", "content-length": body.length };
  const options = { host: "127.0.0.1", port: nodePort, method: "POST", headers };
  const asked = http.request(options, (answer) => {
    response.writeHead(answer.statusCode, { "content-type": "application/json" });
    answer.pipe(response);
  });
  asked.on("error", () => response.destroy());
  asked.end(body);
};

const move = (path, response) => {
  if (path === "/shut") shut = true;
  if (path === "/open") {
    shut = false;
    held = 0;
  }
  response.end(`${held}\n`);
};

http
  .createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      if (request.method === "GET") return move(request.url, response);
      const body = Buffer.concat(parts);
      if (shut && body.includes("eth_sendRawTransaction")) {
        // Never answered: its caller is about to end.
        held += 1;
        return undefined;
      }
      return handOn(body, response);
    });
  })
  .listen(port, "127.0.0.1");
