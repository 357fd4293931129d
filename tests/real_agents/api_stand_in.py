"""A stand-in for the Messages API, on the loopback of a network namespace of its own.

api_stand_in.py [OPTIONS] COMMAND ARGS...: serves, runs the command with ANTHROPIC_BASE_URL pointing
here, and exits as it does. With `--tool` it answers the first turn by a call of the tool `Bash`; every
other turn by a text, which says again what the user said last.
"""

import argparse
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

parser = argparse.ArgumentParser()
parser.add_argument("--tool", help="a command line that the first turn is answered with")
parser.add_argument("--silent", choices=["first", "after-tool"], help="the request that is never answered")
parser.add_argument("--book", help="a file that gets a line for each request: what the user said so far")
parser.add_argument("command", nargs=argparse.REMAINDER)
given = parser.parse_args()

lock = threading.Lock()
asked = 0


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def blocks(message):
    content = message.get("content", [])
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def said(request):
    """What the user said, turn by turn, without what the agent adds by itself."""
    texts = [block["text"] for message in request.get("messages", []) if message.get("role") == "user"
             for block in blocks(message) if block.get("type") == "text"]
    return [text for text in texts if not text.startswith("<system-reminder>")]


def is_after_a_tool(request):
    return "tool_result" in json.dumps(request.get("messages", []))


def is_a_turn(request):
    """Whether it is the conversation: the agent asks for other things too, a title say, without tools."""
    return bool(request.get("tools"))


def never_answered(request):
    global asked
    with lock:
        if not is_a_turn(request):
            return False
        asked += 1
        if given.book:
            with open(given.book, "a", encoding="utf-8") as book:
                book.write(json.dumps(said(request)) + "\n")
        return (given.silent == "first" and asked == 1) or (given.silent == "after-tool" and is_after_a_tool(request))


def answer(request):
    """The content block of the answer, and why it stops."""
    tools = [tool.get("name") for tool in request.get("tools", [])]
    if given.tool and "Bash" in tools and not is_after_a_tool(request):
        call = {"command": given.tool, "description": "What the test asks for"}
        return {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": call}, "tool_use"
    last = said(request)[-1:] or [""]
    return {"type": "text", "text": f"All is done: {last[0]}"}, "end_turn"


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
        elif never_answered(request):
            self.rfile.read(1)  # until the other side gives up
        elif request.get("stream"):
            body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events(request))
            self.reply("text/event-stream", body.encode())
        else:
            block, reason = answer(request)
            usage = {"input_tokens": 1, "output_tokens": 1}
            self.reply("application/json", json.dumps({
                "id": "msg_1", "type": "message", "role": "assistant", "model": request.get("model", "stand-in"),
                "content": [block], "stop_reason": reason, "stop_sequence": None, "usage": usage}).encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # whoever gave up does not read its answer


loopback_up()
server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {**os.environ, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{server.server_port}"}
sys.exit(subprocess.run(given.command, env=environment).returncode)
