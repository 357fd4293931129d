"""A stand-in for the Messages API, on the loopback of a network namespace of its own.

api_stand_in.py TOOL_COMMAND COMMAND ARGS...: serves, runs the command with ANTHROPIC_BASE_URL pointing
here, and exits as it does. It answers the first turn by a call of the tool `Bash` with TOOL_COMMAND, and
every later one by a text.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def answer(request):
    """The content block of the answer, and why it stops."""
    tools = [tool.get("name") for tool in request.get("tools", [])]
    turns = json.dumps(request.get("messages", []))
    if "Bash" in tools and "tool_result" not in turns:
        call = {"command": sys.argv[1], "description": "Leave a process behind"}
        return {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": call}, "tool_use"
    return {"type": "text", "text": "All is done."}, "end_turn"


def events(request):
    block, reason = answer(request)
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": request.get("model", "stand-in"),
               "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    if block["type"] == "text":
        start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
    else:
        start = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    yield {"type": "message_start", "message": message}
    yield {"type": "content_block_start", "index": 0, "content_block": start}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, kind, body, status=200):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.reply("application/json", b"")

    def do_GET(self):
        self.reply("application/json", b"{}", 404)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if "/v1/messages" not in self.path:
            self.reply("application/json", b"{}", 404)
        elif "count_tokens" in self.path:
            self.reply("application/json", b'{"input_tokens": 1}')
        elif request.get("stream"):
            body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events(request))
            self.reply("text/event-stream", body.encode())
        else:
            block, reason = answer(request)
            usage = {"input_tokens": 1, "output_tokens": 1}
            self.reply("application/json", json.dumps({
                "id": "msg_1", "type": "message", "role": "assistant", "model": request.get("model", "stand-in"),
                "content": [block], "stop_reason": reason, "stop_sequence": None, "usage": usage}).encode())


loopback_up()
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {**os.environ, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
sys.exit(subprocess.run(sys.argv[2:], env=environment).returncode)
